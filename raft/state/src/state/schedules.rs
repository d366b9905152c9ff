//! Schedules: they come and go with the deployments of their apps, and each time that they name is fired once.
//!
//! Nothing here reads a clock or a calendar: whoever decides a firing says which time it is for and which is next. That it
//! is for the very time the schedule stands at is checked here, so that two who decide cannot fire the same time.

use imbl::OrdMap;

use super::{Applied, State};
use crate::model::{NewSchedule, Schedule, StagedSchedules};
use crate::{AppId, Digest, Event, FunctionId, Refused, Timestamp};

impl State {
    pub(super) fn stage_schedules(
        &mut self,
        app: AppId,
        request: Digest,
        at: Timestamp,
        schedules: &OrdMap<FunctionId, NewSchedule>,
    ) -> Applied {
        self.live_app(app)?;
        let published = self.releases.get(&app).is_some_and(|releases| releases.iter().any(|release| release.request == request));
        if !published {
            self.staged_schedules.insert((app, request), StagedSchedules { at, schedules: schedules.clone() });
        }
        Ok(vec![])
    }

    /// Makes what was staged for a deployment the schedules of its app. Who keeps its timing keeps its phase.
    pub(super) fn take_schedules(&mut self, app: AppId, request: Digest, at: Timestamp) {
        let staged = self.staged_schedules.remove(&(app, request)).map(|staged| staged.schedules).unwrap_or_default();
        self.forget_staged_schedules(app, at);
        for id in self.scheduled_of(app) {
            if !staged.contains_key(&id) {
                self.schedules.remove(&id);
            }
        }
        for (id, NewSchedule { timing, next }) in staged {
            match self.schedules.get(&id).filter(|known| known.app == app && known.timing == timing) {
                Some(_) => {}
                None => drop(self.schedules.insert(id, Schedule { app, timing, since: at, next, last: None })),
            }
        }
    }

    /// Forgets schedules that were to be published of an app, and were staged so long before a time that they won't be.
    pub(super) fn forget_staged_schedules(&mut self, app: AppId, at: Timestamp) {
        let of = self.staged_schedules.iter().filter(|((of, _), _)| *of == app);
        let stale = of.filter(|(_, staged)| staged.at.0.saturating_add(super::releases::STAGED_MS) <= at.0);
        let stale: Vec<_> = stale.map(|(place, _)| *place).collect();
        stale.iter().for_each(|place| drop(self.staged_schedules.remove(place)));
    }

    /// Ends the schedules of an app, with the firings that have no calls yet.
    pub(super) fn forget_schedules_of(&mut self, app: AppId) {
        self.forget_staged_schedules(app, Timestamp(u64::MAX));
        for id in self.scheduled_of(app) {
            self.schedules.remove(&id);
        }
        let of_app = |function: &FunctionId| self.functions.get(function).is_some_and(|function| function.app == app);
        let firings: Vec<_> = self.firings.iter().filter(|(function, _)| of_app(function)).copied().collect();
        for firing in firings {
            self.firings.remove(&firing);
        }
    }

    fn scheduled_of(&self, app: AppId) -> Vec<FunctionId> {
        self.schedules.iter().filter(|(_, schedule)| schedule.app == app).map(|(id, _)| *id).collect()
    }

    /// Counts the firings of a function that have no calls yet.
    pub fn firings_of(&self, function: FunctionId) -> usize {
        self.firings.range((function, Timestamp(0))..=(function, Timestamp(u64::MAX))).count()
    }

    pub(super) fn fire(&mut self, id: FunctionId, due: Timestamp, next: Timestamp) -> Applied {
        let schedule = self.schedules.get(&id).ok_or(Refused::NoSchedule { id })?;
        if schedule.next != due {
            return Err(Refused::NotDue { id, due: due.0, next: schedule.next.0 });
        }
        if next <= due {
            return Err(Refused::DueBefore { id, due: due.0, next: next.0 });
        }
        if self.firings_of(id) >= Schedule::FIRINGS_MAX {
            return Err(Refused::FiringsWait { id, count: Schedule::FIRINGS_MAX });
        }
        if let Some(schedule) = self.schedules.get_mut(&id) {
            (schedule.next, schedule.last) = (next, Some(due));
        }
        self.firings.insert((id, due));
        Ok(vec![Event::FunctionChanged(id)])
    }

    /// Notes that firings have their calls; those that are not there any more are nobody's business.
    pub(super) fn end_firings(&mut self, firings: &[(FunctionId, Timestamp)]) -> Applied {
        for firing in firings {
            self.firings.remove(firing);
        }
        Ok(vec![])
    }

    /// Sets a schedule's next time anew; nothing happens unless it stands at `from`.
    pub(super) fn reschedule(&mut self, id: FunctionId, from: Timestamp, next: Timestamp) -> Applied {
        let schedule = self.schedules.get_mut(&id).ok_or(Refused::NoSchedule { id })?;
        if schedule.next != from {
            return Err(Refused::NotDue { id, due: from.0, next: schedule.next.0 });
        }
        schedule.next = next;
        Ok(vec![Event::FunctionChanged(id)])
    }
}
