//! A whole cluster in one process, in virtual time, from a seed: nodes, their network, what they decide, clients, containers, and what
//! goes wrong. What happened is a [`history`]; each promise is a file of [`invariants`] that is held against it.
//!
//! Real are the state and its rules, applied by each node on its own; the records of calls with their logs on a disk, their owner, the
//! requests between nodes, the takeover of shards and the copies of records; data that calls yield; what containers of a gang are given;
//! the rules of who holds a shard, who counts as lost and since when, and what of theirs is given up; the plan, and who is asked to give
//! way; what is due of schedules, and who makes the calls. Played are time and who runs in it ([`time`]), the network ([`net`]), syncs of
//! disks and what they forget ([`ground`]), consensus ([`council`]), containers ([`worker`]) and clients ([`clients`]); and the loops in
//! which the binary brings the real parts together, which are short ([`node`], [`homes`], [`planner`], [`schedules`], [`gangs`]).
//!
//! Equal seeds are equal worlds: one thread polls what is ready, in an order that the seed says, and time jumps when nothing is. No
//! result may follow from the order of a hash map; `a_seed_is_one_world` holds two runs against each other.
//!
//! **Bugs that were put back** ([`mutant`]), and what they show in; `each_bug_shows` runs them:
//!
//! | bug | breaks |
//! |---|---|
//! | a home counts a record as kept by others once it is sent | `acked_survives`, `no_two_homes_ack`, `one_outcome` |
//! | a disk says that it has synced what it has not | `acked_survives` |
//! | a new home does not ask what tasks run | `running_not_rerun_on_failover` |
//! | a leader plans before it has all that was decided before its term | `plan_after_barrier` |
//! | a new leader takes for lost whom it has not heard since it leads | `new_leader_kills_nothing` |
//! | a home answers how things stand without asking whether it is one still | `no_stale_read` |
//! | a client that asks again gives its request another key | `retry_is_once`, `pop_not_lost` |
//! | a reader moves its cursor though it was told nothing | `cursor_never_skips`, `yields_in_order`, `everything_ends` |
//! | a schedule's call gets another id each time it is made | `fire_once` |
//! | a container does not ask what is cancelled; a client takes a cancellation for done once a node has heard of it | `cancelled_stays` |
//! | the first container of a gang does not wait for the others | `gang_begins_together` |
//! | a node that is cut off does not stop its own | `gang_ends_together` |
//! | what other containers of a gang bring counts | `gang_has_one_outcome` |
//! | a leader does not see that one before it has begun a change of the voters | `joint_is_finished` |
//! | a leader changes the voters without a look at who is there | `never_below_quorum` |
//! | a leader does not see in which zones nodes are | `voters_as_wished` |
//! | a node takes for lost whom it does not reach, though another says that it hears it | `reached_is_not_lost` |
//! | what does not reach a node directly is not said to it through another | `goes_around` |
//! | a machine founds a cluster though a seed does not answer | `formation_once` |
//!
//! **What is not in every world** ([`extras`]): calls that are cancelled, calls that yield data, a clustered function; voters that change
//! ([`members`], [`operators`]): nodes join later and one is taken out, operators wish and label, another one votes in place of who is gone
//! for long; ways around wires that are cut ([`net`]): there are connections then, which an end gives up that hears nothing for some seconds,
//! and what is said to a node that is not connected goes through one that is, by the product's own rules, and stays on its way if that one
//! falls; many wires are cut there, in one way or in both, some for half a minute. The seed says which of these a world
//! has; what comes anew is one more of them, so that the worlds that showed something once stay what they were.
//!
//! **Worlds of another kind** ([`formation`]): machines that become one cluster, or wait, and never two.
//!
//! What else is played from a seed: one shard on four nodes, record by record (`node/calls/tests/replication.rs`); the calls of one node
//! (`simulation.rs` beside it), dicts and queues through moves (`objects.rs`); steps of voters and of machines that form a cluster, without
//! time (`node/members/src/voters/tests.rs`, `formation/once.rs`); deletes of chunks while others name them, `have_then_sweep`
//! (`node/src/upkeep/gc/tests/race.rs`).
//!
//! Caveats: in worlds without ways around, what is said over a wire that is cut is lost, which is harder than reality. What consensus says
//! goes around at once, without the time that it takes to find a way; a connection is not dialled packet by packet, but comes back some
//! while after its wire. That a machine says of itself that nobody listens on its port is not played. Of entries that are not decided only
//! members of consensus are played. Calls here have few inputs, and sandboxes are not played.

pub mod clients;
pub mod council;
pub mod dice;
pub mod extras;
pub mod faults;
pub mod formation;
pub mod gangs;
pub mod ground;
pub mod history;
pub mod homes;
pub mod invariants;
pub mod members;
pub mod mutant;
pub mod net;
pub mod node;
pub mod operators;
pub mod planner;
pub mod run;
pub mod schedules;
pub mod time;
pub mod worker;
pub mod world;

pub use extras::Extra;
pub use mutant::Mutant;
pub use run::{Failure, Ran, form, run, run_with};
