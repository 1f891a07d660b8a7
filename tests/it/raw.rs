//! A client that sends bytes as they are.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::time::Duration;

/// A plain connection on which bytes are written as they are.
pub struct Raw {
    pub stream: tokio::net::TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    pub async fn connect(to: SocketAddr) -> Self {
        Self::over(tokio::net::TcpStream::connect(to).await.unwrap())
    }

    pub fn over(stream: tokio::net::TcpStream) -> Self {
        Raw { stream, buffer: Vec::new() }
    }

    /// Writes; a peer that has closed already is no error here.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        use tokio::io::AsyncWriteExt;
        self.stream.write_all(bytes).await.is_ok()
    }

    /// More bytes, `false` at the end.
    async fn more(&mut self) -> bool {
        use tokio::io::AsyncReadExt;
        let read = self.stream.read_buf(&mut self.buffer);
        match tokio::time::timeout(Duration::from_secs(20), read).await {
            Ok(read) => read.is_ok_and(|n| n > 0),
            Err(_) => panic!("the server neither answers nor closes"),
        }
    }

    /// The next answer with a content-length: status, head, body. `None` when the server closed.
    pub async fn answer(&mut self) -> Option<(u16, String, Vec<u8>)> {
        let (head, body) = self.request().await?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some((status, head, body))
    }

    /// The next request, or answer, with a content-length: head, in small letters, and body.
    pub async fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
        let length = head.split("content-length:").nth(1).and_then(|rest| rest.lines().next());
        let length: usize = length.map_or(0, |text| text.trim().parse().unwrap());
        while self.buffer.len() < end + length {
            if !self.more().await {
                return None;
            }
        }
        let body = self.buffer[end..end + length].to_vec();
        self.buffer.drain(..end + length);
        Some((head, body))
    }

    /// Everything until the server closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.buffer)
    }
}

/// A provider that answers every request with these bytes; `closes`: and then closes.
pub async fn canned(answer: Vec<u8>, closes: bool) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let mut raw = Raw::over(listener.accept().await.unwrap().0);
            if raw.request().await.is_none() {
                continue;
            }
            raw.send(&answer).await;
            if !closes {
                open.push(raw);
            }
        }
    });
    base
}
