//! Secrets are seeded everywhere, and searched for in everything that comes out.

use crate::support::*;
use futures_util::future::join_all;
use std::time::Duration;
use tollbar_loadtest::provider::{Cut, Provider, Script};

const CLIENT_KEY: &str = "MARK-client-key-5f1c";
const EXPIRED_KEY: &str = "MARK-expired-key-77aa";
const UNKNOWN_KEY: &str = "MARK-unknown-key-901e";
const PROVIDER_KEY: &str = "MARK-provider-key-c3d9";
const BAD_PROVIDER_KEY: &str = "MARK-bad-provider-key-10ff";
const HEADER_SECRET: &str = "MARK-header-secret-ab42";
const TOKEN: &str = "MARK-qX7v2mKp9RtL4wZs8BnD3fHj6CgY5aUe";
const COOKIE: &str = "MARK-cookie-6be0";
const PROMPT: &str = "MARK-prompt-0d0d";

/// What all secrets have in common, and how they would look encoded.
const MARKS: [&str; 4] = ["MARK-", "TUFSSy", "4d41524b2d", "MARK%2D"];

fn config(provider: &Provider, dead: &str) -> String {
    let base = provider.base();
    let price = "price: { input: 1, output: 2 }";
    format!(
        "listeners: [{{ address: 127.0.0.1:0 }}]\n\
         admin: {{ address: 127.0.0.1:0, token: \"${{TOKEN}}\" }}\n\
         server: {{ threads: 2 }}\n\
         attempts: {{ same_target: 0 }}\n\
         breaker: {{ failures: 10000 }}\n\
         keys:\n  \
           - {{ id: marked, hash: \"{}\", models: [\"*\"], unlimited: true }}\n  \
           - {{ id: expired, hash: \"{}\", models: [\"*\"], unlimited: true, expires: 2020-01-01T00:00:00Z }}\n\
         providers:\n  \
           p: {{ dialect: openai, base_url: \"{base}/v1\", api_key: \"${{PROVIDER_KEY}}\", headers: {{ x-org-secret: \"${{HEADER_SECRET}}\" }} }}\n  \
           bad: {{ dialect: openai, base_url: \"{base}/v1\", api_key: \"${{BAD_PROVIDER_KEY}}\" }}\n  \
           dead: {{ dialect: openai, base_url: \"{dead}/v1\", api_key: \"${{PROVIDER_KEY}}\" }}\n  \
           a: {{ dialect: anthropic, base_url: \"{base}\", api_key: \"${{PROVIDER_KEY}}\" }}\n\
         models:\n  \
           gpt: {{ targets: [ {{ provider: p, model: sim-gpt, {price} }} ] }}\n  \
           fails: {{ targets: [ {{ provider: p, model: sim-f+status=500, {price} }} ] }}\n  \
           limited: {{ targets: [ {{ provider: p, model: sim-l+status=429, {price} }} ] }}\n  \
           refused: {{ targets: [ {{ provider: bad, model: sim-r+status=401, {price} }} ] }}\n  \
           gone: {{ targets: [ {{ provider: dead, model: sim-gone, {price} }} ] }}\n  \
           claude: {{ targets: [ {{ provider: a, model: sim-claude, {price} }} ] }}\n",
        hash(CLIENT_KEY),
        hash(EXPIRED_KEY),
    )
}

fn searched(what: &str, text: &str) {
    for mark in MARKS {
        let found = text.lines().find(|line| line.contains(mark));
        assert!(found.is_none(), "{what} shows a secret: {found:?}");
    }
}

/// Sends it with everything that must not get out, and searches the answer.
async fn send(request: reqwest::RequestBuilder) -> u16 {
    let request = request
        .header("cookie", COOKIE)
        .header("x-forwarded-for", format!("{COOKIE}-xff"))
        .header("x-forwarded-host", format!("{COOKIE}-xfh"))
        .header("forwarded", format!("for={COOKIE}"))
        .header("x-tollbar-secret", format!("{COOKIE}-own"))
        .header("proxy-authorization", format!("Basic {COOKIE}"))
        .header("x-stainless-lang", "python")
        .header("openai-organization", "org-of-somebody-else")
        .header("openai-project", "proj-of-somebody-else")
        .header("openai-beta", "assistants=v2");
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    searched("a response header", &format!("{:?}", answer.headers()).replace("\\n", "\n"));
    searched(
        "a response body",
        &String::from_utf8_lossy(&answer.bytes().await.unwrap_or_default()),
    );
    status
}

/// What a crash leaves behind, or the watchdog's SIGABRT, would hold all of them.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_crash_leaves_no_core_file() {
    let provider = provider();
    let server = Server::start_after(
        &crate::support::config(&provider),
        &[],
        "ulimit -S -c $(ulimit -H -c)",
    );
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    let core: Vec<&str> = core.split_whitespace().collect();
    // Soft and hard. At 1 a program that core files are piped to gets none either.
    assert!(matches!(core[..2], ["0", "0"] | ["1", "1"]), "{core:?}");
    let unit = include_str!("../../systemd/tollbar.service");
    assert!(unit.lines().any(|line| line == "LimitCORE=1"));
}

/// A provider that sends back what it was sent tells the client nothing.
#[tokio::test]
async fn credentials_in_an_answer_end_at_the_gateway() {
    let provider = provider();
    let server = Server::start(&crate::support::config(&provider));
    for status in [200, 400] {
        let names = [
            "authorization",
            "x-api-key",
            "api-key",
            "x-goog-api-key",
            "set-cookie",
            "set-cookie2",
            "www-authenticate",
            "proxy-authenticate",
            "authentication-info",
            "proxy-authentication-info",
            "via",
        ];
        let mark = |script: Script, name: &&str| script.header(name, "MARK-echo");
        let script = names.iter().fold(Script::status(status).header("x-kept", "yes"), mark);
        provider.script("sim-gpt", vec![script]);
        let url = server.url("/v1/chat/completions");
        let answer = post(&client(), url, chat("gpt").to_string()).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-kept"]),
            (status, &"yes".parse().unwrap())
        );
        let shown = answer.headers().iter().find(|(_, value)| *value == "MARK-echo");
        assert!(shown.is_none(), "{shown:?}");
    }
}

#[tokio::test]
async fn no_secret_gets_out() {
    let provider = provider();
    let stopped = crate::support::provider();
    let dead = stopped.base();
    stopped.stop().await;
    let vars = [
        ("TOKEN", TOKEN),
        ("PROVIDER_KEY", PROVIDER_KEY),
        ("BAD_PROVIDER_KEY", BAD_PROVIDER_KEY),
        ("HEADER_SECRET", HEADER_SECRET),
    ];
    let server = Server::start_with(&config(&provider, &dead), &vars);
    let said = |model: &str, stream: bool| {
        serde_json::json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": PROMPT}]}).to_string()
    };
    let chat_path = "/v1/chat/completions";
    for http in [client(), h2_client()] {
        let to = |path: &str| http.post(server.url(path));
        for header in ["x-api-key", "api-key", "x-goog-api-key"] {
            assert_eq!(
                send(to(chat_path).header(header, CLIENT_KEY).body(said("gpt", false))).await,
                200
            );
        }
        let good = |path: &str, body: String| to(path).bearer_auth(CLIENT_KEY).body(body);
        assert_eq!(send(good(chat_path, said("gpt", true))).await, 200);
        assert_eq!(
            send(good(
                "/v1/messages",
                said("claude", false).replacen('{', "{\"max_tokens\":5,", 1)
            ))
            .await,
            200
        );
        assert_eq!(
            send(good(&format!("{chat_path}?key={UNKNOWN_KEY}"), said("gpt", false))).await,
            200
        );
        assert_eq!(send(good(chat_path, said("fails", false))).await, 502);
        assert_eq!(send(good(chat_path, said("limited", true))).await, 429);
        // The second time the provider is left alone: its credential was refused.
        let refused = send(good(chat_path, said("refused", false))).await;
        assert!(matches!(refused, 502 | 503), "{refused}");
        assert_eq!(send(good(chat_path, said("gone", false))).await, 502);
        assert_eq!(send(good(chat_path, format!("{{\"model\": \"gpt\", {PROMPT}"))).await, 400);
        assert_eq!(send(good("/v1/nothing", said("gpt", false))).await, 404);
        assert_eq!(send(good("/v1/models", said("gpt", false))).await, 405);
        provider.script("sim-gpt", vec![Script { cut: Some(Cut::After(2)), ..Script::default() }]);
        assert_eq!(send(good(chat_path, said("gpt", true))).await, 200);
        provider.script(
            "sim-gpt",
            vec![Script { body: Some("{\"error\":".into()), ..Script::status(400) }],
        );
        assert_eq!(send(good(chat_path, said("gpt", false))).await, 400);
        for key in [EXPIRED_KEY, UNKNOWN_KEY, PROVIDER_KEY, TOKEN] {
            assert_eq!(send(to(chat_path).bearer_auth(key).body(said("gpt", false))).await, 401);
        }
        let two = to(chat_path).bearer_auth(CLIENT_KEY).header("x-api-key", UNKNOWN_KEY);
        assert_eq!(send(two.body(said("gpt", false))).await, 401);
        let basic = to(chat_path).header("authorization", format!("Basic {UNKNOWN_KEY}"));
        assert_eq!(send(basic.body(said("gpt", false))).await, 401);
        assert_eq!(send(http.get(server.url("/v1/models")).bearer_auth(CLIENT_KEY)).await, 200);
    }
    let lines = [
        format!("POST {chat_path} HTTP/1.1\r\nhost: x\r\nx-api-key: {UNKNOWN_KEY}\0\r\n\r\n"),
        format!(
            "GET http://{COOKIE}/v1/models?{UNKNOWN_KEY} HTTP/1.1\r\nhost: {COOKIE}\r\nx-api-key: {CLIENT_KEY}\r\n\r\n"
        ),
        format!(
            "POST {chat_path} HTTP/1.1\r\nhost: x\r\nx-api-key: {CLIENT_KEY}\r\ntransfer-encoding: chunked\r\n\r\n{PROMPT}\r\n"
        ),
        format!("{UNKNOWN_KEY} {COOKIE}\r\n\r\n"),
    ];
    join_all(lines.iter().map(|line| async {
        let mut raw = Raw::connect(server.data[0]).await;
        raw.send(line.as_bytes()).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await;
        searched("an answer to a hostile request", &String::from_utf8_lossy(&raw.rest().await));
    }))
    .await;
    admin(&server).await;
    upstream(&provider);
    logs(&server).await;
}

async fn admin(server: &Server) {
    let http = client();
    let get = |path: &str, token: &str| http.get(server.admin_url(path)).bearer_auth(token);
    assert_eq!(send(get("/status", CLIENT_KEY)).await, 403);
    assert_eq!(send(get("/status", UNKNOWN_KEY)).await, 401);
    assert_eq!(send(get("/metrics", "")).await, 200);
    assert_eq!(send(get("/status", TOKEN)).await, 200);
    assert_eq!(send(http.post(server.admin_url("/reload")).bearer_auth(TOKEN)).await, 200);
    let good = std::fs::read_to_string(server.config_file()).unwrap();
    let broken = good.replace("same_target", "same_targte");
    let broken = broken.replace("id: marked", &format!("id: marked, key: {CLIENT_KEY}"));
    std::fs::write(server.config_file(), broken).unwrap();
    assert_eq!(send(http.post(server.admin_url("/reload")).bearer_auth(TOKEN)).await, 400);
    assert_eq!(send(get("/status", TOKEN)).await, 200);
    // What is shown in a secret's place.
    let fingerprint = hash(PROVIDER_KEY)["sha256:".len()..][..8].to_owned();
    let status = get("/status", TOKEN).send().await.unwrap().text().await.unwrap();
    assert!(status.contains(&fingerprint), "{status}");
    let metrics = get("/metrics", "").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains(&format!("fingerprint=\"{fingerprint}\"")), "{metrics}");
}

/// Upstream sees its own credential and the SDK's headers; nothing of the client's.
fn upstream(provider: &Provider) {
    let all = provider.requests();
    assert!(all.len() > 15);
    for request in all {
        let authorization = request.header("authorization").map(str::to_owned);
        let own = if request.path_and_query == "/v1/messages" {
            assert_eq!(request.header("x-api-key"), Some(PROVIDER_KEY));
            assert_eq!(authorization, None);
            "x-api-key"
        } else {
            let bad = request.json()["model"].as_str().unwrap().starts_with("sim-r");
            let key = if bad { BAD_PROVIDER_KEY } else { PROVIDER_KEY };
            assert_eq!(authorization, Some(format!("Bearer {key}")));
            "authorization"
        };
        for (name, value) in &request.headers {
            assert!(
                name == own || name == "x-org-secret" || !value.contains("MARK-"),
                "{name}: {value}"
            );
            let client_only =
                ["cookie", "forwarded", "via", "api-key", "x-goog-api-key", "proxy-authorization"];
            assert!(!client_only.contains(&name.as_str()), "{name}");
            assert!(!name.starts_with("x-forwarded-") && !name.starts_with("x-tollbar-"), "{name}");
        }
        assert_eq!(request.header("x-stainless-lang"), Some("python"));
        // Who pays is the operator's choice; and a wrong one would look like a refused credential.
        assert_eq!(request.header("openai-organization"), None);
        assert_eq!(request.header("openai-project"), None);
        assert_eq!(request.header("openai-beta"), Some("assistants=v2"));
        assert_eq!(request.header("accept-encoding"), Some("identity"));
        assert!(!request.path_and_query.contains("MARK-"), "{}", request.path_and_query);
    }
}

async fn logs(server: &Server) {
    let log = server.log(40).await;
    assert!(log.iter().any(|line| line["code"] == "key_expired"));
    searched("the access log", &server.stdout().join("\n"));
    eventually(Duration::from_secs(5), || {
        server.stderr().iter().any(|line| line.contains("reload refused"))
    })
    .await;
    searched("the log", &server.stderr().join("\n"));
    let out = tollbar(&["check", "-c", "tollbar.yaml"], &server.scratch.0);
    searched("check", &String::from_utf8_lossy(&[out.stdout, out.stderr].concat()));
}
