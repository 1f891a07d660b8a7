use proptest::prelude::*;

use super::fixtures::{EDGE, cuts, expected};
use crate::wire::sse::{MAX_EVENT, SseParser};

type Got = Vec<(String, String)>;

fn parse(pieces: &[&[u8]]) -> (Got, Got) {
    let mut parser = SseParser::new();
    let (mut events, mut tail) = (Vec::new(), Vec::new());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for piece in pieces {
        parser.feed(piece, &mut |e| events.push((text(e.name), text(e.data))));
    }
    parser.finish(&mut |e| tail.push((text(e.name), text(e.data))));
    (events, tail)
}

#[test]
fn the_edge_file_at_every_cut() {
    let expected = expected("edge.sse");
    let wanted: Got = expected["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| {
            let name = event[0].as_str().unwrap();
            let name = if name == "message" { "" } else { name };
            (name.to_owned(), event[1].as_str().unwrap().to_owned())
        })
        .collect();
    for pieces in cuts(EDGE) {
        let (events, tail) = parse(&pieces);
        assert_eq!(events, wanted, "cut at {}", pieces[0].len());
        assert_eq!(tail, [(String::new(), "unterminated".to_owned())]);
    }
}

#[test]
fn ends_of_events_cover_every_byte_once() {
    for pieces in cuts(EDGE) {
        let mut parser = SseParser::new();
        for piece in pieces {
            let mut last = 0;
            parser.frames(piece, &mut |_, end| {
                assert!(end > last && end <= piece.len());
                last = end;
            });
        }
    }
}

#[test]
fn a_whole_event_is_not_copied() {
    let bytes = b"event: a\ndata: {\"x\":1}\n\ndata:y\n\n";
    let range = bytes.as_ptr_range();
    let mut seen = 0;
    SseParser::new().feed(bytes, &mut |event| {
        assert!(range.contains(&event.data.as_ptr()));
        seen += 1;
    });
    assert_eq!(seen, 2);
}

#[test]
fn too_large_an_event_is_dropped_and_the_next_is_read() {
    for field in ["data: ", "xxxx: "] {
        let mut parser = SseParser::new();
        let mut events = Vec::new();
        let mut feed = |parser: &mut SseParser, bytes: &[u8]| {
            parser.feed(bytes, &mut |e| events.push(e.data.to_vec()));
        };
        feed(&mut parser, field.as_bytes());
        let block = vec![b'x'; 1024 * 1024];
        for _ in 0..MAX_EVENT / block.len() + 3 {
            feed(&mut parser, &block);
        }
        assert!(parser.overflowed());
        feed(&mut parser, b"\ndata: more of it\n\ndata: next\n\n");
        assert_eq!(events, [b"next"]);
    }
    let mut parser = SseParser::new();
    let mut count = 0;
    let line = [b"data: ".as_slice(), &vec![b'x'; 1024 * 1024], b"\n"].concat();
    for _ in 0..20 {
        parser.feed(&line, &mut |_| count += 1);
    }
    parser.feed(b"\n", &mut |_| count += 1);
    assert!(parser.overflowed());
    assert_eq!(count, 0);
}

#[test]
fn what_closes_a_broken_stream_leaves_the_added_event_readable() {
    let stream = b"event: a\ndata: {\"one\":1}\n\n: c\nid: 7\ndata: {\"two\":2}\r\n\r\nda: x\n\n";
    for at in 0..=stream.len() {
        let mut parser = SseParser::new();
        parser.feed(&stream[..at], &mut |_| {});
        let closing = parser.closing();
        let sent = [&stream[..at], closing, b"event: error\ndata: {\"error\":1}\n\n"].concat();
        let (events, _) = parse(&[&sent]);
        let last = events.last().unwrap();
        assert_eq!(last.0, "error", "cut at {at}");
        assert_eq!(last.1.trim(), "{\"error\":1}", "cut at {at}");
        assert!(events.iter().all(|(_, data)| !data.is_empty()), "cut at {at}");
    }
}

/// The standard's rules in their plainest form, over whole text.
fn reference(text: &str) -> Vec<(String, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (mut events, mut name, mut data) = (Vec::new(), String::new(), Vec::new());
    let Some((lines, _)) = text.rsplit_once('\n') else {
        return events;
    };
    for line in lines.split('\n') {
        if line.is_empty() {
            if !data.is_empty() {
                events.push((name.clone(), data.join("\n")));
            }
            name.clear();
            data.clear();
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => name = value.to_owned(),
            "data" => data.push(value.to_owned()),
            _ => {}
        }
    }
    events
}

proptest! {
    #![proptest_config(super::fixtures::random(512))]

    #[test]
    fn any_text_reads_as_the_standard_says(
        text in proptest::collection::vec(
            prop_oneof![
                Just("\n"), Just("\r"), Just("\r\n"), Just("data"), Just("data:"), Just("data: "),
                Just("event:"), Just(": "), Just("id: 1"), Just("x"), Just("ü"), Just("\u{feff}"),
            ],
            0..40,
        ),
        size in 1usize..9,
    ) {
        let text = text.concat();
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
        prop_assert_eq!(parse(&pieces).0, reference(&text));
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 1usize..50) {
        let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
        let cut = parse(&pieces);
        prop_assert_eq!(cut, parse(&[&bytes]));
    }
}
