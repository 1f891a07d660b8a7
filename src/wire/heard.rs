//! How long the sound in a file lasts, where the bytes that are decoded say so themselves: what a
//! header claims of the whole could be anything.

/// Bytes of the slowest sound a second, for what is none that is known here.
const SLOWEST: u64 = 500;

/// How long a file's sound lasts, in seconds, rounded up: WAV without compression, and MP3. `None` for
/// anything else.
pub fn seconds(file: &[u8]) -> Option<u64> {
    wav(file).or_else(|| mp3(file))
}

/// RIFF chunks, of which `fmt ` comes before `data` (Microsoft's multimedia programming interface).
fn wav(file: &[u8]) -> Option<u64> {
    if file.get(..4)? != b"RIFF" || file.get(8..12)? != b"WAVE" {
        return None;
    }
    let (mut at, mut rate) = (12, None);
    loop {
        let name = file.get(at..at + 4)?;
        let size = number(file, at + 4, 4)?;
        let from = at + 8;
        match name {
            b"fmt " if rate.is_some() => return None,
            b"fmt " => rate = Some(bytes_per_second(file, from)?),
            // Whoever writes as it is recorded can't know the size: all that is there.
            b"data" => return Some((file.len().checked_sub(from)? as u64).div_ceil(rate?)),
            _ => {}
        }
        at = from.checked_add(usize::try_from(size + size % 2).ok()?)?;
    }
}

/// What is the same in the GUIDs of a WAV's kinds.
const GUID_TAIL: [u8; 14] = [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xAA, 0, 0x38, 0x9B, 0x71];

/// What a `fmt ` chunk comes to, by what a decoder goes by: samples, not their claimed bytes.
fn bytes_per_second(file: &[u8], from: usize) -> Option<u64> {
    let kind = match number(file, from, 2)? {
        // The kind is the first word of a GUID whose rest is that of all kinds.
        0xFFFE => Some(number(file, from + 24, 2)?)
            .filter(|_| file.get(from + 26..from + 40) == Some(&GUID_TAIL))?,
        kind => kind,
    };
    let (channels, samples) = (number(file, from + 2, 2)?, number(file, from + 4, 4)?);
    let bytes = match (kind, number(file, from + 14, 2)?) {
        // PCM and float.
        (1, bits @ (8 | 16 | 24 | 32)) | (3, bits @ (32 | 64)) => bits / 8,
        // A-law and µ-law, whatever is said of their bits.
        (6 | 7, _) => 1,
        _ => return None,
    };
    let rate = channels * samples * bytes;
    (rate > 0).then_some(rate)
}

/// A number of so many bytes, the least significant first.
fn number(file: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let bytes = file.get(at..at.checked_add(bytes)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
}

/// Frame by frame, as each has a rate of its own. What is no frame any more counts as the slowest
/// sound there is.
fn mp3(file: &[u8]) -> Option<u64> {
    let mut rest = behind_tags(file)?;
    let (mut nanos, mut frames) = (0_u64, 0_u64);
    while let Some(frame) = Frame::of(rest) {
        nanos += frame.nanos;
        frames += 1;
        rest = rest.get(frame.bytes..).unwrap_or_default();
    }
    // One may be chance.
    let unknown = (rest.len() as u64).div_ceil(SLOWEST);
    (frames > 1).then_some(nanos.div_ceil(1_000_000_000) + unknown)
}

/// What is behind ID3v2 tags: ten bytes, and as many as those say, seven bits a byte (id3.org).
fn behind_tags(file: &[u8]) -> Option<&[u8]> {
    let mut rest = file;
    while rest.starts_with(b"ID3") {
        // Decoders take it for no tag, and look for frames in it.
        let (version, size) = (rest.get(3..5)?, rest.get(6..10)?);
        if version.contains(&0xFF) || size.iter().any(|byte| byte & 0x80 != 0) {
            return None;
        }
        let size =
            rest.get(6..10)?.iter().fold(0, |size, byte| (size << 7) | usize::from(byte & 0x7F));
        let foot = if rest.get(5)? & 0x10 == 0 { 0 } else { 10 };
        rest = rest.get(10 + size + foot..)?;
    }
    Some(rest)
}

/// A frame of MPEG audio, layer III (ISO 11172-3 and 13818-3).
struct Frame {
    bytes: usize,
    nanos: u64,
}

/// kbit/s by the index in the header, of MPEG 1 and of those after it.
const RATES: [[u64; 14]; 2] = [
    [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
];

impl Frame {
    fn of(file: &[u8]) -> Option<Frame> {
        let [0xFF, kind, rates, _] = *file.first_chunk()? else { return None };
        // Eleven bits of ones, and layer III.
        if kind & 0xE6 != 0xE2 {
            return None;
        }
        let (later, slower) = match (kind >> 3) & 3 {
            3 => (0, 1),
            2 => (1, 2),
            0 => (1, 4),
            _ => return None,
        };
        let kbits = *RATES.get(later)?.get(usize::from(rates >> 4).checked_sub(1)?)?;
        let hertz = *[44_100, 48_000, 32_000].get(usize::from((rates >> 2) & 3))? / slower;
        let samples = if later == 0 { 1_152 } else { 576 };
        let bytes = samples * kbits * 125 / hertz + u64::from((rates >> 1) & 1);
        Some(Frame { bytes: bytes as usize, nanos: samples * 1_000_000_000 / hertz + 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(header: [u8; 4], bytes: usize, count: usize) -> Vec<u8> {
        let mut frame = header.to_vec();
        frame.resize(bytes, 0);
        frame.repeat(count)
    }

    #[test]
    fn an_mp3_is_as_long_as_its_frames() {
        // 128 kbit/s at 44.1 kHz, with and without padding; 8 kbit/s at 8 kHz.
        for (header, bytes, count, wanted) in [
            ([0xFF, 0xFB, 0x90, 0], 417, 1_000, 27),
            ([0xFF, 0xFB, 0x92, 0], 418, 1_000, 27),
            ([0xFF, 0xE3, 0x18, 0], 72, 1_000, 73),
        ] {
            let sound = frames(header, bytes, count);
            assert_eq!(seconds(&sound), Some(wanted), "{header:?}");
            let tag = [b"ID3\x04\0\0\0\0\x01\x00".as_slice(), &[0; 128]].concat();
            assert_eq!(seconds(&[tag, sound.clone()].concat()), Some(wanted));
            // What is behind it may be as long as anything.
            let more = [sound, vec![0; 50_000]].concat();
            assert_eq!(seconds(&more), Some(wanted + 100));
        }
        let both =
            [frames([0xFF, 0xFB, 0x90, 0], 417, 1_000), frames([0xFF, 0xFB, 0x10, 0], 104, 1_000)];
        assert_eq!(seconds(&both.concat()), Some(53), "rates may change");
    }

    #[test]
    fn a_wav_is_as_long_as_its_samples() {
        let wav = |kind: u16, claimed: u32, bits: u16, data: usize| {
            let mut file = b"RIFF\0\0\0\0WAVELIST\x03\0\0\0abc\0fmt \x10\0\0\0".to_vec();
            file.extend(kind.to_le_bytes());
            file.extend(2_u16.to_le_bytes());
            file.extend(16_000_u32.to_le_bytes());
            file.extend(claimed.to_le_bytes());
            file.extend(4_u16.to_le_bytes());
            file.extend(bits.to_le_bytes());
            file.extend(b"data\0\0\0\0");
            file.resize(file.len() + data, 0);
            file
        };
        assert_eq!(seconds(&wav(1, 64_000, 16, 640_001)), Some(11));
        assert_eq!(seconds(&wav(1, u32::MAX, 16, 640_000)), Some(10), "what is claimed is nothing");
        assert_eq!(seconds(&wav(0x31, 64_000, 16, 640_000)), None, "compressed");
        assert_eq!(seconds(&wav(1, 64_000, 0, 640_000)), None);
        assert_eq!(seconds(&wav(1, 64_000, 0xFFF8, 640_000)), None);
        assert_eq!(seconds(&wav(7, 64_000, 0xFFF8, 640_000)), Some(20), "a byte a sample");
        assert_eq!(seconds(&wav(0xFFFE, 64_000, 16, 640_000)), None, "it doesn't say of what kind");
        let extensible = |kind: u8| {
            let mut file = wav(0xFFFE, 64_000, 16, 640_000);
            let more = [&[22, 0, 16, 0, 3, 0, 0, 0, kind, 0], GUID_TAIL.as_slice()].concat();
            let at = file.windows(4).position(|four| four == b"data").unwrap_or_default();
            file.splice(at..at, more);
            let size = file.windows(4).position(|four| four == b"fmt ").unwrap_or_default() + 4;
            if let Some(size) = file.get_mut(size) {
                *size = 40;
            }
            file
        };
        assert_eq!(seconds(&extensible(1)), Some(10));
        assert_eq!(seconds(&extensible(0x55)), None, "MP3 in a WAV");
    }

    #[test]
    fn anything_else_is_unknown() {
        let tag = b"ID3\x04\0\0\x7F\x7F\x7F\x7F";
        let one = frames([0xFF, 0xFB, 0x90, 0], 417, 1);
        // A size whose bytes have an eighth bit is no tag's.
        let many = frames([0xFF, 0xFB, 0x90, 0], 417, 1_000);
        let hides = [b"ID3\x04\0\0\x80\0\x01\0".as_slice(), &many].concat();
        for file in [
            b"".as_slice(),
            b"RIFF",
            b"RIFF\0\0\0\0WAVE",
            tag,
            b"OggS\0",
            &[0xFF; 99],
            &one,
            &hides,
        ] {
            assert_eq!(seconds(file), None);
        }
    }
}
