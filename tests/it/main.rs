//! Integration tests: each starts the real binary on free ports against the scripted provider.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod alerts;
mod backup;
mod bodies;
mod budgets;
mod chaos;
mod clamp;
mod costs;
mod costs_kinds;
mod departures;
mod doors;
mod downstream;
mod estimates;
mod holds;
mod hostile;
mod keys;
mod layers;
mod limits;
mod memory;
mod observability;
mod mixed;
mod passthrough;
mod promql;
mod raw;
mod reload;
mod routing;
mod secrets;
mod slow;
mod splice;
mod state_failures;
mod streams;
mod support;
mod systemd;
mod upgrade;
mod warm;
