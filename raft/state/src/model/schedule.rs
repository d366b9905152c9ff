//! When functions of deployed apps are called by the cluster itself, since version 6 of the rules.

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::{AppId, FunctionId};

/// A length of time between two firings. The calendar's parts are counted in UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Period {
    /// Years of the calendar.
    pub years: u32,
    /// Months of the calendar.
    pub months: u32,
    /// Weeks.
    pub weeks: u32,
    /// Days.
    pub days: u32,
    /// Hours.
    pub hours: u32,
    /// Minutes.
    pub minutes: u32,
    /// The rest, in nanoseconds.
    pub nanos: u64,
}

/// When a function is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Timing {
    /// Every so often, counted from when it was deployed so first.
    Period(Period),
    /// Whenever the clocks of a zone show such a time.
    Cron {
        /// Five fields, as in crontab(5).
        expression: String,
        /// The IANA name of the zone.
        zone: String,
    },
}

/// The schedule of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// The deployed app that the function belongs to.
    pub app: AppId,
    /// When it is due.
    pub timing: Timing,
    /// From when a period counts: the deployment that brought this timing.
    pub since: Timestamp,
    /// When it is due next.
    pub next: Timestamp,
    /// What it was last fired for.
    pub last: Option<Timestamp>,
}

impl Schedule {
    /// How many firings may wait for their calls. While so many do, no more are decided.
    pub const FIRINGS_MAX: usize = 100;
}

/// A schedule that a deployment brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewSchedule {
    /// When the function is due.
    pub timing: Timing,
    /// When it is due first, unless it has the same timing already.
    pub next: Timestamp,
}

/// The schedules that a deployment brings, until it is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedSchedules {
    /// When they were staged.
    pub at: Timestamp,
    /// By function.
    pub schedules: OrdMap<FunctionId, NewSchedule>,
}
