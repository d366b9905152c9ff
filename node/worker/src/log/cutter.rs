//! Cuts a stream of bytes into lines that are valid UTF-8.

/// The longest entry, in bytes. A longer line becomes several entries.
///
/// Not less: clients put the pieces of a line together by looking through all they have of it again with each piece. Not
/// more: as JSON, where a byte may take six, a piece has to fit into a line of the answer to `shoal logs`.
pub const LINE_BYTES_MAX: usize = 128 << 10;

/// Cuts what comes out of one pipe into lines.
///
/// A line ends after its newline, or where it is [`LINE_BYTES_MAX`] long. Characters are never cut; bytes that are not
/// UTF-8 become U+FFFD.
#[derive(Debug, Default)]
pub struct LineCutter {
    pending: Vec<u8>,
}

impl LineCutter {
    /// Takes bytes; puts the lines that are complete into `lines`.
    pub fn push(&mut self, bytes: &[u8], lines: &mut Vec<String>) {
        self.pending.extend_from_slice(bytes);
        let mut from = 0;
        while let Some(end) = next_end(&self.pending[from..]) {
            lines.push(text(&self.pending[from..from + end]));
            from += end;
        }
        self.pending.drain(..from);
    }

    /// True when a line has begun and not ended.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Gives out an unfinished line, but for a character that is not complete: for prompts and progress bars.
    pub fn flush(&mut self, lines: &mut Vec<String>) {
        let end = whole_characters(&self.pending);
        if end > 0 {
            lines.push(text(&self.pending[..end]));
            self.pending.drain(..end);
        }
    }

    /// Gives out all that is left: the pipe has ended.
    pub fn finish(&mut self, lines: &mut Vec<String>) {
        if self.has_pending() {
            lines.push(text(&self.pending));
            self.pending.clear();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns where the first line ends, newline included; `None` while it may go on.
fn next_end(bytes: &[u8]) -> Option<usize> {
    let head = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    match head.iter().position(|byte| *byte == b'\n') {
        Some(newline) => Some(newline + 1),
        None if bytes.len() < LINE_BYTES_MAX => None,
        None => Some(whole_characters(head)),
    }
}

/// Returns the length of `bytes` without a character that is cut off at its end.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    let Some(lead) = bytes[tail..].iter().rposition(|byte| byte & 0b1100_0000 != 0b1000_0000) else { return bytes.len() };
    let lead = tail + lead;
    let length = match bytes[lead] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    if lead + length > bytes.len() { lead } else { bytes.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<String> {
        let (mut cutter, mut lines) = (LineCutter::default(), Vec::new());
        pieces.iter().for_each(|piece| cutter.push(piece, &mut lines));
        cutter.finish(&mut lines);
        lines
    }

    #[test]
    fn lines_keep_their_newlines_wherever_the_pipe_was_cut() {
        assert_eq!(cut(&[b"one\ntw", b"o\n", b"\nthree"]), ["one\n", "two\n", "\n", "three"]);
    }

    #[test]
    fn characters_are_not_cut_by_reads_or_by_a_flush() {
        let euro = "€".as_bytes();
        assert_eq!(cut(&[&euro[..1], &euro[1..2], &euro[2..], b"\n"]), ["€\n"]);
        let (mut cutter, mut lines) = (LineCutter::default(), Vec::new());
        cutter.push(b"a", &mut lines);
        cutter.push(&euro[..2], &mut lines);
        cutter.flush(&mut lines);
        assert_eq!((lines.as_slice(), cutter.has_pending()), (["a".to_owned()].as_slice(), true));
        cutter.push(&euro[2..], &mut lines);
        cutter.flush(&mut lines);
        assert_eq!(lines, ["a", "€"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(cut(&[b"a\xff\xfeb\n", b"\xe2\x82"]), ["a\u{fffd}\u{fffd}b\n", "\u{fffd}"]);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let long = "é".repeat(LINE_BYTES_MAX);
        let lines = cut(&[b"x", long.as_bytes()]);
        assert!(lines.iter().all(|line| line.len() <= LINE_BYTES_MAX && !line.contains('\u{fffd}')));
        assert_eq!(lines.concat(), format!("x{long}"));
    }
}
