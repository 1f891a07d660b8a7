//! `low_budget: clamp`: a request that the rest of a budget doesn't pay for gets a shorter answer.

use crate::support::*;
use serde_json::{Value, json};
use tollbar_loadtest::provider::Provider;

/// A dollar a thousand tokens of output; input costs nothing.
fn start(provider: &Provider, key: &str) -> Server {
    let base = provider.base();
    let price = "price: { input: 0, output: 1000 }";
    Server::start(&format!(
        "listeners: [{{ address: 127.0.0.1:0 }}]\nadmin: {{ address: 127.0.0.1:0, token: {ADMIN_TOKEN} }}\n\
         server: {{ threads: 2 }}\nstate: {{ path: state.db }}\nadmission: {{ wait: 0s }}\n\
         keys:\n  - {{ id: test, hash: \"{}\", models: [\"*\"], team: red, {key} }}\n\
         teams: {{ red: {{ budgets: [ {{ usd: 1, per: total }} ] }} }}\n\
         providers:\n  p: {{ dialect: openai, base_url: \"{base}/v1\" }}\n  a: {{ dialect: anthropic, base_url: \"{base}\" }}\n  \
           g: {{ dialect: gemini, base_url: \"{base}\" }}\n\
         models:\n  gpt: {{ targets: [ {{ provider: p, model: sim-gpt, {price} }} ] }}\n  \
           claude: {{ targets: [ {{ provider: a, model: sim-claude, {price} }} ] }}\n  \
           gemini: {{ targets: [ {{ provider: g, model: sim-gemini, {price} }} ] }}\n",
        hash(KEY)
    ))
}

async fn send(
    server: &Server,
    path: &str,
    body: &Value,
) -> (u16, reqwest::header::HeaderMap, Value) {
    let answer = post(&client(), server.url(path), body.to_string()).await;
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    (status, headers, answer.json().await.unwrap())
}

const CLAMP: &str = "low_budget: clamp, budgets: [ { usd: 0.5, per: total } ]";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_is_cut_to_what_is_left_in_every_dialect() {
    let hi = json!([{"role": "user", "content": "Hi"}]);
    let cap = |body: &Value, pointer: &str| body.pointer(pointer).and_then(Value::as_u64);
    for (path, body, pointer) in [
        (
            "/v1/chat/completions",
            json!({"model": "gpt", "max_tokens": 1000, "messages": hi}),
            "/max_tokens",
        ),
        (
            "/v1/responses",
            json!({"model": "gpt", "input": "Hi", "max_output_tokens": 1000}),
            "/max_output_tokens",
        ),
        (
            "/v1/messages",
            json!({"model": "claude", "max_tokens": 1000, "messages": hi}),
            "/max_tokens",
        ),
        (
            "/v1beta/models/gemini:generateContent",
            json!({"contents": [{"parts": [{"text": "Hi"}]}], "generationConfig": {"maxOutputTokens": 1000}}),
            "/generationConfig/maxOutputTokens",
        ),
    ] {
        let provider = provider();
        let server = start(&provider, CLAMP);
        let (status, headers, answer) = send(&server, path, &body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        assert_eq!(headers["x-tollbar-clamped"], "low-budget", "{path}");
        assert_eq!(headers["x-tollbar-max-output-tokens"], "500", "{path}");
        let sent: Value = serde_json::from_slice(&provider.requests()[0].body).unwrap();
        assert_eq!(cap(&sent, pointer), Some(500), "{path}: {sent}");
        assert!(provider.billed().output_tokens <= 500);
        assert_eq!(server.metric("tollbar_budget_clamped_total{scope=\"key\"}").await, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fits_is_left_alone_and_what_is_useless_is_refused() {
    let provider = provider();
    let server = start(&provider, CLAMP);
    let ask = |tokens: u64, n: u64| json!({"model": "gpt", "max_tokens": tokens, "n": n, "messages": [{"role": "user", "content": "Hi"}]});
    let (status, headers, _) = send(&server, "/v1/chat/completions", &ask(500, 1)).await;
    assert_eq!(status, 200);
    assert!(!headers.contains_key("x-tollbar-clamped"));
    let spent = provider.billed().output_tokens;
    assert!(spent > 0 && spent < 250, "{spent}");
    // Every answer of `n` is paid for.
    let (status, headers, _) = send(&server, "/v1/chat/completions", &ask(400, 2)).await;
    assert_eq!(status, 200);
    let most = ((500 - spent) / 2).to_string();
    assert_eq!(headers["x-tollbar-max-output-tokens"], most.as_str());
    // A tenth of what was asked for is the least that is any use.
    let (status, _, answer) = send(&server, "/v1/chat/completions", &ask(100_000, 1)).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("budget_exceeded")));
    assert_eq!(provider.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tightest_scope_decides_and_a_key_that_did_not_ask_is_refused() {
    let provider = provider();
    let asked = json!({"model": "gpt", "max_tokens": 5000, "messages": [{"role": "user", "content": "Hi"}]});
    let server = start(&provider, "low_budget: clamp, budgets: [ { usd: 3, per: day } ]");
    let (status, headers, _) = send(&server, "/v1/chat/completions", &asked).await;
    assert_eq!((status, headers["x-tollbar-max-output-tokens"].to_str().unwrap()), (200, "1000"));
    let server = start(&provider, "budgets: [ { usd: 0.5, per: total } ]");
    let (status, headers, answer) = send(&server, "/v1/chat/completions", &asked).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("budget_exceeded")));
    assert!(!headers.contains_key("x-tollbar-clamped"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once_are_clamped_and_spend_no_more_than_the_cap() {
    let provider = provider();
    let server = start(&provider, CLAMP);
    let asked =
        json!({"model": "gpt", "max_tokens": 200, "messages": [{"role": "user", "content": "Hi"}]});
    let answers = futures_util::future::join_all(
        (0..100).map(|_| send(&server, "/v1/chat/completions", &asked)),
    )
    .await;
    assert!(answers.iter().all(|(status, ..)| [200, 429].contains(status)));
    assert!(answers.iter().any(|(status, ..)| *status == 200));
    let billed = provider.billed().output_tokens;
    assert!(billed <= 500, "${billed} thousandths of $0.50 were billed");
}
