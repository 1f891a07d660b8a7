use super::fixtures::{ANSWERS, assert_usage, cuts, expected, play};
use crate::units::{NanoUsd, Usage};
use crate::wire::meter::{End, Meter, Report};
use crate::wire::route::Endpoint;

fn json(endpoint: Endpoint, body: &str) -> Report {
    play(Meter::json(endpoint), &[body.as_bytes()]).1
}

#[test]
fn every_answer_at_every_cut_is_metered_and_untouched() {
    for &(name, endpoint, bytes) in ANSWERS {
        let whole = play(Meter::json(endpoint), &[bytes]).1;
        if name == "openrouter.response_200_error.json" {
            let (message, kind) = ("Provider returned error".to_owned(), Some("502".to_owned()));
            assert_eq!(whole.end, End::Failed { message, kind });
        } else {
            assert_eq!(whole.end, End::Complete, "{name}");
            assert_usage(name, &whole.usage, &expected(name)["usage"]);
        }
        for pieces in cuts(bytes) {
            let (got, report) = play(Meter::json(endpoint), &pieces);
            assert!(got == bytes, "{name}");
            assert_eq!(report, whole, "{name}: cut at {}", pieces[0].len());
        }
    }
}

#[test]
fn a_cut_answer_is_truncated() {
    for &(name, endpoint, bytes) in ANSWERS {
        let text = bytes.trim_ascii_end();
        for at in 0..text.len() {
            let report = play(Meter::json(endpoint), &[&text[..at]]).1;
            assert_ne!(report.end, End::Complete, "{name}: at {at}");
        }
    }
}

#[test]
fn details_that_the_table_has_no_column_for() {
    let anthropic = ANSWERS.iter().find(|f| f.0 == "anthropic.response.json").unwrap();
    let report = play(Meter::json(anthropic.1), &[anthropic.2]).1;
    assert_eq!(report.usage.cache_write_1h, Some(200));
    assert_eq!(report.usage.web_searches, Some(1));
    assert_eq!(report.service_tier.as_deref(), Some("standard"));
    let chat = ANSWERS.iter().find(|f| f.0 == "openai_chat.response.json").unwrap();
    let report = play(Meter::json(chat.1), &[chat.2]).1;
    assert_eq!(report.service_tier.as_deref(), Some("default"));
    assert_eq!(report.text_bytes, chat.2.len() as u64);
}

#[test]
fn embeddings_report_no_output() {
    let report = json(
        Endpoint::Embeddings,
        r#"{"object":"list","data":[{"embedding":"AAAA"}],"usage":{"prompt_tokens":8,"total_tokens":8}}"#,
    );
    let usage = Usage { input: Some(8), ..Usage::default() };
    assert_eq!((report.usage, report.end), (usage, End::Complete));
}

/// A number that no answer can have used is none, and what else was said counts.
#[test]
fn absurd_counts_are_not_reported() {
    let of = |body: String| json(Endpoint::ChatCompletions, &body).usage;
    for absurd in ["18446744073709551615", "4294967297", "1e14", "\"9007199254740992\""] {
        let usage = of(format!(
            r#"{{"choices":[],"usage":{{"prompt_tokens":5,"completion_tokens":{absurd}}}}}"#
        ));
        assert_eq!((usage.input, usage.output), (Some(5), None), "{absurd}");
        let usage = of(format!(
            r#"{{"choices":[],"usage":{{"prompt_tokens":{absurd},"completion_tokens":5}}}}"#
        ));
        assert_eq!((usage.input, usage.output), (None, Some(5)), "{absurd}");
    }
    let ticks = |ticks: u64| {
        of(format!(r#"{{"choices":[],"usage":{{"cost_in_usd_ticks":{ticks}}}}}"#)).billed
    };
    assert_eq!(ticks(20_000_000_000), Some(NanoUsd(2_000_000_000)), "two dollars are not absurd");
    assert_eq!(ticks(u64::MAX), None);
}

#[test]
fn counting_tokens_uses_none() {
    let report = json(Endpoint::CountTokens, r#"{"input_tokens":2095}"#);
    assert!(report.usage.is_empty());
    assert_eq!(report.end, End::Complete);
}

#[test]
fn audio_is_metered_by_tokens_or_by_duration() {
    let of = |body| json(Endpoint::AudioTranscriptions, body).usage;
    let tokens = of(
        r#"{"text":"a","usage":{"type":"tokens","input_tokens":14,"input_token_details":{"text_tokens":0,"audio_tokens":14},"output_tokens":45,"total_tokens":59}}"#,
    );
    assert_eq!((tokens.input, tokens.audio_input, tokens.output), (Some(14), Some(14), Some(45)));
    assert_eq!(tokens.duration_ms, None);
    assert_eq!(
        of(r#"{"text":"a","usage":{"type":"duration","seconds":9}}"#).duration_ms,
        Some(9000)
    );
    assert_eq!(of(r#"{"text":"a","duration":8.47}"#).duration_ms, Some(8470));
    assert_eq!(of(r#"{"text":"a","duration":"8.5"}"#).duration_ms, Some(8500));
    assert_eq!(of(r#"{"text":"a","duration":-1}"#).duration_ms, None);
}

#[test]
fn failures_in_a_200() {
    for (endpoint, body) in [
        (
            Endpoint::Responses,
            r#"{"status":"failed","error":{"code":"server_error","message":"x"}}"#,
        ),
        (Endpoint::Responses, r#"{"status":"failed","error":null}"#),
        (Endpoint::Messages, r#"{"type":"error","error":{"type":"api_error","message":"x"}}"#),
        (
            Endpoint::GeminiGenerate,
            r#"[{"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}]"#,
        ),
        (Endpoint::ChatCompletions, r#"{"object":"error","message":"x"}"#),
    ] {
        assert!(matches!(json(endpoint, body).end, End::Failed { .. }), "{body}");
    }
    for body in [r#"{"error":null}"#, r#"{"status":"completed"}"#] {
        assert_eq!(json(Endpoint::Responses, body).end, End::Complete, "{body}");
    }
}

/// What is too large to be parsed is an error all the same.
#[test]
fn an_error_of_any_size_is_one() {
    let told = |length: usize| {
        let body = format!(r#"{{"error":{{"type":"t","message":"{}"}}}}"#, "x".repeat(length));
        match json(Endpoint::ChatCompletions, &body).end {
            End::Failed { message, kind } => (message.len(), kind),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told(60_000), (60_000, Some("t".to_owned())));
    assert_eq!(told(70_000), (512, None));
}

#[test]
fn a_gemini_array_counts_its_last_snapshot() {
    let report = json(
        Endpoint::GeminiStream,
        r#"[{"candidates":[],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1}},
{"candidates":[{"finishReason":"STOP","groundingMetadata":{"webSearchQueries":["a","b"]}}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":"9"}}]"#,
    );
    assert_eq!((report.usage.input, report.usage.output), (Some(3), Some(9)));
    assert_eq!(report.usage.web_searches, Some(2));
    assert_eq!(report.end, End::Complete);
}

/// Without events a stream of Gemini's is an array: what any element says counts, as it ends.
#[test]
fn an_array_that_grows_is_read_as_it_grows() {
    let first = r#"[{"candidates":[{"content":{"parts":[{"text":"Hi"}]},"groundingMetadata":{"webSearchQueries":["a","b"]}}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2}}"#;
    let last = r#",{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":9}}]"#;
    let report =
        play(Meter::unlabelled(Endpoint::GeminiStream), &[first.as_bytes(), last.as_bytes()]).1;
    assert_eq!((report.usage.input, report.usage.output), (Some(3), Some(9)));
    assert_eq!((report.usage.web_searches, report.end), (Some(2), End::Complete));
    // Who leaves in the middle has had two tokens, and not what the JSON would make as text.
    let report = play(Meter::unlabelled(Endpoint::GeminiStream), &[first.as_bytes()]).1;
    assert_eq!((report.usage.output, report.text_bytes), (Some(2), 2));
    assert_eq!(report.end, End::Truncated);
}

#[test]
fn iterations_are_summed() {
    let report = json(
        Endpoint::Messages,
        r#"{"usage":{"input_tokens":5,"output_tokens":7,"iterations":[{"input_tokens":100,"output_tokens":20},{"input_tokens":5,"output_tokens":7}]}}"#,
    );
    assert_eq!((report.usage.input, report.usage.output), (Some(105), Some(27)));
}

#[test]
fn bytes_that_cannot_be_read_are_only_counted() {
    let mut meter = Meter::opaque(Endpoint::AudioSpeech);
    assert_eq!(meter.report().end, End::Truncated);
    meter.chunk(vec![0xff; 10].into());
    meter.end();
    let report = meter.report();
    assert_eq!((report.text_bytes, report.end), (10, End::Complete));
    assert!(report.usage.is_empty());
}
