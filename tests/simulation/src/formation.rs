//! Short worlds of another kind: equal machines, started with the same seeds in any order, that are to become one cluster. What each does
//! next, and what it promises whom, is the product's; its disk, its questions and its restarts are played, under cuts and slow wires.
//! Some machines are started with another number of founders at first, some are wiped.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use shoal_members::formation::{Next, Seeds, Seen, keeps, next, promise};
use shoal_state::NodeId;

use crate::dice::Dice;
use crate::history::{Event, History};
use crate::mutant::Mutant;
use crate::net::Net;
use crate::time::{Owner, Runs, Time, WORLD};

/// How often all seeds are asked.
const EVERY: Duration = Duration::from_millis(500);
/// Things go wrong before this time.
const LAST: Duration = Duration::from_secs(15);
/// So long a healed world may take until all machines are of one cluster.
const FORMS_WITHIN: Duration = Duration::from_secs(20);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a machine has on its disk.
#[derive(Debug, Clone)]
struct Disk {
    node: NodeId,
    promised: Option<NodeId>,
    cluster: Option<u64>,
}

/// How a machine stands.
#[derive(Debug)]
struct Machine {
    disk: Disk,
    seeds: Seeds,
    start: u128,
    owner: Owner,
    /// It found a cluster or founds one, and opens its port anew.
    is_between: bool,
}

#[derive(Debug)]
struct Inner {
    machines: Vec<Machine>,
    dice: Dice,
    clusters: u64,
    wiped: bool,
}

/// A world of machines. Clones are the same.
#[derive(Debug, Clone)]
struct World {
    inner: Rc<RefCell<Inner>>,
    size: usize,
    expect: usize,
    mutant: Option<Mutant>,
    runs: Runs,
    time: Time,
    net: Net,
    history: History,
}

fn name(machine: usize) -> String {
    format!("m{machine}:7470")
}

/// What one machine says to another that asks.
enum Said {
    Seen(Seen),
    Promised,
    Welcome(u64),
}

enum Question {
    Look,
    Promise(Seeds, NodeId),
    Join,
}

/// Runs the world of a seed, and returns what happened.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Vec<(Duration, Event)> {
    let mut dice = Dice::new(seed, 21);
    let size = usize::try_from(dice.from(2, 5)).unwrap_or(2);
    let expect = usize::try_from(dice.from(1, size as u64)).unwrap_or(1);
    let runs = Runs::new(Dice::new(seed, 22));
    let time = runs.time();
    let ids = (1..=size as u128).map(NodeId::from_random).collect();
    let net = Net::new(time.clone(), runs.inbox(), ids, Dice::new(seed, 23));
    let history = History::new(&time);
    let inner = Inner { machines: Vec::new(), dice, clusters: 0, wiped: false };
    let world = World { inner: Rc::new(RefCell::new(inner)), size, expect, mutant, runs: runs.clone(), time, net, history };
    let machines = (0..size).map(|_| world.machine()).collect();
    world.inner.borrow_mut().machines = machines;
    for me in 0..size {
        let (late, typo) = (world.draw(0, 6_000), world.draw(0, 7) == 0);
        let world = world.clone();
        runs.spawn(WORLD, async move {
            world.time.sleep(Duration::from_millis(late)).await;
            world.start(me, typo);
        });
    }
    runs.spawn(WORLD, goes_wrong(world.clone()));
    let over = Rc::new(RefCell::new(false));
    runs.spawn(WORLD, end(world.clone(), over.clone()));
    runs.run_until(|| *over.borrow());
    runs.clear();
    world.history.take()
}

/// Waits until all are of one cluster, or should be.
async fn end(world: World, over: Rc<RefCell<bool>>) {
    world.time.sleep(LAST + FORMS_WITHIN).await;
    let (clusters, wiped) = {
        let inner = world.inner.borrow();
        (inner.machines.iter().map(|machine| machine.disk.cluster).collect(), inner.wiped)
    };
    world.history.note(Event::FormationFinal { clusters, wiped });
    *over.borrow_mut() = true;
}

/// Cuts, slow wires, restarts, and now and then a machine that is wiped.
async fn goes_wrong(world: World) {
    let wipes = world.draw(0, 1) == 0;
    while world.time.now() < LAST {
        world.time.sleep(Duration::from_millis(world.draw(100, 2_500))).await;
        let (one, other) = (world.any(), world.any());
        let lasts = Duration::from_millis(world.draw(50, 4_000));
        match world.draw(0, 7) {
            0 | 1 => world.spawn_fault(move |world| async move { world.cut(one, other, lasts).await }),
            2 | 3 => world.spawn_fault(move |world| async move {
                world.net.slow(one, other, Some(lasts / 4));
                world.time.sleep(lasts).await;
                world.net.slow(one, other, None);
            }),
            4 if wipes => world.restart(one, lasts, true).await,
            _ => world.restart(one, lasts, false).await,
        }
    }
    // Whoever was given something else is told so by its log, and is started as the others are.
    for me in 0..world.size {
        if world.net.is_up(me) && world.inner.borrow().machines[me].seeds.expect != world.expect {
            world.restart(me, Duration::ZERO, false).await;
        }
    }
}

impl World {
    fn draw(&self, first: u64, last: u64) -> u64 {
        self.inner.borrow_mut().dice.from(first, last)
    }

    fn any(&self) -> usize {
        usize::try_from(self.draw(0, self.size as u64 - 1)).unwrap_or(0)
    }

    fn seeds(&self, typo: bool) -> Seeds {
        let mut list: Vec<String> = (0..self.size).map(name).collect();
        let first = self.any();
        list.rotate_left(first);
        let expect = if typo { self.expect % self.size + 1 } else { self.expect };
        Seeds::new(&list, expect, 7470).expect("good seeds")
    }

    /// A machine with nothing on its disk.
    fn machine(&self) -> Machine {
        let node = NodeId::from_random(self.inner.borrow_mut().dice.bits());
        Machine { disk: Disk { node, promised: None, cluster: None }, seeds: self.seeds(false), start: 0, owner: 0, is_between: false }
    }

    fn spawn_fault<F: Future<Output = ()> + 'static>(&self, fault: impl FnOnce(World) -> F) {
        self.runs.spawn(WORLD, fault(self.clone()));
    }

    async fn cut(&self, one: usize, other: usize, lasts: Duration) {
        let both = self.draw(0, 2) > 0;
        self.net.cut(one, other, true);
        if both {
            self.net.cut(other, one, true);
        }
        self.time.sleep(lasts).await;
        self.net.cut(one, other, false);
        self.net.cut(other, one, false);
    }

    fn start(&self, me: usize, typo: bool) {
        let (seeds, start) = (self.seeds(typo), u128::from(self.draw(1, 1 << 30)));
        let owner = {
            let mut inner = self.inner.borrow_mut();
            let machine = &mut inner.machines[me];
            (machine.seeds, machine.start, machine.is_between) = (seeds, start, false);
            machine.owner = machine.owner.max(me as u64 * 1_000) + 1;
            machine.owner
        };
        self.net.came(me, owner, None);
        self.runs.spawn(owner, form(self.clone(), me));
    }

    async fn restart(&self, me: usize, after: Duration, wiped: bool) {
        if !self.net.is_up(me) {
            return;
        }
        self.net.went(me);
        self.runs.end(self.inner.borrow().machines[me].owner);
        self.time.sleep(Duration::from_millis(1)).await;
        if wiped {
            self.history.note(Event::Wiped { machine: me });
            let (anew, owner) = (self.machine(), self.inner.borrow().machines[me].owner);
            let mut inner = self.inner.borrow_mut();
            inner.wiped = true;
            inner.machines[me] = Machine { owner, ..anew };
        }
        self.time.sleep(after).await;
        self.start(me, false);
    }

    fn disk(&self, me: usize) -> Disk {
        self.inner.borrow().machines[me].disk.clone()
    }

    /// Asks another machine, which may be this one.
    async fn ask(&self, me: usize, other: usize, question: &Question) -> Result<Said, String> {
        let nobody = || Err("nobody answers there".to_owned());
        if !self.net.carry(me, other).await {
            self.time.sleep(PATIENCE).await;
            return nobody();
        }
        if !self.net.is_up(other) || self.inner.borrow().machines[other].is_between {
            return nobody();
        }
        let said = self.answer(other, question);
        if !self.net.carry(other, me).await {
            self.time.sleep(PATIENCE).await;
            return nobody();
        }
        said
    }

    fn answer(&self, me: usize, question: &Question) -> Result<Said, String> {
        let mut inner = self.inner.borrow_mut();
        let Machine { disk, seeds, start, .. } = &mut inner.machines[me];
        let held = disk.promised;
        match (question, disk.cluster) {
            (Question::Look, None) => Ok(Said::Seen(Seen { start: *start, seeds: seeds.clone(), has_cluster: false, promised: held })),
            (Question::Look, Some(_)) => Ok(Said::Seen(Seen { start: 0, seeds: seeds.clone(), has_cluster: true, promised: None })),
            (Question::Promise(theirs, founder), None) => {
                promise(seeds, held, theirs, *founder)?;
                disk.promised = Some(*founder);
                Ok(Said::Promised)
            }
            (Question::Promise(..), Some(_)) => Err("it has a cluster".to_owned()),
            (Question::Join, Some(cluster)) => Ok(Said::Welcome(cluster)),
            (Question::Join, None) => Err("it is of no cluster yet".to_owned()),
        }
    }

    async fn look(&self, me: usize) -> BTreeMap<String, Result<Seen, String>> {
        let asked = (0..self.size).map(|other| async move {
            let said = match self.ask(me, other, &Question::Look).await {
                Ok(Said::Seen(seen)) => Ok(seen),
                Ok(_) => Err("it answers something else".to_owned()),
                Err(why) => Err(why),
            };
            (name(other), said)
        });
        let mut seen: BTreeMap<_, _> = join_all(asked).await.into_iter().collect();
        if self.mutant == Some(Mutant::FoundsWhileASeedIsSilent) {
            seen.retain(|_, said| said.is_ok());
        }
        seen
    }

    async fn have_promised(&self, me: usize, founders: &[String]) -> Result<(), String> {
        let Disk { node, promised, .. } = self.disk(me);
        keeps(promised, node)?;
        let seeds = {
            let mut inner = self.inner.borrow_mut();
            inner.machines[me].disk.promised = Some(node);
            inner.machines[me].seeds.clone()
        };
        for seed in founders {
            self.ask(me, self.place(seed), &Question::Promise(seeds.clone(), node)).await?;
        }
        Ok(())
    }

    fn place(&self, seed: &String) -> usize {
        (0..self.size).find(|machine| name(*machine) == *seed).expect("one of the seeds")
    }

    /// Becomes one of a cluster, its own if that is none; the port is opened anew meanwhile.
    async fn belong(&self, me: usize, cluster: Option<u64>) {
        self.inner.borrow_mut().machines[me].is_between = true;
        self.time.sleep(Duration::from_millis(self.draw(1, 200))).await;
        let number = {
            let mut inner = self.inner.borrow_mut();
            let number = cluster.unwrap_or(inner.clusters + 1);
            inner.clusters = inner.clusters.max(number);
            inner.machines[me].disk.cluster = Some(number);
            number
        };
        self.history.note(match cluster {
            None => Event::Founded { machine: me, cluster: number },
            Some(cluster) => Event::Joined { machine: me, cluster },
        });
        self.time.sleep(Duration::from_millis(self.draw(1, 300))).await;
        self.inner.borrow_mut().machines[me].is_between = false;
    }
}

/// Does what a machine of the seeds does until it is of a cluster.
async fn form(world: World, me: usize) {
    while world.disk(me).cluster.is_none() {
        let seen = world.look(me).await;
        let (Disk { node, promised, .. }, seeds, start) = {
            let inner = world.inner.borrow();
            let machine = &inner.machines[me];
            (machine.disk.clone(), machine.seeds.clone(), machine.start)
        };
        match next(&seeds, (node, start), promised, &seen) {
            Next::Join(clusters) => {
                for seed in &clusters {
                    if let Ok(Said::Welcome(cluster)) = world.ask(me, world.place(seed), &Question::Join).await {
                        return world.belong(me, Some(cluster)).await;
                    }
                }
            }
            Next::Found { promises } => {
                if world.have_promised(me, &promises).await.is_ok() {
                    return world.belong(me, None).await;
                }
            }
            Next::Wait(_) => {}
        }
        world.time.sleep(EVERY).await;
    }
}
