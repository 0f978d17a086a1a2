//! `millpond chat`: a conversation on the terminal.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use millpond::engine::{Engine, Request};
use millpond::model::Model;
use millpond::sample::grammar::GrammarSource;
use millpond::state::memory::KvType;
use millpond::text::reasoning::ReasoningSplitter;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Map, Value, json};

use super::answer::Thoughts;
use super::args::{ChatArgs, ChatSettings};
use super::chat_line::{self, Line};
use super::failure::{Interrupted, usage};
use super::interrupt::Interrupt;
use super::settings::{self, Compute};
use super::terminal::Style;
use super::{answer, constraint, conversation, run, sampling};

const HELP: &str = "\
/help                 this list
/system TEXT          tell the model how to behave, and start anew
/regenerate           answer the last question again
/edit                 change the last question
/set OPTION VALUE     change an option, for instance: /set temp 0.5
/stats                show figures after each answer, or stop showing them
/save FILE            write the conversation to a file
/load FILE            go on with one
/reset                start anew
/bye                  leave (also Ctrl-D)
\"\"\"                   begins and ends a text of several lines; so does \\ at the end of a line
Ctrl-C                stops the answer; without one, a second leaves";

/// Runs the command.
///
/// # Errors
/// Wrong usage, a model that does not load or has no chat template, Ctrl-C twice.
pub(crate) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let mut settings = args.settings.clone();
    settings.model.model = settings.model.model.or_else(|| args.path.clone());
    talk(&settings)
}

/// Holds a conversation until the user leaves.
///
/// # Errors
/// As [`run`].
pub(crate) fn talk(settings: &ChatSettings) -> anyhow::Result<()> {
    let compute = Compute::new(&settings.compute, KvType::F16)?;
    let options = conversation::all_options(&settings.template, &settings.reasoning)?;
    let grammar = constraint::source(&settings.constraint)?;
    let mut settings = settings.clone();
    let system = settings.system_prompt.take().map(|text| settings.generation.unescaped(&text));
    settings.system_prompt = settings::text_of(system.as_deref(), settings.system_prompt_file.as_deref())?;
    let (model, draft) = settings::load_with_draft(&settings.model, &settings.speculation)?;
    let model = conversation::apply_template(model, &settings.template)?;
    model.template.as_ref().context("the model has no chat template; `run` continues texts")?;
    let engine = answer::start(&model, draft, &settings.speculation, &compute, settings.generation.ctx_size)?;
    let interrupt = Interrupt::install()?;
    if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
        let words = format!("{}: say something; /help lists what else there is", model.info.name);
        super::output::note!("{}", Style::stderr().faint(&words));
    }
    let mut chat = Chat { model, engine, interrupt, settings, options, grammar, messages: Vec::new() };
    chat.check_settings()?;
    chat.reset();
    let mut prompt = Prompt::new()?;
    loop {
        let Some(text) = prompt.read("> ")? else { return Ok(()) };
        match chat_line::parse(&text) {
            Line::Say(text) if text.trim().is_empty() => {}
            Line::Say(text) => report(chat.ask(&text))?,
            Line::Leave => return Ok(()),
            Line::Edit => {
                let before = chat.messages.clone();
                match chat.take_question() {
                    None => report(Err(anyhow::anyhow!("there is no question to change")))?,
                    Some(text) => match prompt.edit("> ", &text)? {
                        Some(text) => report(chat.ask(&text))?,
                        None => chat.messages = before,
                    },
                }
            }
            Line::Command { name, argument } => report(chat.command(name, argument))?,
        }
    }
}

/// Prints what went wrong with one line of the conversation; only a reader that has gone ends it.
fn report(result: anyhow::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if super::failure::exit_code(&error) != 0 => {
            super::output::note!("{}", Style::stderr().alarm(&super::failure::text(&error)));
            Ok(())
        }
        other => other,
    }
}

/// A conversation.
struct Chat {
    model: Arc<Model>,
    engine: Engine,
    interrupt: Interrupt,
    settings: ChatSettings,
    /// Further variables for the template.
    options: Map<String, Value>,
    grammar: Option<GrammarSource>,
    messages: Vec<Value>,
}

impl Chat {
    fn check_settings(&self) -> anyhow::Result<()> {
        sampling::params(&self.settings.sampling, self.model.spec.vocab)?;
        run::max_tokens(&self.settings.generation)?;
        Ok(())
    }

    fn reset(&mut self) {
        let system = self.settings.system_prompt.iter();
        self.messages = system.map(|text| json!({"role": "system", "content": text})).collect();
    }

    fn ask(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(json!({"role": "user", "content": text}));
        let answered = self.answer();
        // A question that could not be asked is no part of the conversation.
        if answered.is_err() {
            self.messages.pop();
        }
        answered
    }

    fn answer(&mut self) -> anyhow::Result<()> {
        self.interrupt.take();
        let prompt = conversation::encode(&self.model, &self.messages, &self.options)?;
        let splitter = ReasoningSplitter::new(conversation::starts_thinking(&self.model, &prompt));
        let thoughts = Thoughts::wished(self.settings.reasoning.reasoning_format);
        let request = Request {
            max_tokens: run::max_tokens(&self.settings.generation)?,
            sampling: sampling::params(&self.settings.sampling, self.model.spec.vocab)?,
            stop: self.settings.generation.stops(),
            ignore_eos: self.settings.generation.ignore_eos,
            grammar: self.grammar.clone(),
            spec: self.settings.speculation.spec,
            spec_draft_max: self.settings.speculation.spec_draft_n_max,
            spec_draft_min: self.settings.speculation.spec_draft_n_min,
            ..Request::new(prompt)
        };
        let generation = run::submit(&self.engine, request)?;
        let answer = answer::print(&generation, &self.interrupt, Some((splitter, thoughts)))?;
        answer::end_line(&answer)?;
        self.interrupt.take();
        self.messages.push(json!({"role": "assistant", "content": answer.text}));
        answer::report(&self.settings.generation, &answer.usage);
        Ok(())
    }

    /// Takes back the last question and its answer.
    fn take_question(&mut self) -> Option<String> {
        let last = self.messages.iter().rposition(|message| message["role"] == "user")?;
        let question = self.messages.drain(last..).next()?;
        question["content"].as_str().map(str::to_owned)
    }

    fn command(&mut self, name: &str, argument: &str) -> anyhow::Result<()> {
        match name {
            "help" | "?" => super::output::note!("{HELP}"),
            "reset" | "clear" => self.reset(),
            "system" => {
                self.settings.system_prompt = Some(argument.to_owned()).filter(|text| !text.is_empty());
                self.reset();
            }
            "regenerate" | "regen" => match self.take_question() {
                Some(question) => self.ask(&question)?,
                None => anyhow::bail!("there is no question to answer again"),
            },
            "set" => self.set(argument)?,
            "stats" => self.settings.generation.stats = !self.settings.generation.stats,
            "save" => self.save(&file_of(argument)?)?,
            "load" => self.load(&file_of(argument)?)?,
            other => anyhow::bail!("there is no /{other}; /help lists what there is"),
        }
        Ok(())
    }

    /// Changes an option, with the spelling of the command line.
    fn set(&mut self, argument: &str) -> anyhow::Result<()> {
        let (name, value) = argument.split_once(char::is_whitespace).context("/set needs OPTION VALUE")?;
        let mut changed = self.settings.clone();
        changed.set(name, value.trim())?;
        let before = std::mem::replace(&mut self.settings, changed);
        self.check_settings().inspect_err(|_| self.settings = before)
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&json!({ "messages": self.messages }))?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        let value: Value = serde_json::from_str(&settings::read_text(path)?)
            .with_context(|| format!("{} is no saved conversation", path.display()))?;
        let messages = value["messages"].as_array().context("the file holds no `messages`")?;
        let well_formed =
            messages.iter().all(|message| message["role"].is_string() && message["content"].is_string());
        anyhow::ensure!(well_formed, "a message in {} lacks its role or content", path.display());
        self.messages.clone_from(messages);
        super::output::note!("{} messages", self.messages.len());
        Ok(())
    }
}

fn file_of(argument: &str) -> anyhow::Result<PathBuf> {
    if argument.is_empty() { Err(usage("which file?")) } else { Ok(PathBuf::from(argument)) }
}

/// The file of the history, unless it cannot be used: it is left as it is then, as the conversation does not need it.
fn usable(path: PathBuf, used: rustyline::Result<()>) -> Option<PathBuf> {
    if let Err(error) = used {
        super::output::note!("millpond: no history: {}: {error}", path.display());
        return None;
    }
    Some(path)
}

/// Reads lines with history.
struct Prompt {
    editor: DefaultEditor,
    history: Option<PathBuf>,
    warned: bool,
}

impl Prompt {
    fn new() -> anyhow::Result<Prompt> {
        let mut editor = DefaultEditor::new()?;
        let mut history = history_file();
        if let Some(path) = history.take_if(|path| path.exists()) {
            let loaded = editor.load_history(&path);
            history = usable(path, loaded);
        }
        Ok(Prompt { editor, history, warned: false })
    }

    /// What the user says, over several lines if they mark it so; `None` when they leave.
    fn read(&mut self, prompt: &str) -> anyhow::Result<Option<String>> {
        let mut text = String::new();
        loop {
            let shown = if text.is_empty() { prompt } else { ". " };
            match self.editor.readline(shown) {
                Ok(line) => {
                    self.warned = false;
                    text.push_str(&line);
                    if let Some(whole) = chat_line::complete(&text) {
                        self.remember(&text)?;
                        return Ok(Some(whole));
                    }
                    text.push('\n');
                }
                Err(ReadlineError::Eof) => return Ok(None),
                Err(ReadlineError::Interrupted) if !text.is_empty() => text.clear(),
                Err(ReadlineError::Interrupted) if self.warned => return Err(Interrupted.into()),
                Err(ReadlineError::Interrupted) => {
                    self.warned = true;
                    super::output::note!("(once more, or Ctrl-D, to leave)");
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets the user change a text.
    fn edit(&mut self, prompt: &str, text: &str) -> anyhow::Result<Option<String>> {
        match self.editor.readline_with_initial(prompt, (text, "")) {
            Ok(line) => Ok(Some(line)),
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn remember(&mut self, text: &str) -> anyhow::Result<()> {
        let added = self.editor.add_history_entry(text)?;
        if let Some(path) = self.history.take_if(|_| added) {
            let added = self.editor.append_history(&path);
            self.history = usable(path, added);
        }
        Ok(())
    }
}

/// Where the history lives; nowhere if the user has no home or wants none (`MILLPOND_NOHISTORY`).
fn history_file() -> Option<PathBuf> {
    if std::env::var_os("MILLPOND_NOHISTORY").is_some() {
        return None;
    }
    let folder = super::folders::state()?;
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}
