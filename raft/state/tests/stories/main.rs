//! Golden scripts for the rules: `tests/golden/*.txt` are stories of commands and the answers they get.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p shoal-state` writes the answers; you read the diff.

mod commands;
mod line;
mod shown;

use std::fmt::Write as _;
use std::path::Path;

use shoal_state::model::Environment;
use shoal_state::{Command, EnvironmentId, State, Timestamp};

use commands::command;
use line::Line;
use shown::{shorten, show};

pub(crate) const MAIN: EnvironmentId = EnvironmentId::from_random(1);

fn run(script: &str) -> String {
    let (mut state, mut out, mut in_answer) = (State::default(), String::new(), false);
    let main = Environment { id: MAIN, name: "main".to_owned(), webhook_suffix: String::new(), created: Timestamp(0) };
    state.apply(&Command::CreateEnvironment { environment: main }).expect("the first environment");
    for text in script.lines() {
        if text == "---" {
            in_answer = true;
        } else if text.is_empty() {
            in_answer = false;
            out.push('\n');
        } else if text.starts_with('#') {
            in_answer = false;
            writeln!(out, "{text}").expect("a string takes it");
        } else if !in_answer {
            let line = Line::parse(text);
            let answer = if line.verb == "show" { show(&state, &line) } else { apply(&mut state, &line) };
            writeln!(out, "{text}\n---\n{}", shorten(&answer)).expect("a string takes it");
        }
    }
    out
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
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut seen = 0;
    for entry in std::fs::read_dir(&dir).expect("the stories") {
        let path = entry.expect("a story").path();
        let story = std::fs::read_to_string(&path).expect("a story");
        let told = run(&story);
        seen += 1;
        if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
            std::fs::write(&path, told).expect("a story is written");
        } else {
            assert_eq!(told, story, "{} tells another story; UPDATE_GOLDENFILES=1 writes it", path.display());
        }
    }
    assert!(seen >= 3, "only {seen} stories were found in {}", dir.display());
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
