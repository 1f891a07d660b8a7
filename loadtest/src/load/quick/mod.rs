//! A provider that answers from memory.
//!
//! It gives the scripted provider's answers, byte for byte but for the number in the ids, and
//! obeys the directives `status`, `delay`, `first`, `gap`, `chunks`, `tokens`, `size` and others
//! that shape an answer. Each answer is built once and kept. Two things only it knows: the
//! directive `percent=30` gives the directive `status` to 30 of 100 requests, and `GET /__stats`
//! is all there is to control. HTTP/1.1, requests with a content-length.

mod answers;
mod peer;
mod serve;

pub use serve::serve;
