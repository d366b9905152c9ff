//! What an older release wrote is read, decided and written by this one as by that: `tests/written/VERSION/STORY.txt`.
//!
//! While nodes are upgraded one by one they apply the same entries, send each other states, and read what they find on their disks. So
//! each file has, in hexadecimal, the commands of a story as that release encoded them, each behind a `+` if it took it or a `-` if
//! it refused, and behind `=` the state that came of them. Nothing in these files ever changes. When a version is released, its own are
//! written by the same stories, at that commit.

use std::path::Path;

use shoal_state::written::bytes;
use shoal_state::{Command, State};

fn written<T: serde::Serialize>(what: &T) -> Vec<u8> {
    postcard::to_stdvec(what).expect("it can be written")
}

fn hold(story: &str, told: &str) {
    let mut state = State::default();
    for (number, line) in told.lines().enumerate() {
        let (mark, body) = (line.as_bytes()[0], bytes(&line[1..]));
        if mark == b'=' {
            assert_eq!(written(&state), body, "{story}: the commands lead to another state than then");
            let read: State = postcard::from_bytes(&body).unwrap_or_else(|error| panic!("{story}: its state cannot be read: {error}"));
            assert!(read == state, "{story}: its state is read as another one");
            continue;
        }
        let at = format!("{story}, command {number}");
        let command: Command = postcard::from_bytes(&body).unwrap_or_else(|error| panic!("{at} cannot be read: {error}"));
        assert_eq!(written(&command), body, "{at} is written in another way now: {command:?}");
        assert_eq!(state.apply(&command).is_ok(), mark == b'+', "{at} is answered in another way now: {command:?}");
    }
}

#[test]
fn what_older_releases_wrote_means_what_it_meant() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/written");
    let mut stories = 0;
    for version in std::fs::read_dir(&dir).expect("the versions") {
        for story in std::fs::read_dir(version.expect("a version").path()).expect("its stories") {
            let path = story.expect("a story").path();
            hold(&path.display().to_string(), &std::fs::read_to_string(&path).expect("a story"));
            stories += 1;
        }
    }
    assert!(stories >= 10, "only {stories} stories were found in {}", dir.display());
}
