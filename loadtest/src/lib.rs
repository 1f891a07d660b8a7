//! The scripted provider, a fake LLM provider that does exactly what it is told, and the load tests.
//!
//! The same server answers `tollbar demo`, the integration tests and the load
//! tests, so that all three agree about what a provider does.
//!
//! # Layout
//!
//! - [`provider`]: the server, its scripts and its record of what it received.
//! - `load` (feature `load`): the load generator, the scenarios and the report.

pub mod provider;
#[cfg(feature = "load")]
pub mod load;
