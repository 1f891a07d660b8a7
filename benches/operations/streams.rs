//! Answers on their way past: recorded ones, made as long as real ones are.

use super::{Operation, Work, single};
use bytes::Bytes;
use std::hint::black_box;
use tollbar::wire::meter::{End, Meter};
use tollbar::wire::route::Endpoint;

/// Deltas in a stream.
const DELTAS: usize = 500;

/// What one read brings when a provider is fast: the payload of a TCP segment.
const SEGMENT: usize = 1_448;

const CHAT: &str = include_str!("../../tests/fixtures/wire/openai_chat.stream.sse");
const ANSWER: &[u8] = include_bytes!("../../tests/fixtures/wire/openai_chat.response.json");
const RESPONSES: &str = include_str!("../../tests/fixtures/wire/openai_responses.stream.sse");
const ANTHROPIC: &str = include_str!("../../tests/fixtures/wire/anthropic.stream.sse");
const GEMINI: &str = include_str!("../../tests/fixtures/wire/gemini.stream.sse");

pub fn operations() -> Vec<Operation> {
    let event = |name, make| Operation { unit: "event", counted: 5, ..single(name, make) };
    vec![
        event("meter/openai-chat", || Stream::of(Endpoint::ChatCompletions, CHAT, Cut::Event)),
        event("meter/openai-chat-segments", || {
            Stream::of(Endpoint::ChatCompletions, CHAT, Cut::Segment)
        }),
        event("meter/openai-responses", || Stream::of(Endpoint::Responses, RESPONSES, Cut::Event)),
        event("meter/anthropic", || Stream::of(Endpoint::Messages, ANTHROPIC, Cut::Event)),
        event("meter/gemini", || Stream::of(Endpoint::GeminiStream, GEMINI, Cut::Event)),
        single("meter/json-answer", || {
            let chunk = Bytes::from_static(ANSWER);
            Box::new(move |_| {
                let mut meter = Meter::json(Endpoint::ChatCompletions);
                black_box(meter.chunk(chunk.clone()));
                black_box(meter.end());
                assert!(meter.report().usage.output.is_some());
            })
        }),
    ]
}

/// How a stream comes.
enum Cut {
    /// A read for every event, as a model speaks.
    Event,
    /// Reads of one size, whatever they cut.
    Segment,
}

struct Stream {
    endpoint: Endpoint,
    chunks: Vec<Bytes>,
    events: u64,
}

impl Stream {
    fn of(endpoint: Endpoint, recorded: &str, cut: Cut) -> Box<dyn Work> {
        let blank = if recorded.contains("\r\n\r\n") { "\r\n\r\n" } else { "\n\n" };
        let mut events: Vec<&str> = recorded.split_inclusive(blank).collect();
        let delta = events.iter().position(|event| is_delta(event)).unwrap();
        let more = vec![events[delta]; DELTAS];
        events.splice(delta..delta, more);
        let chunks = match cut {
            Cut::Event => events.iter().map(|event| Bytes::from((*event).to_owned())).collect(),
            Cut::Segment => {
                let whole = Bytes::from(events.concat());
                let cuts = (0..whole.len()).step_by(SEGMENT);
                cuts.map(|at| whole.slice(at..whole.len().min(at + SEGMENT))).collect()
            }
        };
        Box::new(Stream { endpoint, chunks, events: events.len() as u64 })
    }
}

/// An event that brings text, and nothing else.
fn is_delta(event: &str) -> bool {
    let says = |word: &str| event.contains(word);
    says(r#""delta":{"content":"I"#)
        || says(r#""type":"text_delta""#)
        || says("response.output_text.delta")
        || says(r#""parts":[{"text":"東"#)
}

impl Work for Stream {
    fn run(&self, _: usize) {
        // The client didn't ask for the usage: the gateway did, and takes it out again.
        let mut meter = Meter::stream(self.endpoint, true);
        for chunk in &self.chunks {
            black_box(meter.chunk(chunk.clone()));
        }
        black_box(meter.end());
        let report = meter.report();
        assert!(report.end == End::Complete && report.usage.output.is_some());
    }

    fn units(&self) -> u64 {
        self.events
    }
}
