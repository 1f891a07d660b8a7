//! The test is systemd: it listens on NOTIFY_SOCKET and hears what the real binary says.

use crate::support::*;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tollbar_loadtest::provider::{Gate, Provider, Script};

const SOON: Duration = Duration::from_secs(20);

/// The service manager's end of NOTIFY_SOCKET.
pub struct Systemd {
    socket: UnixDatagram,
    path: PathBuf,
    _dir: Scratch,
}

impl Systemd {
    pub fn new() -> Self {
        let dir = Scratch::new();
        let path = dir.0.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Systemd { socket, path, _dir: dir }
    }

    /// The next message that is no sign of life, as its lines.
    pub fn next(&self) -> Vec<String> {
        loop {
            let message = self.any();
            if message != ["WATCHDOG=1"] {
                return message;
            }
        }
    }

    fn any(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let n = self.socket.recv(&mut bytes).expect("a message to systemd");
        String::from_utf8_lossy(&bytes[..n]).lines().map(str::to_owned).collect()
    }

    pub fn start(&self, config: &str, more: &[(&str, &str)]) -> Server {
        let mut vars = vec![("NOTIFY_SOCKET", self.path.to_str().unwrap())];
        vars.extend(more);
        Server::start_with(config, &vars)
    }
}

fn monotonic_usec() -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    (seconds * 1e6) as u64
}

fn small(provider: &Provider) -> String {
    config_of(&head(), provider, "", &model("gpt", "sim-gpt", ""))
}

#[tokio::test]
async fn ready_reload_refused_reload_and_drain_are_told() {
    let provider = provider();
    let systemd = Systemd::new();
    let good = small(&provider);
    let mut server = systemd.start(&good, &[]);
    assert_eq!(systemd.next(), ["READY=1", "STATUS=serving, configuration generation 1"]);

    let reloading = || {
        let before = monotonic_usec();
        server.signal("HUP");
        let said = systemd.next();
        assert_eq!((said.len(), said[0].as_str()), (3, "RELOADING=1"), "{said:?}");
        let at: u64 = said[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        // /proc/uptime is in hundredths, and counts sleep where the monotonic clock doesn't.
        assert!(at <= monotonic_usec() + 20_000 && at > 0, "{before} {at}");
        systemd.next()
    };
    assert_eq!(reloading(), ["READY=1", "STATUS=serving, configuration generation 2"]);
    std::fs::write(server.config_file(), good.replace("sim-gpt", "${NOT_SET}")).unwrap();
    let said = reloading();
    assert_eq!(said[0], "READY=1");
    let status = "STATUS=reload refused, configuration generation 2 stays: ";
    assert!(said[1].starts_with(status) && said[1].contains("NOT_SET"), "{said:?}");
    // Whoever asks for the reload, systemd hears of it.
    std::fs::write(server.config_file(), &good).unwrap();
    let request = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(systemd.next()[0], "RELOADING=1");
    assert_eq!(systemd.next(), ["READY=1", "STATUS=serving, configuration generation 3"]);

    // The drain: said at once, while the stream still runs.
    let gate = Gate::new();
    let script = Script { gate: Some(gate.clone()), chunks: Some(3), ..Script::default() };
    provider.script("sim-gpt", vec![script]);
    gate.release(1);
    let body = chat_stream("gpt").to_string();
    let mut answer = post(&client(), server.url("/v1/chat/completions"), body).await;
    assert!(answer.chunk().await.unwrap().is_some());
    server.signal("TERM");
    assert_eq!(systemd.next(), ["STOPPING=1", "STATUS=draining, at most 30 s"]);
    // On the admin listener the process is alive, and not ready; on the data listener both are one.
    let health = |path: &'static str| client().get(server.admin_url(path)).send();
    assert_eq!(health("/healthz").await.unwrap().status(), 200);
    assert_eq!(health("/readyz").await.unwrap().status(), 503);
    gate.open();
    while answer.chunk().await.unwrap().is_some() {}
    assert_eq!(server.wait_exit(SOON).and_then(|status| status.code()), Some(0));
}

#[tokio::test]
async fn the_watchdog_is_fed_at_half_its_time_and_through_a_drain() {
    let provider = provider();
    let systemd = Systemd::new();
    let usec = [("WATCHDOG_USEC", "400000")];
    let server = systemd.start(&small(&provider), &usec);
    assert_eq!(systemd.any()[0], "READY=1");
    let began = Instant::now();
    for _ in 0..5 {
        assert_eq!(systemd.any(), ["WATCHDOG=1"]);
    }
    // The first comes at once: four periods of 200 ms. A machine may be late, never early.
    assert!(began.elapsed() >= Duration::from_millis(700), "{:?}", began.elapsed());
    let gate = Gate::new();
    provider.script("sim-gpt", vec![Script { gate: Some(gate.clone()), ..Script::default() }]);
    let body = chat_stream("gpt").to_string();
    let waiting = tokio::spawn(post_owned(server.url("/v1/chat/completions"), body));
    assert!(provider.wait_for(1, SOON).await);
    server.signal("TERM");
    assert_eq!(systemd.next()[0], "STOPPING=1");
    for _ in 0..3 {
        assert_eq!(systemd.any(), ["WATCHDOG=1"]);
    }
    gate.open();
    assert_eq!(waiting.await.unwrap(), 200);
}

async fn post_owned(url: String, body: String) -> u16 {
    let answer = post(&client(), url, body).await;
    let status = answer.status().as_u16();
    answer.bytes().await.unwrap();
    status
}

/// SIGUSR2: the process starts its successor itself.
#[tokio::test]
async fn an_upgrade_tells_systemd_whom_to_follow() {
    let provider = provider();
    let systemd = Systemd::new();
    let pid = std::process::id().to_string();
    // Somebody else's watchdog: neither process has to feed it.
    let watchdog = [("WATCHDOG_USEC", "200000"), ("WATCHDOG_PID", pid.as_str())];
    let mut server = systemd.start(&small(&provider), &watchdog);
    assert_eq!(systemd.any()[0], "READY=1");
    server.signal("USR2");
    let said = systemd.any();
    let heir = said[0].strip_prefix("MAINPID=").unwrap_or_else(|| panic!("{said:?}")).to_owned();
    assert_ne!(heir, server.pid().to_string());
    assert_eq!(said[1], "STATUS=handed over to a new process");
    assert_eq!(server.wait_exit(SOON).and_then(|status| status.code()), Some(0));
    // Only now is it the service's own process, whose words count; its watchdog is now its own.
    assert_eq!(systemd.any(), ["READY=1", "STATUS=serving, configuration generation 1"]);
    assert_eq!(systemd.any(), ["WATCHDOG=1"]);
    assert_eq!(post_owned(server.url("/v1/chat/completions"), chat("gpt").to_string()).await, 200);
    let kill = |name: &str| std::process::Command::new("kill").args([name, &heir]).status();
    assert!(kill("-TERM").unwrap().success());
    assert_eq!(systemd.next()[0], "STOPPING=1");
    // It is no child of the test: gone is gone.
    eventually(SOON, || !PathBuf::from(format!("/proc/{heir}")).exists() || zombie(&heir)).await;
}

/// Ended, and not yet taken note of by whoever adopts orphans here.
fn zombie(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z'))
}

#[tokio::test]
async fn an_upgrade_that_fails_changes_nothing() {
    let provider = provider();
    let systemd = Systemd::new();
    let good = small(&provider);
    let mut server = systemd.start(&good, &[]);
    assert_eq!(systemd.any()[0], "READY=1");
    std::fs::write(server.config_file(), "listeners: []\n").unwrap();
    server.signal("USR2");
    let said = systemd.any();
    let status = "STATUS=upgrade failed, the old process goes on serving: the new process ended";
    assert!(said.len() == 1 && said[0].starts_with(status), "{said:?}");
    assert_eq!(post_owned(server.url("/v1/chat/completions"), chat("gpt").to_string()).await, 200);
    // A signal that ends the process doesn't wait for a taker that never comes.
    server.signal("QUIT");
    server.signal("TERM");
    assert_eq!(systemd.next()[0], "STOPPING=1");
    assert_eq!(server.wait_exit(SOON).and_then(|status| status.code()), Some(0));
}

/// LoadCredential: systemd puts a file into a directory and names the directory in a variable.
#[tokio::test]
async fn a_credential_of_systemd_is_a_file_in_its_directory() {
    let provider = provider();
    provider.require_key(Some("sk-from-systemd"));
    let dir = Scratch::new();
    std::fs::write(dir.0.join("openai"), "sk-from-systemd\n").unwrap();
    let config = small(&provider)
        .replace("api_key: sk-provider", "api_key: \"file:${CREDENTIALS_DIRECTORY}/openai\"");
    assert!(config.contains("CREDENTIALS_DIRECTORY"));
    let server = Server::start_with(&config, &[("CREDENTIALS_DIRECTORY", dir.0.to_str().unwrap())]);
    assert_eq!(post_owned(server.url("/v1/chat/completions"), chat("gpt").to_string()).await, 200);
    let output = tollbar(&["check", "-c", server.config_file().to_str().unwrap()], &dir.0);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("CREDENTIALS_DIRECTORY is not set"), "{said}");
}
