//! Generations: submit, wait, cancel.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millpond::engine::{
    Engine, Event, FinishReason, Generation, RecvError, RequestError, SubmitError, Usage,
};

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
    pub(crate) generation: Generation,
    /// Values of the embedding that was asked for, if one was.
    pub(crate) embedding: Option<usize>,
    /// Whether a function that waits for the end has been called.
    waited_for: AtomicBool,
    reading: Mutex<Option<Reading>>,
}

impl Running {
    pub(crate) fn new(generation: Generation, embedding: Option<usize>) -> Running {
        Running { generation, embedding, waited_for: AtomicBool::new(false), reading: Mutex::default() }
    }

    /// Takes what the generation reports for a wait; nobody else gets it then.
    pub(crate) fn begin_wait(&self) -> Result<(), Failure> {
        // The lock keeps a first read from beginning meanwhile. A reader in its call holds it and is waited for.
        let reading = self.reading();
        if reading.is_some() || self.waited_for.swap(true, Ordering::Relaxed) {
            return Err(Failure::new(Status::WrongOrder, "the generation has been waited for already"));
        }
        Ok(())
    }

    /// What a reader has not taken yet. Nothing panics while it is locked.
    fn reading(&self) -> MutexGuard<'_, Option<Reading>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let handle = handles::give(Arc::new(Running::new(submitted, None)))?;
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
    running.begin_wait()?;
    // SAFETY: the caller vouches for the memory and the functions.
    unsafe {
        let (reason, usage) = follow(&running.generation, listener)?;
        pointers::write_optional("result", result, summary(&reason, &usage))
    }
}

/// Takes text as it comes, for hosts that do not want to be called back. Waits at most `timeout_ms` milliseconds for
/// some (0: not at all; -1: as long as it takes), writes as many whole characters as there are and fit, and their number
/// of bytes, 0 if none came in time. `*ended` becomes 1 once all text has been taken and the generation is over, and
/// `result`, which may be NULL, is written then. A generation is read from or waited for, not both.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_generation_read(
    generation: *const GenerationHandle,
    timeout_ms: i64,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
    ended: *mut i32,
    result: *mut Outcome,
    error: *mut Error,
) -> i32 {
    let body = |running: Arc<Running>| {
        // SAFETY: the caller vouches for the memory.
        unsafe {
            pointers::write("length", length, 0)?;
            pointers::write("ended", ended, 0)?;
        }
        let mut reading = running.reading();
        if running.waited_for.load(Ordering::Relaxed) {
            return Err(Failure::new(Status::WrongOrder, "the generation is waited for"));
        }
        let reading = reading.get_or_insert_default();
        reading.gather(&running.generation, timeout(timeout_ms)?);
        let end = reading.fitting(capacity);
        // SAFETY: the caller vouches for the memory.
        unsafe { pointers::fill(&reading.text.as_bytes()[..end], text.cast::<u8>(), capacity, length)? };
        reading.text.drain(..end);
        match &reading.end {
            Some(outcome) if reading.text.is_empty() => {
                let outcome = outcome.clone()?;
                // SAFETY: as above.
                unsafe {
                    pointers::write("ended", ended, 1)?;
                    pointers::write_optional("result", result, outcome)
                }
            }
            _ => Ok(()),
        }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { with(generation, error, body) }
}

/// `None` for as long as it takes.
fn timeout(milliseconds: i64) -> Result<Option<Duration>, Failure> {
    match u64::try_from(milliseconds) {
        Ok(milliseconds) => Ok(Some(Duration::from_millis(milliseconds))),
        Err(_) if milliseconds == -1 => Ok(None),
        Err(_) => Err(Failure::new(Status::InvalidArgument, format!("timeout_ms is {milliseconds}"))),
    }
}

/// What has come of a generation and has not been taken.
#[derive(Debug, Default)]
struct Reading {
    text: String,
    end: Option<Result<Outcome, Failure>>,
}

impl Reading {
    /// Takes in what is there; waits for it, for a time, where nothing is.
    fn gather(&mut self, generation: &Generation, patience: Option<Duration>) {
        if !self.text.is_empty() {
            return;
        }
        let start = Instant::now();
        while self.end.is_none() {
            let event = match patience {
                _ if !self.text.is_empty() => generation.try_recv(),
                None => generation.recv().ok_or(RecvError::Ended),
                Some(patience) => generation.recv_timeout(patience.saturating_sub(start.elapsed())),
            };
            match event {
                Ok(Event::Token { text, .. }) => self.text.push_str(&text),
                Ok(Event::Done { reason, text, usage }) => {
                    self.text.push_str(&text);
                    self.end = Some(Ok(summary(&reason, &usage)));
                }
                Ok(Event::Error(error)) => self.end = Some(Err(request_failure(&error))),
                Ok(_) => {}
                Err(RecvError::Empty) => return,
                Err(RecvError::Ended) => {
                    self.end = Some(Err(Failure::new(Status::Stopped, "the engine has ended")));
                }
            }
        }
    }

    /// Bytes of the whole characters that fit; those of the first if none does, so that the host learns what it needs.
    fn fitting(&self, capacity: usize) -> usize {
        match self.text.floor_char_boundary(capacity) {
            0 => self.text.chars().next().map_or(0, char::len_utf8),
            end => end,
        }
    }
}

fn summary(reason: &FinishReason, usage: &Usage) -> Outcome {
    let finish = match reason {
        FinishReason::Eos => Finish::EndOfText,
        FinishReason::Stop(_) => Finish::Stop,
        FinishReason::Length => Finish::Length,
        _ => Finish::Cancelled,
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
