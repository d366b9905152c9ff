//! Many clients at once, each of which goes on when it has its answer: how much that is in a second, and how long one takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Who does something again and again.
pub(crate) trait Client: Send + 'static {
    /// Does it once. `number` is of no other turn of all clients, `turn` says how often this one has done it before.
    fn turn(&mut self, number: u64, turn: usize) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// What was measured.
pub(crate) struct Taken {
    seconds: f64,
    /// How long each counted turn took, in milliseconds, ascending.
    milliseconds: Vec<f64>,
    /// How many turns were begun, those that are not counted among them.
    begun: u64,
}

/// Lets all clients go on for so long, after a quarter of it that is not counted.
pub(crate) async fn measure<C: Client>(clients: Vec<C>, whole: Duration) -> anyhow::Result<Taken> {
    let (next, counted_from) = (Arc::new(AtomicU64::new(0)), Instant::now() + whole / 4);
    let until = counted_from + whole;
    let mut running = JoinSet::new();
    for mut client in clients {
        let next = Arc::clone(&next);
        running.spawn(async move {
            let mut taken = Vec::new();
            for turn in 0.. {
                let began = Instant::now();
                if began >= until {
                    break;
                }
                client.turn(next.fetch_add(1, Ordering::Relaxed), turn).await?;
                if began >= counted_from {
                    taken.push(began.elapsed().as_secs_f64() * 1000.0);
                }
            }
            anyhow::Ok(taken)
        });
    }
    let mut milliseconds = Vec::new();
    while let Some(taken) = running.join_next().await {
        milliseconds.extend(taken??);
    }
    milliseconds.sort_by(f64::total_cmp);
    Ok(Taken { seconds: whole.as_secs_f64(), milliseconds, begun: next.load(Ordering::Relaxed) })
}

impl Taken {
    /// Returns it as a line of the tool, where each turn was so many.
    pub(crate) fn line(&self, each: usize) -> Value {
        let all = &self.milliseconds;
        let at = |percent: usize| all.get((all.len() * percent / 100).min(all.len().saturating_sub(1))).copied().unwrap_or(f64::NAN);
        #[expect(clippy::cast_precision_loss, reason = "a count of seconds of turns")]
        let per_second = (all.len() * each) as f64 / self.seconds;
        // With those that are not counted: what servers used meanwhile is for all of them.
        let begun = self.begun * each as u64;
        json!({ "per_second": per_second, "p50_ms": at(50), "p99_ms": at(99), "writes": all.len() * each, "begun": begun })
    }
}
