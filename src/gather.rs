//! A client's connection that sends the header and the body of an answer together.
//!
//! Pingora's own buffer holds 1,460 bytes: an answer beyond that leaves in two sends, and a send is
//! the dearest thing that happens to a small request. Here what is written is kept until it is
//! flushed, up to 16 KiB; what doesn't fit goes out with it in one vectored write.

use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::{SslDigest, TlsRef};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Bytes that are kept until the flush.
const KEPT: usize = 16 * 1024;

/// The first room for them: most answers need no more.
const ROOM: usize = 2 * 1024;

/// A connection whose writes are gathered.
#[derive(Debug)]
pub struct Gather {
    inner: Stream,
    /// Written and not yet sent. Given back at every flush: an idle connection keeps no room.
    kept: Vec<u8>,
    /// How long the client may take nothing.
    patience: Duration,
    /// It takes nothing; until when.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Gather {
    /// Gathers what is written to a connection. A client that takes no byte for as long as
    /// `patience` is given up: Pingora's own timeout is for writes, and what is kept here is sent
    /// at the flush.
    pub fn new(inner: Stream, patience: Duration) -> Self {
        Gather { inner, kept: Vec::new(), patience, stuck: None }
    }

    /// What has come of writing; an error where it has been nothing for too long.
    fn patiently<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.stuck = None;
            return poll;
        }
        let patience = self.patience;
        let until = self.stuck.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(until.as_mut().poll(cx));
        self.stuck = None;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }

    fn keep(&mut self, data: &[u8]) {
        if self.kept.capacity() == 0 {
            self.kept.reserve(ROOM.max(data.len()));
        }
        self.kept.extend_from_slice(data);
    }

    /// Sends what is kept.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept.is_empty() {
            let poll = Pin::new(&mut self.inner).poll_write(cx, &self.kept);
            let sent = ready!(self.patiently(cx, poll))?;
            self.sent(sent)?;
        }
        self.kept = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// So much of what is kept has been sent.
    fn sent(&mut self, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.kept.drain(..bytes);
        Ok(())
    }

    /// Sends what is kept with as much of `data` as goes with it; returns how much that was.
    fn poll_send_with(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        while !self.kept.is_empty() {
            let both = [IoSlice::new(&self.kept), IoSlice::new(data)];
            let poll = Pin::new(&mut self.inner).poll_write_vectored(cx, &both);
            let sent = ready!(self.patiently(cx, poll))?;
            let kept = self.kept.len();
            if sent > kept {
                self.kept = Vec::new();
                return Poll::Ready(Ok(sent - kept));
            }
            self.sent(sent)?;
        }
        self.kept = Vec::new();
        let poll = Pin::new(&mut self.inner).poll_write(cx, data);
        self.patiently(cx, poll)
    }
}

impl AsyncRead for Gather {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gather {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.kept.len() + data.len() <= KEPT {
            self.keep(data);
            return Poll::Ready(Ok(data.len()));
        }
        self.poll_send_with(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = slices.iter().map(|slice| slice.len()).sum::<usize>();
        if self.kept.len() + bytes <= KEPT {
            slices.iter().for_each(|slice| self.keep(slice));
            return Poll::Ready(Ok(bytes));
        }
        ready!(self.poll_send(cx))?;
        let poll = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.patiently(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        let poll = Pin::new(&mut self.inner).poll_flush(cx);
        self.patiently(cx, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Gather {
    async fn shutdown(&mut self) {
        // Whoever shuts down may be cutting off a client that doesn't read: no waiting for it.
        if !self.kept.is_empty() {
            let _ = tokio::time::timeout(Duration::from_secs(1), self.flush()).await;
        }
        Shutdown::shutdown(&mut *self.inner).await;
    }
}

#[async_trait]
impl Peek for Gather {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.inner.try_peek(buf).await
    }
}

impl UniqueID for Gather {
    fn id(&self) -> UniqueIDType {
        self.inner.id()
    }
}

impl Ssl for Gather {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.inner.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.inner.selected_alpn_proto()
    }
}

impl GetTimingDigest for Gather {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.inner.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.inner.get_write_pending_time()
    }
}

impl GetProxyDigest for Gather {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.inner.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.inner.set_proxy_digest(digest);
    }
}

impl GetSocketDigest for Gather {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.inner.set_socket_digest(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_core::protocols::l4::stream::Stream as L4Stream;
    use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
    use std::sync::Mutex;

    /// Takes so many bytes at a time, and remembers each send.
    #[derive(Debug, Clone)]
    struct Wire {
        most: usize,
        sends: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl VirtualSocket for Wire {
        fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsyncRead for Wire {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = &data[..data.len().min(self.most)];
            self.sends.lock().unwrap().push(taken.to_vec());
            Poll::Ready(Ok(taken.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn on(most: usize) -> (Gather, Wire) {
        let wire = Wire { most, sends: Arc::default() };
        let socket = VirtualSocketStream::new(Box::new(wire.clone()));
        (Gather::new(Box::new(L4Stream::from(socket)), Duration::from_secs(9)), wire)
    }

    #[tokio::test]
    async fn header_and_body_leave_in_one_send() {
        for body in [0, 1, 1460, 5000, KEPT - 700] {
            let (mut gather, wire) = on(usize::MAX);
            gather.write_all(&[b'h'; 700]).await.unwrap();
            gather.write_all(&vec![b'b'; body]).await.unwrap();
            assert!(wire.sends.lock().unwrap().is_empty(), "nothing leaves before the flush");
            gather.flush().await.unwrap();
            let sends = wire.sends.lock().unwrap();
            assert_eq!(sends.len(), 1, "body of {body}");
            assert_eq!(sends[0].len(), 700 + body);
            assert_eq!(gather.kept.capacity(), 0);
        }
    }

    #[tokio::test]
    async fn every_byte_arrives_in_order_however_little_the_socket_takes() {
        for most in [1, 7, 1000, usize::MAX] {
            for sizes in [[10, 20_000, 5], [16_384, 1, 16_384], [700, 40_000, 40_000], [3, 3, 3]] {
                let (mut gather, wire) = on(most);
                let mut wanted = Vec::new();
                for (at, size) in sizes.into_iter().enumerate() {
                    let piece: Vec<u8> = (0..size).map(|n| (n * 31 + at) as u8).collect();
                    gather.write_all(&piece).await.unwrap();
                    wanted.extend(piece);
                }
                let mut slices = [IoSlice::new(b"ab"), IoSlice::new(&[7; 17_000])];
                let mut slices = &mut slices[..];
                while !slices.is_empty() {
                    let n = gather.write_vectored(slices).await.unwrap();
                    IoSlice::advance_slices(&mut slices, n);
                }
                wanted.extend(b"ab");
                wanted.extend([7; 17_000]);
                gather.flush().await.unwrap();
                assert_eq!(wire.sends.lock().unwrap().concat(), wanted, "{most} {sizes:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_shutdown_sends_what_is_kept() {
        let (mut gather, wire) = on(usize::MAX);
        gather.write_all(b"last words").await.unwrap();
        Shutdown::shutdown(&mut gather).await;
        assert_eq!(wire.sends.lock().unwrap().concat(), b"last words");
    }
}
