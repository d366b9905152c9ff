//! Golden scripts: what the rules of shards and of calls do, as stories in `tests/golden`. See [`script`].

mod calls;
mod script;
mod shards;
