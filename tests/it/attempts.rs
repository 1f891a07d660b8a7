//! When an attempt starts, when the same target is asked again, and what is said where none is left.

use crate::support::*;
use tollbar_loadtest::provider::{Cut, Script};

async fn ask(server: &Server, model: &str) -> reqwest::Response {
    post(&client(), server.url("/v1/chat/completions"), chat(model).to_string()).await
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
