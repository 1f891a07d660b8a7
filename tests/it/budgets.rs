//! Budgets, seen from outside: no more is billed than was agreed, whatever happens at once.

use crate::support::*;
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;
use tollbar_loadtest::provider::{Provider, Script};

/// A dollar a thousand tokens of output; input costs nothing. Ten tokens are one cent.
const PRICE: &str = "price: { input: 0, output: 1000 }";

fn config_with(provider: &Provider, key: &str, more: &str) -> String {
    let base = provider.base();
    format!(
        "listeners: [{{ address: 127.0.0.1:0 }}]\nadmin: {{ address: 127.0.0.1:0, token: {ADMIN_TOKEN} }}\n\
         server: {{ threads: 2 }}\nstate: {{ path: state.db }}\n\
         keys:\n  - {{ id: test, hash: \"{}\", models: [\"*\"], team: red, user: ana, {key} }}\n\
         providers:\n  p: {{ dialect: openai, base_url: \"{base}/v1\" }}\n  a: {{ dialect: anthropic, base_url: \"{base}\" }}\n  \
           g: {{ dialect: gemini, base_url: \"{base}\" }}\n\
         models:\n  gpt: {{ targets: [ {{ provider: p, model: sim-gpt, {PRICE} }} ] }}\n  \
           alias: {{ targets: [ {{ provider: p, model: sim-gpt, {PRICE} }} ] }}\n  \
           embed: {{ targets: [ {{ provider: p, model: sim-embed, price: {{ per_request: 0.01 }} }} ] }}\n  \
           gem: {{ targets: [ {{ provider: g, model: sim-gem, {PRICE} }} ] }}\n  \
           claude: {{ targets: [ {{ provider: a, model: sim-claude, {PRICE} }} ] }}\n{more}",
        hash(KEY)
    )
}

const NAMED: &str = "teams: { red: {} }\nusers: { ana: {} }\n";

/// A request that costs a cent on this route: ten tokens of output, or the vector itself.
fn cent(path: &str) -> Value {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let asked = |model: &str| json!({"model": model, "max_tokens": 10, "messages": messages});
    match path.split('?').next().unwrap() {
        "/v1/responses" => json!({"model": "gpt", "input": "Hi", "max_output_tokens": 10}),
        "/v1/completions" => json!({"model": "gpt", "prompt": "Hi", "max_tokens": 10}),
        "/v1/messages" => asked("claude"),
        "/v1/embeddings" | "/openai/deployments/embed/embeddings" => {
            json!({"model": "embed", "input": "Hi"})
        }
        "/passthrough/p/v1/chat/completions" => asked("sim-gpt"),
        "/passthrough/p/v1/embeddings" => json!({"model": "sim-embed", "input": "Hi"}),
        "/passthrough/a/v1/messages" => asked("sim-claude"),
        "/v1/chat/completions" if path.ends_with("?alias") => asked("alias"),
        path if path.starts_with("/v1beta") => {
            json!({"contents": [{"parts": [{"text": "Hi"}]}], "generationConfig": {"maxOutputTokens": 10}})
        }
        _ => asked("gpt"),
    }
}

/// Every way to a provider.
const ROUTES: [&str; 12] = [
    "/v1/chat/completions",
    "/v1/chat/completions?alias",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/passthrough/p/v1/chat/completions",
    "/passthrough/p/v1/embeddings",
    "/passthrough/a/v1/messages",
    "/openai/deployments/gpt/chat/completions",
    "/openai/deployments/embed/embeddings",
    "/v1beta/models/gem:generateContent",
];

async fn send(client: &reqwest::Client, server: &Server, path: &str) -> (u16, Value) {
    let request = client.post(server.url(path)).bearer_auth(KEY).json(&cent(path));
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_at_once_spend_the_cap_and_no_more() {
    for mixed in [false, true] {
        let provider = provider();
        let server =
            Server::start(&config_with(&provider, "budgets: [ { usd: 1, per: month } ]", NAMED));
        let clients: Vec<_> = (0..8).map(|_| client()).collect();
        let (clients, server_ref) = (&clients, &server);
        let answers: Vec<(u16, Value)> = stream::iter(0..1000_usize)
            .map(|n| {
                let path = if mixed { ROUTES[n % ROUTES.len()] } else { ROUTES[0] };
                send(&clients[n % clients.len()], server_ref, path)
            })
            .buffer_unordered(1000)
            .collect()
            .await;
        // The provider's own count: ten cents a hundred tokens of output, a cent a vector.
        let vectors =
            provider.requests().iter().filter(|r| r.path_and_query.contains("embed")).count();
        let billed = provider.billed().output_tokens + 10 * vectors as u64;
        assert!(billed <= 1000, "${} of $1 were billed", billed as f64 / 1000.0);
        assert!(billed > 950, "only {billed} thousandths of the dollar");
        let served = answers.iter().filter(|(status, _)| *status == 200).count();
        assert_eq!(served as u64 * 10, billed);
        assert_eq!(provider.requests().len(), served, "a refused request made no call");
        let paths: HashSet<String> =
            provider.requests().iter().map(|r| r.path_and_query.clone()).collect();
        assert_eq!(paths.len(), if mixed { 6 } else { 1 }, "{paths:?}");
        for (status, body) in answers.iter().filter(|(status, _)| *status != 200) {
            let error = &body["error"];
            assert_eq!(*status, 429, "{body}");
            let message = error["message"].as_str().unwrap();
            let parts = [
                "the budget of the key `test`",
                "can cost up to $0.01",
                "cap $1.000000000 per month",
                "spent $",
                "held $",
                "The window ends at 20",
            ];
            for part in parts {
                assert!(message.contains(part), "{part}: {message}");
            }
        }
        books_agree(&server, served).await;
    }
}

/// Ledger sum = account = metric, to the nano-dollar; nothing is held any more.
async fn books_agree(server: &Server, rows: usize) {
    let mut spend = Value::Null;
    for _ in 0..200 {
        spend = admin(server, "/spend").await;
        if spend["data"][0]["attempts"] == rows {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let total = &spend["data"][0]["cost_usd"];
    let budgets = admin(server, "/budgets").await;
    let account = &budgets["data"][0];
    assert_eq!(&account["spent_usd"], total, "{budgets} {spend}");
    assert_eq!(account["held_usd"].as_f64(), Some(0.0), "{budgets}");
    let metric = server.metric("tollbar_budget_spent_usd{id=\"test\"").await;
    assert_eq!(Some(metric), total.as_f64());
}

#[tokio::test]
async fn each_scope_alone_refuses_and_leaves_the_others_as_they_were() {
    let cent = "{ budgets: [ { usd: 0.01, per: day } ] }";
    let scopes = [
        ("user `ana`", format!("teams: {{ red: {{}} }}\nusers: {{ ana: {cent} }}\n")),
        ("team `red`", format!("users: {{ ana: {{}} }}\nteams: {{ red: {cent} }}\n")),
        ("the whole gateway", format!("{NAMED}global: {cent}\n")),
    ];
    for (whose, more) in scopes {
        let provider = provider();
        let config = config_with(&provider, "budgets: [ { usd: 5, per: day } ]", &more);
        let server = Server::start(&config);
        let http = client();
        assert_eq!(send(&http, &server, "/v1/chat/completions").await.0, 200, "{whose}");
        let before = admin(&server, "/budgets").await;
        let (status, body) = send(&http, &server, "/v1/messages").await;
        let message = body["error"]["message"].as_str().unwrap();
        assert_eq!(status, 429, "{whose}: {body}");
        assert!(message.contains(whose) && message.contains("The window ends at"), "{message}");
        assert_eq!(admin(&server, "/budgets").await, before, "a refusal changed an account");
        assert_eq!(server.metric("tollbar_budget_refused_total").await, 1.0);
    }
    // A model's and a provider's budget close that model and provider only.
    for (whose, from, to) in [
        ("model `gpt`", "gpt: {", "gpt: { budgets: [ { usd: 0.01, per: day } ],"),
        ("provider `p`", "p: {", "p: { budgets: [ { usd: 0.01, per: day } ],"),
    ] {
        let provider = provider();
        let config = config_with(&provider, "unlimited: true", NAMED).replace(from, to);
        let server = Server::start(&config);
        let http = client();
        assert_eq!(send(&http, &server, "/v1/chat/completions").await.0, 200);
        let (status, body) = send(&http, &server, "/v1/chat/completions").await;
        assert_eq!(status, 429);
        assert!(body["error"]["message"].as_str().unwrap().contains(whose), "{body}");
        assert_eq!(send(&http, &server, "/v1/messages").await.0, 200);
    }
}

#[tokio::test]
async fn what_was_spent_survives_a_kill() {
    let provider = provider();
    let config = config_with(&provider, "budgets: [ { usd: 0.05, per: month } ]", NAMED);
    let mut server = Server::start(&config);
    let http = client();
    for _ in 0..3 {
        assert_eq!(send(&http, &server, "/v1/chat/completions").await.0, 200);
    }
    provider.set_default("sim-gpt", Script { delay_ms: 60_000, ..Script::default() });
    let url = server.url("/v1/chat/completions");
    let hanging = http.post(url).bearer_auth(KEY).json(&cent("/v1/chat/completions")).send();
    let hanging = tokio::spawn(hanging);
    assert!(provider.wait_for(4, Duration::from_secs(10)).await);
    server.signal("KILL");
    assert!(server.wait_exit(Duration::from_secs(10)).is_some());
    let _ = hanging.await;
    provider.set_default("sim-gpt", Script::default());
    let server = server.again();
    let budgets = admin(&server, "/budgets").await;
    // Nobody knows what became of the fourth: it is booked at its worst case.
    let http = client();
    let statuses = [
        send(&http, &server, "/v1/chat/completions").await.0,
        send(&http, &server, "/v1/chat/completions").await.0,
    ];
    assert_eq!(statuses, [200, 429], "{budgets}");
    let spend = admin(&server, "/spend?group_by=outcome").await;
    assert_eq!(spend["data"].as_array().unwrap().len(), 2, "{spend}");
}

#[tokio::test]
async fn a_request_that_only_holds_are_in_the_way_of_waits_for_them() {
    let provider = provider();
    // The first holds the whole budget and uses a tenth of it.
    provider.set_default("sim-gpt", Script { output: Some(1), delay_ms: 300, ..Script::default() });
    let server =
        Server::start(&config_with(&provider, "budgets: [ { usd: 0.01, per: day } ]", NAMED));
    let http = client();
    let (first, second) = tokio::join!(
        send(&http, &server, "/v1/chat/completions"),
        send(&http, &server, "/v1/chat/completions")
    );
    let mut statuses = [first.0, second.0];
    statuses.sort_unstable();
    // One waited until the other's hold was settled, and then there was too little left: 9 of the
    // 10 tokens that it could cost.
    assert_eq!(statuses, [200, 429], "{} {}", first.1, second.1);
    let refused = if first.0 == 429 { first.1 } else { second.1 };
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(message.contains("held $0.000000000"), "it waited for the hold: {message}");
}

/// Without an output cap the model's maximum is held, for each of the answers asked for.
#[tokio::test]
async fn every_answer_of_n_is_held_also_without_a_cap() {
    let provider = provider();
    let config = config_with(&provider, "budgets: [ { usd: 1.5, per: day } ]", NAMED)
        .replace("gpt: {", "gpt: { context_window: 1000,");
    let server = Server::start(&config);
    let ask = |n: u64, text: &str| {
        let body = json!({"model": "gpt", "n": n, "messages": [{"role": "user", "content": text}]});
        client().post(server.url("/v1/chat/completions")).bearer_auth(KEY).json(&body).send()
    };
    assert_eq!(ask(2, "Hi").await.unwrap().status(), 429, "$2 of $1.50");
    assert!(provider.requests().is_empty());
    assert_eq!(ask(1, "Hi").await.unwrap().status(), 200, "$1 of $1.50");
}

/// A refusal by a budget gives back what the limits had taken.
#[tokio::test]
async fn a_refusal_by_a_budget_leaves_the_limits_as_they_were() {
    let provider = provider();
    let key = "limits: { rpm: 1 }, budgets: [ { usd: 0.01, per: day } ]";
    let server = Server::start(&config_with(&provider, key, NAMED));
    let ask = |cap: u64| {
        let body = json!({"model": "gpt", "max_tokens": cap, "messages": []});
        client().post(server.url("/v1/chat/completions")).bearer_auth(KEY).json(&body).send()
    };
    for _ in 0..2 {
        let refused: Value = ask(100).await.unwrap().json().await.unwrap();
        assert_eq!(refused["error"]["code"], "budget_exceeded", "{refused}");
    }
    assert_eq!(ask(10).await.unwrap().status(), 200);
}
