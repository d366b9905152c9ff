//! Who may call what: the policy of the whole API, in this one module.
//!
//! Three questions are asked of each call, in this order:
//!
//! 1. *Who may call this method at all?* [`rules`] has one line for each method: a client, a container, or either; and
//!    whether the method only looks, changes something, or brings something new. The door ([`super::transport`]) asks before it reads the request.
//! 2. *What does this request name?* [`names`] says for each kind of request which environment, app, function, call,
//!    secret or task it is about. A request without an answer here does not compile.
//! 3. *Is that within the caller's limits?* [`permit`] asks when the request is read, before the method runs.
//!
//! Limits come from the token: one environment, or only looking. Containers have their task's channel instead of a token,
//! and are limited where otherwise a limited token could go round its limits through them: in an environment that some
//! token was ever limited to, they stay within it.
//!
//! What a method owes to the one task that calls it (its own function, its own inputs) is checked where it is done, in
//! [`super::container`], against the same [`Identity`].
//!
//! Images, files and blobs are of no environment: their ids are hashes, or as hard to guess.

mod names;
mod rules;

use std::collections::BTreeSet;

use shoal_state::model::{TokenLimits, TokenPurpose};
use shoal_state::{AppId, CallId, ClassId, EnvironmentId, FunctionId, GangId, InputId, ObjectId, QueueId, SecretId, State, TaskId};

use super::error::Error;
use super::{Api, Caller, Identity, environment, input_token, sandbox};
use crate::room::Room;
pub(crate) use names::{Names, Thing};
use rules::{Does, Who, rule};

/// Checks a caller against the rule of a method, before the request is read.
pub(crate) fn admit(state: &State, room: &Room, method: &str, identity: Identity) -> Result<(), Error> {
    let Some((who, does)) = rule(method) else {
        return Err(Error::Unimplemented(format!("Shoal does not serve {method} yet")));
    };
    match (who, identity) {
        (Who::Client, Identity::Task(task)) => {
            return Err(Error::Denied(format!("{method} may not be called from a container (task {task}); call it from a client")));
        }
        (Who::Task, Identity::Client(_)) => {
            return Err(Error::Denied(format!("{method} is for containers: it is answered on a task's own channel only")));
        }
        _ => {}
    }
    if does != Does::Look && limits(state, identity).reads_only {
        return Err(only_looks(identity, method));
    }
    if does == Does::Add { room.check() } else { Ok(()) }
}

fn only_looks(identity: Identity, method: &str) -> Error {
    Error::Denied(format!(
        "{identity} is for looking alone (purpose reader), and {method} changes something: use another token, or make one on a node with `shoal token create`"
    ))
}

/// Checks what a request names against the limits of its caller, before the method runs.
pub(crate) async fn permit(api: &Api, caller: &Caller, request: &impl Names) -> Result<(), Error> {
    // A function of a build is no task of the state.
    let build = if let Identity::Task(task) = caller.identity { api.build_functions.app_of(task) } else { None };
    let limits = match build {
        Some(app) => limits_of_code(&api.local(), Some(app)),
        None => limits(&api.local(), caller.identity),
    };
    if request.creates() {
        if limits.reads_only {
            return Err(only_looks(caller.identity, &caller.method));
        }
        api.room.check()?;
    }
    let Some(own) = limits.environment else { return Ok(()) };
    for thing in request.names() {
        if matches!((&thing, caller.identity), (Thing::Token(id), Identity::Client(itself)) if *id == itself.to_string()) {
            continue;
        }
        if let Some(other) = place(api, &thing).await?
            && other != Place::In(own)
        {
            return Err(outside(&api.local(), caller.identity, own, &thing, other));
        }
    }
    Ok(())
}

/// Where a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    In(EnvironmentId),
    /// In no single one.
    Everywhere,
}

/// Finds where a thing is; `None` when there is no such thing, which the method will say.
async fn place(api: &Api, thing: &Thing<'_>) -> Result<Option<Place>, Error> {
    let function = match thing {
        Thing::Cluster(_) | Thing::Token(_) => return Ok(Some(Place::Everywhere)),
        Thing::Environment(name) => {
            let state = api.read_latest_unless(|state| state.environment_named(name).is_some()).await?;
            return Ok(Some(Place::In(environment::find(&state, name)?.id)));
        }
        Thing::Call(id) => call_of(api, id.parse().ok()).await,
        Thing::Input(input, call) => {
            let call = input_token::read::<CallId>(call)?.1;
            let input: InputId = input_token::read(input)?.1;
            let inputs = api.calls.inputs(call).await.unwrap_or_default();
            if !inputs.iter().any(|info| info.input == input) {
                return Err(Error::NotFound(format!("input {input} is not one of call {call}")));
            }
            call_of(api, Some(call)).await
        }
        _ => None,
    };
    let find = |state: &State| place_in(state, thing, function);
    Ok(find(&*api.read_latest_unless(|state| find(state).is_some()).await?))
}

async fn call_of(api: &Api, call: Option<CallId>) -> Option<FunctionId> {
    Some(api.calls.info(call?).await.ok()?.open.function)
}

/// Finds where a thing of the state is. `function` is that of a call or an input.
fn place_in(state: &State, thing: &Thing<'_>, function: Option<FunctionId>) -> Option<Place> {
    let of_app = |id: AppId| state.apps.get(&id).map(|app| Place::In(app.environment));
    let of_function = |id: FunctionId| of_app(state.functions.get(&id)?.app);
    match thing {
        Thing::App(id) => of_app(id.parse().ok()?),
        Thing::Function(id) => of_function(id.parse().ok()?),
        Thing::Class(id) => of_app(state.classes.get(&id.parse::<ClassId>().ok()?)?.app),
        Thing::Task(id) => of_app(state.tasks.get(&id.parse::<TaskId>().ok()?)?.app),
        Thing::Gang(id) => of_function(state.gangs.get(&id.parse::<GangId>().ok()?)?.function),
        Thing::Sandbox(id) => of_app(state.sandboxes.get(&sandbox::parse(id).ok()?)?.app),
        Thing::Secret(id) => Some(Place::In(state.secrets.get(&id.parse::<SecretId>().ok()?)?.environment)),
        Thing::Object(id) => Some(Place::In(state.objects.get(&id.parse::<ObjectId>().ok()?)?.environment)),
        Thing::Call(_) | Thing::Input(..) => of_function(function?),
        Thing::Environment(_) | Thing::Cluster(_) | Thing::Token(_) => None,
    }
}

fn outside(state: &State, identity: Identity, own: EnvironmentId, thing: &Thing<'_>, place: Place) -> Error {
    let name = |id: &EnvironmentId| state.environments.get(id).map_or_else(|| format!("{id} (deleted)"), |found| found.name.clone());
    let own = name(&own);
    let limited = match identity {
        Identity::Client(_) => format!("{identity} is limited to environment '{own}'"),
        Identity::Task(_) => format!("{identity} runs in environment '{own}', which tokens are limited to, and is limited to it too"),
    };
    let cure = format!("choose '{own}' with `--env {own}` or MODAL_ENVIRONMENT={own}");
    Error::Denied(match (thing, place) {
        (Thing::Environment(_), Place::In(other)) => {
            let other = name(&other);
            format!("{limited} and may not use '{other}': {cure}, or make a token for '{other}' on a node with `shoal token create`")
        }
        (_, Place::In(other)) => {
            let (what, other) = (what(thing), name(&other));
            format!(
                "{limited} and may not use {what}, which is in '{other}': make a token for '{other}' on a node with `shoal token create`"
            )
        }
        (_, Place::Everywhere) => {
            let what = what(thing);
            format!("{limited} and may not change {what}: use a token without limits, from `shoal token create` on a node")
        }
    })
}

fn what(thing: &Thing<'_>) -> String {
    match thing {
        Thing::Environment(name) => format!("environment '{name}'"),
        Thing::Cluster(name) => format!("which environments there are ('{name}')"),
        Thing::App(id) => format!("app {id}"),
        Thing::Function(id) => format!("function {id}"),
        Thing::Class(id) => format!("class {id}"),
        Thing::Call(id) => format!("call {id}"),
        Thing::Input(..) => "this input".to_owned(),
        Thing::Task(id) => format!("container {id}"),
        Thing::Gang(id) => format!("cluster {id}"),
        Thing::Sandbox(id) => format!("sandbox {id}"),
        Thing::Secret(id) => format!("secret {id}"),
        Thing::Token(id) => format!("token {id}"),
        Thing::Object(id) => format!("{} {id}", if id.starts_with(QueueId::PREFIX) { "queue" } else { "dict" }),
    }
}

/// Returns the limits of a caller.
pub(crate) fn limits(state: &State, identity: Identity) -> TokenLimits {
    match identity {
        Identity::Client(id) => match state.tokens.get(&id).map(|token| token.purpose) {
            Some(TokenPurpose::Limited(limits)) => limits,
            _ => TokenLimits::default(),
        },
        Identity::Task(id) => limits_of_code(state, state.tasks.get(&id).map(|task| task.app)),
    }
}

/// Returns the limits of code that runs for an app.
fn limits_of_code(state: &State, app: Option<AppId>) -> TokenLimits {
    let own = app.and_then(|app| state.apps.get(&app)).map(|app| app.environment);
    TokenLimits { environment: own.filter(|own| fenced(state).contains(own)), reads_only: false }
}

/// Returns the environments that a token with which code can be brought was ever limited to.
fn fenced(state: &State) -> BTreeSet<EnvironmentId> {
    let limits = state.tokens.values().filter_map(|token| match token.purpose {
        TokenPurpose::Limited(limits) if !limits.reads_only => limits.environment,
        _ => None,
    });
    limits.collect()
}

#[cfg(test)]
mod tests;
