//! Stories of a follower and its voters: `tests/golden/follow.txt` of the crate. `UPDATE_GOLDENFILES=1 cargo test -p shoal-raft` writes
//! what comes of each line; you read the diff.

use std::fmt::Write as _;
use std::path::Path;

use super::*;

fn id(number: &str) -> NodeId {
    NodeId::from_random(number.parse().expect("a number"))
}

fn name(node: NodeId) -> String {
    format!("n{}", node.bits() & 0xff)
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs_f64(text.parse().expect("seconds"))
}

/// Does what the loop does with the rules, and says what came of it.
fn turn(choice: &mut Choice, now: Duration) -> String {
    let mut said = String::new();
    if let Some(why) = choice.leave(now) {
        let node = choice.followed.expect("one that is left was followed").node;
        choice.left(now, why);
        let _ = write!(said, "leaves {}: {why}; ", name(node));
    }
    if let Some(followed) = choice.followed {
        return said + &format!("follows {}", name(followed.node));
    }
    said + &match choice.next(now) {
        Next::Follow(node) => {
            choice.begin(node, now);
            choice.decided(now, 0);
            format!("begins with {}", name(node))
        }
        Next::Wait(wait) => format!("waits {wait:?}"),
        Next::Nobody => "knows nobody".to_owned(),
    }
}

/// `AT VERB …`: what happened, so many seconds after the beginning.
fn line(choice: &mut Choice, text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let now = seconds(words[0]);
    match words[1..] {
        ["voters", ref voters @ ..] => choice.vote(voters.iter().map(|voter| id(voter))),
        ["stands", touch, leader, applied] => {
            let leader = leader.strip_prefix("leader=").filter(|leader| *leader != "-").map(id);
            choice.stands(now, touch == "in-touch", leader, applied.parse().expect("an index"));
        }
        ["told", upto] => choice.told(now, upto.parse().expect("an index")),
        ["decided", upto] => choice.decided(now, upto.parse().expect("an index")),
        ["broken"] => choice.left(now, Trouble::Broken),
        ["stood-still"] => choice.stood_still(now),
        ["looks"] => {}
        _ => panic!("not understood: {text}"),
    }
    turn(choice, now)
}

#[test]
fn the_stories_come_out_as_written() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/follow.txt");
    shoal_stories::hold(&path, |story| {
        let (mut told, mut choice) = (String::new(), Choice::new(id("99")));
        for text in story.lines().filter(|text| !text.starts_with("  ")) {
            let _ = writeln!(told, "{text}");
            if text.is_empty() {
                choice = Choice::new(id("99"));
            } else if !text.starts_with('#') {
                let _ = writeln!(told, "  {}", line(&mut choice, text));
            }
        }
        told
    });
}

/// Of many followers each voter but the leader has its share.
#[test]
fn followers_spread_over_the_voters() {
    let voters = ["1", "2", "3"].map(id);
    let mut crowd: BTreeMap<NodeId, usize> = BTreeMap::new();
    for me in 100..160 {
        let mut choice = Choice::new(NodeId::from_random(me));
        choice.vote(voters);
        choice.leader = Some(voters[0]);
        let Next::Follow(node) = choice.next(Duration::ZERO) else { panic!("there are voters") };
        *crowd.entry(node).or_default() += 1;
    }
    assert!(!crowd.contains_key(&voters[0]) && crowd.len() == 2 && crowd.values().all(|crowd| *crowd > 15), "{crowd:?}");
}
