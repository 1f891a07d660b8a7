//! A process that is out of descriptors says so, and blames nobody else.

use crate::support::*;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// Asks on a connection that is open already, while the process can open nothing more.
pub async fn ask_without(server: &Server, model: &str) -> (u16, String) {
    let mut raw = Raw::connect(server.data[0]).await;
    raw.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(raw.answer().await.unwrap().0, 200);
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap());
    let none = Rlimit { current: Some(0), ..getrlimit(Resource::Nofile) };
    let before = prlimit(pid, Resource::Nofile, none).unwrap();
    let body = chat(model).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    raw.send(request.as_bytes()).await;
    let (status, head, body) = raw.answer().await.unwrap();
    prlimit(pid, Resource::Nofile, before).unwrap();
    (status, head + &String::from_utf8_lossy(&body))
}

#[tokio::test]
async fn no_descriptor_is_no_failure_of_the_target() {
    let provider = provider();
    let by_name = provider.base().replace("127.0.0.1", "localhost");
    let texts = [config(&provider), config(&provider).replace(&provider.base(), &by_name)];
    for (text, what) in texts.iter().zip(["no connection", "`localhost` doesn't resolve"]) {
        let server = Server::start(text);
        // More often than the breaker would bear.
        for _ in 0..4 {
            let (status, said) = ask_without(&server, "gpt").await;
            assert_eq!(status, 503, "{said}");
            assert!(said.contains("\"overloaded\"") && said.contains("retry-after: "), "{said}");
            let why = format!("p/sim-gpt: {what}: Too many open files (os error 24)");
            assert!(said.contains(&why), "{said}");
        }
        let url = server.url("/v1/chat/completions");
        assert_eq!(post(&client(), url, chat("gpt").to_string()).await.status(), 200);
        assert_eq!(server.metric("tollbar_breaker_open").await, 0.0);
        logs(&server, &["no target is blamed"]).await;
        let lines = server.stderr();
        let told = lines.iter().filter(|line| line.contains("no target is blamed"));
        assert!(told.count() < 4, "not for each request: {lines:?}");
    }
}
