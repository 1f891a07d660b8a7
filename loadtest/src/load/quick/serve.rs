//! The loop of the quick provider: one per thread.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::answers::Answers;
use super::peer::{Answering, Asked, Peer};
use crate::load::poll::{Poll, Ready};

const LISTENER: usize = usize::MAX;
const BUFFER: usize = 256 * 1024;

/// Serves on this listener with so many threads, for ever.
///
/// # Errors
/// When the listener or epoll fails.
pub fn serve(listener: TcpListener, threads: usize) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let requests = Arc::new(AtomicU64::new(0));
    for _ in 1..threads.max(1) {
        let listener = listener.try_clone()?;
        let requests = requests.clone();
        std::thread::spawn(move || Server::new(listener, requests).and_then(Server::run));
    }
    Server::new(listener, requests)?.run()
}

struct Server {
    listener: TcpListener,
    poll: Poll,
    peers: Vec<Option<Peer>>,
    free: Vec<usize>,
    /// When which peer has its next step; stale entries do no harm.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    answers: Answers,
    requests: Arc<AtomicU64>,
}

impl Server {
    fn new(listener: TcpListener, requests: Arc<AtomicU64>) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(&listener, LISTENER)?;
        Ok(Self {
            listener,
            poll,
            peers: Vec::new(),
            free: Vec::new(),
            timers: BinaryHeap::new(),
            answers: Answers::default(),
            requests,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let now = Instant::now();
            let next = self.timers.peek().map(|Reverse((at, _))| *at);
            let timeout =
                next.map_or(Duration::from_secs(60), |at| at.saturating_duration_since(now));
            let count = self.poll.wait(timeout)?;
            for at in 0..count {
                let ready = self.poll.get(at);
                match ready.token {
                    LISTENER => self.accept(),
                    _ => self.serve(ready, &mut buffer),
                }
            }
            self.fire();
        }
    }

    fn accept(&mut self) {
        // Any error: nobody waits, or no descriptor is left. Later, then.
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_err() {
                continue;
            }
            let token = self.free.pop().unwrap_or(self.peers.len());
            if self.poll.add(&stream, token).is_err() {
                continue;
            }
            let peer = Some(Peer::new(stream));
            match self.peers.get_mut(token) {
                Some(place) => *place = peer,
                None => self.peers.push(peer),
            }
        }
    }

    fn serve(&mut self, ready: Ready, buffer: &mut [u8]) {
        let token = ready.token;
        let Some(peer) = self.peers.get_mut(token).and_then(Option::as_mut) else { return };
        if ready.writable && peer.flush().is_err() {
            return self.close(token);
        }
        if ready.readable {
            match peer.read(buffer) {
                Err(_) => return self.close(token),
                Ok(None) => {}
                Ok(Some(asked)) => self.answer(token, asked),
            }
        }
        self.step(token);
    }

    fn answer(&mut self, token: usize, asked: Asked) {
        let Some(peer) = self.peers.get_mut(token).and_then(Option::as_mut) else { return };
        let total = self.requests.fetch_add(1, Relaxed);
        let answer = match asked.path.as_str() {
            "/__stats" => super::answers::Answer::json(&format!(r#"{{"requests":{total}}}"#)),
            path => self.answers.find(path, &asked.body, asked.length),
        };
        peer.answer = Some(Answering { answer, next: 0, due: Instant::now() });
        peer.reuse(asked.body);
    }

    /// Writes what is due for this peer, and notes when it goes on.
    fn step(&mut self, token: usize) {
        let Some(peer) = self.peers.get_mut(token).and_then(Option::as_mut) else { return };
        match peer.go_on(Instant::now()) {
            Err(_) => return self.close(token),
            Ok(Some(at)) => self.timers.push(Reverse((at, token))),
            Ok(None) => {}
        }
        let stuck = peer.is_stuck();
        if stuck != peer.wants_write {
            peer.wants_write = stuck;
            if self.poll.writable(&peer.stream, token, stuck).is_err() {
                self.close(token);
            }
        }
    }

    fn fire(&mut self) {
        let now = Instant::now();
        while let Some(&Reverse((at, token))) = self.timers.peek() {
            if at > now {
                return;
            }
            self.timers.pop();
            self.step(token);
        }
    }

    fn close(&mut self, token: usize) {
        if self.peers.get_mut(token).and_then(Option::take).is_some() {
            self.free.push(token);
        }
    }
}
