//! Environments, and the builder version that decides what image commands a client sends.

use futures::future::join_all;
use shoal_proto::modal_client as pb;
use shoal_state::model::{Environment, EnvironmentChange};
use shoal_state::{Command, ENVIRONMENT_DEFAULT, EnvironmentId, FunctionId, SETTING_DEFAULT, State};

use super::error::Error;
use super::{Api, Caller, seconds};

/// Finds an environment by name, or says which there are.
pub(super) fn find<'a>(state: &'a State, name: &str) -> Result<&'a Environment, Error> {
    state.environment_named(name).ok_or_else(|| {
        let known: Vec<&str> = state.environments.values().map(|environment| environment.name.as_str()).collect();
        Error::NotFound(format!("Environment '{name}' not found. There are: {}", known.join(", ")))
    })
}

/// Finds an environment by name in the local state, or in the latest when it is not there.
pub(super) async fn find_latest(api: &Api, name: &str) -> Result<Environment, Error> {
    let state = api.read_latest_unless(|state| state.environment_named(name).is_some()).await?;
    find(&state, name).cloned()
}

/// How many dicts and queues of a deleted environment are let go of at once.
const OBJECTS_AT_ONCE: usize = 16;

/// The builder versions that clients know.
const BUILDER_VERSIONS: [&str; 6] = ["2023.12", "2024.04", "2024.10", "2025.06", "2026.10", "PREVIEW"];

/// The builder version that was set for an environment, if one was.
fn builder_version_of(state: &State, environment: EnvironmentId) -> Option<&str> {
    let settings = state.environment_settings.get(&environment)?;
    Some(settings.builder_version.as_str()).filter(|version| !version.is_empty())
}

/// The newest builder version that a client knows and the environment's setting, or else the configuration, allows.
///
/// Clients refuse versions that they do not know, so each is told what suits it. Compared as text, as clients do.
fn builder_version(api: &Api, caller: &Caller, state: &State, environment: &Environment) -> String {
    let configured = builder_version_of(state, environment.id).unwrap_or(&api.config.images.builder_version);
    let mut numbers = caller.client_version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let known = match version {
        (0, ..) | (1, 0, _) if version != (1, 0, 0) || caller.client_type == "1" => "2024.10",
        (1, 1..=5, _) | (1, 6, 0..=2) => "2025.06",
        _ => "2026.10",
    };
    configured.min(known).to_owned()
}

fn metadata(api: &Api, caller: &Caller, state: &State, environment: &Environment) -> pb::EnvironmentMetadata {
    pb::EnvironmentMetadata {
        name: environment.name.clone(),
        settings: Some(pb::EnvironmentSettings {
            image_builder_version: builder_version(api, caller, state, environment),
            webhook_suffix: environment.webhook_suffix.clone(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) async fn get_or_create(
    api: &Api,
    caller: &Caller,
    request: pb::EnvironmentGetOrCreateRequest,
) -> Result<pb::EnvironmentGetOrCreateResponse, Error> {
    let name = &request.deployment_name;
    let create = request.object_creation_type() == pb::ObjectCreationType::CreateIfMissing && !name.is_empty();
    if create && api.local().environment_named(name).is_none() {
        make(api, caller, name).await?;
    }
    let state = api.read_latest_unless(|state| state.environment_named(name).is_some()).await?;
    let environment = find(&state, name)?;
    Ok(pb::EnvironmentGetOrCreateResponse {
        environment_id: environment.id.to_string(),
        metadata: Some(metadata(api, caller, &state, environment)),
    })
}

fn check_name(name: &str) -> Result<(), Error> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(valid) {
        return Err(Error::Invalid(format!("{name:?} cannot name an environment: use up to 64 letters, digits, '-', '_' and '.'")));
    }
    Ok(())
}

/// Turns a name into what labels of web endpoints may end with.
fn suffix_of(state: &State, name: &str) -> String {
    if name == ENVIRONMENT_DEFAULT && state.environments.is_empty() {
        return String::new();
    }
    let plain = name.to_ascii_lowercase().replace(['_', '.'], "-");
    let taken = |suffix: &String| state.environments.values().any(|environment| environment.webhook_suffix == *suffix);
    let numbered = (2..).map(|number| format!("{plain}-{number}"));
    std::iter::once(plain.clone()).chain(numbered).find(|suffix| !taken(suffix)).unwrap_or_default()
}

fn check_suffix(suffix: &str) -> Result<(), Error> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if suffix.len() > 32 || !suffix.chars().all(valid) || suffix.starts_with('-') || suffix.ends_with('-') {
        return Err(Error::Invalid(format!(
            "{suffix:?} cannot be a web suffix: host names take up to 32 lower-case letters, digits and '-', none at an end"
        )));
    }
    Ok(())
}

async fn make(api: &Api, caller: &Caller, name: &str) -> Result<(), Error> {
    check_name(name)?;
    let environment = Environment {
        // Not of the name: another environment may have had it, and lives on under a new one.
        id: EnvironmentId::derive(&[&caller.identity.scope(), caller.key().as_bytes()]),
        name: name.to_owned(),
        webhook_suffix: suffix_of(&api.local(), name),
        created: api.now(),
    };
    api.propose(Command::CreateEnvironment { environment }).await
}

pub(super) async fn create(api: &Api, caller: &Caller, request: pb::EnvironmentCreateRequest) -> Result<(), Error> {
    if request.is_managed || !request.default_member_role_str.is_empty() || request.default_member_role.is_some() {
        return Err(Error::Unimplemented(
            "Shoal has no members with roles: create the environment without --restricted, and limit tokens to it with `shoal token create`"
                .to_owned(),
        ));
    }
    make(api, caller, &request.name).await
}

/// Removes an environment with everything in it; its containers are asked to end.
pub(super) async fn delete(api: &Api, _caller: &Caller, request: pb::EnvironmentDeleteRequest) -> Result<(), Error> {
    let state = api.read_latest().await?;
    if request.name.is_empty() {
        return Err(Error::Invalid("the environment to delete has no name in this request".to_owned()));
    }
    let id = find(&state, &request.name)?.id;
    let within = |app| state.apps.get(app).is_some_and(|app| app.environment == id);
    let functions: Vec<FunctionId> =
        state.functions.iter().filter(|(_, function)| within(&function.app)).map(|(function, _)| *function).collect();
    api.propose(Command::RemoveEnvironment { id, at: api.now(), why: format!("environment '{}' was deleted", request.name) }).await?;
    api.calls_stop(&functions).await;
    // What was made since the state was read is found by the next look at what has ended.
    let objects: Vec<_> = state.objects.iter().filter(|(_, object)| object.environment == id).map(|(object, _)| *object).collect();
    for objects in objects.chunks(OBJECTS_AT_ONCE) {
        join_all(objects.iter().map(|object| super::object::close(api, *object))).await;
    }
    Ok(())
}

pub(super) async fn update(api: &Api, _caller: &Caller, request: pb::EnvironmentUpdateRequest) -> Result<pb::EnvironmentListItem, Error> {
    let limits = request.max_concurrent_tasks.is_some() || request.max_concurrent_gpus.is_some();
    if limits || request.block_unauthenticated_resources.is_some() {
        return Err(Error::Unimplemented(
            "Shoal has no limits of tasks, GPUs or open web endpoints for an environment yet; set names, web suffixes and builder versions"
                .to_owned(),
        ));
    }
    let change =
        EnvironmentChange { name: request.name, webhook_suffix: request.web_suffix, builder_version: request.image_builder_version };
    change.name.as_deref().map(check_name).transpose()?;
    change.webhook_suffix.as_deref().map(check_suffix).transpose()?;
    if let Some(version) = change.builder_version.as_deref().filter(|version| !version.is_empty())
        && !BUILDER_VERSIONS.contains(&version)
    {
        return Err(Error::Invalid(format!("there is no image builder version {version:?}; there are {}", BUILDER_VERSIONS.join(", "))));
    }
    let id = find(&*api.read_latest().await?, &request.current_name)?.id;
    api.propose(Command::UpdateEnvironment { id, change }).await?;
    let state = api.local();
    let environment = state.environments.get(&id).ok_or_else(|| Error::NotFound(format!("Environment '{id}' not found")))?;
    Ok(item(&state, environment))
}

fn item(state: &State, environment: &Environment) -> pb::EnvironmentListItem {
    let of = |app| state.apps.get(app).is_some_and(|app| app.environment == environment.id);
    let tasks = || state.tasks.values().filter(|task| of(&task.app));
    pb::EnvironmentListItem {
        name: environment.name.clone(),
        webhook_suffix: environment.webhook_suffix.clone(),
        created_at: seconds(environment.created),
        default: state.environment_default().is_some_and(|default| default.id == environment.id),
        environment_id: environment.id.to_string(),
        current_concurrent_tasks: i32::try_from(tasks().count()).unwrap_or(i32::MAX),
        current_concurrent_gpus: i32::try_from(tasks().map(|task| task.gpus.len()).sum::<usize>()).unwrap_or(i32::MAX),
        image_builder_version: builder_version_of(state, environment.id).map(str::to_owned),
        ..Default::default()
    }
}

pub(super) async fn list(api: &Api, _caller: &Caller, (): ()) -> Result<pb::EnvironmentListResponse, Error> {
    let state = api.read_latest().await?;
    let mut environments: Vec<&Environment> = state.environments.values().collect();
    environments.sort_by_key(|environment| &environment.name);
    Ok(pb::EnvironmentListResponse { items: environments.into_iter().map(|environment| item(&state, environment)).collect() })
}

/// What holds for the whole cluster, as `modal workspace settings` shows it.
pub(super) async fn settings(api: &Api, _caller: &Caller, (): ()) -> Result<pb::WorkspaceSettingsResponse, Error> {
    let state = api.read_latest().await?;
    Ok(pb::WorkspaceSettingsResponse {
        default_environment_name: state.environment_default().map(|environment| environment.name.clone()).unwrap_or_default(),
        image_builder_version: api.config.images.builder_version.clone(),
    })
}

pub(super) async fn set_default(api: &Api, _caller: &Caller, request: pb::WorkspaceSetDefaultEnvironmentRequest) -> Result<(), Error> {
    if request.environment_name.is_empty() {
        return Err(Error::Invalid("the environment to become the default has no name in this request".to_owned()));
    }
    let id = find(&*api.read_latest().await?, &request.environment_name)?.id;
    api.propose(Command::SetSetting { key: SETTING_DEFAULT.to_owned(), value: id.to_string() }).await
}
