//! Trees of files as a file system: what containers see as their root.
//!
//! A node has one FUSE mount, [`Trees`]. Each tree it shows is a directory right under the mount point, bound and
//! unbound by name. Names and attributes come from a [`Tree`](shoal_storage::manifest::Tree) in memory; the bytes of files
//! are fetched when they are read, and only through a [`Source`], so they may be on this disk, on another node, or behind a
//! socket.
//!
//! One mount for all trees lets the kernel share its page cache between them: a regular file that is the same in two
//! trees (content, attributes, number of names) is one inode of the mount, so what one container has read is warm for all
//! others. Two files of *one* tree never share an inode, unless they are names of one file.
//!
//! A *room* is a directory that shows a tree later: a sandbox is made on the empty room, ahead of need, and gets its tree
//! when it is known what it will run. The room's few places (mount points and what is above them) keep their inode numbers
//! when it is filled, so what was mounted on them stays; all else follows from the tree, which is laid out once however
//! many rooms show it.
//!
//! How a request travels:
//!
//! - [`adapter`] decodes it. Everything but reading is answered at once from [`view`], which is all trees in memory.
//! - A read goes to [`reads`]. What is in its cache of chunks is answered at once; otherwise the read waits for the
//!   chunk without holding a thread, and is answered when the chunk comes or when its time is up, with EIO.
//! - [`errno`] is the one place where errors become numbers.
//!
//! [`mount`] makes and ends mounts, including those that a killed process left.
//!
//! Trees never change, so the kernel keeps names, attributes, links and pages for a day; unbinding a tree takes its names
//! away at once.
//!
//! Caveats: read-only. A source that keeps running past its deadline does not hold up readers, but it holds one of the
//! threads that fetch. Access times are modification times.

mod adapter;
mod cache;
mod errno;
mod error;
mod layout;
mod mount;
mod queue;
mod readers;
mod reads;
mod source;
mod trees;
mod view;

pub use error::Error;
pub use mount::unmount_leftovers;
pub use reads::Trouble;
pub use source::{Source, SourceError, StoreSource};
pub use trees::{Options, Trees};
pub use view::Touch;
