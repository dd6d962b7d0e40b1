//! Decodes bodies for display, within a budget. A body that cannot be decoded is shown unchanged.

use std::{
    borrow::Cow,
    io::{Cursor, Read},
};

/// Maximum bytes of a decoded body. A small body may expand to gigabytes of zeros.
const MAX_DECODED: usize = 2 * 1024 * 1024;
/// Maximum number of codings that are removed from a body. More than one is rare.
const MAX_CODINGS: usize = 3;
/// Maximum window of `zstd`, which its decoder keeps in memory (RFC 9659 allows no more on the web).
const MAX_ZSTD_WINDOW: u64 = 8 * 1024 * 1024;
/// Bytes of bodies in one answer of the API. It is twice what the inspector captures, so that a usual mixture of
/// compressed and other bodies fits.
pub(crate) const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// How many bytes of bodies one answer of the API may still produce.
#[derive(Debug)]
pub(crate) struct Budget(usize);

impl Budget {
    /// The budget of one answer.
    pub(crate) const fn of_answer() -> Self {
        Self(MAX_ANSWER)
    }

    const fn spend(&mut self, bytes: usize) {
        self.0 = self.0.saturating_sub(bytes);
    }
}

/// How much of a body is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Whole,
    /// The beginning.
    Cut,
    /// Nothing: the budget is spent.
    LeftOut,
}

/// A decoded body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded<'a> {
    pub(crate) bytes: Cow<'a, [u8]>,
    pub(crate) extent: Extent,
    /// The codings that were removed.
    pub(crate) codings: Vec<String>,
    /// Some codings could not be removed.
    pub(crate) is_coded: bool,
}

/// Removes the codings of a `Content-Encoding`. A partly captured body yields its beginning.
pub(crate) fn decode<'a>(body: &'a [u8], codings: Option<&str>, budget: &mut Budget) -> Decoded<'a> {
    let codings = codings.unwrap_or_default().split(',').map(|coding| coding.trim().to_ascii_lowercase());
    let codings: Vec<String> = codings.filter(|coding| !coding.is_empty() && coding != "identity").collect();
    let is_coded = !codings.is_empty();
    let mut decoded = Decoded { bytes: Cow::Borrowed(body), extent: Extent::Whole, codings: Vec::new(), is_coded };
    if body.len() > budget.0 {
        return Decoded { bytes: Cow::default(), extent: Extent::LeftOut, ..decoded };
    }
    let mut left = codings.len();
    if left <= MAX_CODINGS {
        for coding in codings.iter().rev() {
            let Some((bytes, is_cut)) = without(coding, &decoded.bytes, budget.0.min(MAX_DECODED)) else { break };
            budget.spend(bytes.len());
            left -= 1;
            decoded.bytes = Cow::Owned(bytes);
            decoded.codings.push(coding.clone());
            if is_cut {
                decoded.extent = Extent::Cut;
            }
        }
    }
    decoded.is_coded = left > 0;
    if decoded.codings.is_empty() {
        budget.spend(body.len());
    }
    decoded
}

/// Removes one coding. Returns up to `limit` bytes and whether something is missing; `None` if nothing can be decoded.
fn without(coding: &str, bytes: &[u8], limit: usize) -> Option<(Vec<u8>, bool)> {
    /// The first byte of a brotli body with a window of up to 1 GiB, which is no coding of the web.
    const LARGE_BROTLI: u8 = 0x11;
    let (decoded, is_cut) = match coding {
        "gzip" | "x-gzip" => read(flate2::read::MultiGzDecoder::new(bytes), limit),
        // Some senders omit the zlib header.
        "deflate" if bytes.first().is_some_and(|byte| byte & 0x0f == 8) => {
            read(flate2::read::ZlibDecoder::new(bytes), limit)
        }
        "deflate" => read(flate2::read::DeflateDecoder::new(bytes), limit),
        "br" if bytes.first().is_some_and(|byte| byte & 0x7f == LARGE_BROTLI) => return None,
        "br" => read(brotli_decompressor::Decompressor::new(bytes, 4096), limit),
        "zstd" => {
            let source = Cursor::new(bytes);
            read(ruzstd::decoding::StreamingDecoder::new_with_max_window_size(source, MAX_ZSTD_WINDOW).ok()?, limit)
        }
        _ => return None,
    };
    (!decoded.is_empty() || bytes.is_empty() || !is_cut).then_some((decoded, is_cut))
}

/// Reads as much as possible. Returns whether something is missing.
fn read(mut reader: impl Read, limit: usize) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return (bytes, false),
            Ok(len) => bytes.extend_from_slice(&piece[..len]),
            Err(_) => return (bytes, true),
        }
        if bytes.len() > limit {
            bytes.truncate(limit);
            return (bytes, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn whole<'a>(bytes: &'a [u8], coding: &str) -> Decoded<'a> {
        decode(bytes, Some(coding), &mut Budget::of_answer())
    }

    #[test]
    fn every_coding_is_decoded() {
        let base64 = |text: &str| data_encoding::BASE64.decode(text.as_bytes()).expect("base64");
        // Made with the `brotli` and `zstd` programs and Python's zlib.
        for (coding, bytes) in [
            ("gzip", gzip(b"hello hello")),
            ("deflate", base64("eJzLSM3JyVfIAJEAGZEESQ==")),
            ("deflate", base64("y0jNyclXyACRAA==")),
            ("br", base64("CwWAaGVsbG8gaGVsbG8D")),
            ("zstd", base64("KLUv/QRYWQAAaGVsbG8gaGVsbG/Fvfth")),
            ("gzip, identity, gzip", gzip(&gzip(b"hello hello"))),
        ] {
            let decoded = whole(&bytes, coding);
            assert_eq!(
                (String::from_utf8_lossy(&decoded.bytes).as_ref(), decoded.extent, decoded.is_coded),
                ("hello hello", Extent::Whole, false),
                "{coding}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_left_unchanged(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for coding in ["gzip", "deflate", "br", "zstd", "gzip, br"] {
                prop_assert!(whole(&bytes, coding).bytes.len() <= MAX_DECODED);
            }
        }
    }

    #[test]
    fn partial_bodies_and_bombs_yield_a_bounded_beginning() {
        let bomb = gzip(&vec![0; 50 << 20]);
        let decoded = whole(&bomb, "gzip");
        assert_eq!((decoded.bytes.len(), decoded.extent), (MAX_DECODED, Extent::Cut));
        let text: Vec<u8> = (0..50_000_u32).flat_map(|n| n.to_string().into_bytes()).collect();
        let zipped = gzip(&text);
        let decoded = whole(&zipped[..zipped.len() / 2], "gzip");
        assert!(decoded.extent == Extent::Cut && !decoded.bytes.is_empty() && text.starts_with(&decoded.bytes));
    }

    #[test]
    fn an_answer_has_one_budget_for_all_its_bodies() {
        let bomb = gzip(&vec![0; 4 << 20]);
        let mut budget = Budget::of_answer();
        let decoded: Vec<_> = (0..40).map(|_| decode(&bomb, Some("gzip"), &mut budget)).collect();
        assert_eq!(decoded.iter().map(|decoded| decoded.bytes.len()).sum::<usize>(), MAX_ANSWER);
        assert_eq!(decoded.iter().filter(|decoded| decoded.extent == Extent::LeftOut).count(), 40 - 32);
        // Bodies without a coding count as well, and those of the next answer are there again.
        assert_eq!(decode(b"x", None, &mut budget).extent, Extent::LeftOut);
        assert_eq!(decode(b"x", None, &mut Budget::of_answer()).extent, Extent::Whole);
    }

    #[test]
    fn at_most_three_codings_are_removed() {
        let times = |count: usize| (0..count).fold(b"hello".to_vec(), |bytes, _| gzip(&bytes));
        let body = times(3);
        assert_eq!(whole(&body, "gzip, gzip, gzip").bytes.as_ref(), b"hello");
        let body = times(4);
        let decoded = whole(&body, "gzip, gzip, gzip, gzip");
        assert_eq!((decoded.bytes.as_ref(), decoded.is_coded), (body.as_slice(), true));
    }

    /// A zstd frame that repeats a byte in blocks of 128 KiB, with this exponent of its window.
    fn zstd(window: u8, blocks: u32) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window - 10) << 3];
        for block in 1..=blocks {
            // A block's header: whether it is the last, its kind (a repeated byte), its length.
            let header = u32::from(block == blocks) | 1 << 1 | (128 * 1024) << 3;
            frame.extend_from_slice(&header.to_le_bytes()[..3]);
            frame.push(b'x');
        }
        frame
    }

    #[test]
    fn windows_that_take_much_memory_are_refused() {
        let allowed = zstd(23, 20);
        let decoded = whole(&allowed, "zstd");
        assert_eq!((decoded.bytes.len(), decoded.is_coded), (MAX_DECODED, false));
        // 8 KB whose decoder would keep 100 MB.
        let large = zstd(26, 2000);
        assert!(whole(&large, "zstd").is_coded);
        // A brotli stream with a window of 1 GiB: the mark, then the exponent 30.
        let large = [0x11, 30, 0, 0, 0, 0];
        assert!(whole(&large, "br").is_coded);
    }

    #[test]
    fn a_body_with_a_wrong_coding_is_left_unchanged() {
        for coding in ["gzip", "deflate", "br", "zstd", "magic"] {
            let decoded = whole(b"\x01plain", coding);
            assert_eq!((decoded.bytes.as_ref(), decoded.codings.len()), (b"\x01plain".as_slice(), 0), "{coding}");
        }
    }
}
