//! Sandboxes: each is a function of the same number that has one container, once.

use super::{Applied, State};
use crate::model::{Function, Sandbox, SandboxEnd, SandboxEndBy, TaskEnd, Timestamp};
use crate::{AppId, Event, FunctionId, Refused, SandboxId, TaskId};

impl SandboxId {
    /// Returns the function that holds what the sandbox's container needs.
    pub const fn function(self) -> FunctionId {
        FunctionId::from_random(self.bits())
    }

    /// Returns the sandbox whose function this would be.
    pub const fn of(function: FunctionId) -> Self {
        Self::from_random(function.bits())
    }
}

impl State {
    pub(super) fn create_sandbox(&mut self, id: SandboxId, sandbox: &Sandbox, function: &Function) -> Applied {
        if self.sandboxes.contains_key(&id) {
            // The same request again: ids are derived from theirs.
            return Ok(vec![]);
        }
        self.live_app(sandbox.app)?;
        self.has_parts(id.function(), function)?;
        self.sandboxes.insert(id, sandbox.clone());
        self.functions.insert(id.function(), Function { app: sandbox.app, ..function.clone() });
        Ok(vec![Event::FunctionChanged(id.function())])
    }

    /// Ends a sandbox; the first end counts. Its container, if it has one, is asked to stop.
    pub(super) fn end_sandbox(&mut self, id: SandboxId, end: &SandboxEnd) -> Applied {
        let sandbox = self.sandboxes.get_mut(&id).ok_or(Refused::NoSandbox { id })?;
        if sandbox.ended.is_some() {
            return Ok(vec![]);
        }
        sandbox.ended = Some(end.clone());
        let tasks: Vec<TaskId> = self.tasks_of.get(&id.function()).into_iter().flatten().copied().collect();
        if tasks.is_empty() {
            self.functions.remove(&id.function());
        }
        let mut events = vec![Event::FunctionChanged(id.function())];
        for task in tasks {
            events.extend(self.stop_task(task, &end.how)?);
        }
        Ok(events)
    }

    /// A sandbox ends with its container, whatever ended that.
    pub(super) fn sandbox_task_ended(&mut self, function: FunctionId, end: &TaskEnd) {
        if let Some(sandbox) = self.sandboxes.get_mut(&SandboxId::of(function)) {
            sandbox.ended.get_or_insert_with(|| SandboxEnd { at: end.at, by: SandboxEndBy::Platform, how: end.how.clone() });
            self.functions.remove(&function);
        }
    }

    /// Ends the sandboxes of an app that was stopped.
    pub(super) fn end_sandboxes_of(&mut self, app: AppId, at: Timestamp, why: &str) {
        let of_app = |sandbox: &Sandbox| sandbox.app == app && sandbox.ended.is_none();
        let live: Vec<SandboxId> = self.sandboxes.iter().filter(|(_, sandbox)| of_app(sandbox)).map(|(id, _)| *id).collect();
        for id in live {
            let end = SandboxEnd { at, by: SandboxEndBy::Termination, how: why.to_owned() };
            // Its tasks were asked to stop with the app's.
            let _ = self.end_sandbox(id, &end);
        }
    }

    pub(super) fn forget_sandboxes_of(&mut self, app: AppId) {
        let of_app: Vec<SandboxId> = self.sandboxes.iter().filter(|(_, sandbox)| sandbox.app == app).map(|(id, _)| *id).collect();
        of_app.iter().for_each(|id| drop(self.sandboxes.remove(id)));
    }

    pub(super) fn forget_sandboxes(&mut self, ids: &[SandboxId]) -> Applied {
        for id in ids {
            if self.sandboxes.get(id).is_some_and(|sandbox| sandbox.ended.is_some()) && !self.tasks_of.contains_key(&id.function()) {
                self.sandboxes.remove(id);
            }
        }
        Ok(vec![])
    }
}
