//! Everything that can go wrong, at once, panics of our own among it: nothing stays held, and the
//! books agree with each other and with the provider.

use crate::support::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::{Cut, Provider, Recorded, Script};

const REQUESTS: usize = 3000;
const AT_ONCE: usize = 40;

/// Nano-dollars a token: $1 and $2 per million.
const IN: u64 = 1_000;
const OUT: u64 = 2_000;

/// A budget and limits on every scope there is; `limits` are those of each.
fn config(provider: &Provider, limits: &str) -> String {
    let base = provider.base();
    let scope = format!("limits: {{ {limits} }}, budgets: [ {{ usd: 1000, per: total }} ]");
    let model = |name: &str, at: &str, rest: &str| {
        format!(
            "  {name}: {{ {scope}, first_token_timeout: 200ms{rest}, targets: [ {{ provider: {at}, model: sim-{name}, price: {{ input: 1, output: 2 }} }} ] }}\n"
        )
    };
    format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"{base}/v1\", {scope} }}\n  \
         drains: {{ dialect: openai, base_url: \"{base}/v1\", on_disconnect: drain, {scope} }}\n\
         breaker: {{ failures: 100000 }}\nattempts: {{ same_target: 1 }}\n\
         users: {{ ana: {{ {scope} }} }}\nteams: {{ red: {{ {scope} }} }}\nglobal: {{ {scope} }}\n\
         models:\n{}{}{}",
        head().replace("unlimited: true", &format!("team: red, user: ana, {scope}")),
        model("calm", "p", ""),
        model("messy", "drains", ", fallbacks: [spare]"),
        model("spare", "p", ""),
    )
}

fn fault(rng: &mut StdRng) -> Script {
    match rng.random_range(0..16) {
        0 => Script::status(500),
        1 => Script::status(429).header("retry-after-ms", "5"),
        2 => Script::status(400),
        3 => Script { cut: Some(Cut::Headers), ..Script::default() },
        4 => Script { cut: Some(Cut::After(rng.random_range(0..4))), ..Script::default() },
        5 => Script { truncate: true, ..Script::default() },
        6 => Script { delay_ms: 300, ..Script::default() },
        7 => Script { omit_usage: true, ..Script::default() },
        8 => Script { error_event: Some(2), ..Script::default() },
        _ => Script { gap_ms: rng.random_range(0..4), ..Script::default() },
    }
}

fn body(rng: &mut StdRng, model: &str) -> Value {
    let text = "x".repeat(rng.random_range(1..200));
    json!({"model": model, "stream": rng.random::<bool>(), "max_tokens": rng.random_range(1..20),
        "messages": [{"role": "user", "content": text}]})
}

/// What the provider bills for a request that it has answered whole: a token for every four bytes
/// of the prompt, and sixteen words of output unless fewer were asked for.
fn billed_for(request: &Recorded) -> u64 {
    let body = request.json();
    let prompt = body["messages"][0]["content"].as_str().unwrap().len() as u64;
    prompt.div_ceil(4) * IN + body["max_tokens"].as_u64().unwrap().min(16) * OUT
}

/// Sends one, and leaves early if told to.
async fn send(http: reqwest::Client, url: String, body: Value, patience: Option<Duration>) {
    let whole = async {
        let Ok(answer) = http.post(url).bearer_auth(KEY).json(&body).send().await else { return };
        let _ = answer.bytes().await;
    };
    match patience {
        Some(patience) => drop(tokio::time::timeout(patience, whole).await),
        None => whole.await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_nothing_stays_held_and_the_books_agree() {
    let seed: u64 =
        std::env::var("CHAOS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("CHAOS_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let provider = provider();
    for model in ["sim-messy", "sim-spare"] {
        provider.script(model, (0..REQUESTS * 3).map(|_| fault(&mut rng)).collect());
    }
    let panics = "inspect:0.02,attempt:0.02,relay:0.005,settle:0.02";
    let vars = [("TOLLBAR_TEST_PANICS", panics), ("RUST_BACKTRACE", "0")];
    let server = Server::start_with(&config(&provider, "parallel: 1000"), &vars);
    let clients = [client(), h2_client()];
    for batch in 0..REQUESTS / AT_ONCE {
        let sent = (0..AT_ONCE).map(|n| {
            let model = if rng.random_range(0..3) == 0 { "calm" } else { "messy" };
            let leaves = rng.random_range(0..5) == 0;
            let patience = leaves.then(|| Duration::from_millis(rng.random_range(0..30)));
            let (http, url) = (clients[n % 2].clone(), server.url("/v1/chat/completions"));
            tokio::spawn(send(http, url, body(&mut rng, model), patience))
        });
        let sent: Vec<_> = sent.collect();
        if batch % 10 == 5 {
            reload(&server, &config(&provider, &format!("parallel: {}", 1000 + batch))).await;
        }
        for one in sent {
            one.await.unwrap();
        }
    }
    at_rest(&server, &provider).await;
    let ledger = books_agree(&server).await;
    provider_agrees(&server, &provider, &ledger).await;
    places_are_free(&server, &provider).await;
}

async fn reload(server: &Server, config: &str) {
    std::fs::write(server.config_file(), config).unwrap();
    let request = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
    assert_eq!(request.send().await.unwrap().status(), 200);
}

/// Waits for the last request to end, and sees that nothing is left of any.
async fn at_rest(server: &Server, provider: &Provider) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let status = admin(server, "/status").await;
        if status["requests_running"] == 0 && status["buffered_bytes"] == 0 {
            break;
        }
        assert!(Instant::now() < until, "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(provider.wait_idle(Duration::from_secs(10)).await);
    for model in ["sim-calm", "sim-messy", "sim-spare"] {
        let metric = format!("tollbar_inflight{{model=\"{model}\"");
        assert_eq!(server.metric(&metric).await, 0.0, "{model}");
    }
    at_zero(server, "tollbar_buffered_bytes").await;
}

/// Ledger sum = what every scope has spent = metric; nothing is held. Returns the ledger.
async fn books_agree(server: &Server) -> Vec<Value> {
    let until = Instant::now() + Duration::from_secs(20);
    let sum = loop {
        let sum = cost(&admin(server, "/spend").await["data"][0]);
        if sum == spent(server).await["global"] {
            break sum;
        }
        assert!(Instant::now() < until, "{sum} are in the ledger: {:?}", spent(server).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let spent = spent(server).await;
    for scope in ["key", "user", "team", "provider", "model", "global"] {
        assert_eq!(spent.get(scope), Some(&sum), "{scope}: {spent:?}");
    }
    let request = client().get(server.admin_url("/metrics")).send().await.unwrap();
    let metrics = request.text().await.unwrap();
    let lines = metrics.lines().filter(|line| line.starts_with("tollbar_cost_usd_total{"));
    let metric: f64 =
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
    assert_eq!((metric * 1e9).round() as u64, sum, "the metric says something else");
    let rows = admin(server, "/requests?limit=10000").await["data"].as_array().unwrap().clone();
    assert_eq!(rows.iter().map(cost).sum::<u64>(), sum);
    rows
}

/// What each kind of scope has spent, in nano-dollars; nothing may be held.
async fn spent(server: &Server) -> HashMap<String, u64> {
    let mut sums = HashMap::new();
    for account in admin(server, "/budgets").await["data"].as_array().unwrap() {
        assert_eq!(account["held_usd"].as_f64(), Some(0.0), "{account}");
        let kind = account["scope"].as_str().unwrap().to_owned();
        *sums.entry(kind).or_default() += nano(&account["spent_usd"].to_string());
    }
    sums
}

/// Answers that came whole, with their usage, cost exactly what the provider billed for them, also
/// where they were drained. All others together (cut, abandoned, unreported, unanswered, lost in a panic) are estimated, and
/// not below what was billed for them.
async fn provider_agrees(server: &Server, provider: &Provider, ledger: &[Value]) {
    let by_seq: HashMap<String, Recorded> =
        provider.requests().into_iter().map(|r| (format!("req_sim{}", r.seq), r)).collect();
    let log: Vec<Value> =
        server.stdout().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let by_id: HashMap<&str, &Value> =
        log.iter().map(|line| (line["request_id"].as_str().unwrap(), line)).collect();
    let (mut exact, mut outcomes, mut seen) = (0, HashMap::<String, u64>::new(), HashSet::new());
    let mut exact_drained = 0;
    for row in ledger {
        let outcome = row["outcome"].as_str().unwrap();
        *outcomes.entry(outcome.to_owned()).or_default() += 1;
        let drained = outcome == "client_gone" && row["provider"] == "drains";
        if !(outcome == "ok" || drained) || row["usage_source"] != "reported" {
            continue;
        }
        exact_drained += u64::from(drained);
        let line = by_id[row["request_id"].as_str().unwrap()];
        let upstream = line["upstream_request_id"].as_str().unwrap();
        assert!(seen.insert(upstream.to_owned()), "{upstream} was booked twice");
        let request = &by_seq[upstream];
        assert!(request.finished_at.is_some(), "{row}");
        assert_eq!(cost(row), billed_for(request), "{row}");
        exact += cost(row);
    }
    println!("{outcomes:?}; exact ${:.9}, {exact_drained} drained", exact as f64 / 1e9);
    assert!(exact_drained > 5);
    for outcome in ["ok", "lost", "client_gone", "interrupted", "error_status", "rate_limited"] {
        assert!(outcomes.get(outcome).is_some_and(|n| *n > 5), "few {outcome}: {outcomes:?}");
    }
    let billed = provider.billed();
    let billed = billed.input_tokens * IN + billed.output_tokens * OUT;
    let all: u64 = ledger.iter().map(cost).sum();
    assert!(exact * 3 > billed, "too little of ${billed} nano is compared exactly: {exact}");
    assert!(all - exact >= billed - exact, "{} booked, {} billed", all - exact, billed - exact);
    assert!(all > exact);
}

/// With one place left on every scope, a request still finds it: no place was lost.
async fn places_are_free(server: &Server, provider: &Provider) {
    provider.reset_scripts();
    reload(server, &config(provider, "parallel: 1")).await;
    for model in ["calm", "messy", "spare"] {
        let until = Instant::now() + Duration::from_secs(10);
        let mut last = String::new();
        loop {
            assert!(Instant::now() < until, "a place of {model} is gone: {last}");
            let mut body = chat(model);
            body["max_tokens"] = 5.into();
            let url = server.url("/v1/chat/completions");
            // One that panics is tried again.
            let Ok(answer) = client().post(url).bearer_auth(KEY).json(&body).send().await else {
                continue;
            };
            if answer.status() == 200 {
                break;
            }
            last = answer.text().await.unwrap_or_default();
        }
    }
}
