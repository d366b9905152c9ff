//! Functions and classes: what a decorator says, kept as the client sent it, with the few settings that Shoal acts on.

use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_scheduler::Placement;
use shoal_state::model::{App, Class, Function, Resources, Retries};
use shoal_state::{AppId, ClassId, Command, DefinitionId, Digest, FunctionId, ShardId, State};

use super::error::Error;
use super::{Api, Caller, app, bound, gpu, input_plane, scaling, unserved};
use crate::placements;

/// How long an input may run when nobody says, in milliseconds.
const TIMEOUT_MS: u64 = Function::TIMEOUT_MS;
/// What a container reserves when nobody says: an eighth of a core.
const CPU_MILLI: u32 = 125;
/// What a container reserves when nobody says: 128 MiB.
const MEMORY_BYTES: u64 = 128 << 20;
pub(super) const MIB: u64 = 1 << 20;

/// Derives a function's id: the same tag of the same app is the same function.
fn id_of(app: AppId, tag: &str) -> FunctionId {
    let app = app.to_string();
    FunctionId::derive_in(ShardId::of(&[app.as_bytes(), tag.as_bytes()].concat()), &[app.as_bytes(), tag.as_bytes()])
}

/// Derives the id of a function of a build. An app may have a function of the same name, and several builds may run
/// functions of one name, so the whole definition counts.
fn builder_id(app: AppId, tag: &str, definition: &[u8]) -> FunctionId {
    let (app, definition) = (app.to_string(), Digest::of(definition));
    FunctionId::derive_in(ShardId::of(&[app.as_bytes(), tag.as_bytes()].concat()), &[app.as_bytes(), tag.as_bytes(), definition.as_bytes()])
}

/// Finds a function by id.
pub(crate) async fn find(api: &Api, id: &str) -> Result<(FunctionId, Function), Error> {
    let parsed: FunctionId = id.parse()?;
    let state = api.read_latest_unless(|state| state.functions.contains_key(&parsed)).await?;
    let function = state.functions.get(&parsed).ok_or_else(|| Error::NotFound(format!("Function '{id}' not found")))?;
    Ok((parsed, function.clone()))
}

/// Reads the SDK's message back as it was received; that of a bound function is its parent's, with what its options change.
pub(crate) async fn definition(api: &Api, id: FunctionId, function: &Function) -> Result<prost::bytes::Bytes, Error> {
    let bytes = api.definition(&function.definition).await?;
    match api.local().bound_of(id) {
        Some(bound) => Ok([&bytes[..], &bound::patch(&bound.options)?].concat().into()),
        None => Ok(bytes),
    }
}

pub(super) fn metadata_of(id: FunctionId, function: &Function, view: &pb::Function) -> pb::FunctionHandleMetadata {
    let methods = view.method_definitions.iter().map(|(name, method)| (name.clone(), method_metadata(id, function, view, name, method)));
    pb::FunctionHandleMetadata {
        function_name: if view.implementation_name.is_empty() { view.function_name.clone() } else { view.implementation_name.clone() },
        function_type: view.function_type,
        web_url: view.web_url.clone(),
        is_method: view.is_method,
        definition_id: id.to_string(),
        class_parameter_info: view.class_parameter_info.clone(),
        method_handle_metadata: methods.collect(),
        function_schema: view.function_schema.clone(),
        supported_input_formats: view.supported_input_formats.clone(),
        supported_output_formats: view.supported_output_formats.clone(),
        app_id: function.app.to_string(),
        base_function_id: function.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        input_plane_region: input_plane::region(view),
        ..Default::default()
    }
}

/// As [`metadata_of`], with where this very caller calls the function.
pub(super) fn metadata_for(caller: &Caller, id: FunctionId, function: &Function, view: &pb::Function) -> pb::FunctionHandleMetadata {
    let mut metadata = metadata_of(id, function, view);
    input_plane::offer(caller, &mut metadata);
    metadata
}

fn method_metadata(
    id: FunctionId,
    function: &Function,
    view: &pb::Function,
    name: &str,
    method: &pb::MethodDefinition,
) -> pb::FunctionHandleMetadata {
    pb::FunctionHandleMetadata {
        function_name: method.function_name.clone(),
        function_type: method.function_type,
        web_url: method.web_url.clone(),
        is_method: true,
        use_method_name: name.to_owned(),
        definition_id: id.to_string(),
        class_parameter_info: view.class_parameter_info.clone(),
        function_schema: method.function_schema.clone(),
        supported_input_formats: method.supported_input_formats.clone(),
        supported_output_formats: method.supported_output_formats.clone(),
        app_id: function.app.to_string(),
        input_plane_region: input_plane::region(view),
        ..Default::default()
    }
}

/// Returns what a client must know to call a function.
pub(crate) async fn handle_metadata(api: &Api, id: FunctionId, function: &Function) -> Result<pb::FunctionHandleMetadata, Error> {
    let view = pb::Function::decode(definition(api, id, function).await?).map_err(Error::failed(format!("cannot decode function {id}")))?;
    Ok(metadata_of(id, function, &view))
}

/// Returns what a client must know to use a class: its methods are those of the function tagged `NAME.*`.
pub(crate) async fn class_metadata(api: &Api, state: &State, app: &App, tag: &str) -> Result<pb::ClassHandleMetadata, Error> {
    let service = format!("{tag}.*");
    let Some(id) = app.layout.functions.get(&service) else { return Ok(pb::ClassHandleMetadata::default()) };
    let function = state.functions.get(id).ok_or_else(|| Error::NotFound(format!("Function '{service}' not found")))?;
    class_metadata_of(api, *id, function).await
}

/// As [`class_metadata`], by the function that runs its methods.
pub(super) async fn class_metadata_of(api: &Api, id: FunctionId, function: &Function) -> Result<pb::ClassHandleMetadata, Error> {
    let metadata = handle_metadata(api, id, function).await?;
    let methods = metadata.method_handle_metadata.iter().map(|(name, method)| pb::ClassMethod {
        function_name: name.clone(),
        function_id: id.to_string(),
        function_handle_metadata: Some(method.clone()),
    });
    Ok(pb::ClassHandleMetadata { methods: methods.collect(), class_function_id: id.to_string(), class_function_metadata: Some(metadata) })
}

fn existing(id: &str, app: AppId, tag: &str) -> Result<FunctionId, Error> {
    if id.is_empty() { Ok(id_of(app, tag)) } else { Ok(id.parse()?) }
}

pub(super) async fn precreate(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionPrecreateRequest,
) -> Result<pb::FunctionPrecreateResponse, Error> {
    let (app, _) = app::find(api, &request.app_id).await?;
    let id = existing(&request.existing_function_id, app, &request.function_name)?;
    let view = pb::Function {
        function_name: request.function_name,
        function_type: request.function_type,
        method_definitions: request.method_definitions,
        function_schema: request.function_schema,
        supported_input_formats: request.supported_input_formats,
        supported_output_formats: request.supported_output_formats,
        ..Default::default()
    };
    let function = Function::new(app, &view.function_name, api.now());
    Ok(pb::FunctionPrecreateResponse { function_id: id.to_string(), handle_metadata: Some(metadata_of(id, &function, &view)) })
}

/// Turns what a container is asked to have into ours; what is absent has a default.
pub(super) fn resources(asked: Option<&pb::Resources>) -> Resources {
    let asked = asked.cloned().unwrap_or_default();
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    Resources {
        cpu_milli: or(asked.milli_cpu, CPU_MILLI),
        cpu_milli_max: asked.milli_cpu_max,
        memory_bytes: if asked.memory_mb == 0 { MEMORY_BYTES } else { u64::from(asked.memory_mb) * MIB },
        memory_bytes_max: u64::from(asked.memory_mb_max) * MIB,
        disk_bytes: u64::from(asked.ephemeral_disk_mb) * MIB,
        gpus: asked.gpu_config.map_or(0, |gpu| gpu.count),
    }
}

/// Turns the policy of the wire into ours: the coefficient comes as a fraction, and decisions use no fractions.
pub(super) fn retries(policy: &pb::FunctionRetryPolicy) -> Retries {
    Retries {
        count: policy.retries,
        delay_initial_ms: policy.initial_delay_ms,
        delay_max_ms: policy.max_delay_ms,
        backoff_milli: thousandths(policy.backoff_coefficient),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range of u32 before")]
fn thousandths(factor: f32) -> u32 {
    (f64::from(factor) * 1000.0).clamp(0.0, f64::from(u32::MAX)).round() as u32
}

/// Finds the definition in a request: the function itself, or the first of the ranked choices that can be had here.
fn chosen(state: &State, request: &pb::FunctionCreateRequest) -> Result<(prost::bytes::Bytes, pb::Function, String), Error> {
    let decode = |bytes: &prost::bytes::Bytes| {
        pb::FunctionData::decode(bytes.clone()).map_err(|error| Error::Invalid(format!("function_data cannot be decoded: {error}")))
    };
    let mut data = request.function_data.as_ref().map(decode).transpose()?.unwrap_or_default();
    data.ranked_functions.sort_by_key(|choice| choice.rank);
    let choices: Vec<_> = match request.function.clone().filter(|function| !function.is_empty()) {
        Some(function) => vec![function],
        None => data.ranked_functions.into_iter().filter_map(|choice| choice.function).collect(),
    };
    let view = |bytes: prost::bytes::Bytes| {
        let view = pb::Function::decode(bytes.clone());
        view.map(|view| (bytes, view)).map_err(|error| Error::Invalid(format!("the function cannot be decoded: {error}")))
    };
    let choices = choices.into_iter().map(view).collect::<Result<Vec<_>, _>>()?;
    let named = choices.first().map(|(_, view)| view.function_name.clone()).filter(|name| !name.is_empty());
    let name = named.unwrap_or(data.function_name);
    let (bytes, view) = gpu::choose(state, &name, choices)?;
    Ok((bytes, view, name))
}

pub(super) fn parse_all<T: std::str::FromStr<Err = shoal_state::NotAnId>>(ids: &[String]) -> Result<Vec<T>, Error> {
    ids.iter().map(|id| Ok(id.parse()?)).collect()
}

pub(super) async fn create(api: &Api, caller: &Caller, request: pb::FunctionCreateRequest) -> Result<pb::FunctionCreateResponse, Error> {
    let (app, _) = app::find(api, &request.app_id).await?;
    let (bytes, view, tag) = chosen(&api.local(), &request)?;
    super::schedule::check(&tag, &view, api.now())?;
    let id = if view.is_builder_function && request.existing_function_id.is_empty() {
        builder_id(app, &tag, &bytes)
    } else {
        existing(&request.existing_function_id, app, &tag)?
    };
    let function = Function {
        definition: api.keep_definition(&bytes).await?,
        image: if view.image_id.is_empty() { None } else { Some(view.image_id.parse()?) },
        mounts: parse_all(&view.mount_ids)?,
        secrets: parse_all(&view.secret_ids)?,
        resources: resources(view.resources.as_ref()),
        scaling: scaling::of(&view),
        retries: view.retry_policy.as_ref().map(retries).unwrap_or_default(),
        timeout_ms: if view.timeout_secs == 0 { TIMEOUT_MS } else { u64::from(view.timeout_secs) * 1000 },
        startup_timeout_ms: if view.startup_timeout_secs == 0 { TIMEOUT_MS } else { u64::from(view.startup_timeout_secs) * 1000 },
        inputs_concurrent: view.max_concurrent_inputs.max(1),
        batch_max: view.batch_max_size,
        batch_wait_ms: view.batch_linger_ms,
        single_use: view.single_use_containers || view.max_inputs == 1,
        block_network: view.block_network,
        builder: view.is_builder_function,
        ..Function::new(app, &tag, api.now())
    };
    scaling::check(&function.scaling)?;
    scaling::check_definition(&tag, &view)?;
    unserved::check(&tag, &view)?;
    let placement = placements::of(&bytes, &view);
    check_placement(&api.local(), &tag, &placement)?;
    check_gang(&api.local(), &tag, &function, &placement)?;
    check_disk(&api.local(), &format!("function '{tag}'"), function.resources.disk_bytes)?;
    // What is published already goes on as it is until the next publish, which names this definition.
    let definition = DefinitionId::derive(&[&caller.identity.scope(), caller.key().as_bytes(), &id.bits().to_le_bytes()]);
    let metadata = pb::FunctionHandleMetadata { definition_id: definition.to_string(), ..metadata_for(caller, id, &function, &view) };
    api.propose(Command::StageFunction { id, definition, function: Box::new(function) }).await?;
    Ok(pb::FunctionCreateResponse {
        function_id: id.to_string(),
        function_data: Some(request.function_data.unwrap_or_else(|| function_data(&bytes, &view))),
        function: Some(bytes),
        handle_metadata: Some(metadata),
        server_warnings: unused_placement(&api.local(), &tag, &placement).into_iter().chain(unserved::slower(&tag, &view)).collect(),
        ..Default::default()
    })
}

/// Refuses a function that no node may run.
fn check_placement(state: &State, tag: &str, placement: &Placement) -> Result<(), Error> {
    match placement.nowhere(state) {
        None => Ok(()),
        Some(why) => Err(Error::Invalid(format!(
            "function '{tag}' {why}. Change what it asks for, or label a node that it may run on: `shoal node label NODE region=REGION`, also cloud= and preemptible="
        ))),
    }
}

/// The most containers of one gang: their places are one decision, in one entry of the log.
const GANG_MAX: u32 = shoal_scheduler::ASSIGNS_MAX as u32;

/// Refuses a clustered function whose containers never fit here all at once.
fn check_gang(state: &State, tag: &str, function: &Function, placement: &Placement) -> Result<(), Error> {
    let Some(size) = placement.gang else { return Ok(()) };
    if size > GANG_MAX {
        return Err(Error::Invalid(format!(
            "function '{tag}' asks for clusters of {size} containers, and {GANG_MAX} is the most: use fewer, larger ones"
        )));
    }
    let holds = shoal_scheduler::holds(state, &function.resources, placement);
    if holds >= u64::from(size) || state.nodes.is_empty() {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "function '{tag}' can never run here: {}. Make the cluster or its containers smaller, or add nodes (`shoal node list` shows what there is)",
        shoal_scheduler::too_large(size, &function.resources, holds)
    )))
}

/// Refuses what sets more disk aside than any node has for containers; `what` asks for it.
pub(super) fn check_disk(state: &State, what: &str, bytes: u64) -> Result<(), Error> {
    let all = || state.nodes.values().map(|node| node.capacity.disk_bytes);
    let largest = all().max().unwrap_or(0);
    // A node of an earlier release does not say.
    if bytes <= largest || all().any(|has| has == 0) || state.nodes.is_empty() {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{what} asks for ephemeral_disk={}, in MiB, and no node of this cluster has so much for containers: {} is the most that could be had. Ask for less, or leave ephemeral_disk= out: then a container may write as much as there is",
        bytes / MIB,
        largest / MIB
    )))
}

/// Tells a user whose program asks for a region or a cloud, where the cluster has no labels for such.
fn unused_placement(state: &State, tag: &str, placement: &Placement) -> Option<pb::Warning> {
    let used = placement.within(state);
    if used == *placement {
        return None;
    }
    let words = placement.words();
    let message = format!(
        "function '{tag}' asks for {words}, which means nothing here: no node has such a label (`shoal node label NODE region=REGION`)"
    );
    Some(pb::Warning { r#type: pb::warning::WarningType::FunctionConfiguration.into(), message })
}

/// Wraps a function as clients expect it back: with at least one ranked choice that holds the whole of it.
pub(super) fn function_data(bytes: &prost::bytes::Bytes, view: &pb::Function) -> prost::bytes::Bytes {
    let data = pb::FunctionData {
        module_name: view.module_name.clone(),
        function_name: view.function_name.clone(),
        function_type: view.function_type,
        warm_pool_size: view.warm_pool_size,
        concurrency_limit: view.concurrency_limit,
        task_idle_timeout_secs: view.task_idle_timeout_secs,
        timeout_secs: view.timeout_secs,
        web_url: view.web_url.clone(),
        webhook_config: view.webhook_config.clone(),
        method_definitions: view.method_definitions.clone(),
        method_definitions_set: view.method_definitions_set,
        is_class: view.is_class,
        class_parameter_info: view.class_parameter_info.clone(),
        is_method: view.is_method,
        ranked_functions: vec![pb::function_data::RankedFunction { rank: 0, function: Some(bytes.clone()) }],
        schedule: view.schedule.clone(),
        autoscaler_settings: view.autoscaler_settings,
        function_schema: view.function_schema.clone(),
        supported_input_formats: view.supported_input_formats.clone(),
        supported_output_formats: view.supported_output_formats.clone(),
        ..Default::default()
    };
    data.encode_to_vec().into()
}

pub(super) async fn get_by_id(
    api: &Api,
    caller: &Caller,
    request: pb::FunctionGetByIdRequest,
) -> Result<pb::FunctionGetByIdResponse, Error> {
    let (id, function) = find(api, &request.function_id).await?;
    let bytes = definition(api, id, &function).await?;
    let view = pb::Function::decode(bytes.clone()).map_err(Error::failed(format!("cannot decode function {id}")))?;
    Ok(pb::FunctionGetByIdResponse {
        function: Some(function_data(&bytes, &view)),
        handle_metadata: Some(metadata_for(caller, id, &function, &view)),
    })
}

/// Says how busy a function is at this moment.
pub(super) async fn current_stats(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionGetCurrentStatsRequest,
) -> Result<pb::FunctionStats, Error> {
    let (id, function) = find(api, &request.function_id).await?;
    let state = api.local();
    let load = api.reports.load(&state).pools.get(&id).copied().unwrap_or_default();
    let tasks = state.tasks_of.get(&id).map_or(0, |tasks| u32::try_from(tasks.len()).unwrap_or(u32::MAX));
    let slots = tasks.saturating_mul(function.inputs_concurrent.max(1));
    Ok(pb::FunctionStats {
        backlog: load.waiting + load.delayed,
        num_total_tasks: tasks,
        num_running_inputs: load.running,
        input_headroom: slots.saturating_sub(load.running),
    })
}

pub(super) async fn class_create(api: &Api, caller: &Caller, request: pb::ClassCreateRequest) -> Result<pb::ClassCreateResponse, Error> {
    let (app, _) = app::find(api, &request.app_id).await?;
    let bytes = request.encode_to_vec();
    let id = if request.existing_class_id.is_empty() {
        ClassId::derive(&[caller.identity.scope().as_slice(), caller.key().as_bytes()])
    } else {
        request.existing_class_id.parse()?
    };
    let class = Class { id, app, definition: api.keep_definition(&bytes).await? };
    api.propose(Command::PutClass { class }).await?;
    Ok(pb::ClassCreateResponse {
        class_id: id.to_string(),
        handle_metadata: Some(pb::ClassHandleMetadata { methods: request.methods, ..Default::default() }),
    })
}
