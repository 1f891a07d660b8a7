//! What the tests share: the real binary as a child process, and clients for it.
#![allow(dead_code)]

pub use crate::raw::Raw;
use std::io::Write;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::Provider;

/// The virtual key of [`config`].
pub const KEY: &str = "tb-test-key";
/// The admin token of [`config`].
pub const ADMIN_TOKEN: &str = "q7Xv2mKp9RtL4wZs8BnD3fHj6CgY5aUe";

/// A scripted provider on a free port.
pub fn provider() -> Provider {
    Provider::start(SocketAddr::from(([127, 0, 0, 1], 0)), None).unwrap()
}

/// The hash of a key as the configuration writes it.
pub fn hash(key: &str) -> String {
    format!("sha256:{}", hex::encode(tollbar::secret::sha256(key.as_bytes())))
}

/// The head that every configuration here needs: free ports, admin token, one unlimited key.
pub fn head() -> String {
    head_with("threads: 2", "")
}

/// [`head`] with these settings of `server` and with more `keys`.
pub fn head_with(server: &str, keys: &str) -> String {
    format!(
        "listeners: [{{ address: 127.0.0.1:0 }}]\n\
         admin: {{ address: 127.0.0.1:0, token: {ADMIN_TOKEN} }}\n\
         server: {{ {server} }}\n\
         keys:\n  - {{ id: test, hash: \"{}\", models: [\"*\"], unlimited: true }}\n{keys}",
        hash(KEY)
    )
}

/// A model with one target at provider `p`, as a line of `models`; `more` are further settings.
pub fn model(name: &str, target: &str, more: &str) -> String {
    let price = "price: { input: 1, output: 2 }";
    format!(
        "  \"{name}\": {{ targets: [ {{ provider: p, model: \"{target}\", {price} }} ]{more} }}\n"
    )
}

/// `head`, the provider `p` (OpenAI dialect, with `more` settings) and these `models`.
pub fn config_of(head: &str, provider: &Provider, more: &str, models: &str) -> String {
    format!(
        "{head}providers:\n  p: {{ dialect: openai, base_url: \"{}/v1\", api_key: sk-provider{more} }}\n\
         breaker: {{ failures: 10000 }}\nmodels:\n{models}",
        provider.base()
    )
}

/// [`head`], and two models, one per dialect, at this provider.
pub fn config(provider: &Provider) -> String {
    let base = provider.base();
    format!(
        "{}providers:\n  \
           p: {{ dialect: openai, base_url: \"{base}/v1\", api_key: \"${{PROVIDER_KEY:-sk-provider}}\" }}\n  \
           a: {{ dialect: anthropic, base_url: \"{base}\", api_key: \"${{PROVIDER_KEY:-sk-provider}}\" }}\n\
         models:\n  \
           gpt: {{ targets: [ {{ provider: p, model: sim-gpt, price: {{ input: 1, output: 2 }} }} ] }}\n  \
           claude: {{ targets: [ {{ provider: a, model: sim-claude, price: {{ input: 1, output: 2 }} }} ] }}\n",
        head()
    )
}

/// A directory that is removed again.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tollbar-it-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A standard output of a process that is read only when the test wants it.
pub struct Unread {
    read: UnixStream,
    write: UnixStream,
}

impl Unread {
    pub fn new() -> Self {
        let (read, write) = UnixStream::pair().unwrap();
        Unread { read, write }
    }

    /// The end for the process.
    pub fn end(&self) -> Stdio {
        OwnedFd::from(self.write.try_clone().unwrap()).into()
    }

    /// From now on a write to it waits for a reader.
    pub fn fill(&self) {
        // Both ends of a descriptor's copies share this: the process must not be writing now.
        self.write.set_nonblocking(true).unwrap();
        while (&self.write).write(b"full\n").is_ok() {}
        self.write.set_nonblocking(false).unwrap();
    }

    /// Reads on, and to its end.
    pub fn read(&self) -> Arc<Mutex<Vec<String>>> {
        collect(self.read.try_clone().unwrap())
    }

    /// Reads as far as a line with this.
    fn read_to(&self, last: &str, sink: &Mutex<Vec<String>>) {
        // A process that doesn't start never says it.
        self.read.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for line in BufReader::new(&self.read).lines() {
            let Ok(line) = line else { panic!("{:?}", sink.lock().unwrap()) };
            let end = line.contains(last);
            sink.lock().unwrap().push(line);
            if end {
                break;
            }
        }
        self.read.set_read_timeout(None).unwrap();
    }
}

/// `tollbar run` as a child process; killed when dropped.
pub struct Server {
    child: Child,
    pub scratch: Scratch,
    /// The data listeners, in the order of the configuration.
    pub data: Vec<SocketAddr>,
    pub admin: SocketAddr,
    stdout: Arc<Mutex<Vec<String>>>,
    stderr: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts it with this configuration.
    pub fn start(config: &str) -> Self {
        Self::start_with(config, &[])
    }

    /// Starts it with environment variables.
    pub fn start_with(config: &str, vars: &[(&str, &str)]) -> Self {
        Self::start_here(Scratch::new(), config, vars)
    }

    /// Starts it in a directory that is there already.
    pub fn start_here(scratch: Scratch, config: &str, vars: &[(&str, &str)]) -> Self {
        std::fs::write(scratch.0.join("tollbar.yaml"), config).unwrap();
        Self::start_in(scratch, vars)
    }

    fn start_in(scratch: Scratch, vars: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollbar"));
        command.args(["run", "-c"]).arg(scratch.0.join("tollbar.yaml")).envs(vars.iter().copied());
        Self::start_as(scratch, command)
    }

    /// Starts it with this configuration and after what the shell does before, in the directory
    /// of the configuration; `unshare` and its arguments may come before the shell.
    pub fn start_after(config: &str, unshare: &[&str], shell: &str) -> Self {
        let scratch = Scratch::new();
        std::fs::write(scratch.0.join("tollbar.yaml"), config).unwrap();
        let mut words = unshare.iter().copied().chain(["sh", "-c"]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .arg(format!("{shell} && exec \"$0\" run -c tollbar.yaml"))
            .arg(env!("CARGO_BIN_EXE_tollbar"))
            .current_dir(&scratch.0);
        Self::start_as(scratch, command)
    }

    /// Starts it with its own log on this, which is read as far as that it listens.
    pub fn start_unread(config: &str, stderr: &Unread) -> Self {
        let scratch = Scratch::new();
        std::fs::write(scratch.0.join("tollbar.yaml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollbar"));
        command.args(["run", "-c"]).arg(scratch.0.join("tollbar.yaml"));
        let mut server = Self::spawn_on(scratch, command, Stdio::piped(), stderr.end());
        stderr.read_to("admin on http://", &server.stderr);
        server.wait_ready();
        server
    }

    /// Starts it with its access log on this.
    pub fn start_unlogged(config: &str, stdout: &Unread) -> Self {
        let scratch = Scratch::new();
        std::fs::write(scratch.0.join("tollbar.yaml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollbar"));
        command.args(["run", "-c"]).arg(scratch.0.join("tollbar.yaml"));
        let mut server = Self::spawn_on(scratch, command, stdout.end(), Stdio::piped());
        server.wait_ready();
        server
    }

    /// Starts a process that waits for this one's sockets. See [`Self::wait_ready`].
    pub fn successor(&self) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollbar"));
        command.args(["run", "--upgrade", "-c"]).arg(self.config_file());
        // The directory is this one's to remove.
        Self::spawn_as(Scratch(PathBuf::new()), command)
    }

    /// Begins to start it. See [`Self::wait_ready`].
    pub fn begin(scratch: Scratch, config: &str) -> Self {
        std::fs::write(scratch.0.join("tollbar.yaml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollbar"));
        command.args(["run", "-c"]).arg(scratch.0.join("tollbar.yaml"));
        Self::spawn_as(scratch, command)
    }

    fn start_as(scratch: Scratch, command: Command) -> Self {
        let mut server = Self::spawn_as(scratch, command);
        server.wait_ready();
        server
    }

    fn spawn_as(scratch: Scratch, command: Command) -> Self {
        Self::spawn_on(scratch, command, Stdio::piped(), Stdio::piped())
    }

    fn spawn_on(scratch: Scratch, mut command: Command, stdout: Stdio, stderr: Stdio) -> Self {
        let mut child = command
            // Webhooks may go through a proxy; those of the tests are on this host.
            .envs([("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")])
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().map(collect).unwrap_or_default();
        let stderr = child.stderr.take().map(collect).unwrap_or_default();
        Server {
            child,
            scratch,
            data: Vec::new(),
            admin: SocketAddr::from(([0, 0, 0, 0], 0)),
            stdout,
            stderr,
        }
    }

    /// Waits until it serves.
    pub fn wait_ready(&mut self) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let lines = self.stderr();
            if let Some(admin) = lines.iter().find_map(|line| line.split("admin on http://").nth(1))
            {
                self.admin = admin.trim().parse().unwrap();
                self.data = lines
                    .iter()
                    .filter_map(|line| line.split("listening on ").nth(1))
                    .map(|url| url.split("://").nth(1).unwrap().trim().parse().unwrap())
                    .collect();
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "no start: {ended:?}\n{}",
                lines.join("\n")
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where the state file is, if the configuration says `state: { path: state.db }`.
    pub fn state_file(&self) -> PathBuf {
        self.scratch.0.join("state.db")
    }

    /// `http://…` of the first data listener.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.data[0])
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    pub fn config_file(&self) -> PathBuf {
        self.scratch.0.join("tollbar.yaml")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name (`HUP`, `TERM`, `QUIT`).
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Starts another process on the same directory; this one must have ended.
    pub fn again(mut self) -> Self {
        let empty = PathBuf::from("/nonexistent/tollbar-it");
        let scratch = Scratch(std::mem::replace(&mut self.scratch.0, empty));
        Self::start_in(scratch, &[])
    }

    /// Waits for the process to end by itself.
    pub fn wait_exit(&mut self, within: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + within;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// The access log so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lock().unwrap().clone()
    }

    /// The process's own log so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lock().unwrap().clone()
    }

    /// The access log, once it has at least `n` lines.
    pub async fn log(&self, n: usize) -> Vec<serde_json::Value> {
        eventually(Duration::from_secs(10), || self.stdout().len() >= n).await;
        self.stdout().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The values of all metric lines that start like this, together; 0 where there is none.
    pub async fn metric(&self, start: &str) -> f64 {
        let text =
            client().get(self.admin_url("/metrics")).send().await.unwrap().text().await.unwrap();
        let lines = text.lines().filter(|line| line.starts_with(start));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(from: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            sink.lock().unwrap().push(line);
        }
    });
    lines
}

fn builder() -> reqwest::ClientBuilder {
    // reqwest was built without a TLS provider of its own: the one everything else uses will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy()
}

/// An HTTP/1.1 client.
pub fn client() -> reqwest::Client {
    builder().http1_only().build().unwrap()
}

/// An HTTP/2 client with prior knowledge.
pub fn h2_client() -> reqwest::Client {
    builder().http2_prior_knowledge().build().unwrap()
}

/// A client that trusts this certificate authority (PEM).
pub fn tls_client(root: &str) -> reqwest::Client {
    let root = reqwest::Certificate::from_pem(root.as_bytes()).unwrap();
    builder().tls_certs_only([root]).build().unwrap()
}

/// A small chat request to `model`.
pub fn chat(model: &str) -> serde_json::Value {
    serde_json::json!({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
}

/// The same, streamed.
pub fn chat_stream(model: &str) -> serde_json::Value {
    let mut body = chat(model);
    body["stream"] = true.into();
    body
}

/// Sends a body with the test key.
pub async fn post(
    client: &reqwest::Client,
    url: String,
    body: impl Into<reqwest::Body>,
) -> reqwest::Response {
    let request = client.post(url).bearer_auth(KEY).header("content-type", "application/json");
    request.body(body).send().await.unwrap()
}

/// An answer of the admin listener, as JSON.
pub async fn admin(server: &Server, path: &str) -> serde_json::Value {
    let request = client().get(server.admin_url(path)).bearer_auth(ADMIN_TOKEN);
    request.send().await.unwrap().json().await.unwrap()
}

/// Dollars as they are written, in nano-dollars.
pub fn nano(usd: &str) -> u64 {
    let usd: f64 = usd.parse().unwrap();
    // Exact: what is summed in tests stays far below 2^53 nano-dollars.
    (usd * 1e9).round() as u64
}

/// What a ledger row, or the sum of some, says it cost, in nano-dollars.
pub fn cost(row: &serde_json::Value) -> u64 {
    nano(&row["cost_usd"].to_string())
}

/// The ledger's rows of a request, newest first, once there is one.
pub async fn rows(server: &Server, request_id: &str) -> Vec<serde_json::Value> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let found = admin(server, &format!("/requests?request_id={request_id}")).await;
        let rows = found["data"].as_array().unwrap();
        if !rows.is_empty() {
            return rows.clone();
        }
        assert!(Instant::now() < until, "no row of {request_id}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The ledger's newest row of a request.
pub async fn row(server: &Server, request_id: &str) -> serde_json::Value {
    rows(server, request_id).await.swap_remove(0)
}

/// Waits until the log has a line with all of that: a thread of its own writes it.
pub async fn logs(server: &Server, parts: &[&str]) {
    let has = || server.stderr().iter().any(|line| parts.iter().all(|part| line.contains(part)));
    let until = Instant::now() + Duration::from_secs(10);
    while !has() {
        assert!(Instant::now() < until, "no {parts:?} in {:?}", server.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a metric is 0: a request ends a moment after its answer.
pub async fn at_zero(server: &Server, metric: &str) {
    let until = Instant::now() + Duration::from_secs(10);
    while server.metric(metric).await != 0.0 {
        assert!(Instant::now() < until, "{metric} is not 0");
    }
}

/// Waits until `done`, up to `within`; panics past it.
pub async fn eventually(within: Duration, done: impl Fn() -> bool) {
    let until = Instant::now() + within;
    while !done() {
        assert!(Instant::now() < until, "it did not come about within {within:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs the binary to its end.
pub fn tollbar(args: &[&str], dir: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_tollbar"))
        .args(args)
        .current_dir(dir)
        .env_remove("TOLLBAR_CONFIG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}
