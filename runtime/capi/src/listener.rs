//! Telling a host what a generation reports.

use std::ffi::c_void;
use std::ptr::null_mut;

use millpond::engine::{Event, FinishReason, Generation, TokenLogprob, Usage};

use crate::failure::{Failure, Status, initialise};
use crate::generation::request_failure;
use crate::types::{Alternative, Listener, TextCallback, Token, TokenCallback};

/// A listener that wants to hear nothing.
pub(crate) const DEAF: Listener = Listener {
    size: size_of::<Listener>(),
    user_data: null_mut(),
    on_text: None,
    on_token: None,
    on_prompt_token: None,
    on_prompt: None,
};

/// Writes a listener that hears nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_listener_init(listener: *mut Listener) -> i32 {
    // SAFETY: the caller vouches for the memory.
    unsafe { initialise(listener, || DEAF) }
}

/// A listener for the text alone.
pub(crate) fn for_text(on_text: TextCallback, user_data: *mut c_void) -> Listener {
    Listener { on_text, user_data, ..DEAF }
}

/// Passes on what a generation reports until it ends. The host may cancel it from within.
pub(crate) unsafe fn follow(
    generation: &Generation,
    listener: &Listener,
) -> Result<(FinishReason, Usage), Failure> {
    let mut cancelled = false;
    // What was on its way when the host cancelled is not wanted.
    let mut tell = |call: &dyn Fn() -> bool| {
        if !cancelled && call() {
            cancelled = true;
            generation.cancel();
        }
    };
    while let Some(event) = generation.recv() {
        // SAFETY: the caller vouches for the functions; what they are given lives during the call.
        unsafe {
            match event {
                Event::Token { id, text, logprob } => {
                    tell(&|| say_token(listener.on_token, id, &text, logprob.as_ref(), listener.user_data));
                    tell(&|| say(listener, &text));
                }
                Event::Prompt(tokens) => {
                    for token in tokens.iter().flatten() {
                        let call = listener.on_prompt_token;
                        tell(&|| say_token(call, token.id, "", Some(token), listener.user_data));
                    }
                }
                Event::Prefill { done, total, cached } => {
                    let (call, data) = (listener.on_prompt, listener.user_data);
                    tell(&|| call.is_some_and(|call| call(done, total, cached, data) != 0));
                }
                Event::Done { reason, text, usage } => {
                    tell(&|| say(listener, &text));
                    return Ok((reason, usage));
                }
                Event::Error(error) => return Err(request_failure(&error)),
                _ => {}
            }
        }
    }
    Err(Failure::new(Status::Stopped, "the engine has ended"))
}

/// True if the host wants to cancel.
unsafe fn say(listener: &Listener, text: &str) -> bool {
    let call = listener.on_text.filter(|_| !text.is_empty());
    // SAFETY: the caller vouches for the function.
    call.is_some_and(|call| unsafe { call(text.as_ptr().cast(), text.len(), listener.user_data) } != 0)
}

/// True if the host wants to cancel.
unsafe fn say_token(
    call: TokenCallback,
    id: u32,
    text: &str,
    logprob: Option<&TokenLogprob>,
    user_data: *mut c_void,
) -> bool {
    let Some(call) = call else { return false };
    let top: Vec<Alternative> = logprob
        .map(|found| found.top.iter().map(|&(id, logprob)| Alternative { id, logprob }).collect())
        .unwrap_or_default();
    let token = Token {
        id,
        has_logprob: logprob.is_some().into(),
        logprob: logprob.map_or(0.0, |found| found.logprob),
        top: top.as_ptr(),
        top_count: top.len(),
        text: text.as_ptr().cast(),
        text_bytes: text.len(),
    };
    // SAFETY: the token and what it points to live during the call, and the caller vouches for the function.
    unsafe { call(&raw const token, user_data) != 0 }
}
