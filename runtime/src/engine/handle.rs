//! Handles: how other threads use an engine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use super::drafts::{Drafter, Sources};
use super::generation::{self, Generation};
use super::options::{EngineOptions, SpecError, SpecMode};
use super::request::{Request, SubmitError};
use super::session_file::{Expected, SessionError, SessionFolder, SessionInfo};
use super::stats::Stats;
use super::stream::{Parts, Stream};
use super::{Command, Limits, Shared};
use crate::model::Model;
#[cfg(feature = "grammar")]
use crate::sample::grammar::{Grammar, GrammarCompiler};
use crate::sample::{Sampler, StopMatcher};
use crate::state::FoldPolicy;

/// Most alternatives whose probability is reported.
const MAX_LOGPROBS: usize = 64;
/// Most answers to one request.
const MAX_ANSWERS: usize = 128;

/// A way to use an engine from any thread.
#[derive(Clone)]
pub struct EngineHandle {
    model: Arc<Model>,
    commands: Sender<Command>,
    shared: Arc<Shared>,
    limits: Arc<Limits>,
}

impl EngineHandle {
    pub(super) fn new(
        model: Arc<Model>,
        commands: Sender<Command>,
        shared: Arc<Shared>,
        limits: Arc<Limits>,
    ) -> EngineHandle {
        EngineHandle { model, commands, shared, limits }
    }

    /// Tells the engine to stop; false if it has already.
    pub(super) fn stop(&self) -> bool {
        self.commands.send(Command::Stop).is_ok()
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Most tokens of a request, prompt and answer together.
    pub fn context(&self) -> usize {
        self.limits.context
    }

    /// The options the engine runs with.
    pub fn options(&self) -> &EngineOptions {
        &self.limits.options
    }

    /// Counters, and what runs now.
    pub fn stats(&self) -> Stats {
        let mut stats = self.shared.stats().clone();
        stats.waiting = self.shared.waiting.load(Ordering::Relaxed);
        stats
    }

    /// Hands a request to the engine.
    ///
    /// # Errors
    /// [`SubmitError`] at once when the request cannot be served; it never waits.
    pub fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        let generation = self.submit_many(request, 1)?.pop();
        generation.ok_or(SubmitError::Stopped)
    }

    /// Hands a request to the engine that is to be answered `count` times. Its prompt is read once; from its end on the
    /// answers share what they only read. Their seeds are consecutive, from that of the request.
    ///
    /// # Errors
    /// As for [`EngineHandle::submit`]; all answers are accepted or none.
    pub fn submit_many(&self, request: Request, count: usize) -> Result<Vec<Generation>, SubmitError> {
        if count == 0 || count > MAX_ANSWERS {
            return Err(SubmitError::Invalid(format!("1 to {MAX_ANSWERS} answers are possible")));
        }
        self.check(&request)?;
        let limit = self.token_limit(&request)?;
        let mut parts = Vec::with_capacity(count);
        for i in 0..count {
            parts.push(self.parts(&request, i as u64)?);
        }
        let waiting = self.shared.waiting.fetch_add(count, Ordering::Relaxed);
        if waiting + count > self.limits.options.max_queue {
            self.shared.waiting.fetch_sub(count, Ordering::Relaxed);
            self.shared.stats().refused += count as u64;
            return Err(SubmitError::QueueFull { waiting, retry_after: self.retry_after(waiting) });
        }
        let group = self.fresh_ids(count);
        let mut generations = Vec::with_capacity(count);
        for (id, parts) in (group..).zip(parts) {
            let (sink, generation) = generation::channel(id);
            let stream = Stream::new(id, group, request.clone(), limit, sink, parts);
            if self.commands.send(Command::Submit(Box::new(stream))).is_err() {
                self.shared.waiting.fetch_sub(count - generations.len(), Ordering::Relaxed);
                return Err(SubmitError::Stopped);
            }
            generations.push(generation);
        }
        self.shared.stats().accepted += count as u64;
        Ok(generations)
    }

    /// Numbers that no other request has; the first of `count` in a row.
    pub(super) fn fresh_ids(&self, count: usize) -> u64 {
        self.shared.next_id.fetch_add(count as u64, Ordering::Relaxed)
    }

    /// What a stream needs besides its request.
    pub(super) fn parts(&self, request: &Request, answer: u64) -> Result<Parts, SubmitError> {
        let invalid = |error: &dyn std::fmt::Display| SubmitError::Invalid(error.to_string());
        let mut sampling = request.sampling.clone();
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(answer));
        let sampler = Sampler::new(sampling, self.model.spec.vocab).map_err(|error| invalid(&error))?;
        Ok(Parts {
            sampler,
            stops: StopMatcher::new(&request.stop).map_err(|error| invalid(&error))?,
            drafter: self.drafter(request),
            #[cfg(feature = "grammar")]
            grammar: self.grammar(request).map_err(|error| invalid(&error))?,
        })
    }

    /// The grammar of a request, compiled.
    #[cfg(feature = "grammar")]
    fn grammar(&self, request: &Request) -> Result<Option<Grammar>, String> {
        let Some(source) = &request.grammar else { return Ok(None) };
        let Some(tokenizer) = &self.model.tokenizer else {
            return Err("the model has no tokenizer, so there is no text to constrain".to_owned());
        };
        let vocab = self.model.spec.vocab;
        let compiler =
            self.limits.grammars.get_or_init(|| GrammarCompiler::new(tokenizer.clone(), vocab)).as_ref();
        let grammar = compiler.map_err(ToString::to_string)?.compile(source);
        grammar.map(Some).map_err(|error| error.to_string())
    }

    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let invalid = |message: String| Err(SubmitError::Invalid(message));
        if request.prompt.is_empty() {
            return invalid("the prompt has no tokens".to_owned());
        }
        let vocab = self.model.spec.vocab;
        if let Some(token) = request.prompt.iter().find(|&&token| token as usize >= vocab) {
            return invalid(format!("token {token} is not in the vocabulary of {vocab}"));
        }
        if !request.stop.is_empty() && self.model.tokenizer.is_none() {
            return invalid("the model has no tokenizer, so there is no text to stop at".to_owned());
        }
        self.check_spec(request)?;
        if request.logprobs.is_some_and(|count| count > MAX_LOGPROBS) {
            return invalid(format!("at most {MAX_LOGPROBS} alternatives can be reported"));
        }
        Ok(())
    }

    fn check_spec(&self, request: &Request) -> Result<(), SpecError> {
        match request.spec {
            Some(mode) => self.limits.options.check_source(mode, &self.model),
            None => Ok(()),
        }
    }

    /// Most tokens to generate, by the request, the context and the memory budget.
    pub(super) fn token_limit(&self, request: &Request) -> Result<usize, SubmitError> {
        let (prompt, context) = (request.prompt.len(), self.limits.context);
        let wanted = if request.embeddings.is_some() { Some(0) } else { request.max_tokens };
        let least = wanted.unwrap_or(1);
        if prompt.saturating_add(least) > context {
            return Err(SubmitError::PromptTooLong { prompt, max_tokens: least, context });
        }
        let needed = self.limits.sequence_bytes(prompt + least);
        if needed > self.limits.memory_budget {
            return Err(SubmitError::TooLarge { needed, budget: self.limits.memory_budget });
        }
        Ok(wanted.unwrap_or(context - prompt))
    }

    fn drafter(&self, request: &Request) -> Drafter {
        let options = &self.limits.options;
        let longest = options.spec_draft_max.min(request.spec_draft_max.unwrap_or(usize::MAX));
        let shortest = request.spec_draft_min.unwrap_or(options.spec_draft_min).min(longest);
        let mode = request.spec.unwrap_or(options.spec);
        let head = [mode, options.spec].iter().any(|mode| matches!(mode, SpecMode::Auto | SpecMode::Mtp));
        let sources = Sources {
            head: head && options.spec_draft_max > 0 && self.model.weights.mtp.is_some(),
            model: options.draft_model.is_some(),
        };
        Drafter::new(mode, shortest, longest, sources)
    }

    /// When a place may be free: the mean time of a request, times those that wait, shared by those that run.
    fn retry_after(&self, waiting: usize) -> Duration {
        let stats = self.shared.stats();
        let busy = stats.prefill_seconds + stats.decode_seconds;
        let each = busy / (stats.completed.max(1)) as f64;
        Duration::from_secs_f64((each * waiting as f64).clamp(1.0, 60.0))
    }

    /// Saves the state that a request has left under `session` ([`Request::session`]) as the file `file`.
    ///
    /// # Errors
    /// [`SessionError`]; a file that was there before is then untouched.
    pub fn save_session(&self, session: &str, file: &str) -> Result<SessionInfo, SessionError> {
        let folder = self.folder()?;
        let name = session.to_owned();
        let state = self.ask(|reply| Command::Export { name, reply })??;
        folder.save(file, &state, &self.limits.layout, self.model.info.fingerprint)
    }

    /// Loads the file `file` and keeps its state under `session`, for requests whose prompts begin with its tokens.
    /// Returns those tokens.
    ///
    /// # Errors
    /// [`SessionError`]; nothing has changed then.
    pub fn load_session(&self, file: &str, session: &str) -> Result<Vec<u32>, SessionError> {
        let expected = Expected {
            layout: &self.limits.layout,
            fingerprint: self.model.info.fingerprint,
            hidden: self.model.spec.hidden,
            context: self.limits.context,
            vocab: self.model.spec.vocab,
        };
        let state = self.folder()?.load(file, &expected, |first| self.policy(first))?;
        let tokens = state.tokens.clone();
        let name = session.to_owned();
        self.ask(|reply| Command::Import { name, session: Box::new(state), reply })??;
        Ok(tokens)
    }

    /// Forgets the state kept under `session`; false if there was none. Files stay.
    ///
    /// # Errors
    /// [`SessionError::Stopped`].
    pub fn erase_session(&self, session: &str) -> Result<bool, SessionError> {
        let name = session.to_owned();
        self.ask(|reply| Command::Forget { name, reply })
    }

    /// The saved sessions whose files are whole, by name. Headers alone are read.
    ///
    /// # Errors
    /// [`SessionError`] when the folder cannot be read.
    pub fn list_sessions(&self) -> Result<Vec<SessionInfo>, SessionError> {
        self.folder()?.list()
    }

    /// What the header of a saved session says.
    ///
    /// # Errors
    /// [`SessionError`] when there is none or it is damaged.
    pub fn session_info(&self, file: &str) -> Result<SessionInfo, SessionError> {
        self.folder()?.info(file)
    }

    /// Deletes a saved session.
    ///
    /// # Errors
    /// [`SessionError`] when there is none or the system refuses.
    pub fn delete_session(&self, file: &str) -> Result<(), SessionError> {
        self.folder()?.delete(file)
    }

    fn folder(&self) -> Result<&SessionFolder, SessionError> {
        self.limits.sessions.as_ref().ok_or(SessionError::NoFolder)
    }

    /// Sends a command and waits for its answer, which comes between two steps.
    pub(super) fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, SessionError> {
        let (reply, answer) = mpsc::channel();
        self.commands.send(command(reply)).map_err(|_| SessionError::Stopped)?;
        answer.recv().map_err(|_| SessionError::Stopped)
    }

    fn policy(&self, first: u32) -> FoldPolicy {
        self.limits.options.buffer.policy(&self.limits.layout, first)
    }
}
