//! Terminals of processes in containers: a pseudoterminal of the host, whose one end the sandbox gets as all three streams.
//!
//! The guest sets the modes of its terminal on the host's, so the host's line discipline echoes, edits lines and translates. Signals
//! alone it cannot send: the processes that they are for are not the host's. So whoever writes to a terminal looks for the
//! characters that mean one as the modes stand ([`signals`]), and sends them by the control socket.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, SpecialCodeIndex, Termios, Winsize, tcgetattr, tcsetwinsize},
};

use crate::{Error, Result};

/// How large a terminal is, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Its height.
    pub rows: u16,
    /// Its width.
    pub columns: u16,
}

/// Makes a terminal: our end, and the process's.
pub(crate) fn open(size: TerminalSize) -> Result<(OwnedFd, OwnedFd)> {
    let failed = |action| move |e: rustix::io::Errno| Error::file(action, "a terminal")(e.into());
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).map_err(failed("create"))?;
    grantpt(&ours).map_err(failed("grant"))?;
    unlockpt(&ours).map_err(failed("unlock"))?;
    let name = ptsname(&ours, Vec::new()).map_err(failed("name"))?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).map_err(failed("open"))?;
    if size.rows > 0 && size.columns > 0 {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&ours, size).map_err(failed("size"))?;
    }
    Ok((ours, theirs))
}

/// What is typed into a terminal up to a character that means a signal, that character included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Typed<'a> {
    /// What to write.
    pub bytes: &'a [u8],
    /// What to send to the foreground of the terminal after that.
    pub signal: Option<i32>,
}

/// Cuts what is typed at the characters that mean a signal, as the modes of the terminal stand now.
pub fn typed(terminal: impl AsFd, bytes: &[u8]) -> Vec<Typed<'_>> {
    match tcgetattr(terminal) {
        Ok(modes) => cut(bytes, &signals(&modes)),
        // Its process is gone: nobody is there for a signal.
        Err(_) => cut(bytes, &[]),
    }
}

/// Returns the character that means the end of what is typed, where lines are read whole.
pub fn end_of_input(terminal: impl AsFd) -> Option<u8> {
    let modes = tcgetattr(terminal).ok()?;
    modes.local_modes.contains(LocalModes::ICANON).then(|| modes.special_codes[SpecialCodeIndex::VEOF])
}

/// Returns which characters mean which signals.
fn signals(modes: &Termios) -> Vec<(u8, i32)> {
    if !modes.local_modes.contains(LocalModes::ISIG) {
        return Vec::new();
    }
    let codes =
        [(SpecialCodeIndex::VINTR, libc::SIGINT), (SpecialCodeIndex::VQUIT, libc::SIGQUIT), (SpecialCodeIndex::VSUSP, libc::SIGTSTP)];
    // A character of zero is switched off.
    codes.map(|(code, signal)| (modes.special_codes[code], signal)).into_iter().filter(|(code, _)| *code != 0).collect()
}

fn cut<'a>(bytes: &'a [u8], signals: &[(u8, i32)]) -> Vec<Typed<'a>> {
    let of = |byte: u8| signals.iter().find(|(code, _)| *code == byte).map(|(_, signal)| *signal);
    let mut pieces = Vec::new();
    let mut from = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if let Some(signal) = of(*byte) {
            pieces.push(Typed { bytes: &bytes[from..=at], signal: Some(signal) });
            from = at + 1;
        }
    }
    if from < bytes.len() {
        pieces.push(Typed { bytes: &bytes[from..], signal: None });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use rustix::termios::{OptionalActions, tcgetwinsize, tcsetattr};

    use super::*;

    const SIZE: TerminalSize = TerminalSize { rows: 33, columns: 101 };

    #[test]
    fn a_terminal_has_the_size_that_was_asked_for() {
        let (_ours, theirs) = open(SIZE).unwrap();
        let size = tcgetwinsize(&theirs).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (33, 101));
    }

    #[test]
    fn what_is_typed_is_cut_at_signals_while_the_modes_say_so() {
        let (ours, theirs) = open(SIZE).unwrap();
        let pieces = typed(&ours, b"ab\x03c\x1a\x1cd");
        let plain: Vec<_> = pieces.iter().map(|piece| (piece.bytes, piece.signal)).collect();
        let expected: [(&[u8], _); 4] =
            [(b"ab\x03", Some(libc::SIGINT)), (b"c\x1a", Some(libc::SIGTSTP)), (b"\x1c", Some(libc::SIGQUIT)), (b"d", None)];
        assert_eq!(plain, expected);
        assert_eq!(end_of_input(&ours), Some(4));
        // As an editor sets it.
        let mut raw = tcgetattr(&theirs).unwrap();
        raw.make_raw();
        tcsetattr(&theirs, OptionalActions::Now, &raw).unwrap();
        assert_eq!(typed(&ours, b"a\x03b"), [Typed { bytes: b"a\x03b", signal: None }]);
        assert_eq!(end_of_input(&ours), None);
    }
}
