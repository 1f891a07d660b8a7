//! The header and the body of a small request leave for the provider together.
//!
//! Pingora sends the header before it asks for the body: two sends, two packets, and at the
//! provider two wake-ups. A corked TCP socket keeps what it is given until the cork is pulled, and
//! by itself for no more than 200 ms (tcp(7), `TCP_CORK`).

use http::Version;
use std::os::fd::RawFd;

/// Bytes of a body that leaves with its header. Beside the sends of a larger one the header's is
/// nothing.
const SMALL: usize = 16 * 1024;

/// Keeps back what is written to a connection, until it is dropped.
pub struct Cork(RawFd);

impl Cork {
    /// Corks a provider's connection for a request, if the body is small and the protocol is one
    /// that has the connection to itself.
    pub fn put(connection: RawFd, version: Version, body: usize) -> Option<Cork> {
        let gains = (1..=SMALL).contains(&body) && version == Version::HTTP_11;
        (gains && set(connection, true)).then_some(Cork(connection))
    }

    /// Pulls the cork when the running task begins to wait for something: it has written the body
    /// by then. Should another worker be faster, the header leaves alone, as it would without.
    pub fn pull_when_written(self) {
        tokio::spawn(async move { drop(self) });
    }
}

impl Drop for Cork {
    fn drop(&mut self) {
        set(self.0, false);
    }
}

/// Whether it could be done. Not every connection is a TCP socket of ours.
#[cfg(target_os = "linux")]
fn set(connection: RawFd, corked: bool) -> bool {
    use std::os::fd::BorrowedFd;
    if connection < 0 {
        return false;
    }
    // SAFETY: used for this one call only. When a cork is pulled, its connection may be closed and
    // the number another one's: that one sends a little earlier what it keeps, which nothing
    // relies on. A number that is no TCP socket is an error.
    #[allow(unsafe_code)]
    let connection = unsafe { BorrowedFd::borrow_raw(connection) };
    rustix::net::sockopt::set_tcp_cork(connection, corked).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn set(_: RawFd, _: bool) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        near.set_nodelay(true).unwrap();
        (near, far)
    }

    /// What has arrived, in one read.
    fn arrived(far: &mut TcpStream) -> Vec<u8> {
        far.set_nonblocking(true).unwrap();
        let mut bytes = [0; 100];
        let read = far.read(&mut bytes).unwrap_or(0);
        bytes[..read].to_vec()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn header_and_body_arrive_together() {
        // The kernel pulls a cork by itself after 200 ms: this machine may be slower than that.
        let together = (0..10).any(|_| {
            let (mut near, mut far) = connected();
            let cork = Cork::put(near.as_raw_fd(), Version::HTTP_11, 4).unwrap();
            near.write_all(b"header").unwrap();
            let early = arrived(&mut far);
            near.write_all(b"body").unwrap();
            drop(cork);
            early.is_empty() && arrived(&mut far) == b"headerbody"
        });
        assert!(together);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn it_is_pulled_as_soon_as_the_task_waits() {
        let (mut near, mut far) = connected();
        let cork = Cork::put(near.as_raw_fd(), Version::HTTP_11, 4).unwrap();
        near.write_all(b"header").unwrap();
        cork.pull_when_written();
        near.write_all(b"body").unwrap();
        tokio::task::yield_now().await;
        assert_eq!(arrived(&mut far), b"headerbody");
        near.write_all(b"next").unwrap();
        assert_eq!(arrived(&mut far), b"next", "and stays out");
    }

    #[test]
    fn only_small_bodies_of_connections_that_are_not_shared_are_kept() {
        let (near, _far) = connected();
        let put = |version, body| Cork::put(near.as_raw_fd(), version, body).is_some();
        assert!(!put(Version::HTTP_2, 100));
        assert!(!put(Version::HTTP_11, 0), "nothing would follow the header");
        assert!(!put(Version::HTTP_11, SMALL + 1));
        assert!(Cork::put(-1, Version::HTTP_11, 100).is_none());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Cork::put(file.as_raw_fd(), Version::HTTP_11, 100).is_none());
    }
}
