//! TLS, when the feature `tls` is on.

use std::io;

use super::TlsFiles;
use super::io::Counted;

#[cfg(feature = "tls")]
pub(crate) use with::{Acceptor, acceptor};
#[cfg(not(feature = "tls"))]
pub(crate) use without::{Acceptor, acceptor};

#[cfg(feature = "tls")]
mod with {
    use std::sync::Arc;

    use rustls::ServerConfig;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::{Counted, TlsFiles, io};

    #[derive(Clone)]
    pub(crate) struct Acceptor(tokio_rustls::TlsAcceptor);

    impl Acceptor {
        pub(crate) async fn accept(
            &self,
            io: Counted,
        ) -> io::Result<tokio_rustls::server::TlsStream<Counted>> {
            self.0.accept(io).await
        }
    }

    pub(crate) fn acceptor(files: &TlsFiles) -> io::Result<Acceptor> {
        let certs: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(&files.cert).map_err(io::Error::other)?.collect();
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(io::Error::other)?;
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(certs.map_err(io::Error::other)?, key)
            .map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Acceptor(Arc::new(config).into()))
    }
}

#[cfg(not(feature = "tls"))]
mod without {
    use super::{Counted, TlsFiles, io};

    #[derive(Clone)]
    pub(crate) enum Acceptor {}

    impl Acceptor {
        pub(crate) async fn accept(&self, _: Counted) -> io::Result<Counted> {
            match *self {}
        }
    }

    pub(crate) fn acceptor(_: &TlsFiles) -> io::Result<Acceptor> {
        let message = "tollbar-loadtest was built without its feature `tls`";
        Err(io::Error::new(io::ErrorKind::Unsupported, message))
    }
}
