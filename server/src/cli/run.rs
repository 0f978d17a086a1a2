//! `millpond run`: continue a text.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use millpond::engine::{Engine, Generation, Request, SubmitError};
use millpond::model::Model;
use millpond::state::memory::KvType;
use millpond::text::reasoning::ReasoningSplitter;
use serde_json::json;

use super::answer::Thoughts;
use super::args::{ChatSettings, GenerationArgs, RunArgs};
use super::failure::{Interrupted, usage};
use super::interrupt::Interrupt;
use super::settings::{self, Compute};
use super::{answer, chat, constraint, conversation, output, sampling};

/// Runs the command.
///
/// # Errors
/// Wrong usage, a model that does not load, Ctrl-C.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let (named, words) = split_model(args);
    let mut chosen = args.settings.clone();
    chosen.model.model = chosen.model.model.or(named);
    let Some(text) = prompt(args, words)? else { return chat::talk(&chosen) };
    if text.is_empty() && is_chat(args) {
        return Err(usage("the prompt is empty"));
    }
    let compute = Compute::new(&chosen.compute, KvType::F16)?;
    let grammar = constraint::source(&chosen.constraint)?;
    let (model, draft) = settings::load_with_draft(&chosen.model, &chosen.speculation)?;
    let model = conversation::apply_template(model, &chosen.template)?;
    let tokens = encode(args, &model, &text)?;
    let splitter =
        is_chat(args).then(|| ReasoningSplitter::new(conversation::starts_thinking(&model, &tokens)));
    let request = Request { grammar, ..request(&chosen, &model, tokens)? };
    let engine = answer::start(&model, draft, &chosen.speculation, &compute, chosen.generation.ctx_size)?;
    let interrupt = Interrupt::install()?;
    let generation = submit(&engine, request)?;
    let answer = if args.json {
        let answer = answer::collect(&generation, &interrupt, splitter)?;
        output::line(&serde_json::to_string_pretty(&answer::json(&answer))?)?;
        answer
    } else {
        let thoughts = Thoughts::wished(chosen.reasoning.reasoning_format);
        let answer = answer::print(&generation, &interrupt, splitter.map(|splitter| (splitter, thoughts)))?;
        // A file gets the text as it is.
        if std::io::stdout().is_terminal() {
            answer::end_line(&answer)?;
        }
        answer
    };
    answer::report(&chosen.generation, &answer.usage);
    if interrupt.pressed() { Err(Interrupted.into()) } else { Ok(()) }
}

/// Hands a request to the engine; one that makes no sense is wrong usage. An answer that may be longer than the context
/// ends where that is full, as in llama.cpp, with a word about it.
///
/// # Errors
/// What the engine says.
pub(crate) fn submit(engine: &Engine, request: Request) -> anyhow::Result<Generation> {
    let whole = Request { max_tokens: None, ..request.clone() };
    let submitted = match engine.handle().submit(request) {
        Err(SubmitError::PromptTooLong { prompt, max_tokens, context }) if prompt < context => {
            let room = context - prompt;
            output::note!("millpond: {room} tokens fit the context of {context}, not {max_tokens}");
            engine.handle().submit(whole)
        }
        other => other,
    };
    submitted.map_err(|error| match error {
        SubmitError::Invalid(message) => usage(message),
        other => other.into(),
    })
}

/// The model that stands before the prompt, as in `run model.gguf Once upon`, and the words after it.
fn split_model(args: &RunArgs) -> (Option<PathBuf>, &[String]) {
    match args.text.split_first() {
        Some((first, rest)) if !args.settings.model.is_named() && is_model(Path::new(first)) => {
            (Some(PathBuf::from(first)), rest)
        }
        _ => (None, &args.text),
    }
}

/// Whether a word means a model. One that is called like a file of one and is not there does: a mistyped path is no prompt.
fn is_model(path: &Path) -> bool {
    let is_called_so = path
        .extension()
        .is_some_and(|ending| ["gguf", "mill"].iter().any(|known| ending.eq_ignore_ascii_case(known)));
    let is_one_word = !path.to_string_lossy().contains(char::is_whitespace);
    is_called_so && (is_one_word || path.is_file()) || path.join("config.json").is_file()
}

/// The prompt; `None` where there is none and a person sits there to be asked.
fn prompt(args: &RunArgs, words: &[String]) -> anyhow::Result<Option<String>> {
    let typed = args.prompt.as_deref().map(|text| args.settings.generation.unescaped(text));
    let sources = [!words.is_empty(), typed.is_some(), args.file.is_some()];
    if sources.into_iter().filter(|&given| given).count() > 1 {
        return Err(usage("a prompt on the line, -p and -f cannot be used with each other"));
    }
    let direct = settings::joined(words).or(typed);
    match settings::text_of(direct.as_deref(), args.file.as_deref())? {
        Some(text) => Ok(Some(text)),
        None if std::io::stdin().is_terminal() => Ok(None),
        None => settings::read_stdin().map(Some),
    }
}

/// Whether the text is a question to be asked with the chat template.
fn is_chat(args: &RunArgs) -> bool {
    args.chat || args.settings.system_prompt.is_some() || args.settings.system_prompt_file.is_some()
}

fn encode(args: &RunArgs, model: &Model, text: &str) -> anyhow::Result<Vec<u32>> {
    if is_chat(args) {
        let chosen = &args.settings;
        let system = chosen.system_prompt.as_deref().map(|text| chosen.generation.unescaped(text));
        let system = settings::text_of(system.as_deref(), chosen.system_prompt_file.as_deref())?;
        let system = system.iter().map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<_> = system.chain([json!({"role": "user", "content": text})]).collect();
        let options = conversation::all_options(&chosen.template, &chosen.reasoning)?;
        return conversation::encode(model, &messages, &options);
    }
    encode_text(model, text)
}

/// A text as the model begins one.
///
/// # Errors
/// The model came without a tokenizer.
pub(crate) fn encode_text(model: &Model, text: &str) -> anyhow::Result<Vec<u32>> {
    let tokenizer = settings::tokenizer(model)?;
    let bos = tokenizer.special().bos.filter(|_| tokenizer.add_bos());
    Ok(bos.into_iter().chain(tokenizer.encode(text, true)?).collect())
}

fn request(chosen: &ChatSettings, model: &Model, prompt: Vec<u32>) -> anyhow::Result<Request> {
    if prompt.is_empty() {
        return Err(usage("the prompt is empty"));
    }
    Ok(Request {
        max_tokens: max_tokens(&chosen.generation)?,
        sampling: sampling::params(&chosen.sampling, model.spec.vocab)?,
        stop: chosen.generation.stops(),
        ignore_eos: chosen.generation.ignore_eos,
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
        // -2, "until the context is full", is what -1 means here: contexts do not shift.
        -1 | -2 => Ok(None),
        count => usize::try_from(count).map(Some).map_err(|_| usage(format!("-n {count} is negative"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_word_that_is_a_model_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.GGUF");
        std::fs::write(&file, b"").unwrap();
        assert!(is_model(&file) && !is_model(folder.path()) && !is_model(Path::new("what is in x.gguf")));
        assert!(is_model(Path::new("mistyped.gguf")) && !is_model(Path::new("mistyped")));
        std::fs::write(folder.path().join("config.json"), b"{}").unwrap();
        assert!(is_model(folder.path()));
    }
}
