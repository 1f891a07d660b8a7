//! What reads answers comes to what the plain readers of `reference` come to: on the recorded
//! answers, on broken ones, and on usage that no server should write.

use bytes::Bytes;
use proptest::prelude::*;

use super::fixtures::{ANSWERS, Fixture, STREAMS, play};
use super::reference;
use crate::wire::meter::{Meter, Report};
use crate::wire::route::Endpoint;
use crate::wire::sift::Sifter;

/// Every dialect, and what OpenAI's different endpoints are read by.
const ENDPOINTS: [Endpoint; 6] = [
    Endpoint::ChatCompletions,
    Endpoint::Responses,
    Endpoint::AudioTranscriptions,
    Endpoint::Messages,
    Endpoint::GeminiStream,
    Endpoint::GeminiGenerate,
];

/// Pieces that matter to a reader, right or wrong.
const SNIPPETS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ",",
    ":",
    " ",
    "\n",
    "null",
    "true",
    "0",
    "-",
    "-0",
    "7",
    "7.0",
    "7.9",
    "-3",
    "1e3",
    "1e999",
    "1e15",
    "18446744073709551615",
    "18446744073709551616",
    "007",
    "\"7\"",
    "\"+7\"",
    "\"x\"",
    "\"\"",
    "{}",
    "[]",
    "\\u0061",
    "\\ud800",
    "\\ud83d\\ude00",
    "\u{c}",
    "\"us\\u0061ge\":{\"prompt_tokens\":3,\"output_tokens\":4,\"completion_tokens\":5},",
    "\"usage\":{\"input_tokens\":31,\"output_tokens\":41,\"total_tokens\":99},",
    "\"usage\":null,",
    "\"usage\":7,",
    "\"usage\":{\"prompt_tokens\":1,}",
    "\"prompt_tokens\":9,",
    "\"input_tokens\":\"12\",",
    "\"cached_tokens\":null,",
    "\"prompt_tokens_details\":{\"cached_tokens\":5,\"audio_tokens\":2},",
    "\"input_tokens_details\":{\"cached_tokens\":6},",
    "\"prompt_cache_hit_tokens\":8,",
    "\"output_tokens_details\":{\"reasoning_tokens\":2,\"thinking_tokens\":3},",
    "\"cost\":0.25,",
    "\"cost\":-1e-9,",
    "\"cost\":1e6,",
    "\"cost\":{\"total_cost\":\"1\",\"total_cost\":0.5},",
    "\"cost_in_usd_ticks\":12345,",
    "\"iterations\":[{\"input_tokens\":100,\"output_tokens\":20},7,{\"output_tokens\":1}],",
    "\"cache_creation\":{\"ephemeral_1h_input_tokens\":4},",
    "\"seconds\":1.5,",
    "\"duration\":\"2\",",
    "\"server_tool_use\":{\"web_search_requests\":2},",
    "\"service_tier\":\"flex\",",
    "\"service_tier\":\"fl\\u0065x\",",
    "\"service_tier\":null,",
    "\"serviceTier\":\"flex\",",
    "\"promptTokenCount\":4,",
    "\"candidatesTokenCount\":5,",
    "\"totalTokenCount\":9,",
    "\"thoughtsTokenCount\":2,",
    "\"responseTokenCount\":5,",
    "\"toolUsePromptTokenCount\":1,",
    "\"promptTokensDetails\":[{\"modality\":\"AUDIO\",\"tokenCount\":3}],",
    "\"candidatesTokensDetails\":[{\"modality\":\"TEXT\"},{\"modality\":\"AUDIO\"}],",
    "\"choices\":[{\"delta\":{\"content\":\"a\\u00e9\"},\"finish_reason\":\"stop\"}],",
    "\"delta\":{\"content\":[{\"type\":\"text\",\"text\":\"abc\"}]},",
    "\"delta\":\"abc\",",
    "\"delta\":{\"text\":\"ab\",\"text\":\"abc\",\"partial_json\":\"{\"},",
    "\"audio\":{\"transcript\":\"x\"},",
    "\"audio\":{\"data\":\"QUJD\",\"transcript\":\"abc\"},",
    "\"audio\":\"QUJDRA==\",",
    "\"type\":\"speech.audio.delta\",",
    "\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}],",
    "\"text\":\"abc\",",
    "\"thinking\":[{\"text\":\"a\"},{\"text\":5}],",
    "\"function_call\":{\"a\":\"b\",\"c\":1},",
    "\"finish_reason\":\"error\",",
    "\"finish_reason\":\"\",",
    "\"finish_reason\":\"\\u0065rror\",",
    "\"object\":\"error\",",
    "\"error\":{\"message\":\"no\",\"type\":\"t\"},",
    "\"error\":\"\",",
    "\"error\":null,",
    "\"status\":\"failed\",",
    "\"status\":\"f\\u0061iled\",",
    "\"type\":\"error\",",
    "\"type\":\"message_delta\",",
    "\"type\":\"response.completed\",",
    "\"type\":7,",
    "\"type\":\"response.output_item.done\",\"item\":{\"type\":\"web_search_call\"},",
    "\"response\":{\"usage\":{\"input_tokens\":2},\"error\":null},",
    "\"x_groq\":{\"usage\":{\"prompt_tokens\":2}},",
    "\"finishReason\":\"STOP\",",
    "\"finishReason\":\"FINISH_REASON_UNSPECIFIED\",",
    "\"groundingMetadata\":{\"webSearchQueries\":[\"a\",\"b\"]},",
    "\"groundingMetadata\":{\"groundingChunks\":[{\"web\":{}},{\"maps\":{\"uri\":\"u\"}}]},",
    "\"promptFeedback\":{\"blockReason\":\"X\"},",
    "\"content\":{\"parts\":[{\"text\":\"x\",\"functionCall\":{\"a\": 1}}],\"parts\":[{\"text\":\"yz\"}]},",
    "\"output\":[{\"type\":\"web_search_call\"}],",
    "data: ",
    "data: [DONE]\n\n",
    "event: error\n",
    "\n\n",
];

fn reference(mut meter: reference::Meter, pieces: &[&[u8]]) -> (Vec<u8>, Report) {
    let mut got = Vec::new();
    for piece in pieces {
        got.extend_from_slice(&meter.chunk(Bytes::copy_from_slice(piece)));
    }
    got.extend_from_slice(&meter.end());
    (got, meter.report())
}

/// Both readers on one stream, whole and in pieces.
fn same_stream(endpoint: Endpoint, bytes: &[u8], size: usize) {
    let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
    for hide in [false, true] {
        let wanted = reference(reference::Meter::stream(endpoint, hide), &[bytes]);
        for pieces in [&[bytes], pieces.as_slice()] {
            let got = play(Meter::stream(endpoint, hide), pieces);
            assert_eq!(got, wanted, "{endpoint:?}: {}", String::from_utf8_lossy(bytes));
        }
    }
}

/// Both readers on one answer, whole and in pieces.
fn same_answer(endpoint: Endpoint, bytes: &[u8], size: usize) {
    let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
    let wanted = reference(reference::Meter::json(endpoint), &[bytes]);
    for pieces in [&[bytes], pieces.as_slice()] {
        let got = play(Meter::json(endpoint), pieces);
        assert_eq!(got, wanted, "{endpoint:?}: {}", String::from_utf8_lossy(bytes));
    }
    same_members(&[bytes]);
    same_members(&pieces);
}

/// What is sifted out of a long answer, where a short one is walked.
fn same_members(pieces: &[&[u8]]) {
    const WANTED: &[&str] = &["usage", "error", "usageMetadata", "candidates", "type", "output"];
    let (mut sifter, mut tap) = (Sifter::new(WANTED), reference::tap::Tap::new(WANTED));
    for piece in pieces {
        sifter.feed(piece);
        tap.feed(piece);
    }
    assert_eq!(sifter.complete(), tap.complete());
    for (name, value) in WANTED.iter().zip(sifter.values()) {
        assert_eq!(value, tap.value(name), "{}", String::from_utf8_lossy(&pieces.concat()));
    }
}

/// As an answer, and as an event, of every dialect.
fn same_everywhere(json: &[u8], size: usize) {
    let line: Vec<u8> = json.iter().copied().filter(|byte| *byte != b'\n').collect();
    for endpoint in ENDPOINTS {
        same_answer(endpoint, json, size);
        for name in ["", "event: message_delta\n", "event: response.completed\n"] {
            let event = [name.as_bytes(), b"data: ", &line, b"\n\n"].concat();
            same_stream(endpoint, &event, size);
        }
    }
}

#[test]
fn every_recorded_answer_is_read_the_same_at_every_end() {
    for &(_, endpoint, bytes) in ANSWERS {
        (0..=bytes.len()).for_each(|at| same_answer(endpoint, &bytes[..at], 7));
    }
    for &(_, endpoint, bytes) in STREAMS {
        (0..=bytes.len()).step_by(3).for_each(|at| same_stream(endpoint, &bytes[..at], 29));
    }
}

#[test]
fn every_recorded_answer_is_read_the_same_without_any_one_byte() {
    for &(_, endpoint, bytes) in ANSWERS {
        for at in 0..bytes.len() {
            same_answer(endpoint, &[&bytes[..at], &bytes[at + 1..]].concat(), 5);
        }
    }
    for &(_, endpoint, bytes) in STREAMS {
        for at in (0..bytes.len()).step_by(2) {
            same_stream(endpoint, &[&bytes[..at], &bytes[at + 1..]].concat(), 31);
        }
    }
}

/// A broken member takes nothing back of what was read before it.
#[test]
fn what_comes_before_a_broken_member_is_read_the_same() {
    let usage = r#""usage":{"prompt_tokens":3,"input_tokens":3,"completion_tokens":5}"#;
    for broken in ["n", "{", "[1", "\"", "{\"prompt_tokens\":}", "nul,", "-"] {
        for name in ["usage", "x_groq", "choices", "error", "service_tier", "response", "type"] {
            let json = format!(r#"{{{usage},"{name}":{broken}thinking":9}}"#);
            same_everywhere(json.as_bytes(), 9);
        }
    }
}

/// Nested so deep that one reader or the other could give up.
#[test]
fn deep_nesting_is_read_the_same() {
    for depth in (120..132).chain(250..260) {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        let deep = format!("{open}{close}");
        for json in [
            format!(r#"{{"usage":{{"prompt_tokens":1,"x":{deep}}},"type":"message_delta"}}"#),
            format!(r#"{{"usageMetadata":{{"x":{deep},"promptTokenCount":1,"serviceTier":"a"}}}}"#),
            format!(r#"{{"usageMetadata":{{"promptTokensDetails":[{{"tokenCount":{deep}}}]}}}}"#),
            format!(r#"{{"choices":[{{"delta":{{"content":"abc","x":{deep}}}}}]}}"#),
            format!(
                r#"{{"choices":[{{"delta":{{"content":[{{"text":"a","thinking":{deep}}}]}}}}]}}"#
            ),
            format!(r#"{{"candidates":[{{"content":{{"parts":[{{"text":"a","x":{deep}}}]}}}}]}}"#),
            format!(r#"{{"type":"content_block_delta","delta":{{"text":"a","x":{deep}}}}}"#),
            format!(r#"[{{"candidates":[{{"finishReason":"STOP","x":{deep}}}]}}]"#),
            format!(
                r#"{{"usage":{{"iterations":{deep},"input_tokens":1}},"type":"message_delta"}}"#
            ),
        ] {
            same_everywhere(json.as_bytes(), 100);
        }
    }
}

#[test]
fn bytes_that_are_no_text_are_read_the_same() {
    for member in [
        b"\"x\":\"\xff\"".as_slice(),
        b"\"\xc3\":1",
        b"\"service_tier\":\"\xff\"",
        b"\"serviceTier\":\"\xff\"",
        b"\"prompt_tokens\xff\":1",
        b"\"prompt_tokens\":\"\xff\"",
        b"\"content\":\"\xff\"",
    ] {
        for (before, after) in [
            (r#"{"type":"message_delta","usage":{"prompt_tokens":1,"input_tokens":2,"#, "}}"),
            (r#"{"usageMetadata":{"promptTokenCount":1,"#, "}}"),
            (r#"{"choices":[{"delta":{"content":"x","#, "}}]}"),
            ("{", r#","usage":{"prompt_tokens":1,"input_tokens":2}}"#),
        ] {
            same_everywhere(&[before.as_bytes(), member, after.as_bytes()].concat(), 9);
        }
    }
}

/// One change of a text.
#[derive(Debug, Clone)]
enum Change {
    Insert(prop::sample::Index, &'static str),
    Delete(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    Byte(prop::sample::Index, u8),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    let snippet = || prop::sample::select(SNIPPETS);
    prop_oneof![
        3 => (at(), snippet()).prop_map(|(at, text)| Change::Insert(at, text)),
        1 => (at(), 1usize..30).prop_map(|(at, most)| Change::Delete(at, most)),
        1 => (at(), 1usize..60).prop_map(|(at, most)| Change::Repeat(at, most)),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
    ]
}

fn changed(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes {
        let index = |at: &prop::sample::Index| at.index(bytes.len() + 1);
        match change {
            Change::Insert(at, text) => {
                // Most of them where a member can begin.
                let at = index(at);
                let member = bytes.iter().skip(at).position(|byte| *byte == b'{' || *byte == b',');
                let at = match member {
                    Some(offset) if text.ends_with(',') => at + offset + 1,
                    _ => at,
                };
                bytes.splice(at..at, text.bytes());
            }
            Change::Delete(at, most) => {
                let at = index(at);
                let end = bytes.len().min(at + most);
                bytes.drain(at..end);
            }
            Change::Repeat(at, most) => {
                let at = index(at);
                let end = bytes.len().min(at + most);
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            Change::Byte(at, byte) => {
                let at = index(at);
                if let Some(old) = bytes.get_mut(at) {
                    *old = *byte;
                }
            }
        }
    }
    bytes
}

/// An object of known names with known values, in any order and number.
fn object(snippets: Vec<&'static str>) -> String {
    let members: Vec<&str> = snippets
        .iter()
        .map(|text| text.trim_end_matches(','))
        .filter(|text| text.contains(':'))
        .collect();
    format!("{{{}}}", members.join(","))
}

fn objects() -> impl Strategy<Value = String> {
    let snippets = || proptest::collection::vec(prop::sample::select(SNIPPETS), 0..9);
    let outer = prop::sample::select(
        &[
            "usage",
            "usageMetadata",
            "response",
            "delta",
            "choices",
            "candidates",
            "message",
            "content_block",
            "item",
            "us\\u0061ge",
            "error",
            "output",
            "x_groq",
            "content",
        ][..],
    );
    (snippets(), snippets(), outer, any::<bool>()).prop_map(|(inner, around, outer, list)| {
        let inner = object(inner);
        let inner = if list { format!("[{inner},{inner}]") } else { inner };
        let around = object(around);
        let comma = if around == "{}" { "" } else { "," };
        around.replacen('{', &format!("{{\"{outer}\":{inner}{comma}"), 1)
    })
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    proptest::collection::vec(change(), 1..4)
}

fn one_of(fixtures: &'static [Fixture]) -> impl Strategy<Value = Fixture> {
    prop::sample::select(fixtures)
}

proptest! {
    #![proptest_config(super::fixtures::random(512))]

    #[test]
    fn changed_answers_are_read_the_same(it in one_of(ANSWERS), how in changes(), size in 1usize..80) {
        same_answer(it.1, &changed(it.2, &how), size);
    }

    #[test]
    fn changed_streams_are_read_the_same(it in one_of(STREAMS), how in changes(), size in 1usize..80) {
        same_stream(it.1, &changed(it.2, &how), size);
    }

    #[test]
    fn objects_of_known_members_are_read_the_same(json in objects(), size in 1usize..80) {
        same_everywhere(json.as_bytes(), size);
    }

    #[test]
    fn changed_objects_are_read_the_same(json in objects(), how in changes(), size in 1usize..80) {
        same_everywhere(&changed(json.as_bytes(), &how), size);
    }

    #[test]
    fn known_pieces_in_any_order_are_read_the_same(
        pieces in proptest::collection::vec(prop::sample::select(SNIPPETS), 0..20), size in 1usize..20,
    ) {
        same_everywhere(pieces.concat().as_bytes(), size);
    }
}
