//! `millpond run`: continue a text.

use std::io::IsTerminal;

use millpond::engine::Request;
use millpond::model::Model;
use millpond::state::memory::KvType;
use serde_json::json;

use super::args::{GenerationArgs, RunArgs};
use super::failure::{Interrupted, usage};
use super::interrupt::Interrupt;
use super::settings::{self, Compute};
use super::{answer, chat, sampling};

/// Runs the command.
///
/// # Errors
/// Wrong usage, a model that does not load, Ctrl-C.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let Some(text) = prompt(args)? else { return chat::talk(&args.chat_settings()) };
    let compute = Compute::new(&args.compute, KvType::F16)?;
    let model = settings::load_model(&args.model)?;
    let tokens = encode(args, &model, &text)?;
    let request = request(args, &model, tokens)?;
    let engine = answer::start(&model, &compute, args.generation.ctx_size)?;
    let interrupt = Interrupt::install()?;
    let answer = answer::print(&engine.handle().submit(request)?, &interrupt)?;
    // A file gets the text as it is.
    if std::io::stdout().is_terminal() {
        answer::end_line(&answer)?;
    }
    if args.generation.stats {
        eprintln!("{}", answer::summary(&answer.usage));
    }
    if interrupt.pressed() { Err(Interrupted.into()) } else { Ok(()) }
}

/// The prompt; `None` where there is none and a person sits there to be asked.
fn prompt(args: &RunArgs) -> anyhow::Result<Option<String>> {
    let direct = args.text.as_deref().or(args.prompt.as_deref());
    match settings::text_of(direct, args.file.as_deref())? {
        Some(text) => Ok(Some(text)),
        None if std::io::stdin().is_terminal() => Ok(None),
        None => settings::read_stdin().map(Some),
    }
}

fn encode(args: &RunArgs, model: &Model, text: &str) -> anyhow::Result<Vec<u32>> {
    if args.chat {
        let system = args.system_prompt.iter().map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<_> = system.chain([json!({"role": "user", "content": text})]).collect();
        return answer::encode_chat(model, &messages);
    }
    let tokenizer = settings::tokenizer(model)?;
    let bos = tokenizer.special().bos.filter(|_| tokenizer.add_bos());
    Ok(bos.into_iter().chain(tokenizer.encode(text, true)?).collect())
}

fn request(args: &RunArgs, model: &Model, prompt: Vec<u32>) -> anyhow::Result<Request> {
    if prompt.is_empty() {
        return Err(usage("the prompt is empty"));
    }
    Ok(Request {
        max_tokens: max_tokens(&args.generation)?,
        sampling: sampling::params(&args.sampling, model.spec.vocab)?,
        stop: args.generation.reverse_prompt.clone(),
        ignore_eos: args.generation.ignore_eos,
        cache_prompt: false,
        ..Request::new(prompt)
    })
}

/// Most tokens of an answer; `None` for as many as the context holds.
///
/// # Errors
/// Wrong usage.
pub(crate) fn max_tokens(args: &GenerationArgs) -> anyhow::Result<Option<usize>> {
    match args.predict {
        -1 => Ok(None),
        count => usize::try_from(count).map(Some).map_err(|_| usage(format!("-n {count} is negative"))),
    }
}
