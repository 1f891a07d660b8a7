//! Each credential opens its own door only, and none of them is anywhere on the disk.

use crate::support::*;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tollbar_loadtest::provider::{Provider, Script};

const APP_KEY: &str = "tb-doors-app-key-4c1b";
const PROVIDER_KEY: &str = "sk-doors-provider-key-77d0";
const TOKEN: &str = "doors-q7Xv2mKp9RtL4wZs8BnD3fHj6Cg";
const PROMPT: &str = "doors-prompt-93ab";

fn config(provider: &Provider) -> String {
    let base = provider.base();
    let price = "price: { input: 1, output: 2 }";
    format!(
        "listeners: [{{ address: 127.0.0.1:0 }}]\n\
         admin: {{ address: 127.0.0.1:0, token: \"${{TOKEN}}\" }}\n\
         server: {{ threads: 2 }}\nstate: {{ path: state/tollbar.db }}\nbreaker: {{ failures: 1000 }}\n\
         keys:\n  - {{ id: app, hash: \"{}\", models: [\"*\"], budgets: [ {{ usd: 5, per: day }} ], metadata: {{ app: doors }} }}\n\
         providers:\n  \
           p: {{ dialect: openai, base_url: \"{base}/v1\", api_key: \"${{PROVIDER_KEY}}\" }}\n  \
           a: {{ dialect: anthropic, base_url: \"{base}\", api_key: \"${{PROVIDER_KEY}}\" }}\n\
         models:\n  \
           gpt: {{ max_output_tokens: 20, targets: [ {{ provider: p, model: sim-gpt, {price} }} ] }}\n  \
           claude: {{ targets: [ {{ provider: a, model: sim-claude, {price} }} ] }}\n",
        hash(APP_KEY)
    )
}

fn start(provider: &Provider) -> Server {
    let vars = [("TOKEN", TOKEN), ("PROVIDER_KEY", PROVIDER_KEY)];
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.0.join("state")).unwrap();
    Server::start_here(scratch, &config(provider), &vars)
}

/// Every path of the contract's section 7, and some that are none.
const ADMIN_PATHS: [&str; 22] = [
    "GET /status",
    "POST /reload",
    "GET /budgets",
    "GET /spend",
    "GET /spend?group_by=key",
    "GET /requests",
    "GET /requests?limit=1",
    "GET /keys",
    "POST /keys",
    "GET /keys/app",
    "PATCH /keys/app",
    "DELETE /keys/app",
    "POST /keys/app/rotate",
    "POST /key/generate",
    "GET /key/info",
    "POST /key/update",
    "POST /key/delete",
    "POST /key/block",
    "POST /key/unblock",
    "GET /nothing",
    "POST /metrics",
    "GET //status",
];

/// Every path of the contract's section 3 that needs a key.
const DATA_PATHS: [&str; 21] = [
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v1/responses",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "POST /v1/moderations",
    "POST /v1/images/generations",
    "POST /v1/audio/transcriptions",
    "POST /v1/audio/translations",
    "POST /v1/audio/speech",
    "POST /openai/deployments/gpt/chat/completions",
    "POST /openai/deployments/gpt/embeddings",
    "POST /v1beta/models/gpt:generateContent",
    "POST /v1beta/models/gpt:streamGenerateContent",
    "GET /v1/models",
    "GET /v1/models/gpt",
    "POST /passthrough/p/v1/chat/completions",
    "GET /passthrough/p/v1/models",
    "GET /passthrough/p/v1/files",
    "POST /v1/nothing",
];

fn request(base: &str, line: &str) -> reqwest::RequestBuilder {
    let (method, path) = line.split_once(' ').unwrap();
    let request =
        client().request(Method::from_bytes(method.as_bytes()).unwrap(), format!("{base}{path}"));
    request.json(&json!({"model": "gpt", "id": "new", "messages": [], "input": "Hi"}))
}

/// Status and body of each line with these headers.
async fn all(base: &str, lines: &[&str], header: &str, value: &str) -> Vec<(String, u16, String)> {
    let mut answers = Vec::new();
    for line in lines {
        let answer = request(base, line).header(header, value).send().await.unwrap();
        let status = answer.status().as_u16();
        answers.push(((*line).to_owned(), status, answer.text().await.unwrap()));
    }
    answers
}

#[tokio::test]
async fn an_apps_key_opens_no_admin_path() {
    let provider = provider();
    let server = start(&provider);
    let base = format!("http://{}", server.admin);
    let before = admin_state(&server).await;
    for (line, status, body) in
        all(&base, &ADMIN_PATHS, "authorization", &format!("Bearer {APP_KEY}")).await
    {
        assert_eq!(status, 403, "{line}: {body}");
        assert!(body.contains("not_admin"), "{line}: {body}");
    }
    // Neither do its hash, another header, or nothing at all.
    for (header, value) in [
        ("authorization", format!("Bearer {}", hash(APP_KEY))),
        ("authorization", format!("Bearer {}", &hash(APP_KEY)["sha256:".len()..])),
        ("authorization", TOKEN.to_owned()),
        ("x-api-key", APP_KEY.to_owned()),
        ("x-api-key", TOKEN.to_owned()),
        ("accept", "*/*".to_owned()),
    ] {
        for (line, status, body) in all(&base, &ADMIN_PATHS, header, &value).await {
            assert_eq!(status, 401, "{header} {value}: {line}: {body}");
        }
    }
    assert_eq!(admin_state(&server).await, before, "something was done");
}

async fn admin_state(server: &Server) -> (Value, Value) {
    let get = async |path: &str| -> Value {
        let request = client().get(server.admin_url(path)).bearer_auth(TOKEN);
        request.send().await.unwrap().json().await.unwrap()
    };
    let status = get("/status").await;
    (status["generation"].clone(), get("/keys").await)
}

#[tokio::test]
async fn neither_the_admin_token_nor_a_hash_is_a_key() {
    let provider = provider();
    let server = start(&provider);
    let base = format!("http://{}", server.data[0]);
    let hashed = hash(APP_KEY);
    for value in [TOKEN, &hashed, &hashed["sha256:".len()..], PROVIDER_KEY] {
        let bearer = format!("Bearer {value}");
        for (header, value) in [
            ("authorization", bearer.as_str()),
            ("x-api-key", value),
            ("api-key", value),
            ("x-goog-api-key", value),
        ] {
            for (line, status, body) in all(&base, &DATA_PATHS, header, value).await {
                assert_eq!(status, 401, "{header}: {line}: {body}");
                assert!(!body.contains(value), "{line}: {body}");
            }
        }
    }
    assert!(provider.requests().is_empty());
    let answer = client().get(server.url("/healthz")).bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(answer.status(), 200, "open to all");
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
}

fn is_in(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The keys that were given out, and what must not be found either.
fn searched(server: &Server, made: &[&str]) -> usize {
    let mut found = Vec::new();
    files(&server.scratch.0, &mut found);
    let mut texts: Vec<(String, Vec<u8>)> = found
        .iter()
        .map(|path| (path.display().to_string(), std::fs::read(path).unwrap_or_default()))
        .collect();
    texts.push(("the access log".into(), server.stdout().join("\n").into_bytes()));
    texts.push(("the log".into(), server.stderr().join("\n").into_bytes()));
    for (name, bytes) in &texts {
        for secret in [APP_KEY, PROVIDER_KEY, TOKEN, PROMPT].iter().chain(made) {
            assert!(!is_in(bytes, secret), "{secret} is in {name}");
        }
    }
    let known = texts.iter().filter(|(_, bytes)| is_in(bytes, "app")).count();
    assert!(known >= 3, "the id is in the configuration, the state and the log");
    found.len()
}

#[tokio::test]
async fn no_credential_is_on_the_disk() {
    let provider = provider();
    let mut server = start(&provider);
    let make = |path: &str, body: Value| {
        client().post(server.admin_url(path)).bearer_auth(TOKEN).json(&body).send()
    };
    let made: Value = make("/keys", json!({"id": "app2", "models": ["*"], "unlimited": true}))
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let first = made["key"].as_str().unwrap().to_owned();
    let rotated: Value = make("/keys/app2/rotate", json!({})).await.unwrap().json().await.unwrap();
    let second = rotated["key"].as_str().unwrap().to_owned();
    provider.script(
        "sim-gpt",
        vec![Script::status(500), Script::status(429).header("retry-after-ms", "1")],
    );
    for key in [APP_KEY, &first, &second, APP_KEY] {
        for (path, model) in [("/v1/chat/completions", "gpt"), ("/v1/messages", "claude")] {
            let body = json!({"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": PROMPT}]});
            let request = client().post(server.url(path)).bearer_auth(key).json(&body);
            let _ = request.send().await.unwrap().bytes().await;
        }
    }
    // One that still runs when the process is killed stands in the journal.
    provider.set_default("sim-gpt", Script { delay_ms: 60_000, ..Script::default() });
    provider.clear();
    let body = json!({"model": "gpt", "messages": [{"role": "user", "content": PROMPT}]});
    let url = server.url("/v1/chat/completions");
    let hanging = tokio::spawn(client().post(url).bearer_auth(APP_KEY).json(&body).send());
    assert!(provider.wait_for(1, Duration::from_secs(10)).await);
    server.log(8).await;
    searched(&server, &[&first, &second]);
    server.signal("KILL");
    assert!(server.wait_exit(Duration::from_secs(10)).is_some());
    let _ = hanging.await;
    assert!(searched(&server, &[&first, &second]) >= 4, "configuration, database, journal");
}
