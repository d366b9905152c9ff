//! Dicts and queues, as the registry knows them: their contents are records of shards.

use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::EnvironmentId;

/// That a dict or a queue exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its environment.
    pub environment: EnvironmentId,
    /// Its name; empty for an ephemeral one, which ends when nobody says any more that it is used.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
    /// Whose token created it, as people call it.
    pub created_by: String,
}
