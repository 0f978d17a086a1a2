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
mod checksum;
mod costs;
mod disk;
mod draft_model;
mod drafts;
mod emit;
mod generation;
mod handle;
mod memory;
mod options;
mod pass;
mod radix;
mod request;
mod reuse;
pub mod scheduler;
mod session_file;
mod sessions;
mod speculation;
mod stats;
mod stream;
mod warm_up;
mod worker;

#[cfg(feature = "grammar")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use millpond_simd::Kernels;

use crate::backend::Backend;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::model::Model;
use crate::par::{PassThreads, Team};
use crate::runner::Runner;
#[cfg(feature = "grammar")]
use crate::sample::grammar::{GrammarCompiler, GrammarError};
use crate::state::layout::StateLayout;
use crate::weights::ModelWeights;
use draft_model::DraftModel;
use session_file::Session;
use stream::Stream;
use worker::Worker;

pub use crate::backend::cpu::Arithmetic;
pub use crate::runner::BufferOptions;
pub use crate::state::memory::{KvType, StateType, UnknownStateType};
pub use generation::{Generation, RecvError};
pub use handle::EngineHandle;
pub use millpond_simd::Isa;
pub use options::{DraftSource, EngineError, EngineOptions, SpecError, SpecMode, UnknownSpecMode};
pub use request::{
    Class, Event, FinishReason, Pooling, Request, RequestError, SubmitError, TokenLogprob, Usage,
};
pub use session_file::{SessionError, SessionFolder, SessionInfo};
pub use speculation::MAX_DRAFT;
pub use stats::{SlotPhase, SlotStats, Stats};

/// What the engine's thread is told.
pub(crate) enum Command {
    Submit(Box<Stream>),
    /// Hand out the state kept under a name.
    Export {
        name: String,
        reply: Sender<Result<Session, SessionError>>,
    },
    /// Keep a state under a name.
    Import {
        name: String,
        session: Box<Session>,
        reply: Sender<Result<(), SessionError>>,
    },
    /// Forget the state kept under a name; the answer says whether there was one.
    Forget {
        name: String,
        reply: Sender<bool>,
    },
    /// Run these requests, which nobody asked for, unless there are others.
    WarmUp {
        streams: Vec<Stream>,
        reply: Sender<()>,
    },
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
    draft_layout: Option<StateLayout>,
    sessions: Option<SessionFolder>,
    /// Compiles grammars; made when the first is asked for.
    #[cfg(feature = "grammar")]
    grammars: OnceLock<Result<GrammarCompiler, GrammarError>>,
}

/// A running engine. Dropping it stops the engine; requests still under way end with an error.
pub struct Engine {
    handle: EngineHandle,
    thread: Option<JoinHandle<()>>,
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
            state_type: options.buffer.state_type,
            max_window: options.buffer.max_window,
            fold_interval: options.buffer.fold_interval,
            arithmetic: options.arithmetic,
        };
        let threads = PassThreads::new(options.threads, options.prefill_threads);
        let team = Team::new(threads.most())?;
        let weights = with_draft_head(&model.weights, options.draft_vocabulary);
        let backend = CpuBackend::new(model.spec.clone(), weights, kernels, team, cpu)?.with_threads(threads);
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
        options.check_speculation(&model)?;
        let context = match options.context {
            0 => model.spec.context,
            context => context,
        };
        let runner = Runner::new(backend, model.spec.clone(), options.buffer, context);
        let draft_model = DraftModel::of(&options, &model, context)?;
        let draft_layout = options.draft_model.as_ref().map(|draft| StateLayout::new(&draft.spec));
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
        let sessions = options.session_dir.clone().map(SessionFolder::new);
        let limits = Arc::new(Limits {
            options,
            context,
            memory_budget,
            cache_budget,
            layout,
            draft_layout,
            sessions,
            #[cfg(feature = "grammar")]
            grammars: OnceLock::new(),
        });
        let (commands, receiver) = mpsc::channel();
        let worker =
            Worker::new(model.clone(), runner, draft_model, limits.clone(), shared.clone(), receiver);
        let thread = std::thread::Builder::new()
            .name("millpond-engine".to_owned())
            .spawn(move || worker.run())
            .map_err(EngineError::Thread)?;
        Ok(Engine { handle: EngineHandle::new(model, commands, shared, limits), thread: Some(thread) })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }
}

/// Most tokens that the prediction head can propose, unless options say otherwise.
const DRAFT_VOCABULARY: usize = 32_768;

/// The weights with a prediction head that reads only the first tokens of the vocabulary: those are the frequent ones,
/// and the others would cost more to read than they are worth as guesses.
fn with_draft_head(weights: &Arc<ModelWeights>, rows: usize) -> Arc<ModelWeights> {
    let rows = |all: usize| if rows == 0 { (all / 4).min(DRAFT_VOCABULARY) } else { rows.min(all) };
    let trimmed = weights.mtp.as_ref().map(|mtp| &mtp.output);
    let Some(output) = trimmed.and_then(|output| output.slice_rows(0..rows(output.rows()))) else {
        return weights.clone();
    };
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
        let told = self.handle.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(told, "the engine's thread ended with a panic");
        }
    }
}

impl Limits {
    fn sequence_bytes(&self, positions: usize) -> usize {
        let bytes = |layout: &StateLayout, buffer: &BufferOptions| {
            memory::sequence_bytes(layout, buffer, self.options.kv_type, positions)
        };
        let draft = self.draft_layout.as_ref();
        let draft = draft.map_or(0, |layout| bytes(layout, &draft_model::buffer(&self.options)));
        bytes(&self.layout, &self.options.buffer).saturating_add(draft)
    }
}
