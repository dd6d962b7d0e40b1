//! Text files as people save them: UTF-8 with or without a byte order mark, and UTF-16 as Windows PowerShell writes it.
//! Line ends of Windows are left to the parsers, which accept them.

use std::{fs::File, io, io::Read, path::Path};

/// Reads a text file up to `max` bytes.
///
/// # Errors
/// When the file cannot be read, is larger, or is not text.
pub fn read(path: &Path, max: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("it is larger than {max} bytes")));
    }
    decode(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is neither UTF-8 nor UTF-16"))
}

/// The text of bytes in UTF-8, or in UTF-16 with a byte order mark. The mark is not part of the text.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<String> {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (units, rest) = bytes.as_chunks();
        rest.is_empty().then(|| String::from_utf16(&units.iter().copied().map(unit).collect::<Vec<_>>()).ok()).flatten()
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        bytes => String::from_utf8(bytes.to_vec()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_saved_on_windows_are_read() {
        let utf_16 = |mark: u16, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            std::iter::once(mark).chain("a: é\r\n".encode_utf16()).flat_map(bytes).collect()
        };
        for bytes in [
            "a: é\r\n".as_bytes().to_vec(),
            "\u{feff}a: é\r\n".as_bytes().to_vec(),
            utf_16(0xfeff, u16::to_le_bytes),
            utf_16(0xfeff, u16::to_be_bytes),
        ] {
            assert_eq!(decode(&bytes).as_deref(), Some("a: é\r\n"), "{bytes:?}");
        }
        for bytes in [&b"caf\xe9"[..], b"\xff\xfea", b"\xff\xfe\x00\xd8"] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }
}
