//! Golden scripts for the rules: `tests/golden/*.txt` are stories of commands and the answers they get.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p shoal-state` writes the answers; you read the diff.

mod commands;
mod shown;

use std::path::Path;

use shoal_state::model::Environment;
use shoal_state::{Command, EnvironmentId, State, Timestamp};
use shoal_stories::{Line, World};

use commands::command;
use shown::{shorten, show};

pub(crate) const MAIN: EnvironmentId = EnvironmentId::from_random(1);

/// A state with its first environment.
struct Rules(State);

impl Default for Rules {
    fn default() -> Self {
        let mut state = State::default();
        let main = Environment { id: MAIN, name: "main".to_owned(), webhook_suffix: String::new(), created: Timestamp(0) };
        state.apply(&Command::CreateEnvironment { environment: main }).expect("the first environment");
        Self(state)
    }
}

impl World for Rules {
    fn run(&mut self, line: &Line<'_>) -> Vec<String> {
        let answer = if line.verb == "show" { show(&self.0, line) } else { apply(&mut self.0, line) };
        vec![shorten(&answer)]
    }
}

/// Applies a command; a refusal must leave the state as it was.
fn apply(state: &mut State, line: &Line<'_>) -> String {
    let before = state.clone();
    match state.apply(&command(line)) {
        Ok(events) if events.len() > 4 => format!("ok: {} events", events.len()),
        Ok(events) => format!("ok: {events:?}"),
        Err(refused) => {
            assert!(*state == before, "{} was refused and changed the state", line.verb);
            format!("refused: {refused}")
        }
    }
}

#[test]
fn the_rules_answer_as_the_stories_say() {
    shoal_stories::check::<Rules>(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), 3);
}

/// A follower of an older build must be able to read what a newer one sends while the older rules hold.
#[test]
fn a_state_of_version_1_is_written_as_version_1_wrote_it() {
    let mut state = State::default();
    state.apply(&command(&Line::parse("environment 1 main"))).expect("it is taken");
    let bytes = |state: &State| postcard::to_stdvec(state).expect("a state is written");
    let old = bytes(&state);
    // The version and its 16 maps, of which one holds something; no field that came later.
    let environment = postcard::to_stdvec(state.environments.get(&MAIN).expect("it is there")).expect("it is written");
    let key = postcard::to_stdvec(&MAIN).expect("it is written");
    assert_eq!(old.len(), 1 + 16 + key.len() + environment.len());
    let read: State = postcard::from_bytes(&old).expect("a state is read");
    assert!(read == state);
    state.apply(&Command::SetVersion { version: 2 }).expect("it is taken");
    assert_eq!(bytes(&state).len(), old.len() + 5, "five maps more");
}

#[test]
fn a_state_reads_back_as_it_was_written() {
    let mut state = State::default();
    let texts = [
        "environment 1 main",
        "node 1",
        "app 1",
        "function 1",
        "assign 1",
        "init_shards 1",
        "version 2",
        "publish 1 functions=f:1 name=web",
        "stage 1 definition=3",
        "note 1 tags=a:b",
        "update_environment 1 builder=2025.06",
        "write_secret 1 name=s",
        "version 6",
        "stage_schedules 1 request=1 period=1:5 cron=2:UTC next=20",
        "publish 1 functions=f:1 name=web request=1",
        "fire 1 due=20 next=30",
        "stage_schedules 1 request=2 period=1:7",
    ];
    for text in texts {
        state.apply(&command(&Line::parse(text))).expect("each is taken");
    }
    let bytes = postcard::to_stdvec(&state).expect("a state is written");
    assert!(postcard::from_bytes::<State>(&bytes).expect("a state is read") == state);
}
