//! When an attempt starts, when the same target is asked again, and what is said where none is left.

use crate::raw::Raw;
use crate::support::*;
use serde_json::Value;
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::{Cut, Gate, Provider, Script};

const SOON: Duration = Duration::from_secs(10);

/// An answer costs up to $0.002 and what its prompt is: one at a time.
fn poor(provider: &Provider, more: &str) -> String {
    let head = head().replace("unlimited: true", "budgets: [ { usd: 0.003, per: day } ]");
    let models = model("gpt", "sim-gpt", ", max_output_tokens: 1000");
    config_of(&head, provider, "", &models) + "state: { path: state.db }\n" + more
}

async fn running(server: &Server, how_many: u64) {
    let until = Instant::now() + SOON;
    while admin(server, "/status").await["requests_running"] != how_many {
        assert!(Instant::now() < until, "{how_many} were to run");
    }
}

async fn ask(server: &Server, model: &str) -> reqwest::Response {
    post(&client(), server.url("/v1/chat/completions"), chat(model).to_string()).await
}

/// Money is waited for until the request's deadline at most.
#[tokio::test]
async fn a_wait_for_money_ends_with_the_deadline() {
    let provider = provider();
    let more = "attempts: { deadline: 2s }\nadmission: { wait: 60s }\n";
    let server = Server::start(&poor(&provider, more));
    // A stream that has begun: it runs as long as it likes.
    let gate = Gate::new();
    let script = Script { gate: Some(gate.clone()), chunks: Some(6), ..Script::default() };
    provider.script("sim-gpt", vec![script]);
    gate.release(2);
    let url = server.url("/v1/chat/completions");
    let mut runs = post(&client(), url, chat_stream("gpt").to_string()).await;
    assert!(runs.chunk().await.unwrap().is_some());
    let waits = tokio::time::timeout(SOON, ask(&server, "gpt")).await;
    let refused = waits.expect("it waits past its deadline");
    assert_eq!(refused.status(), 429);
    assert!(refused.text().await.unwrap().contains("held $0.002"));
    gate.open();
    runs.text().await.unwrap();
    assert_eq!(provider.requests().len(), 1);
}

/// Money that comes after the deadline comes too late: nobody is asked, and nothing is booked.
#[tokio::test]
async fn no_attempt_starts_after_the_deadline() {
    const DEADLINE: Duration = Duration::from_millis(200);
    let provider = provider();
    let server = Server::start(&poor(&provider, "attempts: { deadline: 200ms }\n"));
    // The first request of a budget waits for the state file, which says how much it may spend.
    let db = rusqlite::Connection::open(server.state_file()).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    let url = server.url("/v1/chat/completions");
    let waits = tokio::spawn(async move { post(&client(), url, chat("gpt").to_string()).await });
    running(&server, 1).await;
    tokio::time::sleep(DEADLINE * 2).await;
    db.execute_batch("ROLLBACK").unwrap();
    let refused = waits.await.unwrap();
    assert_eq!(refused.status(), 504);
    assert_eq!(refused.headers()["x-tollbar-attempts"], "0");
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["error"]["code"], "upstream_timeout", "{error}");
    assert!(provider.requests().is_empty());
    let budgets = admin(&server, "/budgets").await;
    for figure in ["held_usd", "spent_usd"] {
        assert_eq!(nano(&budgets["data"][0][figure].to_string()), 0, "{budgets}");
    }
}

/// Nobody is rate limited where nobody is left to be asked.
#[tokio::test]
async fn a_request_whose_provider_is_gone_is_told_so() {
    let provider = provider();
    let config = config_of(&head(), &provider, "", &model("gpt", "sim-gpt", ""));
    let server = Server::start(&config);
    let body = chat("gpt").to_string();
    let (half, rest) = body.split_at(body.len() / 2);
    let mut raw = Raw::connect(server.data[0]).await;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {}\r\n\r\n{half}",
        body.len()
    );
    raw.send(head.as_bytes()).await;
    running(&server, 1).await;
    let other = config.replace("  p: {", "  q: {").replace("provider: p,", "provider: q,");
    let other = other.replace("\"gpt\": {", "\"other\": {");
    assert_ne!(other, config);
    std::fs::write(server.config_file(), other).unwrap();
    let reload = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
    assert_eq!(reload.send().await.unwrap().status(), 200);
    raw.send(rest.as_bytes()).await;
    let (status, head, body) = raw.answer().await.unwrap();
    let body = String::from_utf8(body).unwrap();
    assert_eq!(status, 503, "{body}");
    assert!(head.contains("\r\nretry-after: 1\r\n"), "{head}");
    assert!(body.contains("\"no_healthy_target\"") && body.contains("configuration"), "{body}");
    assert!(provider.requests().is_empty());
}

/// What was sent may have been worked on, and be billed twice: a target is asked again only where
/// nothing was sent, or where it says itself that it has failed.
#[tokio::test]
async fn the_same_target_is_asked_again_after_connect_errors_and_5xx_only() {
    let provider = provider();
    // Later than a pooled connection that was dead would show it.
    let broken = Script { delay_ms: 300, cut: Some(Cut::Headers), ..Script::default() };
    let moved = Script::status(302).header("location", "/elsewhere");
    let empty = Script { body: Some(String::new()), ..Script::default() };
    let cases = [
        ("broken", broken, 1),
        ("empty", empty, 1),
        ("408", Script::status(408), 1),
        ("302", moved, 1),
        ("429", Script::status(429), 1),
        ("500", Script::status(500), 2),
        ("529", Script::status(529), 2),
    ];
    let mut models: String =
        cases.iter().map(|(name, ..)| model(name, &format!("sim-{name}"), "")).collect();
    models += &model("nobody", "sim-gpt", "").replace("provider: p,", "provider: nobody,");
    let config = config_of(&head(), &provider, "", &models).replace(
        "providers:\n",
        "providers:\n  nobody: { dialect: openai, base_url: \"http://127.0.0.1:1/v1\" }\n",
    );
    let server = Server::start(&config);
    for (name, script, calls) in cases {
        provider.clear();
        provider.set_default(&format!("sim-{name}"), script);
        let answer = ask(&server, name).await;
        assert_eq!(answer.headers()["x-tollbar-attempts"], calls.to_string().as_str(), "{name}");
        assert_eq!(provider.requests().len(), calls, "{name}");
    }
    assert_eq!(ask(&server, "nobody").await.headers()["x-tollbar-attempts"], "2");
}

/// A dead pooled connection has carried nothing: the provider's limit counts the request once.
#[tokio::test]
async fn a_dead_connection_takes_nothing_of_the_providers_limits() {
    let provider = provider();
    let limits = ", limits: { rpm: 2 }";
    let models = model("gpt", "sim-gpt", "");
    let server = Server::start(&config_of(&head(), &provider, limits, &models));
    assert_eq!(ask(&server, "gpt").await.status(), 200);
    server.log(1).await;
    provider.clear();
    provider.script("sim-gpt", vec![Script { cut: Some(Cut::Headers), ..Script::default() }]);
    let answer = ask(&server, "gpt").await;
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    assert_eq!(answer.headers()["x-tollbar-attempts"], "1");
    assert_eq!(provider.requests().len(), 2, "the first one was on a pooled connection");
    assert_eq!(ask(&server, "gpt").await.status(), 429, "two are two");
}
