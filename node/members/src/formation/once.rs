//! `formation_once`: machines that are to become one cluster look and act at any pace, on what they saw a while ago, do not reach each
//! other, start anew and are wiped, from a seed. However that goes, none founds a cluster while another one has one.
//!
//! `SHOAL_SEED=n` replays one, `SHOAL_SEEDS=n` runs that many: `cargo test -p shoal-members formation_once`.

use std::collections::BTreeSet;

use super::*;

const NAMES: [&str; 3] = ["a:7470", "b:7470", "c:7470"];

type View = BTreeMap<String, Result<Seen, String>>;

#[derive(Clone)]
struct Machine {
    node: NodeId,
    start: u128,
    cluster: Option<u64>,
    promised: Option<NodeId>,
    /// What it saw, and the promises that it has had since, if it is about to found.
    saw: Option<View>,
    to_ask: Option<Vec<usize>>,
}

struct World {
    random: u64,
    machines: Vec<Machine>,
    cut: BTreeSet<(usize, usize)>,
    made: u128,
    founded: u64,
    joined: u64,
}

impl World {
    fn below(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    fn machine(&mut self) -> Machine {
        self.made += 1;
        Machine { node: NodeId::from_random(self.made), start: self.made, cluster: None, promised: None, saw: None, to_ask: None }
    }

    fn seeds() -> Seeds {
        Seeds::new(&NAMES.map(str::to_owned), 3, 7470).expect("good seeds")
    }

    fn reaches(&self, one: usize, other: usize) -> bool {
        !self.cut.contains(&(one.min(other), one.max(other)))
    }

    fn look(&mut self, me: usize) {
        let seen = |(at, machine): (usize, &Machine)| match self.reaches(me, at) {
            true => {
                Ok(Seen { start: machine.start, seeds: Self::seeds(), has_cluster: machine.cluster.is_some(), promised: machine.promised })
            }
            false => Err("nobody answers there".to_owned()),
        };
        let said = self.machines.iter().enumerate().map(|at| (NAMES[at.0].to_owned(), seen(at))).collect();
        self.machines[me].saw = Some(said);
    }

    fn act(&mut self, me: usize) {
        let Machine { node, start, promised, saw: Some(saw), .. } = self.machines[me].clone() else { return };
        self.machines[me].saw = None;
        let place = |name: &String| NAMES.iter().position(|known| *known == name).expect("one of them");
        match next(&Self::seeds(), (node, start), promised, &saw) {
            Next::Join(clusters) => {
                let at = clusters.iter().map(place).find(|at| self.reaches(me, *at));
                if let Some(cluster) = at.and_then(|at| self.machines[at].cluster) {
                    (self.machines[me].cluster, self.joined) = (Some(cluster), self.joined + 1);
                }
            }
            Next::Found { promises } => self.machines[me].to_ask = Some(promises.iter().map(place).chain([me]).collect()),
            Next::Wait(_) => {}
        }
    }

    /// Asks for one more promise; founds when it has all.
    fn ask(&mut self, me: usize, seed: u64) {
        let Some(mut left) = self.machines[me].to_ask.take() else { return };
        let node = self.machines[me].node;
        if let Some(at) = left.pop() {
            let other = &mut self.machines[at];
            let keeps = other.cluster.is_none() && other.promised.is_none_or(|to| to == node);
            if !keeps || !self.reaches(me, at) {
                return;
            }
            self.machines[at].promised = Some(node);
            self.machines[me].to_ask = Some(left);
            return;
        }
        let others: Vec<u64> = self.machines.iter().filter_map(|machine| machine.cluster).collect();
        assert_eq!(others, [0_u64; 0], "seed {seed}: {} founds a cluster, and there is one", NAMES[me]);
        self.founded += 1;
        self.machines[me].cluster = Some(self.founded);
    }

    fn happens(&mut self, seed: u64) {
        let (me, other) = (self.below(3) as usize, self.below(3) as usize);
        let is_empty = self.machines[me].cluster.is_none();
        match self.below(20) {
            0..5 if is_empty => self.look(me),
            5..9 if is_empty => self.act(me),
            9..15 if is_empty => self.ask(me, seed),
            15 => drop(self.cut.insert((me.min(other), me.max(other)))),
            16 | 17 => self.cut.clear(),
            18 => {
                // What it promised, and that it is of a cluster, is on its disk.
                let Machine { node, cluster, promised, .. } = self.machines[me].clone();
                let anew = self.machine();
                self.machines[me] = Machine { node, cluster, promised, ..anew };
            }
            19 if self.below(6) == 0 => self.machines[me] = self.machine(),
            _ => {}
        }
    }
}

#[test]
fn formation_once() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = number("SHOAL_SEED").map_or(0..number("SHOAL_SEEDS").unwrap_or(3_000), |seed| seed..seed + 1);
    let (mut founded, mut joined, many) = (0, 0, seeds.end - seeds.start > 1);
    for seed in seeds {
        let mut world = World { random: seed, machines: Vec::new(), cut: BTreeSet::new(), made: 0, founded: 0, joined: 0 };
        world.machines = (0..3).map(|_| world.machine()).collect();
        for _ in 0..150 {
            world.happens(seed);
        }
        (founded, joined) = (founded + world.founded, joined + world.joined);
    }
    assert!(!many || (founded > 100 && joined > 100), "{founded} clusters are founded, and {joined} machines join one: nothing happens");
}
