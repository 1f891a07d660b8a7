//! Tollbar: an edge proxy for LLM providers. No request ever costs more than somebody agreed to
//! pay, and no control fails silently.
//!
//! # The journey of a request
//!
//! accept → authenticate → inspect → plan → attempt → relay → settle. Each stage is a plain
//! function in `proxy/` that takes values and returns one; Pingora's hooks in `proxy/mod.rs`
//! only call them, in order.
//!
//! # Two kinds of data
//!
//! *Snapshot* ([`config::snapshot`]): immutable, built from the file, swapped as a whole by
//! [`reload`]. *State* ([`state`]): mutable, addressed by stable names, survives reloads. A
//! request loads the snapshot once; a new attempt reads the provider's credential from the
//! newest one.
//!
//! # What nobody asked for
//!
//! Beside the requests, [`lookout`] looks once a second for what is worth telling: a budget's
//! share, fallbacks, the pace of spending. What a request meets on its way (a breaker that opened,
//! a credential that was refused) it raises itself. [`alerts`] says it once, in the log and to the
//! webhooks; no request waits for either.
//!
//! # Layers
//!
//! A module may import those above it in this list, never one below; `tests/it/layers.rs` holds
//! it to that.

// words: no I/O, no tokio, no pingora
pub mod units;
pub mod secret;
pub mod reject;
pub mod faults;
pub mod json_line;
pub mod turns;
// wire: bytes <-> meaning, pure
pub mod wire;
// policy: decisions and in-process state
pub mod scope;
pub mod limits;
pub mod keys;
pub mod keygen;
pub mod catalog;
// books: what was spent, kept on disk by a thread of its own
pub mod ledger;
pub mod budget;
pub mod keyring;
// config: as written -> resolved and checked
pub mod config;
pub mod plan;
pub mod roster;
pub mod reload;
// edge: the only importers of pingora
pub mod metrics;
pub mod systemd;
pub mod memory;
pub mod outlet;
pub mod terminal;
pub mod access_log;
pub mod resolve;
pub mod alerts;
pub mod state;
pub mod reloader;
pub mod proxy;
pub mod admin;
pub mod gather;
pub mod listen;
pub mod lookout;
pub mod handover;
pub mod sockets;
pub mod upgrade;
pub mod housekeeping;
pub mod server;
// the command line
pub mod logging;
pub mod demo;
pub mod cli;
