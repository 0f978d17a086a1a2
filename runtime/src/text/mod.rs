//! Text on its way in and out of a model: tokens, streamed bytes, chat templates, tool calls and reasoning.

pub mod detok;
pub mod gguf_vocabulary;
pub mod reasoning;
pub mod tables;
pub mod template;
pub(crate) mod to_gguf;
pub mod tokenizer;
mod tokenizer_json;
pub mod tool_calls;

pub use detok::Detokenizer;
pub use gguf_vocabulary::GgufVocabulary;
pub use tables::{TablesError, TokenTables};
pub use template::{ChatInput, ChatTemplate, TemplateError, TemplateSources, TemplateTokens};
pub use tokenizer::{SpecialTokens, TokenKind, Tokenizer, TokenizerError};
pub use tokenizer_json::TokenizerConfig;
