"""Errors as both SDKs see them: class, fields, and how many calls they cost at the provider."""

import re
import time

import anthropic
import openai
import pytest

from conftest import EXPIRED_KEY, KEY, LIMITED_KEY, POOR_KEY, PROVIDER_KEY, SLOW_KEYS, tries

HELLO = [{"role": "user", "content": "Hello"}]
REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")


class OpenAI:
    """What the tests below do with OpenAI's SDK."""

    sdk = openai

    def __init__(self, gateway, **options):
        options = {"api_key": KEY, **options}
        self.client = openai.OpenAI(base_url=f"{gateway.url}/v1", **options)

    def ask(self, model):
        return self.client.chat.completions.create(model=model, messages=HELLO)

    def stream(self, model):
        for chunk in self.client.chat.completions.create(model=model, messages=HELLO, stream=True):
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    @staticmethod
    def text(answer):
        return answer.choices[0].message.content

    @staticmethod
    def code(error):
        return error.code

    @staticmethod
    def said(error):
        return error.body["message"]


class Anthropic:
    """The same with Anthropic's."""

    sdk = anthropic

    def __init__(self, gateway, **options):
        options = {"api_key": KEY, **options}
        self.client = anthropic.Anthropic(base_url=gateway.url, **options)

    def ask(self, model):
        return self.client.messages.create(model=model, max_tokens=50, messages=HELLO)

    def stream(self, model):
        with self.client.messages.stream(model=model, max_tokens=50, messages=HELLO) as stream:
            yield from stream.text_stream

    @staticmethod
    def text(answer):
        return answer.content[0].text

    @staticmethod
    def code(error):
        return error.error_code

    @staticmethod
    def said(error):
        return error.body["error"]["message"]


@pytest.fixture(params=[OpenAI, Anthropic], ids=["openai", "anthropic"])
def app(request, gateway, provider):
    """One SDK after the other; `app()` makes a client with these options."""
    made = []

    def make(**options):
        made.append(request.param(gateway, **options))
        return made[-1]

    make.sdk = request.param.sdk
    # A model's name, and the provider's own id for it, in this SDK's dialect.
    make.name = lambda name: f"claude-{name}" if request.param is Anthropic else name
    make.upstream = lambda name: f"sim-{make.name(name)}"
    yield make
    for client in made:
        client.client.close()


def refused(app, client, model, kind, code, type):
    """A request that ends in this typed exception, with everything that the SDK reads."""
    with pytest.raises(app.sdk.APIStatusError) as caught:
        client.ask(model)
    error = caught.value
    assert error.__class__ is getattr(app.sdk, kind)
    assert client.code(error) == code
    assert error.type == type
    assert REQUEST_ID.fullmatch(error.request_id)
    assert error.response.headers["x-request-id"] == error.request_id
    if app.sdk is anthropic:
        assert error.body["request_id"] == error.request_id
    return error


# The gateway's own refusals: nothing reaches the provider, nothing is tried again.


def test_no_model(app, provider):
    error = refused(app, app(), "", "BadRequestError", "missing_model", "invalid_request_error")
    assert tries(error) == 1
    assert provider.calls == []


@pytest.mark.parametrize(
    ("key", "code"),
    [("tb-nobody-knows-me", "invalid_api_key"), ("sk-ant-real-key", "invalid_api_key"), (EXPIRED_KEY, "key_expired")],
)
def test_a_key_that_is_not_in_force(app, provider, key, code):
    client = app(api_key=key)
    error = refused(app, client, app.name("flaky"), "AuthenticationError", code, "authentication_error")
    assert tries(error) == 1
    assert key not in str(error)
    assert provider.calls == []


def test_a_model_that_the_key_may_not_use(app, provider):
    client = app(api_key=LIMITED_KEY)
    error = refused(app, client, app.name("secret"), "PermissionDeniedError", "model_not_allowed", "permission_error")
    assert f"`{app.name('secret')}`" in client.said(error) and "`some`" in client.said(error)
    assert tries(error) == 1
    assert provider.calls == []


def test_a_model_that_is_not_there(app, provider):
    client = app(api_key=LIMITED_KEY)
    error = refused(app, client, "cloude", "NotFoundError", "model_not_found", "not_found_error")
    # The nearest that this key may use, and no other.
    assert "`claude`" in client.said(error)
    assert "flaky" not in client.said(error)
    assert tries(error) == 1
    assert provider.calls == []


def test_a_path_that_is_not_there(gateway, provider):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            client.files.list()
    assert caught.value.code == "unknown_path"
    assert provider.calls == []


def test_another_dialect(gateway, provider):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="claude", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "model")
    assert provider.calls == []


# What the provider refuses is relayed as it is, after one call.

RELAYED = [
    (400, "BadRequestError", "invalid_request_error"),
    (404, "NotFoundError", "not_found_error"),
    (422, "UnprocessableEntityError", "invalid_request_error"),
]


@pytest.mark.parametrize(("status", "kind", "type"), RELAYED)
def test_a_provider_that_refuses(app, provider, status, kind, type):
    provider.always(app.upstream("flaky"), status=status)
    client = app()
    with pytest.raises(app.sdk.APIStatusError) as caught:
        client.ask(app.name("flaky"))
    error = caught.value
    assert error.__class__ is getattr(app.sdk, kind)
    assert error.status_code == status
    assert REQUEST_ID.fullmatch(error.request_id), "the gateway's id, not the provider's"
    assert error.response.headers["x-tollbar-attempts"] == "1"
    assert tries(error) == 1
    assert len(provider.calls) == 1
    if app.sdk is openai:
        assert (error.type, error.code) == ("invalid_request_error", "model_not_found" if status == 404 else None)
    else:
        assert error.type == type


def test_a_refusal_is_relayed_byte_for_byte(app, provider):
    body = '{ "error" : {"message":"no \\u00fcbung", "type":"odd", "code":"own_code", "extra":[1.50]} }'
    provider.script(app.upstream("flaky"), {"status": 400, "body": body})
    with pytest.raises(app.sdk.BadRequestError) as caught:
        app().ask(app.name("flaky"))
    assert caught.value.response.text == body
    assert caught.value.type == "odd"


def test_a_conflict_is_the_sdks_to_repeat(app, provider):
    # 409 is relayed, and the SDKs repeat it on their own: one call each.
    provider.always(app.upstream("flaky"), status=409)
    with pytest.raises(app.sdk.ConflictError) as caught:
        app(max_retries=1).ask(app.name("flaky"))
    assert tries(caught.value) == 2
    assert len(provider.calls) == 2


# What the provider can't do is tried within attempts.max, and by nobody else.


@pytest.mark.parametrize("status", [500, 502, 503, 504, 529])
def test_a_provider_that_fails(app, provider, status):
    models = [app.upstream("twice").replace("twice", n) for n in ("one", "two")]
    for model in models:
        provider.always(model, status=status)
    client = app(max_retries=0)
    error = refused(app, client, app.name("twice"), "InternalServerError", "upstream_error",
                    "server_error" if app.sdk is openai else "api_error")
    assert error.status_code == 502
    assert error.response.headers["x-should-retry"] == "false"
    assert error.response.headers["x-tollbar-attempts"] == "3"
    # Every attempt is named; the one target twice, then the other.
    asked = [call.json["model"] for call in provider.calls]
    assert len(asked) == 3 and asked[0] == asked[1] != asked[2]
    assert set(asked) == set(models)
    assert client.said(error).count(f"status {status}") == 3


def test_sdk_retries_do_not_multiply_attempts(app, provider):
    for n in ("one", "two"):
        provider.always(app.upstream("twice").replace("twice", n), status=500)
    with pytest.raises(app.sdk.InternalServerError) as caught:
        app(max_retries=2).ask(app.name("twice"))
    assert tries(caught.value) == 1
    assert len(provider.calls) == 3


def test_a_provider_that_fails_once(app, provider):
    provider.script(app.upstream("flaky"), {"status": 500}, {"text": "second time lucky"})
    client = app(max_retries=0)
    assert client.text(client.ask(app.name("flaky"))) == "second time lucky"
    assert len(provider.calls) == 2


def test_a_provider_that_hangs_up(app, provider):
    # Each target is asked once: it may have worked on what it was sent, and would bill it twice.
    models = [app.upstream("twice").replace("twice", n) for n in ("one", "two")]
    for model in models:
        provider.always(model, cut="headers", delay_ms=700)
    with pytest.raises(app.sdk.InternalServerError):
        app(max_retries=0).ask(app.name("twice"))
    assert sorted(call.json["model"] for call in provider.calls) == models


def test_a_provider_that_breaks_off_a_plain_answer(app, provider):
    # Never half an answer: an error, typed, and no second billed call behind the app's back.
    provider.always(app.upstream("flaky"), size=200_000, cut=1)
    with pytest.raises(app.sdk.APIError):
        app(max_retries=0).ask(app.name("flaky"))
    assert len(provider.calls) == 1


def test_a_rate_limited_provider(app, provider):
    model = app.upstream("limited")
    provider.script(model, {"status": 429, "headers": [["retry-after", "1"]]})
    client = app(max_retries=0)
    error = refused(app, client, app.name("limited"), "RateLimitError", "upstream_rate_limited", "rate_limit_error")
    assert error.response.headers["retry-after"] == "1"
    # Never the same target again, whatever same_target says.
    assert len(provider.calls) == 1


def test_an_sdk_waits_out_a_rate_limit(app, provider):
    model = app.upstream("waiting")
    provider.script(model, {"status": 429, "headers": [["retry-after", "2"]]}, {"text": "now"})
    client, began = app(max_retries=1), time.monotonic()
    assert client.text(client.ask(app.name("waiting"))) == "now"
    assert time.monotonic() - began >= 2
    assert len(provider.calls) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_provider_that_refuses_the_gateways_key(app, provider, status):
    name = f"badkey-{status}"
    provider.always(app.upstream(name), status=status)
    # Not the app's fault: no 401, no repeat, and the provider's key and words stay inside.
    kind = "server_error" if app.sdk is openai else "api_error"
    error = refused(app, app(), app.name(name), "InternalServerError", "upstream_auth_failed", kind)
    assert error.status_code == 502
    assert tries(error) == 1
    assert len(provider.calls) == 1
    assert PROVIDER_KEY not in str(error) and "Incorrect API key" not in str(error)
    # From now on the provider is left alone.
    with pytest.raises(app.sdk.InternalServerError) as caught:
        app(max_retries=0).ask(app.name(name))
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 1
    assert len(provider.calls) == 1


# Streams.


def test_an_error_before_the_stream_is_an_ordinary_one(app, provider):
    provider.always(app.upstream("flaky"), status=400)
    with pytest.raises(app.sdk.BadRequestError):
        list(app().stream(app.name("flaky")))
    assert len(provider.calls) == 1


def broken(app, client, model):
    """The pieces that came before the error, and the error."""
    pieces = []
    with pytest.raises(app.sdk.APIError) as caught:
        for piece in client.stream(model):
            pieces.append(piece)
    return pieces, caught.value


@pytest.mark.parametrize(
    "how", [{"chunks": 8, "cut": 3}, {"chunks": 3, "truncate": True}], ids=["cut", "truncated"]
)
def test_a_stream_that_breaks(app, provider, how):
    provider.always(app.upstream("flaky"), **how)
    pieces, error = broken(app, app(), app.name("flaky"))
    assert len(pieces) == 3
    # Not a connection error, which an app might take for its own network.
    assert not isinstance(error, app.sdk.APIConnectionError)
    assert "incomplete" in str(error)
    if app.sdk is openai:
        assert error.code == "stream_interrupted"
    else:
        assert (error.type, error.error_code) == ("api_error", "stream_interrupted")
        assert error.request_id == error.body["request_id"]
    # No other model and no second call after the first byte.
    assert len(provider.calls) == 1


def test_a_stream_with_the_providers_own_error(app, provider):
    provider.always(app.upstream("flaky"), error_event=2)
    pieces, error = broken(app, app(), app.name("flaky"))
    assert len(pieces) == 2
    assert "incomplete" not in str(error), "the provider's words are enough"
    assert len(provider.calls) == 1


@pytest.mark.parametrize(
    "cut_at", ["event: response.output_text.delta\n", "event: response.outp", ": a comment", "da", "data:"]
)
@pytest.mark.parametrize("end", ["cut", "truncated"])
def test_a_responses_stream_that_breaks_within_an_event(gateway, provider, cut_at, end):
    created = (
        'event: response.created\ndata: {"type":"response.created","sequence_number":0,'
        '"response":{"id":"resp_1","object":"response","status":"in_progress","output":[]}}\n\n'
    )
    script = {"raw_chunks": [created, cut_at]}
    if end == "cut":
        script["cut"] = 2
    provider.always("sim-flaky", **script)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
        events = []
        with pytest.raises(openai.APIError) as caught:
            for event in client.responses.create(model="flaky", input="Hello", stream=True):
                events.append(event.type)
    assert events == ["response.created"]
    assert not isinstance(caught.value, openai.APIConnectionError)
    assert caught.value.code == "stream_interrupted"
    assert len(provider.calls) == 1


@pytest.mark.parametrize("cut_at", ["da", "data:", "data: ", ": ping", "data: {}\n"])
@pytest.mark.parametrize("end", ["cut", "truncated"])
@pytest.mark.parametrize("usage", [True, False], ids=["usage", "no-usage"])
def test_a_chat_stream_that_breaks_within_an_event(gateway, provider, cut_at, end, usage):
    check_broken_chat_stream(gateway, provider, cut_at, end, usage)


@pytest.mark.parametrize("end", ["cut", "truncated"])
def test_a_chat_stream_that_breaks_within_json(gateway, provider, end):
    # With usage asked for, chunks leave as they come and the SDK trips over the half event. By
    # default events leave whole, and it doesn't.
    check_broken_chat_stream(gateway, provider, 'data: {"id":"c","choi', end, usage=False)


def check_broken_chat_stream(gateway, provider, cut_at, end, usage):
    first = (
        'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
        '[{"index":0,"delta":{"role":"assistant","content":"Hi"},"finish_reason":null}]}\n\n'
    )
    script = {"raw_chunks": [first, cut_at]}
    if end == "cut":
        script["cut"] = 2
    provider.always("sim-flaky", **script)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    texts = []
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
        with pytest.raises(openai.APIError) as caught:
            for chunk in client.chat.completions.create(model="flaky", messages=HELLO, stream=True, **options):
                texts.append(chunk.choices[0].delta.content if chunk.choices else None)
    assert texts[0] == "Hi"
    assert not isinstance(caught.value, openai.APIConnectionError)
    assert caught.value.code == "stream_interrupted"


# The gateway's own limits.


def test_a_rate_limit(app, provider):
    key = SLOW_KEYS[app.sdk.__name__]
    client = app(api_key=key, max_retries=0)
    client.ask(app.name("flaky"))
    error = refused(app, client, app.name("flaky"), "RateLimitError", "rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(error.response.headers["retry-after"]) <= 62
    assert len(provider.calls) == 1


def test_a_spent_budget(app, provider):
    with pytest.raises(app.sdk.RateLimitError) as caught:
        app(api_key=POOR_KEY).ask(app.name("flaky"))
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert tries(caught.value) == 1
    assert provider.calls == []
