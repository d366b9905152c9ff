//! The path of an entry: names of any bytes, from the root of the tree, without a way out of it.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where an entry is in its tree: names joined by `/`, no leading slash; the root is empty.
///
/// No name is empty, `.` or `..`, and none holds a NUL, so a path never leaves its tree. Paths are ordered name by
/// name: a directory comes right before what is in it, and everything in it before its next sibling.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Path(Box<[u8]>);

/// Bytes that are not the path of an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("path {:?} {why}", String::from_utf8_lossy(path))]
pub struct BadPath {
    path: Vec<u8>,
    why: &'static str,
}

impl Path {
    /// The path of the root.
    pub fn root() -> Self {
        Self::default()
    }

    /// Reads a path as people and archives write it: `/a/b`, `./a/b/` and `a//b` all name `a/b`.
    ///
    /// A name `..` is refused, as is one with a NUL.
    pub fn parse(bytes: impl AsRef<[u8]>) -> Result<Self, BadPath> {
        let bytes = bytes.as_ref();
        let bad = |why| BadPath { path: bytes.to_vec(), why };
        if bytes.contains(&0) {
            return Err(bad("holds a NUL byte"));
        }
        let mut path = Vec::with_capacity(bytes.len());
        for name in bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            if name == b".." {
                return Err(bad("has a name `..`"));
            }
            push(&mut path, name);
        }
        Ok(Self(path.into()))
    }

    /// Takes bytes that are a path already, as an encoded tree has them; refuses any other spelling.
    pub(super) fn exact(bytes: Vec<u8>) -> Result<Self, BadPath> {
        let parsed = Self::parse(&bytes)?;
        if *parsed.0 != *bytes {
            return Err(BadPath { path: bytes, why: "is not in its one spelling" });
        }
        Ok(parsed)
    }

    /// Returns the path as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Says if this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names from the root to the entry.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }

    /// Returns the last name; the root has none.
    pub fn name(&self) -> Option<&[u8]> {
        self.names().next_back()
    }

    /// Returns the path of the directory this entry is in; the root is in none.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        Some(Self(self.0[..end].into()))
    }

    /// Returns the path of `name` in this directory.
    ///
    /// `name` is one name as a directory holds it; panics on a name that no directory can hold.
    pub fn join(&self, name: &[u8]) -> Self {
        assert!(is_name(name), "{:?} is not the name of an entry", String::from_utf8_lossy(name));
        let mut path = self.0.to_vec();
        push(&mut path, name);
        Self(path.into())
    }

    /// Returns `below` as seen from the directory that this path is the root for.
    pub fn join_path(&self, below: &Path) -> Self {
        let mut path = self.0.to_vec();
        if !below.is_root() {
            push(&mut path, &below.0);
        }
        Self(path.into())
    }

    /// Returns this path as seen from `ancestor`, or None if it is not `ancestor` or in it.
    pub fn strip(&self, ancestor: &Path) -> Option<Self> {
        if ancestor.is_root() {
            return Some(self.clone());
        }
        match self.0.strip_prefix(&*ancestor.0)? {
            [] => Some(Self::root()),
            [b'/', rest @ ..] => Some(Self(rest.into())),
            _ => None,
        }
    }

    /// Says if this path is `ancestor` or in it.
    pub fn is_in(&self, ancestor: &Path) -> bool {
        ancestor.is_root() || self.0.strip_prefix(&*ancestor.0).is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b'/'))
    }
}

/// Says if these bytes can be the name of an entry in a directory.
pub fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}

fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

impl Ord for Path {
    fn cmp(&self, other: &Self) -> Ordering {
        let (mut mine, mut others) = (&*self.0, &*other.0);
        // Paths that meet in a tree begin alike.
        while let (Some((a, after_a)), Some((b, after_b))) = (mine.split_first_chunk::<16>(), others.split_first_chunk::<16>())
            && a == b
        {
            (mine, others) = (after_a, after_b);
        }
        // A slash ends a name, so it counts as less than any byte that a longer name goes on with.
        let rank = |byte: u8| if byte == b'/' { 0 } else { byte };
        match mine.iter().zip(others).find(|(a, b)| a != b) {
            Some((a, b)) => rank(*a).cmp(&rank(*b)),
            None => mine.len().cmp(&others.len()),
        }
    }
}

impl PartialOrd for Path {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0).escape_debug())
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Path {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Path {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: serde_bytes::ByteBuf = serde_bytes::Deserialize::deserialize(deserializer)?;
        Self::exact(bytes.into_vec()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        Path::parse(text).unwrap()
    }

    #[test]
    fn the_same_place_has_one_spelling() {
        for text in ["a/b", "/a/b", "./a//b/", "a/./b"] {
            assert_eq!(path(text), path("a/b"));
        }
        assert!(path("/").is_root() && path(".").is_root());
        assert!(Path::parse("a/../b").is_err() && Path::parse(b"a\0b").is_err());
        assert!(Path::exact(b"a//b".to_vec()).is_err());
    }

    #[test]
    fn what_is_in_a_directory_comes_right_after_it() {
        let mut paths: Vec<_> = ["a.b", "a/z", "a", "a/b/c", "a-b", "a/b", "", "b"].map(path).into();
        paths.sort();
        assert_eq!(paths, ["", "a", "a/b", "a/b/c", "a/z", "a-b", "a.b", "b"].map(path));
    }

    #[test]
    fn parts_of_a_path() {
        let long = path("a/b/c");
        assert_eq!((long.parent(), long.name()), (Some(path("a/b")), Some(&b"c"[..])));
        assert_eq!((path("a").parent(), Path::root().parent()), (Some(Path::root()), None));
        assert_eq!((long.strip(&path("a")), long.strip(&path("a/bb"))), (Some(path("b/c")), None));
        assert!(long.is_in(&path("a/b")) && !path("ab").is_in(&path("a")) && long.is_in(&Path::root()));
        assert_eq!((path("a").join(b"b"), Path::root().join(b"b")), (path("a/b"), path("b")));
    }
}
