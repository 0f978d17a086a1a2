//! `millpond session`: states of texts on disk.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use millpond::engine::{Engine, EngineOptions, Request, SessionFolder, SessionInfo};
use millpond::model::Model;
use millpond::state::memory::KvType;
use serde_json::json;

use super::args::{SessionAction, SessionArgs, SessionLoadArgs, SessionSaveArgs};
use super::failure::{Interrupted, usage};
use super::interrupt::Interrupt;
use super::settings::{self, Compute};
use super::{answer, device, folders, list, output, run, sampling};

/// Name under which the engine keeps the state that the command is about.
const KEPT: &str = "command-line";

/// Runs the command.
///
/// # Errors
/// Wrong usage, a model that does not load, a session that is not there or damaged, Ctrl-C.
pub(crate) fn run(args: &SessionArgs) -> anyhow::Result<()> {
    let folder = args.session_dir.clone().or_else(folders::sessions);
    let folder = folder.context("there is no folder for sessions: --session-dir names one")?;
    let sessions = SessionFolder::new(folder.clone());
    match &args.action {
        SessionAction::List(args) => print_list(&sessions.list()?, args.json),
        SessionAction::Show(args) => print_one(&sessions.info(&args.name)?, args.json),
        SessionAction::Delete(args) => Ok(args.names.iter().try_for_each(|name| sessions.delete(name))?),
        SessionAction::Save(args) => save(args, folder),
        SessionAction::Load(args) => load(args, folder),
    }
}

fn print_list(sessions: &[SessionInfo], json: bool) -> anyhow::Result<()> {
    if json {
        let sessions: Vec<_> = sessions.iter().map(described).collect();
        return output::line(&serde_json::to_string_pretty(&sessions)?);
    }
    let mut table = vec![["NAME", "TOKENS", "SIZE", "AGE", "MODEL"].map(str::to_owned).to_vec()];
    table.extend(sessions.iter().map(|session| {
        vec![
            session.name.clone(),
            session.tokens.to_string(),
            output::bytes(session.bytes),
            list::age(session.modified),
            format!("{:016x}", session.fingerprint),
        ]
    }));
    output::table(&table)
}

fn print_one(session: &SessionInfo, json: bool) -> anyhow::Result<()> {
    if json {
        return output::line(&serde_json::to_string_pretty(&described(session))?);
    }
    let rows = [
        ("name", session.name.clone()),
        ("tokens", session.tokens.to_string()),
        ("size", output::bytes(session.bytes)),
        ("age", list::age(session.modified)),
        ("model", format!("{:016x} (fingerprint)", session.fingerprint)),
    ];
    rows.iter().try_for_each(|(name, value)| output::line(&format!("{name:8} {value}")))
}

fn described(session: &SessionInfo) -> serde_json::Value {
    let modified = session.modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    json!({
        "name": session.name,
        "tokens": session.tokens,
        "bytes": session.bytes,
        "modified": modified.map(|time| time.as_secs()),
        "model": format!("{:016x}", session.fingerprint),
    })
}

/// Reads a text and saves the state behind it.
fn save(args: &SessionSaveArgs, folder: PathBuf) -> anyhow::Result<()> {
    let compute = Compute::new(&args.compute, KvType::F16)?;
    let words = settings::joined(&args.text);
    let text = match settings::text_of(words.as_deref(), args.file.as_deref())? {
        Some(text) => text,
        None => settings::read_stdin()?,
    };
    let model = settings::load_model(&args.model)?;
    let prompt = run::encode_text(&model, &text)?;
    if prompt.is_empty() {
        return Err(usage("the text is empty"));
    }
    let engine = start(&model, &compute, 0, folder)?;
    let interrupt = Interrupt::install()?;
    keep(&engine, prompt, &interrupt)?;
    if interrupt.pressed() {
        return Err(Interrupted.into());
    }
    print_one(&engine.handle().save_session(KEPT, &args.name)?, false)
}

/// Goes on from a saved state.
fn load(args: &SessionLoadArgs, folder: PathBuf) -> anyhow::Result<()> {
    let compute = Compute::new(&args.compute, KvType::F16)?;
    let words = settings::joined(&args.text);
    let text = settings::text_of(words.as_deref(), args.file.as_deref())?.unwrap_or_default();
    let model = settings::load_model(&args.model)?;
    let engine = start(&model, &compute, args.generation.ctx_size, folder)?;
    let interrupt = Interrupt::install()?;
    let handle = engine.handle();
    let mut prompt = handle.load_session(&args.name, KEPT)?;
    prompt.extend(settings::tokenizer(&model)?.encode(&text, true)?);
    let request = Request {
        max_tokens: run::max_tokens(&args.generation)?,
        sampling: sampling::params(&args.sampling, model.spec.vocab)?,
        stop: args.generation.stops(),
        ignore_eos: args.generation.ignore_eos,
        session: Some(KEPT.to_owned()),
        ..Request::new(prompt)
    };
    let tokens = request.prompt.clone();
    let answer = answer::print(&run::submit(&engine, request)?, &interrupt, None)?;
    if std::io::stdout().is_terminal() {
        answer::end_line(&answer)?;
    }
    answer::report(&args.generation, &answer.usage);
    if let Some(name) = &args.save_as {
        // The state does not know the last token yet: the next pass would have read it.
        let whole = tokens.into_iter().chain(answer.ids).collect();
        keep(&engine, whole, &interrupt)?;
        handle.save_session(KEPT, name)?;
    }
    if interrupt.pressed() { Err(Interrupted.into()) } else { Ok(()) }
}

/// Has the engine keep the state behind a text.
fn keep(engine: &Engine, tokens: Vec<u32>, interrupt: &Interrupt) -> anyhow::Result<()> {
    let request = Request { max_tokens: Some(0), session: Some(KEPT.to_owned()), ..Request::new(tokens) };
    answer::collect(&run::submit(engine, request)?, interrupt, None).map(drop)
}

fn start(model: &Arc<Model>, compute: &Compute, context: usize, folder: PathBuf) -> anyhow::Result<Engine> {
    let options = answer::options(compute, context);
    device::start(model.clone(), EngineOptions { session_dir: Some(folder), ..options }, compute.device)
}
