//! One engine, many requests: a thread that owns all mutable state, commands in, events out.
//!
//! ```no_run
//! use millpond::engine::{Engine, EngineOptions, Event, Request};
//! use millpond::model::{LoadOptions, Model};
//!
//! let model = Model::load("model.gguf".as_ref(), &LoadOptions::default())?;
//! let engine = Engine::start(model.clone(), EngineOptions::default())?;
//! let prompt = model.tokenizer.as_ref().expect("a tokenizer").encode("Once upon a time", false)?;
//! for event in engine.handle().submit(Request { max_tokens: Some(32), ..Request::new(prompt) })? {
//!     if let Event::Token { text, .. } = event {
//!         print!("{text}");
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cache;
mod costs;
mod drafts;
mod emit;
mod generation;
mod memory;
mod options;
mod pass;
mod radix;
mod request;
mod reuse;
pub mod scheduler;
mod speculation;
mod stats;
mod stream;
mod worker;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use millpond_simd::{Isa, Kernels};

use crate::backend::Backend;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::model::Model;
use crate::par::Team;
use crate::runner::Runner;
use crate::sample::{Sampler, StopMatcher};
use crate::state::layout::StateLayout;
use crate::weights::ModelWeights;
use drafts::Drafter;
use stream::Stream;
use worker::Worker;

pub use generation::{Generation, RecvError};
pub use options::{DraftSource, EngineError, EngineOptions, SpecMode, UnknownSpecMode};
pub use request::{
    Class, Event, FinishReason, Pooling, Request, RequestError, SubmitError, TokenLogprob, Usage,
};
pub use stats::{SlotPhase, SlotStats, Stats};

/// Most alternatives whose probability is reported.
const MAX_LOGPROBS: usize = 64;

/// What the engine's thread is told.
pub(crate) enum Command {
    Submit(Box<Stream>),
    Stop,
}

/// What handles and the engine's thread share.
pub(crate) struct Shared {
    /// Requests between acceptance and entry.
    waiting: AtomicUsize,
    next_id: AtomicU64,
    stats: Mutex<Stats>,
}

impl Shared {
    /// Numbers stay meaningful whatever happened to somebody who looked at them.
    fn stats(&self) -> std::sync::MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What handles know about the engine without asking it.
struct Limits {
    options: EngineOptions,
    context: usize,
    memory_budget: usize,
    cache_budget: usize,
    layout: StateLayout,
}

/// A running engine. Dropping it stops the engine; requests still under way end with an error.
pub struct Engine {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
}

/// A way to use an engine from any thread.
#[derive(Clone)]
pub struct EngineHandle {
    model: Arc<Model>,
    commands: Sender<Command>,
    shared: Arc<Shared>,
    limits: Arc<Limits>,
}

impl Engine {
    /// Starts an engine on the processor.
    ///
    /// # Errors
    /// [`EngineError`] when the options do not suit the machine or the model.
    pub fn start(model: Arc<Model>, options: EngineOptions) -> Result<Engine, EngineError> {
        let options = settle(options);
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let kernels = Kernels::for_isa(isa).ok_or(EngineError::Isa(isa))?;
        let cpu = CpuOptions {
            kv_type: options.kv_type,
            max_window: options.buffer.max_window,
            fold_interval: options.buffer.fold_interval,
            arithmetic: options.arithmetic,
        };
        let team = Team::new(options.threads)?;
        let weights = with_draft_head(&model.weights, options.draft_vocabulary);
        let backend = CpuBackend::new(model.spec.clone(), weights, kernels, team, cpu)?;
        Engine::start_on(Box::new(backend), model, options)
    }

    /// Starts an engine on a backend that was set up for the same model and options.
    ///
    /// # Errors
    /// [`EngineError`] when the options do not suit the model.
    pub fn start_on(
        backend: Box<dyn Backend>,
        model: Arc<Model>,
        options: EngineOptions,
    ) -> Result<Engine, EngineError> {
        let options = settle(options);
        if options.max_running == 0 {
            return Err(EngineError::Options("an engine needs room for one running request".to_owned()));
        }
        let context = match options.context {
            0 => model.spec.context,
            context => context,
        };
        let runner = Runner::new(backend, model.spec.clone(), options.buffer, context);
        let layout = runner.layout().clone();
        let memory_budget = options.memory_budget.unwrap_or_else(|| memory::available_memory() / 2);
        let cache_budget = options.cache_budget.unwrap_or_else(|| {
            let snapshots = 8 * memory::sequence_bytes(&layout, &options.buffer, options.kv_type, 0);
            (memory::total_memory() / 20).max(snapshots.saturating_add(8 * layout.state_bytes()))
        });
        let stats = Stats {
            cache_budget,
            memory_budget,
            context,
            max_running: options.max_running,
            ..Stats::default()
        };
        let shared = Arc::new(Shared {
            waiting: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            stats: Mutex::new(stats),
        });
        let limits = Arc::new(Limits { options, context, memory_budget, cache_budget, layout });
        let (commands, receiver) = mpsc::channel();
        let worker = Worker::new(model.clone(), runner, limits.clone(), shared.clone(), receiver);
        let thread = std::thread::Builder::new()
            .name("millpond-engine".to_owned())
            .spawn(move || worker.run())
            .map_err(EngineError::Thread)?;
        Ok(Engine { handle: EngineHandle { model, commands, shared, limits }, thread: Some(thread) })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }
}

/// The weights with a prediction head that reads only the first tokens of the vocabulary: those are the frequent ones,
/// and the others would cost more to read than they are worth as guesses.
fn with_draft_head(weights: &Arc<ModelWeights>, rows: usize) -> Arc<ModelWeights> {
    let trimmed = weights.mtp.as_ref().filter(|mtp| mtp.output.rows() > rows);
    let Some(output) = trimmed.and_then(|mtp| mtp.output.slice_rows(0..rows)) else { return weights.clone() };
    let mut weights = ModelWeights::clone(weights);
    if let Some(mtp) = &mut weights.mtp {
        mtp.output = output;
    }
    Arc::new(weights)
}

/// Options that follow from others.
fn settle(mut options: EngineOptions) -> EngineOptions {
    options.buffer.max_window = options.buffer.max_window.max(options.spec_draft_max + 1);
    options
}

impl Drop for Engine {
    fn drop(&mut self) {
        // An engine whose thread is gone has nothing left to stop.
        let told = self.handle.commands.send(Command::Stop).is_ok();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(told, "the engine's thread ended with a panic");
        }
    }
}

impl EngineHandle {
    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Most tokens of a request, prompt and answer together.
    pub fn context(&self) -> usize {
        self.limits.context
    }

    /// The options the engine runs with.
    pub fn options(&self) -> &EngineOptions {
        &self.limits.options
    }

    /// Counters, and what runs now.
    pub fn stats(&self) -> Stats {
        let mut stats = self.shared.stats().clone();
        stats.waiting = self.shared.waiting.load(Ordering::Relaxed);
        stats
    }

    /// Hands a request to the engine.
    ///
    /// # Errors
    /// [`SubmitError`] at once when the request cannot be served; it never waits.
    pub fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        self.check(&request)?;
        let limit = self.token_limit(&request)?;
        let invalid = |error: &dyn std::fmt::Display| SubmitError::Invalid(error.to_string());
        let stops = StopMatcher::new(&request.stop).map_err(|error| invalid(&error))?;
        let vocab = self.model.spec.vocab;
        let sampler = Sampler::new(request.sampling.clone(), vocab).map_err(|error| invalid(&error))?;
        let waiting = self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        if waiting >= self.limits.options.max_queue {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            self.shared.stats().refused += 1;
            return Err(SubmitError::QueueFull { waiting, retry_after: self.retry_after(waiting) });
        }
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (sink, generation) = generation::channel(id);
        let drafter = self.drafter(&request);
        let stream = Stream::new(id, request, limit, sink, sampler, stops, drafter);
        if self.commands.send(Command::Submit(Box::new(stream))).is_err() {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(SubmitError::Stopped);
        }
        self.shared.stats().accepted += 1;
        Ok(generation)
    }

    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let invalid = |message: String| Err(SubmitError::Invalid(message));
        if request.prompt.is_empty() {
            return invalid("the prompt has no tokens".to_owned());
        }
        let vocab = self.model.spec.vocab;
        if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= vocab) {
            return invalid(format!("token {token} is not in the vocabulary of {vocab}"));
        }
        if !request.stop.is_empty() && self.model.tokenizer.is_none() {
            return invalid("the model has no tokenizer, so there is no text to stop at".to_owned());
        }
        if request.spec == Some(SpecMode::Mtp) && self.model.weights.mtp.is_none() {
            return invalid("the model has no multi-token-prediction head".to_owned());
        }
        if request.logprobs.is_some_and(|count| count > MAX_LOGPROBS) {
            return invalid(format!("at most {MAX_LOGPROBS} alternatives can be reported"));
        }
        Ok(())
    }

    /// Most tokens to generate, by the request, the context and the memory budget.
    fn token_limit(&self, request: &Request) -> Result<usize, SubmitError> {
        let (prompt, context) = (request.prompt.len(), self.limits.context);
        let wanted = if request.embeddings.is_some() { Some(0) } else { request.max_tokens };
        let least = wanted.unwrap_or(1);
        if prompt.saturating_add(least) > context {
            return Err(SubmitError::PromptTooLong { prompt, max_tokens: least, context });
        }
        let needed = self.limits.sequence_bytes(prompt + least);
        if needed > self.limits.memory_budget {
            return Err(SubmitError::TooLarge { needed, budget: self.limits.memory_budget });
        }
        Ok(wanted.unwrap_or(context - prompt))
    }

    fn drafter(&self, request: &Request) -> Drafter {
        let options = &self.limits.options;
        let longest = options.spec_draft_max.min(request.spec_draft_max.unwrap_or(usize::MAX));
        Drafter::new(request.spec.unwrap_or(options.spec), longest, self.model.weights.mtp.is_some())
    }

    /// When a place may be free: the mean time of a request, times those that wait, shared by those that run.
    fn retry_after(&self, waiting: usize) -> Duration {
        let stats = self.shared.stats();
        let busy = stats.prefill_seconds + stats.decode_seconds;
        let each = busy / (stats.completed.max(1)) as f64;
        Duration::from_secs_f64((each * waiting as f64).clamp(1.0, 60.0))
    }
}

impl Limits {
    fn sequence_bytes(&self, positions: usize) -> usize {
        memory::sequence_bytes(&self.layout, &self.options.buffer, self.options.kv_type, positions)
    }
}
