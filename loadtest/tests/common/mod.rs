//! A client that hides nothing: raw HTTP/1.1 over a TCP socket.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by several test programs, which may panic"
)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollbar_loadtest::provider::{Provider, Recorded};

pub const SOON: Duration = Duration::from_secs(5);

pub fn provider() -> Provider {
    Provider::start(SocketAddr::from(([127, 0, 0, 1], 0)), None).unwrap()
}

pub fn chat(model: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": "Hello, who are you?" }] })
}

pub fn chat_stream(model: &str) -> Value {
    let mut body = chat(model);
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    body
}

/// Sends a POST on a connection of its own choice.
pub async fn send(stream: &mut TcpStream, path: &str, headers: &str, body: &[u8]) {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
}

/// Everything read until the provider closes the connection or is done.
#[derive(Debug, Default)]
pub struct Raw {
    pub status: u16,
    pub head: String,
    /// The body with its transfer coding removed.
    pub body: Vec<u8>,
    /// Sizes of the HTTP chunks.
    pub chunks: Vec<usize>,
    /// The body ended as HTTP says it must.
    pub whole: bool,
    pub head_after: Duration,
    pub body_after: Duration,
    pub took: Duration,
}

impl Raw {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The JSON of all `data:` lines.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    /// The text of a streamed chat answer.
    pub fn chat_text(&self) -> String {
        let events = self.events();
        let texts = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
        texts.collect()
    }
}

/// Reads one answer.
pub async fn receive(stream: &mut TcpStream) -> Raw {
    let start = Instant::now();
    let mut raw = Raw::default();
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 65536];
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        bytes.extend_from_slice(&buffer[..read]);
        if raw.head.is_empty()
            && let Some(at) = find(&bytes, b"\r\n\r\n")
        {
            raw.head = String::from_utf8(bytes.drain(..at + 4).collect()).unwrap();
            raw.status = raw.head[9..12].parse().unwrap();
            raw.head_after = start.elapsed();
        }
        if !raw.head.is_empty() && !bytes.is_empty() && raw.body_after.is_zero() {
            raw.body_after = start.elapsed();
        }
        let chunked = raw.header("transfer-encoding").is_some();
        let length = raw.header("content-length").and_then(|v| v.parse().ok());
        raw.whole =
            if chunked { bytes.ends_with(b"0\r\n\r\n") } else { length == Some(bytes.len()) };
        if read == 0 || (!raw.head.is_empty() && raw.whole) {
            raw.body = if chunked { dechunk(&bytes, &mut raw.chunks) } else { bytes };
            raw.took = start.elapsed();
            return raw;
        }
    }
}

/// One request on a new connection.
pub async fn post(provider: &Provider, path: &str, headers: &str, body: &Value) -> Raw {
    let mut stream = TcpStream::connect(provider.addr()).await.unwrap();
    send(&mut stream, path, headers, body.to_string().as_bytes()).await;
    receive(&mut stream).await
}

pub async fn post_chat(provider: &Provider, body: &Value) -> Raw {
    post(provider, "/v1/chat/completions", "", body).await
}

/// The record of the only request, once it is over.
pub async fn only(provider: &Provider) -> Recorded {
    assert!(provider.wait_until(SOON, |all| all.len() == 1 && all[0].is_over()).await);
    provider.requests().remove(0)
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}

fn dechunk(mut bytes: &[u8], sizes: &mut Vec<usize>) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = find(bytes, b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        sizes.push(size);
        body.extend_from_slice(&bytes[at + 2..at + 2 + size]);
        bytes = &bytes[at + 2 + size + 2..];
    }
    body
}

/// A client builder. Within the workspace reqwest may be built without a TLS provider of its own.
#[allow(dead_code)]
pub fn http() -> reqwest::ClientBuilder {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}
