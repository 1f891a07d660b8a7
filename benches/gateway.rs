//! Starts the gateway itself under a command (`valgrind …`), sends it requests, and ends it:
//! `gateway NAME REQUESTS COMMAND…`. Without arguments it lists the cases. For
//! `instructions.py`, which runs it twice and takes the difference.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "operations/samples.rs"]
mod samples;

use bytes::Bytes;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tollbar_loadtest::provider::{Provider, Script};

const KEY: &str = "tb-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";

/// Requests at the same time.
const CLIENTS: usize = 4;

/// What is asked, and in how many pieces the answer comes.
struct Case {
    name: &'static str,
    body: fn() -> Bytes,
    chunks: usize,
    /// Requests of the two runs.
    runs: (usize, usize),
}

const SMALL: Case =
    Case { name: "gateway/300B", body: || plain(samples::text(300)), chunks: 1, runs: (40, 240) };

const CASES: [Case; 5] = [
    SMALL,
    Case {
        name: "gateway/100KB",
        body: || plain(samples::agent(100_000)),
        runs: (20, 80),
        ..SMALL
    },
    Case { name: "gateway/2MB", body: || plain(samples::text(2_000_000)), runs: (8, 20), ..SMALL },
    Case { name: "gateway/stream-1-chunk", body: || samples::text(300), ..SMALL },
    Case {
        name: "gateway/stream-200-chunks",
        body: || samples::text(300),
        chunks: 200,
        runs: (12, 42),
    },
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [name, requests, command @ ..] = args.as_slice() else {
        return CASES.iter().for_each(|Case { name, runs: (few, many), .. }| {
            println!("{name} request {few} {many}");
        });
    };
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(serve(case, requests.parse().unwrap(), command));
}

/// The same request for an answer in one piece.
fn plain(body: Bytes) -> Bytes {
    String::from_utf8_lossy(&body).replace("\"stream\":true", "\"stream\":false").into()
}

async fn serve(case: &Case, requests: usize, command: &[String]) {
    let provider = Provider::start(([127, 0, 0, 1], 0).into(), None).unwrap();
    provider.set_default("*", Script { chunks: Some(case.chunks), ..Script::default() });
    provider.keep(1);
    let dir = std::env::temp_dir().join(format!("tollbar-bench-gateway-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("tollbar.yaml");
    std::fs::write(&file, config(&provider, &dir)).unwrap();
    let (gateway, url) = start(command, &file);
    let mut gateway = Running(gateway);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().http1_only().build().unwrap();
    let body = (case.body)();
    let clients = (0..CLIENTS).map(|_| {
        let (client, url, body) = (client.clone(), url.clone(), body.clone());
        tokio::spawn(async move {
            for _ in 0..requests / CLIENTS {
                let asked = client.post(&url).bearer_auth(KEY).body(body.clone());
                let answer = asked.header("content-type", "application/json").send().await;
                let answer = answer.unwrap().error_for_status().unwrap();
                assert!(!answer.bytes().await.unwrap().is_empty());
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let pid = gateway.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(gateway.0.wait().unwrap().success());
    let _ = std::fs::remove_dir_all(&dir);
}

/// Every control is on, and none is in the way.
fn config(provider: &Provider, dir: &Path) -> String {
    let hash = hex::encode(tollbar::secret::sha256(KEY.as_bytes()));
    let scope = "limits: { rpm: 1000000000, tpm: 1000000000000, parallel: 100000 }, budgets: [ { usd: 1000000, per: month } ]";
    format!(
        r#"
listeners: [ {{ address: "127.0.0.1:0" }} ]
admin: {{ address: "127.0.0.1:0" }}
state: {{ path: "{}" }}
server: {{ threads: 1, drain: 1s }}
providers:
  p: {{ dialect: openai, base_url: "{}/v1", api_key: sk-provider, {scope} }}
models:
  gpt-4o-mini:
    targets: [ {{ provider: p, model: gpt-4o-mini-2024-07-18, price: {{ input: 0.15, output: 0.6 }} }} ]
    max_output_tokens: 4096
    context_window: 10000000
    limits: {{ rpm: 1000000000, tpm: 1000000000000, parallel: 100000 }}
keys:
  - {{ id: web-prod, hash: "sha256:{hash}", team: web, user: ana, models: ["*"], {scope} }}
teams: {{ web: {{ {scope} }} }}
users: {{ ana: {{ {scope} }} }}
global: {{ {scope} }}
"#,
        dir.join("tollbar.db").display(),
        provider.base()
    )
}

/// A process that doesn't outlive a failure of this one.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The gateway, and where it takes chats.
fn start(command: &[String], file: &Path) -> (Child, String) {
    let own = PathBuf::from(env!("CARGO_BIN_EXE_tollbar"));
    let mut line = command.iter().map(PathBuf::from).chain([own]);
    let mut gateway = Command::new(line.next().unwrap());
    gateway.args(line).args(["run", "-c"]).arg(file).stdin(Stdio::null());
    let mut gateway = gateway.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(gateway.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut address = None;
    for line in lines.by_ref() {
        if let Some((_, url)) = line.split_once("listening on ") {
            address = Some(url.trim().to_owned());
        }
        if line.contains("admin on ") {
            break;
        }
    }
    std::thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
    (gateway, format!("{}/v1/chat/completions", address.unwrap()))
}
