//! Alerts, seen by a receiver: each once, signed, sent again when not taken, in nobody's way.

use crate::support::*;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tollbar_loadtest::provider::{Provider, Script};

const SECRET: &str = "a-secret-of-the-receiver";

/// Alerts take a second to be seen, on a busy machine longer.
const SOON: Duration = Duration::from_secs(20);

/// What a receiver got.
#[derive(Clone)]
struct Post {
    head: String,
    body: String,
}

impl Post {
    fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.head))
    }

    fn payload(&self) -> Value {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        assert!(body["text"].is_string(), "{body}");
        assert_eq!(body["metadata"]["event_type"], "tollbar_alert");
        body["metadata"]["event_payload"].clone()
    }

    /// As README tells receivers to verify.
    fn assert_signed(&self) {
        let parts = self.header("x-tollbar-signature").split_once(',').unwrap();
        let time = parts.0.strip_prefix("t=").unwrap();
        let given = hex::decode(parts.1.strip_prefix("v1=").unwrap()).unwrap();
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(format!("{time}.{}", self.body).as_bytes());
        mac.verify_slice(&given).unwrap();
        let age = chrono::Utc::now().timestamp() - time.parse::<i64>().unwrap();
        assert!((0..60).contains(&age), "{age} s old");
    }
}

/// A webhook's other end. It answers with the given statuses, then with 200; `None`: never.
struct Receiver {
    address: SocketAddr,
    got: Arc<Mutex<Vec<Post>>>,
}

impl Receiver {
    async fn start(statuses: &[Option<u16>]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let got: Arc<Mutex<Vec<Post>>> = Arc::default();
        let (sink, statuses) = (got.clone(), statuses.to_vec());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, sink.clone(), statuses.clone()));
            }
        });
        Receiver { address, got }
    }

    /// The `alerts` section that names it.
    fn section(&self, more: &str) -> String {
        format!(
            "alerts: {{ webhooks: [ {{ url: \"http://{}/T0/S3CRETPATH\", secret: {SECRET} }} ]{more} }}\n",
            self.address
        )
    }

    fn got(&self) -> Vec<Post> {
        self.got.lock().unwrap().clone()
    }

    async fn wait(&self, n: usize) -> Vec<Post> {
        eventually(SOON, || self.got().len() >= n).await;
        self.got()
    }

    /// The payloads of one kind, once there are `n`.
    async fn kind(&self, kind: &str, n: usize) -> Vec<Value> {
        let of = || -> Vec<Value> {
            let payloads = self.got().iter().map(Post::payload).collect::<Vec<_>>();
            payloads.into_iter().filter(|payload| payload["kind"] == kind).collect()
        };
        eventually(SOON, || of().len() >= n).await;
        of()
    }
}

async fn serve(stream: TcpStream, sink: Arc<Mutex<Vec<Post>>>, statuses: Vec<Option<u16>>) {
    let mut raw = Raw::over(stream);
    while let Some((head, body)) = raw.request().await {
        let n = {
            let mut got = sink.lock().unwrap();
            got.push(Post { head, body: String::from_utf8(body).unwrap() });
            got.len() - 1
        };
        let Some(status) = statuses.get(n).copied().unwrap_or(Some(200)) else {
            return std::future::pending().await;
        };
        let answer = format!("HTTP/1.1 {status} -\r\ncontent-length: 2\r\n\r\nok");
        if raw.stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A dollar a thousand tokens of output; ten tokens are one cent.
fn config(provider: &Provider, key: &str, more: &str) -> String {
    let base = provider.base();
    format!(
        "listeners: [{{ address: 127.0.0.1:0 }}]\nadmin: {{ address: 127.0.0.1:0, token: {ADMIN_TOKEN} }}\n\
         server: {{ threads: 2 }}\nstate: {{ path: state.db }}\n\
         keys:\n  - {{ id: test, hash: \"{}\", models: [\"*\"], {key} }}\n\
         providers:\n  p: {{ dialect: openai, base_url: \"{base}/v1\", api_key: sk-provider }}\n\
         models:\n  gpt: {{ targets: [ {{ provider: p, model: sim-gpt, price: {{ input: 0, output: 1000 }} }} ] }}\n{more}",
        hash(KEY)
    )
}

async fn cent(server: &Server) -> u16 {
    let body =
        json!({"model": "gpt", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]});
    let request = client().post(server.url("/v1/chat/completions")).bearer_auth(KEY).json(&body);
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn each_share_of_a_budget_is_told_once_and_signed_also_after_a_restart() {
    let (provider, receiver) = (provider(), Receiver::start(&[]).await);
    let key = "budgets: [ { usd: 0.05, per: total } ]";
    let mut server = Server::start(&config(&provider, key, &receiver.section("")));
    for _ in 0..4 {
        assert_eq!(cent(&server).await, 200);
    }
    let first = receiver.kind("budget_share", 1).await;
    assert_eq!(first[0]["share"], 0.8);
    assert_eq!(
        (&first[0]["scope"], &first[0]["id"], &first[0]["per"]),
        (&"key".into(), &"test".into(), &"total".into())
    );
    assert_eq!((&first[0]["spent_usd"], &first[0]["cap_usd"]), (&0.04.into(), &0.05.into()));
    assert_eq!(cent(&server).await, 200);
    let both = receiver.kind("budget_share", 2).await;
    assert_eq!(both[1]["share"], 1);
    assert_eq!(cent(&server).await, 429);
    receiver.kind("budget_refused", 1).await;
    server.signal("TERM");
    assert!(server.wait_exit(SOON).is_some());
    let server = server.again();
    assert_eq!(cent(&server).await, 429);
    // What would be told again is told together with a share that is new.
    let more = receiver.section(", budget_at: [0.8, 0.9, 1.0]");
    std::fs::write(server.config_file(), config(&provider, key, &more)).unwrap();
    server.signal("HUP");
    receiver.kind("budget_share", 3).await;
    let got = receiver.got();
    let told = |post: &Post| (post.payload()["kind"].clone(), post.payload()["share"].clone());
    let told: Vec<(Value, Value)> = got.iter().map(told).collect();
    let share = |share: f64| (json!("budget_share"), json!(share));
    let refused = (json!("budget_refused"), Value::Null);
    assert_eq!(told[0], share(0.8));
    assert_eq!((&told[1].0, &told[1].1), (&json!("budget_share"), &json!(1)));
    assert_eq!(told[2..], [refused, share(0.9)]);
    got.iter().for_each(Post::assert_signed);
    let mut ids: Vec<&str> = got.iter().map(|post| post.header("x-tollbar-id")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4, "{ids:?}");
    assert_eq!(
        server.metric("tollbar_alerts_total{kind=\"budget_share\",result=\"logged\"}").await,
        1.0
    );
    assert_eq!(server.metric("tollbar_alerts_total{kind=\"budget_refused\"").await, 0.0);
    let log = server.stderr().join("\n");
    assert!(!log.contains("S3CRETPATH") && !log.contains(SECRET), "{log}");
}

/// What was told of the old cap says nothing of the new one.
#[tokio::test]
async fn a_raised_budget_is_told_of_as_a_new_one() {
    let (provider, receiver) = (provider(), Receiver::start(&[]).await);
    let text = |usd: &str, shares: &str| {
        let key = format!("budgets: [ {{ usd: {usd}, per: total }} ]");
        config(&provider, &key, &receiver.section(&format!(", budget_at: {shares}")))
    };
    let mut server = Server::start(&text("0.02", "[0.5]"));
    assert_eq!(cent(&server).await, 200);
    receiver.kind("budget_share", 1).await;
    assert_eq!(cent(&server).await, 200);
    assert_eq!(cent(&server).await, 429);
    receiver.kind("budget_refused", 1).await;
    std::fs::write(server.config_file(), text("0.04", "[0.5]")).unwrap();
    server.signal("HUP");
    eventually(SOON, || server.stderr().iter().any(|l| l.contains("reloaded: generation 2"))).await;
    assert_eq!(cent(&server).await, 200);
    let shares = receiver.kind("budget_share", 2).await;
    assert_eq!((&shares[1]["share"], &shares[1]["cap_usd"]), (&0.5.into(), &0.04.into()));
    assert_eq!(cent(&server).await, 200);
    assert_eq!(cent(&server).await, 429);
    assert_eq!(receiver.kind("budget_refused", 2).await[1]["cap_usd"], 0.04);
    // The same cap is no news to the next process, which tells what is.
    server.signal("TERM");
    assert!(server.wait_exit(SOON).is_some());
    let server = server.again();
    assert_eq!(cent(&server).await, 429);
    std::fs::write(server.config_file(), text("0.04", "[0.5, 0.9]")).unwrap();
    server.signal("HUP");
    assert_eq!(receiver.kind("budget_share", 3).await[2]["share"], 0.9);
    assert_eq!(receiver.got().len(), 5);
}

/// A budget's share is told once, but to everybody: also to whom nobody answered at until the end.
#[tokio::test]
async fn what_a_drain_could_not_send_is_told_by_the_next_process() {
    for answer in [Some(503), None] {
        let (provider, down) = (provider(), Receiver::start(&[answer; 100]).await);
        let (up, late) = (Receiver::start(&[]).await, Receiver::start(&[]).await);
        let text = |first: &Receiver| {
            let hooks = format!(
                "alerts: {{ budget_at: [0.5], webhooks: [ {{ url: \"http://{}\" }}, {{ url: \"http://{}\" }} ] }}\n",
                first.address, up.address
            );
            config(&provider, "budgets: [ { usd: 0.02, per: total } ]", &hooks)
        };
        let mut server = Server::start(&text(&down));
        assert_eq!(cent(&server).await, 200);
        up.kind("budget_share", 1).await;
        down.wait(1).await;
        server.signal("TERM");
        assert!(server.wait_exit(SOON).is_some());
        std::fs::write(server.config_file(), text(&late)).unwrap();
        let mut server = server.again();
        assert_eq!(late.kind("budget_share", 1).await[0]["share"], 0.5, "{answer:?}");
        up.kind("budget_share", 2).await;
        // Now that all have it, it is not told again.
        server.signal("TERM");
        assert!(server.wait_exit(SOON).is_some());
        let claims = rusqlite::Connection::open(server.state_file()).unwrap();
        let claims = claims.query_row("SELECT count(*) FROM alerts", [], |row| row.get(0));
        assert_eq!(claims, Ok(1));
    }
}

#[tokio::test]
async fn all_shares_passed_at_once_are_told() {
    let (provider, receiver) = (provider(), Receiver::start(&[]).await);
    let key = "budgets: [ { usd: 0.01, per: month } ]";
    let more = receiver.section(", budget_at: [1.0, 0.5]");
    let server = Server::start(&config(&provider, key, &more));
    assert_eq!(cent(&server).await, 200);
    let shares: Vec<Value> =
        receiver.kind("budget_share", 2).await.iter().map(|p| p["share"].clone()).collect();
    assert_eq!(shares, [json!(0.5), json!(1)]);
    let sent = "tollbar_alerts_total{kind=\"budget_share\",result=\"sent\"}";
    for _ in 0..200 {
        if server.metric(sent).await == 2.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.metric(sent).await, 2.0);
    logs(&server, &["WARN alert budget_share: The budget of the key `test` is used up"]).await;
}

#[tokio::test]
async fn what_a_receiver_did_not_take_is_sent_again() {
    let (provider, receiver) = (provider(), Receiver::start(&[Some(500), Some(500)]).await);
    provider.set_default("*", Script::status(401));
    let server = Server::start(&config(&provider, "unlimited: true", &receiver.section("")));
    assert_eq!(cent(&server).await, 502);
    let got = receiver.wait(3).await;
    let ids: Vec<&str> = got.iter().map(|post| post.header("x-tollbar-id")).collect();
    assert!(ids.iter().all(|id| *id == ids[0] && id.len() == 32), "{ids:?}");
    assert!(got.iter().all(|post| post.body == got[0].body), "the same message");
    let payload = got[0].payload();
    assert_eq!(
        (&payload["kind"], &payload["provider"]),
        (&"credential_refused".into(), &"p".into())
    );
    assert_eq!(payload["status"], 401);
    assert_eq!(payload["fingerprint"].as_str().map(str::len), Some(8));
    logs(&server, &["was not taken by webhook 1 (127.0.0.1) (it answered 500)"]).await;
}

#[tokio::test]
async fn a_refusal_is_final_and_a_redirect_is_one() {
    for status in [400, 307] {
        let (provider, receiver) = (provider(), Receiver::start(&[Some(status)]).await);
        let server = Server::start(&config(&provider, "unlimited: true", &receiver.section("")));
        for text in ["a: 1", "b: 1"] {
            std::fs::write(server.config_file(), text).unwrap();
            server.signal("HUP");
            let told =
                || server.stderr().iter().filter(|l| l.contains("alert reload_refused")).count();
            eventually(SOON, || told() == if text == "a: 1" { 1 } else { 2 }).await;
        }
        let got = receiver.wait(2).await;
        assert_ne!(got[0].header("x-tollbar-id"), got[1].header("x-tollbar-id"), "{status}");
        let failed = "tollbar_alerts_total{kind=\"reload_refused\",result=\"failed\"}";
        assert_eq!(server.metric(failed).await, 1.0, "{status}");
    }
}

#[tokio::test]
async fn a_breaker_is_told_once_while_it_is_open() {
    let (provider, receiver) = (provider(), Receiver::start(&[]).await);
    provider.set_default("*", Script::status(500));
    let more = format!("breaker: {{ failures: 1, cooldown: 1s }}\n{}", receiver.section(""));
    let server = Server::start(&config(&provider, "unlimited: true", &more));
    assert_eq!(cent(&server).await, 502);
    assert_eq!(receiver.kind("breaker_opened", 1).await[0]["target"], "p/sim-gpt");
    // It is probed, fails, and is open again: no news.
    let asked = provider.requests().len();
    let until = Instant::now() + SOON;
    while provider.requests().len() < asked + 2 {
        assert!(Instant::now() < until);
        cent(&server).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(receiver.got().len(), 1);
}

#[tokio::test]
async fn a_receiver_that_hangs_delays_no_request_and_no_other_receiver() {
    let (provider, dead) = (provider(), Receiver::start(&[None; 100]).await);
    let alive = Receiver::start(&[]).await;
    provider.set_default("*", Script::status(500));
    let section = format!(
        "breaker: {{ failures: 1 }}\nalerts: {{ webhooks: [ {{ url: \"http://{}\" }}, {{ url: \"http://{}\" }} ] }}\n",
        dead.address, alive.address
    );
    let server = Server::start(&config(&provider, "unlimited: true", &section));
    assert_eq!(cent(&server).await, 502);
    let got = alive.wait(1).await;
    assert!(!got[0].head.contains("x-tollbar-signature"), "no secret, no signature");
    dead.wait(1).await;
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(cent(&server).await, 503);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // Nor does it keep the process from ending.
    let mut server = server;
    server.signal("TERM");
    assert!(server.wait_exit(Duration::from_secs(9)).is_some(), "the drain waits for nobody");
    let log = server.stderr().join("\n");
    assert!(log.contains("1 were not sent to webhook 1 (127.0.0.1): the process ends"), "{log}");
}

#[tokio::test]
async fn a_reload_changes_who_is_told_of_what() {
    let (provider, first) = (provider(), Receiver::start(&[]).await);
    let second = Receiver::start(&[]).await;
    let key = "budgets: [ { usd: 1, per: total } ]";
    let server = Server::start(&config(&provider, key, &first.section("")));
    assert_eq!(cent(&server).await, 200);
    let changed = config(&provider, key, &second.section(", budget_at: [0.01]"));
    std::fs::write(server.config_file(), changed).unwrap();
    server.signal("HUP");
    assert_eq!(second.kind("budget_share", 1).await[0]["share"], 0.01);
    assert!(first.got().is_empty());
}

#[tokio::test]
async fn fallbacks_are_told_when_they_are_many() {
    let (provider, receiver) = (provider(), Receiver::start(&[]).await);
    provider.set_default("sim-gpt", Script::status(500));
    let target = "{ provider: p, model: other, weight: 1, price: { input: 0, output: 1000 } }";
    let more = format!("breaker: {{ failures: 10000 }}\n{}", receiver.section(""));
    let config = config(&provider, "unlimited: true", &more)
        .replace("gpt: {", "gpt: { fallbacks: [other],")
        .replace("models:\n", &format!("models:\n  other: {{ targets: [ {target} ] }}\n"));
    let server = Server::start(&config);
    for _ in 0..20 {
        assert_eq!(cent(&server).await, 200);
    }
    let payload = &receiver.kind("fallback_rate", 1).await[0];
    assert_eq!((&payload["share"], &payload["fallbacks"]), (&1.into(), &20.into()));
}

/// An hour that costs more than five times the mean of the hours before it.
#[tokio::test]
async fn spending_that_speeds_up_is_told() {
    let (provider, receiver) = (provider(), Receiver::start(&[]).await);
    let text = config(&provider, "unlimited: true", &receiver.section(""));
    let mut server = Server::start(&text);
    server.signal("TERM");
    assert!(server.wait_exit(SOON).is_some());
    // One cent an hour since ten hours ago.
    let db = rusqlite::Connection::open(server.state_file()).unwrap();
    for hour in 1..10 {
        let at = chrono::Utc::now() - chrono::TimeDelta::minutes(hour * 60 + 30);
        let at = at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        db.execute(
            "INSERT INTO attempts (request_id, at, key_id, model, provider, target_model, attempt,
                outcome, stream, usage_source, cost_nano_usd, price_version, duration_ms,
                client_gone, metadata)
             VALUES ('r', ?1, 'test', 'gpt', 'p', 'sim-gpt', 1, 'ok', 0, 'reported', 11000000, '-',
                1, 0, '{}')",
            [at],
        )
        .unwrap();
    }
    drop(db);
    let server = server.again();
    for _ in 0..7 {
        assert_eq!(cent(&server).await, 200);
    }
    let payload = &receiver.kind("spend_velocity", 1).await[0];
    assert!(payload["hour_usd"].as_f64().unwrap() > 0.055, "{payload}");
    assert_eq!(payload["threshold"], 5);
}
