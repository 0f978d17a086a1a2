//! Embeddings: vectors of texts.

use std::ptr::null_mut;
use std::sync::Arc;

use millpond::engine::{self, Engine, EngineHandle as Handle, Event, FinishReason};

use crate::failure::{Error, Failure, Status, guard, with};
use crate::generation::{Running, request_failure, submit_failure};
use crate::handles::{self, EngineHandle, GenerationHandle};
use crate::pointers;

/// How the hidden states of a text become one vector.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean = 0,
    /// That of the last token.
    Last = 1,
}

/// Computes the embedding of a text, given as tokens, and waits for it. `pooling` is a `millpond_pooling`. An embedding
/// has as many values as `millpond_model_info` says. `millpond_embedding_start` is for hosts that want to cancel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_embed(
    engine: *const EngineHandle,
    tokens: *const u32,
    count: usize,
    pooling: i32,
    values: *mut f32,
    capacity: usize,
    length: *mut usize,
    error: *mut Error,
) -> i32 {
    let body = || {
        // The engine itself is let go before the wait, so that it can be freed meanwhile.
        let handle = handles::get::<Engine>(engine)?.handle();
        let pooling = pooling_of(pooling)?;
        // SAFETY: the caller vouches for the memory.
        unsafe {
            pointers::room(handle.model().spec.hidden, values, capacity, length)?;
            let running = submit(&handle, tokens, count, pooling)?;
            pointers::fill(&vector(&running)?, values, capacity, length)
        }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

/// Asks for the embedding of a text and returns at once. The generation is for `millpond_embedding_wait`,
/// `millpond_generation_cancel` and `millpond_generation_free`. On failure *generation is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_embedding_start(
    engine: *const EngineHandle,
    tokens: *const u32,
    count: usize,
    pooling: i32,
    generation: *mut *mut GenerationHandle,
    error: *mut Error,
) -> i32 {
    let body = || {
        // SAFETY: the caller vouches for the memory.
        unsafe {
            pointers::write("generation", generation, null_mut())?;
            let handle = handles::get::<Engine>(engine)?.handle();
            let running = submit(&handle, tokens, count, pooling_of(pooling)?)?;
            pointers::write("generation", generation, handles::give(Arc::new(running))?)
        }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

/// Waits for the embedding that `millpond_embedding_start` asked for; once for each. One that was cancelled ends with
/// MILLPOND_STATUS_CANCELLED. A buffer that is too small is no loss: the call can be made again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_embedding_wait(
    generation: *const GenerationHandle,
    values: *mut f32,
    capacity: usize,
    length: *mut usize,
    error: *mut Error,
) -> i32 {
    let body = |running: Arc<Running>| {
        let Some(width) = running.embedding else {
            return Err(Failure::new(Status::WrongOrder, "the generation is no embedding"));
        };
        // SAFETY: the caller vouches for the memory.
        unsafe {
            pointers::room(width, values, capacity, length)?;
            running.begin_wait()?;
            pointers::fill(&vector(&running)?, values, capacity, length)
        }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { with(generation, error, body) }
}

fn pooling_of(number: i32) -> Result<engine::Pooling, Failure> {
    match number {
        0 => Ok(engine::Pooling::Mean),
        1 => Ok(engine::Pooling::Last),
        other => Err(Failure::new(Status::InvalidArgument, format!("pooling is {other}"))),
    }
}

unsafe fn submit(
    handle: &Handle,
    tokens: *const u32,
    count: usize,
    pooling: engine::Pooling,
) -> Result<Running, Failure> {
    // SAFETY: the caller vouches for the memory.
    let prompt = unsafe { pointers::slice("tokens", tokens, count) }?.to_vec();
    let request = engine::Request { embeddings: Some(pooling), ..engine::Request::new(prompt) };
    let generation = handle.submit(request).map_err(|error| submit_failure(&error))?;
    Ok(Running::new(generation, Some(handle.model().spec.hidden)))
}

/// What the engine computes, when it has.
fn vector(running: &Running) -> Result<Vec<f32>, Failure> {
    let mut found = None;
    while let Some(event) = running.generation.recv() {
        match event {
            Event::Embedding(values) => found = Some(values),
            Event::Error(error) => return Err(request_failure(&error)),
            Event::Done { reason: FinishReason::Cancelled, .. } => {
                return Err(Failure::new(Status::Cancelled, "the embedding was cancelled"));
            }
            _ => {}
        }
    }
    found.ok_or_else(|| Failure::new(Status::Internal, "no embedding came"))
}
