//! Bound functions: a function with a class's parameters, other settings, or both, each with containers of its own.
//!
//! Equal parameters and options of one function give the same bound function, whoever asks and through whichever node: its id
//! is derived from them. What it is follows from its parent as that is deployed now. Uses are noted in the state, but rarely, so
//! that those that nobody needs can be told and forgotten.

use std::cmp::Reverse;

use prost::Message as _;
use shoal_calls::calls::Load;
use shoal_proto::modal_client as pb;
use shoal_state::model::{Bound, Changes, Function};
use shoal_state::{Command, Digest, FunctionId, ShardId, State, Timestamp};

use super::error::Error;
use super::function::{self, MIB, metadata_for, parse_all, retries};
use super::{Api, Caller, app, gpu, scaling, unserved};

/// The longest parameters, and the longest options, in bytes: they are in the log.
const BYTES_MAX: usize = 16 << 10;
/// How many may be bound from one function at a time.
const BOUND_MAX: usize = 10_000;
/// How many bound functions each function keeps for as long as its app lives: several times as many as a client remembers.
const BOUND_KEPT: usize = 128;
/// For how long the others must not have been used, in milliseconds, to be forgotten.
const UNUSED_MS: u64 = 3 * 3_600_000;
/// How much of that goes by before a use is noted again, in milliseconds.
const USE_NOTED_MS: u64 = 3_600_000;
/// How many are forgotten at once.
const FORGOTTEN_MAX: usize = 256;

pub(super) async fn bind(
    api: &Api,
    caller: &Caller,
    request: pb::FunctionBindParamsRequest,
) -> Result<pb::FunctionBindParamsResponse, Error> {
    let (of, found) = function::find(api, &request.function_id).await?;
    let wanted = Wanted::of(&api.local(), of, &found, request)?;
    let (parent_id, parent) = match found.parent {
        Some(parent) => function::find(api, &parent.to_string()).await?,
        None => (of, found),
    };
    app::must_live(api, parent.app).await?;
    let (id, function) = if wanted.is_parent() {
        (parent_id, parent)
    } else {
        let bound = wanted.bound(api, parent_id, &parent)?;
        let id = wanted.id(parent_id);
        let function = bound.of(&parent);
        let state = api.read_latest_unless(|state| state.functions.contains_key(&id)).await?;
        if state.bound_of(id).is_none_or(|known| is_old(known.used, bound.used)) {
            must_have_room(&state, parent_id, &parent)?;
            api.propose(Command::BindFunction { id, bound: Box::new(bound) }).await?;
        }
        (id, function)
    };
    let bytes = function::definition(api, id, &function).await?;
    let view = pb::Function::decode(bytes).map_err(Error::failed(format!("cannot decode function {id}")))?;
    let handle_metadata = Some(metadata_for(caller, id, &function, &view));
    Ok(pb::FunctionBindParamsResponse { bound_function_id: id.to_string(), handle_metadata })
}

/// Lists what was bound from a function: those with the most containers first, and of these those used last.
pub(super) async fn list(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionListVariantsRequest,
) -> Result<pb::FunctionListVariantsResponse, Error> {
    let (id, _) = function::find(api, &request.function_id).await?;
    let state = api.read_latest().await?;
    let tasks = |id: &FunctionId| state.tasks_of.get(id).map_or(0, |tasks| tasks.len());
    let mut all: Vec<_> = state.bound.get(&id).into_iter().flatten().collect();
    all.sort_by_key(|(id, bound)| (Reverse(tasks(id)), Reverse(bound.used), **id));
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let info = |(id, bound): (&FunctionId, &Bound)| {
        Ok(pb::FunctionVariantInfo {
            function_id: id.to_string(),
            serialized_params: bound.parameters.clone().into(),
            function_options: if bound.options.is_empty() { None } else { Some(decode(&bound.options)?) },
        })
    };
    let infos = all.into_iter().take(limit).map(info).collect::<Result<_, Error>>()?;
    Ok(pb::FunctionListVariantsResponse { infos, ordered_by_task_count: true, ..Default::default() })
}

/// Notes that a bound function is called, where that was not noted lately.
pub(super) async fn note_use(api: &Api, id: FunctionId, function: &Function) -> Result<(), Error> {
    if function.parent.is_none() {
        return Ok(());
    }
    let at = api.now();
    if api.local().bound_of(id).is_some_and(|bound| is_old(bound.used, at)) {
        match api.propose(Command::UseBound { id, at }).await {
            Err(refused @ Error::Refused(_)) => return Err(refused),
            // It is noted with the next call: no call waits for that.
            Err(error) => tracing::warn!(function = %id, %error, "cannot note that a bound function is used"),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn is_old(used: Timestamp, now: Timestamp) -> bool {
    used.0.saturating_add(USE_NOTED_MS) <= now.0
}

fn must_have_room(state: &State, id: FunctionId, function: &Function) -> Result<(), Error> {
    let count = state.bound.get(&id).map_or(0, |of| of.len());
    if count < BOUND_MAX {
        return Ok(());
    }
    Err(Error::Precondition(format!(
        "'{}' has {count} instances with parameters or options of their own, the most that one may have: those without a call for {} h make room",
        function.tag,
        UNUSED_MS / 3_600_000
    )))
}

/// Returns the command that forgets bound functions which nobody needs, if there are any.
pub(crate) fn unused(state: &State, load: &Load, now: Timestamp) -> Option<Command> {
    let unused_since = Timestamp(now.0.checked_sub(UNUSED_MS)?);
    let rests = |id: &FunctionId| {
        // Only their homes know what waits for them.
        let told = id.shard().is_some_and(|shard| load.homes.contains(&shard));
        told && load.pools.get(id).is_none_or(|pool| pool.waiting + pool.delayed + pool.running == 0)
    };
    let mut ids = Vec::new();
    for of in state.bound.values().filter(|of| of.len() > BOUND_KEPT) {
        let mut by_use: Vec<(Timestamp, FunctionId)> = of.iter().map(|(id, bound)| (bound.used, *id)).collect();
        by_use.sort_unstable_by(|one, other| other.cmp(one));
        let old = by_use.into_iter().skip(BOUND_KEPT).filter(|(used, _)| *used <= unused_since);
        ids.extend(old.map(|(_, id)| id).filter(rests).filter(|id| state.tasks_of.get(id).is_none_or(|tasks| tasks.is_empty())));
    }
    ids.truncate(FORGOTTEN_MAX);
    (!ids.is_empty()).then_some(Command::ForgetBound { ids, unused_since })
}

/// What a client wants of a function.
struct Wanted {
    parameters: Vec<u8>,
    options: pb::FunctionOptions,
}

impl Wanted {
    /// Reads a request; `of` may be bound already, and is then changed once more.
    fn of(state: &State, of: FunctionId, function: &Function, request: pb::FunctionBindParamsRequest) -> Result<Self, Error> {
        let (mut parameters, mut options) = (request.serialized_params.to_vec(), request.function_options.unwrap_or_default());
        if let Some(before) = state.bound_of(of) {
            let (replaced, secret_ids) = (options.replace_secret_ids, std::mem::take(&mut options.secret_ids));
            let merged = [&before.options[..], &options.encode_to_vec()].concat();
            options = decode(&merged)?;
            if replaced {
                options.secret_ids.clear();
            }
            options.secret_ids.extend(secret_ids);
            if parameters.is_empty() {
                parameters.clone_from(&function.parameters);
            }
        }
        // Clients say so of nothing, too.
        options.resources = options.resources.filter(|resources| *resources != pb::Resources::default());
        let wanted = Self { parameters, options };
        for (what, bytes) in [("parameters", wanted.parameters.len()), ("options", wanted.options.encoded_len())] {
            if bytes > BYTES_MAX {
                let tag = function.tag.trim_end_matches(".*");
                return Err(Error::Invalid(format!(
                    "the {what} of '{tag}' have {bytes} bytes, and at most {BYTES_MAX} are taken: pass what is larger to its methods, or keep it in a volume"
                )));
            }
        }
        Ok(wanted)
    }

    fn is_parent(&self) -> bool {
        self.parameters.is_empty() && self.options.encoded_len() == 0
    }

    fn id(&self, parent: FunctionId) -> FunctionId {
        let (parent, options) = (parent.to_string(), self.options.encode_to_vec());
        let parts: [&[u8]; 4] = [b"bound", parent.as_bytes(), &self.parameters, &options];
        let digests: Vec<u8> = parts.iter().flat_map(|part| *Digest::of(part).as_bytes()).collect();
        FunctionId::derive_in(ShardId::of(&digests), &parts)
    }

    fn bound(&self, api: &Api, parent_id: FunctionId, parent: &Function) -> Result<Bound, Error> {
        unserved::check_options(&parent.tag, &self.options)?;
        let resources = self.options.resources.as_ref();
        gpu::check(&api.local(), &format!("function '{}'", parent.tag), resources.and_then(|asked| asked.gpu_config.as_ref()))?;
        let disk_mb = resources.map_or(0, |asked| asked.ephemeral_disk_mb);
        function::check_disk(&api.local(), &format!("function '{}'", parent.tag), u64::from(disk_mb) * MIB)?;
        let now = api.now();
        let (parameters, options) = (self.parameters.clone(), self.options.encode_to_vec());
        let bound = Bound { parent: parent_id, parameters, options, changes: changes(&self.options)?, created: now, used: now };
        scaling::check(&bound.of(parent).scaling)?;
        Ok(bound)
    }
}

fn decode(options: &[u8]) -> Result<pb::FunctionOptions, Error> {
    pb::FunctionOptions::decode(options).map_err(|error| Error::Invalid(format!("the options of a function cannot be decoded: {error}")))
}

/// Reads what the options change of what Shoal acts on.
fn changes(options: &pb::FunctionOptions) -> Result<Changes, Error> {
    let asked = options.resources.clone().unwrap_or_default();
    let some = |value: u32| (value > 0).then_some(value);
    Ok(Changes {
        secrets: parse_all(&options.secret_ids)?,
        secrets_replaced: options.replace_secret_ids,
        mounts: parse_all(&options.mount_ids)?,
        cpu_milli: some(asked.milli_cpu).map(|cpu| (cpu, asked.milli_cpu_max)),
        memory_bytes: some(asked.memory_mb).map(|mb| (u64::from(mb) * MIB, u64::from(asked.memory_mb_max) * MIB)),
        disk_bytes: some(asked.ephemeral_disk_mb).map(|mb| u64::from(mb) * MIB),
        gpus: asked.gpu_config.as_ref().and_then(|gpu| some(gpu.count)),
        retries: options.retry_policy.as_ref().map(retries),
        containers_min: options.warm_pool_size,
        containers_max: options.concurrency_limit,
        containers_buffer: options.buffer_containers,
        scaledown_ms: options.task_idle_timeout_secs.and_then(some).map(|seconds| u64::from(seconds) * 1000),
        timeout_ms: options.timeout_secs.and_then(some).map(|seconds| u64::from(seconds) * 1000),
        inputs_concurrent: options.max_concurrent_inputs.and_then(some),
        batch_max: options.batch_max_size,
        batch_wait_ms: options.batch_linger_ms,
    })
}

/// Returns what follows the bytes of the parent's definition in those of a bound function: in the encoding of the wire, what
/// comes later counts, and fields that are unknown here stay.
pub(super) fn patch(options: &[u8]) -> Result<Vec<u8>, Error> {
    let options = decode(options)?;
    let most = options.max_concurrent_inputs.unwrap_or_default();
    let patch = pb::Function {
        resources: options.resources,
        retry_policy: options.retry_policy,
        concurrency_limit: options.concurrency_limit.unwrap_or_default(),
        timeout_secs: options.timeout_secs.unwrap_or_default(),
        task_idle_timeout_secs: options.task_idle_timeout_secs.unwrap_or_default(),
        volume_mounts: options.volume_mounts,
        scheduler_placement: options.scheduler_placement,
        cloud_provider_str: options.cloud_provider_str.unwrap_or_default(),
        max_concurrent_inputs: most,
        // A target of the parent's does not fit another maximum.
        target_concurrent_inputs: options.target_concurrent_inputs.unwrap_or(most),
        batch_max_size: options.batch_max_size.unwrap_or_default(),
        batch_linger_ms: options.batch_linger_ms.unwrap_or_default(),
        routing_region: options.routing_region.unwrap_or_default(),
        autoscaler_settings: Some(pb::AutoscalerSettings {
            min_containers: Some(options.warm_pool_size.unwrap_or_default()),
            max_containers: options.concurrency_limit,
            buffer_containers: options.buffer_containers,
            scaledown_window: options.task_idle_timeout_secs,
            ..Default::default()
        }),
        ..Default::default()
    };
    Ok(patch.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use shoal_calls::calls::PoolLoad;
    use shoal_state::model::{App, AppState, Environment};
    use shoal_state::{AppId, EnvironmentId, VERSION_KNOWN};

    use super::*;

    const PARENT: FunctionId = FunctionId::from_random(1);

    fn wanted(parameters: &[u8], function_options: Option<pb::FunctionOptions>) -> Wanted {
        let request = pb::FunctionBindParamsRequest {
            function_id: PARENT.to_string(),
            serialized_params: parameters.to_vec().into(),
            function_options,
            ..Default::default()
        };
        Wanted::of(&State::default(), PARENT, &Function::new(AppId::from_random(1), "K.*", Timestamp(0)), request).unwrap()
    }

    #[test]
    fn equal_parameters_and_options_are_one_function_and_none_are_the_parent() {
        let options = || Some(pb::FunctionOptions { timeout_secs: Some(5), ..Default::default() });
        assert_eq!(wanted(b"x", options()).id(PARENT), wanted(b"x", options()).id(PARENT));
        let nothing = || Some(pb::FunctionOptions { resources: Some(pb::Resources::default()), ..Default::default() });
        assert_eq!(wanted(b"x", nothing()).id(PARENT), wanted(b"x", None).id(PARENT));
        assert!(wanted(b"", nothing()).is_parent());
        let all = [wanted(b"x", options()), wanted(b"y", options()), wanted(b"x", None), wanted(b"", options())];
        let ids: std::collections::BTreeSet<FunctionId> = all.iter().map(|wanted| wanted.id(PARENT)).collect();
        assert_eq!(ids.len(), all.len());
        assert_ne!(wanted(b"x", None).id(PARENT), wanted(b"x", None).id(FunctionId::from_random(2)));
    }

    #[test]
    fn what_is_too_long_for_the_log_is_refused_with_a_cure() {
        let request = pb::FunctionBindParamsRequest { serialized_params: vec![0; BYTES_MAX + 1].into(), ..Default::default() };
        let function = Function::new(AppId::from_random(1), "Model.*", Timestamp(0));
        let refused = Wanted::of(&State::default(), PARENT, &function, request).err().unwrap().to_string();
        assert!(refused.starts_with("the parameters of 'Model' have 16385 bytes, and at most 16384 are taken: pass"), "{refused}");
    }

    #[test]
    fn a_container_reads_the_options_behind_what_its_parent_says() {
        let parent = pb::Function { max_concurrent_inputs: 50, target_concurrent_inputs: 40, timeout_secs: 9, ..Default::default() };
        let options = pb::FunctionOptions { max_concurrent_inputs: Some(5), ..Default::default() };
        let bytes = [parent.encode_to_vec(), patch(&options.encode_to_vec()).unwrap()].concat();
        let view = pb::Function::decode(&bytes[..]).unwrap();
        assert_eq!((view.max_concurrent_inputs, view.target_concurrent_inputs, view.timeout_secs), (5, 5, 9));
    }

    fn bind(state: &mut State, number: u32, used: u64) -> FunctionId {
        let id = FunctionId::derive_in(ShardId::of(b""), &[&number.to_le_bytes()]);
        let (parameters, options) = (number.to_le_bytes().to_vec(), Vec::new());
        let (created, used) = (Timestamp(0), Timestamp(used));
        let bound = Bound { parent: PARENT, parameters, options, changes: Changes::default(), created, used };
        state.apply(&Command::BindFunction { id, bound: Box::new(bound) }).unwrap();
        id
    }

    #[test]
    fn those_beyond_a_number_go_when_they_were_not_used_for_long_and_nothing_waits_for_them() {
        let (mut state, environment, app) = (State::default(), EnvironmentId::from_random(1), AppId::from_random(1));
        let commands = [
            Command::SetVersion { version: VERSION_KNOWN },
            Command::CreateEnvironment { environment: Environment::new(environment, "main", Timestamp(0)) },
            Command::CreateApp { id: app, app: App::new(environment, AppState::Ephemeral, Timestamp(0)) },
            Command::PutFunction { id: PARENT, function: Box::new(Function::new(app, "K.*", Timestamp(0))) },
        ];
        commands.iter().for_each(|command| drop(state.apply(command).unwrap()));
        let old = [bind(&mut state, 0, 1), bind(&mut state, 1, 2), bind(&mut state, 2, 3)];
        let now = Timestamp(UNUSED_MS + 2);
        let kept: Vec<FunctionId> = (0..BOUND_KEPT).map(|number| bind(&mut state, 10 + number as u32, now.0)).collect();
        let mut load = Load::default();
        assert_eq!(unused(&state, &load, now), None, "nobody has told what waits");
        load.homes = ShardId::all().collect();
        load.pools.insert(old[0], PoolLoad { waiting: 1, ..PoolLoad::default() });
        let forget = unused(&state, &load, now).unwrap();
        assert_eq!(forget, Command::ForgetBound { ids: vec![old[1]], unused_since: Timestamp(2) }, "the third was used since");
        state.apply(&forget).unwrap();
        state.apply(&Command::ForgetBound { ids: vec![kept[0]], unused_since: Timestamp(u64::MAX) }).unwrap();
        load.pools.clear();
        assert_eq!(unused(&state, &load, now), Some(Command::ForgetBound { ids: vec![old[0]], unused_since: Timestamp(2) }));
    }
}
