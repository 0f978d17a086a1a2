//! Generations: submit, wait, cancel.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millpond::engine::{Engine, FinishReason, Generation, RequestError, SubmitError, Usage};

use crate::failure::{Error, Failure, Status, guard, with};
use crate::handles::{self, EngineHandle, GenerationHandle};
use crate::listener::{follow, for_text};
use crate::pointers;
use crate::request::engine_request;
use crate::types::{Listener, Outcome, Request, TextCallback};

/// Why a generation ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the text.
    EndOfText = 0,
    /// One of the stop texts came up.
    Stop = 1,
    /// The number of tokens asked for, the context or the memory is used up.
    Length = 2,
    /// It was cancelled.
    Cancelled = 3,
}

/// A request under way.
#[derive(Debug)]
pub struct Running {
    generation: Generation,
    waited_for: AtomicBool,
}

/// Hands a request to an engine and returns at once. On failure *generation is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_generation_start(
    engine: *const EngineHandle,
    request: *const Request,
    generation: *mut *mut GenerationHandle,
    error: *mut Error,
) -> i32 {
    let body = || {
        // SAFETY: the caller vouches for the memory.
        let request = unsafe {
            pointers::write("generation", generation, null_mut())?;
            engine_request(request)?
        };
        let submitted = handles::get::<Engine>(engine)?
            .handle()
            .submit(request)
            .map_err(|error| submit_failure(&error))?;
        let running = Running { generation: submitted, waited_for: AtomicBool::new(false) };
        let handle = handles::give(Arc::new(running))?;
        // SAFETY: as above.
        unsafe { pointers::write("generation", generation, handle) }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

pub(crate) fn submit_failure(error: &SubmitError) -> Failure {
    let status = match error {
        SubmitError::QueueFull { .. } => Status::QueueFull,
        SubmitError::PromptTooLong { .. } | SubmitError::TooLarge { .. } => Status::TooLong,
        SubmitError::Stopped => Status::Stopped,
        _ => Status::InvalidArgument,
    };
    Failure::new(status, error)
}

pub(crate) fn request_failure(error: &RequestError) -> Failure {
    let status = match error {
        RequestError::Stopped => Status::Stopped,
        _ => Status::RequestFailed,
    };
    Failure::new(status, error)
}

/// Waits until a generation ends; once for each. `callback`, `user_data` and `result` may be NULL. A cancelled
/// generation ends with MILLPOND_STATUS_OK and MILLPOND_FINISH_CANCELLED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_generation_wait(
    generation: *const GenerationHandle,
    callback: TextCallback,
    user_data: *mut c_void,
    result: *mut Outcome,
    error: *mut Error,
) -> i32 {
    // SAFETY: the caller vouches for the memory and the function.
    unsafe { with(generation, error, |running| wait(&running, &for_text(callback, user_data), result)) }
}

/// As `millpond_generation_wait`, for hosts that want to hear more than the text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_generation_listen(
    generation: *const GenerationHandle,
    listener: *const Listener,
    result: *mut Outcome,
    error: *mut Error,
) -> i32 {
    // SAFETY: the caller vouches for the memory and the functions.
    unsafe {
        with(generation, error, |running| wait(&running, &pointers::sized("listener", listener)?, result))
    }
}

unsafe fn wait(running: &Running, listener: &Listener, result: *mut Outcome) -> Result<(), Failure> {
    if running.waited_for.swap(true, Ordering::Relaxed) {
        return Err(Failure::new(Status::WrongOrder, "the generation has been waited for already"));
    }
    // SAFETY: the caller vouches for the memory and the functions.
    unsafe {
        let (reason, usage) = follow(&running.generation, listener)?;
        pointers::write_optional("result", result, summary(&reason, &usage))
    }
}

fn summary(reason: &FinishReason, usage: &Usage) -> Outcome {
    let finish = match reason {
        FinishReason::Eos => Finish::EndOfText,
        FinishReason::Stop(_) => Finish::Stop,
        FinishReason::Length => Finish::Length,
        FinishReason::Cancelled => Finish::Cancelled,
    };
    Outcome {
        finish: finish as i32,
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.cached_tokens,
        completion_tokens: usage.completion_tokens,
        drafted_tokens: usage.drafted,
        accepted_tokens: usage.accepted,
        queued_seconds: usage.queued.as_secs_f64(),
        prefill_seconds: usage.prefill.as_secs_f64(),
        decode_seconds: usage.decode.as_secs_f64(),
    }
}

/// Asks a generation to end soon, from any thread. It is no mistake if it has ended already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_generation_cancel(
    generation: *const GenerationHandle,
    error: *mut Error,
) -> i32 {
    let cancel = |running: Arc<Running>| {
        running.generation.cancel();
        Ok(())
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { with(generation, error, cancel) }
}

/// Cancels a generation if it still runs, and gives it back. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_generation_free(
    generation: *mut GenerationHandle,
    error: *mut Error,
) -> i32 {
    let body = || {
        if let Some(running) = handles::take::<Running>(generation)? {
            // Somebody may be waiting for it still.
            running.generation.cancel();
        }
        Ok(())
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}
