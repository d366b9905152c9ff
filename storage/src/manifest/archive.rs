//! Reading a tar archive member by member.
//!
//! The `tar` crate decodes the headers. Its own iterator is not used because it takes a newline inside a binary
//! value of a PAX record, which file capabilities have, for the end of the record.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

const BLOCK: u64 = 512;

/// The longest name or set of PAX records that is believed. A kernel's attributes and names stay far below.
const EXTENSION_BYTES_MAX: u64 = 8 << 20;

/// PAX records: key to value.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// One member of an archive: its header with everything that came before it put in.
pub(super) struct Member {
    pub(super) header: Header,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) records: Records,
}

/// An archive that is read from its beginning to its end.
pub(super) struct Archive<R> {
    reader: R,
    /// What is still to be read of the current member.
    parts: VecDeque<Part>,
    padding: u64,
    globals: Records,
}

enum Part {
    Bytes(u64),
    Zeros(u64),
}

impl<R: Read> Archive<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, parts: VecDeque::new(), padding: 0, globals: Records::new() }
    }

    /// Goes on to the next member. Its bytes are what reading the archive gives until the next call.
    ///
    /// At the end of the archive the reader is read to its own end, so that whoever writes it is not cut off.
    pub(super) fn next(&mut self) -> io::Result<Option<Member>> {
        let (mut records, mut name, mut link) = (None, None, None);
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                io::copy(&mut self.reader, &mut io::sink())?;
                return Ok(None);
            };
            match header.entry_type() {
                EntryType::GNULongName => name = Some(without_nul(self.extension(&header)?)),
                EntryType::GNULongLink => link = Some(without_nul(self.extension(&header)?)),
                EntryType::XHeader => records = Some(parse_records(&self.extension(&header)?)?),
                EntryType::XGlobalHeader => {
                    let more = parse_records(&self.extension(&header)?)?;
                    self.globals.extend(more);
                }
                _ => {
                    let mut all = self.globals.clone();
                    all.extend(records.unwrap_or_default());
                    return self.member(header, all, name, link).map(Some);
                }
            }
        }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        if !fill(&mut self.reader, header.as_mut_bytes())? || header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum: u32 = bytes[..148].iter().chain(&[b' '; 8]).chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum();
        match header.cksum()? == sum {
            true => Ok(Some(header)),
            false => Err(invalid("a header has a wrong checksum")),
        }
    }

    fn extension(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let size = header.entry_size()?;
        if size > EXTENSION_BYTES_MAX {
            return Err(invalid("an extended header is too long"));
        }
        self.expect(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn member(&mut self, header: Header, mut records: Records, name: Option<Vec<u8>>, link: Option<Vec<u8>>) -> io::Result<Member> {
        let kind = header.entry_type();
        let has_bytes = kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse();
        let size = match number(&records, b"size")? {
            Some(size) => size,
            None => header.entry_size()?,
        };
        match kind {
            EntryType::GNUSparse => self.expect_sparse(&header, size)?,
            _ if has_bytes => self.expect(size),
            // Some archives repeat a file's size in the headers of its links, which have no bytes.
            EntryType::Link | EntryType::Symlink | EntryType::Char | EntryType::Block | EntryType::Fifo => {}
            EntryType::Directory => {}
            _ => self.expect(size),
        }
        let path = records.remove(&b"path"[..]).or(name).unwrap_or_else(|| header.path_bytes().into_owned());
        let in_header = || header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
        let link = records.remove(&b"linkpath"[..]).or(link).unwrap_or_else(in_header);
        Ok(Member { path, link, records, header })
    }

    fn expect(&mut self, size: u64) {
        self.parts = VecDeque::from([Part::Bytes(size)]);
        self.padding = size.next_multiple_of(BLOCK) - size;
    }

    /// Reads the map of an old GNU sparse file: which parts of it follow, the rest being zeros.
    fn expect_sparse(&mut self, header: &Header, stored: u64) -> io::Result<()> {
        let gnu = header.as_gnu().ok_or_else(|| invalid("a sparse file has no GNU header"))?;
        let mut blocks = Vec::new();
        let mut add = |block: &tar::GnuSparseHeader| -> io::Result<()> {
            if !block.is_empty() {
                blocks.push((block.offset()?, block.length()?));
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extension = GnuExtSparseHeader::new();
            if !fill(&mut self.reader, extension.as_mut_bytes())? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            extension.sparse().iter().try_for_each(&mut add)?;
            more = extension.is_extended();
        }
        self.expect(stored);
        self.parts = sparse_parts(&blocks, stored, gnu.real_size()?).ok_or_else(|| invalid("a sparse map is wrong"))?;
        Ok(())
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        self.parts.retain(|part| matches!(part, Part::Bytes(_)));
        io::copy(&mut self.by_ref(), &mut io::sink())?;
        let skipped = io::copy(&mut self.reader.by_ref().take(self.padding), &mut io::sink())?;
        if skipped < std::mem::take(&mut self.padding) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// The bytes of the current member.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(part) = self.parts.front_mut() {
            let (Part::Bytes(left) | Part::Zeros(left)) = part;
            let length = (*left).min(into.len() as u64) as usize;
            if *left == 0 {
                self.parts.pop_front();
                continue;
            }
            let read = match part {
                Part::Zeros(_) => {
                    into[..length].fill(0);
                    length
                }
                Part::Bytes(_) => self.reader.read(&mut into[..length])?,
            };
            if read == 0 && length > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (Part::Bytes(left) | Part::Zeros(left)) = part;
            *left -= read as u64;
            return Ok(read);
        }
        Ok(0)
    }
}

fn sparse_parts(blocks: &[(u64, u64)], stored: u64, size: u64) -> Option<VecDeque<Part>> {
    let (mut at, mut left) = (0, stored);
    let mut parts = VecDeque::new();
    for (offset, length) in blocks {
        parts.push_back(Part::Zeros(offset.checked_sub(at)?));
        parts.push_back(Part::Bytes(*length));
        at = offset.checked_add(*length)?;
        left = left.checked_sub(*length)?;
    }
    parts.push_back(Part::Zeros(size.checked_sub(at)?));
    (left == 0).then_some(parts)
}

/// Parses `LENGTH KEY=VALUE\n` records; a value may hold any bytes.
fn parse_records(mut bytes: &[u8]) -> io::Result<Records> {
    let mut records = Records::new();
    while !bytes.is_empty() {
        let (key, value, rest) = split_record(bytes).ok_or_else(|| invalid("a PAX record is malformed"))?;
        records.insert(key.to_vec(), value.to_vec());
        bytes = rest;
    }
    Ok(records)
}

fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    Some((&pair[..equals], &pair[equals + 1..], rest))
}

/// Returns a number that a record holds.
pub(super) fn number(records: &Records, key: &[u8]) -> io::Result<Option<u64>> {
    let Some(value) = records.get(key) else { return Ok(None) };
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| invalid("a PAX record is not a number"))
}

fn without_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Fills a block, and says false if there was nothing at all.
fn fill(reader: &mut impl Read, block: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < block.len() {
        match reader.read(&mut block[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
