//! The bytes of one file, to objects and back.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use shoal_state::Digest;

use super::{Content, Error, INLINE_CHUNKS_MAX, Kind, LIST_CHUNKS, Objects, Path, Result, Tree, get, put};
use crate::chunk::{CHUNK_BYTES, List};

/// Keeps everything a reader gives as chunks, and returns how many bytes they were and where they are.
///
/// `what` names the reader in errors.
pub fn put_content(mut from: impl Read, what: &str, objects: &impl Objects) -> Result<(u64, Content)> {
    let (mut size, mut chunks) = (0, Vec::new());
    let mut chunk = Vec::new();
    loop {
        chunk.clear();
        let read = from.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk);
        let read = read.map_err(|source| Error::Content { what: what.into(), source })?;
        if read > 0 {
            size += read as u64;
            chunks.push(put(objects, &chunk)?);
        }
        if read < CHUNK_BYTES {
            return Ok((size, content_of(size, chunks, objects)?));
        }
    }
}

fn content_of(size: u64, chunks: Vec<Digest>, objects: &impl Objects) -> Result<Content> {
    if chunks.len() <= INLINE_CHUNKS_MAX {
        return Ok(Content::Chunks(chunks));
    }
    let list_bytes = (LIST_CHUNKS * CHUNK_BYTES) as u64;
    let lists = chunks.chunks(LIST_CHUNKS).zip(0..).map(|(chunks, number)| {
        let size = (size - number * list_bytes).min(list_bytes);
        put(objects, &List { size, chunks: chunks.to_vec() }.encode())
    });
    Ok(Content::Lists(lists.collect::<Result<_>>()?))
}

/// Reads a list object of a long file.
pub(super) fn read_list(objects: &impl Objects, digest: &Digest) -> Result<Vec<Digest>> {
    let list = List::decode(&get(objects, digest)?);
    let malformed =
        |source: crate::chunk::NotAList| Error::Malformed { digest: *digest, expected: "a list of chunks", why: source.to_string() };
    Ok(list.map_err(malformed)?.chunks)
}

/// Returns a reader of a file's content. Its errors carry an [`Error`] of this module.
pub fn read_content<'a, O: Objects>(size: u64, content: &Content, objects: &'a O) -> Result<impl Read + use<'a, O>> {
    let chunks = match content {
        Content::Chunks(chunks) => chunks.clone(),
        Content::Lists(lists) => {
            let lists: Result<Vec<_>> = lists.iter().map(|list| read_list(objects, list)).collect();
            lists?.concat()
        }
    };
    Ok(Reader { objects, ahead: chunks.into_iter(), current: Bytes::new(), left: size })
}

struct Reader<'a, O> {
    objects: &'a O,
    ahead: std::vec::IntoIter<Digest>,
    current: Bytes,
    left: u64,
}

impl<O: Objects> Read for Reader<'_, O> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let Some(digest) = self.ahead.next() else {
                return if self.left == 0 { Ok(0) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            };
            self.current = get(self.objects, &digest).map_err(io::Error::other)?;
        }
        let length = into.len().min(self.current.len());
        self.current.copy_to_slice(&mut into[..length]);
        let left = self.left.checked_sub(length as u64);
        self.left = left.ok_or_else(|| io::Error::other("the chunks are longer than the file"))?;
        Ok(length)
    }
}

impl Tree {
    /// Returns the content of the file that a path leads to (symbolic links are followed), if it has at most
    /// `bytes_max` bytes; None if there is no file.
    pub fn read_file(&self, path: &Path, bytes_max: u64, objects: &impl Objects) -> Result<Option<Vec<u8>>> {
        let at = self.follow(path)?;
        let Some((_, entry)) = self.resolve(&at) else { return Ok(None) };
        let Kind::File { size, content } = &entry.kind else { return Ok(None) };
        if *size > bytes_max {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(*size as usize);
        let read = read_content(*size, content, objects)?.read_to_end(&mut bytes);
        read.map_err(|source| Error::Content { what: path.to_string(), source })?;
        Ok(Some(bytes))
    }
}
