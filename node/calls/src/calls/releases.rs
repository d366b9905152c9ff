//! What nodes of older releases do not understand waits until all nodes of the cluster do: the version of the state says so.

use shoal_state::State;

use super::handle::Calls;

/// From this version of the rules on, all nodes say of which shards they know later homes.
const ANSWERS_CONFIRMED_SINCE: u32 = 5;
/// From this version of the rules on, all nodes open a call with its inputs.
const OPENED_WITH_INPUTS_SINCE: u32 = 7;

impl Calls {
    /// Takes up what all nodes of the cluster understand by now.
    pub fn take_up(&self, state: &State) {
        self.confirm_answers(state.version() >= ANSWERS_CONFIRMED_SINCE && state.members.len() > 1);
        self.open_with_inputs(state.version() >= OPENED_WITH_INPUTS_SINCE);
    }
}
