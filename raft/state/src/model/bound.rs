//! Bound functions: a function with a class's parameters, other settings, or both, and containers of its own.

use serde::{Deserialize, Serialize};

use super::{Function, Resources, Retries, Scaling, Timestamp};
use crate::{FunctionId, MountId, SecretId};

/// What makes a function another one, with a pool of its own. What it is in all follows from its parent as that is now, so a
/// deployment of the parent is one of all that are bound from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The function that it was bound from; never itself a bound one.
    pub parent: FunctionId,
    /// The class's parameters as the client sent them.
    #[serde(with = "serde_bytes")]
    pub parameters: Vec<u8>,
    /// The options as the client sent them, for those who must show or hand on all of them.
    #[serde(with = "serde_bytes")]
    pub options: Vec<u8>,
    /// What the options change of what Shoal acts on.
    pub changes: Changes,
    /// When it was bound first.
    pub created: Timestamp,
    /// When its use was noted last.
    pub used: Timestamp,
}

/// What differs from the parent; what is absent is as there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Secrets beside the parent's, later ones win.
    pub secrets: Vec<SecretId>,
    /// They take the place of the parent's.
    pub secrets_replaced: bool,
    /// More files over the image.
    pub mounts: Vec<MountId>,
    /// CPU that is set aside and the most of it, in thousandths of a core; 0 = the default burst.
    pub cpu_milli: Option<(u32, u32)>,
    /// Memory that is set aside and the most of it, in bytes; 0 = the node's default.
    pub memory_bytes: Option<(u64, u64)>,
    /// Writable disk, in bytes.
    pub disk_bytes: Option<u64>,
    /// Number of GPUs.
    pub gpus: Option<u32>,
    /// How failed inputs are tried again.
    pub retries: Option<Retries>,
    /// Containers that run even with nothing to do; absent = none, for nobody knows how many functions will be bound.
    pub containers_min: Option<u32>,
    /// The most containers.
    pub containers_max: Option<u32>,
    /// Spare containers.
    pub containers_buffer: Option<u32>,
    /// How long an idle container waits, in milliseconds.
    pub scaledown_ms: Option<u64>,
    /// The longest an input may run, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Inputs that one container takes at a time.
    pub inputs_concurrent: Option<u32>,
    /// Inputs in a batch.
    pub batch_max: Option<u32>,
    /// How long a batch waits to be full, in milliseconds.
    pub batch_wait_ms: Option<u64>,
}

impl Bound {
    /// Returns the whole function that it is, its parent being what it is now.
    pub fn of(&self, parent: &Function) -> Function {
        let changes = &self.changes;
        let own = if changes.secrets_replaced { &[][..] } else { &parent.secrets };
        Function {
            secrets: [own, &changes.secrets].concat(),
            mounts: [&parent.mounts[..], &changes.mounts].concat(),
            resources: changes.resources(parent.resources),
            scaling: changes.scaling(parent.scaling),
            retries: changes.retries.unwrap_or(parent.retries),
            timeout_ms: changes.timeout_ms.unwrap_or(parent.timeout_ms),
            inputs_concurrent: changes.inputs_concurrent.unwrap_or(parent.inputs_concurrent).max(1),
            batch_max: changes.batch_max.unwrap_or(parent.batch_max),
            batch_wait_ms: changes.batch_wait_ms.unwrap_or(parent.batch_wait_ms),
            parent: Some(self.parent),
            parameters: self.parameters.clone(),
            created: self.created,
            ..parent.clone()
        }
    }
}

impl Changes {
    fn resources(&self, of: Resources) -> Resources {
        let (cpu_milli, cpu_milli_max) = self.cpu_milli.unwrap_or((of.cpu_milli, of.cpu_milli_max));
        let (memory_bytes, memory_bytes_max) = self.memory_bytes.unwrap_or((of.memory_bytes, of.memory_bytes_max));
        let (disk_bytes, gpus) = (self.disk_bytes.unwrap_or(of.disk_bytes), self.gpus.unwrap_or(of.gpus));
        Resources { cpu_milli, cpu_milli_max, memory_bytes, memory_bytes_max, disk_bytes, gpus }
    }

    fn scaling(&self, of: Scaling) -> Scaling {
        Scaling {
            containers_min: self.containers_min.unwrap_or(0),
            containers_max: self.containers_max.unwrap_or(of.containers_max),
            containers_buffer: self.containers_buffer.unwrap_or(of.containers_buffer),
            scaledown_ms: self.scaledown_ms.unwrap_or(of.scaledown_ms),
        }
    }
}
