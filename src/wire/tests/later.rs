//! Usage that comes more than once in a stream, and says less the later time.

use super::fixtures::play;
use crate::units::Usage;
use crate::wire::meter::Meter;
use crate::wire::route::Endpoint;

/// What is known after a start and a delta of Anthropic's with these usages.
fn anthropic(start: &str, delta: &str) -> Usage {
    let stream = format!(
        "data: {{\"type\":\"message_start\",\"message\":{{\"usage\":{{{start}}}}}}}\n\n\
         data: {{\"type\":\"message_delta\",\"usage\":{{{delta}}}}}\n\n\
         data: {{\"type\":\"message_stop\"}}\n\n"
    );
    play(Meter::stream(Endpoint::Messages, false), &[stream.as_bytes()]).1.usage
}

const START: &str = r#""input_tokens":1000,"cache_read_input_tokens":5000,"cache_creation_input_tokens":700,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":700}"#;

/// Some gateways in front of Anthropic write a zero for what they leave out.
#[test]
fn zeros_at_anthropics_end_take_back_nothing_of_its_start() {
    let wanted = Usage {
        input: Some(6700),
        cached_input: Some(5000),
        cache_write: Some(700),
        cache_write_1h: Some(700),
        output: Some(33),
        ..Usage::default()
    };
    for delta in [
        r#""output_tokens":33"#,
        r#""input_tokens":0,"output_tokens":33"#,
        r#""input_tokens":0,"cache_read_input_tokens":0,"cache_creation_input_tokens":0,"output_tokens":33"#,
        r#""input_tokens":0,"cache_read_input_tokens":5000,"cache_creation_input_tokens":0,"output_tokens":33"#,
        r#""input_tokens":1000,"cache_read_input_tokens":5000,"cache_creation_input_tokens":700,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"output_tokens":33"#,
    ] {
        assert_eq!(anthropic(START, delta), wanted, "{delta}");
    }
}

/// Who begins with an estimate, or with all of it as one part, knows better at the end.
#[test]
fn anthropics_end_still_puts_its_start_right() {
    let parts = |usage: Usage| (usage.input, usage.cached_input, usage.cache_write);
    let delta =
        r#""input_tokens":100,"cache_read_input_tokens":4900,"cache_creation_input_tokens":0"#;
    let moved = anthropic(r#""input_tokens":5000,"cache_read_input_tokens":0"#, delta);
    assert_eq!(parts(moved), (Some(5000), Some(4900), Some(0)));
    let smaller = anthropic(r#""input_tokens":5200"#, r#""input_tokens":5100"#);
    assert_eq!(parts(smaller), (Some(5100), None, None));
}

#[test]
fn writes_that_grow_without_a_split_are_of_the_only_kind_there_was() {
    let grown = r#""cache_creation_input_tokens":1700,"output_tokens":33"#;
    let usage = anthropic(START, grown);
    assert_eq!((usage.cache_write, usage.cache_write_1h), (Some(1700), Some(1700)));
    let both = START.replace("5m_input_tokens\":0", "5m_input_tokens\":100");
    let usage = anthropic(&both, grown);
    assert_eq!((usage.cache_write, usage.cache_write_1h), (Some(1700), Some(700)));
}

#[test]
fn a_poorer_usage_takes_back_nothing_of_geminis() {
    let full = r#"{"promptTokenCount":1000,"candidatesTokenCount":50,"thoughtsTokenCount":100,"totalTokenCount":1150}"#;
    for poorer in [r#"{"trafficType":"ON_DEMAND"}"#, r#"{"promptTokenCount":1000}"#, "{}", "null"] {
        let stream = format!(
            "data: {{\"candidates\":[{{\"finishReason\":\"STOP\"}}],\"usageMetadata\":{full}}}\n\n\
             data: {{\"usageMetadata\":{poorer},\"serviceTier\":\"x\"}}\n\n"
        );
        let meter = Meter::stream(Endpoint::GeminiStream, false);
        let usage = play(meter, &[stream.as_bytes()]).1.usage;
        assert_eq!((usage.input, usage.output), (Some(1000), Some(150)), "{poorer}");
        assert_eq!(usage.reasoning, Some(100), "{poorer}");
    }
}
