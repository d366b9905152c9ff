//! The task that holds what a container consists of, publishes its exit and takes it down.

use std::io;

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::parts::{DEATH_DEADLINE, Parts};
use crate::{Exit, ExitStatus, OverDisk, Result};

/// What became of the sandbox.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    Exit(Exit),
    /// The error number of the wait.
    Lost(i32),
}

/// What the owner is told.
pub(crate) enum Order {
    /// Kill the sandbox, perhaps because of what it took of the disk.
    Kill(Option<OverDisk>),
    Dismantle(oneshot::Sender<Result<()>>),
}

/// Owns the parts of one container.
pub(super) struct Owner {
    pub(super) parts: Parts,
    pub(super) ended: watch::Sender<Option<Ended>>,
    /// Why it was killed, if that was because of what it took of the disk.
    pub(super) over_disk: Option<OverDisk>,
    pub(super) orders: mpsc::Receiver<Order>,
}

impl Owner {
    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                waited = self.parts.sandbox_ended(), if self.ended.borrow().is_none() => self.bury(waited),
                order = self.orders.recv() => match order {
                    Some(Order::Kill(why)) => {
                        self.over_disk = self.over_disk.or(why);
                        self.parts.kill();
                    }
                    Some(Order::Dismantle(reply)) => {
                        let done = self.dismantle().await;
                        let gone = done.is_ok();
                        let _ = reply.send(done);
                        if gone {
                            return;
                        }
                    }
                    None => {
                        if let Err(error) = self.dismantle().await {
                            tracing::warn!(container = %self.parts.id, %error, "left something behind");
                        }
                        return;
                    }
                },
            }
        }
    }

    /// Takes the exit status of a sandbox that has ended.
    fn bury(&mut self, waited: io::Result<()>) {
        let found = waited.and_then(|()| self.parts.reap_sandbox());
        let ended = match found {
            Ok(Some(status)) => {
                let disk = self.over_disk.filter(|_| status == ExitStatus::Signal(libc::SIGKILL));
                Ended::Exit(Exit { status, oom: self.parts.oom_killed(), disk })
            }
            Ok(None) => return,
            Err(error) => Ended::Lost(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        self.parts.engine.overlays.leave(self.parts.id);
        self.ended.send_replace(Some(ended));
    }

    async fn dismantle(&mut self) -> Result<()> {
        if self.ended.borrow().is_none() {
            self.parts.kill();
            let waited = timeout(DEATH_DEADLINE, self.parts.sandbox_ended()).await;
            match waited {
                Ok(waited) => self.bury(waited),
                Err(_) => return Err(self.parts.stuck()),
            }
        }
        self.parts.dismantle().await
    }
}
