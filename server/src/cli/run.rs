//! `millpond run`: continue a text.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use millpond::engine::{Engine, EngineOptions, Event, FinishReason, Generation, RecvError, Request, Usage};
use millpond::model::Model;
use millpond::state::memory::KvType;
use millpond::text::ChatInput;
use serde_json::json;

use super::args::{GenerationArgs, RunArgs};
use super::failure::{Interrupted, usage};
use super::interrupt::Interrupt;
use super::settings::{self, Compute};
use super::{output, sampling};

/// How often a wait looks for Ctrl-C.
const POLL: Duration = Duration::from_millis(50);

/// Runs the command.
///
/// # Errors
/// Wrong usage, a model that does not load, Ctrl-C.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let text = prompt(args)?;
    let compute = Compute::new(&args.compute, KvType::F16)?;
    let model = settings::load_model(&args.model)?;
    let tokens = encode(args, &model, &text)?;
    let request = request(args, &model, tokens)?;
    let engine = start(&model, &compute, &args.generation)?;
    let interrupt = Interrupt::install()?;
    let generation = engine.handle().submit(request)?;
    let usage = print_answer(&generation, &interrupt)?;
    if args.generation.stats {
        eprintln!("{}", summary(&usage));
    }
    if interrupt.pressed() { Err(Interrupted.into()) } else { Ok(()) }
}

fn prompt(args: &RunArgs) -> anyhow::Result<String> {
    let direct = args.text.as_deref().or(args.prompt.as_deref());
    match settings::text_of(direct, args.file.as_deref())? {
        Some(text) => Ok(text),
        None if std::io::stdin().is_terminal() => Err(usage("no prompt: give a text, -f FILE, or a pipe")),
        None => settings::read_stdin(),
    }
}

fn encode(args: &RunArgs, model: &Model, text: &str) -> anyhow::Result<Vec<u32>> {
    let tokenizer = settings::tokenizer(model)?;
    if args.chat {
        let template = model.template.as_ref().context("the model has no chat template")?;
        let system = args.system_prompt.iter().map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<_> = system.chain([json!({"role": "user", "content": text})]).collect();
        let input = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
        return Ok(template.encode(&input, tokenizer)?);
    }
    let bos = tokenizer.special().bos.filter(|_| tokenizer.add_bos());
    Ok(bos.into_iter().chain(tokenizer.encode(text, true)?).collect())
}

fn request(args: &RunArgs, model: &Model, prompt: Vec<u32>) -> anyhow::Result<Request> {
    let RunArgs { generation: args, sampling, .. } = args;
    if prompt.is_empty() {
        return Err(usage("the prompt is empty"));
    }
    let max_tokens = match args.predict {
        -1 => None,
        count => Some(usize::try_from(count).map_err(|_| usage(format!("-n {count} is negative")))?),
    };
    Ok(Request {
        max_tokens,
        sampling: sampling::params(sampling, model.spec.vocab)?,
        stop: args.reverse_prompt.clone(),
        ignore_eos: args.ignore_eos,
        cache_prompt: false,
        ..Request::new(prompt)
    })
}

fn start(model: &Arc<Model>, compute: &Compute, args: &GenerationArgs) -> anyhow::Result<Engine> {
    let options = EngineOptions {
        threads: compute.threads,
        isa: Some(compute.isa),
        context: args.ctx_size,
        kv_type: compute.kv_type,
        buffer: compute.buffer,
        ..EngineOptions::default()
    };
    Ok(Engine::start(model.clone(), options)?)
}

/// Prints an answer as it comes. Ctrl-C ends it.
fn print_answer(generation: &Generation, interrupt: &Interrupt) -> anyhow::Result<Usage> {
    let mut last = '\n';
    let mut print = |text: &str| {
        last = text.chars().last().unwrap_or(last);
        output::piece(text)
    };
    let usage = loop {
        match generation.recv_timeout(POLL) {
            Err(RecvError::Empty) => {}
            Err(RecvError::Ended) => anyhow::bail!("the engine has ended"),
            Ok(Event::Token { text, .. }) => print(&text)?,
            Ok(Event::Done { reason, text, usage }) => {
                if reason != FinishReason::Cancelled {
                    print(&text)?;
                }
                break usage;
            }
            Ok(Event::Error(error)) => return Err(error.into()),
            Ok(Event::Prefill { .. } | Event::Prompt(_) | Event::Embedding(_)) => {}
        }
        if interrupt.pressed() {
            generation.cancel();
        }
    };
    // A terminal's next prompt belongs on a line of its own; a file gets the text as it is.
    if last != '\n' && std::io::stdout().is_terminal() {
        output::piece("\n")?;
    }
    Ok(usage)
}

/// A line of figures.
fn summary(usage: &Usage) -> String {
    let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    let read = usage.prompt_tokens - usage.cached_tokens;
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
