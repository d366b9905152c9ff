//! Clients: each does one thing after the other through any node, and asks again, by another node and with the same key, until it has an
//! answer.
//!
//! | file | what is done |
//! |---|---|
//! | `calls` | calls with some inputs, of which some are tried again |
//! | `cancels`, `generators`, `gangs` | calls that are cancelled, that yield data, of a clustered function |
//! | `reading` | what came of a call is read |
//! | `objects` | dicts and queues |

use std::time::Duration;

use futures::future::BoxFuture;
use shoal_calls::calls::Refused;
use shoal_calls::{Calls, Error};
use shoal_state::{CallId, ShardId};

use crate::dice::Dice;
use crate::extras::Extra;
use crate::history::Event;
use crate::mutant::Mutant;
use crate::world::{World, queue, shards};

mod calls;
mod cancels;
mod gangs;
mod generators;
mod objects;
mod reading;

/// How many clients there are.
pub const COUNT: u64 = 5;

/// How long a client waits for a node that does not answer.
const PATIENCE: Duration = Duration::from_secs(14);
/// How long it waits before it asks again.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// A reader asks for at most so many outputs, which is more than any call here has.
const ALL: usize = 16;
/// After so long without news a reader of a call that may have been lost gives up.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// A client.
struct Client {
    world: World,
    number: u64,
    dice: Dice,
    made: u64,
}

/// An answer, after so many tries, the last of which began then.
struct Answered<T> {
    answer: Result<T, Refused>,
    tries: u32,
    began: Duration,
}

/// Does one thing after the other until the world is whole again, and finishes what it began.
pub async fn run(world: World, number: u64) {
    let dice = Dice::new(world.seed, 100 + number);
    let mut client = Client { world, number, dice, made: 0 };
    client.world.time.sleep(Duration::from_millis(500 + 300 * number)).await;
    client.objects_open().await;
    while !client.world.is_healed() {
        match client.dice.below(10) {
            0..2 if client.world.there_are(Extra::Cancels) => client.cancelled().await,
            2..4 if client.world.there_are(Extra::Generators) => client.generator().await,
            4 if client.world.there_are(Extra::Gangs) => client.gang().await,
            0..4 => client.call().await,
            4..6 => client.look().await,
            6..8 => client.items().await,
            _ => client.value().await,
        }
        let rest = client.dice.from(10, 500);
        client.world.time.sleep(Duration::from_millis(rest)).await;
    }
    // One is left over to look at the end of all.
    if number == 0 {
        while client.world.busy() > 1 {
            client.world.time.sleep(Duration::from_secs(1)).await;
        }
        client.audit().await;
    }
    client.world.done(number);
}

impl Client {
    /// Asks nodes, one after the other, until one has an answer.
    async fn ask<T: Send + 'static>(&mut self, what: impl Fn(Calls, u32) -> BoxFuture<'static, Result<T, Error>>) -> Answered<T> {
        let mut tries = 0;
        loop {
            tries += 1;
            let node = usize::try_from(self.dice.below(self.world.size as u64)).unwrap_or(0);
            let began = self.world.time.now();
            let (net, asked) = (self.world.net.clone(), what_now(&what, tries));
            let answer = self.world.time.within(PATIENCE, net.ask(None, node, asked)).await;
            match answer.flatten() {
                Some(Ok(answer)) => return Answered { answer: Ok(answer), tries, began },
                Some(Err(Error::Refused(refused))) if !matches!(refused, Refused::NotHome { .. } | Refused::TooMany { .. }) => {
                    return Answered { answer: Err(refused), tries, began };
                }
                other => {
                    let why = other.and_then(Result::err).map(|error| error.to_string());
                    tracing::debug!(client = self.number, tries, node, why, "asks again");
                    self.world.time.sleep(AGAIN_AFTER).await;
                }
            }
        }
    }

    /// Looks at everything when all is done.
    async fn audit(&mut self) {
        let calls: Vec<(CallId, bool)> = self.world.calls.borrow().iter().map(|(call, lasting)| (*call, *lasting)).collect();
        for (call, _) in calls {
            self.world.does(self.number, "looks at a call in the end");
            let Some(seen) = self.read_once(call).await else { continue };
            let listed = self.ask(move |calls, _| Box::pin(async move { calls.inputs(call).await })).await;
            if let Ok(inputs) = listed.answer {
                let inputs = inputs.iter().map(|info| info.input).collect();
                self.world.history.note(Event::Final { call, inputs, seen });
            }
        }
        for shard in shards() {
            self.world.does(self.number, "takes what is left in a queue");
            let mut left = Vec::new();
            loop {
                let number = self.next();
                let taken = self.take_left(shard, number).await;
                if taken.is_empty() {
                    break;
                }
                left.extend(taken);
            }
            self.world.history.note(Event::ItemsLeft { queue: queue(shard), items: left });
        }
    }

    /// Returns a number that nothing else has.
    fn next(&mut self) -> u64 {
        self.made += 1;
        self.number * 1_000_000 + self.made
    }

    fn shard(&mut self) -> ShardId {
        self.dice.pick(&shards()).expect("there are some")
    }

    /// The key of a request at its so-manieth try.
    fn key(&self, key: &str) -> impl Fn(u32) -> String + Send + use<> {
        let (key, anew) = (key.to_owned(), self.world.has(Mutant::TriesAgainByAnotherKey));
        move |tries| if anew { format!("{key} {tries}") } else { key.clone() }
    }
}

/// Makes what a node is asked.
fn what_now<T: Send + 'static>(
    what: &impl Fn(Calls, u32) -> BoxFuture<'static, Result<T, Error>>,
    tries: u32,
) -> impl FnOnce(Calls) -> BoxFuture<'static, Result<T, Error>> {
    move |calls| what(calls, tries)
}
