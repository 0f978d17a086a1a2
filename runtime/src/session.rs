//! Sessions: a text that grows, whose state the engine keeps, in memory and on disk.

use std::time::Duration;

use crate::engine::{
    EngineHandle, Event, Generation, RecvError, Request, RequestError, SessionError, SessionInfo, SubmitError,
};
use crate::text::TokenizerError;

/// Why a session could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TurnError {
    /// The model has no tokenizer or, for a conversation, no chat template.
    #[error("the model has no {0}")]
    Unsupported(&'static str),
    /// The tokenizer refuses the text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template refuses the conversation.
    #[error(transparent)]
    Template(#[from] crate::text::TemplateError),
    /// The engine refuses the request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The engine could not finish the answer.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// A text that grows: what the host adds and what the model answers. Only what is new is read in each turn, and the
/// state can be saved and restored.
///
/// ```
/// use millpond::engine::{Engine, EngineOptions, Request};
/// use millpond::model::{LoadOptions, Model};
/// use millpond::session::Session;
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");
/// # let folder = std::env::temp_dir().join(format!("millpond-session-{}", std::process::id()));
/// let model = Model::load(path.as_ref(), &LoadOptions::default())?;
/// let options = EngineOptions { session_dir: Some(folder.clone()), context: 512, ..EngineOptions::default() };
/// let engine = Engine::start(model, options)?;
///
/// let mut story = Session::new(&engine.handle(), "story");
/// story.push("The king looked at the dragon and said")?;
/// let first = story.generate(Request { max_tokens: Some(8), ..Request::default() })?.text()?;
/// story.push(" Then the dragon")?;
/// let second = story.generate(Request { max_tokens: Some(8), ..Request::default() })?.text()?;
/// story.save("evening")?;
///
/// // Tomorrow, in another process with the same model:
/// let story = Session::restore(&engine.handle(), "story", "evening")?;
/// assert_eq!(story.text(), format!("The king looked at the dragon and said{first} Then the dragon{second}"));
/// # engine.handle().delete_session("evening")?;
/// # std::fs::remove_dir(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Session {
    handle: EngineHandle,
    name: String,
    tokens: Vec<u32>,
}

impl Session {
    /// An empty session. The engine keeps its state under `name`; sessions that live at the same time need different
    /// names.
    pub fn new(handle: &EngineHandle, name: impl Into<String>) -> Session {
        Session { handle: handle.clone(), name: name.into(), tokens: Vec::new() }
    }

    /// A session saved as `file`, to be kept under `name` from now on.
    ///
    /// # Errors
    /// As [`EngineHandle::load_session`].
    pub fn restore(
        handle: &EngineHandle,
        name: impl Into<String>,
        file: &str,
    ) -> Result<Session, SessionError> {
        let name = name.into();
        let tokens = handle.load_session(file, &name)?;
        Ok(Session { handle: handle.clone(), name, tokens })
    }

    /// The name under which the engine keeps the state.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All tokens so far, those of answers included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The text so far, without control tokens; empty if the model has no tokenizer.
    pub fn text(&self) -> String {
        let tokenizer = self.handle.model().tokenizer.as_deref();
        tokenizer.map(|tokenizer| tokenizer.decode(&self.tokens, true)).unwrap_or_default()
    }

    /// Adds text. Control tokens written in it stay plain text. Nothing is computed before the next answer.
    ///
    /// # Errors
    /// [`TurnError::Unsupported`] or [`TurnError::Tokenizer`]; nothing has been added then.
    pub fn push(&mut self, text: &str) -> Result<(), TurnError> {
        let tokenizer = self.handle.model().tokenizer.as_deref();
        let tokenizer = tokenizer.ok_or(TurnError::Unsupported("tokenizer"))?;
        self.tokens.extend(tokenizer.encode(text, false)?);
        Ok(())
    }

    /// Adds tokens.
    pub fn push_tokens(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// Cuts the text to its first `length` tokens: for another answer to the same question.
    pub fn truncate(&mut self, length: usize) {
        self.tokens.truncate(length);
    }

    /// Lets the model go on. Prompt and session name of `request` are replaced by those of this session; all else
    /// counts. What is read from the answer becomes part of the session.
    ///
    /// # Errors
    /// [`TurnError::Submit`].
    pub fn generate(&mut self, request: Request) -> Result<Answer<'_>, TurnError> {
        let session = Some(self.name.clone());
        let request = Request { prompt: self.tokens.clone(), session, ..request };
        let generation = self.handle.submit(request)?;
        Ok(Answer { generation, tokens: &mut self.tokens })
    }

    /// Saves the session as `file` in [`crate::engine::EngineOptions::session_dir`]. Reads what the model has not read
    /// yet: what was pushed last, and the last token of an answer.
    ///
    /// # Errors
    /// [`SessionError`]; a file that was there before is then untouched.
    pub fn save(&mut self, file: &str) -> Result<SessionInfo, SessionError> {
        let failed = |reason: String| SessionError::Engine { name: file.to_owned(), reason };
        let read = self.generate(Request { max_tokens: Some(0), ..Request::default() });
        read.and_then(Answer::text).map_err(|error| failed(error.to_string()))?;
        self.handle.save_session(&self.name, file)
    }

    /// Lets the engine forget the state; the text stays.
    ///
    /// # Errors
    /// [`SessionError::Stopped`].
    pub fn release(&self) -> Result<(), SessionError> {
        self.handle.erase_session(&self.name).map(|_was_there| ())
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?}, {} tokens)", self.name, self.tokens.len())
    }
}

/// An answer of a [`Session`] under way: an iterator of events. What has been read of it is part of the session, and
/// dropping it cancels the rest.
#[derive(Debug)]
#[must_use = "dropping an answer cancels it"]
pub struct Answer<'s> {
    generation: Generation,
    tokens: &'s mut Vec<u32>,
}

impl Answer<'_> {
    /// Waits for the whole text.
    ///
    /// # Errors
    /// [`TurnError::Request`] where the engine could not finish it.
    pub fn text(self) -> Result<String, TurnError> {
        let mut whole = String::new();
        for event in self {
            match event {
                Event::Token { text, .. } | Event::Done { text, .. } => whole.push_str(&text),
                Event::Error(error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(whole)
    }

    /// The next event, if it comes in time.
    ///
    /// # Errors
    /// As [`Generation::recv_timeout`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Event, RecvError> {
        let event = self.generation.recv_timeout(timeout)?;
        self.note(&event);
        Ok(event)
    }

    /// The generation itself, to cancel it from here or to be woken by it. Events taken from it directly are not part
    /// of the session.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    fn note(&mut self, event: &Event) {
        if let Event::Token { id, .. } = event {
            self.tokens.push(*id);
        }
    }
}

impl Iterator for Answer<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let event = self.generation.recv()?;
        self.note(&event);
        Some(event)
    }
}
