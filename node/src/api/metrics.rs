//! Series of figures: what a function did, in equal spans of time, as `function_history` finds it in the records of calls.
//!
//! Caveat: of a function with many inputs the newest are looked at. Of spans before the oldest of those nothing is said.

use std::ops::Range;

use shoal_calls::calls::Millis;
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::FunctionCallInputStatus as Stands;
use shoal_proto::modal_client::metrics_get_info_request::MetricsTargetType as Target;

use super::error::Error;
use super::function_history::{INPUTS_MAX, Row, functions, percentile, rows, span, touches};
use super::{Api, Caller, times};

/// How long the spans may be, in seconds, that are chosen where nobody says it: the shortest of which there are not too many.
const WIDTHS: [u32; 9] = [60, 120, 300, 600, 900, 1800, 3600, 4 * 3600, 24 * 3600];
/// How many spans there are at most where nobody says how long they are.
const POINTS_AIM: u64 = 120;
/// How many spans there may be.
const POINTS_MAX: u64 = 500;
/// How long a time may be asked about.
const SPAN_MAX_MS: Millis = 31 * 24 * 3600 * 1000;

/// A series.
struct Series {
    group: &'static str,
    name: &'static str,
    unit: &'static str,
    says: &'static str,
    value: Value,
}

/// What the values of a series are.
enum Value {
    /// How many inputs ended so in a span.
    Ended(&'static [Stands]),
    /// A percentile of what successful inputs that ended in a span took, in hundredths of a percent.
    Took(fn(&Row) -> Option<f64>, u32),
}

/// Groups, with what their values say.
const GROUPS: [(&str, &str); 2] =
    [("calls", "Inputs that ended, each item of a map for itself"), ("latency", "What successful inputs took")];

const fn count(name: &'static str, says: &'static str, of: &'static [Stands]) -> Series {
    Series { group: "calls", name, unit: "calls", says, value: Value::Ended(of) }
}

const fn took(name: &'static str, says: &'static str, of: fn(&Row) -> Option<f64>, points: u32) -> Series {
    Series { group: "latency", name, unit: "seconds", says, value: Value::Took(of, points) }
}

const EXECUTION: &str = "From an input's start in a container to its end";
const END_TO_END: &str = "From when an input was put to its end";

const SERIES: [Series; 10] = [
    count("successful_calls_count", "Inputs that ended with a result", &[Stands::Success]),
    count(
        "failed_calls_count",
        "Inputs that ended with an exception, or with their container",
        &[Stands::Failure, Stands::InternalFailure],
    ),
    count("timed_out_calls_count", "Inputs that took longer than they may", &[Stands::Timeout]),
    count("init_failed_calls_count", "Inputs whose container could not be started", &[Stands::InitFailure]),
    took("execution_time_p50", EXECUTION, Row::executed, 5000),
    took("execution_time_p90", EXECUTION, Row::executed, 9000),
    took("execution_time_p99", EXECUTION, Row::executed, 9900),
    took("end_to_end_latency_p50", END_TO_END, Row::latency, 5000),
    took("end_to_end_latency_p90", END_TO_END, Row::latency, 9000),
    took("end_to_end_latency_p99", END_TO_END, Row::latency, 9900),
];

pub(super) async fn info(api: &Api, _caller: &Caller, request: pb::MetricsGetInfoRequest) -> Result<pb::MetricsGetInfoResponse, Error> {
    if request.target_type() == Target::Server {
        return Err(Error::Unimplemented("Shoal has no servers (modal.Server) yet, and so no figures of them".to_owned()));
    }
    let (since, until) = span(api, request.since, request.until);
    let spans = Spans::new(since, until, request.bucket_secs)?;
    let groups = wanted(&request.groups)?.into_iter().map(|(name, says)| pb::MetricGroupDefinition {
        name: name.to_owned(),
        description: says.to_owned(),
        metrics: SERIES.iter().filter(|series| series.group == name).map(definition).collect(),
        display_name: String::new(),
    });
    let bucket_count = u32::try_from(spans.count()).unwrap_or(u32::MAX);
    Ok(pb::MetricsGetInfoResponse { groups: groups.collect(), bucket_secs: spans.seconds, bucket_count })
}

pub(super) async fn of_function(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionGetMetricsRequest,
) -> Result<pb::FunctionGetMetricsResponse, Error> {
    let (since, until) = span(api, request.since, request.until);
    let (spans, groups) = (Spans::new(since, until, request.bucket_secs)?, wanted(&request.groups)?);
    let of = functions(api, &request.function_id, request.rollup).await?;
    let Range { start, end } = spans.of;
    let rows = rows(api, &of, INPUTS_MAX, |call| touches(call, start, end)).await?;
    let known_from = if rows.len() < INPUTS_MAX { 0 } else { rows.iter().map(|row| row.put_ms).min().unwrap_or(0) };
    let wanted = SERIES.iter().filter(|series| groups.iter().any(|(group, _)| *group == series.group));
    let told = wanted.map(|series| {
        let pb::MetricDefinition { name, unit, description } = definition(series);
        pb::FunctionMetricSeries { name, unit, description, points: spans.points(&series.value, &rows, known_from) }
    });
    let series = told.collect();
    Ok(pb::FunctionGetMetricsResponse {
        since: Some(times::of_ms(start)),
        until: Some(times::of_ms(end)),
        bucket_secs: spans.seconds,
        series,
    })
}

fn definition(of: &Series) -> pb::MetricDefinition {
    pb::MetricDefinition { name: of.name.to_owned(), unit: of.unit.to_owned(), description: of.says.to_owned() }
}

/// Returns the groups that are asked for: all, where none is named.
fn wanted(names: &[String]) -> Result<Vec<(&'static str, &'static str)>, Error> {
    if let Some(unknown) = names.iter().find(|name| GROUPS.iter().all(|(group, _)| group != name)) {
        let there = GROUPS.map(|(group, _)| group).join(", ");
        return Err(Error::Invalid(format!("there is no group of metrics '{unknown}': there are {there}")));
    }
    Ok(GROUPS.into_iter().filter(|(group, _)| names.is_empty() || names.iter().any(|name| name == group)).collect())
}

/// A time cut into equal spans, each beginning at a multiple of its length.
#[derive(Debug, PartialEq, Eq)]
struct Spans {
    /// Of whole spans.
    of: Range<Millis>,
    seconds: u32,
}

impl Spans {
    fn new(since: Millis, until: Millis, seconds: Option<u32>) -> Result<Self, Error> {
        let long = until.saturating_sub(since);
        if long == 0 || long > SPAN_MAX_MS {
            return Err(Error::Invalid("metrics are told of a time that ends after its begin, of 31 days at most".to_owned()));
        }
        let fits = |seconds: &u32| long / (u64::from(*seconds) * 1000) <= POINTS_AIM;
        let seconds = seconds.unwrap_or_else(|| WIDTHS.into_iter().find(fits).unwrap_or(WIDTHS[WIDTHS.len() - 1]));
        if seconds < WIDTHS[0] {
            return Err(Error::Invalid(format!("metrics are told of spans of at least {} s, and not of {seconds} s", WIDTHS[0])));
        }
        let down = |ms: Millis| ms - ms % (u64::from(seconds) * 1000);
        let spans = Self { of: down(since)..down(until), seconds };
        if spans.count() > POINTS_MAX {
            let count = spans.count();
            return Err(Error::Invalid(format!("metrics are told of {POINTS_MAX} spans at most, and not of {count}: ask for longer ones")));
        }
        Ok(spans)
    }

    fn length(&self) -> Millis {
        u64::from(self.seconds) * 1000
    }

    fn count(&self) -> u64 {
        (self.of.end - self.of.start) / self.length()
    }

    /// Returns a value for each span; none where nothing is known, which is so before a time.
    fn points(&self, value: &Value, rows: &[Row], known_from: Millis) -> Vec<pb::FunctionMetricPoint> {
        let mut in_span: Vec<Vec<&Row>> = (0..self.count()).map(|_| Vec::new()).collect();
        for row in rows {
            let place = row.ended_ms.and_then(|at| Some(at.checked_sub(self.of.start)? / self.length()));
            if let Some(rows) = place.and_then(|place| in_span.get_mut(usize::try_from(place).ok()?)) {
                rows.push(row);
            }
        }
        let point = |(at, rows): (Millis, Vec<&Row>)| {
            let value = match value {
                _ if at < known_from => None,
                Value::Ended(stands) => Some(rows.iter().filter(|row| stands.contains(&row.stands)).count() as f64),
                Value::Took(of, points) => {
                    let done = rows.into_iter().filter(|row| row.stands == Stands::Success);
                    let mut seconds: Vec<f64> = done.filter_map(of).collect();
                    seconds.sort_by(f64::total_cmp);
                    percentile(&seconds, *points)
                }
            };
            pb::FunctionMetricPoint { timestamp: Some(times::of_ms(at)), value }
        };
        let begins = self.of.clone().step_by(usize::try_from(self.length()).unwrap_or(usize::MAX));
        begins.zip(in_span).map(point).collect()
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::CallId;

    use super::*;

    const MINUTE: Millis = 60_000;

    #[test]
    fn a_time_is_cut_at_multiples_of_a_length_that_leaves_about_a_hundred_spans() {
        assert_eq!(Spans::new(90_500, 60 * MINUTE + 500, None).unwrap(), Spans { of: MINUTE..60 * MINUTE, seconds: 60 });
        assert_eq!(Spans::new(0, 24 * 60 * MINUTE, None).unwrap().seconds, 900);
        assert_eq!(Spans::new(0, SPAN_MAX_MS, None).unwrap().seconds, 24 * 3600);
        for (since, until, seconds) in [(5, 5, None), (0, SPAN_MAX_MS + 1, None), (0, MINUTE, Some(59)), (0, 24 * 60 * MINUTE, Some(60))] {
            assert!(Spans::new(since, until, seconds).is_err(), "{since} {until} {seconds:?}");
        }
    }

    #[test]
    fn inputs_count_in_the_span_in_which_they_ended_and_nothing_is_said_of_what_is_not_known() {
        let row = |put_ms, ended_ms, stands| {
            let (call, started_ms) = (CallId::from_random(1), Some(put_ms + 1000));
            Row { call, put_ms, started_ms, ended_ms: Some(ended_ms), task: None, stands }
        };
        let rows = [
            row(0, MINUTE + 1000, Stands::Success),
            row(MINUTE, MINUTE + 3000, Stands::Success),
            row(MINUTE, 3 * MINUTE, Stands::Timeout),
            row(MINUTE, 9 * MINUTE, Stands::Success),
        ];
        let spans = Spans { of: 0..4 * MINUTE, seconds: 60 };
        let values = |value: &Value, known| spans.points(value, &rows, known).into_iter().map(|point| point.value).collect::<Vec<_>>();
        assert_eq!(values(&Value::Ended(&[Stands::Success]), 0), [Some(0.0), Some(2.0), Some(0.0), Some(0.0)]);
        assert_eq!(values(&Value::Ended(&[Stands::Timeout]), 1), [None, Some(0.0), Some(0.0), Some(1.0)]);
        assert_eq!(values(&Value::Took(Row::executed, 5000), 0), [None, Some(2.0), None, None]);
    }

    #[test]
    fn groups_are_all_or_those_that_are_named() {
        assert_eq!(wanted(&[]).unwrap().len(), GROUPS.len());
        assert_eq!(wanted(&["calls".to_owned()]).unwrap()[0].0, "calls");
        assert!(wanted(&["gpu".to_owned()]).unwrap_err().to_string().contains("there are calls, latency"));
        assert!(SERIES.iter().all(|series| GROUPS.iter().any(|(group, _)| *group == series.group)));
    }
}
