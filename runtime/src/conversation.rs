//! Conversations: messages in turns, written with the model's own template.

use serde_json::{Map, Value, json};

use crate::engine::{EngineHandle, Event, Generation, Request};
use crate::session::TurnError;
use crate::text::ChatInput;
use crate::text::reasoning::{AnswerPart, ReasoningSplitter};

/// A conversation. Each turn sends all messages; the engine reads only what is new.
///
/// ```
/// use millpond::conversation::Conversation;
/// use millpond::engine::{Engine, EngineOptions, Request};
/// use millpond::model::{LoadOptions, Model};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");
/// let model = Model::load(path.as_ref(), &LoadOptions::default())?;
/// let engine = Engine::start(model, EngineOptions { context: 512, ..EngineOptions::default() })?;
/// let mut talk = Conversation::new(&engine.handle())?;
/// talk.system("You are a miller.");
/// let mut answer = String::new();
/// for piece in talk.ask("Good morning!", Request { max_tokens: Some(8), ..Request::default() })? {
///     answer.push_str(&piece?); // print it, show it
/// }
/// assert_eq!(talk.messages().len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Conversation {
    handle: EngineHandle,
    messages: Vec<Value>,
    tools: Vec<Value>,
    options: Map<String, Value>,
}

impl Conversation {
    /// A conversation without messages.
    ///
    /// # Errors
    /// [`TurnError::Unsupported`] if the model has no tokenizer or no chat template.
    pub fn new(handle: &EngineHandle) -> Result<Conversation, TurnError> {
        let model = handle.model();
        if model.tokenizer.is_none() {
            return Err(TurnError::Unsupported("tokenizer"));
        }
        if model.template.is_none() {
            return Err(TurnError::Unsupported("chat template"));
        }
        let handle = handle.clone();
        Ok(Conversation { handle, messages: Vec::new(), tools: Vec::new(), options: Map::new() })
    }

    /// Sets the system message, which comes first.
    pub fn system(&mut self, text: &str) {
        let message = json!({ "role": "system", "content": text });
        match self.messages.first_mut() {
            Some(first) if first["role"] == "system" => *first = message,
            _ => self.messages.insert(0, message),
        }
    }

    /// Adds a message as clients of chat APIs write it: an object with a `role` and a `content`.
    pub fn push(&mut self, message: Value) {
        self.messages.push(message);
    }

    /// The messages so far, answers included.
    pub fn messages(&self) -> &[Value] {
        &self.messages
    }

    /// Cuts the conversation to its first `count` messages: to ask again, or otherwise.
    pub fn truncate(&mut self, count: usize) {
        self.messages.truncate(count);
    }

    /// The tools that the template is told of, `{"type": "function", "function": {...}}`.
    pub fn set_tools(&mut self, tools: Vec<Value>) {
        self.tools = tools;
    }

    /// Sets a variable of the template, such as `enable_thinking`.
    pub fn set_option(&mut self, name: &str, value: Value) {
        self.options.insert(name.to_owned(), value);
    }

    /// Adds a question and lets the model answer. As [`Conversation::answer`]; after an error the question is not part of
    /// the conversation.
    ///
    /// # Errors
    /// As [`Conversation::answer`].
    pub fn ask(&mut self, question: &str, request: Request) -> Result<Reply<'_>, TurnError> {
        let generation = {
            self.messages.push(json!({ "role": "user", "content": question }));
            let started = self.start(request);
            if started.is_err() {
                self.messages.pop();
            }
            started?
        };
        Ok(self.reply(generation))
    }

    /// Lets the model answer the last message. The prompt of `request` is replaced; all else counts.
    ///
    /// # Errors
    /// [`TurnError::Template`] and [`TurnError::Submit`].
    pub fn answer(&mut self, request: Request) -> Result<Reply<'_>, TurnError> {
        let generation = self.start(request)?;
        Ok(self.reply(generation))
    }

    /// The prompt that the next answer will get.
    ///
    /// # Errors
    /// [`TurnError::Template`], if the template refuses the messages.
    pub fn prompt(&self) -> Result<Vec<u32>, TurnError> {
        let model = self.handle.model();
        let tokenizer = model.tokenizer.as_deref().ok_or(TurnError::Unsupported("tokenizer"))?;
        let template = model.template.as_ref().ok_or(TurnError::Unsupported("chat template"))?;
        let input = ChatInput {
            messages: &self.messages,
            tools: (!self.tools.is_empty()).then_some(&self.tools[..]),
            add_generation_prompt: true,
            options: self.options.clone(),
            convert: true,
            now: None,
        };
        Ok(template.encode(&input, tokenizer)?)
    }

    fn start(&self, request: Request) -> Result<(Generation, bool), TurnError> {
        let prompt = self.prompt()?;
        let inside = self.ends_in_thoughts(&prompt);
        Ok((self.handle.submit(Request { prompt, ..request })?, inside))
    }

    /// Whether the template has opened the thoughts already.
    fn ends_in_thoughts(&self, prompt: &[u32]) -> bool {
        /// Tokens that the tag and the white space around it take at most.
        const LAST: usize = 16;
        let tokenizer = self.handle.model().tokenizer.as_deref();
        let last = &prompt[prompt.len().saturating_sub(LAST)..];
        tokenizer.is_some_and(|tokenizer| tokenizer.decode(last, false).trim_end().ends_with("<think>"))
    }

    fn reply(&mut self, (generation, inside): (Generation, bool)) -> Reply<'_> {
        let splitter = ReasoningSplitter::new(inside);
        let messages = &mut self.messages;
        Reply { generation, messages, splitter, content: String::new(), reasoning: String::new() }
    }
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conversation({} messages)", self.messages.len())
    }
}

/// An answer under way: an iterator over its text, without the model's thoughts. When it ends or is dropped, which
/// cancels it, what has come so far becomes a message of the conversation.
#[derive(Debug)]
#[must_use = "dropping a reply cancels it"]
pub struct Reply<'c> {
    generation: Generation,
    messages: &'c mut Vec<Value>,
    splitter: ReasoningSplitter,
    content: String,
    reasoning: String,
}

impl Reply<'_> {
    /// What the model has thought so far.
    pub fn reasoning(&self) -> &str {
        &self.reasoning
    }

    /// The generation itself, to cancel it or to be woken by it. Events taken from it directly are missing here.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Waits for the whole text.
    ///
    /// # Errors
    /// [`TurnError::Request`] where the engine could not finish it.
    pub fn text(self) -> Result<String, TurnError> {
        self.collect()
    }

    fn take(&mut self, parts: Vec<AnswerPart>) -> String {
        let mut fresh = String::new();
        for part in parts {
            match part {
                AnswerPart::Reasoning(text) => self.reasoning.push_str(&text),
                AnswerPart::Content(text) => fresh.push_str(&text),
            }
        }
        self.content.push_str(&fresh);
        fresh
    }
}

impl Iterator for Reply<'_> {
    type Item = Result<String, TurnError>;

    fn next(&mut self) -> Option<Result<String, TurnError>> {
        loop {
            let mut parts = Vec::new();
            match self.generation.recv()? {
                Event::Token { text, .. } => self.splitter.push(&text, &mut parts),
                Event::Done { text, .. } => {
                    self.splitter.push(&text, &mut parts);
                    self.splitter.flush(&mut parts);
                }
                Event::Error(error) => return Some(Err(error.into())),
                _ => {}
            }
            let fresh = self.take(parts);
            if !fresh.is_empty() {
                return Some(Ok(fresh));
            }
        }
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        let mut parts = Vec::new();
        self.splitter.flush(&mut parts);
        self.take(parts);
        if self.content.is_empty() && self.reasoning.is_empty() {
            return;
        }
        let mut message = json!({ "role": "assistant", "content": self.content });
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = self.reasoning.as_str().into();
        }
        self.messages.push(message);
    }
}
