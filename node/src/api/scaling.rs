//! How functions scale: what the program says, what was changed at run time, and how many inputs a container takes.

use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_state::model::{Function, Scaling};
use shoal_state::{Command, FunctionId};

use super::error::Error;
use super::{Api, Caller, function};

/// How long an idle container waits when nobody says, in milliseconds: the original's default.
const SCALEDOWN_MS: u64 = 60_000;

/// Reads how a function scales from its definition. Older clients say it outside of the settings.
pub(super) fn of(view: &pb::Function) -> Scaling {
    let settings = view.autoscaler_settings.unwrap_or_default();
    let idle_seconds = settings.scaledown_window.unwrap_or(view.task_idle_timeout_secs);
    Scaling {
        containers_min: if has_parameters(view) { 0 } else { settings.min_containers.unwrap_or(view.warm_pool_size) },
        containers_max: settings.max_containers.unwrap_or(view.concurrency_limit),
        containers_buffer: settings.buffer_containers.unwrap_or(view.experimental_buffer_containers),
        scaledown_ms: if idle_seconds == 0 { SCALEDOWN_MS } else { u64::from(idle_seconds) * 1000 },
    }
}

/// Says whether this is a class with parameters: it has no containers itself, its instances have.
fn has_parameters(view: &pb::Function) -> bool {
    let info = view.class_parameter_info.clone().map(pb::ClassParameterInfo::decode);
    info.is_some_and(|info| info.is_ok_and(|info| !info.schema.is_empty()))
}

/// Refuses settings that can't be kept together.
pub(super) fn check(scaling: &Scaling) -> Result<(), Error> {
    let Scaling { containers_min: min, containers_max: max, .. } = *scaling;
    if max > 0 && min > max {
        let cure = "lower min_containers or raise max_containers";
        return Err(Error::Invalid(format!("min_containers is {min}, which is more than max_containers, {max}: {cure}")));
    }
    Ok(())
}

/// Refuses a function that is defined to have no container ever.
pub(super) fn check_definition(tag: &str, view: &pb::Function) -> Result<(), Error> {
    match view.autoscaler_settings.and_then(|settings| settings.max_containers) {
        Some(0) => Err(Error::Invalid(format!(
            "function '{tag}' has max_containers=0, with which no container could ever run it: leave max_containers out for no maximum, or give 1 or more"
        ))),
        _ => Ok(()),
    }
}

fn settings(scaling: &Scaling) -> pb::AutoscalerSettings {
    pb::AutoscalerSettings {
        min_containers: Some(scaling.containers_min),
        max_containers: Some(scaling.containers_max),
        buffer_containers: Some(scaling.containers_buffer),
        scaledown_window: Some(u32::try_from(scaling.scaledown_ms / 1000).unwrap_or(u32::MAX)),
        ..Default::default()
    }
}

/// Returns only the settings in which `now` differs from `before`.
fn changes(before: &Scaling, now: &Scaling) -> pb::AutoscalerSettings {
    let (before, now) = (settings(before), settings(now));
    let changed = |before: Option<u32>, now: Option<u32>| now.filter(|_| before != now);
    pb::AutoscalerSettings {
        min_containers: changed(before.min_containers, now.min_containers),
        max_containers: changed(before.max_containers, now.max_containers),
        buffer_containers: changed(before.buffer_containers, now.buffer_containers),
        scaledown_window: changed(before.scaledown_window, now.scaledown_window),
        ..Default::default()
    }
}

/// What the function's definition says, whatever was changed since.
async fn defined(api: &Api, id: FunctionId, function: &Function) -> Result<Scaling, Error> {
    let bytes = function::definition(api, id, function).await?;
    let view = pb::Function::decode(bytes).map_err(Error::failed(format!("cannot decode function '{}'", function.tag)))?;
    Ok(of(&view))
}

pub(super) async fn get(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionGetSchedulingParamsRequest,
) -> Result<pb::FunctionGetSchedulingParamsResponse, Error> {
    let (id, function) = function::find(api, &request.function_id).await?;
    let defined = defined(api, id, &function).await?;
    let configuration = pb::AutoscalerConfiguration {
        settings: Some(settings(&function.scaling)),
        default_settings: Some(settings(&of(&pb::Function::default()))),
        static_settings: Some(settings(&defined)),
        override_settings: Some(changes(&defined, &function.scaling)),
        ..Default::default()
    };
    Ok(pb::FunctionGetSchedulingParamsResponse { autoscaler_configuration: Some(configuration) })
}

/// Changes the settings that are named and keeps the others, until the next deployment puts the function anew.
pub(super) async fn update(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionUpdateSchedulingParamsRequest,
) -> Result<pb::FunctionUpdateSchedulingParamsResponse, Error> {
    let (id, function) = function::find(api, &request.function_id).await?;
    let scaling = changed(function.scaling, &request);
    check(&scaling)?;
    if scaling != function.scaling {
        api.propose(Command::ScaleFunction { id, scaling }).await?;
    }
    Ok(pb::FunctionUpdateSchedulingParamsResponse { current_settings: Some(settings(&scaling)) })
}

fn changed(mut scaling: Scaling, request: &pb::FunctionUpdateSchedulingParamsRequest) -> Scaling {
    let Some(settings) = request.settings else {
        // How older clients keep containers warm.
        return Scaling { containers_min: request.warm_pool_size_override, ..scaling };
    };
    let set = |value: &mut u32, to: Option<u32>| *value = to.unwrap_or(*value);
    set(&mut scaling.containers_min, settings.min_containers);
    set(&mut scaling.containers_max, settings.max_containers);
    set(&mut scaling.containers_buffer, settings.buffer_containers);
    if let Some(seconds) = settings.scaledown_window {
        scaling.scaledown_ms = if seconds == 0 { SCALEDOWN_MS } else { u64::from(seconds) * 1000 };
    }
    scaling
}

/// Says how many inputs a container should have at once: its target, and as many as it can take while inputs wait that no
/// container has.
pub(super) async fn concurrency(
    api: &Api,
    caller: &Caller,
    request: pb::FunctionGetDynamicConcurrencyRequest,
) -> Result<pb::FunctionGetDynamicConcurrencyResponse, Error> {
    let (_, task) = super::container::task_of(api, caller)?;
    let waiting = api.reports.load(&api.local()).pools.get(&task.function).map_or(0, |pool| pool.waiting);
    let concurrency = if waiting > 0 { request.max_concurrency } else { request.target_concurrency };
    Ok(pb::FunctionGetDynamicConcurrencyResponse { concurrency: concurrency.max(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(settings: pb::AutoscalerSettings) -> pb::FunctionUpdateSchedulingParamsRequest {
        pb::FunctionUpdateSchedulingParamsRequest { settings: Some(settings), ..Default::default() }
    }

    #[test]
    fn what_an_update_does_not_name_stays() {
        let before = Scaling { containers_min: 2, containers_max: 3, containers_buffer: 1, scaledown_ms: 2000 };
        let nothing = changed(before, &update(pb::AutoscalerSettings::default()));
        assert_eq!(nothing, before);
        let after =
            changed(before, &update(pb::AutoscalerSettings { max_containers: Some(0), scaledown_window: Some(5), ..Default::default() }));
        assert_eq!(after, Scaling { containers_max: 0, scaledown_ms: 5000, ..before });
        let differ = changes(&before, &after);
        assert_eq!((differ.min_containers, differ.max_containers, differ.scaledown_window), (None, Some(0), Some(5)));
    }

    #[test]
    fn a_definition_that_allows_no_container_is_refused_and_none_at_all_is_no_maximum() {
        let function = |max_containers| pb::Function {
            autoscaler_settings: Some(pb::AutoscalerSettings { max_containers, ..Default::default() }),
            ..Default::default()
        };
        let said = check_definition("train", &function(Some(0))).unwrap_err().to_string();
        assert!(said.contains("function 'train' has max_containers=0"), "{said}");
        assert!(check_definition("train", &function(Some(1))).is_ok() && check_definition("train", &function(None)).is_ok());
    }

    #[test]
    fn an_older_client_sets_only_the_minimum() {
        let before = Scaling { containers_min: 2, containers_max: 3, containers_buffer: 1, scaledown_ms: 2000 };
        let request = pb::FunctionUpdateSchedulingParamsRequest { warm_pool_size_override: 1, ..Default::default() };
        assert_eq!(changed(before, &request), Scaling { containers_min: 1, ..before });
    }

    #[test]
    fn a_minimum_above_the_maximum_is_refused_with_both() {
        let scaling = Scaling { containers_min: 5, containers_max: 2, ..Scaling::default() };
        let said = check(&scaling).unwrap_err().to_string();
        assert!(said.contains('5') && said.contains('2'), "{said}");
        assert!(check(&Scaling { containers_max: 0, ..scaling }).is_ok(), "0 means no maximum");
    }
}
