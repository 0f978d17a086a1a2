//! The channel from an engine to whoever waits for a request.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::request::{Event, RequestError};

/// Events a receiver may leave unread before its stream is paused.
pub(super) const UNREAD_LIMIT: usize = 1024;

type Waker = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    closed: bool,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Channel {
    queue: Mutex<Queue>,
    ready: Condvar,
    cancelled: AtomicBool,
}

impl Channel {
    /// The queue. A waker that panicked cannot have left it half changed.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's end of the channel.
pub(super) struct EventSink {
    channel: Arc<Channel>,
}

/// A request under way. Iterate over it, or poll it with the `recv` functions; the last event is
/// [`Event::Done`] or [`Event::Error`]. Dropping it cancels the request.
///
/// ```
/// # use millpond::model::{LoadOptions, Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");
/// # let model = Model::load(path.as_ref(), &LoadOptions::default())?;
/// use millpond::engine::{Engine, EngineOptions, Event, Request};
///
/// let prompt = model.tokenizer.as_ref().ok_or("the model has no tokenizer")?.encode("Once", false)?;
/// let engine = Engine::start(model, EngineOptions { context: 512, ..EngineOptions::default() })?;
/// let generation = engine.handle().submit(Request::new(prompt))?;
/// // An event loop is woken and then takes what is there with `try_recv`; here, one event is enough.
/// generation.set_waker(|| { /* wake the event loop */ });
/// let _first = generation.recv();
/// generation.cancel();
/// for event in generation {
///     if let Event::Done { reason, usage, .. } = event {
///         println!("{reason:?} after {} tokens", usage.completion_tokens);
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Generation {
    channel: Arc<Channel>,
    id: u64,
}

/// Why there is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// None yet.
    #[error("no event yet")]
    Empty,
    /// None any more.
    #[error("the generation has ended")]
    Ended,
}

/// Both ends of a channel.
pub(super) fn channel(id: u64) -> (EventSink, Generation) {
    let channel = Arc::new(Channel::default());
    (EventSink { channel: channel.clone() }, Generation { channel, id })
}

impl EventSink {
    /// Sends an event and wakes the receiver.
    pub(super) fn send(&self, event: Event) {
        let last = matches!(event, Event::Done { .. } | Event::Error(_));
        let waker = {
            let mut queue = self.channel.lock();
            if queue.closed {
                return;
            }
            queue.events.push_back(event);
            queue.closed = last;
            queue.waker.clone()
        };
        self.channel.ready.notify_all();
        if let Some(waker) = waker {
            waker();
        }
    }

    /// Whether the receiver has cancelled or gone away.
    pub(super) fn cancelled(&self) -> bool {
        self.channel.cancelled.load(Ordering::Relaxed)
    }

    /// Whether the receiver has left so many events unread that its stream should pause.
    pub(super) fn congested(&self) -> bool {
        self.channel.lock().events.len() >= UNREAD_LIMIT
    }
}

impl Drop for EventSink {
    /// However the engine's side ends, the receiver must not wait for ever.
    fn drop(&mut self) {
        self.send(Event::Error(RequestError::Stopped));
    }
}

impl Generation {
    /// A number that tells the requests of an engine apart.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The next event; `None` after the last.
    pub fn recv(&self) -> Option<Event> {
        let mut queue = self.channel.lock();
        loop {
            if let Some(event) = queue.events.pop_front() {
                return Some(event);
            }
            if queue.closed {
                return None;
            }
            queue = self.channel.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next event, if it comes in time.
    ///
    /// # Errors
    /// [`RecvError::Empty`] if it does not, [`RecvError::Ended`] after the last.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Event, RecvError> {
        // One so far away that no clock shows it is none.
        let Some(deadline) = Instant::now().checked_add(timeout) else {
            return self.recv().ok_or(RecvError::Ended);
        };
        let mut queue = self.channel.lock();
        loop {
            if let Some(event) = queue.events.pop_front() {
                return Ok(event);
            }
            if queue.closed {
                return Err(RecvError::Ended);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RecvError::Empty);
            }
            queue = match self.channel.ready.wait_timeout(queue, left) {
                Ok((queue, _)) => queue,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// The next event, if it is there.
    ///
    /// # Errors
    /// [`RecvError::Empty`] if it is not, [`RecvError::Ended`] after the last.
    pub fn try_recv(&self) -> Result<Event, RecvError> {
        let mut queue = self.channel.lock();
        match queue.events.pop_front() {
            Some(event) => Ok(event),
            None if queue.closed => Err(RecvError::Ended),
            None => Err(RecvError::Empty),
        }
    }

    /// Asks the engine to stop. It does within one slice of work and sends [`Event::Done`].
    pub fn cancel(&self) {
        self.channel.cancelled.store(true, Ordering::Relaxed);
    }

    /// Calls `wake` after each event from now on, on the engine's thread: it should only wake somebody up, and must
    /// not block. It is called at once if events are waiting.
    pub fn set_waker(&self, wake: impl Fn() + Send + Sync + 'static) {
        let waker: Waker = Arc::new(wake);
        let waiting = {
            let mut queue = self.channel.lock();
            queue.waker = Some(waker.clone());
            queue.closed || !queue.events.is_empty()
        };
        if waiting {
            waker();
        }
    }
}

impl Iterator for Generation {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.recv()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Generation({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn token(id: u32) -> Event {
        Event::Token { id, text: String::new(), logprob: None }
    }

    #[test]
    fn events_arrive_in_order_and_end() {
        let (sink, generation) = channel(1);
        assert_eq!(generation.try_recv(), Err(RecvError::Empty));
        assert_eq!(generation.recv_timeout(Duration::from_millis(1)), Err(RecvError::Empty));
        sink.send(token(0));
        assert_eq!(generation.recv_timeout(Duration::MAX), Ok(token(0)));
        sink.send(token(1));
        sink.send(Event::Error(RequestError::Stopped));
        sink.send(token(2));
        let events: Vec<Event> = generation.collect();
        assert_eq!(events, [token(1), Event::Error(RequestError::Stopped)]);
        assert!(sink.cancelled(), "the receiver is gone");
    }

    #[test]
    fn a_lost_engine_ends_the_stream() {
        let (sink, generation) = channel(1);
        let waiting = std::thread::spawn(move || generation.recv());
        drop(sink);
        assert_eq!(waiting.join().unwrap(), Some(Event::Error(RequestError::Stopped)));
    }

    #[test]
    fn wakers_are_called_for_events_before_and_after() {
        let (sink, generation) = channel(1);
        sink.send(token(1));
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = calls.clone();
        generation.set_waker(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        sink.send(token(2));
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        drop(sink);
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }
}
