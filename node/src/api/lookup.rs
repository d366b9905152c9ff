//! Functions and classes by name, in the newest version of an app or in an older one.
//!
//! What answers calls under an app's name is its newest version. Of an older one that can still come back, a client may ask by number:
//! what it asks for is put in place beside the newest, under an id of its own, with containers of its own.

use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_state::model::{App, AppLayout, Environment, Function, pinned_id};
use shoal_state::{AppId, Command, FunctionId, State};

use super::error::Error;
use super::{Api, Caller, environment, function, input_plane};

/// How many names are listed where one is not found.
const NAMED_MAX: usize = 20;

/// Finds a deployed app by name, or says where to look.
fn deployed<'a>(state: &'a State, environment: &Environment, name: &str) -> Result<(AppId, &'a App), Error> {
    let found = state.app_deployed(environment.id, name).and_then(|id| Some((id, state.apps.get(&id)?)));
    found.ok_or_else(|| {
        let environment = &environment.name;
        Error::NotFound(format!(
            "App '{name}' not found in environment '{environment}': deploy it with `modal deploy`, or see what there is with `modal app list --env {environment}`"
        ))
    })
}

/// Returns the number of the version that is asked for, unless it is the one that answers calls; 0 asks for that one.
fn older(app: &App, version: i32) -> Result<Option<u32>, Error> {
    let newest = app.deployments.last().map_or(0, |last| last.version);
    let asked = u32::try_from(version).unwrap_or(u32::MAX);
    match app.deployments.iter().any(|deployment| deployment.version == asked) {
        _ if version == 0 || asked == newest => Ok(None),
        true => Ok(Some(asked)),
        false => Err(Error::NotFound(format!(
            "App '{name}' has no version {version}: its newest is {newest}; `modal app history {name}` shows all that are remembered",
            name = app.name
        ))),
    }
}

/// Says that an app has nothing of that name, and what it has.
fn no_such<'a>(app: &str, kind: &str, name: &str, there: impl Iterator<Item = &'a String>) -> Error {
    let there: Vec<&str> = there.map(String::as_str).take(NAMED_MAX).collect();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    Error::NotFound(format!("App '{app}' has no {kind} '{name}'. There are: {there}"))
}

/// Returns what an app consisted of at an older version.
fn layout_of<'a>(state: &'a State, id: AppId, app: &App, version: u32) -> Result<&'a AppLayout, Error> {
    let release = state.releases.get(&id).and_then(|releases| releases.iter().find(|release| release.version == version));
    let layout = release.and_then(|release| release.contents.as_ref()).map(|contents| &contents.layout);
    layout.ok_or_else(|| {
        let newest = app.deployments.last().map_or(0, |last| last.version);
        let name = &app.name;
        Error::NotFound(format!(
            "version {version} of app '{name}' is too old to be called: leave out the version to call the newest, {newest}"
        ))
    })
}

/// Puts a function in place as it was in an older version, unless it is there.
async fn pin(api: &Api, state: &State, app: AppId, of: FunctionId, version: u32) -> Result<(FunctionId, Function), Error> {
    let id = pinned_id(of, version);
    if !state.functions.contains_key(&id) {
        api.propose(Command::PinFunction { app, of, version, at: api.now() }).await?;
    }
    function::find(api, &id.to_string()).await
}

pub(super) async fn function_get(api: &Api, caller: &Caller, request: pb::FunctionGetRequest) -> Result<pb::FunctionGetResponse, Error> {
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?;
    let (app_id, app) = deployed(&state, environment, &request.app_name)?;
    let version = older(app, request.app_version)?;
    let layout = version.map_or(Ok(&app.layout), |version| layout_of(&state, app_id, app, version))?;
    let absent = || no_such(&request.app_name, "function", &request.object_tag, layout.functions.keys());
    let id = *layout.functions.get(&request.object_tag).ok_or_else(absent)?;
    let (id, function) = match version {
        None => (id, state.functions.get(&id).ok_or_else(absent)?.clone()),
        Some(version) => pin(api, &state, app_id, id, version).await?,
    };
    let bytes = function::definition(api, id, &function).await?;
    let view = pb::Function::decode(bytes.clone()).map_err(Error::failed(format!("cannot decode function {id}")))?;
    Ok(pb::FunctionGetResponse {
        function_id: id.to_string(),
        handle_metadata: Some(function::metadata_for(caller, id, &function, &view)),
        function: Some(function::function_data(&bytes, &view)),
        ..Default::default()
    })
}

pub(super) async fn class_get(api: &Api, caller: &Caller, request: pb::ClassGetRequest) -> Result<pb::ClassGetResponse, Error> {
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?;
    let (app_id, app) = deployed(&state, environment, &request.app_name)?;
    let version = older(app, request.app_version)?;
    let layout = version.map_or(Ok(&app.layout), |version| layout_of(&state, app_id, app, version))?;
    let absent = || no_such(&request.app_name, "class", &request.object_tag, layout.classes.keys());
    let id = layout.classes.get(&request.object_tag).ok_or_else(absent)?;
    let mut metadata = match version {
        None => function::class_metadata(api, &state, app, &request.object_tag).await?,
        Some(version) => {
            let service = layout.functions.get(&format!("{}.*", request.object_tag)).ok_or_else(absent)?;
            let (id, function) = pin(api, &state, app_id, *service, version).await?;
            function::class_metadata_of(api, id, &function).await?
        }
    };
    input_plane::offer_class(caller, &mut metadata);
    Ok(pb::ClassGetResponse { class_id: id.to_string(), handle_metadata: Some(metadata), ..Default::default() })
}
