//! Root certificates that a provider's `ca_file` names.

use super::problem::Report;
use super::read::At;
use super::snapshot::{Provider, Roots};
use super::text::Texts;
use crate::secret::sha256;
use ahash::AHashMap;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::sync::{Arc, OnceLock};

/// Those that have been read, by the hash of their file: providers that share a file share its
/// roots, and a reload keeps those of the configuration in force.
pub(crate) struct Known(AHashMap<[u8; 32], Arc<Roots>>);

impl Known {
    /// What these providers have.
    pub(crate) fn of<'a>(providers: impl Iterator<Item = &'a Arc<Provider>>) -> Self {
        let roots = providers.filter_map(|provider| provider.roots.as_ref());
        Known(roots.map(|roots| (roots.hash, roots.clone())).collect())
    }

    /// The roots in this file. Whatever would keep a connection from being made is a problem now.
    pub(crate) fn read(
        &mut self,
        raw: &At<String>,
        texts: Texts<'_>,
        report: &mut Report,
    ) -> Option<Arc<Roots>> {
        let (path, content) = texts.file(raw, report)?;
        let hash = sha256(content.as_bytes());
        if let Some(known) = self.0.get(&hash) {
            return Some(known.clone());
        }
        match certificates(&content) {
            Ok(certificates) => {
                let roots = Arc::new(Roots { hash, certificates, prepared: OnceLock::new() });
                self.0.insert(hash, roots.clone());
                Some(roots)
            }
            Err(why) => {
                let message = format!("{} {why}", path.display());
                report.problem(&raw.place, message, "Name a PEM file of root certificates");
                None
            }
        }
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let n = found.len() + 1;
        let der = der.map_err(|_| format!("breaks off, or is no PEM, at its certificate {n}"))?;
        let trusted = RootCertStore::empty().add(der.clone());
        trusted.map_err(|_| format!("has a certificate that can't be read, its number {n}"))?;
        found.push(der);
    }
    if found.is_empty() { Err("has no certificate".to_owned()) } else { Ok(found) }
}
