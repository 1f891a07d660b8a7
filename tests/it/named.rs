//! Models that only a client names, on passthrough: whose prices and bounds they have, and under
//! which name they are booked.

use crate::support::*;
use serde_json::{Value, json};
use tollbar_loadtest::provider::Provider;

const TUNED: &str = "ft:gpt-4o-mini-2024-07-18";

/// The vendor `openai`, and `own` that the catalogue doesn't know, both at this provider.
fn config(provider: &Provider, keys: &str, models: &str) -> String {
    let base = provider.base();
    format!(
        "{}prices: {{ file: prices.yaml }}\nproviders:\n  \
           openai: {{ dialect: openai, base_url: \"{base}/v1\", api_key: sk-provider }}\n  \
           own: {{ dialect: openai, base_url: \"{base}/v1\", api_key: sk-provider }}\n  \
           mine: {{ dialect: openai, base_url: \"https://api.openai.com/v1\", connect_timeout: 1ms }}\n\
         models:\n{models}  any: {{ targets: [ {{ provider: own, model: sim-any, price: free }} ] }}\n",
        head_with("threads: 2", keys)
    )
}

fn start(provider: &Provider, keys: &str, models: &str) -> Server {
    let scratch = Scratch::new();
    let prices =
        "own/llama-3: { input: 3, output: 5 }\nmine/gpt-4o-mini: { input: 100, output: 100 }\n";
    std::fs::write(scratch.0.join("prices.yaml"), prices).unwrap();
    Server::start_here(scratch, &config(provider, keys, models), &[])
}

fn key(id: &str, rest: &str) -> String {
    format!("  - {{ id: {id}, hash: \"{}\", {rest} }}\n", hash(id))
}

async fn ask_as(server: &Server, key: &str, at: &str, body: &Value) -> reqwest::Response {
    let url = server.url(&format!("/passthrough/{at}/chat/completions"));
    client().post(url).bearer_auth(key).json(body).send().await.unwrap()
}

async fn refused(answer: reqwest::Response) -> (u16, String, String) {
    let status = answer.status().as_u16();
    let error = answer.json::<Value>().await.unwrap()["error"].clone();
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (status, text("code"), text("message"))
}

/// The row of a request that was served.
async fn served(server: &Server, answer: reqwest::Response) -> Value {
    assert_eq!(answer.status(), 200);
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    answer.bytes().await.unwrap();
    row(server, &id).await
}

fn sent_model(provider: &Provider) -> Value {
    let last = provider.requests().pop().unwrap();
    serde_json::from_slice::<Value>(&last.body).unwrap()["model"].clone()
}

#[tokio::test]
async fn the_operators_prices_hold_for_what_no_target_names() {
    let provider = provider();
    let poor = key("poor", "models: [\"*\"], budgets: [ { usd: 0.0001, per: day } ]");
    let server = start(&provider, &poor, "");
    let row = served(&server, ask_as(&server, KEY, "own", &chat("llama-3")).await).await;
    let version = row["price_version"].as_str().unwrap();
    assert!(version.starts_with("prices-") && cost(&row) > 0, "{row}");
    // By the vendor's own price this would be let through.
    let mut capped = chat("gpt-4o-mini");
    capped["max_tokens"] = 40.into();
    let (status, code, message) = refused(ask_as(&server, "poor", "mine", &capped).await).await;
    assert_eq!((status, &*code), (429, "budget_exceeded"), "{message}");
}

/// As a configured model would be.
#[tokio::test]
async fn what_doesnt_fit_the_catalogues_window_is_refused() {
    let provider = provider();
    let server = start(&provider, "", "");
    let mut long = chat("gpt-4o-mini");
    long["messages"][0]["content"] = "word ".repeat(300_000).into();
    let (status, code, message) = refused(ask_as(&server, KEY, "openai", &long).await).await;
    assert_eq!((status, &*code), (400, "context_length_exceeded"), "{message}");
    assert!(message.contains("128000 tokens"), "{message}");
    assert!(provider.requests().is_empty());
}

/// Google takes its models' ids with and without `models/`.
#[tokio::test]
async fn a_prefix_is_no_other_model() {
    let provider = provider();
    let models = "  mini: { targets: [ { provider: openai, model: gpt-4o-mini } ], max_output_tokens: 100, \
                  limits: { rpm: 2 } }\n  \
                  whole: { targets: [ { provider: own, model: models/sim-w, price: free } ] }\n";
    let server = start(&provider, "", models);
    for written in ["models/gpt-4o-mini", "models/models/gpt-4o-mini"] {
        let answer = ask_as(&server, KEY, "openai", &chat(written)).await;
        let row = served(&server, answer).await;
        assert_eq!((&row["model"], &row["target_model"]), (&json!("mini"), &json!("gpt-4o-mini")));
        assert_eq!(sent_model(&provider), written, "what was written is what is sent");
        let sent: Value = serde_json::from_slice(&provider.requests().pop().unwrap().body).unwrap();
        assert_eq!(sent["max_completion_tokens"], 100, "{sent}");
    }
    let last = ask_as(&server, KEY, "openai", &chat("models/gpt-4o-mini")).await;
    let (status, code, message) = refused(last).await;
    assert_eq!((status, &*code), (429, "rate_limit_exceeded"), "{message}");
    // A target may be written with it, too.
    for written in ["sim-w", "models/sim-w"] {
        let row = served(&server, ask_as(&server, KEY, "own", &chat(written)).await).await;
        assert_eq!(row["model"], "whole", "{row}");
        assert_eq!(sent_model(&provider), written);
    }
}

/// What comes behind a fine-tune's base is the client's: no name is made of it.
#[tokio::test]
async fn fine_tunes_are_booked_under_their_base() {
    let provider = provider();
    let acme = key("acme", &format!("models: [\"openai/{TUNED}:acme:*\"], unlimited: true"));
    let models =
        format!("  ours: {{ targets: [ {{ provider: openai, model: \"{TUNED}:ours::1\" }} ] }}\n");
    let server = start(&provider, &acme, &models);
    for n in 0..3 {
        let written = format!("{TUNED}:o{n}::x");
        let answer = ask_as(&server, KEY, "openai", &chat(&written)).await;
        assert_eq!(answer.headers()["x-tollbar-model"], format!("openai/{TUNED}"));
        assert_eq!(answer.headers()["x-tollbar-target"], format!("openai/{TUNED}"));
        let row = served(&server, answer).await;
        assert_eq!(row["model"], format!("openai/{TUNED}"));
        assert_eq!(row["target_model"], TUNED);
        assert!(cost(&row) > 0, "{row}");
        assert_eq!(sent_model(&provider), written);
    }
    // A key's list is about the whole of it …
    let own = format!("{TUNED}:acme::7");
    served(&server, ask_as(&server, "acme", "openai", &chat(&own)).await).await;
    let other = ask_as(&server, "acme", "openai", &chat(&format!("{TUNED}:other::7"))).await;
    assert_eq!(refused(other).await.1, "model_not_allowed");
    // … and one that is configured has the name it has there.
    let ours = ask_as(&server, KEY, "openai", &chat(&format!("{TUNED}:ours::1"))).await;
    assert_eq!(served(&server, ours).await["model"], "ours");
    let metrics = client().get(server.admin_url("/metrics")).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let invented: Vec<&str> =
        metrics.lines().filter(|line| line.contains("::") && !line.contains(":ours:")).collect();
    assert!(invented.is_empty(), "{invented:#?}");
}

#[tokio::test]
async fn what_is_no_id_is_refused() {
    let provider = provider();
    let server = start(&provider, "", "");
    let long = "x".repeat(60_000);
    for suffix in ["\u{1b}[2J", "a\nb", "\u{85}", &long] {
        let asked = chat(&format!("{TUNED}:{suffix}"));
        let (status, code, message) = refused(ask_as(&server, KEY, "openai", &asked).await).await;
        assert_eq!((status, &*code), (400, "invalid_request"), "{message}");
        assert!(!message.contains(char::is_control) && message.len() < 1_000, "{message}");
    }
    assert!(provider.requests().is_empty());
}
