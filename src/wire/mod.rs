//! What is on the wire: paths, request bodies, answers, errors. Pure code, no I/O.
//!
//! A request body is checked and edited in place (`scan`, `multipart`, `splice`); an answer is
//! watched as it goes past (`sse` or `tap` find the pieces, one of the dialects reads them,
//! `meter` holds the result). Nothing is re-serialised.

pub mod route;
pub mod route_path;

pub mod beyond;
mod documents;
pub mod fault;
pub mod heard;
pub mod json;
pub mod json_text;
pub mod look;
pub mod loops;
pub mod marks;
pub mod multipart;
pub mod runs;
pub mod scan;
pub mod splice;
pub mod text_len;
pub mod tokens;
pub mod walk;
pub mod words;

mod array;
mod hold;
mod later;
mod nest;
pub mod meter;
pub mod packed;
pub mod seen;
pub mod sift;
pub mod sse;
pub mod tap;

pub mod anthropic;
pub mod gemini;
pub mod openai;
pub mod openai_usage;

pub mod cooldown;
pub mod errors;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::random;
