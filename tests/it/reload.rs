//! Reload swaps everything in one step and drops nobody; a drain ends when the last one does.

use crate::support::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::{Gate, Provider, Script};

/// Linux's, on the machines that we build for.
const O_NONBLOCK: i32 = 0o4000;

async fn reload(server: &Server) -> (u16, Value) {
    let request = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn status(server: &Server) -> Value {
    let request = client().get(server.admin_url("/status")).bearer_auth(ADMIN_TOKEN);
    request.send().await.unwrap().json().await.unwrap()
}

/// Written beside and renamed: a reload must not see half a file.
fn write(server: &Server, text: &str) {
    let new = server.scratch.0.join("new.yaml");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, server.config_file()).unwrap();
}

async fn generation(server: &Server) -> u64 {
    server.metric("tollbar_config_generation").await as u64
}

const STREAMS: usize = 200;
const RELOADS: u64 = 50;

/// How many rotations a virtual key, and the provider's key, outlive their own.
const KEPT: u64 = 3;

/// The virtual keys of this rotation and the last ones before it, the provider's key of this one.
fn rotation(provider: &Provider, n: u64) -> String {
    let mut keys = String::new();
    for k in n.saturating_sub(KEPT)..=n {
        keys += &format!(
            "  - {{ id: k{k}, hash: \"{}\", models: [\"*\"], unlimited: true }}\n",
            hash(&format!("vk-{k}"))
        );
    }
    // The first target turns everybody away after a while, and is free again at once.
    let models = model("ok", "sim-ok+delay=5", "")
        + &model("busy", "sim-busy+status=429+retry-after-ms=1+delay=40", ", fallbacks: [ok]");
    config_of(&head_with("threads: 2", &keys), provider, "", &models)
        .replace("sk-provider", &format!("pk-{n}"))
}

/// What the clients and the reloading test tell each other.
#[derive(Default)]
struct Shared {
    /// The newest rotation whose reload has ended.
    newest: AtomicU64,
    running: Mutex<HashMap<u64, usize>>,
    /// When each request began, by its number, and the rotation that had ended then.
    began: Mutex<HashMap<u64, Instant>>,
    next: AtomicU64,
    stop: AtomicBool,
    served: AtomicUsize,
}

impl Shared {
    async fn client(&self, http: &reqwest::Client, url: &str, streamed: bool) {
        while !self.stop.load(SeqCst) {
            let (key, n) = {
                let mut running = self.running.lock().unwrap();
                let key = self.newest.load(SeqCst);
                *running.entry(key).or_default() += 1;
                let n = self.next.fetch_add(1, SeqCst);
                self.began.lock().unwrap().insert(n, Instant::now());
                (key, n)
            };
            let body = json!({"model": if n % 4 == 0 { "ok" } else { "busy" }, "stream": streamed, "user": format!("r{n}"),
                "messages": [{"role": "user", "content": "x"}]});
            let request =
                http.post(url).header("x-api-key", format!("vk-{key}")).body(body.to_string());
            let answer = request.send().await.unwrap_or_else(|e| panic!("request {n}: {e:?}"));
            let status = answer.status();
            let text = answer.text().await.unwrap();
            assert_eq!(status, 200, "request {n}: {text}");
            assert!(!streamed || text.ends_with("data: [DONE]\n\n"), "{text}");
            self.served.fetch_add(1, SeqCst);
            *self.running.lock().unwrap().get_mut(&key).unwrap() -= 1;
        }
    }

    fn runs(&self, key: u64) -> bool {
        self.running.lock().unwrap().get(&key).is_some_and(|n| *n > 0)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_rotations_under_load_fail_nobody_and_leave_no_old_credential() {
    let provider = provider();
    let server = std::sync::Arc::new(Server::start(&rotation(&provider, 0)));
    provider.accept_keys(vec!["pk-0".to_owned()]);
    let shared = std::sync::Arc::new(Shared::default());
    let clients: Vec<_> = (0..STREAMS)
        .map(|i| {
            let (shared, url) = (shared.clone(), server.url("/v1/chat/completions"));
            let http = if i % 2 == 0 { client() } else { h2_client() };
            tokio::spawn(async move { shared.client(&http, &url, i % 3 == 0).await })
        })
        .collect();
    // When the reload of each rotation had ended for certain.
    let mut ended = vec![Instant::now()];
    for n in 1..=RELOADS {
        // A key goes away: those who use it come first.
        eventually(Duration::from_secs(30), || n <= KEPT || !shared.runs(n - KEPT - 1)).await;
        provider.accept_keys((n.saturating_sub(KEPT)..=n).map(|k| format!("pk-{k}")).collect());
        write(&server, &rotation(&provider, n));
        if n % 2 == 0 {
            assert_eq!(reload(&server).await, (200, json!({"generation": n + 1})));
        } else {
            server.signal("HUP");
            let until = Instant::now() + Duration::from_secs(20);
            while generation(&server).await != n + 1 {
                assert!(Instant::now() < until, "no reload on SIGHUP");
            }
        }
        ended.push(Instant::now());
        shared.newest.store(n, SeqCst);
    }
    shared.stop.store(true, SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    check_credentials(&provider, &shared, &ended);
    assert_eq!(server.metric("tollbar_config_reloads_total{result=\"ok\"}").await, RELOADS as f64);
    assert!(shared.served.load(SeqCst) > 2 * STREAMS, "{:?}", shared.served);
    assert_eq!(server.metric("tollbar_provider_auth_failures_total").await, 0.0);
    let info = format!(
        "tollbar_credential_info{{fingerprint=\"{}\"",
        &hash(&format!("pk-{RELOADS}"))[7..15]
    );
    assert_eq!(server.metric(&info).await, 1.0, "{info}");
}

/// No attempt carries a credential older than the last reload that had ended before it began.
/// A first attempt began after its client did, a second one after the first one's answer.
fn check_credentials(provider: &Provider, shared: &Shared, ended: &[Instant]) {
    let began = shared.began.lock().unwrap();
    let mut before: HashMap<u64, Instant> = HashMap::new();
    let (mut first, mut second) = (0, 0);
    for request in provider.requests() {
        let user = request.json()["user"].as_str().unwrap().to_owned();
        let n: u64 = user.trim_start_matches('r').parse().unwrap();
        let key = request.header("authorization").unwrap();
        let key: usize = key.trim_start_matches("Bearer pk-").parse().unwrap();
        let not_before = before.get(&n).copied().unwrap_or(began[&n]);
        *(if before.contains_key(&n) { &mut second } else { &mut first }) += 1;
        let newest = ended.iter().rposition(|at| *at <= not_before).unwrap_or(0);
        assert!(key >= newest, "request {n} used pk-{key} although rotation {newest} had ended");
        before.insert(n, request.finished_at.unwrap());
    }
    assert!(first > 2 * STREAMS && second > STREAMS, "{first} first, {second} second attempts");
}

/// A request whose key is taken away while its first attempt runs gets no second one.
#[tokio::test]
async fn a_revoked_key_starts_no_further_attempt() {
    let provider = provider();
    let models = model("ok", "sim-ok", "") + &model("busy", "sim-busy", ", fallbacks: [ok]");
    let extra = |key: &str| {
        format!("  - {{ id: extra, hash: \"{}\", models: [\"*\"], unlimited: true }}\n", hash(key))
    };
    let text = |keys: &str| config_of(&head_with("threads: 2", keys), &provider, "", &models);
    let server = Server::start(&text(&extra("vk-going")));
    for stream in [false, true] {
        write(&server, &text(&extra("vk-going")));
        reload(&server).await;
        provider.clear();
        let gate = Gate::new();
        let script = Script {
            gate: Some(gate.clone()),
            ..Script::status(429).header("retry-after-ms", "1")
        };
        provider.script("sim-busy", vec![script]);
        let body = if stream { chat_stream("busy") } else { chat("busy") };
        let request =
            client().post(server.url("/v1/chat/completions")).header("api-key", "vk-going");
        let waiting = tokio::spawn(request.body(body.to_string()).send());
        assert!(provider.wait_for(1, Duration::from_secs(10)).await);
        write(&server, &text(""));
        assert_eq!(reload(&server).await.0, 200);
        gate.open();
        let answer = waiting.await.unwrap().unwrap();
        assert_eq!(answer.status(), 401);
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["code"], "key_revoked");
        assert!(error["error"]["message"].as_str().unwrap().contains("extra"));
        assert_eq!(provider.requests().len(), 1, "no attempt after the key was gone");
        let again = client().post(server.url("/v1/chat/completions")).header("api-key", "vk-going");
        let again = again.body(chat("ok").to_string()).send().await.unwrap();
        assert_eq!(again.status(), 401);
    }
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_told() {
    let provider = provider();
    let good = config_of(&head(), &provider, "", &model("gpt", "sim-gpt", ""));
    let server = Server::start(&good);
    let secret = "sk-provider";
    let broken = [
        good.replace("models:\n  \"gpt\"", "modles:\n  \"gpt\""),
        "listeners: [\n  { address: ".to_owned(),
        String::new(),
        good.replace("price: { input: 1, output: 2 }", "weight: 1"),
        good.replace("provider: p,", "provider: q,"),
        good.replace("threads: 2", "threads: 3"),
        good.replace("address: 127.0.0.1:0", "address: 127.0.0.1:1"),
    ];
    let refused = "tollbar_config_reloads_total{result=\"refused\"}";
    for (n, text) in broken.iter().enumerate() {
        write(&server, text);
        let (code, answer) = reload(&server).await;
        assert_eq!(code, 400, "{text}: {answer}");
        let problems = answer["error"]["problems"].as_array().unwrap();
        assert!(
            !problems.is_empty()
                && problems.iter().all(|p| p.as_str().is_some_and(|p| p.len() > 10)),
            "{answer}"
        );
        assert!(!answer.to_string().contains(secret));
        let status = status(&server).await;
        assert_eq!(status["generation"], 1);
        assert_eq!(&status["last_reload_problems"], &answer["error"]["problems"]);
        assert_eq!(server.metric(refused).await, (n + 1) as f64);
        assert_eq!(server.metric("tollbar_config_reload_ok").await, 0.0);
        assert_eq!(generation(&server).await, 1);
        let answer =
            post(&client(), server.url("/v1/chat/completions"), chat("gpt").to_string()).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-tollbar-config"]),
            (200, &"1".parse().unwrap())
        );
    }
    server.signal("HUP");
    let until = Instant::now() + Duration::from_secs(10);
    while server.metric(refused).await < (broken.len() + 1) as f64 {
        assert!(Instant::now() < until, "SIGHUP was not answered");
    }
    let told = || server.stderr().iter().any(|line| line.contains("reload refused"));
    eventually(Duration::from_secs(10), told).await;
    std::fs::remove_file(server.config_file()).unwrap();
    assert_eq!(reload(&server).await.0, 400);
    write(&server, &good);
    assert_eq!(reload(&server).await, (200, json!({"generation": 2})));
    assert_eq!(status(&server).await["last_reload_problems"], json!([]));
    assert_eq!(server.metric("tollbar_config_reload_ok").await, 1.0);
}

/// A configuration is kept as long as a request that began with it runs, and no longer: perhaps a
/// million keys would be kept with it.
#[tokio::test]
async fn what_was_in_force_before_is_freed() {
    let provider = provider();
    let good = config_of(&head(), &provider, "", &model("gpt", "sim-gpt", ""));
    let server = Server::start(&good);
    let gate = Gate::new();
    let script = Script { gate: Some(gate.clone()), ..Script::default() };
    provider.script("sim-gpt", vec![script]);
    let url = server.url("/v1/chat/completions");
    let waiting =
        tokio::spawn(async move { post(&client(), url, chat("gpt").to_string()).await.status() });
    assert!(provider.wait_for(1, Duration::from_secs(10)).await);
    let until = Instant::now() + Duration::from_secs(10);
    let left = async |n: u64| {
        while status(&server).await["old_configurations"] != n {
            assert!(Instant::now() < until, "{n} were to be left");
        }
    };
    for _ in 0..3 {
        assert_eq!(reload(&server).await.0, 200);
    }
    left(1).await;
    gate.open();
    assert_eq!(waiting.await.unwrap(), 200);
    left(0).await;
}

/// A reload that hangs, here on a secret that nobody writes, holds up nothing else.
#[tokio::test]
async fn a_reload_that_hangs_keeps_nobody_waiting() {
    let provider = provider();
    let good = config_of(&head(), &provider, "", &model("gpt", "sim-gpt", ""));
    let mut server = Server::start(&good);
    let pipe = server.scratch.0.join("secret");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    write(&server, &good.replace("sk-provider", &format!("file:{}", pipe.display())));
    server.signal("HUP");
    // Opening this end without waiting succeeds once the other one is being read.
    let until = Instant::now() + Duration::from_secs(10);
    let writer = loop {
        match OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&pipe) {
            Ok(writer) => break writer,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(status(&server).await["generation"], 1);
    let answer = post(&client(), server.url("/v1/chat/completions"), chat("gpt").to_string()).await;
    assert_eq!(answer.status(), 200);
    server.signal("TERM");
    let exit = server.wait_exit(Duration::from_secs(10)).expect("it ends all the same");
    assert_eq!(exit.code(), Some(0));
    drop(writer);
}

/// SIGTERM: what runs is finished, nothing new is taken, and the end comes with the last one.
#[tokio::test]
async fn a_drain_finishes_what_runs() {
    let provider = provider();
    let mut server = Server::start(&config_of(
        &head_with("threads: 2, drain: 60s", ""),
        &provider,
        "",
        &model("gpt", "sim-gpt", ""),
    ));
    let mut running = Vec::new();
    for http in [client(), h2_client()] {
        let gate = Gate::new();
        let script = Script { gate: Some(gate.clone()), chunks: Some(6), ..Script::default() };
        provider.script("sim-gpt", vec![script]);
        gate.release(1);
        let mut answer =
            post(&http, server.url("/v1/chat/completions"), chat_stream("gpt").to_string()).await;
        let first = answer.chunk().await.unwrap().unwrap();
        running.push((http, gate, answer, first.to_vec()));
    }
    assert_eq!(client().get(server.url("/healthz")).send().await.unwrap().status(), 200);
    assert_eq!(client().get(server.admin_url("/readyz")).send().await.unwrap().status(), 200);
    // A request of which half the header has come.
    let mut half = Raw::connect(server.data[0]).await;
    half.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n").await;
    server.signal("TERM");
    let until = Instant::now() + Duration::from_secs(10);
    while client().get(server.admin_url("/readyz")).send().await.unwrap().status() != 503 {
        assert!(Instant::now() < until, "not draining");
    }
    let new = client()
        .post(server.url("/v1/chat/completions"))
        .bearer_auth(KEY)
        .body(chat("gpt").to_string());
    match new.send().await {
        Err(error) => assert!(error.is_connect(), "{error:?}"),
        Ok(answer) => assert_eq!(answer.status(), 503),
    }
    half.send(b"\r\n").await;
    if let Some((code, ..)) = half.answer().await {
        assert_eq!(code, 503);
    }
    assert!(server.wait_exit(Duration::from_millis(300)).is_none(), "it must wait for its streams");
    for (_http, gate, mut answer, mut got) in running {
        gate.open();
        while let Some(more) = answer.chunk().await.unwrap() {
            got.extend_from_slice(&more);
        }
        assert!(got.ends_with(b"data: [DONE]\n\n"), "{}", String::from_utf8_lossy(&got));
    }
    let exit = server
        .wait_exit(Duration::from_secs(5))
        .expect("it ends with its last request, not with its patience");
    assert_eq!(exit.code(), Some(0));
    assert_eq!(
        server
            .log(3)
            .await
            .iter()
            .filter(|line| line["outcome"] == "ok" && line["stream"] == true)
            .count(),
        2
    );
    assert_eq!(provider.requests().len(), 2);
}

/// Past its grace a drain cuts what still runs, and says so to the client.
#[tokio::test]
async fn a_drain_has_an_end() {
    let provider = provider();
    let mut server = Server::start(&config_of(
        &head_with("threads: 2, drain: 500ms", ""),
        &provider,
        "",
        &model("gpt", "sim-gpt", ""),
    ));
    let gate = Gate::new();
    provider.set_default(
        "sim-gpt",
        Script { gate: Some(gate.clone()), chunks: Some(6), ..Script::default() },
    );
    gate.release(1);
    let mut answer =
        post(&client(), server.url("/v1/chat/completions"), chat_stream("gpt").to_string()).await;
    assert!(answer.chunk().await.unwrap().is_some());
    server.signal("TERM");
    let exit = server.wait_exit(Duration::from_secs(10)).expect("the drain is over");
    assert_eq!(exit.code(), Some(0));
    // Whatever comes now, it is no good end.
    let mut rest = Vec::new();
    while let Ok(Some(more)) = answer.chunk().await {
        rest.extend_from_slice(&more);
    }
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    assert!(provider.wait_idle(Duration::from_secs(5)).await);
}

/// A budget that a reload adds holds what runs already, and no request gets past that: whoever
/// charges it first, and whatever is charged then.
#[tokio::test]
async fn a_budget_that_a_reload_adds_holds_what_runs() {
    let budgets = "{ budgets: [ { usd: 0.0035, per: day } ] }";
    added(&format!("global: {budgets}\n")).await;
    // Before, nobody but the key named its user.
    added(&format!("users: {{ ana: {budgets} }}\n")).await;
}

async fn added(scope: &str) {
    let provider = provider();
    let config = |more: &str| {
        let head = head().replace("unlimited: true", "unlimited: true, user: ana");
        let models = model("gpt", "sim-gpt", ", max_output_tokens: 1000");
        format!("{}{more}", config_of(&head, &provider, "", &models))
    };
    let server = Server::start(&config(""));
    let gate = Gate::new();
    let script = Script { gate: Some(gate.clone()), chunks: Some(6), ..Script::default() };
    provider.script("sim-gpt", vec![script]);
    gate.release(1);
    let http = client();
    let url = server.url("/v1/chat/completions");
    let mut running = post(&http, url.clone(), chat_stream("gpt").to_string()).await;
    assert!(running.chunk().await.unwrap().is_some());
    // An answer costs up to $0.002 and what its prompt is: one fits, two don't.
    write(&server, &config(&format!("{scope}admission: {{ wait: 0s }}\n")));
    assert_eq!(reload(&server).await.0, 200);
    let refused = post(&http, url.clone(), chat("gpt").to_string()).await;
    assert_eq!(refused.status(), 429, "{}", refused.text().await.unwrap());
    let held = refused.headers()["x-tollbar-budget-held-usd"].to_str().unwrap();
    assert!(nano(held) > 2_000_000, "{held}");
    gate.open();
    assert!(running.text().await.unwrap().ends_with("[DONE]\n\n"));
    server.log(2).await;
    let answer = post(&http, url, chat("gpt").to_string()).await;
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    let budgets = admin(&server, "/budgets").await;
    assert_eq!(nano(&budgets["data"][0]["held_usd"].to_string()), 0, "{budgets}");
    assert!(nano(&budgets["data"][0]["spent_usd"].to_string()) > 0, "{budgets}");
}

/// What still runs while the process ends goes by the newest configuration, too; and who is in a
/// hurry doesn't wait for it.
#[tokio::test]
async fn a_drain_hears_of_a_reload_and_of_a_hurry() {
    let provider = provider();
    let models = model("gpt", "sim-gpt", ", fallbacks: [spare]") + &model("spare", "sim-spare", "");
    let config = |key: &str| {
        let head = head_with("threads: 2, drain: 60s", "").replace(&hash(KEY), &hash(key));
        config_of(&head, &provider, "", &models)
    };
    let mut server = Server::start(&config(KEY));
    let gate = Gate::new();
    provider.set_default("sim-gpt", Script { gate: Some(gate.clone()), ..Script::status(503) });
    let ask = || {
        let url = server.url("/v1/chat/completions");
        tokio::spawn(async move { post(&client(), url, chat("gpt").to_string()).await })
    };
    let (runs, hangs) = (ask(), ask());
    assert!(provider.wait_for(2, Duration::from_secs(10)).await);
    server.signal("TERM");
    eventually(Duration::from_secs(10), || server.stderr().join("").contains("draining:")).await;
    write(&server, &config("tb-another-key-0000000000000"));
    server.signal("HUP");
    let reloaded = || server.stderr().join("").contains("configuration reloaded: generation 2");
    eventually(Duration::from_secs(10), reloaded).await;
    gate.release(1);
    let refused = tokio::select! { answer = runs => answer, answer = hangs => answer }.unwrap();
    assert_eq!(refused.status(), 401, "{}", refused.text().await.unwrap());
    server.signal("INT");
    let exit = server.wait_exit(Duration::from_secs(20)).expect("nobody waits for the other one");
    assert_eq!(exit.code(), Some(0));
}
