use bytes::Bytes;

use super::fixtures::{STREAMS, assert_usage, cuts, expected, play};
use crate::units::Usage;
use crate::wire::meter::{End, Meter, Report};
use crate::wire::route::Endpoint;

fn outcome(report: &Report) -> &'static str {
    match report.end {
        End::Complete => "complete",
        End::Truncated => "truncated",
        End::Failed { .. } => "error",
    }
}

fn chat(hide: bool, stream: &str) -> (Vec<u8>, Report) {
    play(Meter::stream(Endpoint::ChatCompletions, hide), &[stream.as_bytes()])
}

#[test]
fn every_stream_at_every_cut_is_metered_and_untouched() {
    for &(name, endpoint, bytes) in STREAMS {
        let expected = expected(name);
        let whole = play(Meter::stream(endpoint, false), &[bytes]).1;
        assert_eq!(outcome(&whole), expected["outcome"], "{name}");
        if let (End::Failed { kind, .. }, Some(wanted)) =
            (&whole.end, expected["error_type"].as_str())
        {
            assert_eq!(kind.as_deref(), Some(wanted), "{name}");
        }
        if name == "anthropic.stream_error.sse" {
            assert_eq!(whole.usage.input, Some(64));
            assert_eq!(whole.usage.output, None);
        } else {
            assert_usage(name, &whole.usage, &expected["usage"]);
        }
        for pieces in cuts(bytes) {
            let (got, report) = play(Meter::stream(endpoint, false), &pieces);
            assert!(got == bytes, "{name}: changed");
            assert_eq!(report, whole, "{name}: cut at {}", pieces[0].len());
        }
    }
}

/// The streams' generated text, reasoning and tool calls, counted from `expected.json`.
#[test]
fn text_bytes_are_the_bytes_of_what_was_generated() {
    for &(name, endpoint, bytes) in STREAMS {
        let expected = expected(name);
        let length = |key: &str| expected[key].as_str().map_or(0, str::len) as u64;
        let texts = expected["texts"].as_array();
        let said = length("text")
            + length("thinking")
            + texts.map_or(0, |texts| texts.iter().map(|t| t.as_str().unwrap().len() as u64).sum());
        let report = play(Meter::stream(endpoint, false), &[bytes]).1;
        let calls = expected["tool_calls"].as_array().map_or(0, Vec::len);
        if calls == 0 {
            assert_eq!(report.text_bytes, said, "{name}");
        } else {
            assert!(report.text_bytes > said, "{name}");
        }
    }
    let (_, report) = play(
        Meter::stream(Endpoint::ChatCompletions, false),
        &[br#"data: {"choices":[{"delta":{"content":"\u00e9\ud83d\ude00\n","tool_calls":[{"function":{"arguments":"{}"}}]}}]}

"#],
    );
    assert_eq!(report.text_bytes, 2 + 4 + 1 + 2);
}

#[test]
fn hiding_takes_out_exactly_the_usage_event() {
    for &(name, endpoint, bytes) in STREAMS {
        if endpoint != Endpoint::ChatCompletions {
            continue;
        }
        let text = std::str::from_utf8(bytes).unwrap();
        for ending in ["\n", "\r\n", "\r"] {
            let sent = text.replace('\n', ending);
            let blank = ending.repeat(2);
            let is_usage =
                |event: &&str| event.contains(r#""choices":[],"#) && event.contains(r#""usage":{"#);
            let wanted: String =
                sent.split_inclusive(blank.as_str()).filter(|event| !is_usage(event)).collect();
            let removed = !wanted.is_empty() && wanted.len() < sent.len();
            let has = [
                "openai_chat.stream.sse",
                "openai_chat.stream_n2.sse",
                "azure.stream.sse",
                "openrouter.stream.sse",
                "groq.stream.sse",
            ];
            assert_eq!(removed, has.contains(&name), "{name}");
            let whole = play(Meter::stream(endpoint, false), &[bytes]).1;
            for pieces in cuts(sent.as_bytes()) {
                let (got, report) = play(Meter::stream(endpoint, true), &pieces);
                assert!(
                    got == wanted.as_bytes(),
                    "{name} {ending:?}: cut at {}: {}",
                    pieces[0].len(),
                    String::from_utf8_lossy(&got)
                );
                assert_eq!(report, whole, "{name}");
            }
        }
    }
}

#[test]
fn hiding_copies_nothing_when_events_come_whole() {
    let mut meter = Meter::stream(Endpoint::ChatCompletions, true);
    let chunk =
        Bytes::from_static(b": hi\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n");
    assert_eq!(meter.chunk(chunk.clone()).as_ptr(), chunk.as_ptr());
    let mut both = chunk.to_vec();
    both.extend_from_slice(
        b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\ndata: {\"ch",
    );
    let both = Bytes::from(both);
    let got = meter.chunk(both.clone());
    assert_eq!(got, chunk);
    assert_eq!(got.as_ptr(), both.as_ptr());
    // Held back: the broken event never got to the client, so nothing has to be ended.
    assert_eq!(meter.closing(), b"");
    assert_eq!(meter.end(), Bytes::from_static(b"data: {\"ch"));
    assert_eq!(meter.closing(), b"\n\n");
}

#[test]
fn an_event_that_outgrows_the_hold_goes_through_whole() {
    let filler = "x".repeat(700_000);
    let stream = format!(
        "data: {{\"choices\":[],\"pad\":\"{filler}{filler}\",\"usage\":{{\"prompt_tokens\":3}}}}\n\ndata: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":4}}}}\n\ndata: [DONE]\n\n"
    );
    let mut meter = Meter::stream(Endpoint::ChatCompletions, true);
    let mut got = Vec::new();
    for piece in stream.as_bytes().chunks(65_536) {
        got.extend_from_slice(&meter.chunk(Bytes::copy_from_slice(piece)));
    }
    got.extend_from_slice(&meter.end());
    let wanted = stream.replace("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4}}\n\n", "");
    assert!(got == wanted.as_bytes());
    assert_eq!(meter.report().usage.input, Some(4));
    assert_eq!(meter.report().end, End::Complete);
}

#[test]
fn an_unended_usage_event_is_read_and_not_sent() {
    let stream = "data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":5}}";
    let (got, report) = chat(true, stream);
    assert_eq!(got, b"data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n");
    assert_eq!(report.usage.input, Some(5));
    // Cut short, it is neither: the number might be half of one.
    let (got, report) = chat(true, &stream[..stream.len() - 1]);
    assert_eq!(got, &stream.as_bytes()[..stream.len() - 1]);
    assert_eq!(report.usage, Usage::default());
}

#[test]
fn hiding_leaves_usage_that_is_part_of_something() {
    for kept in [
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}"#,
        r#"{"choices":[],"usage":null}"#,
        r#"{"choices":[],"prompt_filter_results":[]}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":1},"error":{"message":"no"}}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":1}"#,
        "[DONE]",
        "",
    ] {
        let stream = format!("data: {kept}\n\n");
        assert_eq!(chat(true, &stream).0, stream.as_bytes(), "{kept}");
    }
    for gone in [
        r#"{"choices":[],"usage":{"prompt_tokens":1}}"#,
        r#" { "usage" : {} , "choices" : [ ] } "#,
        r#"{"usage":{"prompt_tokens":1}}"#,
        r#"{"us\u0061ge":{"prompt_tokens":1}}"#,
    ] {
        assert_eq!(chat(true, &format!("data: {gone}\n\n")).0, b"", "{gone}");
    }
    // Only where the gateway could have asked for it.
    let stream = b"data: {\"usage\":{}}\n\n";
    assert_eq!(play(Meter::stream(Endpoint::Responses, true), &[stream]).0, stream);
}

#[test]
fn the_first_event_tells_whether_anything_was_generated() {
    for &(name, endpoint, bytes) in STREAMS {
        let report = play(Meter::stream(endpoint, false), &[bytes]).1;
        let first = name == "openrouter.stream_error_empty_choices.sse";
        assert_eq!(report.first_error_only, first, "{name}");
    }
}

#[test]
fn what_cannot_be_parsed_fails_nothing() {
    let (got, report) = chat(
        false,
        "data: {\"choices\":[{\"delta\n\ndata: \u{1}\n\ndata: 7\n\ndata: [\n\ndata:{\"choices\":[{\"delta\":{\"content\":[7]},\"finish_reason\":\"stop\"}]}\n\n",
    );
    assert_eq!(report.end, End::Complete);
    assert_eq!((report.events, report.text_bytes), (5, 0));
    assert!(!got.is_empty());
}

#[test]
fn usage_that_leaves_reasoning_out_of_the_output_is_put_right() {
    let event = r#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":12,"total_tokens":402}}"#;
    let (_, report) = chat(false, &format!("{event}\n\n"));
    assert_eq!(report.usage.output, Some(395));
}

#[test]
fn old_error_shapes_are_failures() {
    for (event, message) in [
        (r#"{"error":"out of memory"}"#, "out of memory"),
        (
            r#"{"object":"error","message":"too long","type":"BadRequestError","code":400}"#,
            "too long",
        ),
        (
            r#"{"choices":[{"delta":{},"finish_reason":"error"}]}"#,
            "the provider stopped with finish_reason error",
        ),
    ] {
        let (_, report) = chat(false, &format!("data: {event}\n\ndata: [DONE]\n\n"));
        match report.end {
            End::Failed { message: said, .. } => assert_eq!(said, message),
            other => panic!("{event}: {other:?}"),
        }
    }
    let flat = b"event: error\ndata: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"oh\",\"param\":null}\n\n";
    let report = play(Meter::stream(Endpoint::Responses, false), &[flat]).1;
    let (message, kind) = ("oh".to_owned(), Some("server_error".to_owned()));
    assert_eq!(report.end, End::Failed { message, kind });
}

#[test]
fn named_streams_of_images_and_audio_end_with_their_own_events() {
    for (endpoint, kind) in [
        (Endpoint::ImageGenerations, "image_generation.completed"),
        (Endpoint::AudioTranscriptions, "transcript.text.done"),
        (Endpoint::AudioSpeech, "speech.audio.done"),
    ] {
        let event = format!(
            "data: {{\"type\":\"{kind}\",\"usage\":{{\"input_tokens\":5,\"input_token_details\":{{\"audio_tokens\":4}},\"output_tokens\":6,\"total_tokens\":11}}}}\n\n"
        );
        let report = play(Meter::stream(endpoint, false), &[event.as_bytes()]).1;
        assert_eq!(report.end, End::Complete);
        assert_eq!(report.usage.input, Some(5));
        assert_eq!(report.usage.audio_input, Some(4));
        assert_eq!(report.usage.output, Some(6));
        let sound = (endpoint == Endpoint::AudioSpeech).then_some(6);
        assert_eq!(report.usage.audio_output, sound, "{kind}");
    }
}

#[test]
fn searches_are_counted_once() {
    let item = r#"{"type":"web_search_call","action":{"type":"search"}},{"type":"web_search_call","action":{"type":"open_page"}}"#;
    let first = item.split_once("},{").unwrap().0;
    let file = r#"{"type":"response.output_item.done","item":{"type":"file_search_call"}}"#;
    let stream = format!(
        "data: {{\"type\":\"response.output_item.done\",\"item\":{first}}}}}\n\ndata: {file}\n\ndata: {file}\n\ndata: {{\"type\":\"response.completed\",\"response\":{{\"output\":[{item}],\"usage\":{{\"input_tokens\":1,\"output_tokens\":1}}}}}}\n\n"
    );
    let report = play(Meter::stream(Endpoint::Responses, false), &[stream.as_bytes()]).1;
    assert_eq!(report.usage.web_searches, Some(1));
    assert_eq!(report.usage.file_searches, Some(2));
    assert_eq!(report.end, End::Complete);
}

/// Base64 has four characters for every three bytes.
#[test]
fn sound_is_counted_for_itself() {
    let data = "A".repeat(400);
    for (endpoint, event, text) in [
        (
            Endpoint::ChatCompletions,
            format!(
                r#"{{"choices":[{{"delta":{{"audio":{{"id":"a","data":"{data}","transcript":"Hello"}}}}}}]}}"#
            ),
            5,
        ),
        (Endpoint::AudioSpeech, format!(r#"{{"type":"speech.audio.delta","audio":"{data}"}}"#), 0),
        (Endpoint::Responses, format!(r#"{{"type":"response.audio.delta","delta":"{data}"}}"#), 0),
        (
            Endpoint::Responses,
            r#"{"type":"response.audio.transcript.delta","delta":"Hi"}"#.into(),
            2,
        ),
    ] {
        let stream = format!("data: {event}\n\n").repeat(2);
        let report = play(Meter::stream(endpoint, false), &[stream.as_bytes()]).1;
        let sound = if event.contains(&data) { 600 } else { 0 };
        assert_eq!((report.sound_bytes, report.text_bytes), (sound, 2 * text), "{endpoint:?}");
    }
}

#[test]
fn a_map_that_was_asked_is_a_search() {
    for (grounding, searches) in [
        (r#""groundingChunks":[{"maps":{"uri":"u"}},{"maps":{"uri":"v"}}]"#, Some(1)),
        (r#""webSearchQueries":["a","b"],"groundingChunks":[{"maps":{}}]"#, Some(2)),
        (r#""groundingChunks":[{"web":{"uri":"u"}}]"#, None),
    ] {
        let answer = format!(r#"{{"candidates":[{{"groundingMetadata":{{{grounding}}}}}]}}"#);
        let event = format!("data: {answer}\n\n");
        let stream = Meter::stream(Endpoint::GeminiStream, false);
        let report = play(stream, &[event.as_bytes()]).1;
        assert_eq!(report.usage.web_searches, searches, "{grounding}");
        let report = play(Meter::json(Endpoint::GeminiGenerate), &[answer.as_bytes()]).1;
        assert_eq!(report.usage.web_searches, searches, "{grounding}");
    }
}
