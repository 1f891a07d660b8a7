//! The generator over HTTP/2 by prior knowledge: hyper's client on one thread. It costs more
//! than the HTTP/1.1 one, so it measures the proxy's CPU time, not its saturation.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::Instant;

use super::engine::{Load, Pace, Span, UNENDED};
use super::tally::Tally;

/// How often a stream is looked at when the load is over.
const LOOK: Duration = Duration::from_millis(50);

/// The request that runs on a stream.
#[derive(Clone, Copy)]
struct Asked {
    due: std::time::Instant,
    /// When the last bytes of its answer's body came.
    last: Option<std::time::Instant>,
}

/// Runs a load with so many streams on each connection.
///
/// # Errors
/// When the runtime does not start. Whatever goes wrong with a request is counted instead.
pub(crate) fn run(load: &Load, streams: usize, span: Span) -> io::Result<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let tally = Rc::new(RefCell::new(Tally::new()));
    let shared = tally.clone();
    local.block_on(&runtime, async move {
        let streams = streams.max(1);
        let connections = load.connections.div_ceil(streams);
        let mut tasks = Vec::new();
        for connection in 0..connections {
            let (load, tally) = (load.clone(), shared.clone());
            let begin = connection * streams;
            let numbers = begin..load.connections.min(begin + streams);
            tasks.push(tokio::task::spawn_local(serve(load, numbers, span, tally)));
        }
        for task in tasks {
            let _ = task.await;
        }
    });
    // Tasks that were cut off at the end hold the tally still.
    let result = tally.borrow().clone();
    Ok(result)
}

/// One connection and its streams.
async fn serve(load: Load, numbers: std::ops::Range<usize>, span: Span, tally: Rc<RefCell<Tally>>) {
    let over = Instant::from_std(span.end);
    let sender = match tokio::time::timeout_at(over, connect(&load)).await {
        Ok(Ok(sender)) => sender,
        Ok(Err(what)) => return tally.borrow_mut().error(what),
        Err(_) => return tally.borrow_mut().error("connect: no answer"),
    };
    let mut tasks = Vec::new();
    for number in numbers {
        let (load, sender, tally) = (load.clone(), sender.clone(), tally.clone());
        tasks.push(tokio::task::spawn_local(follow(load, sender, number, span, tally)));
    }
    for task in tasks {
        let _ = task.await;
    }
}

/// A stream to its end, or to that of the grace.
async fn follow(
    load: Load,
    sender: SendRequest<Full<Bytes>>,
    number: usize,
    span: Span,
    tally: Rc<RefCell<Tally>>,
) {
    let asked = Cell::new(None);
    let mut work = std::pin::pin!(stream(&load, sender, number, span, &tally, &asked));
    let (mut look, last_look) = (span.end, span.end + load.grace);
    while tokio::time::timeout_at(Instant::from_std(look), work.as_mut()).await.is_err() {
        let now = std::time::Instant::now();
        let running: Option<Asked> = asked.get();
        let owed = running.filter(|asked| !load.may_outlast(asked.last, now));
        if running.is_some() && owed.is_none() {
            return;
        }
        if now >= last_look {
            let mut tally = tally.borrow_mut();
            if let Some(Asked { due, .. }) = owed {
                tally.error(UNENDED);
                if matches!(load.pace, Pace::Open(_)) {
                    tally.latency.add(now.saturating_duration_since(due));
                }
            }
            return;
        }
        look = last_look.min(now + LOOK);
    }
}

async fn connect(load: &Load) -> Result<SendRequest<Full<Bytes>>, String> {
    let io = tokio::net::TcpStream::connect(load.to).await.map_err(|e| format!("connect: {e}"))?;
    let _ = io.set_nodelay(true);
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
    let (sender, connection) = handshake.map_err(|error| format!("h2: {error}"))?;
    tokio::task::spawn_local(async move {
        // What breaks it shows in the requests on it.
        let _ = connection.await;
    });
    Ok(sender)
}

/// One stream after another, each at its time.
async fn stream(
    load: &Load,
    mut sender: SendRequest<Full<Bytes>>,
    number: usize,
    span: Span,
    tally: &RefCell<Tally>,
    asked: &Cell<Option<Asked>>,
) {
    let share = number as f64 / load.connections.max(1) as f64;
    let (wait, every) = match load.pace {
        Pace::Closed => (load.ramp.mul_f64(share), None),
        Pace::Open(rate) => {
            let every = load.connections as f64 / rate.max(0.001);
            (Duration::from_secs_f64(every * share), Some(Duration::from_secs_f64(every)))
        }
    };
    let mut due = Instant::from_std(span.begin) + wait;
    let mut sent = number as u64;
    while due.into_std() < span.end {
        tokio::time::sleep_until(due).await;
        let answered = ask(load, &mut sender, sent, due.into_std(), span, tally, asked).await;
        asked.set(None);
        if let Err(what) = answered {
            tally.borrow_mut().error(what);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sent += load.connections as u64;
        due = every.map_or_else(Instant::now, |every| due + every);
    }
}

async fn ask(
    load: &Load,
    sender: &mut SendRequest<Full<Bytes>>,
    number: u64,
    due: std::time::Instant,
    span: Span,
    tally: &RefCell<Tally>,
    asked: &Cell<Option<Asked>>,
) -> Result<(), String> {
    asked.set(Some(Asked { due, last: None }));
    let mut bytes = Vec::new();
    load.request.write(number, &mut bytes);
    let request = request(load, &bytes)?;
    sender.ready().await.map_err(|error| format!("h2: {error}"))?;
    let answer = sender.send_request(request).await.map_err(|error| format!("h2: {error}"))?;
    let status = answer.status().as_u16();
    let mut body = answer.into_body();
    let (mut frames, mut last) = (0u64, due);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("h2 body: {error}"))?;
        let Ok(data) = frame.into_data() else { continue };
        let now = std::time::Instant::now();
        if now >= span.record && now < span.end {
            let mut tally = tally.borrow_mut();
            tally.bytes += data.len() as u64;
            tally.events += memchr::memmem::find_iter(&data, b"\n\n").count() as u64;
            match frames {
                0 => tally.first.add(now.saturating_duration_since(due)),
                _ => tally.gap.add(now - last),
            }
        }
        frames += 1;
        last = now;
        asked.set(Some(Asked { due, last: Some(now) }));
    }
    let now = std::time::Instant::now();
    if !(200..300).contains(&status) {
        return Err(format!("status {status}"));
    }
    let (over, mut tally) = (now >= span.end, tally.borrow_mut());
    if now >= span.record && !over {
        tally.done += 1;
    }
    // As on HTTP/1.1: what an open loop sends was due within the span.
    if now >= span.record && (!over || matches!(load.pace, Pace::Open(_))) {
        tally.latency.add(now.saturating_duration_since(due));
    }
    Ok(())
}

/// The same request as on HTTP/1.1: its head, read back, and its body.
fn request(load: &Load, bytes: &[u8]) -> Result<Request<Full<Bytes>>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut head = httparse::Request::new(&mut headers);
    let at = match head.parse(bytes) {
        Ok(httparse::Status::Complete(at)) => at,
        _ => return Err("the request is malformed".to_owned()),
    };
    let uri = format!("http://{}{}", load.to, head.path.unwrap_or("/"));
    let mut built = Request::builder().method("POST").uri(uri);
    for header in head.headers.iter().filter(|header| header.name != "host") {
        built = built.header(header.name, header.value);
    }
    let body = Full::new(Bytes::copy_from_slice(&bytes[at..]));
    built.body(body).map_err(|error| error.to_string())
}
