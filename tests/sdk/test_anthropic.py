"""Anthropic's SDK through the gateway."""

import asyncio
import json
import time

import anthropic
import pytest

from conftest import KEY, LIMITED_KEY, PROVIDER_KEY

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "name": "get_weather",
    "description": "The weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
ARGUMENTS = '{"city":"Zürich","days":3}'
ASK = {"model": "claude", "max_tokens": 100, "messages": HELLO}


def test_messages(ant, provider):
    provider.script("sim-claude", {"text": "Grüezi", "input": 20, "cached": 5, "cache_write": 3, "output": 7})
    message = ant.messages.create(**ASK)
    assert message.content[0].text == "Grüezi"
    assert message.stop_reason == "end_turn"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (12, 5)
    assert (usage.cache_creation_input_tokens, usage.output_tokens) == (3, 7)
    assert message._request_id.startswith("req_")
    call = provider.call
    assert call.path == "/v1/messages"
    assert call.json == {**ASK, "model": "sim-claude"}


def test_the_sdk_sends_its_key_as_a_bearer_token(ant, provider):
    raw = ant.messages.with_raw_response.create(**ASK)
    assert raw.http_request.headers["authorization"] == f"Bearer {KEY}"
    assert "x-api-key" not in raw.http_request.headers
    seen = provider.call.headers
    assert seen["x-api-key"] == PROVIDER_KEY
    assert "authorization" not in seen
    assert seen["anthropic-version"] == raw.http_request.headers["anthropic-version"]
    assert seen["accept-encoding"] == "identity"
    assert seen["x-stainless-lang"] == "python"
    assert KEY not in json.dumps(seen)


def test_a_key_in_x_api_key(gateway, provider):
    # As older SDKs send it.
    omit = anthropic.Omit()
    with anthropic.Anthropic(
        base_url=gateway.url, api_key=KEY, default_headers={"x-api-key": KEY, "authorization": omit}
    ) as client:
        raw = client.messages.with_raw_response.create(**ASK)
    assert raw.http_request.headers["x-api-key"] == KEY
    assert "authorization" not in raw.http_request.headers
    assert provider.call.headers["x-api-key"] == PROVIDER_KEY


def test_an_auth_token(gateway, provider):
    with anthropic.Anthropic(base_url=gateway.url, auth_token=KEY) as client:
        client.messages.create(**ASK)
    assert provider.call.headers["x-api-key"] == PROVIDER_KEY
    assert "authorization" not in provider.call.headers


def test_two_different_keys_are_refused(gateway, provider):
    with anthropic.Anthropic(
        base_url=gateway.url, api_key=KEY, default_headers={"x-api-key": LIMITED_KEY}
    ) as client:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            client.messages.create(**ASK)
    assert caught.value.error_code == "invalid_api_key"
    assert provider.calls == []


def test_streamed_messages(ant, provider):
    provider.script("sim-claude", {"text": "one two three", "chunks": 3, "input": 9, "output": 4})
    events = list(ant.messages.create(**ASK, stream=True))
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    text = "".join(e.delta.text for e in events if e.type == "content_block_delta")
    assert text == "one two three"
    assert events[-2].usage.output_tokens == 4
    assert events[-2].delta.stop_reason == "end_turn"


def test_the_stream_helper(ant, provider):
    provider.script("sim-claude", {"text": "alpha beta gamma", "chunks": 3, "input": 9, "output": 4})
    with ant.messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
        headers = stream.response.headers
    assert text == "alpha beta gamma"
    assert message.content[0].text == text
    assert (message.usage.input_tokens, message.usage.output_tokens) == (9, 4)
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-tollbar-target"] == "anthropic/sim-claude"


def test_a_stream_arrives_as_it_is_made(ant, provider):
    provider.script("sim-claude", {"chunks": 5, "gap_ms": 150})
    start, at = time.monotonic(), []
    with ant.messages.stream(**ASK) as stream:
        for _ in stream.text_stream:
            at.append(time.monotonic() - start)
    assert len(at) == 5
    assert at[-1] > 0.55
    assert at[0] < at[-1] - 0.4


def test_tools(ant, provider):
    provider.script("sim-claude", {"tool": True, "tool_arguments": ARGUMENTS})
    message = ant.messages.create(**ASK, tools=[TOOL])
    assert message.stop_reason == "tool_use"
    use = message.content[0]
    assert (use.type, use.name, use.input) == ("tool_use", "get_weather", json.loads(ARGUMENTS))
    messages = [
        *HELLO,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}]},
    ]
    provider.script("sim-claude", {"text": "It is sunny."})
    message = ant.messages.create(**{**ASK, "messages": messages}, tools=[TOOL])
    assert message.content[0].text == "It is sunny."
    assert provider.calls[1].json["messages"][2]["content"][0]["tool_use_id"] == use.id


def test_streamed_tools(ant, provider):
    provider.script("sim-claude", {"tool": True, "tool_arguments": ARGUMENTS, "chunks": 5})
    with ant.messages.stream(**ASK, tools=[TOOL]) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    assert "".join(pieces) == ARGUMENTS and len(pieces) == 5
    assert message.content[0].input == json.loads(ARGUMENTS)
    assert message.stop_reason == "tool_use"


def test_count_tokens(ant, provider):
    provider.script("sim-claude", {"input": 77})
    assert ant.messages.count_tokens(model="claude", messages=HELLO).input_tokens == 77
    call = provider.call
    assert call.path == "/v1/messages/count_tokens"
    assert call.json == {"messages": HELLO, "model": "sim-claude"}


def test_models(ant, provider):
    models = list(ant.models.list())
    ids = [model.id for model in models]
    assert ids == sorted(ids)
    assert {"gpt", "claude", "claude-twice"} <= set(ids)
    assert all(model.type == "model" and model.display_name for model in models)
    assert models[0].created_at.year == 1970
    assert ant.models.retrieve("claude").id == "claude"
    assert provider.calls == []


def test_large_bodies(ant, provider):
    provider.script("sim-claude", {"size": 300_000})
    prompt = "ä" * 300_000
    message = ant.messages.create(**{**ASK, "messages": [{"role": "user", "content": prompt}]})
    assert len(message.content[0].text.encode()) == 300_000
    assert provider.call.json["messages"][0]["content"] == prompt


def test_async(gateway, provider):
    async def run():
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=KEY) as client:
            async def plain(text):
                ask = {**ASK, "messages": [{"role": "user", "content": text}]}
                return (await client.messages.create(**ask)).content[0].text

            async def streamed(text):
                ask = {**ASK, "messages": [{"role": "user", "content": text}]}
                async with client.messages.stream(**ask) as stream:
                    return (await stream.get_final_message()).content[0].text

            texts = [f"request {n}" for n in range(10)]
            return texts, await asyncio.gather(*map(plain, texts), *map(streamed, texts))

    provider.always("sim-claude", echo=True)
    texts, answers = asyncio.run(run())
    assert [json.loads(answer)["messages"][0]["content"] for answer in answers] == texts * 2
    assert len(provider.calls) == 20
