//! Chat templates: Jinja as Hugging Face transformers runs it, with bounds on what a template may cost.
//!
//! A template comes with a model file and is therefore a stranger's program. It sees only the values it is given, has
//! no loader and no access to files, and is stopped by fuel (a budget for instructions and for the data they create),
//! by a limit on the output, and by a recursion limit.
//!
//! Known differences from transformers: `%` does not format strings (the `format` filter and method do), floats inside
//! a printed list or joined by `~` never use scientific notation, and `strftime_now` takes UTC for the local time.

mod input;
mod json;
mod marks;
mod python;
mod source;
mod time;

pub use input::{ChatInput, content_text};

use super::tokenizer::{Tokenizer, TokenizerError};
use input::Conversions;
use marks::ControlTokens;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use std::io;
use std::time::SystemTime;
use thiserror::Error as ThisError;

/// Longest template source. The longest in use have 30 KB.
pub const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// Longest rendered chat.
pub const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// Fuel for a chat of no size; a unit pays for one instruction or 64 bytes of data. Real templates need about 100 for
/// each message and tool.
const BASE_FUEL: u64 = 50_000;
/// Fuel for each message and each tool.
const FUEL_PER_ITEM: u64 = 1_000;
/// How many times a template may handle each byte of its input.
const PASSES: u64 = 16;
/// Fuel for any chat.
const MAX_FUEL: u64 = 4_000_000;
const RECURSION_LIMIT: usize = 200;
/// Stack for compiling: see [`source::check_shape`].
const COMPILER_STACK: usize = 64 << 20;
/// Stack for rendering: a start, and what a unit of fuel can make a value deeper by. Values are printed, compared and
/// dropped recursively, at up to 450 bytes a level, and a level costs at least seven units.
const RENDER_STACK: usize = 4 << 20;
const STACK_PER_FUEL: usize = 72;

/// The turn format of the Qwen family, for files that carry no template.
pub const CHATML: &str = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/// Why a template was refused or a chat could not be rendered.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum TemplateError {
    /// The source is longer than [`MAX_TEMPLATE_BYTES`].
    #[error("chat template of {bytes} bytes, more than the limit of {MAX_TEMPLATE_BYTES}")]
    Size {
        /// Length of the source.
        bytes: usize,
    },
    /// The source has more tags, or longer expressions, than can be compiled safely.
    #[error("chat template has {found} {what}, more than the limit of {limit}")]
    Shape {
        /// What there are too many of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The source is not a template.
    #[error("chat template: {0}")]
    Syntax(String),
    /// The chat has no message.
    #[error("the chat has no messages")]
    NoMessages,
    /// A message is not an object with a role.
    #[error("message {index} has no {field:?} of type string")]
    Message {
        /// Position in the chat.
        index: usize,
        /// The missing field.
        field: &'static str,
    },
    /// The template refused the chat by `raise_exception`, for example an unknown role or a wrong order of roles.
    #[error("{0}")]
    Raised(String),
    /// The template used more instructions or memory than a chat of this size may cost.
    #[error("chat template used up its budget of {fuel}")]
    Budget {
        /// Units it was given.
        fuel: u64,
    },
    /// The rendered chat is longer than [`MAX_OUTPUT_BYTES`].
    #[error("rendered chat longer than {MAX_OUTPUT_BYTES} bytes")]
    Output,
    /// The template failed on this chat.
    #[error("chat template: {0}")]
    Render(String),
    /// The rendered chat could not be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Text of the tokens that templates refer to by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
}

impl TemplateTokens {
    /// The texts of a tokenizer's special tokens.
    #[must_use]
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let text =
            |id: Option<u32>| id.map(|id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned());
        let special = tokenizer.special();
        Self { bos: text(special.bos), eos: text(special.eos), pad: text(special.pad) }
    }
}

/// Where a model's template may stand; the first that is there wins, as in transformers.
#[derive(Debug, Clone, Copy, Default)]
pub struct TemplateSources<'a> {
    /// Contents of `chat_template.jinja`.
    pub file: Option<&'a str>,
    /// `chat_template` of `tokenizer_config.json`.
    pub config: Option<&'a str>,
    /// `tokenizer.chat_template` of a GGUF file.
    pub gguf: Option<&'a str>,
}

/// A compiled chat template. [`crate::model::Model::template`] has that of a model.
///
/// ```
/// # use millpond::model::{LoadOptions, Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");
/// # let model = Model::load(path.as_ref(), &LoadOptions::default())?;
/// use millpond::text::ChatInput;
/// use serde_json::json;
///
/// let template = model.template.as_ref().ok_or("the model has no chat template")?;
/// let tokenizer = model.tokenizer.as_ref().ok_or("the model has no tokenizer")?;
/// let messages = [json!({ "role": "user", "content": "Where does the frog live?" })];
/// let input = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
/// println!("{}", template.render(&input)?); // to look at
/// let prompt = template.encode(&input, tokenizer)?; // to generate from
/// # assert!(!prompt.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: TemplateTokens,
    conversions: Conversions,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// Too long, or not a template.
    pub fn parse(source: &str, tokens: TemplateTokens) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::Size { bytes: source.len() });
        }
        source::check_shape(source)?;
        let mut environment = environment()?;
        let source = source::without_generation_tags(source);
        compile(&mut environment, source).map_err(|error| TemplateError::Syntax(describe(&error)))?;
        let mut template = Self { environment, tokens, conversions: Conversions::none() };
        template.conversions = Conversions::probe(&template);
        Ok(template)
    }

    /// The template as it was compiled.
    pub fn source(&self) -> String {
        self.environment
            .get_template("chat")
            .map_or_else(|_| String::new(), |template| template.source().to_owned())
    }

    /// The model's own template if it has one; otherwise [`CHATML`] if its vocabulary has the turn markers of that
    /// format; `None` for a model without any notion of turns.
    ///
    /// # Errors
    /// As [`ChatTemplate::parse`].
    pub fn from_loaded(
        sources: TemplateSources<'_>,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>, TemplateError> {
        let markers =
            ["<|im_start|>", "<|im_end|>"].iter().all(|marker| tokenizer.token_id(marker).is_some());
        let own = sources.file.or(sources.config).or(sources.gguf);
        let source = own.or_else(|| markers.then_some(CHATML));
        source.map(|source| Self::parse(source, TemplateTokens::of(tokenizer))).transpose()
    }

    /// Renders a chat to text.
    ///
    /// # Errors
    /// The chat is malformed, the template refuses it ([`TemplateError::Raised`]), fails, or exceeds its budget.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, TemplateError> {
        input.check()?;
        self.render_marked(input, None)
    }

    /// Renders a chat and encodes it. Control tokens that stand in the text of users, systems and tools are encoded as
    /// plain text, so that nobody can close a turn from within it; only the template's own and those of earlier
    /// answers become control tokens.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn encode(&self, input: &ChatInput<'_>, tokenizer: &Tokenizer) -> Result<Vec<u32>, TemplateError> {
        input.check()?;
        let control = ControlTokens::of(tokenizer);
        let rendered = self.render_marked(input, Some(&control))?;
        let mut ids = Vec::new();
        for (piece, is_marked) in control.pieces(&rendered) {
            ids.extend(tokenizer.encode(piece, !is_marked)?);
        }
        Ok(ids)
    }

    fn render_marked(
        &self,
        input: &ChatInput<'_>,
        marks: Option<&ControlTokens>,
    ) -> Result<String, TemplateError> {
        let fuel = fuel_for(input);
        let stack = RENDER_STACK + fuel as usize * STACK_PER_FUEL;
        let run = || self.render_here(input, marks, fuel);
        on_own_stack(stack, run).unwrap_or_else(|error| Err(TemplateError::Render(error.to_string())))
    }

    fn render_here(
        &self,
        input: &ChatInput<'_>,
        marks: Option<&ControlTokens>,
        fuel: u64,
    ) -> Result<String, TemplateError> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        if let Some(now) = input.now {
            environment.add_function("strftime_now", move |format: &str| time::strftime(format, now));
        }
        let context = input.context(&self.tokens, self.conversions, marks);
        let template = environment.get_template("chat").map_err(|error| render_error(&error, fuel))?;
        let mut output = LimitedOutput::default();
        match template.render_captured_to(context, &mut output) {
            Ok(_) => {
                String::from_utf8(output.bytes).map_err(|error| TemplateError::Render(error.to_string()))
            }
            Err(_) if output.is_full => Err(TemplateError::Output),
            Err(error) => Err(render_error(&error, fuel)),
        }
    }
}

fn fuel_for(input: &ChatInput<'_>) -> u64 {
    let bytes = input.bytes() as u64 / 64 * PASSES;
    let items = input.items() as u64 * FUEL_PER_ITEM;
    BASE_FUEL.saturating_add(bytes).saturating_add(items).min(MAX_FUEL)
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ChatTemplate").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

/// The environment that transformers gives a template: block trimming, loop controls, Python's methods on values, no
/// escaping, and three functions.
fn environment() -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax(describe(&error)))?);
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(python::write);
    environment.add_filter("string", python::string);
    environment.add_filter("urlencode", python::urlencode);
    environment.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception")
            .with_source(Raised(message.to_owned())))
    });
    environment.add_function("strftime_now", |format: &str| time::strftime(format, SystemTime::now()));
    Ok(environment)
}

/// The engine's compiler recurses once per operator of a chain and per `elif`, which the limits of
/// [`source::check_shape`] bound to what fits a stack of its own, but not to what fits any caller's.
fn compile(environment: &mut Environment<'static>, source: String) -> Result<(), Error> {
    on_own_stack(COMPILER_STACK, || environment.add_template_owned("chat", source))
        .unwrap_or_else(|error| Err(Error::new(ErrorKind::InvalidOperation, error.to_string())))
}

/// Runs `work` on a fresh thread with `bytes` of stack, of which the system commits only what is touched.
fn on_own_stack<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("chat-template".to_owned()).stack_size(bytes);
        let thread = builder.spawn_scoped(scope, work)?;
        thread.join().map_err(|_| io::Error::other("the template engine panicked"))
    })
}

/// `json.dumps` with the defaults of transformers: no ASCII escapes, and unlike Jinja's own filter none for HTML.
fn tojson(state: &State<'_, '_>, value: &Value, options: Kwargs) -> Result<String, Error> {
    let style = json::Style::from_options(&options)?;
    options.assert_all_used()?;
    let text = json::dump(value, &style)?;
    state.consume_fuel(text.len() as u64 / 64)?;
    Ok(text)
}

/// Carries the message of `raise_exception` through the engine's error.
#[derive(Debug, ThisError)]
#[error("{0}")]
struct Raised(String);

fn render_error(error: &Error, fuel: u64) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(raised) = current.downcast_ref::<Raised>() {
            return TemplateError::Raised(raised.0.clone());
        }
        if current.downcast_ref::<Error>().is_some_and(|error| error.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::Budget { fuel };
        }
        cause = current.source();
    }
    TemplateError::Render(describe(error))
}

fn describe(error: &Error) -> String {
    match (error.line(), error.detail()) {
        (Some(line), Some(detail)) => format!("line {line}: {}: {detail}", error.kind()),
        (Some(line), None) => format!("line {line}: {}", error.kind()),
        (None, _) => error.to_string(),
    }
}

/// Collects the output and refuses what goes beyond the limit.
#[derive(Default)]
struct LimitedOutput {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for LimitedOutput {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + chunk.len() > MAX_OUTPUT_BYTES {
            self.is_full = true;
            return Err(io::Error::other("rendered chat too long"));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
