//! Bodies of every size and framing arrive byte for byte, also on a second attempt.

use crate::support::*;
use futures_util::future::join_all;
use std::time::Duration;
use tollbar_loadtest::provider::{Gate, Provider, Script};

const KIB: usize = 1024;

/// A chat request of exactly `size` bytes, without repetitions that would hide lost bytes.
fn body(model: &str, size: usize) -> Vec<u8> {
    let head = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":""#);
    let tail = br#""}]}"#;
    let mut out = head.into_bytes();
    let mut x: u64 = size as u64 | 1;
    while out.len() < size - tail.len() {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.push(b'a' + ((x >> 33) % 26) as u8);
    }
    out.extend_from_slice(tail);
    assert_eq!(out.len(), size);
    out
}

/// The same bytes without a length, in pieces of changing size.
fn pieces(body: &[u8]) -> reqwest::Body {
    let sizes = [1, 16_384, 7, 65_536, 100_003, 4096];
    let mut rest = body;
    let mut out: Vec<Result<Vec<u8>, std::io::Error>> = Vec::new();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, more) = rest.split_at(rest.len().min(*size));
        out.push(Ok(piece.to_vec()));
        rest = more;
    }
    reqwest::Body::wrap_stream(futures_util::stream::iter(out))
}

/// What a target reads instead of the model's name, and nothing else.
fn expected(body: &[u8], model: &str, target: &str) -> Vec<u8> {
    let head = format!(r#"{{"model":"{model}""#);
    assert!(body.starts_with(head.as_bytes()));
    [format!(r#"{{"model":"{target}""#).as_bytes(), &body[head.len()..]].concat()
}

/// Every framing, version and number of attempts for these sizes. One model per case, so that
/// no case suffers from another one's failures.
async fn all_cases(sizes: &[usize], upstream: &str) {
    let provider = provider();
    let mut models = model("ok", "sim-ok", "");
    let failures = [None, Some(429), Some(500)];
    let per_size = 2 * 2 * failures.len();
    for case in 0..sizes.len() * per_size {
        match failures[case % failures.len()] {
            None => models += &model(&format!("m{case}"), &format!("sim-m{case}"), ""),
            Some(status) => {
                let target = format!("sim-m{case}+status={status}");
                models += &model(&format!("m{case}"), &target, ", fallbacks: [ok]");
            }
        }
    }
    let attempts = "attempts: { same_target: 0 }\n";
    let text = config_of(&head(), &provider, upstream, &models) + attempts;
    let server = Server::start(&text);
    let clients = [client(), h2_client()];
    for (i, size) in sizes.iter().enumerate() {
        for case in i * per_size..(i + 1) * per_size {
            let failure = failures[case % failures.len()];
            let chunked = (case / failures.len()) % 2 == 1;
            let http = &clients[(case / failures.len() / 2) % 2];
            let name = format!("m{case}");
            let sent = body(&name, *size);
            let framed = if chunked { pieces(&sent) } else { sent.clone().into() };
            let what = format!(
                "{size} bytes, chunked {chunked}, failure {failure:?}, case {case}, {upstream}"
            );
            let answer = post(http, server.url("/v1/chat/completions"), framed).await;
            assert_eq!(answer.status(), 200, "{what}");
            let attempts = answer.headers()["x-tollbar-attempts"].to_str().unwrap().to_owned();
            assert_eq!(attempts, if failure.is_some() { "2" } else { "1" }, "{what}");
            answer.bytes().await.unwrap();
            check_received(&provider, &sent, &name, failure, &what);
            provider.clear();
        }
    }
    let total = sizes.len() * per_size;
    let log = server.log(total).await;
    let clients: std::collections::HashSet<_> =
        log.iter().map(|line| line["client"].as_str()).collect();
    assert_eq!(clients.len(), 2, "each client needed one connection only: {clients:?}");
    at_zero(&server, "tollbar_buffered_bytes").await;
}

fn check_received(provider: &Provider, sent: &[u8], name: &str, failure: Option<u16>, what: &str) {
    let received = provider.requests();
    let targets = match failure {
        None => vec![format!("sim-{name}")],
        Some(status) => vec![format!("sim-{name}+status={status}"), "sim-ok".to_owned()],
    };
    assert_eq!(received.len(), targets.len(), "{what}");
    for (request, target) in received.iter().zip(targets) {
        let wanted = expected(sent, name, &target);
        // Not assert_eq: nobody wants to read 20 MiB.
        assert!(
            request.body == wanted,
            "{what}: {} bytes arrived, {} were meant",
            request.body.len(),
            wanted.len()
        );
        let length = request.header("content-length").map(str::to_owned);
        assert_eq!(length, Some(wanted.len().to_string()), "{what}");
        assert_eq!(request.header("transfer-encoding"), None, "{what}");
    }
}

#[tokio::test]
async fn around_the_64_kib_boundary_and_1_mib() {
    all_cases(&[100, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, KIB * KIB], "").await;
}

#[tokio::test]
async fn twenty_mib() {
    all_cases(&[20 * KIB * KIB], "").await;
}

#[tokio::test]
async fn to_an_http2_provider() {
    all_cases(&[100, 64 * KIB - 1, 64 * KIB + 1, KIB * KIB], ", http2: always").await;
}

#[tokio::test]
async fn the_connection_lives_on_after_large_bodies() {
    let provider = provider();
    let models =
        model("ok", "sim-ok", "") + &model("busy", "sim-busy+status=429", ", fallbacks: [ok]");
    let server = Server::start(&config_of(&head(), &provider, "", &models));
    let mut raw = Raw::connect(server.data[0]).await;
    for (name, size) in
        [("ok", 64 * KIB + 1), ("ok", KIB * KIB), ("busy", 300_000), ("ok", 100), ("nix", 70_000)]
    {
        let sent = body(name, size);
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {size}\r\n\r\n"
        );
        assert!(raw.send(head.as_bytes()).await && raw.send(&sent).await);
        let (status, ..) =
            raw.answer().await.unwrap_or_else(|| panic!("closed after {size} bytes to {name}"));
        assert_eq!(status, if name == "nix" { 404 } else { 200 }, "{name} {size}");
    }
    assert_eq!(provider.requests().len(), 5);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let provider = provider();
    let head = head_with("threads: 2, max_body_bytes: 128KiB", "");
    let server = Server::start(&config_of(&head, &provider, "", &model("ok", "sim-ok", "")));
    let url = || server.url("/v1/chat/completions");
    for http in [client(), h2_client()] {
        let fits = post(&http, url(), body("ok", 128 * KIB)).await;
        assert_eq!(fits.status(), 200);
        let fits = post(&http, url(), pieces(&body("ok", 128 * KIB))).await;
        assert_eq!(fits.status(), 200);
        for framed in [body("ok", 128 * KIB + 1).into(), pieces(&body("ok", 128 * KIB + 1))] {
            let refused = post(&http, url(), framed).await;
            assert_eq!(refused.status(), 413);
            let error: serde_json::Value = refused.json().await.unwrap();
            assert_eq!(error["error"]["code"], "request_too_large");
            assert!(error["error"]["message"].as_str().unwrap().contains("131072"));
        }
    }
    assert_eq!(provider.requests().len(), 4);
    at_zero(&server, "tollbar_buffered_bytes").await;
}

#[tokio::test]
async fn bodies_in_flight_have_a_budget() {
    let provider = provider();
    let gate = Gate::new();
    provider.set_default("sim-ok", Script { gate: Some(gate.clone()), ..Script::default() });
    let head = head_with("threads: 2, max_body_bytes: 512KiB, max_buffered_bytes: 1MiB", "");
    let server = Server::start(&config_of(&head, &provider, "", &model("ok", "sim-ok", "")));
    let url = || server.url("/v1/chat/completions");
    let http = client();
    let sent = body("ok", 400 * KIB);
    let framed: [reqwest::Body; 2] = [sent.clone().into(), pieces(&sent)];
    let mut waiting = Vec::new();
    for body in framed {
        let (http, url) = (http.clone(), url());
        waiting.push(tokio::spawn(async move { post(&http, url, body).await }));
        // While they come in, those of one key have half of it.
        assert!(provider.wait_for(waiting.len(), Duration::from_secs(10)).await);
    }
    assert!(server.metric("tollbar_buffered_bytes").await >= 800.0 * 1024.0);
    for framed in [sent.clone().into(), pieces(&sent)] {
        let refused = post(&http, url(), framed).await;
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.headers()["retry-after"], "1");
        let error: serde_json::Value = refused.json().await.unwrap();
        assert_eq!(error["error"]["code"], "overloaded");
    }
    gate.open();
    for answer in waiting {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.bytes().await.unwrap();
    }
    let storm = join_all((0..24).map(|_| post(&http, url(), sent.clone()))).await;
    let good = storm.iter().filter(|answer| answer.status() == 200).count();
    let refused = storm.iter().filter(|answer| answer.status() == 503).count();
    assert!(good >= 1 && good + refused == 24, "{good} good, {refused} refused");
    drop(storm);
    server.log(28).await;
    at_zero(&server, "tollbar_buffered_bytes").await;
    assert_eq!(post(&http, url(), sent).await.status(), 200);
}
