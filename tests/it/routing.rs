//! Which target gets the request, what happens when it fails, and that it never costs more.

use crate::support::*;
use serde_json::{Value, json};
use std::time::Duration;
use tollbar_loadtest::provider::{Provider, Script};

/// Three models of one tier, each on the provider `p`; `first` falls back to the others.
fn three(provider: &Provider, more: &str) -> String {
    let base = provider.base();
    let model = |name: &str, price: &str, rest: &str| {
        format!(
            "  {name}: {{ targets: [ {{ provider: p, model: sim-{name}, price: {{ input: {price}, output: 1 }} }} ]{rest} }}\n"
        )
    };
    format!(
        "{}providers: {{ p: {{ dialect: openai, base_url: \"{base}/v1\" }} }}\n{more}models:\n{}{}{}",
        head(),
        model("first", "0.5", ", fallbacks: [second, third]"),
        model("second", "0.4", ""),
        model("third", "0.3", ""),
    )
}

async fn ask(server: &Server, model: &str) -> (u16, reqwest::header::HeaderMap, Value) {
    let answer = client()
        .post(server.url("/v1/chat/completions"))
        .bearer_auth(KEY)
        .json(&chat(model))
        .send()
        .await
        .unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    (status, headers, answer.json().await.unwrap())
}

fn models_asked(provider: &Provider) -> Vec<String> {
    let models = provider.requests().into_iter().map(|r| r.json()["model"].clone());
    models.map(|model| model.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn five_hundreds_cost_exactly_attempts_max_calls() {
    let provider = provider();
    provider.set_default("*", Script::status(500));
    let server = Server::start(&three(&provider, "attempts: { max: 3, same_target: 1 }\n"));
    let (status, headers, body) = ask(&server, "first").await;
    assert_eq!(status, 502);
    assert_eq!(headers["x-should-retry"], "false", "SDKs must not multiply the attempts");
    assert_eq!(
        models_asked(&provider),
        ["sim-first", "sim-first", "sim-third"],
        "cheapest fallback first"
    );
    let message = body["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("p/sim-first: status 500") && message.contains("p/sim-third"),
        "{message}"
    );
}

#[tokio::test]
async fn the_clients_own_errors_are_relayed_after_one_call() {
    let provider = provider();
    let server = Server::start(&three(&provider, ""));
    for status in [400, 404, 409, 413, 422] {
        provider.clear();
        provider.set_default("*", Script::status(status));
        let (got, _, body) = ask(&server, "first").await;
        assert_eq!(got, status);
        assert!(body["error"]["message"].is_string(), "the provider's own body: {body}");
        assert_eq!(models_asked(&provider), ["sim-first"], "status {status}");
    }
    // Five bad requests are nothing against the target: neither its breaker nor its record.
    provider.reset_scripts();
    let (status, headers, _) = ask(&server, "first").await;
    assert_eq!((status, &headers["x-tollbar-model"]), (200, &"first".parse().unwrap()));
    let relayed = "tollbar_attempts_total{model=\"sim-first\",outcome=\"relayed_error\"";
    assert_eq!(server.metric(relayed).await, 5.0);
}

#[tokio::test]
async fn a_429_moves_on_at_once_and_cools_the_target() {
    let provider = provider();
    provider.set_default("sim-first", Script::status(429).header("retry-after", "60"));
    let server = Server::start(&three(&provider, ""));
    for _ in 0..3 {
        let (status, headers, _) = ask(&server, "first").await;
        assert_eq!(status, 200);
        assert_eq!(headers["x-tollbar-model"], "third");
    }
    assert_eq!(
        models_asked(&provider),
        ["sim-first", "sim-third", "sim-third", "sim-third"],
        "never the same target again while it cools"
    );
}

#[tokio::test]
async fn all_rate_limited_says_when_the_first_is_free() {
    let provider = provider();
    provider.set_default("sim-first", Script::status(429).header("retry-after", "60"));
    provider.set_default("sim-third", Script::status(429).header("retry-after-ms", "20500"));
    provider.set_default("sim-second", Script::status(429).header("retry-after", "40"));
    let server = Server::start(&three(&provider, ""));
    for _ in 0..2 {
        let (status, headers, body) = ask(&server, "first").await;
        assert_eq!(status, 429);
        assert_eq!(body["error"]["code"], "upstream_rate_limited");
        let after: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((15..=21).contains(&after), "retry-after {after}");
    }
    assert_eq!(provider.requests().len(), 3, "the second request asked nobody");
    let (status, ..) = ask(&server, "second").await;
    assert_eq!(status, 429);
}

/// A rate limit is an account's: with another key of it, or of another one, there is another limit.
#[tokio::test]
async fn a_new_credential_is_not_left_alone_for_the_old_one() {
    let provider = provider();
    provider.script("sim-first", vec![Script::status(429).header("retry-after", "86400")]);
    let text = three(&provider, "").replace("/v1\" }", "/v1\", api_key: sk-provider }");
    let server = Server::start(&text);
    assert_eq!(ask(&server, "first").await.1["x-tollbar-model"], "third");
    let reload = async |text: &str| {
        std::fs::write(server.config_file(), text).unwrap();
        let request = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
        assert_eq!(request.send().await.unwrap().status(), 200);
    };
    reload(&format!("{text}\n# nothing else")).await;
    assert_eq!(ask(&server, "first").await.1["x-tollbar-model"], "third");
    let rotated = text.replace("sk-provider", "sk-another-one");
    assert_ne!(rotated, text);
    reload(&rotated).await;
    assert_eq!(ask(&server, "first").await.1["x-tollbar-model"], "first");
}

#[tokio::test]
async fn googles_retry_info_is_read_from_the_body() {
    let provider = provider();
    let body = r#"{"error":{"code":429,"details":[{"retryDelay":"46.21s"}]}}"#;
    let script = Script { body: Some(body.into()), ..Script::status(429) };
    provider.set_default("*", script);
    let server = Server::start(&three(&provider, ""));
    let (status, headers, _) = ask(&server, "third").await;
    assert_eq!(status, 429);
    assert_eq!(headers["retry-after"], "47");
}

#[tokio::test]
async fn the_breaker_opens_once_and_lets_one_probe_through() {
    let provider = provider();
    provider.set_default("*", Script::status(500));
    let more = "attempts: { max: 1 }\nbreaker: { failures: 3, window: 60s, cooldown: 1s }\n";
    let server = Server::start(&three(&provider, more));
    for _ in 0..3 {
        assert_eq!(ask(&server, "third").await.0, 502);
    }
    let (status, headers, body) = ask(&server, "third").await;
    assert_eq!((status, body["error"]["code"].as_str()), (503, Some("no_healthy_target")));
    assert!(headers.contains_key("retry-after"));
    assert_eq!(provider.requests().len(), 3);
    assert_eq!(server.metric("tollbar_breaker_open{model=\"sim-third\"").await, 1.0);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    provider.set_default("*", Script { delay_ms: 300, ..Script::default() });
    let twenty = (0..20).map(|_| ask(&server, "third"));
    let answers = futures_util::future::join_all(twenty).await;
    let served = answers.iter().filter(|(status, ..)| *status == 200).count();
    assert_eq!((served, provider.requests().len()), (1, 4), "one probe at a time");
    assert_eq!(ask(&server, "third").await.0, 200, "closed again");
}

#[tokio::test]
async fn a_refused_credential_opens_the_providers_breaker_until_it_is_rotated() {
    let provider = provider();
    provider.accept_keys(vec!["sk-new".into()]);
    let server =
        Server::start(&three(&provider, "").replace("/v1\" }", "/v1\", api_key: sk-old }"));
    let (status, _, body) = ask(&server, "third").await;
    assert_eq!((status, body["error"]["code"].as_str()), (502, Some("upstream_auth_failed")));
    assert_eq!(ask(&server, "second").await.0, 503, "the same credential isn't tried again");
    assert_eq!(provider.requests().len(), 1);
    assert_eq!(server.metric("tollbar_provider_auth_failures_total").await, 1.0);
    let targets = admin(&server, "/status").await["targets"].as_array().unwrap().clone();
    for target in &targets {
        assert_eq!(target["breaker"], "open", "{target}");
        assert!(target["blocked_for_seconds"].as_f64().unwrap() > 0.0, "{target}");
    }
    #[allow(clippy::cast_precision_loss)]
    let all = targets.len() as f64;
    assert_eq!(server.metric("tollbar_breaker_open").await, all);
    let file = server.config_file();
    let config = std::fs::read_to_string(&file).unwrap().replace("sk-old", "sk-new");
    std::fs::write(&file, config).unwrap();
    let reload = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN).send().await;
    assert_eq!(reload.unwrap().status(), 200);
    assert_eq!(ask(&server, "second").await.0, 200, "a new credential has a clean record");
}

/// A target that is left alone is not asked, and every request that another one serves instead has
/// fallen back.
#[tokio::test]
async fn a_target_that_is_passed_over_is_a_fallback_too() {
    let provider = provider();
    provider.set_default("sim-first", Script::status(500));
    let more =
        "attempts: { same_target: 0 }\nbreaker: { failures: 1, window: 60s, cooldown: 60s }\n";
    let server = Server::start(&three(&provider, more));
    for _ in 0..10 {
        assert_eq!(ask(&server, "first").await.0, 200);
    }
    server.log(10).await;
    let called = provider.requests().iter().filter(|r| r.json()["model"] == "sim-first").count();
    assert_eq!(called, 1);
    assert_eq!(server.metric("tollbar_fallback_rate").await, 1.0);
    let from = "tollbar_fallbacks_total{from=\"p/sim-first\",reason=";
    assert_eq!(server.metric(&format!("{from}\"error_status\"")).await, 1.0);
    assert_eq!(server.metric(&format!("{from}\"left_alone\"")).await, 9.0);
}

/// Never a dearer tier, at the length that the prompt may have.
#[tokio::test]
async fn a_long_prompt_has_no_fallback_that_is_dearer_for_it() {
    let provider = provider();
    provider.set_default("sim-own", Script::status(500));
    let models = "  own: { targets: [ { provider: p, model: sim-own, price: { input: 0.3, output: 0.6 } } ], fallbacks: [spare] }\n  \
         spare: { targets: [ { provider: p, model: sim-spare, price: { input: 0.2, output: 0.4, steps: [ { above_input_tokens: 1000, input: 50, output: 100 } ] } } ] }\n";
    let server = Server::start(&config_of(&head(), &provider, "", models));
    let url = server.url("/v1/chat/completions");
    for (words, status) in [(100, 200), (500, 200), (2_000, 502)] {
        let mut body = chat("own");
        body["messages"][0]["content"] = "word ".repeat(words).into();
        let answer = post(&client(), url.clone(), body.to_string()).await;
        assert_eq!(answer.status(), status, "{words}");
    }
    // Nobody knows how long what is only referred to is.
    let mut body = chat("own");
    body["web_search_options"] = json!({});
    assert_eq!(post(&client(), url, body.to_string()).await.status(), 502);
}

#[tokio::test]
async fn no_first_token_in_time_moves_on() {
    let provider = provider();
    provider.set_default("sim-first", Script { delay_ms: 30_000, ..Script::default() });
    let config = three(&provider, "").replace(
        "fallbacks: [second, third]",
        "fallbacks: [second, third], first_token_timeout: 300ms",
    );
    let server = Server::start(&config);
    let (status, headers, _) = ask(&server, "first").await;
    assert_eq!((status, headers["x-tollbar-attempts"].to_str().unwrap()), (200, "2"));
    let first = provider.requests().into_iter().next().unwrap();
    assert!(first.peer_closed_at.is_some(), "the slow one was let go");
}

/// 100 conversations of 20 turns over three equal targets; then one target is taken away.
#[tokio::test]
async fn a_conversation_stays_on_its_target() {
    let provider = provider();
    let target = |name: &str| {
        format!("      - {{ provider: p, model: sim-{name}, price: {{ input: 1, output: 1 }} }}\n")
    };
    let config = |names: &[&str]| {
        format!(
            "{}providers:\n  p: {{ dialect: openai, base_url: \"{}/v1\" }}\nmodels:\n  m:\n    targets:\n{}",
            head(),
            provider.base(),
            names.iter().map(|name| target(name)).collect::<String>()
        )
    };
    let server = Server::start(&config(&["a", "b", "c"]));
    let http = client();
    let mut homes = Vec::new();
    for conversation in 0..100 {
        let mut messages =
            vec![json!({"role": "user", "content": format!("topic {conversation}")})];
        let mut targets = std::collections::HashSet::new();
        for turn in 0..20 {
            targets.insert(turn_of(&http, &server, &messages).await);
            messages.push(json!({"role": "assistant", "content": "x"}));
            messages.push(json!({"role": "user", "content": format!("turn {turn}")}));
        }
        assert_eq!(targets.len(), 1, "conversation {conversation}: {targets:?}");
        homes.extend(targets);
    }
    for name in ["p/sim-a", "p/sim-b", "p/sim-c"] {
        let share = homes.iter().filter(|home| *home == name).count();
        assert!((15..=55).contains(&share), "{name} has {share} of 100");
    }
    std::fs::write(server.config_file(), config(&["a", "b"])).unwrap();
    let reload = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN).send().await;
    assert_eq!(reload.unwrap().status(), 200);
    for (conversation, home) in homes.iter().enumerate() {
        let messages = [json!({"role": "user", "content": format!("topic {conversation}")})];
        let now = turn_of(&http, &server, &messages).await;
        assert!(now == *home || home == "p/sim-c", "{conversation} moved from {home} to {now}");
    }
}

async fn turn_of(http: &reqwest::Client, server: &Server, messages: &[Value]) -> String {
    let body = json!({"messages": messages, "model": "m", "temperature": 0.5});
    let request = http.post(server.url("/v1/chat/completions")).bearer_auth(KEY).json(&body);
    let answer = request.send().await.unwrap();
    answer.headers()["x-tollbar-target"].to_str().unwrap().to_owned()
}

/// Two targets of one model, each on a model id of its own, with these settings.
fn two(provider: &Provider, a: &str, b: &str, more: &str) -> String {
    let target = |name: &str, rest: &str| {
        format!(
            "      - {{ provider: p, model: sim-{name}, price: {{ input: 1, output: 1 }}{rest} }}\n"
        )
    };
    format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"{}/v1\" }}\nbreaker: {{ failures: 10000 }}\n\
         models:\n  m:\n{more}    targets:\n{}{}",
        head(),
        provider.base(),
        target("a", a),
        target("b", b)
    )
}

/// Asks in a new conversation; returns the target that answered.
async fn fresh(http: &reqwest::Client, server: &Server, n: usize) -> String {
    turn_of(http, server, &[json!({"role": "user", "content": format!("{n}")})]).await
}

#[tokio::test]
async fn a_target_over_the_latency_budget_steps_back() {
    let provider = provider();
    provider.set_default("sim-a", Script { delay_ms: 150, ..Script::default() });
    let server = Server::start(&two(&provider, "", "", "    latency_budget: 100ms\n"));
    let http = client();
    let mut slow = 0;
    for n in 0..60 {
        slow += usize::from(fresh(&http, &server, n).await == "p/sim-a");
        if slow == 8 {
            break;
        }
    }
    assert_eq!(slow, 8, "it had its share until enough was known");
    for n in 100..120 {
        assert_eq!(fresh(&http, &server, n).await, "p/sim-b");
    }
}

#[tokio::test]
async fn a_canary_has_its_share_and_takes_itself_out() {
    let provider = provider();
    let canary = ", weight: 20%, rollback_on: { error_rate: 0.1, window: 60s }";
    let server = Server::start(&two(&provider, "", canary, ""));
    let http = client();
    let mut share = 0;
    for n in 0..200 {
        share += usize::from(fresh(&http, &server, n).await == "p/sim-b");
    }
    assert!((20..=65).contains(&share), "{share} of 200 at 20 %");
    provider.set_default("sim-b", Script::status(500));
    for n in 200..400 {
        assert_eq!(fresh(&http, &server, n).await, "p/sim-a", "nobody notices a failing canary");
    }
    assert_eq!(server.metric("tollbar_canary_rollbacks_total").await, 1.0);
    provider.clear();
    for n in 400..450 {
        fresh(&http, &server, n).await;
    }
    let asked = models_asked(&provider);
    assert!(asked.iter().all(|model| model == "sim-a"), "{asked:?}");
}

/// Google has no 401 for a key that is none: it is a 400 with a reason, and any other 400 is the
/// client's own.
#[tokio::test]
async fn googles_word_for_a_bad_key_is_not_the_clients_error() {
    let dir = format!("{}/tests/fixtures/wire", env!("CARGO_MANIFEST_DIR"));
    let refusal = std::fs::read_to_string(format!("{dir}/gemini.error_400_bad_key.json")).unwrap();
    let provider = provider();
    let base = provider.base();
    let target = |p: &str| {
        format!(
            "targets: [ {{ provider: {p}, model: sim-{p}, price: {{ input: 1, output: 1 }} }} ]"
        )
    };
    let config = format!(
        "{}providers:\n  g: {{ dialect: gemini, base_url: \"{base}\" }}\n  \
           h: {{ dialect: gemini, base_url: \"{base}\" }}\nmodels:\n  \
           m: {{ {}, fallbacks: [n] }}\n  n: {{ {} }}\n",
        head(),
        target("g"),
        target("h"),
    );
    const SSE: &str = "streamGenerateContent?alt=sse";
    for (path, kind) in [
        ("generateContent", "application/json"),
        (SSE, "application/json"),
        (SSE, "text/event-stream"),
        ("streamGenerateContent", "application/json"),
    ] {
        let bad = |body: &str| Script {
            body: Some(body.to_owned()),
            content_type: Some(kind.to_owned()),
            ..Script::status(400)
        };
        let server = Server::start(&config);
        let url = server.url(&format!("/v1beta/models/m:{path}"));
        let http = client();
        let ask = || post(&http, url.clone(), "{\"contents\":[]}");
        // In pieces, and of a stream without events in an array.
        let own =
            r#"{"error":{"code":400,"message":"API_KEY_INVALID","status":"INVALID_ARGUMENT"}}"#;
        provider.set_default("sim-g", Script { split: Some(9), ..bad(own) });
        let answer = ask().await;
        assert_eq!((answer.status().as_u16(), answer.text().await.unwrap()), (400, own.to_owned()));
        assert_eq!(server.metric("tollbar_provider_auth_failures_total").await, 0.0);

        let said = if path.ends_with("Content") { format!("[{refusal}]") } else { refusal.clone() };
        provider.set_default("sim-g", Script { split: Some(9), ..bad(&said) });
        let answer = ask().await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-tollbar-model"]),
            (200, &"n".parse().unwrap())
        );
        assert_eq!(
            server.metric("tollbar_provider_auth_failures_total{provider=\"g\"}").await,
            1.0
        );
        provider.set_default("sim-h", bad(&said));
        provider.clear();
        let answer = ask().await;
        assert_eq!(answer.status(), 502);
        let body: Value = answer.json().await.unwrap();
        assert!(body["error"]["message"].as_str().unwrap().contains("credential"), "{body}");
        assert_eq!(provider.requests().len(), 1, "the breaker of the first is open");
        provider.reset_scripts();
    }
}
