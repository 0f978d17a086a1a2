//! Engines: start, stop.

use std::sync::Arc;

use millpond::engine::{self, Engine};
use millpond::model::Model;

use crate::failure::{Error, Failure, Status, guard};
use crate::handles::{self, EngineHandle, ModelHandle};
use crate::pointers;
use crate::types::EngineOptions;

/// Writes the defaults.
///
/// # Safety
/// `options` is null (an error) or points to memory for the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_engine_options_init(options: *mut EngineOptions) -> i32 {
    let body = || {
        let base = engine::EngineOptions::default();
        let defaults = EngineOptions {
            size: size_of::<EngineOptions>(),
            threads: base.threads,
            context: base.context,
            max_running: base.max_running,
            max_queue: base.max_queue,
            memory_budget: -1,
            cache_budget: -1,
        };
        // SAFETY: the caller vouches for the memory.
        unsafe { pointers::write("options", options, defaults) }
    };
    // SAFETY: null takes no error.
    unsafe { guard(std::ptr::null_mut(), body) }
}

/// Starts an engine: a thread that runs requests, and workers. Several engines may share a model.
///
/// # Safety
/// `options` is null or points to the structure; `engine` and `error` are null or point to memory for what they hold.
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
            pointers::write("engine", engine, std::ptr::null_mut())?;
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

/// # Safety
/// `options` is null or points to the structure.
unsafe fn engine_options(options: *const EngineOptions) -> Result<engine::EngineOptions, Failure> {
    let base = engine::EngineOptions::default();
    if options.is_null() {
        return Ok(base);
    }
    // SAFETY: the caller vouches for the memory.
    let options = unsafe { pointers::sized("options", options) }?;
    Ok(engine::EngineOptions {
        threads: options.threads,
        context: options.context,
        max_running: options.max_running,
        max_queue: options.max_queue,
        memory_budget: budget("memory_budget", options.memory_budget)?,
        cache_budget: budget("cache_budget", options.cache_budget)?,
        ..base
    })
}

fn budget(name: &str, bytes: i64) -> Result<Option<usize>, Failure> {
    match bytes {
        -1 => Ok(None),
        bytes => usize::try_from(bytes)
            .map(Some)
            .map_err(|_| Failure::new(Status::InvalidArgument, format!("{name} is {bytes}"))),
    }
}

/// Stops an engine and waits for its threads. Generations under way end with an error. Null does nothing.
///
/// # Safety
/// `error` is null or points to memory for the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_engine_free(engine: *mut EngineHandle, error: *mut Error) -> i32 {
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, || handles::take::<Engine>(engine).map(drop)) }
}
