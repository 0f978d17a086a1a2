//! Answers on standard output, as they come.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use millpond::engine::{Engine, EngineOptions, Event, FinishReason, Generation, RecvError, Usage};
use millpond::model::Model;
use millpond::text::reasoning::{AnswerPart, ReasoningSplitter};

use super::args::{GenerationArgs, ReasoningFormat, SpeculationArgs};
use super::interrupt::Interrupt;
use super::progress::Progress;
use super::settings::{self, Compute};
use super::terminal::Style;
use super::{device, machine, output};

/// How often a wait looks for Ctrl-C.
const POLL: Duration = Duration::from_millis(50);

/// Tokens of a prompt from which its reading is worth a bar.
const LONG_PROMPT: usize = 256;

/// An answer and what it cost.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The text, without thoughts that were told apart.
    pub(crate) text: String,
    /// Thoughts that were told apart.
    pub(crate) thoughts: String,
    /// Its tokens.
    pub(crate) ids: Vec<u32>,
    /// Why it ended.
    pub(crate) reason: FinishReason,
    /// What it cost.
    pub(crate) usage: Usage,
}

/// Starts an engine for sequences of at most `context` tokens (0: what the model was made for).
///
/// # Errors
/// The machine or the model does not allow it.
pub(crate) fn start(
    model: &Arc<Model>,
    draft: Option<Arc<Model>>,
    speculation: &SpeculationArgs,
    compute: &Compute,
    context: usize,
) -> anyhow::Result<Engine> {
    let options = settings::speculation(speculation, draft, options(compute, context))?;
    device::start(model.clone(), options, compute.device)
}

/// How an engine for sequences of at most `context` tokens (0: what the model was made for) is set up.
#[must_use]
pub(crate) fn options(compute: &Compute, context: usize) -> EngineOptions {
    EngineOptions {
        threads: compute.threads,
        prefill_threads: compute.prefill_threads,
        prefill_rows: compute.rows(EngineOptions::default().prefill_rows),
        isa: Some(compute.isa),
        context,
        kv_type: compute.kv_type,
        buffer: compute.buffer,
        ..EngineOptions::default()
    }
}

/// What becomes of thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thoughts {
    /// They are part of the text, marks and all.
    InText,
    /// They go to standard error.
    Beside,
    /// They are left out.
    LeftOut,
}

impl Thoughts {
    /// What a user wishes.
    #[must_use]
    pub(crate) fn wished(format: ReasoningFormat) -> Thoughts {
        match format {
            ReasoningFormat::None => Thoughts::InText,
            ReasoningFormat::Auto if std::io::stderr().is_terminal() => Thoughts::Beside,
            ReasoningFormat::Auto | ReasoningFormat::Hidden => Thoughts::LeftOut,
        }
    }
}

/// Prints an answer as it comes. Ctrl-C ends it. `splitter` tells thoughts from the answer, where they are told apart.
///
/// # Errors
/// The engine failed, or the reader of the output has gone.
pub(crate) fn print(
    generation: &Generation,
    interrupt: &Interrupt,
    splitter: Option<(ReasoningSplitter, Thoughts)>,
) -> anyhow::Result<Answer> {
    receive(generation, interrupt, Shown::new(splitter, true))
}

/// The same without a word: for whoever wants the whole.
///
/// # Errors
/// The engine failed.
pub(crate) fn collect(
    generation: &Generation,
    interrupt: &Interrupt,
    splitter: Option<ReasoningSplitter>,
) -> anyhow::Result<Answer> {
    let splitter = splitter.map(|splitter| (splitter, Thoughts::LeftOut));
    receive(generation, interrupt, Shown::new(splitter, false))
}

fn receive(generation: &Generation, interrupt: &Interrupt, mut shown: Shown) -> anyhow::Result<Answer> {
    let mut reading = None;
    let (reason, usage) = loop {
        match generation.recv_timeout(POLL) {
            Err(RecvError::Empty) => {}
            Err(RecvError::Ended) => anyhow::bail!("the engine has ended"),
            Ok(Event::Prefill { done, total, cached }) => {
                if total - cached.min(total) >= LONG_PROMPT {
                    let start = || Progress::counted("reading the prompt", total as u64, "tokens");
                    reading.get_or_insert_with(start).set(done as u64);
                }
            }
            Ok(Event::Token { id, text, .. }) => {
                reading = None;
                shown.ids.push(id);
                shown.push(&text)?;
            }
            Ok(Event::Done { reason, text, usage }) => {
                reading = None;
                shown.push(&text)?;
                shown.end()?;
                break (reason, usage);
            }
            Ok(Event::Error(error)) => return Err(error.into()),
            Ok(_) => {}
        }
        if interrupt.pressed() {
            generation.cancel();
        }
    };
    drop(reading);
    Ok(Answer { text: shown.text, thoughts: shown.thoughts, ids: shown.ids, reason, usage })
}

/// An answer on its way out.
struct Shown {
    splitter: Option<(ReasoningSplitter, Thoughts)>,
    style: Style,
    text: String,
    thoughts: String,
    ids: Vec<u32>,
    /// Whether it is printed.
    is_loud: bool,
    is_thinking: bool,
}

impl Shown {
    fn new(splitter: Option<(ReasoningSplitter, Thoughts)>, is_loud: bool) -> Shown {
        let (text, thoughts, ids) = (String::new(), String::new(), Vec::new());
        Shown { splitter, style: Style::stderr(), text, thoughts, ids, is_loud, is_thinking: false }
    }

    fn push(&mut self, text: &str) -> anyhow::Result<()> {
        let mut parts = Vec::new();
        match &mut self.splitter {
            Some((splitter, thoughts)) if *thoughts != Thoughts::InText => splitter.push(text, &mut parts),
            _ => parts.push(AnswerPart::Content(text.to_owned())),
        }
        parts.into_iter().try_for_each(|part| self.part(part))
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let mut parts = Vec::new();
        if let Some((splitter, _)) = &mut self.splitter {
            splitter.flush(&mut parts);
        }
        parts.into_iter().try_for_each(|part| self.part(part))?;
        self.end_thoughts();
        Ok(())
    }

    fn part(&mut self, part: AnswerPart) -> anyhow::Result<()> {
        match part {
            AnswerPart::Reasoning(text) => {
                if self.splitter.as_ref().is_some_and(|(_, thoughts)| *thoughts == Thoughts::Beside) {
                    eprint!("{}", self.style.faint(&text));
                    self.is_thinking = true;
                }
                self.thoughts.push_str(&text);
                Ok(())
            }
            AnswerPart::Content(text) => {
                self.end_thoughts();
                if self.is_loud {
                    output::piece(&text)?;
                }
                self.text.push_str(&text);
                Ok(())
            }
        }
    }

    fn end_thoughts(&mut self) {
        if std::mem::take(&mut self.is_thinking) {
            eprint!("\n\n");
        }
    }
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
    if let Some(bytes) = machine::resident(std::process::id()) {
        line.push_str(&format!("; memory: {}", output::bytes(bytes)));
    }
    line
}

/// An answer for a program.
#[must_use]
pub(crate) fn json(answer: &Answer) -> serde_json::Value {
    let usage = &answer.usage;
    let reason = match &answer.reason {
        FinishReason::Stop(_) | FinishReason::Eos => "stop",
        FinishReason::Length => "length",
        _ => "cancelled",
    };
    serde_json::json!({
        "text": answer.text,
        "reasoning": (!answer.thoughts.is_empty()).then_some(&answer.thoughts),
        "finish_reason": reason,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "draft_tokens": usage.drafted,
        "draft_tokens_accepted": usage.accepted,
        "prompt_seconds": usage.prefill.as_secs_f64(),
        "completion_seconds": usage.decode.as_secs_f64(),
    })
}

/// A line about what the prompt cache was good for.
#[must_use]
pub(crate) fn cache_report(usage: &Usage) -> String {
    let reason = usage.miss_reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("cache: {} of {} prompt tokens reused{reason}", usage.cached_tokens, usage.prompt_tokens)
}

/// The lines that a user wants after an answer, on standard error.
pub(crate) fn report(args: &GenerationArgs, usage: &Usage) {
    let style = Style::stderr();
    if args.stats {
        super::output::note!("{}", style.faint(&summary(usage)));
    }
    if args.print_cache_report {
        super::output::note!("{}", style.faint(&cache_report(usage)));
    }
}
