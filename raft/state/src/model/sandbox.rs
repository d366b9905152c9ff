//! Sandboxes: containers that run what their user says, once.

use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::AppId;

/// A sandbox. What its container needs is in the function of the same number, for as long as it has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The app it belongs to, and ends with.
    pub app: AppId,
    /// Variables for it alone, sealed; empty when there are none.
    #[serde(with = "serde_bytes")]
    pub sealed: Vec<u8>,
    /// How long it may run once it has a container, in milliseconds.
    pub timeout_ms: u64,
    /// When it was created.
    pub created: Timestamp,
    /// Whose token created it, as people call it.
    pub created_by: String,
    /// How it ended, once it has.
    pub ended: Option<SandboxEnd>,
}

/// How a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxEnd {
    /// When.
    pub at: Timestamp,
    /// By what.
    pub by: SandboxEndBy,
    /// In words.
    pub how: String,
}

/// What ended a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxEndBy {
    /// Its program, with this code; 128 and the number for a signal.
    Itself(i32),
    /// Its timeout.
    Timeout,
    /// Its user, or the end of its app.
    Termination,
    /// Its container could not start, or was lost with its node.
    Platform,
}
