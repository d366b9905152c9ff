//! What nodes say when one asks another for chunks, and how chunks are written that go to a peer unasked.
//!
//! A request is the names. Behind them may stand how the chunks are wanted, which older releases overlook: they send chunks that
//! they have proven, plain. An answer to each name, in their order, is what follows (one byte) and that.

use bytes::{BufMut as _, Bytes, BytesMut};
use shoal_state::Digest;
use shoal_storage::store::Stored;

/// How chunks are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// As they are kept, whatever the disk says: whoever asked proves them, and so they are proven once, and not made anew.
    Stored,
    /// Plain, and proven where they are: one that is damaged is found to be absent.
    Proven,
}

/// Behind the names of a request for chunks as they are kept.
const STORED: u8 = 1;

/// The first byte of an answer: nothing follows, or the bytes of the chunk, or its length and a block of lz4.
const ABSENT: u8 = 0;
const PRESENT: u8 = 1;
const LZ4: u8 = 2;

/// Returns a request for chunks.
pub(super) fn ask(digests: &[Digest], wanted: Wanted) -> Bytes {
    let mut request = postcard::to_stdvec(digests).expect("digests can be written");
    if wanted == Wanted::Stored {
        request.push(STORED);
    }
    request.into()
}

/// Returns which chunks a request asks for, and how they are wanted; nothing when it is none.
pub(super) fn asked(request: &[u8]) -> Option<(Vec<Digest>, Wanted)> {
    let (digests, rest) = postcard::take_from_bytes(request).ok()?;
    Some((digests, if rest.first() == Some(&STORED) { Wanted::Stored } else { Wanted::Proven }))
}

/// Returns the parts of an answer.
pub(super) fn answer(chunk: Option<Stored>) -> [Bytes; 2] {
    match chunk {
        None => [Bytes::from_static(&[ABSENT]), Bytes::new()],
        Some(Stored::Plain(bytes)) => [Bytes::from_static(&[PRESENT]), bytes],
        Some(Stored::Lz4 { plain_bytes, block }) => {
            let mut head = BytesMut::with_capacity(5);
            head.put_u8(LZ4);
            head.put_u32_le(plain_bytes);
            [head.freeze(), block]
        }
    }
}

/// Returns the chunk of an answer, which nothing proves yet. What cannot be read is no chunk of any name.
pub(super) fn answered(answer: &Bytes) -> Option<Stored> {
    match answer.split_first()? {
        (&PRESENT, _) => Some(Stored::Plain(answer.slice(1..))),
        (&LZ4, rest) => {
            let plain_bytes = u32::from_le_bytes(*rest.first_chunk()?);
            Some(Stored::Lz4 { plain_bytes, block: answer.slice(5..) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_read_as_written() {
        let digests = [Digest::of(b"one"), Digest::of(b"two")];
        for wanted in [Wanted::Stored, Wanted::Proven] {
            assert_eq!(asked(&ask(&digests, wanted)), Some((digests.to_vec(), wanted)));
        }
        let block = Bytes::from_static(b"block");
        for chunk in [None, Some(Stored::Plain(block.clone())), Some(Stored::Lz4 { plain_bytes: 70_000, block })] {
            assert_eq!(answered(&answer(chunk.clone()).concat().into()), chunk);
        }
        for nothing in ["", "\u{2}abc", "\u{3}abcdef"] {
            assert_eq!(answered(&nothing.into()), None);
        }
        assert_eq!(asked(b"\x02abc"), None);
    }

    #[test]
    fn releases_before_understand_requests_and_are_understood() {
        let digests = vec![Digest::of(b"one"), Digest::of(b"two")];
        // They read the names and no further, and answer with plain chunks.
        assert_eq!(postcard::from_bytes::<Vec<Digest>>(&ask(&digests, Wanted::Stored)), Ok(digests.clone()));
        assert_eq!(answered(&Bytes::from_static(b"\x01bytes")), Some(Stored::Plain(Bytes::from_static(b"bytes"))));
        // What they ask.
        assert_eq!(asked(&postcard::to_stdvec(&digests).unwrap()), Some((digests, Wanted::Proven)));
    }
}
