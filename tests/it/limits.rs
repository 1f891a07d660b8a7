//! Limits of every scope, seen from outside: who is refused, what it is told, what comes back.

use crate::support::*;
use serde_json::Value;
use std::time::Duration;
use tollbar_loadtest::provider::{Gate, Provider, Script};

/// The configuration of the tests, with a team and a user on the key and `more` at the end.
fn config_with(provider: &Provider, key: &str, more: &str) -> String {
    let config = config(provider)
        .replace("unlimited: true", &format!("unlimited: true, team: red, user: ana, {key}"));
    format!("{config}{more}")
}

async fn ask(server: &Server, model: &str) -> (u16, reqwest::header::HeaderMap, Value) {
    let request = client().post(server.url("/v1/chat/completions")).bearer_auth(KEY);
    let answer = request.json(&chat(model)).send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    (status, headers, answer.json().await.unwrap())
}

#[tokio::test]
async fn rpm_of_each_scope_refuses_alone_and_says_whose_it_is() {
    let scopes = [
        ("key `test`", "limits: { rpm: 2 }", ""),
        ("user `ana`", "", "users: { ana: { limits: { rpm: 2 } } }\n"),
        ("team `red`", "", "teams: { red: { limits: { rpm: 2 } } }\n"),
        ("the whole gateway", "", "global: { limits: { rpm: 2 } }\n"),
    ];
    for (whose, key, more) in scopes {
        let provider = provider();
        let named = "users: { ana: {} }\nteams: { red: {} }\n";
        let more: String = named
            .lines()
            .filter(|line| !more.starts_with(&line[..5]))
            .map(|l| format!("{l}\n"))
            .collect::<String>()
            + more;
        let server = Server::start(&config_with(&provider, key, &more));
        for _ in 0..2 {
            assert_eq!(ask(&server, "gpt").await.0, 200, "{whose}");
        }
        let (status, headers, body) = ask(&server, "gpt").await;
        assert_eq!((status, body["error"]["code"].as_str()), (429, Some("rate_limit_exceeded")));
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(whose) && message.contains("limited to 2"), "{message}");
        assert_eq!(headers["x-ratelimit-limit-requests"], "2");
        assert_eq!(headers["x-ratelimit-remaining-requests"], "0");
        let after: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((55..=61).contains(&after), "{after}");
        assert_eq!(provider.requests().len(), 2, "a refused request made no call");
    }
}

#[tokio::test]
async fn a_models_limit_leaves_other_models_alone() {
    let provider = provider();
    let config = config(&provider).replace("gpt: {", "gpt: { limits: { rpm: 1 },");
    let server = Server::start(
        &(config
            + "  other: { targets: [ { provider: p, model: sim-other, price: { input: 1, output: 2 } } ] }\n"),
    );
    assert_eq!(ask(&server, "gpt").await.0, 200);
    assert_eq!(ask(&server, "gpt").await.0, 429);
    assert_eq!(ask(&server, "other").await.0, 200);
}

#[tokio::test]
async fn a_providers_limit_moves_on_to_a_fallback_elsewhere() {
    let provider = provider();
    let base = provider.base();
    let config = config(&provider)
        .replace("api_key: \"${PROVIDER_KEY:-sk-provider}\" }\n  a:", "limits: { rpm: 1 } }\n  a:")
        .replace("gpt: {", "gpt: { fallbacks: [other],")
        .replace(
            "providers:\n",
            &format!("providers:\n  q: {{ dialect: openai, base_url: \"{base}/v1\" }}\n"),
        );
    let server = Server::start(
        &(config
            + "  other: { targets: [ { provider: q, model: sim-other, price: { input: 1, output: 2 } } ] }\n"),
    );
    for served in ["gpt", "other", "other"] {
        let (status, headers, _) = ask(&server, "gpt").await;
        assert_eq!((status, headers["x-tollbar-model"].to_str().unwrap()), (200, served));
    }
}

#[tokio::test]
async fn parallel_comes_back_however_a_request_ends() {
    let provider = provider();
    let more = "users: { ana: {} }\nteams: { red: { limits: { parallel: 2 } } }\n";
    let server = Server::start(&config_with(&provider, "", more));
    for end in ["finished", "abandoned"] {
        let gate = Gate::new();
        provider.set_default("sim-gpt", Script { gate: Some(gate.clone()), ..Script::default() });
        provider.clear();
        let sent: Vec<_> = (0..2)
            .map(|_| {
                let request = client().post(server.url("/v1/chat/completions")).bearer_auth(KEY);
                tokio::spawn(request.json(&chat("gpt")).send())
            })
            .collect();
        assert!(provider.wait_for(2, Duration::from_secs(10)).await);
        let (status, _, body) = ask(&server, "gpt").await;
        assert_eq!(
            (status, body["error"]["code"].as_str()),
            (429, Some("concurrency_limit_exceeded"))
        );
        assert!(body["error"]["message"].as_str().unwrap().contains("team `red`"));
        for request in &sent {
            if end == "abandoned" {
                request.abort();
            }
        }
        if end == "finished" {
            gate.open();
        }
        for request in sent {
            let _ = request.await;
        }
        assert!(
            provider.wait_until(Duration::from_secs(5), |r| r.iter().all(|r| r.is_over())).await
        );
        provider.set_default("sim-gpt", Script::default());
        let status = loop_until_free(&server).await;
        assert_eq!(status, 200, "{end}");
    }
}

/// A place is free once the gateway has noticed the end: within a second.
async fn loop_until_free(server: &Server) -> u16 {
    for _ in 0..200 {
        let (status, ..) = ask(server, "gpt").await;
        if status != 429 {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    429
}

#[tokio::test]
async fn tpm_is_reserved_before_and_corrected_after() {
    let provider = provider();
    provider
        .set_default("sim-gpt", Script { input: Some(40), output: Some(10), ..Script::default() });
    let more = "users: { ana: {} }\nteams: { red: {} }\n";
    let server = Server::start(&config_with(&provider, "limits: { tpm: 1200 }", more));
    let capped = |cap: u64| {
        let mut body = chat("gpt");
        body["max_tokens"] = cap.into();
        let request =
            client().post(server.url("/v1/chat/completions")).bearer_auth(KEY).json(&body);
        async move { request.send().await.unwrap() }
    };
    // 1,000 are reserved, 50 used: the rest comes back, so that the second fits as well.
    for _ in 0..2 {
        assert_eq!(capped(1000).await.status(), 200);
    }
    let gate = Gate::new();
    provider.set_default("sim-gpt", Script { gate: Some(gate.clone()), ..Script::default() });
    let held = tokio::spawn(capped(900));
    assert!(provider.wait_for(3, Duration::from_secs(10)).await);
    assert_eq!(capped(900).await.status(), 429, "both together would pass the limit");
    let never = capped(5000).await;
    assert_eq!(never.status(), 429);
    assert_eq!(never.headers()["x-should-retry"], "false", "it would never fit");
    assert_eq!(provider.requests().len(), 3);
    gate.open();
    assert_eq!(held.await.unwrap().status(), 200);
}

/// A chat request that is taken for exactly so many tokens: its bytes by three, and its cap.
fn taken_for(tokens: u64) -> Value {
    let mut body = chat("gpt");
    body["max_tokens"] = 100.into();
    let input = (body.to_string().len() as u64).div_ceil(3);
    let cap = tokens - input;
    assert!((100..1000).contains(&cap), "as long as the 100 that was counted");
    body["max_tokens"] = cap.into();
    body
}

async fn send(server: &Server, http: &reqwest::Client, body: &Value) -> (u16, bool, String) {
    let url = server.url("/v1/chat/completions");
    let request = http.post(url).bearer_auth(KEY).header("content-type", "application/json");
    let answer = request.body(body.to_string()).send().await.unwrap();
    let status = answer.status().as_u16();
    let never = answer.headers().get("x-should-retry").is_some_and(|retry| retry == "false");
    (status, never, answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tpm_admits_no_more_than_fits_however_many_ask_at_once() {
    let provider = provider();
    let more = "users: { ana: {} }\nteams: { red: {} }\n";
    let http = client();
    let body = taken_for(175);
    // More than the whole limit: none of them ever fits, and that is what they are told.
    let server = Server::start(&config_with(&provider, "limits: { tpm: 100 }", more));
    for n in [5, 500] {
        let sent = (0..n).map(|_| send(&server, &http, &body));
        for (status, never, text) in futures_util::future::join_all(sent).await {
            assert_eq!((status, never), (429, true), "{text}");
            for part in ["key `test`", "limited to 100 tokens", "100 are left", "more than that"] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }
    assert!(provider.requests().is_empty());

    // Two fit; the others are refused at once, and are told when to come back.
    let used = |output| Script { input: Some(10), output: Some(output), ..Script::default() };
    for n in [5, 500] {
        let server = Server::start(&config_with(&provider, "limits: { tpm: 350 }", more));
        let gate = Gate::new();
        provider.clear();
        provider.set_default("sim-gpt", Script { gate: Some(gate.clone()), ..used(10) });
        let sent = (0..n).map(|_| send(&server, &http, &body));
        let release = async {
            // All but two have their answer before one of the two has.
            eventually(Duration::from_secs(20), || server.stdout().len() == n - 2).await;
            assert_eq!(provider.requests().len(), 2, "of {n}");
            gate.open();
        };
        let (answers, ()) = tokio::join!(futures_util::future::join_all(sent), release);
        let served = answers.iter().filter(|(status, ..)| *status == 200).count();
        assert_eq!(served, 2, "of {n}");
        assert!(answers.iter().all(|(_, never, _)| !never), "there will be room");
        server.log(n).await;
        // The two have used 20 each: 310 of the 350 came back. With 135 used by each that follows,
        // 40 + 175 fits, and 175 + 175, and 310 + 175 does not.
        provider.set_default("sim-gpt", used(125));
        for wanted in [200, 200, 429] {
            assert_eq!(send(&server, &http, &body).await.0, wanted);
        }
    }
}
