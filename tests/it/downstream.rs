//! Listeners, TLS on both sides, keys, the gateway's own answers, and connections that are reused.

use crate::raw::Raw;
use crate::support::*;
use http::{Method, StatusCode};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tollbar_loadtest::provider::{Cut, Provider, Script, TlsFiles};

/// A self-signed certificate for these names, as `NAME.crt` and `NAME.key`; returns its PEM.
pub fn certificate(dir: &Path, name: &str, hosts: &[&str]) -> String {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(hosts).unwrap();
    std::fs::write(dir.join(format!("{name}.crt")), made.cert.pem()).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
    made.cert.pem()
}

pub fn tls_provider(dir: &Path, name: &str) -> Provider {
    let files =
        TlsFiles { cert: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) };
    Provider::start(([127, 0, 0, 1], 0).into(), Some(files)).unwrap()
}

#[tokio::test]
async fn a_tls_listener_speaks_both_versions_and_serves_renewed_certificates() {
    let provider = provider();
    let scratch = Scratch::new();
    let dir = &scratch.0;
    let old = certificate(dir, "tls", &["localhost", "127.0.0.1"]);
    let head = head().replace(
        "listeners: [{ address: 127.0.0.1:0 }]",
        &format!(
            "listeners: [{{ address: 127.0.0.1:0 }}, {{ address: 127.0.0.1:0, tls: {{ cert: {0}/tls.crt, key: {0}/tls.key }} }}]",
            dir.display()
        ),
    );
    let server = Server::start(&config_of(&head, &provider, "", &model("gpt", "sim-gpt", "")));
    let port = server.data[1].port();
    let url = || format!("https://localhost:{port}/v1/chat/completions");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let pinned = |pem: &str, h1: bool| {
        let root = reqwest::Certificate::from_pem(pem.as_bytes()).unwrap();
        let builder = reqwest::Client::builder().no_proxy().tls_certs_only([root]);
        let builder = builder.resolve("localhost", server.data[1]);
        if h1 { builder.http1_only() } else { builder }.build().unwrap()
    };
    for (h1, version) in [(true, reqwest::Version::HTTP_11), (false, reqwest::Version::HTTP_2)] {
        for body in [chat("gpt"), chat_stream("gpt")] {
            let answer = post(&pinned(&old, h1), url(), body.to_string()).await;
            assert_eq!((answer.status().as_u16(), answer.version()), (200, version));
        }
    }
    let kept = pinned(&old, false);
    assert_eq!(post(&kept, url(), chat("gpt").to_string()).await.status(), 200);
    let new = certificate(dir, "tls", &["localhost"]);
    let reload = || client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN).send();
    assert_eq!(reload().await.unwrap().status(), 200);
    assert_eq!(post(&pinned(&new, false), url(), chat("gpt").to_string()).await.status(), 200);
    assert!(
        pinned(&old, false).get(url()).send().await.is_err(),
        "the old certificate is not served any more"
    );
    assert_eq!(
        post(&kept, url(), chat("gpt").to_string()).await.status(),
        200,
        "an open connection stays"
    );
    // A certificate that can't be used is not served, and takes nothing down.
    std::fs::write(dir.join("tls.key"), "nonsense").unwrap();
    let _ = reload().await.unwrap();
    assert_eq!(post(&pinned(&new, false), url(), chat("gpt").to_string()).await.status(), 200);
    assert!(!server.stderr().join("\n").contains("panicked"), "{}", server.stderr().join("\n"));
}

#[tokio::test]
async fn a_providers_certificate_is_checked() {
    let scratch = Scratch::new();
    let dir = &scratch.0;
    certificate(dir, "right", &["localhost"]);
    certificate(dir, "wrong", &["other.example"]);
    let (right, wrong) = (tls_provider(dir, "right"), tls_provider(dir, "wrong"));
    let price = "price: { input: 1, output: 2 }";
    let mut text = format!("{}providers:\n", head());
    let cases = [
        ("good", &right, "right"),
        ("h2", &right, "right"),
        ("untrusted", &right, ""),
        ("other", &right, "wrong"),
        ("name", &wrong, "wrong"),
    ];
    for (name, provider, ca) in &cases {
        let port = provider.addr().port();
        let ca = if ca.is_empty() {
            String::new()
        } else {
            format!(", ca_file: {}/{ca}.crt", dir.display())
        };
        let http2 = if *name == "good" { "never" } else { "auto" };
        text += &format!(
            "  {name}: {{ dialect: openai, base_url: \"https://localhost:{port}/v1\", api_key: sk-x, http2: {http2}{ca} }}\n"
        );
    }
    text += "models:\n";
    for (name, ..) in &cases {
        text += &format!(
            "  m-{name}: {{ targets: [ {{ provider: {name}, model: sim-{name}, {price} }} ] }}\n"
        );
    }
    let server = Server::start(&text);
    // The good ones first: their pooled connections must not serve the others.
    for (name, ..) in &cases {
        let answer = post(
            &client(),
            server.url("/v1/chat/completions"),
            chat(&format!("m-{name}")).to_string(),
        )
        .await;
        let status = answer.status().as_u16();
        let said = answer.text().await.unwrap();
        if matches!(*name, "good" | "h2") {
            assert_eq!(status, 200, "{name}: {said}");
        } else {
            assert_eq!(status, 502, "{name}: {said}");
            assert!(said.contains("certificate") || said.contains("TLS"), "{name}: {said}");
        }
    }
    let versions: Vec<_> =
        right.requests().iter().map(|request| format!("{:?}", request.version)).collect();
    assert_eq!(versions, ["HTTP/1.1", "HTTP/2.0"]);
    assert_eq!(wrong.requests().len(), 0);
}

/// `all`, and `some` with globs; `old` has expired.
fn keys() -> String {
    format!(
        "  - {{ id: some, hash: \"{}\", models: [\"gpt-*\", \"claude\"], unlimited: true }}\n  \
           - {{ id: old, hash: \"{}\", models: [\"*\"], unlimited: true, expires: 2024-01-01T00:00:00Z }}\n",
        hash("vk-some"),
        hash("vk-old"),
    )
}

fn several(provider: &Provider) -> String {
    let models: String = ["gpt-a", "gpt-b", "claude", "secret-one", "org/gpt-x"]
        .iter()
        .map(|name| model(name, &format!("sim-{}", name.replace('/', "-")), ""))
        .collect();
    config_of(&head_with("threads: 2", &keys()), provider, "", &models)
}

#[tokio::test]
async fn keys_come_in_four_headers_and_one_at_a_time() {
    let provider = provider();
    let server = Server::start(&several(&provider));
    let url = || server.url("/v1/chat/completions");
    for http in [client(), h2_client()] {
        let to = |headers: &[(&str, &str)]| {
            let mut request = http.post(url()).body(chat("gpt-a").to_string());
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.send()
        };
        for header in [
            ("authorization", "Bearer vk-some"),
            ("x-api-key", "vk-some"),
            ("api-key", "vk-some"),
            ("x-goog-api-key", "vk-some"),
        ] {
            assert_eq!(to(&[header]).await.unwrap().status(), 200, "{header:?}");
        }
        assert_eq!(
            to(&[("authorization", "Bearer vk-some"), ("x-api-key", "vk-some")])
                .await
                .unwrap()
                .status(),
            200
        );
        let code = |answer: reqwest::Response| async move {
            let status = answer.status().as_u16();
            (
                status,
                answer.json::<Value>().await.unwrap()["error"]["code"].as_str().unwrap().to_owned(),
            )
        };
        let bad = (401, "invalid_api_key".to_owned());
        let two = to(&[("authorization", "Bearer vk-some"), ("x-api-key", KEY)]).await.unwrap();
        assert_eq!(code(two).await, bad);
        assert_eq!(code(to(&[("x-api-key", "vk-none")]).await.unwrap()).await, bad);
        assert_eq!(code(to(&[]).await.unwrap()).await, bad);
        assert_eq!(
            code(to(&[("x-api-key", "vk-old")]).await.unwrap()).await,
            (401, "key_expired".to_owned())
        );
        for (model, wanted) in
            [("secret-one", (403, "model_not_allowed")), ("gpt-z", (404, "model_not_found"))]
        {
            let request = http.post(url()).bearer_auth("vk-some").body(chat(model).to_string());
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let error: Value = answer.json().await.unwrap();
            assert_eq!((status, error["error"]["code"].as_str().unwrap()), wanted);
            if status == 404 {
                let message = error["error"]["message"].as_str().unwrap();
                assert!(message.contains("gpt-a") && !message.contains("secret"), "{message}");
            }
        }
    }
    assert_eq!(provider.requests().len(), 10);
}

#[tokio::test]
async fn models_are_listed_as_far_as_the_key_reaches() {
    let provider = provider();
    let server = Server::start(&several(&provider));
    let http = client();
    let get = |path: &str, key: &str, anthropic: bool| {
        let mut request = http.get(server.url(path)).bearer_auth(key);
        if anthropic {
            request = request.header("anthropic-version", "2023-06-01");
        }
        async move {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
        }
    };
    let ids = |list: &Value| -> Vec<String> {
        list["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|card| card["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let (_, list) = get("/v1/models", "vk-some", false).await;
    assert_eq!(
        (ids(&list), list["object"].as_str()),
        (vec!["claude".into(), "gpt-a".into(), "gpt-b".into()], Some("list"))
    );
    assert_eq!(list["data"][0]["object"], "model");
    let (_, list) = get("/v1/models", KEY, true).await;
    assert_eq!(ids(&list).len(), 5);
    assert_eq!(
        (&list["has_more"], &list["first_id"], &list["data"][0]["type"]),
        (&false.into(), &"claude".into(), &"model".into())
    );
    assert!(list["data"][0]["display_name"].is_string());
    for path in ["/v1/models/org/gpt-x", "/v1/models/org%2Fgpt-x"] {
        let (status, card) = get(path, KEY, false).await;
        assert_eq!((status, &card["id"]), (200, &"org/gpt-x".into()), "{path}");
    }
    assert_eq!(get("/v1/models/gpt-a", "vk-some", true).await.1["type"], "model");
    assert_eq!(get("/v1/models/secret-one", "vk-some", false).await.0, 403);
    assert_eq!(get("/v1/models/nix", "vk-some", false).await.0, 404);
    assert_eq!(get("/v1/models", "nobody", false).await.0, 401);
    for path in
        ["/", "/v1", "/v2/chat/completions", "/v1/files", "/v1/chat/completions/x", "/favicon.ico"]
    {
        let (status, error) = get(path, KEY, false).await;
        assert_eq!(
            (status, error["error"]["code"].as_str()),
            (404, Some("unknown_path")),
            "{path}"
        );
    }
    let wrong = http.get(server.url("/v1/chat/completions")).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(
        (wrong.status().as_u16(), &wrong.headers()["allow"]),
        (405, &"POST".parse().unwrap())
    );
    let wrong = http.delete(server.url("/v1/models")).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(
        (wrong.status().as_u16(), &wrong.headers()["allow"]),
        (405, &"GET".parse().unwrap())
    );
    let counted = server.metric("tollbar_requests_total").await;
    assert!(counted > 0.0);
    assert_eq!(http.get(server.url("/healthz")).send().await.unwrap().status(), 200);
    assert_eq!(server.metric("tollbar_requests_total").await, counted, "a probe");
    assert_eq!(provider.requests().len(), 0);
}

#[tokio::test]
async fn the_admin_listener_wants_its_own_token() {
    let provider = provider();
    let server = Server::start(&several(&provider));
    let http = client();
    let code = |path: &'static str, token: Option<&'static str>| {
        let request = http.get(server.admin_url(path));
        let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
        async move { request.send().await.unwrap().status().as_u16() }
    };
    for open in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(code(open, None).await, 200, "{open}");
    }
    for closed in ["/status", "/reload", "/keys", "/budgets", "/spend", "/requests", "/nothing"] {
        assert_eq!(code(closed, None).await, 401, "{closed}");
        assert_eq!(code(closed, Some("wrong")).await, 401, "{closed}");
        assert_eq!(code(closed, Some("vk-some")).await, 403, "{closed}");
    }
    assert_eq!(code("/status", Some(ADMIN_TOKEN)).await, 200);
    assert_eq!(code("/nothing", Some(ADMIN_TOKEN)).await, 404);
    assert_eq!(code("/reload", Some(ADMIN_TOKEN)).await, 405);
    let api_key = http
        .get(server.admin_url("/status"))
        .header("x-api-key", ADMIN_TOKEN)
        .send()
        .await
        .unwrap();
    assert_eq!(api_key.status(), 401);
    assert_eq!(
        http.get(server.url("/status")).bearer_auth(ADMIN_TOKEN).send().await.unwrap().status(),
        401
    );
}

#[tokio::test]
async fn upstream_connections_are_reused_and_dead_ones_replaced() {
    for more in ["", ", http2: always"] {
        let provider = provider();
        let server =
            Server::start(&config_of(&head(), &provider, more, &model("gpt", "sim-gpt", "")));
        let http = client();
        let send = async |body: Value| {
            let answer = post(&http, server.url("/v1/chat/completions"), body.to_string()).await;
            assert_eq!(answer.status(), 200, "{more}");
            assert_eq!(answer.headers()["x-tollbar-attempts"], "1");
            assert!(answer.bytes().await.unwrap().len() > 50);
        };
        for n in 0..100 {
            send(if n % 2 == 0 { chat("gpt") } else { chat_stream("gpt") }).await;
        }
        assert!(
            provider.connections() <= 4,
            "{more}: {} connections for 100 requests",
            provider.connections()
        );
        for n in 0..25 {
            assert!(provider.wait_idle(Duration::from_secs(5)).await);
            provider.close_idle().await;
            send(if n % 2 == 0 { chat("gpt") } else { chat_stream("gpt") }).await;
            assert_eq!(provider.requests().len(), 101 + n, "{more}: never a second call");
        }
        assert_eq!(provider.billed().requests, 125);
        let log = server.log(125).await;
        assert!(
            log.iter()
                .all(|line| line["attempts"].as_array().unwrap().len() == 1
                    && line["outcome"] == "ok")
        );
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it() {
    let provider = provider();
    let server = Server::start(&config_of(
        &head_with("threads: 2, max_body_bytes: 64KiB", ""),
        &provider,
        "",
        &model("gpt", "sim-gpt", ""),
    ));
    let body = chat("gpt").to_string();
    let head = |key: &str, length: usize| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut raw = Raw::connect(server.data[0]).await;
    for _ in 0..2 {
        raw.send(head(KEY, body.len()).as_bytes()).await;
        // Nothing of the body goes out before the server asks for it.
        assert_eq!(raw.answer().await.unwrap().0, 100);
        raw.send(body.as_bytes()).await;
        assert_eq!(raw.answer().await.unwrap().0, 200);
    }
    assert_eq!(provider.requests()[1].header("expect"), None);
    // Refused before a byte of the body was sent.
    for (key, length, wanted) in [("nobody", body.len(), 401), (KEY, 70_000, 413)] {
        let mut raw = Raw::connect(server.data[0]).await;
        let began = std::time::Instant::now();
        raw.send(head(key, length).as_bytes()).await;
        assert_eq!(raw.answer().await.unwrap().0, wanted);
        assert!(
            began.elapsed() < Duration::from_millis(1500),
            "it waited for a body that doesn't come"
        );
    }
}

/// A 100 is no answer: what becomes of the request after it is as it would be without.
#[tokio::test]
async fn what_follows_a_100_continue_is_an_answer_of_its_own() {
    let provider = provider();
    provider.script("sim-cut", vec![Script { cut: Some(Cut::Headers), ..Script::default() }]);
    provider.script("sim-ill", vec![Script::status(500), Script::status(500)]);
    let two = "targets: [ { provider: p, model: sim-cut, price: { input: 1, output: 2 } }, { provider: p, model: sim-gpt, price: { input: 1, output: 2 } } ]";
    let models = format!(
        "  two: {{ {two} }}\n{}{}",
        model("ill", "sim-ill", ""),
        model(
            "poor",
            "sim-gpt",
            ", max_output_tokens: 100, budgets: [ { usd: 0.000001, per: month } ]"
        )
    );
    let config = config_of(&head(), &provider, "", &models) + "attempts: { max: 2 }\n";
    let server = Server::start(&config);
    let cases =
        [("two", 200, "ok"), ("ill", 502, "upstream_error"), ("poor", 429, "budget_exceeded")];
    for (n, (model, status, code)) in cases.into_iter().enumerate() {
        let body = chat(model).to_string();
        let mut raw = Raw::connect(server.data[0]).await;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        raw.send(head.as_bytes()).await;
        assert_eq!(raw.answer().await.unwrap().0, 100);
        raw.send(body.as_bytes()).await;
        let (got, _, text) = raw.answer().await.unwrap_or_else(|| panic!("{model}: no answer"));
        let text = String::from_utf8(text).unwrap();
        assert_eq!(got, status, "{model}: {text}");
        let line = server.log(n + 1).await.pop().unwrap();
        assert_eq!(line["status"], status, "{line}");
        assert!(code == "ok" || text.contains(code), "{model}: {text}");
    }
}

/// What a client names in `connection` is not passed on, whatever it is, and no reason to be left
/// without an answer.
#[tokio::test]
async fn a_strange_connection_header_is_answered() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let body = chat("gpt").to_string();
    let many = (0..40).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(", ");
    for named in ["close, X-Forwarded-For", "host", "\"close\"", "keep-alive, te, x-own", &many] {
        let mut raw = Raw::connect(server.data[0]).await;
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nx-own: 1\r\nconnection: {named}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        raw.send(request.as_bytes()).await;
        let answer = raw.answer().await.unwrap_or_else(|| panic!("{named}: no answer"));
        assert_eq!(answer.0, 200, "{named}");
        let asked = provider.requests().pop().unwrap();
        assert_eq!(asked.header("connection"), None, "{named}");
        assert_eq!(asked.header("x-own").is_some(), !named.contains("x-own"), "{named}");
        assert!(asked.header("host").is_some(), "{named}");
    }
}

/// HTTP/1.0 knows no chunks: its answers end with the connection.
#[tokio::test]
async fn older_clients_get_no_chunks_and_monitors_may_ask_for_headers() {
    let provider = provider();
    let server = Server::start(&config(&provider));
    let body = chat_stream("gpt").to_string();
    let mut old = Raw::connect(server.data[0]).await;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.0\r\nx-api-key: {KEY}\r\nconnection: keep-alive\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    old.send(request.as_bytes()).await;
    let got = String::from_utf8(old.rest().await).unwrap();
    let (head, stream) = got.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
    assert!(stream.starts_with("data: ") && stream.ends_with("[DONE]\n\n"), "{stream}");
    let paths = ["/healthz", "/v1/models", "/v1/models/gpt"];
    let mut monitor = Raw::connect(server.data[0]).await;
    for path in paths {
        let ask = async |method: Method| {
            client().request(method, server.url(path)).bearer_auth(KEY).send().await.unwrap()
        };
        let (head, get) = (ask(Method::HEAD).await, ask(Method::GET).await);
        assert_eq!((head.status(), get.status()), (StatusCode::OK, StatusCode::OK), "{path}");
        assert_eq!(head.headers()["content-length"], get.headers()["content-length"]);
        // And nothing behind it: the next answer on the connection begins where it should.
        let request = format!("HEAD {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n");
        monitor.send(request.as_bytes()).await;
    }
    monitor.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let all = String::from_utf8(monitor.rest().await).unwrap();
    assert_eq!(all.matches("HTTP/1.1 200").count(), 4, "{all}");
    assert_eq!(all.matches("\r\n\r\n{").count(), 1, "{all}");
    let status = client().head(server.admin_url("/status")).bearer_auth(ADMIN_TOKEN);
    assert_eq!(status.send().await.unwrap().status(), 200);
}
