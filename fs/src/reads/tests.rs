//! Reading without a kernel.
