//! What time ends: apps whose clients are gone, calls that nothing will answer, apps and secrets that nobody needs.
//!
//! Each round starts from the state, so what an earlier round, or a node that has died meanwhile, left half done is done
//! by the next. What to end is decided in pure functions; this loop only asks the clock.

use std::time::{Duration, Instant};

use shoal_calls::calls::Load;
use shoal_state::model::SandboxEnd;
use shoal_state::{AppId, Command, FunctionId, SecretId, State, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api};

/// How often is looked.
const EVERY: Duration = Duration::from_secs(1);
/// After how many rounds apps and secrets are looked at.
const REGISTRY_ROUNDS: u32 = 60;
/// After how many rounds dicts and queues are looked at.
const OBJECTS_ROUNDS: u32 = 30;
/// How long a secret without a name and without a use is kept, in milliseconds: longer than the longest build.
const UNUSED_MS: u64 = 86_400_000;
/// How long it is known how a sandbox ended, in milliseconds.
const ENDED_SANDBOX_MS: u64 = 86_400_000;
/// The most commands of one round.
const COMMANDS_MAX: usize = 100;

/// Looks until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    for round in 0u32.. {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
        end_abandoned_apps(&api).await;
        if round % OBJECTS_ROUNDS == 0
            && let Err(error) = api::object::sweep(&api).await
        {
            tracing::debug!(%error, "cannot look which dicts and queues have ended; it is tried again");
        }
        if !api.cluster.raft().leads() {
            continue;
        }
        let orphans = orphans(&api.local(), &api.reports.load(&api.local()));
        if !orphans.is_empty() {
            api.calls_stop(&orphans).await;
        }
        if round % REGISTRY_ROUNDS == 0 {
            forget(&api).await;
        }
    }
}

async fn end_abandoned_apps(api: &Api) {
    let state = api.local();
    let (elsewhere, leads) = (api.reports.clients_elsewhere(&state), api.cluster.raft().leads());
    for (app, why) in api.lifecycle.abandoned(&state, Instant::now(), elsewhere.as_ref(), leads, |app| api::app::works(api, app)) {
        if let Err(error) = api::app::stop(api, app, why).await {
            tracing::warn!(%app, %error, "cannot stop an abandoned app");
        }
    }
}

/// Returns functions with inputs that nothing will ever take: their app was stopped.
fn orphans(state: &State, load: &Load) -> Vec<FunctionId> {
    let waits = load.pools.iter().filter(|(_, pool)| pool.waiting + pool.delayed > 0);
    let gone = |id: &FunctionId| {
        let app = state.functions.get(id).and_then(|function| state.apps.get(&function.app));
        app.is_some_and(|app| app.stopped.is_some())
    };
    waits.map(|(id, _)| *id).filter(gone).collect()
}

/// Returns what forgets the sandboxes that ended long ago.
fn old_sandboxes(state: &State, now: Timestamp) -> Option<Command> {
    let old = |ended: &SandboxEnd| now.0.saturating_sub(ended.at.0) > ENDED_SANDBOX_MS;
    let ended = state.sandboxes.iter().filter(|(_, sandbox)| sandbox.ended.as_ref().is_some_and(old));
    let ids: Vec<_> = ended.map(|(id, _)| *id).take(COMMANDS_MAX).collect();
    (!ids.is_empty()).then_some(Command::ForgetSandboxes { ids })
}

async fn forget(api: &Api) {
    let (state, now) = (api.local(), api.now());
    let apps = old_apps(&state, now, api.config.disk.stopped_apps_ms()).into_iter().map(|id| Command::RemoveApp { id });
    let secrets = unused_secrets(&state, now).into_iter().map(|id| Command::RemoveSecret { id });
    let bound = api::bound::unused(&state, &api.reports.load(&state), now);
    let sandboxes = old_sandboxes(&state, now);
    let commands: Vec<Command> = apps.chain(secrets).take(COMMANDS_MAX).chain(bound).chain(sandboxes).collect();
    if !commands.is_empty()
        && let Err(error) = api.propose_all(commands).await
    {
        tracing::warn!(%error, "cannot forget what nobody needs");
    }
}

/// Returns apps that were stopped at least so many milliseconds ago.
fn old_apps(state: &State, now: Timestamp, kept_ms: u64) -> Vec<AppId> {
    let old = |at: Timestamp| at.0.saturating_add(kept_ms) <= now.0;
    let stopped = state.apps.iter().filter(|(_, app)| app.stopped.as_ref().is_some_and(|(at, _)| old(*at)));
    stopped.map(|(id, _)| *id).filter(|id| !state.tasks.values().any(|task| task.app == *id)).collect()
}

/// Returns secrets without a name that no function has, nor had in a version that can come back.
fn unused_secrets(state: &State, now: Timestamp) -> Vec<SecretId> {
    let current = state.functions.values().chain(state.staged.values());
    let releases = state.releases.values().flatten().filter_map(|release| release.contents.as_ref());
    let old = releases.flat_map(|contents| contents.functions.values());
    let used: std::collections::BTreeSet<SecretId> = current.chain(old).flat_map(|function| function.secrets.iter().copied()).collect();
    let unused = state.secrets.iter().filter(|(id, secret)| {
        let young = secret.updated.0 + UNUSED_MS > now.0;
        secret.name.is_empty() && !young && !used.contains(id)
    });
    unused.map(|(id, _)| *id).collect()
}

#[cfg(test)]
mod tests {
    use shoal_calls::calls::PoolLoad;
    use shoal_state::model::{App, AppState, Environment, Function, Secret};
    use shoal_state::{Digest, EnvironmentId, VERSION_KNOWN};

    use super::*;

    fn environment() -> EnvironmentId {
        EnvironmentId::from_random(1)
    }

    fn state_with_apps(count: u64) -> State {
        let mut state = State::default();
        let apply = |state: &mut State, command| drop(state.apply(&command).expect("it is taken"));
        apply(&mut state, Command::SetVersion { version: VERSION_KNOWN });
        apply(&mut state, Command::CreateEnvironment { environment: Environment::new(environment(), "main", Timestamp(0)) });
        for number in 1..=count {
            let app = App::new(environment(), AppState::Ephemeral, Timestamp(0));
            apply(&mut state, Command::CreateApp { id: AppId::from_random(number.into()), app });
        }
        state
    }

    fn function(app: u64, secrets: Vec<SecretId>) -> Function {
        Function { secrets, ..Function::new(AppId::from_random(app.into()), "f", Timestamp(0)) }
    }

    fn stop(state: &mut State, app: u64, at: u64) {
        state.apply(&Command::StopApp { id: AppId::from_random(app.into()), at: Timestamp(at), why: String::new() }).expect("it stops");
    }

    #[test]
    fn inputs_of_stopped_apps_are_orphans() {
        let mut state = state_with_apps(2);
        for app in [1, 2] {
            let put = Command::PutFunction { id: FunctionId::from_random(u128::from(app)), function: Box::new(function(app, vec![])) };
            state.apply(&put).expect("it is taken");
        }
        stop(&mut state, 2, 5);
        let mut load = Load::default();
        for number in 1..=2 {
            load.pools.insert(FunctionId::from_random(number), PoolLoad { waiting: 1, ..PoolLoad::default() });
        }
        assert_eq!(orphans(&state, &load), [FunctionId::from_random(2)]);
    }

    #[test]
    fn stopped_apps_are_forgotten_after_the_time_that_the_configuration_says() {
        let mut state = state_with_apps(2);
        stop(&mut state, 1, 1000);
        let days = |stopped_apps_days| crate::config::Disk { stopped_apps_days, ..Default::default() }.stopped_apps_ms();
        for kept_ms in [days(7), days(1), 0] {
            assert!(old_apps(&state, Timestamp(999 + kept_ms), kept_ms).is_empty());
            assert_eq!(old_apps(&state, Timestamp(1000 + kept_ms), kept_ms), [AppId::from_random(1)]);
        }
        assert!(old_apps(&state, Timestamp(u64::MAX / 2), days(u64::MAX)).is_empty(), "for ever");
    }

    #[test]
    fn secrets_without_a_name_go_when_nothing_uses_them() {
        let mut state = state_with_apps(1);
        for (number, name) in [(1, ""), (2, ""), (3, "named")] {
            let secret = Secret {
                environment: environment(),
                name: name.to_owned(),
                keys: vec![],
                sealed: vec![],
                content_hash: Digest::of(b""),
                updated: Timestamp(0),
            };
            let (id, secret) = (SecretId::from_random(number), Box::new(secret));
            state.apply(&Command::WriteSecret { id, secret, app: None, by: String::new(), expected: None }).expect("it is taken");
        }
        let put = Command::PutFunction { id: FunctionId::from_random(1), function: Box::new(function(1, vec![SecretId::from_random(2)])) };
        state.apply(&put).expect("it is taken");
        assert!(unused_secrets(&state, Timestamp(UNUSED_MS - 1)).is_empty());
        assert_eq!(unused_secrets(&state, Timestamp(UNUSED_MS)), [SecretId::from_random(1)]);
    }
}
