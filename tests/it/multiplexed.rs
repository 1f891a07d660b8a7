//! Requests that share a connection to a provider, as HTTP/2 has it, share nothing else.

use crate::raw::Raw;
use crate::support::*;
use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tollbar_loadtest::provider::Script;

/// A client that has stopped reading fills its own stream, not the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_does_not_read_is_in_nobodys_way() {
    let provider = provider();
    let event = Bytes::from(format!("data: {}\n\n", "x".repeat(16 * 1024)));
    let endless = Script { raw: Some(vec![event; 4096]), ..Script::default() };
    provider.script("sim-deaf", vec![endless]);
    let models = model("gpt", "sim-gpt", "") + &model("deaf", "sim-deaf", "");
    let config = config_of(&head(), &provider, ", http2: always", &models);
    let server = Server::start(&config);
    let mut deaf = Raw::connect(server.data[0]).await;
    let body = chat_stream("deaf").to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert!(deaf.send(request.as_bytes()).await);
    deaf.request().await.unwrap();
    let (http, url) = (client(), server.url("/v1/chat/completions"));
    for n in 0..300 {
        let answer = post(&http, url.clone(), chat("gpt").to_string());
        let answer = tokio::time::timeout(Duration::from_secs(10), answer).await;
        assert_eq!(answer.expect("no answer").status(), 200, "request {n}");
    }
    assert_eq!(provider.connections(), 1, "there was nothing to share");
}

/// What a provider does with a request.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Answer,
    /// An answer with this status to the header alone: the rest isn't wanted.
    Refuse(u16),
    /// A header, and that is all.
    Nothing,
    Reset(Reason),
}

async fn take(
    turn: Turn,
    request: http::Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    match turn {
        Turn::Reset(why) => respond.send_reset(why),
        Turn::Refuse(status) => {
            let head = http::Response::builder().status(status);
            let head = head.header("content-type", "application/json");
            let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
            let text = r#"{"error":{"message":"no","type":"invalid_request_error"}}"#;
            body.send_data(Bytes::from(text), true).unwrap();
            // The stream is reset then, once this is out (RFC 9113, section 8.1).
            drop(request);
        }
        Turn::Nothing => {
            drop(request);
            let head = http::Response::builder().header("content-type", "text/event-stream");
            respond.send_response(head.body(()).unwrap(), true).unwrap();
        }
        Turn::Answer => {
            let mut asked = request.into_body();
            while let Some(piece) = asked.data().await {
                asked.flow_control().release_capacity(piece.unwrap().len()).unwrap();
            }
            let head = http::Response::builder().header("content-type", "application/json");
            let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
            let text = r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;
            body.send_data(Bytes::from(text), true).unwrap();
        }
    }
}

/// A provider that does this with the requests that come, one after the other.
async fn provider_of(turns: Vec<Turn>) -> (String, Arc<Mutex<VecDeque<Turn>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let left = Arc::new(Mutex::new(VecDeque::from(turns)));
    let turns = left.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let turns = turns.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let turn = turns.lock().unwrap().pop_front();
                    tokio::spawn(take(turn.expect("one request too many"), request, respond));
                }
            });
        }
    });
    (base, left)
}

/// A stream that the provider says it hasn't looked at is sent again and costs nothing; one that it
/// has reset otherwise may have been worked on.
#[tokio::test]
async fn a_refused_stream_is_sent_again() {
    for (reason, attempts) in [
        (Reason::REFUSED_STREAM, &[("ok", "reported")][..]),
        (Reason::INTERNAL_ERROR, &[("ok", "reported"), ("read_error", "estimated")]),
    ] {
        let turns = vec![Turn::Answer, Turn::Reset(reason), Turn::Answer];
        let (base, left) = provider_of(turns).await;
        let server = Server::start(&format!(
            "{}providers:\n  p: {{ dialect: openai, base_url: \"{base}\", http2: always }}\nmodels:\n{}",
            head(),
            model("gpt", "sim-gpt", ", fallbacks: [spare]") + &model("spare", "sim-spare", "")
        ));
        let (http, url) = (client(), server.url("/v1/chat/completions"));
        let first = post(&http, url.clone(), chat("gpt").to_string()).await;
        assert_eq!(first.status(), 200);
        let second = post(&http, url, chat("gpt").to_string()).await;
        let line = server.log(2).await.pop().unwrap();
        assert_eq!(second.status(), 200, "{reason}: {line}");
        assert!(left.lock().unwrap().is_empty(), "{reason}");
        let rows = rows(&server, line["request_id"].as_str().unwrap()).await;
        let made: Vec<_> = rows
            .iter()
            .map(|row| (row["outcome"].as_str().unwrap(), row["usage_source"].as_str().unwrap()))
            .collect();
        assert_eq!(made, attempts, "{reason}");
    }
}

/// An answer that ends with its header is none: another attempt may give one.
#[tokio::test]
async fn an_answer_that_ends_with_its_header_fails_over() {
    let (base, left) = provider_of(vec![Turn::Nothing, Turn::Answer, Turn::Nothing]).await;
    let server = Server::start(&format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"{base}\", http2: always }}\n\
         attempts: {{ max: 2 }}\nmodels:\n{}",
        head(),
        model("gpt", "sim-gpt", ", fallbacks: [spare]") + &model("spare", "sim-spare", "")
    ));
    let url = server.url("/v1/chat/completions");
    let got = post(&client(), url.clone(), chat("gpt").to_string()).await;
    assert_eq!(
        (got.status(), &got.headers()["x-tollbar-attempts"]),
        (http::StatusCode::OK, &http::HeaderValue::from_static("2"))
    );
    assert!(!got.bytes().await.unwrap().is_empty());
    assert_eq!(left.lock().unwrap().len(), 1);
}

/// A provider may answer before it has read the body: that is its answer, and no attempt was paid.
#[tokio::test]
async fn an_answer_to_a_body_that_nobody_reads_is_an_answer() {
    let mut body = chat("gpt");
    body["messages"][0]["content"] = "x".repeat(3_000_000).into();
    for (status, got, outcome) in
        [(413, 413, "relayed_error"), (401, 502, "auth_failed"), (429, 429, "rate_limited")]
    {
        let (base, left) = provider_of(vec![Turn::Answer, Turn::Refuse(status)]).await;
        let server = Server::start(&format!(
            "{}providers:\n  p: {{ dialect: openai, base_url: \"{base}\", http2: always }}\n\
             attempts: {{ max: 1 }}\nmodels:\n{}",
            head(),
            model("gpt", "sim-gpt", "")
        ));
        let url = server.url("/v1/chat/completions");
        let large = post(&client(), url.clone(), body.to_string()).await;
        assert_eq!(large.status(), 200, "{status}: a body that is read");
        let answer = post(&client(), url, body.to_string()).await;
        let closes = answer.headers().get("connection").is_some_and(|value| value == "close");
        let (told, text) = (answer.status().as_u16(), answer.text().await.unwrap());
        assert_eq!(told, got, "{status}: {text}");
        // Pingora closes the connection of an answer that came early: the client has to know.
        assert_eq!(closes, status == 413, "{status}");
        assert!(left.lock().unwrap().is_empty(), "{status}");
        let line = server.log(2).await.pop().unwrap();
        assert_eq!(line["attempts"][0]["outcome"], outcome, "{line}");
        assert_eq!(line["cost_usd"], "0.000000000", "{line}");
    }
}
