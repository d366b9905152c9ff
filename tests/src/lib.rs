//! Tests of Shoal as a whole: what takes real processes, real disks, or the whole of a crate's promises.
//!
//! - [`power_cut`]: whatever says "on disk" keeps its word when the power goes.

pub mod power_cut;
