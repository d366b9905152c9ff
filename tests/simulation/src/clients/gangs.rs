//! Calls of a clustered function.

use shoal_calls::calls::{CallKind, Entry};

use super::Client;
use super::calls::inputs;
use crate::gangs::function;

impl Client {
    /// Calls the clustered function, and reads what comes of it.
    pub(super) async fn gang(&mut self) {
        let (lasting, count) = (self.dice.below(3) > 0, u32::try_from(self.dice.from(1, 3)).unwrap_or(1));
        let open = self.new_call(function(), CallKind::Map, lasting);
        let call = open.call;
        self.world.does(self.number, "calls a clustered function");
        let Some(wants) = self.open_with(open, "gang", inputs(0, count)).await else { return };
        self.world.does(self.number, "reads outputs of a clustered function");
        self.read_all(call, lasting, &wants, &mut Entry::default()).await;
    }
}
