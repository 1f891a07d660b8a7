//! A compressed answer is metered as the plain one, and goes on as it came.

use super::fixtures::{ANSWERS, Fixture, STREAMS, play};
use crate::wire::meter::{End, Meter};
use crate::wire::packed::Coding;
use bytes::Bytes;
use flate2::Compression;
use std::io::Write;

const CODINGS: [(&str, Coding); 4] = [
    ("gzip", Coding::Gzip),
    ("Deflate", Coding::Deflate),
    ("br", Coding::Brotli),
    (" zstd", Coding::Zstd),
];

/// Packs pieces so that each can be read when it is there.
fn pack(coding: Coding, pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = Vec::new();
    let mut packed = 0;
    macro_rules! all {
        ($writer:expr, $so_far:expr, $finish:expr) => {{
            let mut writer = $writer;
            for piece in pieces {
                writer.write_all(piece).unwrap();
                writer.flush().unwrap();
                let so_far: &Vec<u8> = $so_far(&writer);
                out.push(so_far[packed..].to_vec());
                packed = so_far.len();
            }
            let whole: Vec<u8> = $finish(writer);
            out.push(whole[packed..].to_vec());
        }};
    }
    match coding {
        Coding::Gzip => all!(
            flate2::write::GzEncoder::new(Vec::new(), Compression::default()),
            flate2::write::GzEncoder::get_ref,
            |writer: flate2::write::GzEncoder<_>| writer.finish().unwrap()
        ),
        Coding::Deflate => all!(
            flate2::write::ZlibEncoder::new(Vec::new(), Compression::default()),
            flate2::write::ZlibEncoder::get_ref,
            |writer: flate2::write::ZlibEncoder<_>| writer.finish().unwrap()
        ),
        Coding::Brotli => all!(
            brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22),
            brotli::CompressorWriter::get_ref,
            brotli::CompressorWriter::into_inner
        ),
        Coding::Zstd => all!(
            zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap(),
            zstd::stream::write::Encoder::get_ref,
            |writer: zstd::stream::write::Encoder<'_, _>| writer.finish().unwrap()
        ),
    }
    out
}

fn meter(&(name, endpoint, _): &Fixture) -> Meter {
    match name.ends_with(".sse") {
        true => Meter::stream(endpoint, false),
        false => Meter::json(endpoint),
    }
}

#[test]
fn every_answer_in_every_coding_is_metered_as_the_plain_one() {
    for (name, coding) in CODINGS {
        assert_eq!(Coding::named(name), Some(coding));
        for fixture in STREAMS.iter().chain(ANSWERS) {
            let plain = play(meter(fixture), &[fixture.2]).1;
            let events: Vec<&[u8]> = fixture.2.split_inclusive(|byte| *byte == b'\n').collect();
            let packed = pack(coding, &events).concat();
            for size in [1, 7, 64, packed.len()] {
                let pieces: Vec<&[u8]> = packed.chunks(size).collect();
                let (got, report) = play(meter(fixture).packed(coding), &pieces);
                assert!(got == packed, "{}: changed", fixture.0);
                assert_eq!(report, plain, "{}, {coding:?} in pieces of {size}", fixture.0);
            }
        }
    }
}

/// Of what is packed in one block nothing can be read before it is whole: it is no less for that.
#[test]
fn a_block_that_is_cut_counts() {
    let text = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"lorem ipsum\"}}]}\n\n";
    let endpoint = crate::wire::route::Endpoint::ChatCompletions;
    let body: String = (0..2_000).map(|n| text.replace("ipsum", &format!("{}", n * n))).collect();
    let whole = pack(Coding::Zstd, &[body.as_bytes()]).concat();
    let mut meter = Meter::stream(endpoint, false).packed(Coding::Zstd);
    assert!(!meter.has_begun());
    let part = whole.len() * 9 / 10;
    meter.chunk(Bytes::copy_from_slice(&whole[..part]));
    assert!(meter.has_begun(), "there is something, if only nobody knows what");
    assert!(meter.report().text_bytes >= 4 * part as u64);
}

/// Many servers send the bare thing under that name.
#[test]
fn deflate_without_its_frame_is_read() {
    let fixture = &STREAMS[0];
    let mut writer = flate2::write::DeflateEncoder::new(Vec::new(), Compression::default());
    writer.write_all(fixture.2).unwrap();
    let packed = writer.finish().unwrap();
    for size in [1, 5, packed.len()] {
        let pieces: Vec<&[u8]> = packed.chunks(size).collect();
        let (got, report) = play(meter(fixture).packed(Coding::Deflate), &pieces);
        assert!(got == packed);
        assert_eq!(report, play(meter(fixture), &[fixture.2]).1, "in pieces of {size}");
    }
}

/// What has arrived is known at once: its client may leave next.
#[test]
fn an_event_is_read_when_it_is_there() {
    let fixture = &STREAMS[0];
    let events: Vec<&[u8]> = fixture.2.split_inclusive(|byte| *byte == b'\n').collect();
    for (_, coding) in CODINGS {
        let (mut plain, mut meter) = (meter(fixture), meter(fixture).packed(coding));
        for (event, packed) in events.iter().zip(pack(coding, &events)) {
            plain.chunk(Bytes::copy_from_slice(event));
            let len = packed.len();
            meter.chunk(packed.into());
            let (got, expected) = (meter.report(), plain.report());
            assert_eq!(got.usage, expected.usage, "{coding:?}");
            // What may not have come out is at most this piece.
            let more = got.text_bytes.checked_sub(expected.text_bytes).unwrap();
            let most = if matches!(coding, Coding::Gzip | Coding::Deflate) { 0 } else { len };
            assert!(more <= 4 * most as u64, "{coding:?}: {more} of {most}");
        }
    }
}

#[test]
fn gzip_may_have_several_members() {
    let fixture = &ANSWERS[0];
    let (a, b) = fixture.2.split_at(100);
    let packed = [pack(Coding::Gzip, &[a]).concat(), pack(Coding::Gzip, &[b]).concat()].concat();
    let report = play(meter(fixture).packed(Coding::Gzip), &[&packed]).1;
    assert_eq!(report, play(meter(fixture), &[fixture.2]).1);
}

#[test]
fn what_is_no_such_coding_goes_past_and_says_so() {
    let fixture = &STREAMS[0];
    for (pieces, (_, coding)) in [1, 2].into_iter().flat_map(|n| CODINGS.map(|coding| (n, coding)))
    {
        let mut meter = meter(fixture).packed(coding);
        let sent = Bytes::from_static(b"data: this is not compressed at all, not in any way\n\n");
        for _ in 0..pieces {
            assert_eq!(meter.chunk(sent.clone()), sent);
        }
        meter.end();
        assert!(meter.unreadable().is_some(), "{coding:?}");
        assert_eq!(meter.report().usage.output, None);
        assert_eq!(meter.report().end, End::Complete, "all of it has come");
        // As many bytes as went past, since nothing else says how much there was.
        assert!(meter.report().text_bytes >= pieces * sent.len() as u64, "{coding:?}");
    }
    assert_eq!(Coding::named("gzip, br"), None);
}

/// A hundred megabytes in a few kilobytes keep nobody busy for long.
#[test]
fn a_bomb_is_not_read_to_its_end() {
    let fixture = &STREAMS[0];
    let zeros = vec![b' '; 100 << 20];
    for coding in [Coding::Gzip, Coding::Zstd] {
        let mut meter = meter(fixture).packed(coding);
        for piece in pack(coding, &[&zeros]) {
            meter.chunk(piece.into());
        }
        meter.end();
        assert!(meter.unreadable().is_some(), "{coding:?}");
    }
}
