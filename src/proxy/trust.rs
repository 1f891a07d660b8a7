//! The roots of trust of a provider's `ca_file`, as Pingora wants them.

use crate::config::snapshot::Roots;
use pingora_core::protocols::tls::CaType;
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use std::any::Any;
use std::sync::Arc;

/// `None` where Pingora can't read a certificate that TLS itself takes.
pub fn roots(roots: &Roots) -> Option<Arc<CaType>> {
    let prepared = roots.prepared.get_or_init(|| {
        let parsed: Vec<WrappedX509> = roots
            .certificates
            .iter()
            // `parse_x509` panics on what it can't read.
            .map(|der| std::panic::catch_unwind(|| WrappedX509::new(der.to_vec(), parse_x509)).ok())
            .collect::<Option<_>>()?;
        let parsed: Arc<CaType> = parsed.into();
        Some(Box::new(parsed) as Box<dyn Any + Send + Sync>)
    });
    prepared.as_ref()?.downcast_ref().cloned()
}
