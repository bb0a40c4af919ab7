//! The line format of `sha256sum`, and human numbers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Appends `digest  path\n` as `sha256sum` prints it.
///
/// A path with a backslash, newline or carriage return is escaped (`\\`, `\n`, `\r`) and its line starts with a backslash;
/// every other byte goes out as it is.
pub fn push_line(out: &mut Vec<u8>, digest: &[u8; 32], path: &OsStr) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let path = path.as_bytes();
    let escape = path.iter().any(|byte| matches!(byte, b'\\' | b'\n' | b'\r'));
    if escape {
        out.push(b'\\');
    }
    for byte in digest {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
    out.extend_from_slice(b"  ");
    if escape {
        for &byte in path {
            match byte {
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                _ => out.push(byte),
            }
        }
    } else {
        out.extend_from_slice(path);
    }
    out.push(b'\n');
}

/// Megabytes (10^6 bytes) with one digit after the point.
pub fn megabytes(bytes: u64) -> String {
    let tenths = (bytes + 50_000) / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &[u8]) -> Vec<u8> {
        let mut digest = [0; 32];
        digest[0] = 0x0f;
        digest[31] = 0xa0;
        let mut out = Vec::new();
        push_line(&mut out, &digest, OsStr::from_bytes(path));
        out
    }

    fn hex() -> String {
        format!("0f{}a0", "00".repeat(30))
    }

    #[test]
    fn a_plain_path_follows_two_spaces() {
        assert_eq!(line(b"./a b"), format!("{}  ./a b\n", hex()).into_bytes());
    }

    #[test]
    fn backslash_newline_and_carriage_return_are_escaped_and_announced() {
        assert_eq!(line(b"a\\b\nc\rd"), format!("\\{}  a\\\\b\\nc\\rd\n", hex()).into_bytes());
    }

    #[test]
    fn other_bytes_stay_as_they_are() {
        let expected = [hex().as_bytes(), b"  -\xff\xfe\t'\"\x01\n"].concat();
        assert_eq!(line(b"-\xff\xfe\t'\"\x01"), expected);
    }

    #[test]
    fn megabytes_are_rounded_to_tenths() {
        assert_eq!(megabytes(0), "0.0 MB");
        assert_eq!(megabytes(1_949_999), "1.9 MB");
        assert_eq!(megabytes(1_950_000), "2.0 MB");
        assert_eq!(megabytes(8_000_000_000), "8000.0 MB");
    }
}
