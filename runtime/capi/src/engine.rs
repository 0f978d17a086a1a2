//! Engines: start, stop, figures.

use std::ptr::{null, null_mut};
use std::sync::Arc;

use millpond::engine::{self, Engine, SpecMode};
use millpond::model::Model;

use crate::failure::{Error, Failure, Status, guard, initialise, with};
use crate::handles::{self, EngineHandle, ModelHandle};
use crate::pointers;
use crate::types::{EngineOptions, Stats};

/// Writes the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_engine_options_init(options: *mut EngineOptions) -> i32 {
    let defaults = || {
        let base = engine::EngineOptions::default();
        EngineOptions {
            size: size_of::<EngineOptions>(),
            threads: base.threads,
            context: base.context,
            max_running: base.max_running,
            max_queue: base.max_queue,
            prefill_threads: base.prefill_threads,
            prefill_rows: base.prefill_rows,
            draft_max: base.spec_draft_max,
            draft_min: base.spec_draft_min,
            draft_model: null(),
            speculation: Speculation::Auto as i32,
            memory_budget: -1,
            cache_budget: -1,
            session_dir: null(),
            exact_cache: base.exact_cache.into(),
        }
    };
    // SAFETY: the caller vouches for the memory.
    unsafe { initialise(options, defaults) }
}

/// Starts an engine: a thread that runs requests, and workers. Several engines may share a model. `options` may be NULL.
/// On failure *engine is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_engine_start(
    model: *const ModelHandle,
    options: *const EngineOptions,
    engine: *mut *mut EngineHandle,
    error: *mut Error,
) -> i32 {
    let body = || {
        // SAFETY: the caller vouches for the memory.
        let options = unsafe {
            pointers::write("engine", engine, null_mut())?;
            engine_options(options)?
        };
        let model = handles::get::<Model>(model)?;
        let started =
            Engine::start(model, options).map_err(|error| Failure::new(Status::StartFailed, error))?;
        let handle = handles::give(Arc::new(started))?;
        // SAFETY: as above.
        unsafe { pointers::write("engine", engine, handle) }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

unsafe fn engine_options(options: *const EngineOptions) -> Result<engine::EngineOptions, Failure> {
    let base = engine::EngineOptions::default();
    if options.is_null() {
        return Ok(base);
    }
    // SAFETY: the caller vouches for the memory.
    let (options, session_dir) = unsafe {
        let options = pointers::sized("options", options)?;
        (options, pointers::optional_string("session_dir", options.session_dir)?)
    };
    Ok(engine::EngineOptions {
        threads: options.threads,
        context: options.context,
        max_running: options.max_running,
        max_queue: options.max_queue,
        prefill_threads: options.prefill_threads,
        prefill_rows: options.prefill_rows,
        spec: if options.draft_max == 0 { SpecMode::Off } else { spec_mode(options.speculation)? },
        spec_draft_max: draft_max(options.draft_max)?,
        spec_draft_min: options.draft_min,
        draft_model: draft_model(options.draft_model)?,
        memory_budget: budget("memory_budget", options.memory_budget)?,
        cache_budget: budget("cache_budget", options.cache_budget)?,
        session_dir: session_dir.map(Into::into),
        exact_cache: options.exact_cache != 0,
        ..base
    })
}

/// Where drafts come from. They change the speed of an answer and never its tokens.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speculation {
    /// A draft model, the model's own head, or earlier text: the best of what there is, while it pays.
    Auto = 0,
    /// No drafts.
    Off = 1,
    /// Repetition of earlier text.
    Ngram = 2,
    /// The model's own multi-token-prediction head.
    Mtp = 3,
    /// The draft model.
    Draft = 4,
}

pub(crate) fn spec_mode(number: i32) -> Result<SpecMode, Failure> {
    Ok(match number {
        0 => SpecMode::Auto,
        1 => SpecMode::Off,
        2 => SpecMode::Ngram,
        3 => SpecMode::Mtp,
        4 => SpecMode::Draft,
        other => return Err(Failure::new(Status::InvalidArgument, format!("speculation is {other}"))),
    })
}

fn draft_model(model: *const ModelHandle) -> Result<Option<Arc<Model>>, Failure> {
    if model.is_null() { Ok(None) } else { handles::get::<Model>(model).map(Some) }
}

/// Every sequence has memory for the longest draft.
fn draft_max(tokens: usize) -> Result<usize, Failure> {
    const MOST: usize = 64;
    match tokens <= MOST {
        true => Ok(tokens),
        false => Err(Failure::new(
            Status::InvalidArgument,
            format!("draft_max is {tokens}, at most {MOST} expected"),
        )),
    }
}

fn budget(name: &str, bytes: i64) -> Result<Option<usize>, Failure> {
    match bytes {
        -1 => Ok(None),
        bytes => usize::try_from(bytes)
            .map(Some)
            .map_err(|_| Failure::new(Status::InvalidArgument, format!("{name} is {bytes}"))),
    }
}

/// Stops an engine. Generations under way end with MILLPOND_STATUS_STOPPED. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_engine_free(engine: *mut EngineHandle, error: *mut Error) -> i32 {
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, || handles::take::<Engine>(engine).map(drop)) }
}

/// What an engine has done and what it holds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_engine_stats(
    engine: *const EngineHandle,
    stats: *mut Stats,
    error: *mut Error,
) -> i32 {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        with::<Engine>(engine, error, |engine| {
            pointers::write("stats", stats, summary(&engine.handle().stats()))
        })
    }
}

fn summary(stats: &engine::Stats) -> Stats {
    Stats {
        accepted: stats.accepted,
        refused: stats.refused,
        completed: stats.completed,
        cancelled: stats.cancelled,
        failed: stats.failed,
        steps: stats.steps,
        prompt_tokens: stats.prompt_tokens,
        cached_tokens: stats.cached_tokens,
        generated_tokens: stats.generated_tokens,
        drafted_tokens: stats.drafted_tokens,
        accepted_tokens: stats.accepted_tokens,
        prefill_seconds: stats.prefill_seconds,
        decode_seconds: stats.decode_seconds,
        waiting: stats.waiting,
        running: stats.slots.len(),
        max_running: stats.max_running,
        context: stats.context,
        reserved_bytes: stats.reserved_bytes,
        memory_budget: stats.memory_budget,
        cache_entries: stats.cache_entries,
        cache_bytes: stats.cache_bytes,
        cache_budget: stats.cache_budget,
    }
}
