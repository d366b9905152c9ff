//! Sandboxes: containers that run what their user says, once.
//!
//! A sandbox is in the state, with a function of the same number that the scheduler finds a node for like for any other. Its id has two
//! forms, by which clients choose the method: 26 characters as newer ones want it, 22 as older ones do. Both are its number, and both
//! are taken everywhere.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::secret_source::Source;
use shoal_state::model::{Function, Resources, Sandbox, SandboxEnd, SandboxEndBy, Scaling};
use shoal_state::{Command, SandboxId, SecretId, State, TaskId};
use tokio::time::{Instant, timeout_at};

use super::error::Error;
use super::{Api, Caller, app, exec, function, gpu, secret, token};

/// The longest that a question about a sandbox is held: clients ask again.
const HELD_MAX: Duration = Duration::from_secs(50);
/// How long the question for the container of a sandbox is held when the client does not say.
const TASK_HELD: Duration = Duration::from_secs(5);
/// How long a sandbox may run that does not say.
const TIMEOUT_MS: u64 = 300_000;
/// The most that the environment of a sandbox may have in the log, in bytes.
const SEALED_BYTES_MAX: usize = 16 << 10;
/// The digits of the longer ids.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// How many of them an id has.
const LENGTH: usize = 26;

/// Writes an id as newer clients want it.
fn long(id: SandboxId) -> String {
    let digit = |place: usize| char::from(DIGITS[(id.bits() >> (5 * (LENGTH - 1 - place)) & 31) as usize]);
    format!("{}{}", SandboxId::PREFIX, (0..LENGTH).map(digit).collect::<String>())
}

/// Reads an id in either form.
pub(super) fn parse(text: &str) -> Result<SandboxId, Error> {
    let digits = text.strip_prefix(SandboxId::PREFIX).filter(|digits| digits.len() == LENGTH).unwrap_or_default();
    let value = |digit: u8| DIGITS.iter().position(|known| *known == digit).map(|value| value as u128);
    // The first of 26 digits holds three bits.
    if digits.bytes().next().and_then(value).is_none_or(|first| first > 7) {
        return Ok(text.parse()?);
    }
    let bits = digits.bytes().try_fold(0, |bits: u128, digit| Some(bits << 5 | value(digit)?));
    bits.map_or_else(|| Ok(text.parse()?), |bits| Ok(SandboxId::from_random(bits)))
}

/// Refuses what Shoal does not do for sandboxes yet, by its name in the SDK.
fn refuse_unserved(wanted: &pb::Sandbox) -> Result<(), Error> {
    use pb::sandbox::OpenPortsOneof::OpenPorts;
    // Clients name their ports also when there are none.
    let has_ports = matches!(&wanted.open_ports_oneof, Some(OpenPorts(open)) if !open.ports.is_empty());
    let unserved = [
        ("volumes", !wanted.volume_mounts.is_empty()),
        ("network_file_systems", !wanted.nfs_mounts.is_empty()),
        ("volumes with a CloudBucketMount", !wanted.cloud_bucket_mounts.is_empty() || !wanted.s3_mounts.is_empty()),
        ("encrypted_ports, h2_ports and unencrypted_ports", has_ports),
        ("proxy", wanted.proxy_id.as_ref().is_some_and(|id| !id.is_empty())),
        ("name", wanted.name.as_ref().is_some_and(|name| !name.is_empty())),
        ("readiness_probe", wanted.readiness_probe.is_some()),
        ("enable_snapshot", wanted.enable_snapshot),
        ("pty", wanted.pty_info.as_ref().is_some_and(|info| info.enabled)),
    ];
    match unserved.iter().find(|(_, asked)| *asked) {
        Some((what, _)) => Err(Error::Unimplemented(format!("Shoal does not serve {what} of sandboxes yet: leave it out"))),
        None => Ok(()),
    }
}

/// Refuses what no node could ever hold.
fn refuse_too_large(state: &State, needs: &Resources) -> Result<(), Error> {
    let fits = |node: Resources| node.cpu_milli >= needs.cpu_milli && node.memory_bytes >= needs.memory_bytes;
    if state.nodes.values().any(|node| fits(node.capacity)) {
        return Ok(());
    }
    let most = |of: fn(Resources) -> u64| state.nodes.values().map(|node| of(node.capacity)).max().unwrap_or(0);
    let cores = |milli: u64| format!("{}.{:03}", milli / 1000, milli % 1000);
    Err(Error::Invalid(format!(
        "the sandbox asks for cpu={} and {} MiB of memory, and no node has that: the most is cpu={} and {} MiB",
        cores(needs.cpu_milli.into()),
        needs.memory_bytes >> 20,
        cores(most(|capacity| capacity.cpu_milli.into())),
        most(|capacity| capacity.memory_bytes) >> 20
    )))
}

/// Returns the ids of the secrets that a sandbox, or a process, is given: those that are named as such, and those among the sources.
pub(super) fn secrets_of<'a>(named: &'a [String], from: &'a [pb::SecretSource]) -> impl Iterator<Item = &'a str> {
    let more = from.iter().filter_map(|source| match &source.source {
        Some(Source::SecretId(id)) => Some(id.as_str()),
        Some(Source::Env(_)) | None => None,
    });
    named.iter().map(String::as_str).chain(more)
}

/// Returns the variables of a sandbox alone.
fn variables_of(wanted: &pb::Sandbox, from: &[pb::SecretSource]) -> BTreeMap<String, String> {
    let own = from.iter().filter_map(|source| match &source.source {
        Some(Source::Env(map)) => Some(map),
        Some(Source::SecretId(_)) | None => None,
    });
    own.chain(&wanted.environment_variables).flat_map(|map| map.contents.clone()).collect()
}

async fn make(
    api: &Api,
    caller: &Caller,
    app: &str,
    wanted: &pb::Sandbox,
    from: &[pb::SecretSource],
) -> Result<(SandboxId, pb::SandboxHandleMetadata), Error> {
    refuse_unserved(wanted)?;
    let (app, _) = app::find(api, app).await?;
    gpu::check(&api.local(), "the sandbox", wanted.resources.as_ref().and_then(|resources| resources.gpu_config.as_ref()))?;
    let resources = function::resources(wanted.resources.as_ref());
    refuse_too_large(&api.local(), &resources)?;
    function::check_disk(&api.local(), "the sandbox", resources.disk_bytes)?;
    let id = SandboxId::derive(&[&caller.identity.scope(), caller.key().as_bytes()]);
    let own = variables_of(wanted, from);
    let secrets = secrets_of(&wanted.secret_ids, from).map(|id| Ok(id.parse()?)).collect::<Result<Vec<SecretId>, Error>>()?;
    let sealed = if own.is_empty() { Vec::new() } else { api.sealing.seal(SecretId::from_random(id.bits()), &own)? };
    if sealed.len() > SEALED_BYTES_MAX {
        let limit = SEALED_BYTES_MAX >> 10;
        return Err(Error::Invalid(format!("the env of a sandbox may have {limit} KiB: make a modal.Secret of what is larger")));
    }
    let function = Function {
        definition: api.keep_definition(&wanted.encode_to_vec()).await?,
        image: if wanted.image_id.is_empty() { None } else { Some(wanted.image_id.parse()?) },
        mounts: function::parse_all(&wanted.mount_ids)?,
        secrets,
        resources,
        scaling: Scaling { containers_max: 1, ..Scaling::default() },
        block_network: wanted.block_network,
        ..Function::new(app, long(id), api.now())
    };
    let timeout_ms = if wanted.timeout_secs == 0 { TIMEOUT_MS } else { u64::from(wanted.timeout_secs) * 1000 };
    let created_by = token::name_of(api, caller);
    let sandbox = Sandbox { app, sealed, timeout_ms, created: api.now(), created_by, ended: None };
    api.propose(Command::CreateSandbox { id, sandbox: Box::new(sandbox), function: Box::new(function) }).await?;
    Ok((id, pb::SandboxHandleMetadata { app_id: app.to_string(), result: None }))
}

pub(super) async fn create(api: &Api, caller: &Caller, request: pb::SandboxCreateRequest) -> Result<pb::SandboxCreateResponse, Error> {
    let wanted = request.definition.unwrap_or_default();
    let (id, metadata) = make(api, caller, &request.app_id, &wanted, &[]).await?;
    Ok(pb::SandboxCreateResponse { sandbox_id: id.to_string(), metadata: Some(metadata) })
}

pub(super) async fn create_v2(
    api: &Api,
    caller: &Caller,
    request: pb::SandboxCreateV2Request,
) -> Result<pb::SandboxCreateV2Response, Error> {
    let wanted = request.definition.unwrap_or_default();
    let ephemeral = request.ephemeral_secrets.map(|env| pb::SecretSource { source: Some(Source::Env(env)) });
    let from: Vec<_> = ephemeral.into_iter().chain(request.secret_sources).collect();
    let (id, metadata) = make(api, caller, &request.app_id, &wanted, &from).await?;
    Ok(pb::SandboxCreateV2Response { sandbox_id: long(id), metadata: Some(metadata), ..Default::default() })
}

/// Says how a sandbox ended, as clients take it.
fn result(end: &SandboxEnd) -> pb::GenericResult {
    use pb::generic_result::GenericStatus;
    let (status, exitcode) = match end.by {
        SandboxEndBy::Itself(0) => (GenericStatus::Success, 0),
        SandboxEndBy::Itself(code) => (GenericStatus::Failure, code),
        SandboxEndBy::Timeout => (GenericStatus::Timeout, 124),
        SandboxEndBy::Termination => (GenericStatus::Terminated, 137),
        SandboxEndBy::Platform => (GenericStatus::InternalFailure, 0),
    };
    let exception = if status == GenericStatus::Success { String::new() } else { end.how.clone() };
    pb::GenericResult { status: status.into(), exception, exitcode, ..Default::default() }
}

async fn find(api: &Api, id: &str) -> Result<(SandboxId, Sandbox), Error> {
    let parsed = parse(id)?;
    let state = api.read_latest_unless(|state| state.sandboxes.contains_key(&parsed)).await?;
    let absent = || Error::NotFound(format!("Sandbox '{id}' not found: it has ended some time ago, or never was"));
    state.sandboxes.get(&parsed).cloned().map(|found| (parsed, found)).ok_or_else(absent)
}

/// Returns the container of a sandbox, if it has one.
fn task_of(state: &State, id: SandboxId) -> Option<TaskId> {
    state.tasks_of.get(&id.function())?.get_min().copied()
}

/// Waits until the state shows something, at most so long.
async fn until<T>(api: &Api, wait: Duration, look: impl Fn(&State) -> Option<T>) -> Option<T> {
    let (mut changed, deadline) = (api.cluster.raft().watch(), Instant::now() + wait);
    loop {
        if let Some(found) = look(&api.local()) {
            return Some(found);
        }
        if !matches!(timeout_at(deadline, changed.changed()).await, Ok(Ok(()))) {
            return None;
        }
    }
}

fn held(seconds: f32) -> Duration {
    Duration::try_from_secs_f32(seconds.max(0.0)).unwrap_or(HELD_MAX).min(HELD_MAX)
}

pub(super) async fn task_id(
    api: &Api,
    _caller: &Caller,
    request: pb::SandboxGetTaskIdRequest,
) -> Result<pb::SandboxGetTaskIdResponse, Error> {
    let (id, _) = find(api, &request.sandbox_id).await?;
    let look = |state: &State| {
        let ended = state.sandboxes.get(&id).and_then(|sandbox| sandbox.ended.as_ref());
        let task_id = task_of(state, id).filter(|_| ended.is_none()).map(|task| task.to_string());
        (task_id.is_some() || ended.is_some()).then(|| pb::SandboxGetTaskIdResponse { task_id, task_result: ended.map(result) })
    };
    Ok(until(api, request.timeout.map_or(TASK_HELD, held), look).await.unwrap_or_default())
}

pub(super) async fn wait(api: &Api, _caller: &Caller, request: pb::SandboxWaitRequest) -> Result<pb::SandboxWaitResponse, Error> {
    let (id, found) = find(api, &request.sandbox_id).await?;
    let look = |state: &State| state.sandboxes.get(&id).and_then(|sandbox| sandbox.ended.as_ref()).map(result);
    let result = Some(until(api, held(request.timeout), look).await.unwrap_or_default());
    let metadata = Some(pb::SandboxHandleMetadata { result: result.clone(), app_id: found.app.to_string() });
    Ok(pb::SandboxWaitResponse { result, metadata })
}

pub(super) async fn terminate(
    api: &Api,
    caller: &Caller,
    request: pb::SandboxTerminateRequest,
) -> Result<pb::SandboxTerminateResponse, Error> {
    let (id, found) = find(api, &request.sandbox_id).await?;
    if found.ended.is_none() {
        let how = format!("terminated by {}", token::name_of(api, caller));
        api.propose(Command::EndSandbox { id, end: SandboxEnd { at: api.now(), by: SandboxEndBy::Termination, how } }).await?;
    }
    Ok(pb::SandboxTerminateResponse { existing_result: found.ended.as_ref().map(result) })
}

/// Shows the way to the container of a sandbox.
pub(super) async fn access(
    api: &Api,
    caller: &Caller,
    request: pb::SandboxGetCommandRouterAccessRequest,
) -> Result<pb::SandboxGetCommandRouterAccessResponse, Error> {
    use pb::sandbox_get_command_router_access_request::Target;
    let task_id = match request.target {
        Some(Target::TaskId(task)) => task,
        Some(Target::SandboxId(sandbox)) => {
            let (id, found) = find(api, &sandbox).await?;
            if let Some(end) = &found.ended {
                return Err(Error::NotFound(format!("Sandbox '{sandbox}' has ended: {}", end.how)));
            }
            let absent = || Error::Unavailable(format!("Sandbox '{sandbox}' has no container yet: try again in a moment"));
            until(api, HELD_MAX, |state| task_of(state, id)).await.ok_or_else(absent)?.to_string()
        }
        None => return Err(Error::Invalid("SandboxGetCommandRouterAccess names neither a sandbox nor a container".to_owned())),
    };
    let way = exec::access(api, caller, pb::TaskGetCommandRouterAccessRequest { task_id }).await?;
    Ok(pb::SandboxGetCommandRouterAccessResponse { jwt: way.jwt, url: way.url, worker_ipv4_address: String::new() })
}

/// Opens the variables that are of a sandbox alone.
pub(crate) fn own_variables(api: &Api, id: SandboxId, sandbox: &Sandbox) -> Result<BTreeMap<String, String>, Error> {
    if sandbox.sealed.is_empty() { Ok(BTreeMap::new()) } else { api.sealing.open(SecretId::from_random(id.bits()), &sandbox.sealed) }
}

/// Opens all variables that a sandbox's container is given.
pub(crate) fn variables(api: &Api, state: &State, id: SandboxId, function: &Function) -> Result<BTreeMap<String, String>, Error> {
    let mut variables = secret::open_all(api, state, &function.secrets)?;
    if let Some(sandbox) = state.sandboxes.get(&id) {
        variables.extend(own_variables(api, id, sandbox)?);
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_in_both_forms() {
        for bits in [0, 1, 31, 32, 12345 << 64, u128::MAX] {
            let id = SandboxId::from_random(bits);
            assert_eq!(long(id).len(), 29);
            assert_eq!(parse(&long(id)).unwrap(), id, "{}", long(id));
            assert_eq!(parse(&id.to_string()).unwrap(), id);
        }
        for other in ["", "sb-", "sb-8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "sb-0000000000000000000000000U", "ta-00000000000000000000000000", "sb-é"]
        {
            assert!(parse(other).is_err(), "{other}");
        }
    }

    #[test]
    fn what_is_not_served_is_named() {
        let named = pb::Sandbox { name: Some("x".to_owned()), ..Default::default() };
        assert!(refuse_unserved(&named).unwrap_err().to_string().contains("does not serve name of sandboxes"));
        let no_ports = pb::sandbox::OpenPortsOneof::OpenPorts(pb::PortSpecs::default());
        assert!(refuse_unserved(&pb::Sandbox { open_ports_oneof: Some(no_ports), ..Default::default() }).is_ok());
    }

    #[test]
    fn an_end_is_told_by_what_ended_it() {
        use pb::generic_result::GenericStatus;
        let told = |by| {
            let told = result(&SandboxEnd { at: shoal_state::Timestamp(0), by, how: "why".to_owned() });
            (told.status(), told.exitcode, told.exception)
        };
        assert_eq!(told(SandboxEndBy::Itself(0)), (GenericStatus::Success, 0, String::new()));
        assert_eq!(told(SandboxEndBy::Itself(3)), (GenericStatus::Failure, 3, "why".to_owned()));
        assert_eq!(told(SandboxEndBy::Timeout).0, GenericStatus::Timeout);
        assert_eq!(told(SandboxEndBy::Termination).0, GenericStatus::Terminated);
        assert_eq!(told(SandboxEndBy::Platform).0, GenericStatus::InternalFailure);
    }
}
