//! Roots of trust named by a provider's `ca_file`, parsed once per version of the file.

use parking_lot::Mutex;
use pingora_core::protocols::tls::CaType;
use pingora_core::tls::RootCertStore;
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

type Cache = HashMap<PathBuf, (Option<SystemTime>, Arc<CaType>)>;

static PARSED: LazyLock<Mutex<Cache>> = LazyLock::new(Mutex::default);

/// The certificates in a PEM file.
///
/// # Errors
/// What is wrong with the file, in words.
pub fn roots(file: &Path) -> Result<Arc<CaType>, String> {
    let modified = std::fs::metadata(file).and_then(|meta| meta.modified()).ok();
    if let Some((at, roots)) = PARSED.lock().get(file)
        && *at == modified
    {
        return Ok(roots.clone());
    }
    let bad = |why: String| format!("ca_file {}: {why}", file.display());
    let mut roots = Vec::new();
    let certificates =
        CertificateDer::pem_file_iter(file).map_err(|error| bad(error.to_string()))?;
    for der in certificates {
        let der = der.map_err(|error| bad(error.to_string()))?;
        // `parse_x509` panics on bad input, so what it gets has been parsed once before.
        RootCertStore::empty().add(der.clone()).map_err(|error| bad(error.to_string()))?;
        let parsed = std::panic::catch_unwind(|| WrappedX509::new(der.to_vec(), parse_x509));
        roots.push(parsed.map_err(|_| bad("holds a certificate that can't be parsed".into()))?);
    }
    if roots.is_empty() {
        return Err(bad("holds no certificate".into()));
    }
    let roots: Arc<CaType> = Arc::from(roots);
    PARSED.lock().insert(file.to_owned(), (modified, roots.clone()));
    Ok(roots)
}
