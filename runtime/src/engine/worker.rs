//! The engine's thread: takes commands, plans steps, runs them, hands out what they yield.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;

use super::cache::PrefixCache;
use super::costs::CostModel;
use super::disk::DiskTier;
use super::draft_model::DraftModel;
use super::drafts::Priors;
use super::pass::Lane;
use super::request::{FinishReason, RequestError};
use super::scheduler::{self, Costs, Phase, Plan, Running, View, Waiting};
use super::speculation::Speculation;
use super::stats::{SlotPhase, SlotStats};
use super::stream::Stream;
use super::{Command, Limits, Shared};
use crate::backend::Outputs;
use crate::model::Model;
use crate::runner::Runner;

/// How often paused streams are looked at when nothing else is to be done.
const PAUSE: Duration = Duration::from_millis(10);
/// Tokens that memory is reserved for at once when a request does not say how many it wants.
const GROWTH: usize = 1024;

/// How a stream of the last pass ended.
pub(super) enum Outcome {
    Finished(FinishReason),
    Failed(RequestError),
}

pub(super) struct Worker {
    pub(super) model: Arc<Model>,
    pub(super) runner: Runner,
    pub(super) limits: Arc<Limits>,
    pub(super) shared: Arc<Shared>,
    commands: Receiver<Command>,
    pub(super) waiting: Vec<Stream>,
    pub(super) running: Vec<Stream>,
    /// The pass under way. It stands here, and not on the stack, to be found after an unwind.
    pub(super) lanes: Vec<Lane>,
    reserved: usize,
    pub(super) costs: CostModel,
    pub(super) speculation: Speculation,
    pub(super) priors: Priors,
    pub(super) draft_model: Option<DraftModel>,
    /// What the prediction head yields; its buffers are reused.
    pub(super) head_outputs: Outputs,
    /// Seconds that drafts for the coming pass took, and seconds that such drafts usually take.
    pub(super) drafting: f64,
    pub(super) usual_drafting: f64,
    steps: u64,
    pub(super) cache: PrefixCache,
    pub(super) disk: Option<DiskTier>,
    /// Snapshots that have a name, longest known first.
    pub(super) sessions: Vec<(String, u64)>,
    pub(super) slices: u64,
    /// Tokens generated.
    pub(super) generated: usize,
    /// Whether the last turn found nothing to do.
    rested: bool,
    entered: u64,
}

impl Worker {
    pub(super) fn new(
        model: Arc<Model>,
        runner: Runner,
        draft_model: Option<DraftModel>,
        limits: Arc<Limits>,
        shared: Arc<Shared>,
        commands: Receiver<Command>,
    ) -> Worker {
        let cache = PrefixCache::new(limits.cache_budget);
        let disk = DiskTier::of(&model, &limits);
        Worker {
            model,
            runner,
            limits,
            shared,
            commands,
            waiting: Vec::new(),
            running: Vec::new(),
            lanes: Vec::new(),
            reserved: 0,
            costs: CostModel::default(),
            speculation: Speculation::default(),
            priors: Priors::default(),
            draft_model,
            head_outputs: Outputs { want_hidden: true, ..Outputs::default() },
            drafting: 0.0,
            usual_drafting: 0.0,
            steps: 0,
            cache,
            disk,
            sessions: Vec::new(),
            slices: 0,
            generated: 0,
            rested: false,
            entered: 0,
        }
    }

    /// Works until told to stop, or until nobody is left who could.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.step();
        }
        self.shared.waiting.fetch_sub(self.waiting.len(), Ordering::Relaxed);
        self.waiting.clear();
        let ended = std::mem::take(&mut self.running);
        self.reserved = 0;
        self.publish();
        // Streams that are dropped without an end say that the engine has been stopped.
        drop(ended);
        self.spill_all();
    }

    /// A turn, whatever happens in it.
    pub(super) fn step(&mut self) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.turn())) {
            self.recover(&describe(&*panic));
        }
        self.publish();
    }

    /// Whether there is nobody to work for.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Takes all commands that are there; waits for one when there is nothing to do. False to stop.
    fn receive(&mut self) -> bool {
        let first = if self.is_idle() {
            self.commands.recv().map_err(|_| TryRecvError::Disconnected)
        } else if self.rested {
            self.commands.recv_timeout(PAUSE).map_err(|error| match error {
                RecvTimeoutError::Timeout => TryRecvError::Empty,
                RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
            })
        } else {
            self.commands.try_recv()
        };
        let mut next = first;
        loop {
            match next {
                Ok(Command::Submit(stream)) => self.waiting.push(*stream),
                Ok(Command::Export { name, reply }) => answer(&reply, self.export(&name)),
                Ok(Command::Import { name, session, reply }) => answer(&reply, self.import(&name, *session)),
                Ok(Command::Forget { name, reply }) => answer(&reply, self.forget(&name)),
                Ok(Command::WarmUp { streams, reply }) => {
                    self.warm_up(streams);
                    answer(&reply, ());
                }
                Err(TryRecvError::Empty) => return true,
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
            next = self.commands.try_recv();
        }
    }

    /// One step: cancellations, admission, a pass.
    fn turn(&mut self) {
        self.drop_cancelled();
        self.take_fetched();
        self.make_room();
        let mut plan = self.plan();
        let entered = !plan.enter.is_empty();
        if entered {
            for id in std::mem::take(&mut plan.enter) {
                self.enter(id);
            }
            // Who has just come in takes part at once: a step may be long.
            plan = self.plan();
        }
        // A prompt that finds more of its state makes room for others, which may find theirs; each looks once.
        while plan.slices.iter().filter(|slice| self.search_again(slice.id)).count() > 0 {
            plan = self.plan();
        }
        self.drafting = self.draft(&plan.decode);
        self.compose(&plan);
        self.rested = self.lanes.is_empty() && !entered;
        if self.lanes.is_empty() {
            return;
        }
        let outcomes = self.pass();
        self.steps += 1;
        self.end(outcomes);
    }

    fn drop_cancelled(&mut self) {
        let shared = &self.shared;
        self.waiting.retain_mut(|stream| {
            let cancelled = stream.sink.cancelled();
            if cancelled {
                shared.waiting.fetch_sub(1, Ordering::Relaxed);
                shared.stats().cancelled += 1;
                stream.finish(FinishReason::Cancelled);
            }
            !cancelled
        });
        let timeout = self.limits.options.stall_timeout;
        let cancelled = |(i, stream): (usize, &mut Stream)| {
            let gone = stream.sink.cancelled() || stream.stalled(timeout);
            gone.then_some((i, Outcome::Finished(FinishReason::Cancelled)))
        };
        let outcomes = self.running.iter_mut().enumerate().filter_map(cancelled).collect();
        self.end(outcomes);
    }

    /// Reserves memory for streams that outgrow theirs. When all wait for memory, the youngest ends.
    fn make_room(&mut self) {
        let most = self.limits.options.buffer.max_window;
        let mut starved = 0;
        for i in 0..self.running.len() {
            let stream = &self.running[i];
            if stream.position() + most <= stream.room || stream.room >= stream.prompt_len() + stream.limit {
                continue;
            }
            let room = (stream.room + GROWTH).min(stream.prompt_len() + stream.limit);
            let bytes = self.limits.sequence_bytes(room);
            if self.reserved - stream.reserved + bytes <= self.limits.memory_budget {
                let stream = &mut self.running[i];
                self.reserved = self.reserved - stream.reserved + bytes;
                (stream.reserved, stream.room) = (bytes, room);
            } else {
                starved += 1;
            }
        }
        if starved > 0 && starved == self.running.len() {
            self.end(vec![(starved - 1, Outcome::Finished(FinishReason::Length))]);
        }
    }

    fn plan(&self) -> Plan {
        let window = self.limits.options.buffer.max_window;
        let waiting: Vec<Waiting> = self
            .waiting
            .iter()
            .map(|stream| Waiting {
                id: stream.id,
                class: stream.request.class,
                reserve: self.limits.sequence_bytes(first_room(stream)),
                overtaken: stream.overtaken,
            })
            .collect();
        let phase = |stream: &Stream| match stream.phase() {
            Phase::Decode if stream.sink.congested() => Phase::Paused,
            Phase::Prefill { .. } if stream.fetching.is_some() => Phase::Paused,
            Phase::Decode
                if stream.position() + window > stream.room
                    && stream.room < stream.prompt_len() + stream.limit =>
            {
                Phase::Paused
            }
            phase => phase,
        };
        let mut running: Vec<Running> = self
            .running
            .iter()
            .map(|stream| Running { id: stream.id, class: stream.request.class, phase: phase(stream) })
            .collect();
        for i in 1..running.len() {
            let earlier = (0..i).find(|&j| self.running[i].is_kin(&self.running[j]));
            let eldest = earlier.and_then(|j| match running[j].phase {
                Phase::Prefill { kin, .. } => Some(kin),
                _ => None,
            });
            if let (Phase::Prefill { kin, .. }, Some(eldest)) = (&mut running[i].phase, eldest) {
                *kin = eldest;
            }
        }
        let streams = running.iter().filter(|running| running.phase == Phase::Decode).count();
        let seconds = |seconds: Option<f64>| seconds.map_or(Duration::ZERO, Duration::from_secs_f64);
        scheduler::plan(&View {
            step: self.steps,
            slices: self.slices,
            entered: self.entered,
            waiting: &waiting,
            running: &running,
            max_running: self.limits.options.max_running,
            free: self.limits.memory_budget.saturating_sub(self.reserved),
            max_gap: self.limits.options.max_gap,
            max_rows: self.limits.options.prefill_rows,
            costs: Costs {
                decode: seconds(self.costs.decode_pass(streams.max(1), 0)),
                prefill_row: seconds(self.costs.prefill_row()),
                surprise: self.costs.surprise(),
                prefill_depth: Duration::from_secs_f64(self.costs.prefill_depth() * scheduler::DEPTH as f64),
            },
        })
    }

    /// Moves a request from the queue to the running ones.
    fn enter(&mut self, id: u64) {
        let Some(at) = self.waiting.iter().position(|stream| stream.id == id) else { return };
        for stream in &mut self.waiting[..at] {
            stream.overtaken += 1;
        }
        let mut stream = self.waiting.remove(at);
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        self.entered += 1;
        match self.runner.create() {
            Ok(sequence) => {
                stream.room = first_room(&stream);
                stream.reserved = self.limits.sequence_bytes(stream.room);
                self.reserved += stream.reserved;
                stream.enter(sequence);
                self.prime(&mut stream);
                self.running.push(stream);
                let index = self.running.len() - 1;
                self.reuse(index);
                self.running[index].report_prefill();
            }
            Err(error) => {
                self.shared.stats().failed += 1;
                stream.fail(RequestError::Backend(error.to_string()));
            }
        }
    }

    /// Removes streams that have ended.
    fn end(&mut self, mut outcomes: Vec<(usize, Outcome)>) {
        outcomes.sort_by_key(|&(index, _)| std::cmp::Reverse(index));
        for (index, outcome) in outcomes {
            let mut stream = self.running.remove(index);
            self.reserved -= stream.reserved;
            if let Some(sequence) = stream.sequence.take() {
                match &outcome {
                    Outcome::Finished(_) => self.keep_last(&mut stream, sequence),
                    Outcome::Failed(_) => self.runner.release(sequence),
                }
            }
            self.leave_model(&mut stream);
            {
                let mut stats = self.shared.stats();
                match &outcome {
                    Outcome::Finished(FinishReason::Cancelled) => stats.cancelled += 1,
                    Outcome::Finished(_) => stats.completed += 1,
                    Outcome::Failed(_) => stats.failed += 1,
                }
            }
            // Whoever sees the last event finds the numbers as they are after it.
            self.publish();
            match outcome {
                Outcome::Finished(reason) => stream.finish(reason),
                Outcome::Failed(error) => stream.fail(error),
            }
        }
    }

    /// After an unwind: the streams of the pass fail, the others go on.
    fn recover(&mut self, message: &str) {
        tracing::error!(message, "a pass ended with a panic");
        let error = RequestError::Internal(message.to_owned());
        let mut outcomes = self.fail_lanes(&error);
        // A stream whose sequence was lost on the way is of no more use.
        let listed: Vec<usize> = outcomes.iter().map(|&(index, _)| index).collect();
        let lost = |(i, stream): (usize, &Stream)| {
            (stream.sequence.is_none() && !listed.contains(&i)).then(|| (i, Outcome::Failed(error.clone())))
        };
        outcomes.extend(self.running.iter().enumerate().filter_map(lost));
        self.end(outcomes);
    }

    /// Makes the state of affairs visible to handles.
    fn publish(&self) {
        let mut stats = self.shared.stats();
        stats.reserved_bytes = self.reserved;
        stats.cache_entries = self.cache.len();
        stats.cache_bytes = self.cache.bytes();
        stats.cache_files = self.disk.as_ref().map_or(0, DiskTier::len);
        stats.cache_file_bytes = self.disk.as_ref().map_or(0, DiskTier::bytes);
        stats.slots.clear();
        stats.slots.extend(self.running.iter().map(|stream| SlotStats {
            id: stream.id,
            class: stream.request.class,
            phase: if stream.phase() == Phase::Decode { SlotPhase::Decode } else { SlotPhase::Prefill },
            prompt_tokens: stream.prompt_len(),
            cached_tokens: stream.usage.cached_tokens,
            position: stream.position(),
            generated: stream.generated(),
            reserved: stream.reserved,
            session: stream.request.session.clone(),
        }));
    }
}

/// Tokens that memory is reserved for when a request enters.
fn first_room(stream: &Stream) -> usize {
    let wanted = match stream.request.max_tokens {
        Some(_) => stream.limit,
        None => stream.limit.min(GROWTH),
    };
    stream.prompt_len() + wanted
}

/// Answers a question; whoever asked may have given up.
fn answer<T>(reply: &Sender<T>, value: T) {
    if reply.send(value).is_err() {
        tracing::debug!("an answer came too late");
    }
}

/// The message of a panic.
fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".to_owned())
}
