//! Scripts, keys, connections, records, HTTP/2, control endpoint.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{SOON, chat, chat_stream, only, post, post_chat, provider, receive, send};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tollbar_loadtest::provider::{Cut, Gate, Provider, Script};

fn h2c() -> reqwest::Client {
    common::http().http2_prior_knowledge().no_proxy().build().unwrap()
}

async fn h2_post(client: &reqwest::Client, p: &Provider, body: &Value) -> reqwest::Response {
    let url = format!("{}/v1/chat/completions", p.base());
    client.post(url).json(body).send().await.unwrap()
}

#[tokio::test]
async fn scripts_come_in_order_and_before_defaults_and_directives() {
    let p = provider();
    p.script("sim+status=400", vec![Script::status(500), Script::text("second")]);
    p.script("*", vec![Script::status(502)]);
    p.set_default("*", Script::status(503).header("retry-after", "7"));
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(post_chat(&p, &chat("sim+status=400")).await.status);
    }
    assert_eq!(seen, [500, 200, 502, 503]);
    p.reset_scripts();
    assert_eq!(post_chat(&p, &chat("sim+status=400")).await.status, 400);
}

#[tokio::test]
async fn raw_bytes_are_sent_as_given() {
    let p = provider();
    let bytes: [&'static [u8]; 3] = [b"data: {\"a\":\"\xc3", b"\xbc\"}\n", b"\n"];
    p.script("m", vec![Script::raw(bytes)]);
    let raw = post_chat(&p, &chat("m")).await;
    assert_eq!(raw.body, bytes.concat());
    assert_eq!(raw.chunks, [13, 4, 1]);
    let script = Script {
        body: Some("<html>".into()),
        content_type: Some("text/html".into()),
        ..Script::status(502)
    };
    p.script("m", vec![script]);
    let raw = post_chat(&p, &chat("m")).await;
    assert_eq!(
        (raw.status, raw.text().as_str(), raw.header("content-type")),
        (502, "<html>", Some("text/html"))
    );
}

#[tokio::test]
async fn a_gate_releases_chunk_by_chunk() {
    let p = provider();
    let gate = Gate::new();
    p.script("m", vec![Script { gate: Some(gate.clone()), chunks: Some(3), ..Script::default() }]);
    let mut stream = TcpStream::connect(p.addr()).await.unwrap();
    send(&mut stream, "/v1/chat/completions", "", chat_stream("m").to_string().as_bytes()).await;
    for n in 1..=3 {
        assert!(
            p.wait_until(SOON, |all| all.first().is_some_and(|r| r.chunks_sent == n - 1)).await
        );
        assert_eq!(p.in_flight(), 1);
        gate.release(1);
    }
    assert!(receive(&mut stream).await.text().ends_with("[DONE]\n\n"));
    assert!(only(&p).await.finished_at.is_some());
}

#[tokio::test]
async fn a_peer_that_leaves_is_noticed_while_waiting_and_while_streaming() {
    let p = provider();
    for model in ["sim+delay=60s", "sim+first=60s", "sim+gap=60s"] {
        p.clear();
        let mut stream = TcpStream::connect(p.addr()).await.unwrap();
        send(&mut stream, "/v1/chat/completions", "", chat_stream(model).to_string().as_bytes())
            .await;
        assert!(p.wait_for(1, SOON).await);
        if model.contains("gap") {
            assert!(p.wait_until(SOON, |all| all[0].chunks_sent == 1).await);
        }
        drop(stream);
        let record = only(&p).await;
        assert!(record.peer_closed_at.is_some() && record.finished_at.is_none(), "{model}");
    }
    assert_eq!(p.billed().output_tokens, 1, "only the chunk that was delivered");
}

#[tokio::test]
async fn keys_can_change_at_any_time() {
    let p = provider();
    p.require_key(Some("k1"));
    let bearer = |key: &str| format!("authorization: Bearer {key}\r\n");
    let chat = chat("sim");
    let path = "/v1/chat/completions";
    assert_eq!(post(&p, path, &bearer("k1"), &chat).await.status, 200);
    let refused = post(&p, path, &bearer("k2"), &chat).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (401, &json!("invalid_api_key"))
    );
    p.accept_keys(vec!["k2".into(), "k3".into()]);
    assert_eq!(post(&p, path, &bearer("k1"), &chat).await.status, 401);
    let message = json!({ "model": "sim", "max_tokens": 9, "messages": [] });
    let version = "anthropic-version: 2023-06-01\r\n";
    assert_eq!(
        post(&p, "/v1/messages", &format!("x-api-key: k3\r\n{version}"), &message).await.status,
        200
    );
    let gemini = "/v1beta/models/sim:generateContent";
    assert_eq!(post(&p, gemini, "x-goog-api-key: k3\r\n", &json!({})).await.status, 200);
    assert_eq!(post(&p, gemini, "x-goog-api-key: k9\r\n", &json!({})).await.status, 400);
    p.require_key(None);
    assert_eq!(post(&p, path, "", &chat).await.status, 200);
}

#[tokio::test]
async fn connections_are_kept_alive_counted_and_closed_when_idle() {
    let p = provider();
    let gate = Gate::new();
    let mut idle = TcpStream::connect(p.addr()).await.unwrap();
    for _ in 0..2 {
        send(&mut idle, "/v1/chat/completions", "", chat("sim").to_string().as_bytes()).await;
        assert!(receive(&mut idle).await.whole);
    }
    p.script("held", vec![Script { gate: Some(gate.clone()), ..Script::default() }]);
    let mut busy = TcpStream::connect(p.addr()).await.unwrap();
    send(&mut busy, "/v1/chat/completions", "", chat("held").to_string().as_bytes()).await;
    assert!(p.wait_until(SOON, |all| all.len() == 3 && all[1].is_over()).await);
    let ids: Vec<u64> = p.requests().iter().map(|r| r.connection_id).collect();
    assert_eq!(ids, [0, 0, 1]);
    assert_eq!((p.connections(), p.open_connections()), (2, 2));
    assert_eq!(p.close_idle().await, 1);
    assert_eq!(idle.read(&mut [0; 8]).await.unwrap(), 0);
    gate.open();
    assert_eq!(receive(&mut busy).await.status, 200);
    assert_eq!((p.open_connections(), p.peak_in_flight()), (1, 1));
}

#[tokio::test]
async fn h2c_by_prior_knowledge_on_the_same_port() {
    let p = provider();
    let client = h2c();
    let text = h2_post(&client, &p, &chat_stream("sim+chunks=5")).await.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"));
    let record = only(&p).await;
    assert_eq!(record.version, reqwest::Version::HTTP_2);
    assert_eq!(record.chunks_sent, 5);
    assert_eq!(post_chat(&p, &chat("sim")).await.status, 200);
    assert_eq!(p.connections(), 2);
}

#[tokio::test]
async fn h2_cuts_reset_the_stream_and_departures_are_noticed() {
    let p = provider();
    let client = h2c();
    let mut answer = h2_post(&client, &p, &chat_stream("sim+cut=3+chunks=9")).await;
    let mut text = String::new();
    let error = loop {
        match answer.chunk().await {
            Ok(Some(bytes)) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            Ok(None) => panic!("a cut must not end well"),
            Err(error) => break error,
        }
    };
    assert!(error.is_body() || error.is_decode(), "{error:?}");
    assert_eq!(text.matches("data: ").count(), 4, "role and three chunks arrived");
    p.script("m", vec![Script { cut: Some(Cut::Headers), ..Script::default() }]);
    let url = format!("{}/v1/chat/completions", p.base());
    assert!(client.post(url).json(&chat("m")).send().await.is_err());
    p.clear();
    let mut answer = h2_post(&client, &p, &chat_stream("sim+gap=60s")).await;
    assert!(answer.chunk().await.unwrap().is_some());
    drop(answer);
    assert!(only(&p).await.peer_closed_at.is_some());
    assert_eq!(p.connections(), 1, "the connection survived it all");
}

#[tokio::test]
async fn the_control_endpoint_serves_another_process() {
    let p = provider();
    let client = common::http().no_proxy().build().unwrap();
    let url = |path: &str| format!("{}{path}", p.base());
    let order = json!({ "model": "m", "scripts": [{ "status": 418 }, { "cut": "headers" }, { "cut": 2, "chunks": 4 }] });
    let answer: Value =
        client.post(url("/__control")).json(&order).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["queued"], 3);
    assert_eq!(post_chat(&p, &chat("m")).await.status, 418);
    assert_eq!(post_chat(&p, &chat("m")).await.status, 0);
    assert!(!post_chat(&p, &chat_stream("m")).await.whole);
    let requests: Value =
        client.get(url("/__requests")).send().await.unwrap().json().await.unwrap();
    assert_eq!(requests[0]["path"], "/v1/chat/completions");
    assert_eq!(requests[0]["body"], chat("m").to_string());
    assert_eq!(requests[2]["chunks_sent"], 2);
    client.delete(url("/__requests")).send().await.unwrap();
    let stats: Value = client.get(url("/__stats")).send().await.unwrap().json().await.unwrap();
    assert_eq!((&stats["requests"], &stats["billed"]["output_tokens"]), (&json!(0), &json!(2)));
    assert_eq!(stats["billed_by_model"]["m"], stats["billed"]);
    let bad = client
        .post(url("/__control"))
        .json(&json!({ "scripts": [{ "statsu": 1 }] }))
        .send()
        .await
        .unwrap();
    assert_eq!(bad.status(), 400);
}

#[tokio::test]
async fn stop_frees_the_address() {
    let p = provider();
    let addr = p.addr();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    send(&mut stream, "/v1/chat/completions", "", chat("sim+delay=60s").to_string().as_bytes())
        .await;
    assert!(p.wait_for(1, SOON).await);
    p.stop().await;
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(addr).await.is_err());
    assert!(p.requests()[0].peer_closed_at.is_none(), "the peer did not leave");
    let again = Provider::start(addr, None).unwrap();
    assert_eq!(post_chat(&again, &chat("sim")).await.status, 200);
}

#[tokio::test]
async fn what_was_received_is_recorded_exactly() {
    let p = provider();
    let mut stream = TcpStream::connect(p.addr()).await.unwrap();
    let body = b"{\"model\" : \"sim\",\n \"z\":1, \"a\":1.0}";
    send(&mut stream, "/x/v1/chat/completions?q=%20", "X-B: 1\r\nX-A: 2\r\n", body).await;
    receive(&mut stream).await;
    let record = only(&p).await;
    assert_eq!(&record.body[..], body);
    assert_eq!(
        (record.method.as_str(), record.path_and_query.as_str()),
        ("POST", "/x/v1/chat/completions?q=%20")
    );
    let names: Vec<&str> = record.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["host", "x-b", "x-a", "content-length"]);
    assert_eq!(record.status, Some(200));
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_recorded() {
    let p = provider();
    let mut stream = TcpStream::connect(p.addr()).await.unwrap();
    let head =
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"model\":";
    tokio::io::AsyncWriteExt::write_all(&mut stream, head).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(stream);
    let record = only(&p).await;
    assert_eq!(&record.body[..], b"{\"model\":");
    assert!(record.peer_closed_at.is_some());
}

#[test]
fn there_must_be_a_runtime() {
    assert!(Provider::start(SocketAddr::from(([127, 0, 0, 1], 0)), None).is_err());
}
