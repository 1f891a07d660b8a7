//! What the generator makes of requests that have no answer when a round is over.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::engine::{self, Load, Pace, Span, UNENDED};
use super::h2;
use super::request::Request;
use super::tally::Tally;

const SPAN: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_millis(300);
/// No test waits so long.
const LONG: Duration = Duration::from_secs(60);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

/// A server that reads each connection's first request and does this with it; then it says
/// nothing, and keeps the connection.
fn server(with: impl Fn(&mut TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, with) = (stream.unwrap(), with.clone());
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer);
                with(&mut stream);
                // Until the generator closes it.
                while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
            });
        }
    });
    address
}

fn load(to: SocketAddr, pace: Pace, connections: usize) -> Load {
    let load = Load::new(to, Request::chat("m", true, 300), pace, connections);
    Load { grace: GRACE, ..load }
}

fn span() -> Span {
    let begin = Instant::now();
    Span { begin, record: begin, end: begin + SPAN }
}

fn unended(tally: &Tally) -> u64 {
    assert_eq!(tally.failed(), tally.errors.get(UNENDED).copied().unwrap_or(0), "nothing else");
    tally.failed()
}

#[test]
fn a_server_that_hangs_fails_every_request() {
    let mute = server(|_| {});
    let plain = Load::new(mute, Request::chat("m", false, 300), Pace::Closed, 1);
    assert!(!plain.grace.is_zero(), "who asks for no grace has one");
    let tally = engine::run(&load(mute, Pace::Closed, 3), span()).unwrap();
    assert_eq!((tally.done, unended(&tally), tally.latency.micros(50.0)), (0, 3, None));
    let tally = h2::run(&load(mute, Pace::Closed, 3), 2, span()).unwrap();
    assert_eq!((tally.done, unended(&tally), tally.latency.micros(50.0)), (0, 3, None));
}

#[test]
fn an_open_loop_knows_how_late_they_are_by_then() {
    let mute = server(|_| {});
    // All are due within the first 60 ms, so late by more than the grace.
    let least = GRACE.as_micros() as f64;
    let tally = engine::run(&load(mute, Pace::Open(50.0), 3), span()).unwrap();
    assert_eq!(unended(&tally), 3);
    assert!(tally.latency.micros(100.0).unwrap() >= least);
    let tally = h2::run(&load(mute, Pace::Open(50.0), 3), 3, span()).unwrap();
    assert_eq!(unended(&tally), 3);
    assert!(tally.latency.micros(1.0).unwrap() >= least);
}

#[test]
fn an_answer_within_the_grace_is_late_and_no_part_of_the_throughput() {
    for (pace, late) in [(Pace::Open(10.0), true), (Pace::Closed, false)] {
        let span = span();
        let answering = server(move |stream| {
            std::thread::sleep(span.end.saturating_duration_since(Instant::now()) + SPAN / 10);
            let _ = stream.write_all(ANSWER);
        });
        let load = Load { grace: LONG, ..load(answering, pace, 1) };
        let tally = engine::run(&load, span).unwrap();
        assert_eq!((tally.done, tally.bytes, unended(&tally)), (0, 0, 0));
        let slowest = tally.latency.micros(100.0);
        assert_eq!(slowest.is_some_and(|slowest| slowest >= SPAN.as_micros() as f64), late);
        assert!(Instant::now() < span.end + LONG, "nobody waits for what is there");
    }
}

#[test]
fn a_stream_may_outlast_its_round_while_it_goes_on() {
    let endless = server(|stream| {
        let mut alive = stream.write_all(STREAM).is_ok();
        while alive {
            alive = stream.write_all(b"data: 1\n\n").is_ok();
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let goes_on = Load { grace: LONG, outlasts: Some(LONG), ..load(endless, Pace::Closed, 2) };
    let begun = Instant::now();
    let tally = engine::run(&goes_on, span()).unwrap();
    assert_eq!(unended(&tally), 0);
    assert!(tally.events > 0 && begun.elapsed() < LONG, "nobody waits for what goes on");
    // Without leave it has to end.
    let tally = engine::run(&load(endless, Pace::Closed, 2), span()).unwrap();
    assert_eq!(unended(&tally), 2);

    let stalling = server(|stream| {
        let _ = stream.write_all(&[STREAM, b"data: 1\n\n"].concat());
    });
    let stalls = Load { outlasts: Some(SPAN / 10), ..load(stalling, Pace::Closed, 2) };
    assert_eq!(unended(&engine::run(&stalls, span()).unwrap()), 2);
    let silent = Load { outlasts: Some(LONG), ..load(server(|_| {}), Pace::Closed, 2) };
    assert_eq!(unended(&engine::run(&silent, span()).unwrap()), 2);
}

#[test]
fn the_parts_of_a_load_have_all_its_connections() {
    let whole = load(([127, 0, 0, 1], 1).into(), Pace::Open(90.0), 10);
    let parts: Vec<usize> = (0..3).map(|part| whole.part(part, 3).connections).collect();
    assert_eq!(parts, [4, 3, 3]);
}
