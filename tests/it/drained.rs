//! `on_disconnect: drain`: a client that leaves takes nothing with it. The answer is read to its
//! end, paid for as the provider says, and passed to nobody.

use crate::support::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tollbar_loadtest::provider::{Cut, Gate, Provider, Recorded, Script};

pub const SOON: Duration = Duration::from_secs(20);

/// What the provider reports, and its cost: $1 and $2 per million tokens.
const INPUT: u64 = 321;
const OUTPUT: u64 = 123;
pub const COST: u64 = INPUT * 1_000 + OUTPUT * 2_000;

/// Providers `h1` and `h2` (the version that is spoken with them) with `settings`, and a model of
/// the same name at each, with `of_model`. One request at a time; every dollar has an account.
pub fn config(provider: &Provider, settings: &str, of_model: &str) -> String {
    let base = provider.base();
    let one = |name: &str, http2: &str| {
        format!(
            "  {name}: {{ dialect: openai, base_url: \"{base}/v1\", http2: {http2}{settings} }}\n"
        )
    };
    let head = head_with("threads: 2, drain: 20s", "").replace(
        "unlimited: true",
        "budgets: [ { usd: 100, per: total } ], limits: { parallel: 1 }",
    );
    let of_model = format!(", max_output_tokens: 1000{of_model}");
    let of_model = of_model.as_str();
    let models = model("h1", "sim-h1", of_model).replace("provider: p,", "provider: h1,")
        + &model("h2", "sim-h2", of_model).replace("provider: p,", "provider: h2,")
        + &model("spare", "sim-spare", ", max_output_tokens: 1000")
            .replace("provider: p,", "provider: h1,");
    format!(
        "{head}providers:\n{}{}breaker: {{ failures: 1000 }}\nmodels:\n{models}",
        one("h1", "never"),
        one("h2", "always"),
    )
}

pub const DRAIN: &str = ", on_disconnect: drain";

/// It says in its log when a client has left: what happens to its answer then is no matter of luck.
pub fn start(config: &str) -> Server {
    Server::start_with(config, &[("TOLLBAR_LOG", "debug")])
}

/// Waits until the gateway has seen `n` clients leave in the middle.
pub async fn seen_leaving(server: &Server, n: usize) {
    let left =
        || server.stderr().iter().filter(|line| line.contains("its answer is drained")).count();
    eventually(SOON, || left() >= n).await;
}

/// An answer that the provider gives as the test lets it.
pub fn scripted(gate: &Gate) -> Script {
    Script {
        gate: Some(gate.clone()),
        chunks: Some(50),
        input: Some(INPUT),
        output: Some(OUTPUT),
        ..Script::default()
    }
}

/// Asks for `model` and leaves: in the middle of a stream, or before the answer has begun.
pub async fn ask_and_leave(
    server: &Server,
    provider: &Provider,
    h2: bool,
    body: &Value,
    gate: &Gate,
) {
    let http = if h2 { h2_client() } else { client() };
    let stream = body["stream"] == true;
    let (url, body) = (server.url("/v1/chat/completions"), body.to_string());
    let asked = tokio::spawn(async move { post(&http, url, body).await });
    assert!(provider.wait_for(1, SOON).await);
    if !stream {
        asked.abort();
        let _ = asked.await;
        return;
    }
    gate.release(2);
    let mut answer = asked.await.unwrap();
    let mut seen = Vec::new();
    // The first event has only the role: the second one has text.
    while seen.iter().filter(|byte| **byte == b'\n').count() < 4 {
        seen.extend(answer.chunk().await.unwrap().unwrap());
    }
}

/// What all accounts together hold, in nano-dollars.
pub async fn held(server: &Server) -> u64 {
    let budgets = admin(server, "/budgets").await;
    let accounts = budgets["data"].as_array().unwrap();
    accounts.iter().map(|account| nano(&account["held_usd"].to_string())).sum()
}

/// The newest request's only row.
pub async fn only_row(server: &Server, line: &Value) -> Value {
    let rows = rows(server, line["request_id"].as_str().unwrap()).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows[0].clone()
}

/// Nothing is held for anybody, and the key's only place is free.
pub async fn at_rest(server: &Server, provider: &Provider) {
    let until = Instant::now() + SOON;
    while admin(server, "/status").await["requests_running"] != 0 {
        assert!(Instant::now() < until, "a request runs on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(held(server).await, 0);
    for name in ["h1", "h2", "spare"] {
        let metric = format!("tollbar_inflight{{model=\"sim-{name}\"");
        assert_eq!(server.metric(&metric).await, 0.0);
    }
    provider.script("sim-spare", vec![Script::default()]);
    let url = server.url("/v1/chat/completions");
    let answer = post(&client(), url, chat("spare").to_string()).await;
    assert_eq!(answer.status(), 200, "the place is free");
}

fn is_cut(all: &[Recorded]) -> bool {
    all[0].peer_closed_at.is_some()
}

/// Client and upstream in both HTTP versions; in the middle of a stream, and before the answer.
#[tokio::test]
async fn an_abandoned_answer_is_read_to_its_end_and_paid_for_as_told() {
    let provider = provider();
    let server = start(&config(&provider, DRAIN, ""));
    let (mut left, mut logged) = (0, 0);
    for name in ["h1", "h2"] {
        for h2 in [false, true] {
            for stream in [false, true] {
                let what = format!("upstream {name}, client h2 {h2}, streamed {stream}");
                provider.clear();
                let gate = Gate::new();
                provider.script(&format!("sim-{name}"), vec![scripted(&gate)]);
                let body = if stream { chat_stream(name) } else { chat(name) };
                ask_and_leave(&server, &provider, h2, &body, &gate).await;
                left += 1;
                seen_leaving(&server, left).await;

                // It runs on: its money is held, it counts, and it takes the key's only place.
                assert!(held(&server).await > 0, "{what}");
                let inflight = format!("tollbar_inflight{{model=\"sim-{name}\"");
                assert_eq!(server.metric(&inflight).await, 1.0, "{what}");
                let url = server.url("/v1/chat/completions");
                let refused = post(&client(), url, chat("spare").to_string()).await;
                let refused: Value = refused.json().await.unwrap();
                assert_eq!(refused["error"]["code"], "concurrency_limit_exceeded", "{what}");
                logged += 1;
                assert_eq!(server.log(logged).await.len(), logged, "{what}: it is over");

                gate.open();
                logged += 1;
                let line = server.log(logged).await.pop().unwrap();
                assert_eq!(line["client_gone"], true, "{what}: {line}");
                assert_eq!(line["outcome"], "client_gone", "{what}: {line}");
                assert_eq!(line["status"], if stream { 200 } else { 499 }, "{what}: {line}");
                assert_eq!(line["attempts"].as_array().unwrap().len(), 1, "{what}: {line}");
                let call = provider.requests().remove(0);
                assert!(call.finished_at.is_some() && call.peer_closed_at.is_none(), "{what}");
                let passed_on = line["bytes_out"].as_u64().unwrap();
                assert_eq!(passed_on > 0, stream, "{what}: {line}");
                assert!(passed_on < call.bytes_sent / 2, "{what}: {line}");

                let row = only_row(&server, &line).await;
                assert_eq!(row["usage_source"], "reported", "{what}: {row}");
                assert_eq!(row["input_tokens"], INPUT, "{what}: {row}");
                assert_eq!(row["output_tokens"], OUTPUT, "{what}: {row}");
                assert_eq!(cost(&row), COST, "{what}: {row}");
                assert_eq!(row["client_gone"], true, "{what}: {row}");
                assert_eq!(row["outcome"], "client_gone", "{what}: {row}");
                at_rest(&server, &provider).await;
                logged += 1;
            }
        }
    }
    for name in ["h1", "h2"] {
        let labels = format!("{{model=\"sim-{name}\",provider=\"{name}\"}}");
        let of = |metric: &str| format!("tollbar_abandoned_{metric}_total{labels}");
        assert_eq!(server.metric(&of("streams")).await, 4.0);
        assert_eq!(server.metric(&of("tokens")).await, (4 * OUTPUT) as f64);
    }
    // What was read to its end is in order: the next call takes the same connection.
    let connections = provider.connections();
    assert!(connections < 5, "{connections} connections for 12 calls");
}

/// Whatever goes wrong with the answer then, nobody else is asked for one.
#[tokio::test]
async fn no_attempt_begins_after_the_client_has_left() {
    let provider = provider();
    let settings = format!("{DRAIN}, read_timeout: 2s");
    let of_model = ", first_token_timeout: 1s, fallbacks: [spare]";
    let server = start(&config(&provider, &settings, of_model));
    // The answer, whether it is streamed, whether it comes, its row's outcome and usage.
    let cases = [
        (Script::status(500), false, true, "error_status", "none"),
        (
            Script { cut: Some(Cut::Headers), ..Script::default() },
            false,
            true,
            "stale_connection",
            "estimated",
        ),
        (
            Script { cut: Some(Cut::Headers), ..Script::default() },
            false,
            true,
            "read_error",
            "estimated",
        ),
        (
            Script { cut: Some(Cut::After(5)), ..Script::default() },
            true,
            true,
            "interrupted",
            "estimated",
        ),
        (Script { truncate: true, ..Script::default() }, true, true, "interrupted", "estimated"),
        // Nothing comes any more: what bounds a wait for anybody bounds this one.
        (Script::default(), false, false, "first_token_timeout", "estimated"),
        (Script::default(), true, false, "interrupted", "estimated"),
        // The last one: it leaves the target alone for a while.
        (Script::status(429), false, true, "rate_limited", "none"),
    ];
    let mut left = 0;
    for name in ["h1", "h2"] {
        for (n, (script, stream, comes, outcome, source)) in cases.iter().enumerate() {
            let what = format!("upstream {name}, case {n}, {outcome}");
            if *outcome == "read_error" {
                // On a connection of its own there is no doubt that the request was sent.
                provider.close_idle().await;
            }
            provider.clear();
            provider.set_default("sim-spare", Script::default());
            let gate = Gate::new();
            let script = Script { gate: Some(gate.clone()), chunks: Some(50), ..script.clone() };
            provider.script(&format!("sim-{name}"), vec![script]);
            let body = if *stream { chat_stream(name) } else { chat(name) };
            ask_and_leave(&server, &provider, n % 2 == 0, &body, &gate).await;
            left += 1;
            seen_leaving(&server, left).await;
            if *comes {
                gate.open();
            }
            let line = server.log(2 * left - 1).await.pop().unwrap();
            assert_eq!(line["client_gone"], true, "{what}: {line}");
            assert_eq!(line["status"], if *stream { 200 } else { 499 }, "{what}: {line}");
            assert_eq!(provider.requests().len(), 1, "{what}: {line}");
            let row = only_row(&server, &line).await;
            // A stream of HTTP/2 that is reset is no connection that was dead.
            let outcome = match *outcome {
                "stale_connection" if name == "h2" => "read_error",
                outcome => outcome,
            };
            assert_eq!(row["outcome"], outcome, "{what}: {row}");
            assert_eq!(row["usage_source"], *source, "{what}: {row}");
            assert_eq!(row["client_gone"], true, "{what}: {row}");
            at_rest(&server, &provider).await;
            assert_eq!(server.log(2 * left).await.len(), 2 * left, "{what}");
        }
    }
    assert_eq!(server.metric("tollbar_fallbacks_total").await, 0.0);
}

/// The setting is a provider's own; without it the call still ends with its client. So does one
/// that can't be metered: there is nothing in its answer to wait for, and it may have no end.
#[tokio::test]
async fn other_calls_end_with_their_client() {
    let provider = provider();
    let config = config(&provider, DRAIN, "")
        .replace("http2: always, on_disconnect: drain", "http2: always")
        .replace("http2: never,", "http2: never, passthrough: { unmetered: [\"/messages*\"] },");
    let server = start(&config);
    let calls = [("/v1/chat/completions", "h2"), ("/passthrough/h1/v1/messages", "h1")];
    for (path, name) in calls {
        for stream in [false, true] {
            provider.clear();
            let gate = Gate::new();
            provider.script(&format!("sim-{name}"), vec![scripted(&gate)]);
            let model =
                if path.starts_with("/v1") { name.to_owned() } else { format!("sim-{name}") };
            let mut body = if stream { chat_stream(&model) } else { chat(&model) };
            body["max_tokens"] = json!(9);
            let request = client().post(server.url(path)).bearer_auth(KEY).json(&body);
            let asked = tokio::spawn(request.header("anthropic-version", "2023-06-01").send());
            assert!(provider.wait_for(1, SOON).await, "{path}");
            if stream {
                gate.release(1);
                let mut answer = asked.await.unwrap().unwrap();
                assert_eq!(answer.status(), 200, "{path}");
                assert!(answer.chunk().await.unwrap().is_some(), "{path}");
            } else {
                asked.abort();
            }
            assert!(provider.wait_until(SOON, is_cut).await, "{path}, streamed {stream}");
        }
    }
    assert!(!server.stderr().iter().any(|line| line.contains("its answer is drained")));
}

/// Asks, and closes the sending side of the connection: in the middle of a stream, or before the
/// answer has begun. Returns what comes of it, once the gateway has closed its own side.
pub async fn ask_and_fall_silent(
    server: &Server,
    provider: &Provider,
    body: &Value,
    gate: &Gate,
) -> Vec<u8> {
    let mut raw = Raw::connect(server.data[0]).await;
    let text = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    raw.send((head + &text).as_bytes()).await;
    assert!(provider.wait_for(1, SOON).await);
    if body["stream"] == true {
        gate.release(2);
        let begun = |all: &[Recorded]| all[0].chunks_sent == 2;
        assert!(provider.wait_until(SOON, begun).await);
    }
    raw.stream.shutdown().await.unwrap();
    raw.rest().await
}

/// A client that has said its last word, but still listens, is told at once that nothing more
/// comes, and never that the answer was whole.
#[tokio::test]
async fn a_connection_half_closed_is_closed_and_never_ended_well() {
    let provider = provider();
    let server = start(&config(&provider, DRAIN, ""));
    for (body, logged) in [(chat_stream("h1"), 1), (chat("h1"), 3)] {
        provider.clear();
        let gate = Gate::new();
        provider.script("sim-h1", vec![scripted(&gate)]);
        let got = ask_and_fall_silent(&server, &provider, &body, &gate).await;
        let got = String::from_utf8(got).unwrap();
        assert!(provider.requests()[0].finished_at.is_none(), "the answer goes on");
        assert!(!got.contains("[DONE]") && !got.ends_with("0\r\n\r\n"), "{got}");
        gate.open();
        let line = server.log(logged).await.pop().unwrap();
        assert_eq!(cost(&only_row(&server, &line).await), COST);
        at_rest(&server, &provider).await;
    }
}
