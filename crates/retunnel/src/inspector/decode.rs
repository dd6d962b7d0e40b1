//! Decodes bodies for display. A body that cannot be decoded is shown unchanged.

use std::io::{Cursor, Read};

/// Maximum bytes of a decoded body. A small body may expand to gigabytes of zeros.
const MAX_DECODED: usize = 2 * 1024 * 1024;

/// A decoded body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) bytes: Vec<u8>,
    /// `bytes` is incomplete.
    pub(crate) cut: bool,
    /// The codings that were removed.
    pub(crate) codings: Vec<String>,
}

/// Removes the codings of a `Content-Encoding`. A partly captured body yields its beginning.
pub(crate) fn decode(body: &[u8], codings: Option<&str>) -> Decoded {
    let mut decoded = Decoded { bytes: body.to_vec(), cut: false, codings: Vec::new() };
    let codings = codings.unwrap_or_default().split(',').map(|coding| coding.trim().to_ascii_lowercase());
    for coding in codings.filter(|coding| !coding.is_empty() && coding != "identity").collect::<Vec<_>>().iter().rev() {
        let bytes = decoded.bytes.as_slice();
        let decoding = match coding.as_str() {
            "gzip" | "x-gzip" => read(flate2::read::MultiGzDecoder::new(bytes)),
            // Some senders omit the zlib header.
            "deflate" if bytes.first().is_some_and(|byte| byte & 0x0f == 8) => {
                read(flate2::read::ZlibDecoder::new(bytes))
            }
            "deflate" => read(flate2::read::DeflateDecoder::new(bytes)),
            "br" => read(brotli_decompressor::Decompressor::new(bytes, 4096)),
            "zstd" => {
                ruzstd::decoding::StreamingDecoder::new(Cursor::new(bytes)).map_or_else(|_| (Vec::new(), true), read)
            }
            _ => return decoded,
        };
        let (bytes, cut) = decoding;
        if bytes.is_empty() && !decoded.bytes.is_empty() && cut {
            return decoded;
        }
        decoded = Decoded { bytes, cut: cut || decoded.cut, codings: [decoded.codings, vec![coding.clone()]].concat() };
    }
    decoded
}

/// Reads as much as possible. Returns whether something is missing.
fn read(mut reader: impl Read) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return (bytes, false),
            Ok(len) => bytes.extend_from_slice(&piece[..len]),
            Err(_) => return (bytes, true),
        }
        if bytes.len() > MAX_DECODED {
            bytes.truncate(MAX_DECODED);
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
            let decoded = decode(&bytes, Some(coding));
            assert_eq!(
                (String::from_utf8_lossy(&decoded.bytes).as_ref(), decoded.cut),
                ("hello hello", false),
                "{coding}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_left_unchanged(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for coding in ["gzip", "deflate", "br", "zstd", "gzip, br"] {
                prop_assert!(decode(&bytes, Some(coding)).bytes.len() <= MAX_DECODED);
            }
        }
    }

    #[test]
    fn partial_bodies_and_bombs_yield_a_bounded_beginning() {
        let bomb = gzip(&vec![0; 50 << 20]);
        let decoded = decode(&bomb, Some("gzip"));
        assert_eq!((decoded.bytes.len(), decoded.cut), (MAX_DECODED, true));
        let text: Vec<u8> = (0..50_000_u32).flat_map(|n| n.to_string().into_bytes()).collect();
        let whole = gzip(&text);
        let decoded = decode(&whole[..whole.len() / 2], Some("gzip"));
        assert!(decoded.cut && !decoded.bytes.is_empty() && text.starts_with(&decoded.bytes));
    }

    #[test]
    fn a_body_with_a_wrong_coding_is_left_unchanged() {
        for coding in ["gzip", "deflate", "br", "zstd", "magic"] {
            let decoded = decode(b"\x01plain", Some(coding));
            assert_eq!((decoded.bytes.as_slice(), decoded.codings.len()), (b"\x01plain".as_slice(), 0), "{coding}");
        }
    }
}
