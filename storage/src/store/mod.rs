//! Chunks by digest.
