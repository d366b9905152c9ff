//! Environments, and the builder version that decides what image commands a client sends.

use shoal_proto::modal_client as pb;
use shoal_state::model::Environment;
use shoal_state::{Command, ENVIRONMENT_DEFAULT, EnvironmentId, State};

use super::error::Error;
use super::{Api, Caller, seconds};

/// Finds an environment by name, or says which there are.
pub(super) fn find<'a>(state: &'a State, name: &str) -> Result<&'a Environment, Error> {
    state.environment_named(name).ok_or_else(|| {
        let known: Vec<&str> = state.environments.values().map(|environment| environment.name.as_str()).collect();
        Error::NotFound(format!("Environment '{name}' not found. There are: {}", known.join(", ")))
    })
}

/// The newest builder version that a client knows and the configuration allows.
///
/// Clients refuse versions that they do not know, so each is told what suits it. Compared as text, as clients do.
fn builder_version(api: &Api, caller: &Caller) -> String {
    let configured = api.config.images.builder_version.as_str();
    let mut numbers = caller.client_version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let known = match version {
        (0, ..) | (1, 0, _) if version != (1, 0, 0) || caller.client_type == "1" => "2024.10",
        (1, 1..=5, _) | (1, 6, 0..=2) => "2025.06",
        _ => "2026.10",
    };
    configured.min(known).to_owned()
}

fn metadata(api: &Api, caller: &Caller, environment: &Environment) -> pb::EnvironmentMetadata {
    pb::EnvironmentMetadata {
        name: environment.name.clone(),
        settings: Some(pb::EnvironmentSettings {
            image_builder_version: builder_version(api, caller),
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
    let name = if request.deployment_name.is_empty() { ENVIRONMENT_DEFAULT } else { &request.deployment_name };
    if request.object_creation_type() == pb::ObjectCreationType::CreateIfMissing && api.local().environment_named(name).is_none() {
        make(api, name).await?;
    }
    let state = api.read_latest_unless(|state| state.environment_named(name).is_some()).await?;
    let environment = find(&state, name)?;
    Ok(pb::EnvironmentGetOrCreateResponse {
        environment_id: environment.id.to_string(),
        metadata: Some(metadata(api, caller, environment)),
    })
}

async fn make(api: &Api, name: &str) -> Result<(), Error> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(valid) {
        return Err(Error::Invalid(format!("{name:?} cannot name an environment: use up to 64 letters, digits, '-', '_' and '.'")));
    }
    let environment = Environment {
        id: EnvironmentId::derive(&[name.as_bytes()]),
        name: name.to_owned(),
        webhook_suffix: if name == ENVIRONMENT_DEFAULT { String::new() } else { name.to_owned() },
        created: api.now(),
    };
    api.propose(Command::CreateEnvironment { environment }).await
}

pub(super) async fn create(api: &Api, _caller: &Caller, request: pb::EnvironmentCreateRequest) -> Result<(), Error> {
    if api.read_latest().await?.environment_named(&request.name).is_some() {
        return Err(Error::Exists(format!("Environment '{}' already exists", request.name)));
    }
    make(api, &request.name).await
}

pub(super) async fn list(api: &Api, _caller: &Caller, (): ()) -> Result<pb::EnvironmentListResponse, Error> {
    let state = api.read_latest().await?;
    let items = state.environments.values().map(|environment| pb::EnvironmentListItem {
        name: environment.name.clone(),
        webhook_suffix: environment.webhook_suffix.clone(),
        created_at: seconds(environment.created),
        default: environment.name == ENVIRONMENT_DEFAULT,
        environment_id: environment.id.to_string(),
        ..Default::default()
    });
    Ok(pb::EnvironmentListResponse { items: items.collect() })
}
