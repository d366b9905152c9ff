//! A tree of files as digests.
