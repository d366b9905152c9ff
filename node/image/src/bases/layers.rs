//! Layers of images: compressed tars put over each other.

use std::io::{BufReader, Read};

use sha2::{Digest as _, Sha256};
use shoal_storage::manifest::{Objects, Tree, from_tar};

use crate::error::{Error, Result, TreeContext};

/// How many bytes of a layer are read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Not at all.
    Plain,
    /// gzip, perhaps of several members.
    Gzip,
    /// zstd, perhaps of several frames.
    Zstd,
}

impl Packing {
    /// Reads the media type of a layer.
    pub(super) fn of_media_type(media_type: &str) -> Option<Packing> {
        let known =
            media_type.starts_with("application/vnd.oci.image.layer.") || media_type.starts_with("application/vnd.docker.image.rootfs.");
        match media_type.rsplit(['.', '+']).next()? {
            _ if !known => None,
            "tar" => Some(Packing::Plain),
            "gzip" => Some(Packing::Gzip),
            "zstd" => Some(Packing::Zstd),
            _ => None,
        }
    }

    /// Looks at the first bytes.
    pub(super) fn of_start(start: &[u8]) -> Packing {
        match start {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
            _ => Packing::Plain,
        }
    }
}

/// Unpacks one layer over a tree. With `diff_id`, the unpacked bytes must have that hash (`sha256:…`).
pub(super) fn apply(
    tree: &mut Tree,
    what: &str,
    layer: impl Read,
    packing: Packing,
    diff_id: Option<&str>,
    objects: &impl Objects,
) -> Result<()> {
    let layer = BufReader::with_capacity(BUFFER_BYTES, layer);
    match packing {
        Packing::Plain => apply_plain(tree, what, layer, diff_id, objects),
        Packing::Gzip => apply_plain(tree, what, flate2::bufread::MultiGzDecoder::new(layer), diff_id, objects),
        Packing::Zstd => match zstd::stream::read::Decoder::with_buffer(layer) {
            Ok(decoder) => apply_plain(tree, what, decoder, diff_id, objects),
            Err(error) => Err(not_an_image(what, format!("has a layer that is not zstd: {error}"))),
        },
    }
}

fn apply_plain(tree: &mut Tree, what: &str, layer: impl Read, diff_id: Option<&str>, objects: &impl Objects) -> Result<()> {
    let mut hashing = Hashing { inner: layer, hash: Sha256::new() };
    let changes = from_tar(&mut hashing, objects).tree(what)?;
    // Padding after the end of the archive is part of the hash.
    std::io::copy(&mut hashing, &mut std::io::sink()).map_err(|error| not_an_image(what, format!("has a torn layer: {error}")))?;
    let found = format!("sha256:{}", hex(&hashing.hash.finalize()));
    if let Some(expected) = diff_id
        && expected != found
    {
        return Err(not_an_image(what, format!("has a layer whose content is {found}, expected {expected}")));
    }
    tree.apply_layer(changes).tree(what)
}

pub(super) fn not_an_image(reference: &str, why: String) -> Error {
    Error::NotAnImage { reference: reference.to_owned(), why }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
