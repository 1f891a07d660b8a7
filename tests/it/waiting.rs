//! While a request waits for its attempt to start, the world goes on.

use crate::downstream::{certificate, tls_provider};
use crate::raw::Raw;
use crate::support::*;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tollbar_loadtest::provider::{Gate, Provider, Script};

const SOON: Duration = Duration::from_secs(10);

/// An answer costs up to $0.002 and what its prompt is, and the key has $0.003: one at a time.
fn config(provider: &Provider, key: &str, more: &str) -> String {
    let head = head().replace("unlimited: true", key);
    let models = [
        model("gpt", "sim-gpt", ", max_output_tokens: 1000, fallbacks: [spare]"),
        model("spare", "sim-spare", ", max_output_tokens: 1000"),
    ];
    format!("{}{more}", config_of(&head, provider, "", &models.concat()))
}

const POOR: &str = "budgets: [ { usd: 0.003, per: day } ]";
const WAIT: &str = "admission: { wait: 20s }\n";

async fn write_and_reload(server: &Server, config: &str) {
    std::fs::write(server.config_file(), config).unwrap();
    let request = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
    assert_eq!(request.send().await.unwrap().status(), 200);
}

fn ask(server: &Server) -> JoinHandle<reqwest::Response> {
    let url = server.url("/v1/chat/completions");
    tokio::spawn(async move { post(&client(), url, chat("gpt").to_string()).await })
}

/// One request that runs until its gate is opened, and a second one that waits for it.
async fn one_waits(
    server: &Server,
    provider: &Provider,
) -> (Gate, JoinHandle<reqwest::Response>, JoinHandle<reqwest::Response>) {
    let gate = Gate::new();
    provider.script("sim-gpt", vec![Script { gate: Some(gate.clone()), ..Script::default() }]);
    let runs = ask(server);
    assert!(provider.wait_for(1, SOON).await);
    let waits = ask(server);
    somebody_waits(server, 1).await;
    (gate, runs, waits)
}

async fn somebody_waits(server: &Server, how_many: usize) {
    let waiting = format!("\"waiting\":{how_many},");
    for _ in 0..500 {
        if admin(server, "/budgets").await.to_string().contains(&waiting) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody waits");
}

#[tokio::test]
async fn a_key_that_is_revoked_meanwhile_is_refused() {
    let provider = provider();
    let server = Server::start(&config(&provider, POOR, WAIT));
    let (gate, runs, waits) = one_waits(&server, &provider).await;
    let other =
        config(&provider, POOR, WAIT).replace(&hash(KEY), &hash("tb-another-key-0000000000000"));
    write_and_reload(&server, &other).await;
    gate.open();
    assert_eq!(runs.await.unwrap().status(), 200, "it ran already");
    let refused = waits.await.unwrap();
    assert_eq!(refused.status(), 401, "{}", refused.text().await.unwrap());
    assert_eq!(provider.requests().len(), 1);
    let budgets = admin(&server, "/budgets").await;
    for row in budgets["data"].as_array().unwrap() {
        assert_eq!(nano(&row["held_usd"].to_string()), 0, "{budgets}");
    }
}

#[tokio::test]
async fn a_budget_that_is_added_meanwhile_holds() {
    let provider = provider();
    let server = Server::start(&config(&provider, POOR, WAIT));
    let (gate, runs, waits) = one_waits(&server, &provider).await;
    let more = format!("{WAIT}global: {{ budgets: [ {{ usd: 0.001, per: day }} ] }}\n");
    write_and_reload(&server, &config(&provider, POOR, &more)).await;
    gate.open();
    assert_eq!(runs.await.unwrap().status(), 200);
    let refused = waits.await.unwrap();
    assert_eq!(refused.status(), 429);
    let text = refused.text().await.unwrap();
    assert!(text.contains("the whole gateway"), "{text}");
    assert_eq!(provider.requests().len(), 1);
}

/// A budget that is raised, or taken away, bars nobody any more, and its waiters least.
#[tokio::test]
async fn who_waits_goes_by_the_budget_of_now() {
    for now in ["unlimited: true", "budgets: [ { usd: 1, per: day } ]"] {
        let provider = provider();
        let server = Server::start(&config(&provider, POOR, WAIT));
        let (gate, runs, waits) = one_waits(&server, &provider).await;
        write_and_reload(&server, &config(&provider, now, WAIT)).await;
        let answer = tokio::time::timeout(SOON, waits).await;
        assert_eq!(answer.expect("it still waits").unwrap().status(), 200, "{now}");
        assert_eq!(ask(&server).await.unwrap().status(), 200, "{now}");
        gate.open();
        assert_eq!(runs.await.unwrap().status(), 200);
        let refused = server.metric("tollbar_budget_refused_total").await;
        assert_eq!(refused, 0.0, "nobody was refused");
    }
}

/// A target whose budget was used up is asked after all, if that has changed while the next one was
/// waited for.
#[tokio::test]
async fn who_waits_goes_back_to_a_target_that_may_do_now() {
    let provider = provider();
    let config = |p: &str, q: &str| {
        let base = provider.base();
        // As good as always the first.
        let target = |name, weight| {
            format!(
                "{{ provider: {name}, model: sim-gpt, weight: {weight}, price: {{ input: 1, output: 2 }} }}"
            )
        };
        format!(
            "{}{WAIT}providers:\n  p: {{ dialect: openai, base_url: \"{base}/v1\"{p} }}\n\
             {q}models:\n  gpt: {{ targets: [ {}{} ], max_output_tokens: 1000 }}\n",
            head(),
            target("p", 1000),
            if q.is_empty() { String::new() } else { format!(", {}", target("q", 1)) },
        )
    };
    let little = ", budgets: [ { usd: 0.000001, per: day } ]";
    let q = format!("  q: {{ dialect: openai, base_url: \"{}/v1\", {POOR} }}\n", provider.base());
    let server = Server::start(&config(little, &q));
    let (gate, runs, waits) = one_waits(&server, &provider).await;
    write_and_reload(&server, &config("", "")).await;
    let answer = tokio::time::timeout(SOON, waits).await.expect("it still waits").unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    gate.open();
    assert_eq!(runs.await.unwrap().status(), 200);
}

/// Who waits pays as the key of now does: budgets, ledger and metrics name the same team.
#[tokio::test]
async fn a_key_that_changes_its_team_meanwhile_pays_from_the_new_one() {
    let provider = provider();
    let old = format!("team: old, {POOR}");
    let new = "team: new, budgets: [ { usd: 1, per: day } ]";
    let teams = "teams: { old: { budgets: [ { usd: 5, per: day } ] }, \
                 new: { budgets: [ { usd: 5, per: day } ] } }\n";
    let more = format!("{WAIT}{teams}");
    let server = Server::start(&config(&provider, &old, &more));
    let (gate, runs, waits) = one_waits(&server, &provider).await;
    write_and_reload(&server, &config(&provider, new, &more)).await;
    assert_eq!(waits.await.unwrap().status(), 200);
    gate.open();
    assert_eq!(runs.await.unwrap().status(), 200);
    for team in ["old", "new"] {
        // The ledger's rows come a moment later.
        let (mut spent, mut sum) = (Value::Null, 0);
        for _ in 0..100 {
            spent = admin(&server, &format!("/spend?team={team}")).await;
            sum = spent["data"].as_array().unwrap().iter().map(cost).sum();
            if sum > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let budgets = admin(&server, "/budgets").await;
        let row = budgets["data"].as_array().unwrap().iter().find(|row| row["id"] == team).unwrap();
        assert!(sum > 0, "{spent}");
        assert_eq!(nano(&row["spent_usd"].to_string()), sum, "{team}: {budgets} {spent}");
    }
}

#[tokio::test]
async fn who_leaves_gives_its_place_back_and_pays_nothing() {
    let provider = provider();
    let limits = format!("{POOR}, limits: {{ parallel: 2, rpm: 2 }}");
    let server = Server::start(&config(&provider, &limits, WAIT));
    let (gate, runs, waits) = one_waits(&server, &provider).await;
    waits.abort();
    let line = server.log(1).await.pop().unwrap();
    assert_eq!((&line["status"], &line["client_gone"]), (&499.into(), &true.into()), "{line}");
    // Its place is free: another one waits now, and is served.
    let third = ask(&server);
    gate.open();
    assert_eq!(runs.await.unwrap().status(), 200);
    assert_eq!(third.await.unwrap().status(), 200);
    assert_eq!(provider.requests().len(), 2);
    let id = line["request_id"].as_str().unwrap().to_owned();
    let requests = admin(&server, &format!("/requests?request_id={id}")).await;
    assert_eq!(requests["data"].as_array().map(Vec::len), Some(0), "{requests}");
}

/// Whoever leaves gives back what it had of the provider's limits, too.
#[tokio::test]
async fn who_leaves_takes_nothing_of_the_providers_limits() {
    let provider = provider();
    let text = config(&provider, POOR, WAIT).replacen(
        "api_key: sk-provider",
        "api_key: sk-provider, limits: { rpm: 2 }",
        1,
    );
    let server = Server::start(&text);
    let (gate, runs, waits) = one_waits(&server, &provider).await;
    waits.abort();
    server.log(1).await;
    gate.open();
    assert_eq!(runs.await.unwrap().status(), 200);
    let answer = ask(&server).await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
}

/// That the first target is drained is no reason to ask a second one for nobody.
#[tokio::test]
async fn who_leaves_a_drained_provider_has_no_second_attempt() {
    let provider = provider();
    let models = "  gpt: { targets: [ { provider: d, model: sim-gpt, price: { input: 1, output: 2 } } ], max_output_tokens: 1000, fallbacks: [spare] }\n".to_owned()
        + &model("spare", "sim-spare", ", max_output_tokens: 1000, budgets: [ { usd: 0.003, per: day } ]");
    let text = config_of(&head(), &provider, "", &models).replace(
        "providers:\n",
        &format!(
            "providers:\n  d: {{ dialect: openai, base_url: \"{}/v1\", on_disconnect: drain }}\n",
            provider.base()
        ),
    );
    let server = Server::start(&format!("{text}{WAIT}"));
    let gate = Gate::new();
    provider.script("sim-spare", vec![Script { gate: Some(gate.clone()), ..Script::default() }]);
    provider.set_default("sim-gpt", Script::status(500));
    let spare = tokio::spawn({
        let url = server.url("/v1/chat/completions");
        async move { post(&client(), url, chat("spare").to_string()).await }
    });
    assert!(provider.wait_for(1, SOON).await);
    let leaves = ask(&server);
    somebody_waits(&server, 1).await;
    leaves.abort();
    let line = server.log(1).await.pop().unwrap();
    assert_eq!(line["client_gone"], true, "{line}");
    gate.open();
    assert_eq!(spare.await.unwrap().status(), 200);
    let asked = provider.requests();
    let spared = asked.iter().filter(|request| request.json()["model"] == "sim-spare").count();
    assert_eq!(spared, 1, "{asked:?}");
}

/// `admission.wait` is the longest wait, however short it is.
#[tokio::test]
async fn a_short_wait_is_short() {
    let provider = provider();
    let server = Server::start(&config(&provider, POOR, "admission: { wait: 50ms }\n"));
    let gate = Gate::new();
    provider.script("sim-gpt", vec![Script { gate: Some(gate.clone()), ..Script::default() }]);
    let runs = ask(&server);
    assert!(provider.wait_for(1, SOON).await);
    let began = std::time::Instant::now();
    let refused = ask(&server).await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(began.elapsed() < Duration::from_millis(1_900), "{:?}", began.elapsed());
    gate.open();
    assert_eq!(runs.await.unwrap().status(), 200);
}

/// The time until the first token begins when the provider is asked.
#[tokio::test]
async fn a_wait_for_money_is_no_fault_of_the_provider() {
    let provider = provider();
    let text = config(&provider, POOR, WAIT)
        .replace("max_output_tokens: 1000", "max_output_tokens: 1000, first_token_timeout: 300ms");
    let server = Server::start(&text);
    let gate = Gate::new();
    // A stream that has begun: its own first token is there.
    let script = Script { gate: Some(gate.clone()), chunks: Some(6), ..Script::default() };
    provider.script("sim-gpt", vec![script]);
    gate.release(2);
    let mut runs =
        post(&client(), server.url("/v1/chat/completions"), chat_stream("gpt").to_string()).await;
    assert!(runs.chunk().await.unwrap().is_some());
    let waits = ask(&server);
    somebody_waits(&server, 1).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    gate.open();
    runs.text().await.unwrap();
    let answer = waits.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-tollbar-target"], "p/sim-gpt");
    assert_eq!(answer.headers()["x-tollbar-attempts"], "1");
}

/// A list of models that is cut short holds for the next attempt of a request that runs.
#[tokio::test]
async fn a_fallback_that_the_key_may_not_use_any_more_is_not_tried() {
    let provider = provider();
    let server = Server::start(&config(&provider, "unlimited: true", ""));
    let gate = Gate::new();
    provider.set_default("sim-gpt", Script { gate: Some(gate.clone()), ..Script::status(503) });
    let runs = ask(&server);
    assert!(provider.wait_for(1, SOON).await);
    let narrow =
        config(&provider, "unlimited: true", "").replace("models: [\"*\"]", "models: [gpt]");
    write_and_reload(&server, &narrow).await;
    gate.open();
    assert_eq!(runs.await.unwrap().status(), 502);
    let asked = provider.requests();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|request| request.json()["model"] == "sim-gpt"), "{asked:?}");
}

/// Somebody between the gateway and `to` who connects only when told, and tells who arrives.
async fn reluctant(
    to: std::net::SocketAddr,
) -> (u16, std::sync::Arc<tokio::sync::Notify>, tokio::sync::mpsc::UnboundedReceiver<()>) {
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let told = gate.clone();
    let (arrived, arrivals) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let told = told.clone();
            arrived.send(()).unwrap();
            tokio::spawn(async move {
                told.notified().await;
                let mut far = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (port, gate, arrivals)
}

/// Who leaves while a connection is being made pays nothing: nobody is asked for it.
#[tokio::test]
async fn who_leaves_before_the_connection_stands_is_not_sent() {
    let scratch = Scratch::new();
    certificate(&scratch.0, "tls", &["localhost"]);
    let provider = tls_provider(&scratch.0, "tls");
    let (port, gate, mut arrivals) = reluctant(provider.addr()).await;
    let server = Server::start(&format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"https://localhost:{port}/v1\", ca_file: {}, http2: never }}\nmodels:\n{}",
        head(),
        scratch.0.join("tls.crt").display(),
        model("gpt", "sim-gpt", "")
    ));
    let leaves = ask(&server);
    arrivals.recv().await.unwrap();
    leaves.abort();
    let _ = leaves.await;
    // Long enough for the gateway to think that the connection took long.
    tokio::time::sleep(Duration::from_millis(50)).await;
    gate.notify_one();
    let line = server.log(1).await.pop().unwrap();
    assert_eq!((&line["client_gone"], &line["status"]), (&true.into(), &499.into()), "{line}");
    assert!(provider.requests().is_empty(), "{:?}", provider.requests());
    assert_eq!(line["cost_usd"], "0.000000000", "{line}");
}

/// A provider that gets another address while it is being connected to: the new credential goes
/// to the new address only.
#[tokio::test]
async fn a_new_credential_is_not_for_the_old_address() {
    let scratch = Scratch::new();
    let _ = ["old", "new"].map(|name| certificate(&scratch.0, name, &["localhost"]));
    let [old, new] = ["old", "new"].map(|name| tls_provider(&scratch.0, name));
    let (port, gate, mut arrivals) = reluctant(old.addr()).await;
    let config = |port: u16, key: &str, root: &str| {
        format!(
            "{}providers:\n  p: {{ dialect: openai, base_url: \"https://localhost:{port}/v1\", api_key: {key}, ca_file: {}, http2: never }}\nmodels:\n{}",
            head(),
            scratch.0.join(root).display(),
            model("gpt", "sim-gpt", "")
        )
    };
    let first = config(port, "sk-the-old-credential", "old.crt");
    let server = Server::start(&first);
    let runs = ask(&server);
    arrivals.recv().await.unwrap();
    write_and_reload(&server, &config(new.addr().port(), "sk-the-new-credential", "new.crt")).await;
    gate.notify_one();
    let answer = runs.await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    assert!(old.requests().is_empty(), "{:?}", old.requests());
    assert_eq!(new.requests().len(), 1);
}

/// A provider that keeps the body of its refusal to itself keeps nobody from the next target.
#[tokio::test]
async fn a_429_without_its_body_is_a_429() {
    let provider = provider();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let mut raw = Raw::over(listener.accept().await.unwrap().0);
            raw.request().await;
            raw.send(
                b"HTTP/1.1 429 x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n",
            )
            .await;
            open.push(raw);
        }
    });
    let text = config(&provider, "unlimited: true", "")
        .replacen(
            "providers:\n",
            &format!("providers:\n  q: {{ dialect: openai, base_url: \"{base}/v1\" }}\n"),
            1,
        )
        .replacen("provider: p", "provider: q", 1);
    let server = Server::start(&text);
    let answer = tokio::time::timeout(SOON, ask(&server)).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-tollbar-target"], "p/sim-spare");
    let line: Value = server.log(1).await.pop().unwrap();
    assert_eq!(line["attempts"][0]["status"], json!(429), "{line}");
}
