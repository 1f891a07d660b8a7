//! Tests of the wire layer, one file for each of its parts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod beyond;
mod errors;
mod fixtures;
mod later;
mod meter;
mod meter_json;
mod multipart;
mod packed;
mod reference;
mod route;
mod same;
mod scan;
mod scan_any;
mod splice;
mod sse;
mod tap;
mod text_len;

pub use fixtures::random;
