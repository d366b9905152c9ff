//! How long a call is kept: by time alone, so that it needs no record to be forgotten again after a restart.

use shoal_state::CallId;

use super::{Due, Effect, Rules};
use crate::calls::model::Millis;
use crate::calls::refused::Refused;
use crate::calls::state::Call;

/// How long results are kept after the last of them came.
pub const RESULTS_KEPT_MS: u64 = 7 * 24 * 3600 * 1000;

/// How long results are kept after a reader had all of them and said so. Not less: when the reply is lost, the client asks again.
pub const CLEARED_KEPT_MS: u64 = 10 * 60 * 1000;

/// Returns when a call is forgotten; none while an input has no output.
fn expires_at(call: &Call) -> Option<Millis> {
    let kept = call.changed_ms.saturating_add(RESULTS_KEPT_MS);
    let cleared = call.cleared_ms.map_or(kept, |at| at.saturating_add(CLEARED_KEPT_MS));
    (call.unfinished() == 0).then_some(kept.min(cleared))
}

impl Rules {
    /// Sees to it that a call that may be over is forgotten in time.
    pub(super) fn plan_expiry(&mut self, id: CallId) {
        let Ok((_, call)) = self.call(id) else { return };
        let Some(at) = expires_at(call) else { return };
        // One timer a call is enough for the 7 days: it looks again when it is due. A cleared call gets one of its own.
        if call.cleared_ms.is_some() || self.expiring.insert(id) {
            self.timers.set(at, Due::Expire(id));
        }
    }

    pub(super) fn expire(&mut self, now: Millis, id: CallId) {
        let Ok((shard, call)) = self.call(id) else {
            self.expiring.remove(&id);
            return;
        };
        match expires_at(call) {
            Some(at) if at <= now => {}
            later => {
                self.expiring.remove(&id);
                if later.is_some() {
                    self.plan_expiry(id);
                }
                return;
            }
        }
        self.expiring.remove(&id);
        let Some(home) = self.homes.get_mut(&shard) else { return };
        let Some(call) = home.state.forget(id) else { return };
        let index = home.next;
        home.next += 1;
        self.effects.push(Effect::Drop { shard, index, call: id });
        self.forget_names(&call.open);
        for ticket in self.polls_of.get(&id).cloned().unwrap_or_default() {
            self.drop_poll(ticket, Refused::NoCall { call: id });
        }
    }
}
