//! Providers that compress their answers, although they are asked not to.

use crate::raw::{Raw, canned};
use crate::support::*;
use flate2::Compression;
use serde_json::json;
use std::io::Write;

const ANSWER: &str = r#"{"id":"a","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":10,"total_tokens":110}}"#;

const STREAM: [&str; 3] = [
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"ok\"},\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":10,\"total_tokens\":110}}\n\n",
    "data: [DONE]\n\n",
];

fn gzip(text: &str) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), Compression::default());
    writer.write_all(text.as_bytes()).unwrap();
    writer.finish().unwrap()
}

/// `breaks`: the answer ends before its length.
async fn server(kind: &str, coding: &str, body: &[u8], breaks: bool) -> Server {
    let length = body.len() + usize::from(breaks);
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-encoding: {coding}\r\ncontent-length: {length}\r\n\r\n"
    );
    let base = canned([head.as_bytes(), body].concat(), true).await;
    Server::start(&format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"{base}\" }}\n\
         models:\n  m: {{ targets: [ {{ provider: p, model: sim, price: {{ input: 1, output: 2 }} }} ], max_output_tokens: 700 }}\n",
        crate::support::head()
    ))
}

/// 100 tokens of input and 10 of output, at $1 and $2 per million.
const COST: u64 = 120_000;

#[tokio::test]
async fn a_compressed_answer_is_metered_and_relayed_as_it_is() {
    let packed = gzip(ANSWER);
    let server = server("application/json", "gzip", &packed, false).await;
    let answer = post(&client(), server.url("/v1/chat/completions"), chat("m").to_string()).await;
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    assert_eq!(answer.headers()["x-tollbar-cost-usd"], "0.000120000");
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(answer.bytes().await.unwrap(), packed);
    let row = row(&server, &id).await;
    assert_eq!(row["usage_source"], "reported", "{row}");
    assert_eq!(cost(&row), COST);
}

#[tokio::test]
async fn a_compressed_stream_is_metered_and_relayed_as_it_is() {
    let packed = gzip(&STREAM.concat());
    let server = server("text/event-stream", "gzip", &packed, false).await;
    let answer =
        post(&client(), server.url("/v1/chat/completions"), chat_stream("m").to_string()).await;
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(answer.bytes().await.unwrap(), packed, "nothing can be taken out of it");
    let row = row(&server, &id).await;
    assert_eq!(row["usage_source"], "reported", "{row}");
    assert_eq!((row["outcome"].as_str(), cost(&row)), (Some("ok"), COST));
}

/// An error event behind compressed bytes would be noise: the connection ends instead.
#[tokio::test]
async fn nothing_is_put_behind_a_compressed_stream_that_breaks() {
    let packed = gzip(STREAM[0]);
    let server = server("text/event-stream", "gzip", &packed, true).await;
    let mut client = Raw::connect(server.data[0]).await;
    let body =
        json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]})
            .to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(request.as_bytes()).await;
    let got = client.rest().await;
    assert!(got.windows(packed.len()).any(|part| part == packed), "{}", got.len());
    assert!(!String::from_utf8_lossy(&got).contains("data:"), "{}", String::from_utf8_lossy(&got));
}

/// What can't be read is estimated, and said so.
#[tokio::test]
async fn an_unknown_coding_is_relayed_and_estimated() {
    for coding in ["gzip, br", "compress", "gzip"] {
        let body = b"not compressed by anything that is known here";
        let server = server("application/json", coding, body, false).await;
        let answer =
            post(&client(), server.url("/v1/chat/completions"), chat("m").to_string()).await;
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!(answer.bytes().await.unwrap().as_ref(), body);
        let row = row(&server, &id).await;
        assert_eq!(row["usage_source"], "estimated", "{row}");
        // How much it says nobody knows: no less than it may.
        assert_eq!(row["output_tokens"], 700, "{coding}: {row}");
    }
}
