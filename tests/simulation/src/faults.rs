//! What goes wrong: processes that end, machines that restart, nodes that stand still, wires that are cut in one way or in both or are
//! slow, leaders that apply slowly. Which of these there are, and how often, is the seed's.

use std::time::Duration;

use crate::extras::Extra;
use crate::history::Event;
use crate::time::WORLD;
use crate::world::World;

/// What is said of a node when a trouble of it is over.
pub const OVER: [&str; 3] = ["whole again", "goes on", "quick again"];
/// Faults begin before this time.
pub const LAST: Duration = Duration::from_secs(25);
/// Faults begin after this time: shards have found their places.
const FIRST_MS: u64 = 4_000;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Crash,
    Machine,
    Cut,
    CutOneWay,
    Apart,
    Pause,
    Slow,
    SlowApply,
    Succession,
    /// All wires but those of one node, each in both ways or in one.
    Star,
    /// A wire that breaks again and again.
    Flap,
    /// A wire is cut, and later one ends or stands still that both its ends reach.
    Between,
}

/// What there is where things are said around wires that are cut.
const PARTIAL: [Fault; 5] = [Fault::Cut, Fault::CutOneWay, Fault::Star, Fault::Flap, Fault::Between];

const ALL: [Fault; 9] = [
    Fault::Crash,
    Fault::Machine,
    Fault::Cut,
    Fault::CutOneWay,
    Fault::Apart,
    Fault::Pause,
    Fault::Slow,
    Fault::SlowApply,
    Fault::Succession,
];

/// Breaks and mends, then lets all be whole.
pub async fn run(world: World) {
    // In some worlds there is one kind alone: what it may excuse is then no excuse for others.
    let mut kinds: Vec<Fault> = match world.draw(0, 3) {
        0 => vec![ALL[usize::try_from(world.draw(0, ALL.len() as u64 - 1)).unwrap_or(0)]],
        1 => vec![Fault::Crash, Fault::SlowApply, Fault::Succession],
        _ => ALL.to_vec(),
    };
    if world.there_are(Extra::Detours) {
        match world.draw(0, 2) {
            0 => kinds = PARTIAL.to_vec(),
            1 => kinds = vec![Fault::Cut, Fault::CutOneWay],
            _ => kinds.extend(PARTIAL),
        }
    }
    world.time.sleep(Duration::from_millis(FIRST_MS)).await;
    let (mut more, mut long) = (true, false);
    if world.there_are(Extra::Detours) && world.draw(0, 1) == 0 {
        // Long enough that all must have found its way around it; in some worlds nothing else goes wrong.
        let kind = [Fault::Cut, Fault::CutOneWay, Fault::Star][usize::try_from(world.draw(0, 2)).unwrap_or(0)];
        let lasts = Duration::from_millis(world.draw(25_000, 28_000));
        world.runs.spawn(WORLD, fault(world.clone(), kind, lasts));
        (more, long) = (world.draw(0, 1) == 0, true);
    }
    // Two that last for long together might keep all apart for longer than anybody waits.
    if !long && world.there_are(Extra::Gangs) && world.draw(0, 1) == 0 {
        // Long enough that what may not run twice is replaced; all is whole again when the last of the faults is over.
        let (waits, lasts) = (world.draw(0, 6_000), world.draw(25_000, 28_000));
        let long = world.clone();
        world.runs.spawn(WORLD, async move {
            long.time.sleep(Duration::from_millis(waits)).await;
            fault(long, Fault::Apart, Duration::from_millis(lasts)).await;
        });
    }
    while more && world.time.now() < LAST {
        let kind = kinds[usize::try_from(world.draw(0, kinds.len() as u64 - 1)).unwrap_or(0)];
        let lasts = if world.draw(0, 3) == 0 { world.draw(4_000, 12_000) } else { world.draw(200, 4_000) };
        // Sometimes several at once.
        if world.draw(0, 3) == 0 {
            world.runs.spawn(WORLD, fault(world.clone(), kind, Duration::from_millis(lasts)));
        } else {
            fault(world.clone(), kind, Duration::from_millis(lasts)).await;
        }
        world.time.sleep(Duration::from_millis(world.draw(300, 5_000))).await;
    }
    world.time.sleep(LAST.saturating_sub(world.time.now())).await;
    // The last of them are over by then.
    world.time.sleep(Duration::from_secs(13)).await;
    world.heal();
}

/// Mostly what matters: who leads, or is home of something.
fn victim(world: &World) -> usize {
    let any = usize::try_from(world.draw(0, world.size as u64 - 1)).unwrap_or(0);
    let homes = world.council.truth();
    let home = crate::world::shards()[usize::try_from(world.draw(0, 2)).unwrap_or(0)];
    match world.draw(0, 4) {
        0 | 1 => homes.shards.get(&home).map_or(any, |shard| world.net.number(shard.home)),
        2 => world.council.leader().unwrap_or(any),
        _ => any,
    }
}

async fn fault(world: World, kind: Fault, lasts: Duration) {
    let node = victim(&world);
    let other = (node + 1 + usize::try_from(world.draw(0, world.size as u64 - 2)).unwrap_or(0)) % world.size;
    let trouble = |what| world.history.note(Event::Trouble { node, what });
    let cut = |from, to, is_cut| world.cut(from, to, is_cut);
    match kind {
        Fault::Crash | Fault::Machine => {
            if !world.net.is_up(node) {
                return;
            }
            let machine = kind == Fault::Machine;
            world.stop(node, machine).await;
            world.time.sleep(lasts).await;
            world.start(node, machine);
        }
        Fault::Cut => {
            trouble("cut");
            world.history.note(Event::Trouble { node: other, what: "cut" });
            cut(node, other, true);
            cut(other, node, true);
            world.time.sleep(lasts).await;
            cut(node, other, false);
            cut(other, node, false);
            trouble("whole again");
            world.history.note(Event::Trouble { node: other, what: "whole again" });
        }
        Fault::CutOneWay => {
            trouble("cut in one way");
            world.history.note(Event::Trouble { node: other, what: "cut in one way" });
            cut(node, other, true);
            world.time.sleep(lasts).await;
            cut(node, other, false);
            trouble("whole again");
            world.history.note(Event::Trouble { node: other, what: "whole again" });
        }
        Fault::Apart => {
            let both = world.draw(0, 2) > 0;
            for other in (0..world.size).filter(|other| *other != node) {
                world.history.note(Event::Trouble { node: other, what: "apart" });
                cut(node, other, true);
                if both {
                    cut(other, node, true);
                }
            }
            trouble("apart");
            world.time.sleep(lasts).await;
            for other in (0..world.size).filter(|other| *other != node) {
                cut(node, other, false);
                cut(other, node, false);
                world.history.note(Event::Trouble { node: other, what: "whole again" });
            }
            trouble("whole again");
        }
        Fault::Pause => {
            let owner = world.owner(node);
            // One that has not joined yet runs as nobody.
            if owner == WORLD {
                return;
            }
            trouble("stands still");
            world.runs.pause(owner, true);
            world.time.sleep(lasts).await;
            world.runs.pause(owner, false);
            trouble("goes on");
        }
        Fault::Slow => {
            trouble("slow");
            let by = Duration::from_millis(world.draw(20, 600));
            world.net.slow(node, other, Some(by));
            world.time.sleep(lasts).await;
            world.net.slow(node, other, None);
            trouble("quick again");
        }
        Fault::Succession => {
            // The leader goes while the others have not applied what it decided last.
            let Some(leader) = world.council.leader().filter(|leader| world.net.is_up(*leader)) else { return };
            let all = |what, slow| {
                for other in (0..world.size).filter(|other| *other != leader) {
                    world.history.note(Event::Trouble { node: other, what });
                    world.council.slow(other, slow);
                }
            };
            all("applies slowly", true);
            world.time.sleep(Duration::from_millis(800)).await;
            if !world.net.is_up(leader) {
                return all("quick again", false);
            }
            world.stop(leader, false).await;
            world.time.sleep(lasts).await;
            world.start(leader, false);
            all("quick again", false);
        }
        Fault::Star => {
            // Else nobody would reach anybody.
            if !world.net.is_up(node) {
                return;
            }
            let spared = |one: &usize| *one != node;
            let mut cuts = Vec::new();
            for one in (0..world.size).filter(spared) {
                for other in (one + 1..world.size).filter(spared) {
                    match world.draw(0, 3) {
                        0 => cuts.push((one, other)),
                        1 => cuts.push((other, one)),
                        _ => cuts.extend([(one, other), (other, one)]),
                    }
                }
            }
            let all = |what, is_cut| {
                (0..world.size).filter(spared).for_each(|node| world.history.note(Event::Trouble { node, what }));
                cuts.iter().for_each(|(from, to)| cut(*from, *to, is_cut));
            };
            all("cut", true);
            world.time.sleep(lasts).await;
            all("whole again", false);
        }
        Fault::Flap => {
            let both = |what| [node, other].into_iter().for_each(|node| world.history.note(Event::Trouble { node, what }));
            both("cut");
            let ends = world.time.now() + lasts;
            while world.time.now() < ends {
                let one_way = world.draw(0, 1) == 0;
                cut(node, other, true);
                cut(other, node, !one_way);
                world.time.sleep(Duration::from_millis(world.draw(200, 4_000))).await;
                cut(node, other, false);
                cut(other, node, false);
                world.time.sleep(Duration::from_millis(world.draw(100, 2_000))).await;
            }
            both("whole again");
        }
        Fault::Between => {
            let between = (0..world.size).find(|third| *third != node && *third != other);
            let both = |what| [node, other].into_iter().for_each(|node| world.history.note(Event::Trouble { node, what }));
            both("cut");
            cut(node, other, true);
            cut(other, node, world.draw(0, 1) == 0);
            world.time.sleep(Duration::from_millis(world.draw(2_000, 8_000))).await;
            if let Some(third) = between.filter(|third| world.net.is_up(*third)) {
                if world.draw(0, 1) == 0 {
                    world.stop(third, false).await;
                    world.time.sleep(lasts).await;
                    world.start(third, false);
                } else {
                    let owner = world.owner(third);
                    world.history.note(Event::Trouble { node: third, what: "stands still" });
                    world.runs.pause(owner, true);
                    world.time.sleep(lasts).await;
                    world.runs.pause(owner, false);
                    world.history.note(Event::Trouble { node: third, what: "goes on" });
                }
            }
            cut(node, other, false);
            cut(other, node, false);
            both("whole again");
        }
        Fault::SlowApply => {
            trouble("applies slowly");
            world.council.slow(node, true);
            world.time.sleep(lasts).await;
            world.council.slow(node, false);
            trouble("quick again");
        }
    }
}
