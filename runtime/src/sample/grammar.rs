//! Constrained decoding: which tokens a JSON schema, a regular expression or a grammar allows next.
//!
//! The automaton is llguidance's; this module gives it our vocabulary, bounds what compiling and stepping may cost, and
//! closes on failure: a grammar that cannot be compiled is an error before anything is generated, and one that fails
//! later ends the stream with an error. Nothing is ever generated without the constraint that was asked for.

use super::gbnf;
use super::mask::TokenMask;
use crate::text::{TokenKind, Tokenizer};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use std::sync::Arc;
use thiserror::Error;

/// Longest source of a grammar; 22 tools with long descriptions stay below 64 KiB.
pub const MAX_SOURCE_BYTES: usize = 512 << 10;
/// Deepest nesting of brackets, or of values in a schema.
pub const MAX_DEPTH: usize = 96;
/// Stack for compiling, which recurses over the nesting.
const COMPILER_STACK: usize = 32 << 20;

/// Why a constraint cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// The source is longer than [`MAX_SOURCE_BYTES`].
    #[error("grammar of {bytes} bytes, more than the limit of {MAX_SOURCE_BYTES}")]
    Size {
        /// Length of the source.
        bytes: usize,
    },
    /// The source is nested deeper than [`MAX_DEPTH`].
    #[error("grammar nested {depth} deep, more than the limit of {MAX_DEPTH}")]
    Depth {
        /// Depth at which reading stopped.
        depth: usize,
    },
    /// The grammar is malformed, uses something unknown, or is too large to compile.
    #[error("grammar: {0}")]
    Invalid(String),
    /// The model has no token that could end a constrained answer.
    #[error("the tokenizer has no end token")]
    NoEnd,
    /// The vocabulary does not fit the model's logits.
    #[error("{tokens} tokens for {logits} logits")]
    Vocabulary {
        /// Size of the tokenizer's vocabulary.
        tokens: usize,
        /// Length of a row of logits.
        logits: usize,
    },
    /// A token that the grammar does not allow was to be taken.
    #[error("token {token} is not allowed by the grammar here")]
    Token {
        /// The token.
        token: u32,
    },
    /// The automaton gave up: a step needed more than its limits.
    #[error("grammar stopped: {0}")]
    Stopped(String),
}

/// What to constrain to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum GrammarSource {
    /// Text that is JSON and satisfies the schema.
    JsonSchema(Value),
    /// Text that is any JSON object.
    JsonObject,
    /// Text that matches the expression from beginning to end (syntax of the `regex` crate, no look-around).
    Regex(String),
    /// Text of the grammar, in llguidance's variant of Lark.
    Lark(String),
    /// Text of the grammar, in llama.cpp's notation, from the rule `root`.
    Gbnf(String),
}

impl GrammarSource {
    fn check(&self) -> Result<(), GrammarError> {
        let (bytes, depth) = match self {
            Self::JsonSchema(schema) => (json_bytes(schema, 0), json_depth(schema, 0)),
            Self::JsonObject => (0, 0),
            Self::Regex(text) | Self::Lark(text) | Self::Gbnf(text) => (text.len(), bracket_depth(text)),
        };
        if depth > MAX_DEPTH {
            return Err(GrammarError::Depth { depth });
        }
        if bytes > MAX_SOURCE_BYTES {
            return Err(GrammarError::Size { bytes });
        }
        Ok(())
    }

    fn grammar(&self) -> Result<TopLevelGrammar, GrammarError> {
        Ok(match self {
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Self::JsonObject => TopLevelGrammar::from_json_schema(serde_json::json!({"type": "object"})),
            Self::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
            Self::Gbnf(grammar) => TopLevelGrammar::from_lark(gbnf::to_lark(grammar)?),
        })
    }
}

/// Depth of a value, followed no further than just beyond the limit.
fn json_depth(value: &Value, depth: usize) -> usize {
    let below = |value: &Value| if depth > MAX_DEPTH { depth } else { json_depth(value, depth + 1) };
    match value {
        Value::Array(items) => items.iter().map(below).max().unwrap_or(depth),
        Value::Object(fields) => fields.values().map(below).max().unwrap_or(depth),
        _ => depth,
    }
}

/// About as long as the value is when written, followed no deeper than the limit.
fn json_bytes(value: &Value, depth: usize) -> usize {
    if depth > MAX_DEPTH {
        return 0;
    }
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| 1 + json_bytes(item, depth + 1)).sum(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| key.len() + 4 + json_bytes(value, depth + 1)).sum()
        }
        _ => 4,
    }
}

/// Deepest nesting of round, square and curly brackets, escaped ones aside. Brackets in strings count too: a source with
/// that many unclosed ones in its strings is refused for nothing, which is better than compiling one that is that deep.
fn bracket_depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let mut escaped = false;
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The vocabulary in the form that llguidance walks.
struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.tokenizer.encode(text, false).unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}

/// Compiles constraints for one model. Making one takes a moment for large vocabularies; keep it.
pub struct GrammarCompiler {
    factory: ParserFactory,
    size: usize,
    ends: Arc<[u32]>,
}

impl GrammarCompiler {
    /// A compiler for a tokenizer and rows of `logits` logits, which may be more than there are tokens.
    ///
    /// # Errors
    /// No end token, or fewer logits than tokens.
    pub fn new(tokenizer: Arc<Tokenizer>, logits: usize) -> Result<Self, GrammarError> {
        let tokens = tokenizer.vocabulary_size();
        let size = u32::try_from(logits).ok().filter(|_| tokens <= logits);
        let size = size.ok_or(GrammarError::Vocabulary { tokens, logits })?;
        let ends = tokenizer.end_of_generation().to_vec();
        let end = tokenizer.special().eos.or(ends.first().copied()).ok_or(GrammarError::NoEnd)?;
        let words: Vec<Vec<u8>> = (0..size).map(|id| word(&tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(size, end), &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(Vocabulary { tokenizer, trie });
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| GrammarError::Invalid(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, size: logits, ends: ends.into() })
    }

    /// Compiles a constraint, for one stream.
    ///
    /// # Errors
    /// The source is too large, too deep, malformed or not supported.
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        source.check()?;
        let grammar = source.grammar()?;
        let compiled = std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("grammar".to_owned()).stack_size(COMPILER_STACK);
            let work = || self.factory.create_parser(grammar).map_err(|error| first_line(&error.to_string()));
            let thread = builder.spawn_scoped(scope, work).map_err(|error| error.to_string())?;
            thread.join().map_err(|_| "the compiler panicked".to_owned())?
        });
        let parser = compiled.map_err(GrammarError::Invalid)?;
        let mut matcher = Matcher::new(Ok(parser));
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::Invalid(first_line(&error)));
        }
        // A schema with parts that are not implemented compiles with a warning; the constraint would then be looser.
        if let Some(warning) =
            matcher.grammar_warnings().into_iter().find(|warning| warning.contains("WARNING"))
        {
            return Err(GrammarError::Invalid(first_line(&warning)));
        }
        Ok(Grammar { matcher, mask: TokenMask::none(self.size), ends: self.ends.clone(), ended: 0 })
    }
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("GrammarCompiler").field("size", &self.size).finish_non_exhaustive()
    }
}

/// Bytes of a token; control tokens are kept apart from text by a byte that UTF-8 never has.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    match tokenizer.kind(id) {
        Some(TokenKind::Control) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
        _ => bytes.to_vec(),
    }
}

fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 1_000_000,
        max_grammar_size: 250_000,
        max_lexer_states: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().chars().take(300).collect()
}

/// A constraint on the way through one answer.
pub struct Grammar {
    matcher: Matcher,
    mask: TokenMask,
    ends: Arc<[u32]>,
    /// End tokens taken after the automaton had stopped, which it does not take itself.
    ended: usize,
}

impl Grammar {
    /// The tokens allowed next; only end tokens once the text is complete and cannot go on.
    ///
    /// # Errors
    /// The automaton gave up. The stream has to end: there is no mask to continue with.
    pub fn mask(&mut self) -> Result<&TokenMask, GrammarError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| stopped(&error.to_string()))?;
        self.mask.copy_from(allowed.as_slice(), self.mask.size());
        Ok(&self.mask)
    }

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// The grammar does not allow it here, or the automaton gave up.
    pub fn accept(&mut self, token: u32) -> Result<(), GrammarError> {
        if self.is_at_end() && self.ends.contains(&token) {
            self.ended += 1;
            return Ok(());
        }
        if self.accepted_of(&[token])? == 0 {
            return Err(GrammarError::Token { token });
        }
        self.matcher.consume_token(token).map_err(|error| stopped(&error.to_string()))
    }

    /// Whether the text is complete and nothing but an end token can follow.
    fn is_at_end(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    /// How many of `tokens`, from the first on, the grammar would allow one after the other. The state stays as it is, so
    /// a draft can be cut to what is allowed before it is verified.
    ///
    /// # Errors
    /// The automaton gave up.
    pub fn accepted_of(&mut self, tokens: &[u32]) -> Result<usize, GrammarError> {
        let known =
            tokens.iter().position(|&token| token as usize >= self.mask.size()).unwrap_or(tokens.len());
        self.matcher.validate_tokens(&tokens[..known]).map_err(|error| stopped(&error.to_string()))
    }

    /// Takes back the last `count` tokens.
    ///
    /// # Errors
    /// More than were taken.
    pub fn rollback(&mut self, count: usize) -> Result<(), GrammarError> {
        let after_end = self.ended.min(count);
        self.ended -= after_end;
        self.matcher.rollback(count - after_end).map_err(|error| stopped(&error.to_string()))
    }

    /// Whether the text so far is complete, so that an end token is allowed.
    ///
    /// # Errors
    /// The automaton gave up.
    pub fn is_complete(&mut self) -> Result<bool, GrammarError> {
        if self.is_at_end() {
            return Ok(true);
        }
        self.matcher.is_accepting().map_err(|error| stopped(&error.to_string()))
    }

    /// Whether nothing can follow any more, or an end token was taken.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// The same state for another stream.
    #[must_use]
    pub fn fork(&self) -> Self {
        let Self { mask, ends, ended, .. } = self;
        Self { matcher: self.matcher.deep_clone(), mask: mask.clone(), ends: ends.clone(), ended: *ended }
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Grammar").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

fn stopped(message: &str) -> GrammarError {
    GrammarError::Stopped(first_line(message))
}
