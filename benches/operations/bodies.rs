//! Request bodies: checked, understood, and edited for the target.

use super::samples::{agent, picture, text};
use super::{Operation, Work, single};
use bytes::Bytes;
use std::hint::black_box;
use tollbar::plan;
use tollbar::wire::scan::{CapName, scan};
use tollbar::wire::splice::{Wanted, edits, splice};

pub fn operations() -> Vec<Operation> {
    vec![
        single("scan-splice/300B", || rewrite(text(300))),
        single("scan-splice/4KB", || rewrite(text(4_000))),
        large("scan-splice/100KB", || rewrite(agent(100_000))),
        large("scan-splice/2MB", || rewrite(text(2_000_000))),
        large("scan-splice/2MB-picture", || rewrite(picture(2_000_000))),
        single("affinity/4KB", || affinity(text(4_000))),
        large("affinity/2MB", || affinity(text(2_000_000))),
    ]
}

fn large(name: &'static str, make: fn() -> Box<dyn Work>) -> Operation {
    Operation { counted: 5, ..single(name, make) }
}

/// One pass over the body, and the three edits that a streamed request can need.
fn rewrite(body: Bytes) -> Box<dyn Work> {
    Box::new(move |_| {
        let fields = scan(black_box(&body)).unwrap();
        let wanted = Wanted {
            model: Some("gpt-4o-mini-2024-07-18"),
            cap_name: Some(CapName::MaxCompletionTokens),
            output_cap: Some(1_024),
            include_usage: fields.stream,
            ..Wanted::default()
        };
        black_box(splice(&body, &edits(&fields, &wanted)));
    })
}

/// Which conversation it is: a hash up to the end of the first message of the user.
fn affinity(body: Bytes) -> Box<dyn Work> {
    let end = scan(&body).unwrap().prefix_end;
    Box::new(move |_| {
        black_box(plan::hash(black_box(&body[..end])));
    })
}
