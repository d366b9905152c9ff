//! Schedules, as the API sees them: what a decorator says of when its function is called, and what a deployment brings of that.
//!
//! Only deployed apps have schedules. They are staged under the deployment's request and become the app's with it.

use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_state::imbl::OrdMap;
use shoal_state::model::{Function, NewRelease, NewSchedule, Timing};
use shoal_state::{AppId, Command, DefinitionId, FunctionId, State, Timestamp};
use shoal_timing::Parts;

use super::Api;
use super::error::Error;

/// Reads when a function is to be called, or says what is wrong with that; none when it is called by nobody but callers.
fn timing(schedule: &pb::Schedule, now: Timestamp) -> Result<Option<Timing>, shoal_timing::Wrong> {
    use pb::schedule::ScheduleOneof;
    match &schedule.schedule_oneof {
        None => Ok(None),
        Some(ScheduleOneof::Cron(cron)) => shoal_timing::cron(&cron.cron_string, &cron.timezone, now).map(Some),
        Some(ScheduleOneof::Period(period)) => {
            let pb::schedule::Period { years, months, weeks, days, hours, minutes, seconds } = *period;
            shoal_timing::period(Parts { years, months, weeks, days, hours, minutes, seconds }).map(Some)
        }
    }
}

/// Reads a function's schedule with its first time after `at`.
fn schedule(tag: &str, view: &pb::Function, at: Timestamp) -> Result<Option<NewSchedule>, Error> {
    let wrong = |wrong| Error::Invalid(format!("Function '{tag}' cannot be called by a schedule: {wrong}"));
    let Some(timing) = view.schedule.as_ref().and_then(|schedule| timing(schedule, at).transpose()).transpose().map_err(wrong)? else {
        return Ok(None);
    };
    let next = shoal_timing::next_after(&timing, at, at).map_err(wrong)?;
    Ok(Some(NewSchedule { timing, next }))
}

/// Refuses a function whose schedule cannot be.
pub(super) fn check(tag: &str, view: &pb::Function, now: Timestamp) -> Result<(), Error> {
    schedule(tag, view, now).map(|_| ())
}

/// Returns the functions that a publish makes of an app: what is staged for it, else what there is.
pub(super) fn published(
    state: &State,
    functions: impl Iterator<Item = FunctionId>,
    definitions: &OrdMap<FunctionId, DefinitionId>,
) -> Vec<(FunctionId, Function)> {
    let staged = |id: FunctionId| state.staged.get(&(id, *definitions.get(&id)?));
    functions.filter_map(|id| Some((id, staged(id).or_else(|| state.functions.get(&id))?.clone()))).collect()
}

/// Returns the functions that a deployed app has once its version `of` is the newest again.
pub(super) fn released(state: &State, app: AppId, of: u32) -> Vec<(FunctionId, Function)> {
    let newest = state.apps.get(&app).and_then(|app| app.deployments.last()).is_some_and(|last| last.version == of);
    if newest {
        let layout = state.apps.get(&app).map(|app| app.layout.clone()).unwrap_or_default();
        return published(state, layout.functions.values().copied(), &OrdMap::new());
    }
    let mut releases = state.releases.get(&app).into_iter().flatten();
    let contents = releases.find(|release| release.version == of).and_then(|release| release.contents.as_ref());
    contents.map(|contents| contents.functions.iter().map(|(id, function)| (*id, function.clone())).collect()).unwrap_or_default()
}

/// Brings the schedules of the functions that a deployment consists of, so that they are the app's once it is published.
pub(super) async fn stage(api: &Api, app: AppId, new: &NewRelease, functions: Vec<(FunctionId, Function)>) -> Result<(), Error> {
    let at = new.deployment.at;
    let mut schedules = OrdMap::new();
    for (id, function) in functions {
        let view = pb::Function::decode(api.definition(&function.definition).await?);
        let view = view.map_err(Error::failed(format!("cannot decode function {id}")))?;
        if let Some(schedule) = schedule(&function.tag, &view, at)? {
            schedules.insert(id, schedule);
        }
    }
    if schedules.is_empty() {
        return Ok(());
    }
    api.propose(Command::StageSchedules { app, request: new.request, at, schedules }).await
}

/// Returns when any function of an app is called next by its schedule.
pub(super) fn next_run(state: &State, app: AppId) -> Option<Timestamp> {
    state.schedules.values().filter(|schedule| schedule.app == app).map(|schedule| schedule.next).min()
}
