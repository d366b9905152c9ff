//! Answers: to whom, with what confirmed by whom, and where their payloads stand.

use shoal_state::{InputId, ShardId, TaskId};
use shoal_storage::log::Position;
use tokio::sync::oneshot;

use super::Driver;
use crate::calls::away::About;
use crate::calls::confirm::Witness;
use crate::calls::refused as rules;
use crate::calls::rules::{Answer, Request, Ticket};
use crate::objects::ObjectAnswer;

/// A task is given inputs of so many bytes at once, or one: what it is told has to fit into a message, and a batch may have hundreds.
const LEASED_BYTES_MAX: u64 = 64 << 20;

/// An answer, with where in the log its payloads stand, one for each item.
#[derive(Debug)]
pub(in crate::calls) struct Reply {
    pub(in crate::calls) answer: Answer,
    /// Who must confirm it, see [`crate::calls::confirm`].
    pub(in crate::calls) witnesses: Vec<Witness>,
    pub(in crate::calls) places: Vec<Position>,
}

/// Who waits for an answer.
pub(super) struct Waiting {
    pub(super) reply: oneshot::Sender<Reply>,
    pub(super) about: About,
    /// For a lease: what to take back when nobody is there any more.
    pub(super) lease: Option<(TaskId, String)>,
}

impl Driver {
    pub(super) fn answer(&mut self, ticket: Ticket, answer: Answer) {
        let Some(Waiting { reply, about, lease }) = self.waiting.remove(&ticket) else { return };
        let answer = self.fitting(answer);
        let (places, witnesses) = (self.places(&answer), self.witnesses(&answer, about));
        if reply.send(Reply { answer, witnesses, places }).is_err()
            && let Some((task, key)) = lease
        {
            self.ask(self.clock.now(), Request::Undelivered { task, key }, None);
        }
    }

    /// Leaves as many inputs to a task as fit into a message. The others go back to where they stood.
    fn fitting(&mut self, answer: Answer) -> Answer {
        let Answer::Leased(mut leased) = answer else { return answer };
        let length = |input: InputId, index| {
            let slot = input.shard().and_then(|shard| self.shards.index_of(shard).get(index));
            slot.map_or(0, |slot| u64::from(slot.bytes))
        };
        let mut bytes = 0;
        let fits = leased.iter().take_while(|at| {
            bytes += length(at.input, at.payload);
            bytes <= LEASED_BYTES_MAX
        });
        let surplus = leased.split_off(fits.count().max(1).min(leased.len()));
        // The first of them is to be the first again.
        for at in surplus.into_iter().rev() {
            self.rules.give_back(self.clock.now(), at.input);
        }
        Answer::Leased(leased)
    }

    /// Returns who must confirm an answer: one that tells how things stand, or a no.
    fn witnesses(&self, answer: &Answer, about: About) -> Vec<Witness> {
        let may_be_out_of_date = match answer {
            Answer::Outputs(found) => found.items.is_empty(),
            Answer::Infos(_) | Answer::Inputs(_) => true,
            Answer::Objects { looked, .. } => *looked,
            Answer::Refused(refused) => !matches!(refused, rules::Refused::NotHome { .. }),
            _ => false,
        };
        let of = |shard: ShardId| {
            let replica = self.shards.replica(shard);
            replica.witnesses().into_iter().map(move |node| Witness { shard, epoch: replica.config().epoch, node })
        };
        match about {
            _ if !may_be_out_of_date => Vec::new(),
            About::One(shard) => shard.into_iter().flat_map(of).collect(),
            About::All => ShardId::all().flat_map(of).collect(),
        }
    }

    /// Returns where the payloads of an answer stand.
    fn places(&self, answer: &Answer) -> Vec<Position> {
        let place = |shard: Option<ShardId>, index| {
            let slot = shard.and_then(|shard| self.shards.index_of(shard).get(index));
            slot.map_or(Position::START, |slot| slot.position)
        };
        match answer {
            Answer::Outputs(found) => found.items.iter().map(|item| place(item.input.shard(), item.entry.index)).collect(),
            Answer::Objects { shard, answer: ObjectAnswer::Found(found), .. } => found
                .iter()
                .map(|found| if found.piece.blob.is_some() { Position::START } else { place(Some(*shard), found.piece.record) })
                .collect(),
            Answer::Leased(leased) => leased.iter().map(|item| place(item.input.shard(), item.payload)).collect(),
            _ => Vec::new(),
        }
    }
}
