//! A client that leaves takes its upstream call with it, within a second.

use crate::support::*;
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::{Gate, Script};

/// Client and upstream in both HTTP versions; streamed, and waiting for the answer's header.
#[tokio::test]
async fn the_upstream_call_ends_when_the_client_leaves() {
    let provider = provider();
    let base = provider.base();
    let price = "price: { input: 1, output: 2 }";
    let config = format!(
        "{}providers:\n  \
           h1: {{ dialect: openai, base_url: \"{base}/v1\", http2: never }}\n  \
           h2: {{ dialect: openai, base_url: \"{base}/v1\", http2: always }}\n\
         models:\n  \
           m1: {{ targets: [ {{ provider: h1, model: sim-m1, {price} }} ] }}\n  \
           m2: {{ targets: [ {{ provider: h2, model: sim-m2, {price} }} ] }}\n",
        head()
    );
    let server = Server::start(&config);
    let mut left = 0;
    for name in ["m1", "m2"] {
        for h2 in [false, true] {
            for stream in [false, true] {
                // A second is short for a machine that compiles at the same time: the best of three.
                for last in [false, false, true] {
                    left += 1;
                    let what = format!("upstream {name}, client h2 {h2}, streamed {stream}");
                    provider.clear();
                    let gate = Gate::new();
                    let script =
                        Script { gate: Some(gate.clone()), chunks: Some(50), ..Script::default() };
                    provider.script(&format!("sim-{name}"), vec![script]);
                    let http = if h2 { h2_client() } else { client() };
                    let body = if stream { chat_stream(name) } else { chat(name) };
                    let (own, url) = (http.clone(), server.url("/v1/chat/completions"));
                    let waiting =
                        tokio::spawn(async move { post(&own, url, body.to_string()).await });
                    assert!(provider.wait_for(1, Duration::from_secs(10)).await, "{what}");
                    if stream {
                        gate.release(2);
                        let mut answer = waiting.await.unwrap();
                        // The first event has only the role: the second one has text.
                        let mut seen = Vec::new();
                        while seen.iter().filter(|byte| **byte == b'\n').count() < 4 {
                            seen.extend(answer.chunk().await.unwrap().unwrap());
                        }
                        drop(answer);
                    } else {
                        waiting.abort();
                    }
                    let at = Instant::now();
                    let gone = |all: &[tollbar_loadtest::provider::Recorded]| {
                        all[0].peer_closed_at.is_some()
                    };
                    assert!(
                        provider.wait_until(Duration::from_secs(10), gone).await,
                        "{what}: the upstream call goes on"
                    );
                    let closed = provider.requests()[0].peer_closed_at.unwrap();
                    let took = closed.saturating_duration_since(at);
                    let line = server.log(left).await.pop().unwrap();
                    assert_eq!(
                        (&line["client_gone"], &line["outcome"]),
                        (&true.into(), &"client_gone".into()),
                        "{what}"
                    );
                    if stream {
                        assert!(
                            line["output_tokens"].as_u64().unwrap() >= 1,
                            "{what}: what was delivered counts"
                        );
                    }
                    assert_eq!(provider.requests().len(), 1, "{what}");
                    if took < Duration::from_secs(1) {
                        break;
                    }
                    assert!(!last, "{what}: {took:?}");
                }
            }
        }
    }
    assert_eq!(server.metric("tollbar_inflight{model=\"sim-m1\"").await, 0.0);
    let abandoned =
        server.metric("tollbar_abandoned_streams_total{model=\"sim-m1\",provider=\"h1\"}").await;
    assert!(abandoned >= 2.0, "{abandoned}");
    assert_eq!(server.metric("tollbar_buffered_bytes").await, 0.0);
}
