//! Names. Everything the engine makes on the machine carries its instance's tag, so that a later
//! process finds what an earlier one left, and two nodes on one machine leave each other alone.

use std::{fmt, path::Path};

use shoal_state::Digest;

/// Six hexadecimal digits that stand for one data folder on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag([u8; 3]);

impl Tag {
    /// Derives the tag of a data folder. Equal paths give equal tags, for ever.
    pub(crate) fn of(folder: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        let text = Digest::of(folder.as_os_str().as_bytes()).to_string();
        let digit = |at: usize| (text.as_bytes()[at] as char).to_digit(16).unwrap_or(0) as u8;
        Self(std::array::from_fn(|i| digit(2 * i) << 4 | digit(2 * i + 1)))
    }

    pub(crate) fn bytes(self) -> [u8; 3] {
        self.0
    }

    /// What the host end of every slot's veth pair starts with. The interface names that follow
    /// have at most 15 characters, as the kernel wants it.
    pub(crate) fn link_prefix(self) -> String {
        format!("sh{self}v")
    }

    pub(crate) fn link(self, slot: u32) -> String {
        format!("{}{slot:06x}", self.link_prefix())
    }

    /// The label of the gateway's address on the loopback interface.
    pub(crate) fn gateway_label(self) -> String {
        format!("lo:sh{self}")
    }

    /// The folder of this instance inside each cgroup hierarchy.
    pub(crate) fn cgroup(self) -> String {
        format!("shoal-{self}")
    }

    pub(crate) fn firewall_table(self) -> String {
        format!("shoal_{self}")
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}")
    }
}

/// The name of a container towards runsc.
///
/// All have one length: runsc takes an id for a prefix, and `x1` would be ambiguous beside `x10`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId {
    tag: [u8; 3],
    unique: u64,
}

impl ContainerId {
    pub(crate) fn new(tag: Tag, unique: u64) -> Self {
        Self { tag: tag.0, unique }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sh-{}-{:016x}", Tag(self.tag), self.unique)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_have_one_length() {
        let tag = Tag::of(Path::new("/var/lib/shoal"));
        assert_eq!(tag, Tag::of(Path::new("/var/lib/shoal")));
        assert_ne!(tag, Tag::of(Path::new("/var/lib/shoal2")));
        assert!(tag.link(0xff_ffff).len() <= 15);
        let short = ContainerId::new(tag, 1).to_string();
        let long = ContainerId::new(tag, u64::MAX).to_string();
        assert_eq!(short.len(), long.len());
    }
}
