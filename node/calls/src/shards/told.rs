//! What the calls of a node are told of shards when the state says something new. Pure.

use shoal_state::imbl::OrdMap;
use shoal_state::model::Shard;
use shoal_state::{NodeId, ShardId, State};

/// What the state said of shards when the calls of a node were told last.
#[derive(Debug, Clone, Default)]
pub struct Told {
    shards: OrdMap<ShardId, Shard>,
}

/// What the state says of shards that it did not say before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    /// The shards whose members or epoch are others.
    pub changed: Vec<(ShardId, Shard)>,
    /// Those among them that came home: what they inherited is asked for.
    pub came_home: Vec<ShardId>,
}

impl Told {
    /// Returns what a node's calls are to be told now, and takes it for told.
    pub fn take(&mut self, me: NodeId, state: &State) -> News {
        if state.shards.ptr_eq(&self.shards) {
            return News::default();
        }
        let changed = state.shards.iter().filter(|(id, shard)| self.shards.get(*id) != Some(*shard));
        let changed: Vec<_> = changed.map(|(id, shard)| (*id, shard.clone())).collect();
        let was_home = |id: &ShardId| self.shards.get(id).is_some_and(|before| before.home == me);
        let came_home = changed.iter().filter(|(id, shard)| shard.home == me && !was_home(id)).map(|(id, _)| *id).collect();
        self.shards = state.shards.clone();
        News { changed, came_home }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_comes_home_once_for_each_time_it_was_elsewhere() {
        let [me, other] = [1, 2].map(NodeId::from_random);
        let [here, there] = [3, 70].map(|number| ShardId::new(number).unwrap());
        let shard = |epoch, home| Shard { epoch, home, in_sync: vec![me, other], joining: vec![] };
        let (mut told, mut state) = (Told::default(), State::default());
        state.shards = [(here, shard(1, me)), (there, shard(1, other))].into_iter().collect();
        let first = told.take(me, &state);
        assert_eq!((first.changed.len(), first.came_home), (2, vec![here]), "at first all is new");
        assert_eq!(told.take(me, &state), News::default());
        state.shards.insert(here, shard(2, me));
        assert_eq!(told.take(me, &state), News { changed: vec![(here, shard(2, me))], came_home: vec![] }, "it was home before");
        state.shards.insert(here, shard(3, other));
        assert_eq!(told.take(me, &state).came_home, []);
        state.shards.insert(here, shard(4, me));
        assert_eq!(told.take(me, &state).came_home, [here]);
    }
}
