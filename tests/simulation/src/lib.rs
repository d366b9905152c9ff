//! A whole cluster in one process, in virtual time, from a seed.
//!
//! Real are the state and its rules, the records of calls with their logs, the requests between homes, the takeover of shards, the copies
//! of records, the rules of who holds a shard and of who is lost, the plan. Played are time, the network, the disks' syncs, consensus
//! ([`council`]), containers and clients; and the loops in which the binary brings the real parts together, which are short.

pub mod clients;
pub mod council;
pub mod dice;
pub mod faults;
pub mod ground;
pub mod history;
pub mod homes;
pub mod invariants;
pub mod mutant;
pub mod net;
pub mod node;
pub mod planner;
pub mod run;
pub mod schedules;
pub mod time;
pub mod worker;
pub mod world;

pub use mutant::Mutant;
pub use run::{Failure, Ran, run};
