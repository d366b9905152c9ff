//! Consensus around Shoal's state: propose a command anywhere, and every node applies it in the same order.
//!
//! [`Raft`] is the whole interface:
//!
//! - [`Raft::propose`] puts commands into the log and brings one answer each;
//! - [`Raft::local`] is the state as this node has it, free and maybe a little old; [`Raft::read_latest`] is the latest;
//! - [`Raft::watch`] and [`Raft::notices`] wake whoever acts on the state.
//!
//! | module | holds |
//! |---|---|
//! | `handle`, `membership`, `status` | [`Raft`] |
//! | `part` | whether a node is a member of consensus or follows, and the way from the one to the other |
//! | `follow`, `feed`, `pulse` | following a voter; what a voter tells its followers; whether it is in touch with the rest |
//! | `heard` | when each peer last answered |
//! | `succeed` | standing for election where the leader is known to be gone |
//! | `runtime` | the thread it runs on: what is opened, in which order |
//! | `propose`, `forward`, `read`, `confirm` | many callers share an entry, and the way to the leader; many readers share a round |
//! | `batch` | what an entry carries: the version gate |
//! | `log`, `meta` | openraft's log on segment files; the vote beside it |
//! | `machine`, `snapshot`, `tally`, `view` | the state in memory, its files, its hash, and how others see it |
//! | `offline`, `recovery` | the state of a node that does not run; making it the only voter |
//! | `network`, `append` | what members say to each other, over a [`Transport`], also a slow one |
//! | [`memory`] | a network for tests |
//!
//! An entry is acknowledged when it is synced on a majority. A node that meets an entry, a snapshot or a vote that it does
//! not understand stops its Raft with a sentence ([`Raft::stopped`]); the others go on.
//!
//! openraft is an implementation detail: its types don't leave this crate.
//!
//! Caveats: openraft 0.9 has no pre-vote and no handing over of leadership, and sends one message at a time to each
//! follower. A leader steps down only when it hears of another term, so reads and proposals on one that is cut off end at
//! their deadlines.

mod append;
mod batch;
mod confirm;
mod error;
mod feed;
mod follow;
mod forward;
mod handle;
mod heard;
mod log;
mod machine;
mod membership;
pub mod memory;
mod meta;
mod network;
mod offline;
mod options;
mod part;
mod propose;
mod pulse;
mod quorum;
mod read;
mod recovery;
mod route;
mod runtime;
mod snapshot;
mod status;
mod succeed;
mod tally;
mod types;
mod view;

pub use batch::{COMMAND_BYTES_MAX, ENTRY_BYTES_MAX};
pub use error::{Error, Result};
pub use handle::{PROPOSE_DEADLINE, READ_DEADLINE, Raft, SHUTDOWN_DEADLINE};
pub use network::{Feed, NoTransport, Transport, Unsent};
pub use offline::{Left, look};
pub use options::{Options, Tuning};
pub use part::FOLLOWERS_SINCE;
pub use recovery::recover;
pub use status::{Follower, Role, Status};
pub use tally::{MARK_EVERY, Mark, first_difference};
pub use types::{Answer, Peer};
pub use view::{Applied, Notice};
