//! The scripted provider: a fake LLM provider that does exactly what it is told.
//!
//! The same server answers `tollbar demo`, the integration tests and the load
//! tests, so that all three agree about what a provider does.
//!
//! # Layout
//!
//! - [`provider`]: the server, its scripts and its record of what it received.

pub mod provider;
