//! The shape of every endpoint's answer, and TLS.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Raw, post, provider, receive, send};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tollbar_loadtest::provider::Provider;

const VERSION: &str = "anthropic-version: 2023-06-01\r\n";

fn names(raw: &Raw) -> Vec<String> {
    let text = raw.text();
    text.lines().filter_map(|line| line.strip_prefix("event: ")).map(str::to_owned).collect()
}

async fn messages(p: &Provider, model: &str, stream: bool) -> Raw {
    let body = json!({
        "model": model, "max_tokens": 100, "stream": stream, "system": "Be brief.",
        "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Hello" }] }],
        "tools": [{ "name": "search", "input_schema": { "type": "object" } }],
    });
    post(p, "/v1/messages", VERSION, &body).await
}

async fn responses(p: &Provider, model: &str, stream: bool) -> Raw {
    let body = json!({
        "model": model, "stream": stream, "input": "Hello, you",
        "tools": [{ "type": "function", "name": "search" }],
    });
    post(p, "/v1/responses", "", &body).await
}

async fn gemini(p: &Provider, verb: &str) -> Raw {
    let body = json!({ "contents": [{ "parts": [{ "text": "Hello you" }] }] });
    post(p, &format!("/v1beta/models/{verb}"), "", &body).await
}

#[tokio::test]
async fn anthropic_stream() {
    let p = provider();
    let raw = messages(&p, "sim+chunks=2+input=10+cached=4", true).await;
    assert_eq!(
        names(&raw),
        [
            "message_start",
            "content_block_start",
            "ping",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    let events = raw.events();
    assert!(names(&raw).iter().zip(&events).all(|(name, event)| event["type"] == *name));
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], 6);
    assert_eq!(events[0]["message"]["usage"]["cache_read_input_tokens"], 4);
    assert_eq!(events[6]["usage"]["output_tokens"], 2);
    assert_eq!(raw.header("request-id"), Some("req_sim0"));
    let raw = messages(&p, "sim+tool", true).await;
    let events = raw.events();
    let parts: String = events.iter().filter_map(|e| e["delta"]["partial_json"].as_str()).collect();
    assert!(serde_json::from_str::<Value>(&parts).unwrap().is_object());
    let raw = messages(&p, "sim+errorevent=1", true).await;
    assert_eq!(names(&raw).last().unwrap(), "error");
    assert_eq!(
        names(&messages(&p, "sim+truncate+chunks=1", true).await).last().unwrap(),
        "content_block_delta"
    );
}

#[tokio::test]
async fn anthropic_whole_and_errors() {
    let p = provider();
    let json = messages(&p, "sim+tokens=2", false).await.json();
    assert_eq!(json["content"][0]["text"], "lorem ipsum");
    assert_eq!(
        (&json["usage"]["input_tokens"], &json["stop_reason"]),
        (&json!(4), &json!("end_turn"))
    );
    let json = messages(&p, "sim+tool", false).await.json();
    assert_eq!(json["content"][0]["input"]["city"], "Zürich");
    let raw = messages(&p, "sim+status=529", true).await;
    assert_eq!((raw.status, &raw.json()["error"]["type"]), (529, &json!("overloaded_error")));
    let count = json!({ "model": "sim", "messages": [{ "role": "user", "content": "12345678" }] });
    assert_eq!(
        post(&p, "/v1/messages/count_tokens", VERSION, &count).await.json()["input_tokens"],
        2
    );
    assert_eq!(
        post(&p, "/v1/messages", VERSION, &count).await.status,
        400,
        "max_tokens is required"
    );
    assert_eq!(
        post(&p, "/v1/messages/count_tokens", "", &count).await.status,
        400,
        "so is the version"
    );
}

#[tokio::test]
async fn responses_stream() {
    let p = provider();
    let raw = responses(&p, "sim+chunks=2", true).await;
    assert_eq!(
        names(&raw),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let events = raw.events();
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], at);
    }
    assert_eq!(events[9]["response"]["usage"]["total_tokens"], 5);
    assert!(!raw.text().contains("[DONE]"));
    let names_of_call = names(&responses(&p, "sim+tool+chunks=1", true).await);
    assert_eq!(
        names_of_call[3..5],
        ["response.function_call_arguments.delta", "response.function_call_arguments.done"]
    );
    let events = responses(&p, "sim+errorevent=1", true).await.events();
    assert_eq!(events[5]["sequence_number"], 5);
    assert_eq!(events[5]["error"]["code"], "server_is_overloaded");
    let json = responses(&p, "sim", false).await.json();
    assert_eq!(
        (&json["status"], &json["output"][0]["type"]),
        (&json!("completed"), &json!("message"))
    );
}

#[tokio::test]
async fn gemini_streams_with_crlf_or_as_an_array() {
    let p = provider();
    let raw = gemini(&p, "sim+chunks=3:streamGenerateContent?alt=sse").await;
    assert_eq!(raw.text().matches("\r\n\r\n").count(), 4);
    let events = raw.events();
    assert_eq!(events[1]["usageMetadata"]["candidatesTokenCount"], 2);
    assert_eq!(events[3]["candidates"][0]["finishReason"], "STOP");
    let raw = gemini(&p, "sim+chunks=3:streamGenerateContent").await;
    assert_eq!(raw.json().as_array().unwrap().len(), 4);
    let json = gemini(&p, "sim+reasoning=5:generateContent").await.json();
    assert_eq!(json["usageMetadata"]["promptTokenCount"], 3);
    assert_eq!(json["usageMetadata"]["totalTokenCount"], 3 + 16 + 5);
    let raw = gemini(&p, "sim+status=429+retry-after=46:generateContent").await;
    assert_eq!(raw.json()["error"]["details"][0]["retryDelay"], "46s");
}

#[tokio::test]
async fn completions_embeddings_moderations_images_speech_models() {
    let p = provider();
    let body = json!({ "model": "sim+chunks=2", "prompt": "abcd", "stream": true });
    let raw = post(&p, "/v1/completions", "", &body).await;
    assert_eq!(raw.events()[1]["choices"][0]["text"], " ipsum");
    let mut body = json!({ "model": "sim", "input": ["one", "two"], "dimensions": 3 });
    let json = post(&p, "/v1/embeddings", "", &body).await.json();
    assert_eq!(json["data"][1]["embedding"].as_array().unwrap().len(), 3);
    body["encoding_format"] = json!("base64");
    let json = post(&p, "/v1/embeddings", "", &body).await.json();
    assert_eq!(json["data"][0]["embedding"].as_str().unwrap().len(), 16);
    assert_eq!(json["usage"]["prompt_tokens"], 2);
    let json = post(&p, "/v1/moderations", "", &json!({ "model": "sim", "input": "sim-flag" }))
        .await
        .json();
    assert_eq!(json["results"][0]["flagged"], true);
    let json =
        post(&p, "/v1/images/generations", "", &json!({ "model": "sim", "prompt": "cat", "n": 2 }))
            .await
            .json();
    assert_eq!(
        (json["data"].as_array().unwrap().len(), &json["usage"]["output_tokens"]),
        (2, &json!(544))
    );
    let raw =
        post(&p, "/v1/audio/speech", "", &json!({ "model": "sim+size=1000", "input": "hi" })).await;
    assert_eq!((raw.body.len(), raw.chunks.len()), (1000, 4));
    let client = common::http().no_proxy().build().unwrap();
    let url = format!("{}/v1/models", p.base());
    let openai: Value = client.get(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!(openai["object"], "list");
    let anthropic = client.get(&url).header("anthropic-version", "2023-06-01");
    let anthropic: Value = anthropic.send().await.unwrap().json().await.unwrap();
    assert_eq!(anthropic["has_more"], false);
    assert_eq!(post(&p, "/v1/nothing", "", &json!({})).await.status, 404);
}

#[tokio::test]
async fn transcriptions_are_billed_by_duration() {
    let p = provider();
    let part = |name: &str, value: &str| {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let file = format!(
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n{}\r\n",
        "x".repeat(64_001)
    );
    let body = format!("{file}{}--b--\r\n", part("model", "sim-whisper+tokens=2"));
    let mut stream = TcpStream::connect(p.addr()).await.unwrap();
    let kind = "content-type: multipart/form-data; boundary=b\r\n";
    send(&mut stream, "/v1/audio/transcriptions", kind, body.as_bytes()).await;
    let json = receive(&mut stream).await.json();
    assert_eq!(
        json,
        json!({ "text": "lorem ipsum", "usage": { "type": "duration", "seconds": 3 } })
    );
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_offers_h2_and_http_1() {
    use rustls::pki_types::ServerName;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tollbar_loadtest::provider::TlsFiles;

    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = std::env::temp_dir().join(format!("provider-tls-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let files = TlsFiles { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let p = Provider::start(([127, 0, 0, 1], 0).into(), Some(files)).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(p.base().starts_with("https://"));
    for alpn in ["h2", "http/1.1"] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let tcp = TcpStream::connect(p.addr()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls =
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
        if alpn == "http/1.1" {
            tls.write_all(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut answer = Vec::new();
            let _ = tls.read_to_end(&mut answer).await;
            assert!(answer.starts_with(b"HTTP/1.1 200"));
        }
    }
}
