//! Answers on standard output, as they come.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use millpond::engine::{Engine, EngineOptions, Event, Generation, RecvError, Usage};
use millpond::model::Model;
use millpond::text::ChatInput;
use serde_json::Value;

use super::interrupt::Interrupt;
use super::output;
use super::settings::{self, Compute};

/// How often a wait looks for Ctrl-C.
const POLL: Duration = Duration::from_millis(50);

/// An answer and what it cost.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The text.
    pub(crate) text: String,
    /// What it cost.
    pub(crate) usage: Usage,
}

/// Starts an engine for sequences of at most `context` tokens (0: what the model was made for).
///
/// # Errors
/// The machine or the model does not allow it.
pub(crate) fn start(model: &Arc<Model>, compute: &Compute, context: usize) -> anyhow::Result<Engine> {
    let options = EngineOptions {
        threads: compute.threads,
        isa: Some(compute.isa),
        context,
        kv_type: compute.kv_type,
        buffer: compute.buffer,
        ..EngineOptions::default()
    };
    Ok(Engine::start(model.clone(), options)?)
}

/// Tokens of a conversation up to where the assistant's next answer begins.
///
/// # Errors
/// The model has no chat template, or it refuses the conversation.
pub(crate) fn encode_chat(model: &Model, messages: &[Value]) -> anyhow::Result<Vec<u32>> {
    let template = model.template.as_ref().context("the model has no chat template")?;
    let input = ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() };
    Ok(template.encode(&input, settings::tokenizer(model)?)?)
}

/// Prints an answer as it comes. Ctrl-C ends it.
///
/// # Errors
/// The engine failed, or the reader of the output has gone.
pub(crate) fn print(generation: &Generation, interrupt: &Interrupt) -> anyhow::Result<Answer> {
    let mut answer = String::new();
    let usage = loop {
        match generation.recv_timeout(POLL) {
            Err(RecvError::Empty) => {}
            Err(RecvError::Ended) => anyhow::bail!("the engine has ended"),
            Ok(Event::Token { text, .. }) => {
                output::piece(&text)?;
                answer.push_str(&text);
            }
            Ok(Event::Done { text, usage, .. }) => {
                output::piece(&text)?;
                answer.push_str(&text);
                break usage;
            }
            Ok(Event::Error(error)) => return Err(error.into()),
            Ok(Event::Prefill { .. } | Event::Prompt(_) | Event::Embedding(_)) => {}
        }
        if interrupt.pressed() {
            generation.cancel();
        }
    };
    Ok(Answer { text: answer, usage })
}

/// Ends the line that an answer left open, so that what follows stands on one of its own.
///
/// # Errors
/// The reader of the output has gone.
pub(crate) fn end_line(answer: &Answer) -> anyhow::Result<()> {
    if answer.text.ends_with('\n') { Ok(()) } else { output::piece("\n") }
}

/// A line of figures.
#[must_use]
pub(crate) fn summary(usage: &Usage) -> String {
    let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    let read = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
    let mut line = format!(
        "prompt: {} tokens ({} cached), {:.1} tok/s; answer: {} tokens, {:.1} tok/s",
        usage.prompt_tokens,
        usage.cached_tokens,
        rate(read, usage.prefill),
        usage.completion_tokens,
        rate(usage.completion_tokens.saturating_sub(1), usage.decode),
    );
    if usage.drafted > 0 {
        line.push_str(&format!("; drafts: {} of {} accepted", usage.accepted, usage.drafted));
    }
    line
}
