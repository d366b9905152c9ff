//! What is decided of schedules, and when: a state, a clock, and the commands that follow.

use shoal_state::model::{App, AppLayout, Environment, Function, Lasting, NewRelease, NewSchedule, Period, Publish, Schedule, Timing};
use shoal_state::model::{AppState, Deployment};
use shoal_state::{AppId, Digest, EnvironmentId, VERSION_KNOWN};

use super::*;

const FUNCTION: FunctionId = FunctionId::from_random(1);
const START: u64 = 1_800_000_000_000;

fn every(seconds: u64) -> Timing {
    Timing::Period(Period { nanos: seconds * 1_000_000_000, ..Period::default() })
}

fn apply(state: &mut State, command: Command) {
    state.apply(&command).expect("it is taken");
}

/// Returns a state with one deployed function of this timing.
fn deployed(timing: Timing) -> State {
    let (mut state, app, environment) = (State::default(), AppId::from_random(1), EnvironmentId::from_random(1));
    let at = Timestamp(START);
    let next = shoal_timing::next_after(&timing, at, at).expect("a time");
    let deployment = Deployment { version: 0, name: "web".to_owned(), tag: String::new(), at, client_version: String::new() };
    let release = NewRelease { deployment, by: String::new(), commit: vec![], request: Digest::of(b"1") };
    let layout = AppLayout { functions: [("f".to_owned(), FUNCTION)].into_iter().collect(), ..AppLayout::default() };
    let publish = Publish { layout, definitions: Default::default(), tags: Default::default(), lasting: Lasting::Deployed(release), at };
    for command in [
        Command::SetVersion { version: VERSION_KNOWN },
        Command::CreateEnvironment { environment: Environment::new(environment, "main", at) },
        Command::CreateApp { id: app, app: App::new(environment, AppState::Initializing, at) },
        Command::PutFunction { id: FUNCTION, function: Box::new(Function::new(app, "f", at)) },
        Command::StageSchedules {
            app,
            request: Digest::of(b"1"),
            at,
            schedules: [(FUNCTION, NewSchedule { timing, next })].into_iter().collect(),
        },
        Command::Publish { id: app, publish: Box::new(publish) },
    ] {
        apply(&mut state, command);
    }
    state
}

/// Lets a leader look, and returns the times that it fired, in milliseconds after the start.
fn look(state: &mut State, after_start_ms: i64) -> Vec<i64> {
    let now = Timestamp((START as i64 + after_start_ms) as u64);
    let commands = due(state, now);
    let fired = commands.iter().filter_map(|command| match command {
        Command::Fire { due, .. } => Some(due.0 as i64 - START as i64),
        _ => None,
    });
    let fired = fired.collect();
    commands.into_iter().for_each(|command| apply(state, command));
    fired
}

#[test]
fn each_time_is_fired_once_and_on_time() {
    let mut state = deployed(every(2));
    assert_eq!(look(&mut state, 1_999), [0i64; 0]);
    assert_eq!(look(&mut state, 2_000), [2_000]);
    assert_eq!(look(&mut state, 2_000), [0i64; 0]);
    assert_eq!(look(&mut state, 4_100), [4_000]);
    // A leader whose clock is a little behind finds nothing to do.
    assert_eq!(look(&mut state, 3_900), [0i64; 0]);
    assert_eq!(look(&mut state, 6_000), [6_000]);
}

/// Two leaders that know the same decide the same; the state takes the first one's word.
#[test]
fn two_that_lead_fire_a_time_once() {
    let mut state = deployed(every(2));
    let (one, other) = (due(&state, Timestamp(START + 2_000)), due(&state, Timestamp(START + 2_300)));
    assert_eq!((one.len(), other.len()), (1, 1));
    apply(&mut state, one[0].clone());
    assert!(state.apply(&other[0]).is_err());
    assert_eq!(state.firings.len(), 1);
}

#[test]
fn what_was_missed_is_made_up_for_once_and_the_phase_stays() {
    let mut state = deployed(every(2));
    // Nobody led, or the clock was set forward, for a day.
    assert_eq!(look(&mut state, 86_400_500), [2_000]);
    assert_eq!(look(&mut state, 86_400_600), [0i64; 0]);
    assert_eq!(look(&mut state, 86_402_000), [86_402_000]);
}

#[test]
fn a_clock_that_was_set_back_repeats_no_time() {
    let mut state = deployed(every(60));
    assert_eq!(look(&mut state, 60_000), [60_000]);
    assert_eq!(look(&mut state, 1_800_000), [120_000]);
    // Half an hour back: what was fired is not fired again.
    for ms in (0..1_800_000).step_by(30_000) {
        assert_eq!(look(&mut state, ms), [0i64; 0], "at {ms}");
    }
    assert_eq!(look(&mut state, 1_860_000), [1_860_000]);
}

/// A leader with a clock of another year must not end a schedule for that long.
#[test]
fn a_clock_that_was_far_ahead_is_forgotten() {
    let year = 365 * 86_400_000;
    let mut state = deployed(every(60));
    assert_eq!(look(&mut state, year), [60_000]);
    assert_eq!(look(&mut state, year + 30_000_000), [year + 60_000]);
    assert_eq!(look(&mut state, 200_000), [0i64; 0]);
    assert_eq!(state.schedules[&FUNCTION].next, Timestamp(START + 240_000), "it goes on in its phase");
    assert_eq!(look(&mut state, 240_000), [240_000]);
    assert_eq!(look(&mut state, 300_000), [300_000]);
    // It was deployed by such a clock.
    assert_eq!(look(&mut state, -year), [0i64; 0]);
    assert_eq!(look(&mut state, 60_000 - year), [60_000 - year]);
}

/// While the home of its calls is away, a schedule waits for it with no more than so many calls.
#[test]
fn firings_without_calls_are_bounded() {
    let mut state = deployed(every(1));
    for second in 1..=Schedule::FIRINGS_MAX as i64 {
        assert_eq!(look(&mut state, second * 1000), [second * 1000]);
    }
    let full = Schedule::FIRINGS_MAX as i64 * 1000;
    assert_eq!(look(&mut state, full + 1000), [0i64; 0]);
    let firings = state.firings.iter().copied().collect();
    apply(&mut state, Command::EndFirings { firings });
    assert_eq!(look(&mut state, full + 9_500), [full + 1000]);
    assert_eq!(look(&mut state, full + 10_000), [full + 10_000]);
}
