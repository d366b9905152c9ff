//! What an app did in a span of time: its functions, as far as [`function_history`] tells, and its sandboxes.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use shoal_proto::modal_client as pb;
use shoal_state::{AppId, State};

use super::error::Error;
use super::function_history::{self, span};
use super::{Api, Caller, app, times};

/// How many functions are looked at beside one another.
const FUNCTIONS_AT_ONCE: usize = 4;

pub(super) async fn stats(
    api: &Api,
    _caller: &Caller,
    request: pb::AppGetTimeRangeStatsRequest,
) -> Result<pb::AppGetTimeRangeStatsResponse, Error> {
    let (id, found) = app::find(api, &request.app_id).await?;
    let (since, until) = span(api, request.since, request.until);
    let functions = stream::iter(found.layout.functions.clone()).map(|(name, function)| async move {
        let counts = counts(&function_history::sum(api, function, since, until).await?);
        Ok::<_, Error>((name, pb::AppFunctionStats { object_id: function.to_string(), counts: Some(counts) }))
    });
    let by_name: BTreeMap<String, pb::AppFunctionStats> = functions.buffer_unordered(FUNCTIONS_AT_ONCE).try_collect().await?;
    let state = api.local();
    let deployments = found.deployments.iter().filter(|deployment| (since..until).contains(&deployment.at.0)).count();
    Ok(pb::AppGetTimeRangeStatsResponse {
        since: Some(times::of_ms(since)),
        until: Some(times::of_ms(until)),
        functions: Some(pb::AppFunctionStatsGroup { total: Some(total(&by_name)), by_name }),
        // Shoal has none.
        servers: None,
        sandboxes: Some(sandboxes(&state, id, since, until)),
        lifecycle: Some(app::lifecycle(&state, id, &found)),
        deployment_count: (!found.deployments.is_empty()).then_some(deployments as u64),
    })
}

fn counts(of: &pb::FunctionGetTimeRangeStatsResponse) -> pb::AppFunctionCounts {
    let (succeeded, failed) = (of.input_success_count, of.input_failure_count + of.input_timeout_count);
    pb::AppFunctionCounts {
        calls: Some(pb::AppCallCounts { total: succeeded + failed, succeeded, failed }),
        containers: Some(pb::AppContainerCounts {
            container_errors: of.container_error_count,
            container_active_count: of.container_total_count,
        }),
    }
}

fn total(of: &BTreeMap<String, pb::AppFunctionStats>) -> pb::AppFunctionCounts {
    let (mut calls, mut containers) = (pb::AppCallCounts::default(), pb::AppContainerCounts::default());
    for counts in of.values().filter_map(|stats| stats.counts.as_ref()) {
        if let Some(of) = &counts.calls {
            calls.total += of.total;
            calls.succeeded += of.succeeded;
            calls.failed += of.failed;
        }
        if let Some(of) = &counts.containers {
            containers.container_errors += of.container_errors;
            containers.container_active_count += of.container_active_count;
        }
    }
    pb::AppFunctionCounts { calls: Some(calls), containers: Some(containers) }
}

/// Counts the sandboxes of an app that ended in a time, and those that were there at its end. Ended ones are known for a day.
fn sandboxes(state: &State, app: AppId, since: u64, until: u64) -> pb::AppSandboxCounts {
    let of_app = || state.sandboxes.values().filter(|sandbox| sandbox.app == app);
    let finished = of_app().filter_map(|sandbox| sandbox.ended.as_ref()).filter(|end| (since..until).contains(&end.at.0)).count() as u64;
    let lived = of_app().filter(|sandbox| sandbox.created.0 < until);
    let live = lived.filter(|sandbox| sandbox.ended.as_ref().is_none_or(|end| end.at.0 >= until)).count() as u64;
    pb::AppSandboxCounts { total: finished + live, finished, live }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_timed_out_has_failed_and_a_total_is_of_all_functions() {
        let of = |input_success_count, input_timeout_count, container_total_count| {
            let counts = counts(&pb::FunctionGetTimeRangeStatsResponse {
                input_success_count,
                input_failure_count: 1,
                input_timeout_count,
                container_error_count: 1,
                container_total_count,
                ..Default::default()
            });
            pb::AppFunctionStats { object_id: String::new(), counts: Some(counts) }
        };
        let total = total(&[("f".to_owned(), of(5, 2, 3)), ("g".to_owned(), of(1, 0, 1))].into());
        assert_eq!(total.calls, Some(pb::AppCallCounts { total: 10, succeeded: 6, failed: 4 }));
        assert_eq!(total.containers, Some(pb::AppContainerCounts { container_errors: 2, container_active_count: 4 }));
    }
}
