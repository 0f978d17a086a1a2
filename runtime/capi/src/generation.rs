//! Generations: submit, wait for the text, cancel.

use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millpond::engine::{self, Class, Engine, Event, FinishReason, Generation, SubmitError, Usage};
use millpond::sample::SamplingParams;
use millpond::sample::grammar::GrammarSource;

use crate::failure::{Error, Failure, Status, guard};
use crate::handles::{self, EngineHandle, GenerationHandle};
use crate::pointers;
use crate::types::{Outcome, Request, TextCallback};

/// Why a generation ended: `millpond_finish`.
#[repr(i32)]
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

/// Writes the defaults: those of the library, and no prompt.
///
/// # Safety
/// `request` is null (an error) or points to memory for the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_request_init(request: *mut Request) -> i32 {
    let body = || {
        let base = SamplingParams::default();
        let defaults = Request {
            size: size_of::<Request>(),
            prompt: std::ptr::null(),
            prompt_count: 0,
            max_tokens: -1,
            seed: -1,
            stop: std::ptr::null(),
            stop_count: 0,
            json_schema: std::ptr::null(),
            grammar: std::ptr::null(),
            temperature: base.temperature,
            top_k: base.top_k,
            top_p: base.top_p,
            min_p: base.min_p,
            repeat_penalty: base.repeat_penalty,
            presence_penalty: base.presence_penalty,
            frequency_penalty: base.frequency_penalty,
            repeat_last_n: base.repeat_last_n,
            ignore_eos: 0,
            cache_prompt: 1,
            background: 0,
        };
        // SAFETY: the caller vouches for the memory.
        unsafe { pointers::write("request", request, defaults) }
    };
    // SAFETY: null takes no error.
    unsafe { guard(std::ptr::null_mut(), body) }
}

/// Hands a request to an engine and returns at once.
///
/// # Safety
/// Pointers are null or point to what the header says; only `error` may be null without an error.
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
            pointers::write("generation", generation, std::ptr::null_mut())?;
            engine_request(&pointers::sized("request", request)?)?
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

/// # Safety
/// The request's pointers are null or point to what the header says.
unsafe fn engine_request(request: &Request) -> Result<engine::Request, Failure> {
    // SAFETY: the caller vouches for the memory.
    let (prompt, stop, json_schema, grammar) = unsafe {
        (
            pointers::slice("prompt", request.prompt, request.prompt_count)?,
            pointers::slice("stop", request.stop, request.stop_count)?,
            pointers::optional_string("json_schema", request.json_schema)?,
            pointers::optional_string("grammar", request.grammar)?,
        )
    };
    let text = |pointer: &*const c_char| {
        // SAFETY: the caller vouches for the memory.
        unsafe { pointers::string("stop", *pointer) }.map(str::to_owned)
    };
    Ok(engine::Request {
        max_tokens: number("max_tokens", request.max_tokens)?,
        sampling: sampling(request)?,
        stop: stop.iter().map(text).collect::<Result<_, _>>()?,
        ignore_eos: request.ignore_eos != 0,
        grammar: grammar_source(json_schema, grammar)?,
        class: if request.background == 0 { Class::Interactive } else { Class::Background },
        cache_prompt: request.cache_prompt != 0,
        ..engine::Request::new(prompt.to_vec())
    })
}

/// A number where -1 means none.
fn number<T: TryFrom<i64>>(name: &str, value: i64) -> Result<Option<T>, Failure> {
    match value {
        -1 => Ok(None),
        value => T::try_from(value)
            .map(Some)
            .map_err(|_| Failure::new(Status::InvalidArgument, format!("{name} is {value}"))),
    }
}

fn sampling(request: &Request) -> Result<SamplingParams, Failure> {
    Ok(SamplingParams {
        seed: number("seed", request.seed)?,
        temperature: request.temperature,
        top_k: request.top_k,
        top_p: request.top_p,
        min_p: request.min_p,
        repeat_penalty: request.repeat_penalty,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        repeat_last_n: request.repeat_last_n,
        ..SamplingParams::default()
    })
}

fn grammar_source(schema: Option<&str>, gbnf: Option<&str>) -> Result<Option<GrammarSource>, Failure> {
    let invalid = |message: String| Failure::new(Status::InvalidArgument, message);
    match (schema, gbnf) {
        (Some(_), Some(_)) => Err(invalid("json_schema and grammar exclude each other".to_owned())),
        (Some(schema), None) => serde_json::from_str(schema)
            .map(|schema| Some(GrammarSource::JsonSchema(schema)))
            .map_err(|error| invalid(format!("json_schema is no JSON: {error}"))),
        (None, gbnf) => Ok(gbnf.map(|text| GrammarSource::Gbnf(text.to_owned()))),
    }
}

fn submit_failure(error: &SubmitError) -> Failure {
    let status = match error {
        SubmitError::QueueFull { .. } => Status::QueueFull,
        SubmitError::PromptTooLong { .. } | SubmitError::TooLarge { .. } => Status::TooLong,
        SubmitError::Invalid(_) => Status::InvalidArgument,
        SubmitError::Stopped => Status::Stopped,
    };
    Failure::new(status, error)
}

/// Waits for a generation to end. `callback`, if not null, gets the text on this thread as it comes; it may call any
/// function of this library, also cancel and free this generation. It must return: an exception or a jump out of it is
/// undefined.
///
/// # Safety
/// `callback` is null or a function as the header says, which may be called with `user_data`; `outcome` and `error` are
/// null or point to memory for their structures.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_generation_wait(
    generation: *const GenerationHandle,
    callback: Option<TextCallback>,
    user_data: *mut c_void,
    outcome: *mut Outcome,
    error: *mut Error,
) -> i32 {
    let body = || {
        let running = handles::get::<Running>(generation)?;
        if running.waited_for.swap(true, Ordering::Relaxed) {
            return Err(Failure::new(Status::WrongOrder, "the generation has been waited for already"));
        }
        let (reason, usage) = follow(&running.generation, |text| {
            // SAFETY: the text lives during the call, and the caller vouches for the function.
            callback.is_some_and(|call| unsafe { call(text.as_ptr().cast(), text.len(), user_data) } != 0)
        })?;
        // SAFETY: the caller vouches for the memory.
        unsafe { pointers::write_optional("result", outcome, summary(&reason, &usage)) }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

/// Passes text on until the end; `cancel` says whether to stop.
fn follow(
    generation: &Generation,
    mut cancel: impl FnMut(&str) -> bool,
) -> Result<(FinishReason, Usage), Failure> {
    let mut cancelled = false;
    let mut pass = |text: &str| {
        // Text that was on its way when the host cancelled is not wanted.
        if !text.is_empty() && !cancelled && cancel(text) {
            cancelled = true;
            generation.cancel();
        }
    };
    while let Some(event) = generation.recv() {
        match event {
            Event::Token { text, .. } => pass(&text),
            Event::Done { reason, text, usage } => {
                pass(&text);
                return Ok((reason, usage));
            }
            Event::Error(engine::RequestError::Stopped) => {
                return Err(Failure::new(Status::Stopped, engine::RequestError::Stopped));
            }
            Event::Error(error) => return Err(Failure::new(Status::RequestFailed, error)),
            Event::Prefill { .. } | Event::Prompt(_) | Event::Embedding(_) => {}
        }
    }
    Err(Failure::new(Status::Stopped, "the engine has ended"))
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
///
/// # Safety
/// `error` is null or points to memory for the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_generation_cancel(
    generation: *const GenerationHandle,
    error: *mut Error,
) -> i32 {
    let body = || {
        handles::get::<Running>(generation)?.generation.cancel();
        Ok(())
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

/// Cancels a generation if it still runs, and gives it back. Null does nothing.
///
/// # Safety
/// `error` is null or points to memory for the structure.
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
