//! Streams: every chunk at once, every byte the provider's, every end told as it was.

use crate::raw::canned;
use crate::support::*;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;
use tollbar_loadtest::provider::{Cut, Gate, Provider, Script};

/// `gpt`, `claude` and `gem`, one per dialect, and the `models` given.
fn config(provider: &Provider, models: &str) -> String {
    let base = provider.base();
    let price = "price: { input: 1, output: 2 }";
    let others = format!(
        "  claude: {{ targets: [ {{ provider: a, model: sim-claude, {price} }} ] }}\n  \
         gem: {{ targets: [ {{ provider: g, model: sim-gem, {price} }} ] }}\n"
    );
    let text = config_of(&head(), provider, "", &(model("gpt", "sim-gpt", "") + &others + models));
    let more = format!(
        "providers:\n  a: {{ dialect: anthropic, base_url: \"{base}\", api_key: sk-provider }}\n  \
         g: {{ dialect: gemini, base_url: \"{base}\", api_key: sk-provider }}\n"
    );
    text.replacen("providers:\n", &more, 1)
}

/// The path and the body of a streamed request in each dialect, usage asked for.
fn ask(protocol: &str) -> (&'static str, Value) {
    let messages = json!([{"role": "user", "content": "Hello"}]);
    match protocol {
        "openai_chat" => (
            "/v1/chat/completions",
            json!({"model": "gpt", "stream": true, "stream_options": {"include_usage": true}, "messages": messages}),
        ),
        "openai_responses" => {
            ("/v1/responses", json!({"model": "gpt", "stream": true, "input": "Hello"}))
        }
        "anthropic" => (
            "/v1/messages",
            json!({"model": "claude", "stream": true, "max_tokens": 9, "messages": messages}),
        ),
        "gemini" => ("/v1beta/models/gem:streamGenerateContent?alt=sse", json!({"contents": []})),
        other => panic!("no protocol {other}"),
    }
}

/// The JSON events of a stream.
fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
    data.filter_map(|data| serde_json::from_str(data.trim()).ok()).collect()
}

/// How many events of a chat stream have text in them.
fn content_chunks(bytes: &[u8]) -> usize {
    let said = |event: &&Value| {
        event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty())
    };
    events(&String::from_utf8_lossy(bytes)).iter().filter(said).count()
}

/// The provider sends each chunk only when the client has the one before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_200_streams_gets_each_chunk_before_the_next() {
    const STREAMS: usize = 200;
    const CHUNKS: usize = 8;
    let provider = provider();
    let gates: Vec<Gate> = (0..STREAMS).map(|_| Gate::new()).collect();
    let mut models = String::new();
    for (i, gate) in gates.iter().enumerate() {
        models += &model(&format!("m{i}"), &format!("sim-m{i}"), "");
        let script = Script {
            chunks: Some(CHUNKS),
            gap_ms: 20,
            gate: Some(gate.clone()),
            ..Script::default()
        };
        provider.set_default(&format!("sim-m{i}"), script);
    }
    let server = Server::start(&config_of(&head(), &provider, "", &models));
    let clients = [client(), h2_client()];
    let streams = gates.iter().enumerate().map(|(i, gate)| {
        let (http, url) = (&clients[i % 2], server.url("/v1/chat/completions"));
        async move {
            let body = chat_stream(&format!("m{i}")).to_string();
            let mut answer = post(http, url, body).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["x-accel-buffering"], "no");
            assert_eq!(answer.headers()["cache-control"], "no-cache, no-transform");
            let mut got = Vec::new();
            for n in 1..=CHUNKS {
                gate.release(1);
                while content_chunks(&got) < n {
                    let next = tokio::time::timeout(Duration::from_secs(20), answer.chunk()).await;
                    let next =
                        next.unwrap_or_else(|_| panic!("stream {i}: chunk {n} is kept back"));
                    got.extend_from_slice(&next.unwrap().expect("the stream goes on"));
                }
                assert_eq!(content_chunks(&got), n, "stream {i}");
            }
            while let Some(next) = answer.chunk().await.unwrap() {
                got.extend_from_slice(&next);
            }
            assert!(got.ends_with(b"data: [DONE]\n\n"), "stream {i}");
        }
    });
    join_all(streams).await;
    assert_eq!(provider.peak_in_flight(), STREAMS);
}

/// Without `alt=sse` Gemini streams an array, and its clients read one.
#[tokio::test]
async fn who_asks_gemini_for_no_events_gets_an_array() {
    let provider = provider();
    let server = Server::start(&config(&provider, ""));
    for (n, query) in ["", "?alt=json", "?key=x&alt=sse"].into_iter().enumerate() {
        let url = server.url(&format!("/v1beta/models/gem:streamGenerateContent{query}"));
        let url = url.replace("key=x", "x=y");
        let answer =
            post(&client(), url, r#"{"contents":[{"parts":[{"text":"Hello there"}]}]}"#).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-accel-buffering"], "no", "{query}");
        assert_eq!(answer.headers()["cache-control"], "no-cache, no-transform", "{query}");
        let text = answer.text().await.unwrap();
        let parts = match query.ends_with("sse") {
            true => events(&text),
            false => serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")),
        };
        assert!(parts.len() > 1 && parts[0]["candidates"].is_array(), "{text}");
        let line = server.log(n + 1).await.pop().unwrap();
        assert_eq!(line["usage_source"], "reported", "{line}");
    }
}

/// Real providers' streams, cut into odd pieces: the client's bytes are the provider's.
#[tokio::test]
async fn every_fixture_is_relayed_as_it_is_and_metered() {
    let dir = format!("{}/tests/fixtures/wire", env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read(format!("{dir}/{name}")).unwrap();
    let known: Value = serde_json::from_slice(&read("expected.json")).unwrap();
    let provider = provider();
    let server = Server::start(&config(&provider, ""));
    let http = client();
    let mut seen = 0;
    for (name, expected) in known.as_object().unwrap() {
        let Some(protocol) = expected["protocol"].as_str().filter(|_| name.ends_with(".sse"))
        else {
            continue;
        };
        seen += 1;
        let bytes = read(name);
        let (path, body) = ask(protocol);
        for size in [1, 7, 61, bytes.len()] {
            provider.script("*", vec![Script::raw(bytes.chunks(size).map(<[u8]>::to_vec))]);
            let answer = post(&http, server.url(path), body.to_string()).await;
            assert_eq!(answer.status(), 200, "{name}");
            let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
            let got = answer.bytes().await.unwrap();
            let what = format!("{name} in pieces of {size}");
            if expected["outcome"] == "truncated" {
                assert!(got.starts_with(&bytes), "{what}");
                let added = String::from_utf8_lossy(&got[bytes.len()..]).into_owned();
                assert!(
                    events(&added)[0]["error"]["message"].is_string() && !added.contains("[DONE]"),
                    "{what}: {added}"
                );
            } else {
                assert!(got == bytes, "{what}: {}", String::from_utf8_lossy(&got));
            }
            check_metered(&server, &id, expected, &what).await;
        }
    }
    assert!(seen > 15, "only {seen} fixtures");
}

async fn check_metered(server: &Server, id: &str, expected: &Value, what: &str) {
    eventually(Duration::from_secs(10), || server.stdout().iter().any(|line| line.contains(id)))
        .await;
    let line = server.stdout().into_iter().find(|line| line.contains(id)).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        line["outcome"],
        if expected["outcome"] == "complete" { "ok" } else { "interrupted" },
        "{what}"
    );
    if expected["outcome"] == "complete" {
        let usage = &expected["usage"];
        assert_eq!(line["input_tokens"], usage["input_total"], "{what}");
        assert_eq!(line["cached_input_tokens"], usage["cache_read"], "{what}");
        assert_eq!(line["output_tokens"], usage["output_total"], "{what}");
        assert_eq!(line["usage_source"], "reported", "{what}");
    }
}

#[tokio::test]
async fn usage_is_hidden_from_a_client_that_did_not_ask() {
    let provider = provider();
    provider.set_default("*", Script { input: Some(321), output: Some(123), ..Script::default() });
    let server = Server::start(&config(&provider, ""));
    for (n, (asked, path)) in
        [(false, "chat/completions"), (true, "chat/completions"), (false, "completions")]
            .into_iter()
            .enumerate()
    {
        let mut body = json!({"model": "gpt", "stream": true, "prompt": "x", "messages": [{"role": "user", "content": "x"}]});
        if asked {
            body["stream_options"] = json!({"include_usage": true});
        }
        let text = post(&client(), server.url(&format!("/v1/{path}")), body.to_string())
            .await
            .text()
            .await
            .unwrap();
        assert_eq!(provider.requests()[n].json()["stream_options"]["include_usage"], true);
        let told = events(&text).iter().any(|event| event["usage"]["completion_tokens"] == 123);
        assert_eq!(told, asked, "{path}: {text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        if !asked {
            assert!(
                events(&text).iter().all(|event| !event["choices"].as_array().unwrap().is_empty()),
                "{text}"
            );
        }
        let line = server.log(n + 1).await.pop().unwrap();
        assert_eq!((&line["input_tokens"], &line["output_tokens"]), (&json!(321), &json!(123)));
    }
}

/// An answer that breaks off is told as what it is, in the client's dialect.
#[tokio::test]
async fn a_broken_stream_ends_with_an_error_event() {
    let provider = provider();
    let server = Server::start(&config(
        &provider,
        "  x: { targets: [ { provider: p, model: sim-x, price: free } ] }\n",
    ));
    let broken = [
        Script { truncate: true, ..Script::default() },
        Script { cut: Some(Cut::After(3)), ..Script::default() },
        Script { cut: Some(Cut::After(3)), split: Some(5), ..Script::default() },
    ];
    for protocol in ["openai_chat", "openai_responses", "anthropic", "gemini"] {
        for script in &broken {
            for http in [client(), h2_client()] {
                provider.clear();
                provider.script("*", vec![script.clone()]);
                let (path, body) = ask(protocol);
                let answer = post(&http, server.url(path), body.to_string()).await;
                assert_eq!(answer.status(), 200);
                let text =
                    answer.text().await.unwrap_or_else(|e| panic!("{protocol} {script:?}: {e}"));
                let last = events(&text).pop().unwrap_or_default();
                assert!(
                    last["error"]["message"].as_str().is_some_and(|m| m.contains("incomplete")),
                    "{protocol}: {text}"
                );
                if protocol == "anthropic" {
                    assert!(text.contains("\nevent: error\n") && last["type"] == "error", "{text}");
                }
                for invented in ["[DONE]", "message_stop", "response.completed"] {
                    assert!(!text.contains(invented), "{protocol}: {text}");
                }
                assert_eq!(provider.requests().len(), 1, "no other attempt after the first byte");
            }
        }
    }
}

/// A length that the answer came with has no room for the error event.
#[tokio::test]
async fn a_broken_stream_with_a_length_ends_with_an_error_event_too() {
    let provider = provider();
    let begun = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n";
    for missing in [0, 100] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{begun}",
            begun.len() + missing
        );
        let base = canned(answer.into_bytes(), true).await;
        let server = Server::start(&config(&provider, "").replace(&provider.base(), &base));
        for protocol in ["openai_chat", "openai_responses", "anthropic", "gemini"] {
            for http in [client(), h2_client()] {
                let (path, body) = ask(protocol);
                let answer = post(&http, server.url(path), body.to_string()).await;
                assert_eq!(answer.status(), 200);
                let text =
                    answer.text().await.unwrap_or_else(|e| panic!("{protocol} {missing}: {e}"));
                let last = events(&text).pop().unwrap_or_default();
                let told = last["error"]["message"].as_str();
                assert!(told.is_some_and(|m| m.contains("incomplete")), "{protocol}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn a_failure_before_the_first_byte_goes_to_the_next_target() {
    let provider = provider();
    let mut models = model("ok", "sim-ok", "");
    let failures = [
        "status=500",
        "status=503",
        "status=529",
        "status=408",
        "status=429",
        "status=401",
        "status=403",
        "cut=headers",
    ];
    for (n, failure) in failures.iter().enumerate() {
        let one = model(&format!("m{n}"), &format!("sim-m{n}+{failure}"), ", fallbacks: [ok]");
        // A refused credential closes its whole provider: each has one of its own.
        models += &one.replace("provider: p,", &format!("provider: p{n},"));
    }
    let base = provider.base();
    let providers: String = (0..failures.len())
        .map(|n| {
            format!("  p{n}: {{ dialect: openai, base_url: \"{base}/v1\", api_key: sk-{n} }}\n")
        })
        .collect();
    let text = config_of(&head(), &provider, "", &models) + "attempts: { same_target: 0 }\n";
    let text = text.replacen("providers:\n", &format!("providers:\n{providers}"), 1);
    let server = Server::start(&text);
    for (n, failure) in failures.iter().enumerate() {
        for body in [chat_stream(&format!("m{n}"))] {
            let answer =
                post(&client(), server.url("/v1/chat/completions"), body.to_string()).await;
            assert_eq!(answer.status(), 200, "{failure}");
            assert_eq!(answer.headers()["x-tollbar-target"], "p/sim-ok", "{failure}");
            assert_eq!(answer.headers()["x-tollbar-model"], "ok", "{failure}");
            let text = answer.text().await.unwrap();
            assert!(!text.contains("error"), "{failure}: {text}");
        }
    }
    let fallbacks = server.metric("tollbar_fallbacks_total{from=\"p0/sim-m0+status=500\"").await;
    assert!(fallbacks >= 1.0);
}

#[tokio::test]
async fn a_clients_own_error_is_relayed_after_one_attempt() {
    let provider = provider();
    let mut models = model("ok", "sim-ok", "");
    models += &model("m", "sim-m", ", fallbacks: [ok]");
    let server = Server::start(&config_of(&head(), &provider, "", &models));
    for status in [400, 402, 404, 409, 413, 422, 451] {
        for body in [chat("m"), chat_stream("m")] {
            let said = format!(
                "{{\"error\": {{ \"message\":\"own words of {status}\",\"code\":null }} }}\n"
            );
            provider.script(
                "sim-m",
                vec![
                    Script { body: Some(said.clone()), ..Script::status(status) }
                        .header("x-kept", "yes"),
                ],
            );
            let answer =
                post(&client(), server.url("/v1/chat/completions"), body.to_string()).await;
            assert_eq!(answer.status(), status);
            assert_eq!(answer.headers()["x-kept"], "yes");
            assert_eq!(answer.headers()["x-tollbar-attempts"], "1");
            assert_eq!(answer.text().await.unwrap(), said);
            assert_eq!(provider.requests().len(), 1, "{status}");
            provider.clear();
        }
    }
}

#[tokio::test]
async fn rate_limits_everywhere_are_told_with_the_soonest_time() {
    let provider = provider();
    let models = model("a", "sim-a+status=429+retry-after=60", ", fallbacks: [b]")
        + &model("b", "sim-b+status=429+retry-after=7", "");
    let server = Server::start(&config_of(&head(), &provider, "", &models));
    let answer = post(&client(), server.url("/v1/chat/completions"), chat("a").to_string()).await;
    assert_eq!(answer.status(), 429);
    let after: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((6..=7).contains(&after), "{after}");
    let error: Value = answer.json().await.unwrap();
    assert_eq!(error["error"]["code"], "upstream_rate_limited");
    assert_eq!(provider.requests().len(), 2, "never the same target again");
}

/// An answer says what becomes of its connection: a client that believes it runs into no reset.
#[tokio::test]
async fn a_failure_tells_what_becomes_of_the_connection() {
    let provider = provider();
    let models = model("ok", "sim-ok", "")
        + &model("fails", "sim-f+status=500", "")
        + &model("limited", "sim-l+status=429", "")
        + &model("cut", "sim-c+cut=headers", "")
        + &model("half", "sim-h+cut=1", "");
    let server = Server::start(&config_of(&head(), &provider, "", &models));
    for name in ["fails", "limited", "cut", "half", "nix"] {
        let mut raw = Raw::connect(server.data[0]).await;
        for name in [name, "ok"] {
            let body = chat(name).to_string();
            let n = body.len();
            let head = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {n}\r\n\r\n"
            );
            raw.send((head + &body).as_bytes()).await;
            let (status, head, _) =
                raw.answer().await.unwrap_or_else(|| panic!("{name}: closed without a word"));
            assert_eq!(status < 400, name == "ok", "{name}: {head}");
            if head.contains("connection: close") {
                assert!(raw.rest().await.is_empty(), "{name}");
                break;
            }
        }
    }
}

#[tokio::test]
async fn one_error_names_every_attempt_and_their_number_is_bounded() {
    let provider = provider();
    let mut models = model("a", "sim-a+status=500", ", fallbacks: [b, c, d, e, f]");
    for (name, status) in [("b", 502), ("c", 503), ("d", 504), ("e", 529), ("f", 500)] {
        models += &model(name, &format!("sim-{name}+status={status}"), "");
    }
    for (same, max) in [(0, 1), (0, 4), (1, 3), (1, 5)] {
        provider.clear();
        let attempts = format!("attempts: {{ max: {max}, same_target: {same} }}\n");
        let server = Server::start(&(config_of(&head(), &provider, "", &models) + &attempts));
        for body in [chat("a"), chat_stream("a")] {
            provider.clear();
            let answer =
                post(&client(), server.url("/v1/chat/completions"), body.to_string()).await;
            assert_eq!(answer.status(), 502);
            assert_eq!(answer.headers()["x-should-retry"], "false");
            let error: Value = answer.json().await.unwrap();
            assert_eq!(error["error"]["code"], "upstream_error");
            let made = provider.requests();
            assert_eq!(made.len(), max, "attempts.max counts retries and fallbacks together");
            let message = error["error"]["message"].as_str().unwrap();
            for request in made {
                let target = request.json()["model"].as_str().unwrap().to_owned();
                let status = request.status.unwrap();
                assert!(
                    message.contains(&format!("p/{target}: status {status} after ")),
                    "{message}"
                );
            }
        }
    }
}
