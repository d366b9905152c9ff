//! Images: from what a client sends to a tree of files and the config to start it with.

pub mod config;
pub mod recipe;
