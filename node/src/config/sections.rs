//! Sections of the configuration, each with what it is where nothing is said.

use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// GPUs of this machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Gpu {
    /// Which GPUs this machine is taken to have, as `["H100:2", "L4"]`; empty = none. They are placed and held as real ones will be, and
    /// containers see no device: for simulated machines.
    pub(crate) inventory: Vec<String>,
}

impl Gpu {
    /// Returns the kind of each GPU, in the order of their numbers.
    pub(crate) fn kinds(&self) -> anyhow::Result<Vec<shoal_gpu::Kind>> {
        shoal_gpu::inventory(&self.inventory).context("cannot read gpu.inventory")
    }
}

/// Where the records of calls are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CallsConfig {
    /// For how long a node must have been there, or away, before records move to it or away from it, in seconds. Copies that are
    /// missing are made at once.
    pub(crate) settle_seconds: u64,
    /// On how many nodes what is acknowledged must be, 1 or 2. With 1, calls go on while a copy is missing; with 2 they wait for it.
    pub(crate) min_copies: usize,
    /// How many inputs of one function may wait for a container. Clients that put more are held back until some are done.
    pub(crate) inputs_waiting_max: usize,
}

impl Default for CallsConfig {
    fn default() -> Self {
        Self { settle_seconds: 60, min_copies: 1, inputs_waiting_max: shoal_calls::calls::rules::INPUTS_WAITING_MAX }
    }
}

/// How the cluster looks after itself. What the leader says counts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cluster {
    /// After how many seconds of silence a node that votes is replaced by another one. It follows when it comes back.
    pub(crate) replace_voter_seconds: u64,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { replace_voter_seconds: 600 }
    }
}

/// How much of the disk is for what, and for how long things stay there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Disk {
    /// The chunk store: images, files, blobs. What was not used for the longest time goes first; what functions need that may
    /// run, and what containers are shown, stays. In bytes; 0 = until the disk is four fifths full.
    pub(crate) chunks_bytes: u64,
    /// How long a chunk stays that was put or said to be here, though nothing names it yet, in seconds. Not less than a build or
    /// an upload takes.
    pub(crate) chunks_keep_seconds: u64,
    /// From where on the chunk store takes nothing new, as a part of the whole disk in percent, whoever fills it.
    pub(crate) full_percent: u8,
    /// What containers and builds printed, in bytes. The oldest lines go first.
    pub(crate) logs_bytes: u64,
    /// For how many days lines are kept.
    pub(crate) logs_days: u64,
    /// What one container may write to its own disk when its function does not say, in bytes; 0 = as much as there is.
    pub(crate) overlay_bytes: u64,
    /// What all containers together, those of builds too, may write to their own disks, in bytes. While they take more, the one
    /// that takes the most is ended. 0 = as much as leaves the last fortieth of the disk, 2.5 GiB at most.
    pub(crate) overlays_bytes: u64,
    /// For how many days an app that was stopped is remembered, with its functions and its history; 0 = until the next minute.
    /// Results of its calls and what it printed have times of their own. In a cluster, what the leader says counts.
    pub(crate) stopped_apps_days: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            chunks_bytes: 0,
            chunks_keep_seconds: shoal_storage::store::KEEP.as_secs(),
            full_percent: shoal_storage::store::Options::default().full_percent,
            logs_bytes: 1 << 30,
            logs_days: 30,
            overlay_bytes: 0,
            overlays_bytes: 0,
            // As long as results of calls.
            stopped_apps_days: 7,
        }
    }
}

impl Disk {
    /// How the chunk store is kept.
    pub(crate) fn chunks(&self) -> shoal_storage::store::Options {
        let keep = Duration::from_secs(self.chunks_keep_seconds);
        shoal_storage::store::Options { keep, full_percent: self.full_percent, ..Default::default() }
    }

    /// How long stopped apps are remembered, in milliseconds.
    pub(crate) fn stopped_apps_ms(&self) -> u64 {
        self.stopped_apps_days.saturating_mul(86_400_000)
    }

    /// How the logs of containers are bounded.
    pub(crate) fn logs(&self) -> shoal_worker::log::Options {
        shoal_worker::log::Options::keeping(self.logs_bytes, Duration::from_secs(self.logs_days.saturating_mul(86_400)))
    }
}

/// How containers are started.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Containers {
    /// How many sandboxes wait for a container, of some 14 MiB each.
    pub(crate) sandboxes_ahead: usize,
    /// Snapshots of Python with the client loaded are made for images in use, and new containers go on from them.
    pub(crate) zygotes: bool,
    /// How much disk those snapshots may take, in bytes; some 35 MiB each.
    pub(crate) zygote_bytes: u64,
}

impl Default for Containers {
    fn default() -> Self {
        Self { sandboxes_ahead: 2, zygotes: true, zygote_bytes: 2 << 30 }
    }
}
