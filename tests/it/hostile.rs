//! Bytes that no honest client sends: an error or a closed connection, never more.

use crate::support::*;
use tollbar_loadtest::provider::{Provider, Script};

fn start() -> (Provider, Server) {
    let provider = provider();
    let head =
        head_with("threads: 2, header_timeout: 500ms, idle_timeout: 1s, max_body_bytes: 64KiB", "");
    let server = Server::start(&config_of(&head, &provider, "", &model("gpt", "sim-gpt", "")));
    (provider, server)
}

/// Afterwards: no panic, nothing was forwarded, and a good request is served.
async fn unharmed(provider: &Provider, server: &Server) {
    let forwarded: Vec<String> =
        provider.requests().iter().map(|r| format!("{r:?}").chars().take(600).collect()).collect();
    assert!(forwarded.is_empty(), "something was forwarded: {forwarded:?}");
    for http in [client(), h2_client()] {
        let answer = post(&http, server.url("/v1/chat/completions"), chat("gpt").to_string()).await;
        assert_eq!(answer.status(), 200);
    }
    let log = server.stderr().join("\n");
    assert!(!log.contains("panicked"), "{log}");
    at_zero(server, "tollbar_buffered_bytes").await;
    at_zero(server, "tollbar_inflight{").await;
}

/// Sends the bytes, and expects every answer to be a 4xx, until the server closes or (with
/// `stays`) at least one answer came.
async fn refused(server: &Server, what: &str, bytes: &[u8]) {
    let mut raw = Raw::connect(server.data[0]).await;
    raw.send(bytes).await;
    // The client says no more: the server must come to an end by itself.
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await;
    let all = raw.rest().await;
    let text = String::from_utf8_lossy(&all);
    if all.is_empty() {
        return;
    }
    assert!(text.starts_with("HTTP/1.1 4"), "{what}: {text}");
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{what}: one answer, and the end: {text}");
    assert!(!text.contains(KEY), "{what}");
}

const BODY: &str = r#"{"model":"gpt","messages":[]}"#;

/// A request with a good key, the given header lines and body.
fn with(lines: &str, body: &str) -> Vec<u8> {
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n{lines}\r\n{body}").into_bytes()
}

#[tokio::test]
async fn bodies_whose_length_is_a_matter_of_opinion() {
    let (provider, server) = start();
    let n = BODY.len();
    let chunked = format!("{n:x}\r\n{BODY}\r\n0\r\n\r\n");
    let smuggled = format!(
        "0\r\n\r\nPOST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {n}\r\n\r\n{BODY}"
    );
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "CL and TE",
            with(&format!("content-length: {n}\r\ntransfer-encoding: chunked\r\n"), &chunked),
        ),
        ("TE and CL", with("transfer-encoding: chunked\r\ncontent-length: 4\r\n", &smuggled)),
        (
            "TE and CL, odd space",
            with("transfer-encoding: chunked\r\ncontent-length : 4\r\n", &smuggled),
        ),
        ("two CLs", with(&format!("content-length: {n}\r\ncontent-length: 0\r\n"), BODY)),
        ("two CLs in a line", with(&format!("content-length: {n}, 0\r\n"), BODY)),
        ("negative CL", with("content-length: -1\r\n", BODY)),
        ("signed CL", with(&format!("content-length: +{n}\r\n"), BODY)),
        ("CL with space", with("content-length: 1 0\r\n", BODY)),
        ("hex CL", with("content-length: 0x1d\r\n", BODY)),
        ("huge CL", with("content-length: 99999999999999999999999\r\n", BODY)),
        ("empty CL", with("content-length: \r\n", BODY)),
        ("unknown TE", with("transfer-encoding: gzip\r\n", &chunked)),
        ("TE xchunked", with("transfer-encoding: xchunked\r\n", &chunked)),
        (
            "TE chunked twice",
            with("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", &chunked),
        ),
        ("TE not last", with("transfer-encoding: chunked, identity\r\n", &chunked)),
        ("coded chunks", with("transfer-encoding: gzip, chunked\r\n", &chunked)),
        (
            "coded chunks, two lines",
            with("transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n", &chunked),
        ),
        ("chunked chunks", with("transfer-encoding: chunked, chunked\r\n", &chunked)),
        (
            "chunked chunks, two lines",
            with("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", &chunked),
        ),
        ("bad chunk size", with("transfer-encoding: chunked\r\n", "zz\r\nhello\r\n0\r\n\r\n")),
        ("negative chunk", with("transfer-encoding: chunked\r\n", "-5\r\nhello\r\n0\r\n\r\n")),
        (
            "huge chunk",
            with("transfer-encoding: chunked\r\n", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ),
        ("overlong chunk", with("transfer-encoding: chunked\r\n", "2\r\nhello\r\n0\r\n\r\n")),
        ("no end of chunk", with("transfer-encoding: chunked\r\n", "5\r\nhelloXX0\r\n\r\n")),
        ("cut chunk", with("transfer-encoding: chunked\r\n", "500\r\nhello")),
        ("cut body", with("content-length: 500\r\n", BODY)),
        ("body too long", with("content-length: 999999\r\n", BODY)),
        ("coded body", with(&format!("content-encoding: gzip\r\ncontent-length: {n}\r\n"), BODY)),
    ];
    for (what, bytes) in &cases {
        refused(&server, what, bytes).await;
    }
    unharmed(&provider, &server).await;
}

/// Where a body breaks nobody knows where the next request begins: on a connection that a front proxy
/// shares among its clients, somebody would get another's answer.
#[tokio::test]
async fn a_connection_ends_with_a_body_that_breaks() {
    let (provider, server) = start();
    for chunks in ["zz\r\n", "-5\r\n", "3\r\nabcXX"] {
        let admin = format!(
            "POST /keys HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_TOKEN}\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"
        );
        let data = with("transfer-encoding: chunked\r\n", chunks);
        for (to, bytes) in [(server.data[0], data), (server.admin, admin.into_bytes())] {
            let mut raw = Raw::connect(to).await;
            raw.send(&bytes).await;
            let (status, head, _) = raw.answer().await.unwrap();
            assert_eq!(status, 400, "{chunks}: {head}");
            assert!(head.contains("connection: close"), "{chunks}: {head}");
            raw.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
            assert!(raw.rest().await.is_empty(), "{chunks}: the next request was served");
        }
    }
    // Where nobody reads the body, too, and where two would read another one.
    for (line, chunks) in [
        ("GET /healthz HTTP/1.1\r\ntransfer-encoding: chunked", "zz\r\n"),
        ("POST /keys HTTP/1.1\r\ntransfer-encoding: chunked", "zz\r\n"),
        ("GET /healthz HTTP/1.1\r\ntransfer-encoding: gzip, chunked", "0\r\n\r\n"),
        ("GET /healthz HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked", "0\r\n\r\n"),
    ] {
        let mut raw = Raw::connect(server.admin).await;
        raw.send(format!("{line}\r\nhost: x\r\n\r\n{chunks}").as_bytes()).await;
        let (_, head, _) = raw.answer().await.unwrap();
        assert!(head.contains("connection: close"), "{line}: {head}");
        raw.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(raw.rest().await.is_empty(), "{line}: the next request was served");
    }
    unharmed(&provider, &server).await;
}

#[tokio::test]
async fn headers_that_are_none() {
    let (provider, server) = start();
    let good = format!("content-length: {}\r\n", BODY.len());
    let long = "a".repeat(2_000_000);
    let many: String = (0..5000).map(|i| format!("x-{i}: y\r\n")).collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("long header", with(&format!("{good}x-long: {long}\r\n"), BODY)),
        ("long name", with(&format!("{good}{long}: x\r\n"), BODY)),
        ("many headers", with(&format!("{good}{many}"), BODY)),
        ("long path", format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes()),
        ("NUL in a value", with(&format!("{good}x-a: b\0c\r\n"), BODY)),
        ("NUL in a name", with(&format!("{good}x-a\0: b\r\n"), BODY)),
        ("bare CR", with(&format!("{good}x-a: b\rx-tollbar-key: c\r\n"), BODY)),
        ("space before colon", with(&format!("{good}x-a : b\r\n"), BODY)),
        ("no colon", with(&format!("{good}nonsense\r\n"), BODY)),
        ("empty name", with(&format!("{good}: b\r\n"), BODY)),
        ("obs-fold", with(&format!("{good}x-a: b\r\n c: d\r\n"), BODY)),
        ("name with CRLF escape", with(&format!("{good}x-a%0d%0ax: b\r\nx\"y: 1\r\n"), BODY)),
        ("a key of bytes", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: \xff\xfe\r\ncontent-length: 2\r\n\r\n{}".to_vec()),
        ("two keys", with(&format!("{good}x-api-key: other\r\n"), BODY)),
        ("HTTP/0.9", b"GET /v1/models\r\n".to_vec()),
        ("HTTP/9.9", b"GET /v1/models HTTP/9.9\r\nhost: x\r\n\r\n".to_vec()),
        ("no version", b"GET /v1/models \r\n\r\n".to_vec()),
        ("bytes", (0..=255).cycle().take(4000).collect()),
        ("TLS to a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".iter().chain([7; 512].iter()).copied().collect()),
        ("only line ends", b"\r\n\r\n\r\n\r\n".to_vec()),
        ("half a request", b"POST /v1/chat/comple".to_vec()),
        ("h2 preface, then nonsense", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 300]].concat()),
        ("half a preface", b"PRI * HTTP/2.0\r\n\r\nSM".to_vec()),
    ];
    for (what, bytes) in &cases {
        if what.starts_with("h2") || what.starts_with("half a preface") {
            let mut raw = Raw::connect(server.data[0]).await;
            raw.send(bytes).await;
            raw.rest().await;
        } else {
            refused(&server, what, bytes).await;
        }
    }
    unharmed(&provider, &server).await;
}

#[tokio::test]
async fn targets_hosts_and_methods() {
    let (provider, server) = start();
    let n = BODY.len();
    let key = format!("authorization: Bearer {KEY}\r\ncontent-length: {n}\r\n");
    let line = |line: &str, host: &str| format!("{line}\r\n{host}{key}\r\n{BODY}").into_bytes();
    let chat = "POST /v1/chat/completions HTTP/1.1";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "absolute form",
            line("POST http://evil.example/v1/chat/completions HTTP/1.1", "host: x\r\n"),
        ),
        ("absolute form, other scheme", line("POST file:///etc/passwd HTTP/1.1", "host: x\r\n")),
        ("authority form", line("CONNECT evil.example:443 HTTP/1.1", "host: evil.example\r\n")),
        ("asterisk", line("OPTIONS * HTTP/1.1", "host: x\r\n")),
        ("TRACE", line("TRACE /v1/chat/completions HTTP/1.1", "host: x\r\n")),
        ("PUT", line("PUT /v1/chat/completions HTTP/1.1", "host: x\r\n")),
        ("unknown method", line("BREW /v1/chat/completions HTTP/1.1", "host: x\r\n")),
        ("method of bytes", line("P\u{0}ST /v1/chat/completions HTTP/1.1", "host: x\r\n")),
        ("two hosts", line(chat, "host: x\r\nhost: evil.example\r\n")),
        ("dots", line("POST /v1/../v1/chat/completions HTTP/1.1", "host: x\r\n")),
        ("coded dots", line("POST /v1/%2e%2e/v1/chat/completions HTTP/1.1", "host: x\r\n")),
        ("double slash", line("POST //v1/chat/completions HTTP/1.1", "host: x\r\n")),
        ("coded slash", line("POST /v1%2fchat/completions HTTP/1.1", "host: x\r\n")),
        ("backslash", line("POST /v1\\chat\\completions HTTP/1.1", "host: x\r\n")),
        ("fragment", line("POST /admin#/v1/chat/completions HTTP/1.1", "host: x\r\n")),
        ("semicolon", line("POST /v1/chat/completions;x=1 HTTP/1.1", "host: x\r\n")),
        ("trailing slash", line("POST /v1/chat/completions/ HTTP/1.1", "host: x\r\n")),
        ("other case", line("POST /V1/Chat/Completions HTTP/1.1", "host: x\r\n")),
        (
            "model out of its place",
            line("POST /v1beta/models/..%2f..%2fadmin:generateContent HTTP/1.1", "host: x\r\n"),
        ),
        (
            "model with CRLF",
            line("POST /openai/deployments/a%0d%0ax:y/chat/completions HTTP/1.1", "host: x\r\n"),
        ),
        (
            "deployment out of its place",
            line("POST /openai/deployments/../../admin/chat/completions HTTP/1.1", "host: x\r\n"),
        ),
        ("broken escape", line("GET /v1/models/%zz HTTP/1.1", "host: x\r\n")),
        ("escape not UTF-8", line("GET /v1/models/%ff%fe HTTP/1.1", "host: x\r\n")),
        ("path of bytes", b"GET /v1/models/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        (
            "passthrough out of its place",
            line("POST /passthrough/p/../../x HTTP/1.1", "host: x\r\n"),
        ),
        ("passthrough, coded", line("POST /passthrough/p/%2e%2e/%2e%2e/x HTTP/1.1", "host: x\r\n")),
        ("passthrough, coded slash", line("POST /passthrough/p%2f..%2f/x HTTP/1.1", "host: x\r\n")),
        (
            "passthrough to a host",
            line("POST /passthrough/p/@evil.example/x HTTP/1.1", "host: x\r\n"),
        ),
        (
            "passthrough, no such provider",
            line("POST /passthrough/evil.example/x HTTP/1.1", "host: x\r\n"),
        ),
        ("admin on the data port", line("POST /reload HTTP/1.1", "host: x\r\n")),
        ("metrics on the data port", line("GET /metrics HTTP/1.1", "host: x\r\n")),
    ];
    for (what, bytes) in &cases {
        refused(&server, what, bytes).await;
    }
    unharmed(&provider, &server).await;
}

/// A Host that lies changes nothing about where a request goes.
#[tokio::test]
async fn the_host_header_steers_nothing() {
    let (provider, server) = start();
    let n = BODY.len();
    let own = provider.addr().to_string();
    for host in [
        "host: evil.example\r\n",
        "host: user:pass@evil.example\r\n",
        "host: \r\n",
        "",
        "x-forwarded-host: evil\r\nhost: x\r\n",
    ] {
        let mut raw = Raw::connect(server.data[0]).await;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\n{host}x-api-key: {KEY}\r\ncontent-length: {n}\r\n\r\n{BODY}"
        );
        raw.send(head.as_bytes()).await;
        match raw.answer().await {
            Some((200, ..)) => {
                for request in provider.requests() {
                    assert_eq!(request.header("host"), Some(own.as_str()), "{host}");
                    assert!(!format!("{:?}", request.headers).contains("evil"), "{host}");
                }
            }
            Some((status, ..)) => assert!((400..500).contains(&status), "{host}: {status}"),
            None => {}
        }
    }
    provider.clear();
    unharmed(&provider, &server).await;
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be() {
    let (provider, server) = start();
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let nested = format!("{{\"model\":\"gpt\",\"x\":{deep}}}");
    let cases: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"\"gpt\"".to_vec(),
        b"{".to_vec(),
        b"{}".to_vec(),
        b"{\"model\":\"gpt\"".to_vec(),
        b"{\"model\":\"gpt\"} {}".to_vec(),
        b"{\"model\":\"gpt\",}".to_vec(),
        b"{'model':'gpt'}".to_vec(),
        b"{\"model\":\"\xff\xfe\"}".to_vec(),
        b"{\"model\":\"gpt\",\"a\":\"\xc3\x28\"}".to_vec(),
        b"{\"model\":\"gpt\",\"a\":\"\0\"}".to_vec(),
        b"{\"model\":null}".to_vec(),
        b"{\"model\":7}".to_vec(),
        b"{\"model\":[\"gpt\"]}".to_vec(),
        b"{\"model\":\"\"}".to_vec(),
        b"{\"model\":\"../../gpt\"}".to_vec(),
        b"{\"model\":\"%2e%2e%2fgpt\"}".to_vec(),
        b"{\"model\":\"gpt\\u0000\"}".to_vec(),
        b"{\"model\":\"gpt\\r\\nx: y\"}".to_vec(),
        b"{\"model\":\"http://evil.example/\"}".to_vec(),
        b"{\"model\":\"p/sim-gpt\"}".to_vec(),
        b"{\"model\":\"gpt\",\"stream\":\"yes\"}".to_vec(),
        b"{\"model\":\"gpt\",\"a\":01}".to_vec(),
        b"{\"model\":\"gpt\",\"a\":NaN}".to_vec(),
        b"{\"model\":\"gpt\",\"a\":\"\\ud800\"".to_vec(),
        b"\xef\xbb\xbf{\"model\":\"gpt\"}".to_vec(),
        nested.into_bytes(),
    ];
    for body in cases {
        for http in [client(), h2_client()] {
            let shown: String = String::from_utf8_lossy(&body).chars().take(60).collect();
            let answer = post(&http, server.url("/v1/chat/completions"), body.clone()).await;
            let status = answer.status().as_u16();
            assert!((400..500).contains(&status), "{shown}: {status}");
            let error: serde_json::Value = answer.json().await.unwrap();
            assert!(error["error"]["message"].is_string(), "{shown}: {error}");
        }
    }
    unharmed(&provider, &server).await;
}

/// A header that doesn't end and a body that doesn't come cost a connection, and only that.
#[tokio::test]
async fn slow_clients_are_let_go() {
    let (provider, server) = start();
    let slow = |start: Vec<u8>, drip: &'static [u8]| {
        let to = server.data[0];
        tokio::spawn(async move {
            let mut raw = Raw::connect(to).await;
            raw.send(&start).await;
            let (mut read, mut write) = raw.stream.split();
            // The client never closes, and drips until the server has had enough.
            let dripping = async {
                while tokio::io::AsyncWriteExt::write_all(&mut write, drip).await.is_ok() {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                std::future::pending::<()>().await;
            };
            let mut answer = Vec::new();
            let reading = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut answer);
            tokio::select! {
                () = dripping => unreachable!(),
                _ = tokio::time::timeout(std::time::Duration::from_secs(15), reading) => {}
            }
            answer
        })
    };
    let mut all = Vec::new();
    for _ in 0..20 {
        all.push(slow(b"".to_vec(), b""));
        all.push(slow(b"POST /v1/chat/completions HTTP/1.1\r\n".to_vec(), b"x-a: b\r\n"));
        all.push(slow(b"PRI * HTTP/2.0\r\n".to_vec(), b""));
        all.push(slow(with("content-length: 5000\r\n", "{"), b""));
    }
    // Others are served meanwhile.
    let answer = post(&client(), server.url("/v1/chat/completions"), chat("gpt").to_string()).await;
    assert_eq!(answer.status(), 200);
    provider.clear();
    let began = std::time::Instant::now();
    for task in all {
        let answer = task.await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    }
    let took = began.elapsed();
    assert!(
        took < std::time::Duration::from_secs(10),
        "slow clients held their connections for {took:?}"
    );
    unharmed(&provider, &server).await;
}

/// Without a good key nothing reaches a provider, whatever stands in for it.
#[tokio::test]
async fn no_key_no_way() {
    let (provider, server) = start();
    provider.set_default("*", Script::default());
    let digest = hash(KEY);
    let keys = [
        "",
        " ",
        "x",
        "' OR '1'='1",
        "*",
        &digest,
        &digest[7..],
        &KEY[..KEY.len() - 1],
        &KEY.to_uppercase(),
        &format!("{KEY}x"),
        ADMIN_TOKEN,
        "sk-provider",
        "null",
        "undefined",
    ];
    let paths = [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/moderations",
        "/v1/images/generations",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/openai/deployments/gpt/chat/completions",
        "/v1beta/models/gpt:generateContent",
        "/passthrough/p/chat/completions",
    ];
    let http = client();
    for path in paths {
        for key in keys {
            let request = http.post(server.url(path)).header("x-api-key", key).body(BODY);
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 401, "{path} with {key:?}");
        }
        assert_eq!(
            http.post(server.url(path)).body(BODY).send().await.unwrap().status(),
            401,
            "{path}"
        );
    }
    unharmed(&provider, &server).await;
}
