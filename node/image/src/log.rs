//! The log of a build: what the client prints while it waits.

use parking_lot::Mutex;

/// Which of the client's streams a piece of log goes to. The numbers are those of the SDK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Output of a command.
    Stdout = 1,
    /// Error output of a command.
    Stderr = 2,
    /// Words of the builder itself.
    Info = 3,
}

/// Takes what a build says. Called in order, from one task at a time; must not block for long.
pub trait BuildLog: Send + Sync {
    /// Takes a piece of output: one or more whole lines, or a part of one when a program prints without newlines.
    fn write(&self, stream: Stream, data: &str);

    /// Takes how much of the image is saved, in entries of `total`.
    fn saving(&self, _done: u64, _total: u64) {}
}

impl dyn BuildLog + '_ {
    /// Says one line about what the builder does.
    pub fn info(&self, line: impl AsRef<str>) {
        self.write(Stream::Info, &format!("{}\n", line.as_ref()));
    }
}

/// A log in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryLog {
    pieces: Mutex<Vec<(Stream, String)>>,
}

impl MemoryLog {
    /// Returns everything said so far as one text.
    pub fn text(&self) -> String {
        self.pieces.lock().iter().map(|(_, data)| data.as_str()).collect()
    }
}

impl BuildLog for MemoryLog {
    fn write(&self, stream: Stream, data: &str) {
        self.pieces.lock().push((stream, data.to_owned()));
    }
}

/// How many bytes of the last output an error carries.
const TAIL_BYTES: usize = 4096;

/// Keeps the end of an output, for errors.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    text: String,
}

impl Tail {
    pub(crate) fn push(&mut self, data: &str) {
        self.text.push_str(data);
        if self.text.len() > 2 * TAIL_BYTES {
            self.text = self.text();
        }
    }

    /// The last lines, whole ones where possible.
    pub(crate) fn text(&self) -> String {
        let mut start = self.text.len().saturating_sub(TAIL_BYTES);
        while !self.text.is_char_boundary(start) {
            start += 1;
        }
        let tail = &self.text[start..];
        match (start > 0).then(|| tail.split_once('\n')).flatten() {
            Some((_, whole_lines)) => whole_lines.to_owned(),
            None => tail.to_owned(),
        }
    }
}

/// Makes text of bytes that may be cut anywhere: an unfinished character waits for the next piece.
#[derive(Debug, Default)]
pub(crate) struct Utf8 {
    rest: Vec<u8>,
}

impl Utf8 {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.rest.extend_from_slice(bytes);
        let keep = match std::str::from_utf8(&self.rest) {
            Err(error) if error.error_len().is_none() => self.rest.len() - error.valid_up_to(),
            _ => unfinished(&self.rest),
        };
        let rest = self.rest.split_off(self.rest.len() - keep);
        String::from_utf8_lossy(&std::mem::replace(&mut self.rest, rest)).into_owned()
    }
}

/// How many bytes at the end begin a character that is not complete.
fn unfinished(bytes: &[u8]) -> usize {
    (1..=3.min(bytes.len()))
        .find(|count| {
            let first = bytes[bytes.len() - count];
            let length = match first {
                0xC2..=0xDF => 2,
                0xE0..=0xEF => 3,
                0xF0..=0xF4 => 4,
                _ => 0,
            };
            length > *count
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_cut_in_two_come_out_whole() {
        let mut utf8 = Utf8::default();
        let bytes = "aé€x".as_bytes();
        let text: String = bytes.iter().map(|byte| utf8.push(&[*byte])).collect();
        assert_eq!(text, "aé€x");
        assert_eq!(utf8.push(b"\xffa\xc3"), "\u{fffd}a");
        assert_eq!(utf8.push(b"\xa9"), "é");
    }

    #[test]
    fn a_tail_has_whole_lines_and_a_bound() {
        let mut tail = Tail::default();
        for number in 0..10_000 {
            tail.push(&format!("line {number}\n"));
        }
        let text = tail.text();
        assert!(text.len() <= TAIL_BYTES && text.starts_with("line ") && text.ends_with("line 9999\n"), "{text}");
    }
}
