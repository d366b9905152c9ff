//! The notation of `strace -y -xx`: descriptors with paths, strings in which every byte is escaped.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// A file descriptor as strace shows it.
pub(super) struct Fd {
    pub(super) number: u32,
    pub(super) path: Option<PathBuf>,
}

/// Reads `3<path>`.
pub(super) fn fd(text: &str) -> Result<Fd> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    // A file without a name can't be found after a power cut.
    let path = if text.ends_with(">(deleted)") || text.ends_with(">(deleted") { None } else { fd_path(text)? };
    Ok(Fd { number: text[..digits].parse().with_context(|| format!("no descriptor: {text}"))?, path })
}

/// Returns the path in `3<path>`.
pub(super) fn fd_path(text: &str) -> Result<Option<PathBuf>> {
    let path = text.split_once('<').and_then(|(_, rest)| rest.rsplit_once('>'));
    path.map(|(path, _)| Ok(PathBuf::from(String::from_utf8(unescape(path))?))).transpose()
}

/// Returns the strings in quotes.
pub(super) fn strings(text: &str) -> Vec<Vec<u8>> {
    text.split('"').skip(1).step_by(2).map(unescape).collect()
}

/// Reads `\x2f` as a byte; what is not escaped stands for itself.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4);
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        match *rest {
            [b'\\', b'x', high, low, ..] if DIGITS[high as usize] | DIGITS[low as usize] < 16 => {
                bytes.push(DIGITS[high as usize] << 4 | DIGITS[low as usize]);
                rest = &rest[4..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// What each byte is as a hexadecimal digit; 16 for one that is none.
const DIGITS: [u8; 256] = {
    let (mut digits, mut value) = ([16; 256], 0);
    while value < 16 {
        digits[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    digits
};
