//! How long a client's connection lives: an idle one as long as the configuration says, one with a
//! request as long as that takes.

use crate::raw::Raw;
use crate::support::*;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Far longer than what is waited for, and far shorter than any default.
const LONG: Duration = Duration::from_secs(15);

fn with(server: &str) -> String {
    format!(
        "{}providers:\n  p: {{ dialect: openai, base_url: \"http://127.0.0.1:1/v1\", api_key: \"file:key\" }}\nmodels:\n{}",
        head_with(&format!("threads: 2, {server}"), ""),
        model("gpt", "sim-gpt", "")
    )
}

fn start(server: &str) -> Server {
    let scratch = Scratch::new();
    std::fs::write(scratch.0.join("key"), "sk-x").unwrap();
    Server::start_here(scratch, &with(server), &[])
}

async fn healthy(raw: &mut Raw) {
    raw.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let (status, ..) = raw.answer().await.unwrap();
    assert_eq!(status, 200);
}

/// How long the server keeps a connection on which nobody says anything more.
async fn kept(raw: &mut Raw) -> Duration {
    let since = Instant::now();
    let said = timeout(LONG, raw.rest()).await;
    assert_eq!(said.as_deref(), Ok(&[][..]), "still open after {LONG:?}");
    since.elapsed()
}

/// Behind a load balancer it must be more than the balancer's own, and it must be what is written.
#[tokio::test]
async fn an_idle_connection_is_kept_as_long_as_configured() {
    let server = start("header_timeout: 300ms, idle_timeout: 2s");
    for address in [server.data[0], server.admin] {
        let mut raw = Raw::connect(address).await;
        healthy(&mut raw).await;
        // A header may take its time only once it has begun.
        tokio::time::sleep(Duration::from_millis(700)).await;
        healthy(&mut raw).await;
        let kept = kept(&mut raw).await;
        let about = Duration::from_millis(1900)..Duration::from_secs(6);
        assert!(about.contains(&kept), "{address}: {kept:?}");
    }
}

#[tokio::test]
async fn half_a_header_keeps_no_connection() {
    let server = start("header_timeout: 300ms, idle_timeout: 1s");
    for address in [server.data[0], server.admin] {
        for second in [false, true] {
            let mut raw = Raw::connect(address).await;
            if second {
                healthy(&mut raw).await;
            }
            raw.send(b"GET /healthz HTTP/1.1\r\nhos").await;
            let kept = kept(&mut raw).await;
            assert!(kept < Duration::from_secs(6), "{address}: {kept:?}");
        }
    }
}

/// What a reload says of idle connections goes for those that come after it, on HTTP/2 too.
#[tokio::test]
async fn a_reload_changes_how_long_idle_connections_are_kept() {
    let server = start("idle_timeout: 60s");
    let mut old = Raw::connect(server.data[0]).await;
    healthy(&mut old).await;
    std::fs::write(server.config_file(), with("idle_timeout: 1s")).unwrap();
    let reload = client().post(server.admin_url("/reload")).bearer_auth(ADMIN_TOKEN);
    assert_eq!(reload.send().await.unwrap().status(), 200);

    let mut new = Raw::connect(server.data[0]).await;
    healthy(&mut new).await;
    let tcp = TcpStream::connect(server.data[0]).await.unwrap();
    let (mut send, connection) = h2::client::handshake(tcp).await.unwrap();
    let ended = tokio::spawn(connection);
    let request = http::Request::get("http://x/healthz").body(()).unwrap();
    let (answer, _) = send.send_request(request, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);

    let since = Instant::now();
    let _ = timeout(LONG, ended).await.expect("an idle HTTP/2 connection stays").unwrap();
    assert!(since.elapsed() > Duration::from_millis(900), "{:?}", since.elapsed());
    kept(&mut new).await;
    healthy(&mut old).await;
}

/// Holds up whoever reads this file, until something is written to it.
fn hold_up(file: &Path) {
    std::fs::remove_file(file).unwrap();
    assert!(Command::new("mkfifo").arg(file).status().unwrap().success());
}

/// A reload of many keys takes seconds, and so may a key that is made while the disk is slow: who
/// asked for it is told what came of it, whatever a header may take.
#[tokio::test]
async fn an_admin_request_takes_as_long_as_it_takes() {
    let server = start("header_timeout: 300ms, idle_timeout: 1s");
    let key = server.scratch.0.join("key");
    hold_up(&key);
    let mut raw = Raw::connect(server.admin).await;
    let reload =
        format!("POST /reload HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_TOKEN}\r\n\r\n");
    raw.send(reload.as_bytes()).await;
    let early = timeout(Duration::from_secs(2), raw.answer()).await;
    assert!(early.is_err(), "cut off: {early:?}");
    // Opening it waits for the reload to open it, too.
    tokio::task::spawn_blocking(move || std::fs::write(key, "sk-y")).await.unwrap().unwrap();
    let (status, _, body) = timeout(LONG, raw.answer()).await.unwrap().unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    healthy(&mut raw).await;
}
