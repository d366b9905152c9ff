//! GPUs: what a machine has, and what requests ask for.
//!
//! Nothing is here yet: the scheduler counts GPUs by number, and no node reports any.
