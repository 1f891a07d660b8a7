//! A generated schedule of faults: whatever goes wrong, the rules of routing hold.

use crate::support::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tollbar_loadtest::provider::{Cut, Provider, Script};

const REQUESTS: usize = 2000;
const AT_ONCE: usize = 40;
const MAX_ATTEMPTS: usize = 3;

/// Two tiers. `cheap-*` may fall back among themselves; `dear` only down.
fn config(provider: &Provider) -> String {
    let base = provider.base();
    let model = |name: &str, price: &str, rest: &str| {
        format!(
            "  {name}: {{ first_token_timeout: 250ms, targets: [ {{ provider: p, model: sim-{name}, price: {{ input: {price}, output: {price} }} }} ]{rest} }}\n"
        )
    };
    format!(
        "{}providers: {{ p: {{ dialect: openai, base_url: \"{base}/v1\" }} }}\n\
         attempts: {{ max: {MAX_ATTEMPTS}, same_target: 1 }}\n\
         breaker: {{ failures: 5, window: 2s, cooldown: 100ms }}\n\
         models:\n{}{}{}{}",
        head().replace("models: [\"*\"]", "models: [\"dear\", \"cheap-a\", \"cheap-b\"]"),
        model("dear", "20", ", fallbacks: [cheap-a, cheap-b, forbidden]"),
        model("cheap-a", "0.5", ", fallbacks: [cheap-b, forbidden]"),
        model("cheap-b", "0.4", ", fallbacks: [cheap-a]"),
        model("forbidden", "0.1", ""),
    )
}

fn fault(rng: &mut StdRng) -> Script {
    match rng.random_range(0..20) {
        0 => Script::status(500),
        1 => Script::status(503),
        2 => Script::status(429).header("retry-after-ms", "40"),
        3 => Script::status(429),
        4 => Script::status(400),
        5 => Script { cut: Some(Cut::Headers), ..Script::default() },
        6 => Script { cut: Some(Cut::After(1)), ..Script::default() },
        7 => Script { truncate: true, ..Script::default() },
        8 => Script { delay_ms: 400, ..Script::default() },
        9 => Script { first_ms: 20, ..Script::default() },
        10 => Script::status(529),
        _ => Script::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_never_break_a_rule() {
    let seed: u64 =
        std::env::var("CHAOS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("CHAOS_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let provider = provider();
    for model in ["sim-dear", "sim-cheap-a", "sim-cheap-b"] {
        provider.script(model, (0..REQUESTS * 2).map(|_| fault(&mut rng)).collect());
    }
    let server = Server::start(&config(&provider));
    let client = client();
    let models = ["dear", "cheap-a", "cheap-b"];
    let asked: Vec<(&str, bool)> =
        (0..REQUESTS).map(|_| (models[rng.random_range(0..3)], rng.random())).collect();
    let mut answers = HashMap::new();
    for batch in asked.chunks(AT_ONCE) {
        let sent = batch.iter().map(|(model, stream)| {
            let body = if *stream { chat_stream(model) } else { chat(model) };
            let request =
                client.post(server.url("/v1/chat/completions")).bearer_auth(KEY).json(&body);
            async move {
                let answer = request.send().await.unwrap_or_else(|e| panic!("no answer: {e}"));
                let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
                let served =
                    answer.headers().get("x-tollbar-model").map(|v| v.to_str().unwrap().to_owned());
                let _ = answer.bytes().await;
                (id, (*model, served))
            }
        });
        answers.extend(futures_util::future::join_all(sent).await);
    }
    assert_eq!(
        answers.len(),
        REQUESTS,
        "one answer per request, each with its own id (seed {seed})"
    );

    let log = server.log(REQUESTS).await;
    assert_eq!(log.len(), REQUESTS);
    let mut calls = 0;
    let mut seen = HashSet::new();
    for line in &log {
        check(line, &answers, seed);
        calls += line["attempts"].as_array().unwrap().len();
        assert!(
            seen.insert(line["request_id"].as_str().unwrap().to_owned()),
            "two lines (seed {seed})"
        );
    }
    // A cut before the header is retried on a fresh connection where a pooled one died: such a
    // repeat is a call upstream and no attempt. There is no other difference.
    let upstream = provider.requests().len();
    let stale = upstream - calls.min(upstream);
    let cuts =
        provider.requests().iter().filter(|r| r.status.is_none() || r.cut_at.is_some()).count();
    assert!(
        calls <= upstream && stale <= cuts,
        "{calls} attempts, {upstream} calls, {cuts} cuts (seed {seed})"
    );
    for model in ["sim-dear", "sim-cheap-a", "sim-cheap-b"] {
        let inflight = server.metric(&format!("tollbar_inflight{{model=\"{model}\"")).await;
        assert_eq!(inflight, 0.0, "{model} (seed {seed})");
    }
    let forbidden =
        provider.requests().iter().filter(|r| r.json()["model"] == "sim-forbidden").count();
    assert_eq!(forbidden, 0, "a model that the key may not use (seed {seed})");
    assert!(provider.wait_idle(Duration::from_secs(5)).await);
    let running = reqwest_status(&server).await;
    assert_eq!(running["requests_running"], 0);
    assert_eq!(running["buffered_bytes"], 0);
}

fn check(line: &Value, answers: &HashMap<String, (&str, Option<String>)>, seed: u64) {
    let attempts = line["attempts"].as_array().unwrap();
    assert!(attempts.len() <= MAX_ATTEMPTS, "{line} (seed {seed})");
    let (asked, served) = &answers[line["request_id"].as_str().unwrap()];
    for attempt in attempts {
        let target = attempt["target"].as_str().unwrap();
        assert!(*asked == "dear" || target != "p/sim-dear", "climbed: {line} (seed {seed})");
    }
    if let Some(served) = served {
        assert!(*asked == "dear" || served != "dear", "climbed: {line} (seed {seed})");
    }
    // After a 429, never the same target again within the request.
    for (at, attempt) in attempts.iter().enumerate() {
        if attempt["outcome"] == "rate_limited" {
            let again = attempts[at + 1..].iter().any(|later| later["target"] == attempt["target"]);
            assert!(!again, "{line} (seed {seed})");
        }
    }
}

async fn reqwest_status(server: &Server) -> Value {
    let answer = client().get(server.admin_url("/status")).bearer_auth(ADMIN_TOKEN).send().await;
    answer.unwrap().json().await.unwrap()
}

/// Primary rate limited for a weekend's traffic, the dear model in the file: the spend stays in
/// the cheap tier, because nothing can climb.
#[tokio::test]
async fn the_2300_dollar_weekend_stays_cheap() {
    let provider = provider();
    let base = provider.base();
    let config = |fallbacks: &str| {
        format!(
            "{}providers: {{ p: {{ dialect: openai, base_url: \"{base}/v1\" }} }}\nmodels:\n  \
             deepseek-chat: {{ targets: [ {{ provider: p, model: sim-deepseek, price: {{ input: 0.27, output: 1.10 }} }} ], fallbacks: [{fallbacks}] }}\n  \
             mini: {{ targets: [ {{ provider: p, model: sim-mini, price: {{ input: 0.15, output: 0.60 }} }} ] }}\n  \
             gpt-4o: {{ targets: [ {{ provider: p, model: sim-4o, price: {{ input: 2.50, output: 10 }} }} ] }}\n",
            head()
        )
    };
    provider.set_default("sim-deepseek", Script::status(429).header("retry-after", "3600"));
    let server = Server::start(&config("mini"));
    for _ in 0..100 {
        let sent = client()
            .post(server.url("/v1/chat/completions"))
            .bearer_auth(KEY)
            .json(&chat("deepseek-chat"));
        assert_eq!(sent.send().await.unwrap().headers()["x-tollbar-model"], "mini");
    }
    let dear = provider.requests().iter().filter(|r| r.json()["model"] == "sim-4o").count();
    assert_eq!(dear, 0);
    assert_eq!(server.metric("tollbar_cost_usd_total{model=\"sim-4o\"").await, 0.0);

    let scratch = Scratch::new();
    std::fs::write(
        scratch.0.join("tollbar.yaml"),
        config("gpt-4o").replace(r#"["*"]"#, r#"["*", "nothing-*"]"#),
    )
    .unwrap();
    let checked = tollbar(&["check"], &scratch.0);
    assert_eq!(checked.status.code(), Some(1));
    let warned = String::from_utf8(checked.stdout).unwrap();
    assert!(warned.contains("`nothing-*` matches no model"), "{warned}");
    let told = String::from_utf8(checked.stderr).unwrap();
    for part in ["deepseek-chat", "gpt-4o", "$0.27", "$2.50", "9.2x"] {
        assert!(told.contains(part), "{part} is missing: {told}");
    }
}
