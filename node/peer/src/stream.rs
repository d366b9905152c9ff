//! Frames on a stream.
//!
//! A frame is its length and what it is (four bytes, little-endian), and its bytes. What it is: a message, or the words of an
//! error, after which nothing comes.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use shoal_state::NodeId;
use tokio::io::AsyncReadExt as _;

use crate::error::{Error, Result};

/// The most bytes of a frame.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// The most bytes of an error's words: the rest is cut off.
const WORDS_BYTES_MAX: usize = 4 << 10;

/// So much memory is taken for a frame of which only the first bytes came.
const RESERVED_BYTES_MAX: usize = 4 << 20;

/// Set in a frame's length when it holds the words of an error.
const WORDS: u32 = 1 << 31;

/// A conversation with a peer: frames in both directions. Dropping it tells the peer that nobody listens any more.
#[derive(Debug)]
pub struct Stream {
    address: SocketAddr,
    /// The peer that passes it on, where it does not go directly, as whoever opened it knows.
    through: Option<NodeId>,
    outgoing: Outgoing,
    incoming: Incoming,
}

/// The half of a [`Stream`] that sends.
#[derive(Debug)]
pub struct Outgoing {
    peer: NodeId,
    send: quinn::SendStream,
}

/// The half of a [`Stream`] that receives.
#[derive(Debug)]
pub struct Incoming {
    peer: NodeId,
    receive: quinn::RecvStream,
    /// What was read of the head of the next frame: whoever gives up waiting loses nothing of it.
    head: [u8; 4],
    have: usize,
}

impl Stream {
    pub(crate) fn new(peer: NodeId, address: SocketAddr, (send, receive): (quinn::SendStream, quinn::RecvStream)) -> Self {
        Self { address, through: None, outgoing: Outgoing { peer, send }, incoming: Incoming { peer, receive, head: [0; 4], have: 0 } }
    }

    /// Takes the stream apart into what carries its bytes. No frame may have been begun.
    pub(crate) fn into_halves(self) -> (quinn::SendStream, quinn::RecvStream) {
        (self.outgoing.send, self.incoming.receive)
    }

    /// The same stream, which goes through another peer.
    pub(crate) fn around(mut self, through: NodeId) -> Self {
        self.through = Some(through);
        self
    }

    /// Returns the peer through which it goes, if this node opened it and it does not go directly.
    pub fn through(&self) -> Option<NodeId> {
        self.through
    }

    /// Returns where the other end's packets come from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns who is at the other end.
    pub fn peer(&self) -> NodeId {
        self.outgoing.peer
    }

    /// Returns both halves, to be used at the same time.
    pub fn split(self) -> (Outgoing, Incoming) {
        (self.outgoing, self.incoming)
    }

    /// Sends a frame; waits while the peer does not keep up.
    ///
    /// # Errors
    /// [`Error::Broken`] when nobody listens any more.
    pub async fn send(&mut self, frame: Bytes) -> Result<()> {
        self.outgoing.send(frame).await
    }

    /// Sends one frame that is made of parts, see [`Outgoing::send_parts`].
    ///
    /// # Errors
    /// [`Error::Broken`] when nobody listens any more.
    pub async fn send_parts(&mut self, parts: &[Bytes]) -> Result<()> {
        self.outgoing.send_parts(parts).await
    }

    /// Sends the words of an error, and ends this side.
    ///
    /// # Errors
    /// [`Error::Broken`] when nobody listens any more.
    pub async fn fail(&mut self, words: &str) -> Result<()> {
        let cut = (0..=WORDS_BYTES_MAX.min(words.len())).rev().find(|at| words.is_char_boundary(*at)).unwrap_or(0);
        let words = Bytes::copy_from_slice(&words.as_bytes()[..cut]);
        self.outgoing.write(words.len() as u32 | WORDS, &[words]).await?;
        self.finish()
    }

    /// Says that this side sends nothing more.
    ///
    /// # Errors
    /// [`Error::Broken`] when the peer does not want more anyway.
    pub fn finish(&mut self) -> Result<()> {
        let peer = self.peer();
        self.outgoing.send.finish().map_err(|error| Error::Broken { peer, why: error.to_string() })
    }

    /// Returns the next frame; none when the peer has said that there are no more.
    ///
    /// # Errors
    /// [`Error::Failed`] with the peer's words, [`Error::Broken`] when the stream ended in the middle, [`Error::TooLong`].
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.incoming.next().await
    }

    /// Waits until the peer listens no more: it has what it wanted, or is gone.
    pub async fn closed(&mut self) {
        // Either way nobody listens.
        let _ = self.outgoing.send.stopped().await;
    }
}

impl Outgoing {
    /// Sends a frame; waits while the peer does not keep up. Whoever gives up waiting must drop the stream: a frame may be cut.
    ///
    /// # Errors
    /// [`Error::Broken`] when nobody listens any more.
    pub async fn send(&mut self, frame: Bytes) -> Result<()> {
        self.send_parts(&[frame]).await
    }

    /// Sends one frame that is made of parts, one behind the other, without copying them together. Else as [`Self::send`].
    ///
    /// # Errors
    /// [`Error::Broken`] when nobody listens any more.
    pub async fn send_parts(&mut self, parts: &[Bytes]) -> Result<()> {
        let length = parts.iter().map(Bytes::len).sum();
        if length > FRAME_BYTES_MAX {
            return Err(Error::TooLong { peer: self.peer, bytes: length, max: FRAME_BYTES_MAX });
        }
        self.write(length as u32, parts).await
    }

    async fn write(&mut self, head: u32, parts: &[Bytes]) -> Result<()> {
        let mut pieces = Vec::with_capacity(1 + parts.len());
        pieces.push(Bytes::copy_from_slice(&head.to_le_bytes()));
        pieces.extend_from_slice(parts);
        let peer = self.peer;
        self.send.write_all_chunks(&mut pieces).await.map_err(|error| Error::Broken { peer, why: error.to_string() })
    }
}

impl Incoming {
    /// Waits until the next frame begins. Whoever gives up waiting loses nothing: [`Self::next`] goes on.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn ready(&mut self) -> Result<()> {
        while self.have < self.head.len() {
            let read = self.receive.read(&mut self.head[self.have..]).await;
            match read.map_err(|error| Error::Broken { peer: self.peer, why: error.to_string() })? {
                Some(read) => self.have += read,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Returns the next frame; none when the peer has said that there are no more.
    ///
    /// # Errors
    /// [`Error::Failed`] with the peer's words, [`Error::Broken`] when the stream ended in the middle, [`Error::TooLong`].
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.ready().await?;
        let broken = |why: String| Error::Broken { peer: self.peer, why };
        match std::mem::take(&mut self.have) {
            0 => return Ok(None),
            4 => {}
            _ => return Err(broken("it ended in the middle of a message".into())),
        }
        let head = u32::from_le_bytes(self.head);
        let length = (head & !WORDS) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(Error::TooLong { peer: self.peer, bytes: length, max: FRAME_BYTES_MAX });
        }
        let peer = self.peer;
        let frame = self.read(length).await.map_err(|why| Error::Broken { peer, why })?;
        match head & WORDS {
            0 => Ok(Some(frame)),
            _ => Err(Error::Failed { peer, why: String::from_utf8_lossy(&frame).into_owned() }),
        }
    }

    /// Reads so many bytes. Memory is taken once something came, and for what is long as it comes: a length alone costs nothing.
    async fn read(&mut self, length: usize) -> std::result::Result<Bytes, String> {
        const CUT: &str = "it ended in the middle of a message";
        if length == 0 {
            return Ok(Bytes::new());
        }
        let first = self.receive.read_chunk(length, true).await.map_err(|error| error.to_string())?;
        let Some(first) = first else { return Err(CUT.into()) };
        if first.bytes.len() == length {
            return Ok(first.bytes);
        }
        let mut whole = BytesMut::with_capacity(length.min(RESERVED_BYTES_MAX));
        whole.extend_from_slice(&first.bytes);
        while whole.len() < length {
            let left = length - whole.len();
            // All that has come so far at once: piece by piece, each would take the connection's lock.
            match self.receive.read_buf(&mut (&mut whole).limit(left)).await {
                Ok(0) => return Err(CUT.into()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(whole.freeze())
    }
}
