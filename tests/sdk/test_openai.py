"""OpenAI's SDK through the gateway: every endpoint gives what the provider gave."""

import asyncio
import io
import json
import struct
import time

import openai
import pytest

from conftest import KEY, LIMITED_KEY, PROVIDER_KEY

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}
CHAT_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}
RESPONSES_TOOL = {"type": "function", "name": "get_weather", "parameters": WEATHER}
ARGUMENTS = '{"city":"Zürich","days":3}'


def test_chat(oai, provider):
    provider.script("sim-gpt", {"text": "Grüezi, Welt", "input": 11, "output": 7, "cached": 3})
    answer = oai.chat.completions.create(model="gpt", messages=HELLO, temperature=0.5)
    assert answer.choices[0].message.content == "Grüezi, Welt"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 7)
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer._request_id.startswith("req_")
    call = provider.call
    assert call.path == "/v1/chat/completions"
    assert call.json == {"messages": HELLO, "model": "sim-gpt", "temperature": 0.5}


def test_the_body_is_the_sdks_own_but_for_the_model(oai, provider):
    # Odd but legal JSON: it has to arrive as it was written.
    strange = {"a": 1.0, "ü": "\u2028", "list": [1, 2.50, True, None], "deep": {"model": "gpt"}}
    raw = oai.chat.completions.with_raw_response.create(
        model="gpt", messages=HELLO, extra_body={"metadata": strange}
    )
    sent = raw.http_request.content
    assert sent.count(b'"model":"gpt"') == 2
    # The other one is a value of the app's, further down.
    assert provider.call.raw == sent.replace(b'"model":"gpt"', b'"model":"sim-gpt"', 1)


def test_headers(oai, provider):
    raw = oai.chat.completions.with_raw_response.create(
        model="gpt",
        messages=HELLO,
        extra_headers={"cookie": "a=b", "x-tollbar-x": "1", "x-forwarded-for": "1.2.3.4", "openai-beta": "x=1"},
    )
    assert raw.headers["x-tollbar-model"] == "gpt"
    assert raw.headers["x-tollbar-target"] == "openai/sim-gpt"
    assert raw.headers["x-tollbar-attempts"] == "1"
    assert raw.headers["x-tollbar-config"] == "1"
    usage = raw.parse().usage
    cost = (usage.prompt_tokens * 1 + usage.completion_tokens * 2) / 1e6
    assert float(raw.headers["x-tollbar-cost-usd"]) == pytest.approx(cost, abs=1e-12)
    seen = provider.call.headers
    assert seen["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert seen["accept-encoding"] == "identity"
    assert seen["openai-beta"] == "x=1"
    assert seen["x-stainless-lang"] == "python"
    assert seen["user-agent"].startswith("OpenAI/Python")
    assert not {"cookie", "x-tollbar-x", "x-forwarded-for"} & seen.keys()
    assert KEY not in json.dumps(seen)


def stream_text(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_streamed_chat_without_usage(oai, provider):
    provider.script("sim-gpt", {"text": "one two three four", "chunks": 4})
    stream = oai.chat.completions.create(model="gpt", messages=HELLO, stream=True)
    chunks = list(stream)
    assert stream_text(chunks) == "one two three four"
    assert chunks[-1].choices[0].finish_reason == "stop"
    # The gateway asked for usage, the app did not: no chunk shows any of it.
    assert provider.call.json["stream_options"] == {"include_usage": True}
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    headers = stream.response.headers
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-cache, no-transform"


def test_streamed_chat_with_usage(oai, provider):
    provider.script("sim-gpt", {"text": "one two three", "input": 5, "output": 3})
    chunks = list(
        oai.chat.completions.create(
            model="gpt", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert stream_text(chunks) == "one two three"
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (5, 3)
    assert provider.call.json["stream_options"] == {"include_usage": True}


def test_streamed_chat_that_refuses_usage(oai, provider):
    chunks = list(
        oai.chat.completions.create(
            model="gpt", messages=HELLO, stream=True, stream_options={"include_usage": False}
        )
    )
    assert len(chunks) > 2
    assert all(chunk.choices for chunk in chunks)
    assert provider.call.json["stream_options"]["include_usage"] is True


def test_a_stream_arrives_as_it_is_made(oai, provider):
    provider.script("sim-gpt", {"chunks": 5, "gap_ms": 150})
    at, start = [], time.monotonic()
    for _ in oai.chat.completions.create(model="gpt", messages=HELLO, stream=True):
        at.append(time.monotonic() - start)
    # Four gaps of 150 ms: the first chunks must not have waited for the last.
    assert at[-1] > 0.55
    assert at[1] < at[-1] - 0.4


def test_the_stream_helper(oai, provider):
    provider.script("sim-gpt", {"text": "alpha beta"})
    with oai.chat.completions.stream(model="gpt", messages=HELLO) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == "alpha beta"
    assert final.choices[0].message.content == "alpha beta"


def test_several_choices(oai, provider):
    provider.script("sim-gpt", {"text": "same"})
    answer = oai.chat.completions.create(model="gpt", messages=HELLO, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


@pytest.mark.parametrize("size", [100_000, 3_000_000])
def test_large_bodies(oai, provider, size):
    # Past Pingora's 64 KiB retry buffer, in both directions.
    provider.script("sim-gpt", {"size": size})
    prompt = "ä" * size
    answer = oai.chat.completions.create(model="gpt", messages=[{"role": "user", "content": prompt}])
    assert len(answer.choices[0].message.content.encode()) == size
    assert provider.call.json["messages"][0]["content"] == prompt


def test_tools(oai, provider):
    provider.script("sim-gpt", {"tool": True, "tool_arguments": ARGUMENTS})
    answer = oai.chat.completions.create(model="gpt", messages=HELLO, tools=[CHAT_TOOL])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert call.function.arguments == ARGUMENTS
    # And its result goes back up.
    messages = [*HELLO, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    provider.script("sim-gpt", {"text": "It is sunny."})
    answer = oai.chat.completions.create(model="gpt", messages=messages, tools=[CHAT_TOOL])
    assert answer.choices[0].message.content == "It is sunny."
    assert provider.calls[1].json["messages"][2]["tool_call_id"] == call.id


def test_streamed_tools(oai, provider):
    provider.script("sim-gpt", {"tool": True, "tool_arguments": ARGUMENTS, "chunks": 5})
    chunks = list(
        oai.chat.completions.create(model="gpt", messages=HELLO, tools=[CHAT_TOOL], stream=True)
    )
    calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].function.name == "get_weather"
    assert "".join(call.function.arguments for call in calls) == ARGUMENTS
    assert len(calls) == 6
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_legacy_completions(oai, provider):
    provider.script("sim-gpt", {"text": "and so on"}, {"text": "one two", "chunks": 2})
    answer = oai.completions.create(model="gpt", prompt="Once")
    assert answer.choices[0].text == "and so on"
    assert answer.object == "text_completion"
    chunks = list(oai.completions.create(model="gpt", prompt="Once", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one two"
    assert all(chunk.usage is None for chunk in chunks)
    assert [call.path for call in provider.calls] == ["/v1/completions"] * 2
    assert provider.calls[1].json["stream_options"] == {"include_usage": True}


def test_embeddings(oai, provider):
    # The SDK asks for base64 by itself and decodes it.
    answer = oai.embeddings.create(model="embed", input=["one", "two"], dimensions=16)
    sent = provider.call.json
    assert sent["encoding_format"] == "base64"
    assert [len(row.embedding) for row in answer.data] == [16, 16]
    row = answer.data[1].embedding
    assert row == [((1 + d) % 7) / 8.0 - 0.25 for d in range(16)]
    assert all(struct.unpack("<f", struct.pack("<f", value))[0] == value for value in row)
    assert answer.usage.prompt_tokens > 0


def test_embeddings_as_floats(oai, provider):
    answer = oai.embeddings.create(model="embed", input="one", encoding_format="float")
    assert len(answer.data[0].embedding) == 8
    assert provider.call.json["encoding_format"] == "float"


def test_responses(oai, provider):
    provider.script("sim-gpt", {"text": "Hi there", "input": 9, "output": 4, "reasoning": 2})
    answer = oai.responses.create(model="gpt", input="Hello", instructions="Be brief")
    assert answer.output_text == "Hi there"
    assert answer.status == "completed"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (9, 4)
    assert answer.usage.output_tokens_details.reasoning_tokens == 2
    assert provider.call.json == {"input": "Hello", "instructions": "Be brief", "model": "sim-gpt"}


def test_streamed_responses(oai, provider):
    provider.script("sim-gpt", {"text": "one two three", "chunks": 3, "input": 9, "output": 4})
    events = list(oai.responses.create(model="gpt", input="Hello", stream=True))
    assert events[0].type == "response.created"
    assert [e.sequence_number for e in events] == list(range(len(events)))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == "one two three" and len(deltas) == 3
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.output_tokens == 4
    assert "stream_options" not in provider.call.json


def test_the_responses_stream_helper(oai, provider):
    provider.script("sim-gpt", {"text": "alpha beta"})
    with oai.responses.stream(model="gpt", input="Hello") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "alpha beta"


def test_responses_tools(oai, provider):
    script = {"tool": True, "tool_arguments": ARGUMENTS}
    provider.script("sim-gpt", script, script)
    answer = oai.responses.create(model="gpt", input="Hello", tools=[RESPONSES_TOOL])
    assert (answer.output[0].type, answer.output[0].name) == ("function_call", "get_weather")
    assert answer.output[0].arguments == ARGUMENTS
    events = list(oai.responses.create(model="gpt", input="Hello", tools=[RESPONSES_TOOL], stream=True))
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert [e.arguments for e in done] == [ARGUMENTS]


def test_models(oai, gateway, provider):
    ids = [model.id for model in oai.models.list()]
    assert ids == sorted(ids)
    assert {"gpt", "claude", "twice", "badkey-401"} <= set(ids)
    assert oai.models.retrieve("gpt").id == "gpt"
    with pytest.raises(openai.NotFoundError) as caught:
        oai.models.retrieve("gtp")
    assert caught.value.code == "model_not_found"
    assert "`gpt`" in caught.value.message
    # The gateway answers itself; the provider's own models are not for clients.
    assert provider.calls == []


def test_models_of_a_limited_key(gateway, provider):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=LIMITED_KEY) as client:
        assert [model.id for model in client.models.list()] == ["claude", "gpt"]
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.models.retrieve("secret")
    assert caught.value.code == "model_not_allowed"


def test_moderations(oai, provider):
    answer = oai.moderations.create(model="gpt", input=["fine", "sim-flag this"])
    assert [result.flagged for result in answer.results] == [False, True]
    assert answer.results[1].categories.violence
    assert provider.call.path == "/v1/moderations"


def test_images(oai, provider):
    answer = oai.images.generate(model="image", prompt="a cat", n=2)
    assert len(answer.data) == 2
    assert all(image.b64_json.startswith("iVBOR") for image in answer.data)
    assert answer.usage.output_tokens == 2 * 272
    assert provider.call.path == "/v1/images/generations"
    assert provider.call.json["model"] == "sim-image"


def test_transcription(oai, provider):
    provider.script("sim-audio", {"text": "to be or not"})
    # Past one TCP segment, and every byte value: the form has to arrive as it was.
    sound = bytes(range(256)) * 1000
    answer = oai.audio.transcriptions.create(model="audio", file=("a.wav", io.BytesIO(sound)), language="en")
    assert answer.text == "to be or not"
    call = provider.call
    assert call.path == "/v1/audio/transcriptions"
    assert sound in call.raw
    assert b'name="model"\r\n\r\nsim-audio\r\n' in call.raw
    assert b'name="language"\r\n\r\nen\r\n' in call.raw


def test_transcription_as_text(oai, provider):
    provider.script("sim-audio", {"text": "plain words"})
    answer = oai.audio.transcriptions.create(
        model="audio", file=("a.wav", b"RIFF"), response_format="text"
    )
    assert answer == "plain words\n"


def test_translation(oai, provider):
    provider.script("sim-audio", {"text": "good day"})
    answer = oai.audio.translations.create(model="audio", file=("a.wav", b"RIFF"))
    assert answer.text == "good day"
    assert provider.call.path == "/v1/audio/translations"


def test_speech(oai, provider):
    provider.script("sim-audio", {"size": 200_000})
    answer = oai.audio.speech.create(model="audio", voice="alloy", input="Hello")
    assert answer.read() == bytes((at * 7 % 256) | 0x80 for at in range(200_000))
    assert answer.response.headers["content-type"] == "audio/mpeg"


def test_streamed_speech(oai, provider):
    provider.script("sim-audio", {"size": 10_000})
    with oai.audio.speech.with_streaming_response.create(
        model="audio", voice="alloy", input="Hello"
    ) as answer:
        assert sum(len(piece) for piece in answer.iter_bytes()) == 10_000


def test_azures_client(gateway, provider):
    # Azure's SDK puts the model into the path and the key into `api-key`.
    provider.script("sim-gpt", {"text": "from azure"})
    with openai.AzureOpenAI(azure_endpoint=gateway.url, api_key=KEY, api_version="2025-01-01") as client:
        answer = client.chat.completions.create(model="gpt", messages=HELLO)
    assert answer.choices[0].message.content == "from azure"
    assert provider.call.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert "api-key" not in provider.call.headers


def test_a_fallback(oai, provider):
    provider.always("sim-first", status=500)
    provider.script("sim-gpt", {"text": "second choice"})
    raw = oai.chat.completions.with_raw_response.create(model="with-fallback", messages=HELLO)
    assert raw.parse().choices[0].message.content == "second choice"
    assert raw.headers["x-tollbar-model"] == "gpt"
    assert raw.headers["x-tollbar-target"] == "openai/sim-gpt"
    assert raw.headers["x-tollbar-attempts"] == "3"
    assert [call.json["model"] for call in provider.calls] == ["sim-first", "sim-first", "sim-gpt"]


def test_async(gateway, provider):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
            async def plain(text):
                answer = await client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": text}])
                return answer.choices[0].message.content

            async def streamed(text):
                stream = await client.chat.completions.create(
                    model="gpt", messages=[{"role": "user", "content": text}], stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            texts = [f"request {n}" for n in range(20)]
            answers = await asyncio.gather(*(plain(t) for t in texts), *(streamed(t) for t in texts))
            embedded = await client.embeddings.create(model="embed", input="x")
            return texts, answers, embedded

    # Each answer is its request: none may come to another's client.
    provider.always("sim-gpt", echo=True)
    texts, answers, embedded = asyncio.run(run())
    assert [json.loads(answer)["messages"][0]["content"] for answer in answers] == texts * 2
    assert len(embedded.data[0].embedding) == 8
    assert len(provider.calls) == 41
