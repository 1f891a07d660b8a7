//! Load tests: what Tollbar costs, beside no proxy and beside a bare Pingora proxy.
//!
//! # Layout
//!
//! - `parse`, `request`: HTTP/1.1 as cheap as it gets, since generator and provider share a core
//! - `schedule`, `tally`: when requests are due, and what was seen (HDR histograms)
//! - `poll`, `connection`, `engine`: the generator; `h2`: the same over HTTP/2
//! - [`quick`]: a provider that answers from memory, so that it is never what limits
//! - `sys`, `procfs`, `child`, `admin`: pinning, limits, accounting, child processes
//! - `yaml`, `fleet`: the gateway's configuration, and everything that one scenario starts
//! - `measure`, `stats`: one round, and the median over rounds
//! - `section`, `table`, `report`: rows, checks, Markdown and JSON
//! - [`scenarios`]: what is measured

mod parse;
mod request;
mod schedule;
mod tally;
mod poll;
mod connection;
mod engine;
mod h2;
pub mod quick;
mod error;
mod sys;
mod procfs;
mod child;
mod admin;
mod yaml;
mod fleet;
mod measure;
mod stats;
mod section;
mod table;
mod report;
pub mod scenarios;
#[cfg(test)]
mod tests;

pub use error::LoadError;
pub use fleet::{Binaries, Other};
pub use report::write as write_report;
pub use scenarios::{Harness, Options};
pub use section::Section;
