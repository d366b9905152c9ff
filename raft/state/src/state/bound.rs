//! Bound functions: made from their parents, changed with them, forgotten when nobody uses them.

use super::{Applied, State};
use crate::model::{Bound, Function};
use crate::{Event, FunctionId, Refused, Timestamp};

impl State {
    /// Returns what is known of a function that was bound from another one.
    pub fn bound_of(&self, id: FunctionId) -> Option<&Bound> {
        let parent = self.functions.get(&id)?.parent?;
        self.bound.get(&parent)?.get(&id)
    }

    pub(super) fn bind_function(&mut self, id: FunctionId, bound: &Bound) -> Applied {
        let parent = self.functions.get(&bound.parent).ok_or(Refused::NoFunction { id: bound.parent })?.clone();
        if parent.parent.is_some() {
            return Err(Refused::BoundAlready { id: bound.parent });
        }
        if id == bound.parent || self.functions.get(&id).is_some_and(|other| other.parent != Some(bound.parent)) {
            return Err(Refused::OtherParent { id, parent: bound.parent });
        }
        self.live_app(parent.app)?;
        if let Some(known) = self.bound.get_mut(&bound.parent).and_then(|of| of.get_mut(&id)) {
            known.used = known.used.max(bound.used);
            return Ok(vec![]);
        }
        let function = bound.of(&parent);
        self.has_parts(id, &function)?;
        self.functions.insert(id, function);
        self.bound.entry(bound.parent).or_default().insert(id, bound.clone());
        Ok(vec![Event::FunctionChanged(id)])
    }

    pub(super) fn use_bound(&mut self, id: FunctionId, at: Timestamp) -> Applied {
        let parent = self.functions.get(&id).and_then(|function| function.parent);
        let bound = parent.and_then(|parent| self.bound.get_mut(&parent)?.get_mut(&id)).ok_or(Refused::NoFunction { id })?;
        bound.used = bound.used.max(at);
        Ok(vec![])
    }

    /// Forgets those of the functions that nobody used since, and that have no tasks.
    pub(super) fn forget_bound(&mut self, ids: &[FunctionId], unused_since: Timestamp) -> Applied {
        let mut events = Vec::new();
        for id in ids {
            let unused = self.bound_of(*id).is_some_and(|bound| bound.used <= unused_since);
            let runs = self.tasks_of.get(id).is_some_and(|tasks| !tasks.is_empty());
            if !unused || runs {
                continue;
            }
            if let Some(parent) = self.functions.remove(id).and_then(|function| function.parent)
                && let Some(of) = self.bound.get_mut(&parent)
            {
                of.remove(id);
                if of.is_empty() {
                    self.bound.remove(&parent);
                }
            }
            events.push(Event::FunctionChanged(*id));
        }
        Ok(events)
    }

    /// Puts a function in place, and with it what is bound from it.
    pub(super) fn define(&mut self, id: FunctionId, function: Function, events: &mut Vec<Event>) {
        for (id, bound) in self.bound.get(&id).into_iter().flatten() {
            self.functions.insert(*id, bound.of(&function));
            events.push(Event::FunctionChanged(*id));
        }
        self.functions.insert(id, function);
        events.push(Event::FunctionChanged(id));
    }
}
