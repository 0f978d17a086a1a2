//! Generations as something to await, several at once.

use std::sync::Arc;

use millpond::engine::{Event, Generation, RecvError};
use tokio::sync::Notify;

use super::places::Place;
use super::pool::Lease;

/// The generations that one HTTP request started. Dropping it cancels them.
pub(crate) struct Events {
    generations: Vec<Option<Generation>>,
    changed: Arc<Notify>,
    /// Where the next look begins, so that none is always first.
    turn: usize,
    /// The slot of each, where it has one.
    slots: Vec<Option<u32>>,
    _places: Vec<Place>,
    /// The model that answers stays in memory until it has.
    _lease: Lease,
}

impl Events {
    /// The events of `generations`, told apart by their place in the list.
    #[must_use]
    pub(super) fn new(
        generations: Vec<Generation>,
        slots: Vec<Option<u32>>,
        places: Vec<Place>,
        lease: Lease,
    ) -> Events {
        let changed = Arc::new(Notify::new());
        for generation in &generations {
            let changed = changed.clone();
            generation.set_waker(move || changed.notify_one());
        }
        let generations = generations.into_iter().map(Some).collect();
        Events { generations, changed, turn: 0, slots, _places: places, _lease: lease }
    }

    /// The slot under which a generation runs, as llama.cpp numbers them; -1 for none.
    pub(crate) fn slot(&self, index: usize) -> i64 {
        self.slots.get(index).copied().flatten().map_or(-1, i64::from)
    }

    /// The next event and whose it is; `None` after the last of all.
    pub(crate) async fn next(&mut self) -> Option<(usize, Event)> {
        loop {
            if let Some(found) = self.poll() {
                return Some(found);
            }
            if self.generations.iter().all(Option::is_none) {
                return None;
            }
            self.changed.notified().await;
        }
    }

    fn poll(&mut self) -> Option<(usize, Event)> {
        let count = self.generations.len();
        for index in (0..count).map(|step| (self.turn + step) % count) {
            let Some(generation) = &self.generations[index] else { continue };
            match generation.try_recv() {
                Ok(event) => {
                    self.turn = index + 1;
                    return Some((index, event));
                }
                Err(RecvError::Empty) => {}
                Err(RecvError::Ended) => self.generations[index] = None,
            }
        }
        None
    }
}
