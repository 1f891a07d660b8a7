//! A new process takes the sockets over under load: no request fails, open streams finish, both
//! processes end well.

use crate::support::*;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tollbar_loadtest::provider::{Gate, Provider, Script};

const SOON: Duration = Duration::from_secs(30);
const CLIENTS: usize = 24;
const RAW: usize = 12;

/// Clients that send one request after another until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// A third keeps its connection, a third makes a new one each time, a third speaks HTTP/2.
    /// Every other request is streamed.
    fn start(url: &str) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::default()), Arc::new(AtomicUsize::default()));
        let mut tasks: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let (stop, served, url) = (stop.clone(), served.clone(), url.to_owned());
                tokio::spawn(async move {
                    let kept = if n % 3 == 0 { h2_client() } else { client() };
                    let mut sent = 0;
                    while !stop.load(SeqCst) {
                        sent += 1;
                        let http = if n % 3 == 1 { client() } else { kept.clone() };
                        one(&http, &url, sent % 2 == 0).await;
                        served.fetch_add(1, SeqCst);
                    }
                })
            })
            .collect();
        tasks.extend(
            (0..RAW).map(|_| tokio::spawn(raw(url.to_owned(), stop.clone(), served.clone()))),
        );
        Load { stop, served, tasks }
    }

    /// Waits until each client has been served about `each` more times.
    async fn more(&self, each: usize) {
        let enough = self.served.load(SeqCst) + CLIENTS * each;
        // A client that failed is shown at the end; it must not be waited for.
        eventually(SOON, || {
            self.served.load(SeqCst) >= enough || self.tasks.iter().any(|task| task.is_finished())
        })
        .await;
    }

    async fn end(self) -> usize {
        self.stop.store(true, SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.served.load(SeqCst)
    }
}

async fn one(http: &reqwest::Client, url: &str, streamed: bool) {
    let body = if streamed { chat_stream("gpt") } else { chat("gpt") };
    let request = http.post(url).bearer_auth(KEY).body(body.to_string());
    let answer = request.send().await.unwrap_or_else(|error| panic!("{error:?}"));
    let status = answer.status();
    let text = answer.text().await.unwrap();
    assert_eq!(status, 200, "{text}");
    assert!(!streamed || text.ends_with("data: [DONE]\n\n"), "{text}");
}

/// A client without mercy: a connection that was not said to close takes the next request, and
/// nothing is sent twice. (reqwest repeats what it could not write.)
async fn raw(url: String, stop: Arc<AtomicBool>, served: Arc<AtomicUsize>) {
    let to: SocketAddr = url.split('/').nth(2).unwrap().parse().unwrap();
    let body = chat("gpt").to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut connection = Raw::connect(to).await;
    let mut on_this = 0;
    while !stop.load(SeqCst) {
        assert!(connection.send(request.as_bytes()).await, "closed after {on_this} answers");
        let Some((status, head, _)) = connection.answer().await else {
            panic!("no answer, after {on_this} on this connection");
        };
        assert_eq!(status, 200);
        served.fetch_add(1, SeqCst);
        on_this += 1;
        if head.contains("connection: close") {
            connection = Raw::connect(to).await;
            on_this = 0;
        }
        // Idle for a moment: long enough for a close to come in between.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Open {
    gate: Gate,
    answer: reqwest::Response,
    got: Vec<u8>,
    _http: reqwest::Client,
}

async fn open_stream(provider: &Provider, url: &str, http: reqwest::Client) -> Open {
    let gate = Gate::new();
    let script = Script { gate: Some(gate.clone()), chunks: Some(6), ..Script::default() };
    provider.script("sim-slow", vec![script]);
    gate.release(1);
    let mut answer = post(&http, url.to_owned(), chat_stream("slow").to_string()).await;
    let first = answer.chunk().await.unwrap().unwrap();
    Open { gate, answer, got: first.to_vec(), _http: http }
}

fn two_models(provider: &Provider) -> String {
    let models =
        model("gpt", "sim-gpt+delay=3+gap=1+chunks=4", "") + &model("slow", "sim-slow", "");
    config_of(&head_with("threads: 2, drain: 60s", ""), provider, "", &models)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_nobody_fails_and_open_streams_finish() {
    let provider = provider();
    let mut old = Server::start(&two_models(&provider));
    let url = old.url("/v1/chat/completions");
    let mut open = Vec::new();
    for http in [client(), client(), h2_client()] {
        open.push(open_stream(&provider, &url, http).await);
    }
    let load = Load::start(&url);
    load.more(5).await;

    let mut new = old.successor();
    old.signal("QUIT");
    new.wait_ready();
    assert_eq!((&new.data, new.admin), (&old.data, old.admin), "port 0 is the same port again");
    load.more(20).await;
    // The admin listener is the new one's: never "draining" from the old one.
    for _ in 0..20 {
        let ready = client().get(new.admin_url("/readyz")).send().await.unwrap();
        assert_eq!(ready.status(), 200);
    }
    assert!(old.wait_exit(Duration::from_millis(100)).is_none(), "its streams are open");
    for stream in &mut open {
        stream.gate.open();
        while let Some(more) = stream.answer.chunk().await.unwrap() {
            stream.got.extend_from_slice(&more);
        }
        let text = String::from_utf8_lossy(&stream.got);
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    }
    drop(open);
    let exit = old.wait_exit(SOON).expect("the old one ends with its last stream");
    assert_eq!(exit.code(), Some(0), "{:?}", old.stderr());
    load.more(5).await;
    let served = load.end().await;
    new.signal("TERM");
    assert_eq!(new.wait_exit(SOON).and_then(|status| status.code()), Some(0));
    // What was served is what both have logged, and both have done their part.
    let (by_old, by_new) = (old.stdout().len(), new.stdout().len());
    assert_eq!(by_old + by_new, served + 3, "{by_old} + {by_new}");
    assert!(by_old >= CLIENTS * 5 && by_new >= CLIENTS * 5, "{by_old} + {by_new}");
}

/// Without a taker the door stays open.
#[tokio::test]
async fn nobody_to_take_over_is_no_reason_to_stop() {
    let provider = provider();
    let mut server = Server::start(&two_models(&provider));
    server.signal("QUIT");
    let url = server.url("/v1/chat/completions");
    // It looks for a taker for ten seconds, and serves meanwhile.
    let told = || server.stderr().iter().any(|line| line.contains("this process goes on serving"));
    while !told() {
        let answer = post(&client(), url.clone(), chat("gpt").to_string()).await;
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(post(&client(), url, chat("gpt").to_string()).await.status(), 200);
    assert!(server.wait_exit(Duration::ZERO).is_none());
    // A second try is like the first.
    let mut new = server.successor();
    server.signal("QUIT");
    new.wait_ready();
    assert_eq!(server.wait_exit(SOON).and_then(|status| status.code()), Some(0));
}

/// A listener that the new configuration doesn't have is closed, one that it adds is opened.
#[tokio::test]
async fn a_new_configuration_may_change_the_listeners() {
    let provider = provider();
    let text = two_models(&provider);
    let one = "listeners: [{ address: 127.0.0.1:0 }]";
    let two = "listeners: [{ address: 127.0.0.1:0 }, { address: 127.0.0.2:0 }]";
    let other = "listeners: [{ address: 127.0.0.3:0 }, { address: 127.0.0.1:0 }]";
    assert!(text.contains(one));
    let mut old = Server::start(&text.replace(one, two));
    std::fs::write(old.config_file(), text.replace(one, other)).unwrap();
    let mut new = old.successor();
    old.signal("QUIT");
    new.wait_ready();
    assert_eq!((new.data[1], new.admin), (old.data[0], old.admin));
    let told = || new.stderr().iter().any(|line| line.contains("listened on 127.0.0.2:0"));
    eventually(SOON, told).await;
    assert_eq!(old.wait_exit(SOON).and_then(|status| status.code()), Some(0));
    for (address, open) in [(new.data[0], true), (new.data[1], true), (old.data[1], false)] {
        let answer = client().get(format!("http://{address}/healthz")).send().await;
        assert_eq!(answer.is_ok_and(|answer| answer.status() == 200), open, "{address}");
    }
}

/// Told to stop, the service stops: the successor that was started, and is still loading, goes first.
#[tokio::test]
async fn a_stop_ends_the_successor_that_still_loads() {
    let provider = provider();
    let text = two_models(&provider);
    let mut server = Server::start(&text);
    // It hangs on a secret that nobody writes.
    let pipe = server.scratch.0.join("secret");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let hangs = text.replace("sk-provider", &format!("file:{}", pipe.display()));
    std::fs::write(server.config_file(), hangs).unwrap();
    server.signal("USR2");
    let successor = || {
        let lines = server.stderr();
        let pid = lines.iter().find_map(|line| line.split("started process ").nth(1));
        pid.map(|pid| PathBuf::from(format!("/proc/{pid}")))
    };
    eventually(SOON, || successor().is_some()).await;
    let successor = successor().unwrap();
    assert!(successor.exists());
    server.signal("TERM");
    assert_eq!(server.wait_exit(SOON).and_then(|status| status.code()), Some(0));
    assert!(!successor.exists(), "{successor:?} is still there");
}

/// While the last request runs nobody comes in, though a taker of the sockets was looked for.
#[tokio::test]
async fn a_stop_shuts_the_door_that_waits_for_a_taker() {
    let provider = provider();
    let mut server = Server::start(&two_models(&provider));
    let url = server.url("/v1/chat/completions");
    let mut open = open_stream(&provider, &url, client()).await;
    server.signal("QUIT");
    let looks = || server.stderr().iter().any(|line| line.contains("upgrade: looking for"));
    eventually(SOON, looks).await;
    server.signal("TERM");
    let drains = || server.stderr().iter().any(|line| line.contains("draining: 1 requests"));
    eventually(SOON, drains).await;
    // The listeners hear of it at the same time; the taker would be looked for for ten seconds.
    let shut = || std::net::TcpStream::connect(server.data[0]).is_err();
    eventually(Duration::from_secs(5), shut).await;
    open.gate.open();
    while open.answer.chunk().await.unwrap().is_some() {}
    assert_eq!(server.wait_exit(SOON).and_then(|status| status.code()), Some(0));
}

/// A key that is taken away goes also while a process is waited for that may never come.
#[tokio::test]
async fn a_reload_is_heard_while_a_taker_is_looked_for() {
    let provider = provider();
    let server = Server::start(&two_models(&provider));
    server.signal("QUIT");
    let looks = || server.stderr().iter().any(|line| line.contains("upgrade: looking for"));
    eventually(SOON, looks).await;
    server.signal("HUP");
    let until = std::time::Instant::now() + Duration::from_secs(5);
    while server.metric("tollbar_config_generation").await != 2.0 {
        assert!(std::time::Instant::now() < until, "{}", server.stderr().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let gave_up = server.stderr().iter().any(|line| line.contains("this process goes on serving"));
    assert!(!gave_up, "the taker was no longer looked for");
}

/// Whatever the kernel ends with it can't serve on: in a container, that is everybody else.
#[tokio::test]
async fn the_first_process_of_a_container_keeps_its_sockets() {
    const ALONE: [&str; 5] = ["unshare", "-rp", "--fork", "--kill-child", "--"];
    let may = Command::new(ALONE[0]).args(&ALONE[1..]).arg("true").status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("skipped, namespaces are not permitted here");
        return;
    }
    let provider = provider();
    let mut server = Server::start_after(&two_models(&provider), &ALONE, "true");
    let children = format!("/proc/{0}/task/{0}/children", server.pid());
    let inside = std::fs::read_to_string(children).unwrap();
    for (signal, times) in [("-USR2", 1), ("-QUIT", 2)] {
        assert!(Command::new("kill").args([signal, inside.trim()]).status().unwrap().success());
        let refused = || {
            let lines = server.stderr();
            lines.iter().filter(|line| line.contains("process 1 of a container")).count() == times
        };
        eventually(SOON, refused).await;
    }
    let url = server.url("/v1/chat/completions");
    assert_eq!(post(&client(), url, chat("gpt").to_string()).await.status(), 200);
    assert!(server.wait_exit(Duration::ZERO).is_none());
    let started = server.stderr().iter().any(|line| line.contains("started process"));
    assert!(!started, "{:?}", server.stderr());
}
