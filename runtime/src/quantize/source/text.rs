//! The keys of a GGUF file that hold a checkpoint folder's tokenizer and chat template.

use std::path::Path;

use crate::file::gguf_write::OwnedValue;
use crate::load::{FolderText, TokenizerSource};
use crate::quantize::QuantizeError;
use crate::text::GgufVocabulary;
use crate::text::TokenizerConfig;
use crate::text::to_gguf::{FolderVocabulary, folder_vocabulary};
use crate::text::tokenizer::MAX_JSON_BYTES;

/// The tokenizer and the chat template of a folder in the terms of a GGUF file.
pub(super) struct Text {
    pub(super) vocabulary: GgufVocabulary,
    pub(super) composes_text: bool,
    chat_template: Option<String>,
}

/// The text part of a model with `vocab` rows; `None` where there is none.
pub(super) fn read(source: &TokenizerSource, vocab: usize) -> Result<Option<Text>, QuantizeError> {
    let TokenizerSource::Folder(text) = source else { return Ok(None) };
    let config = match &text.tokenizer_config {
        Some(path) => Some(TokenizerConfig::parse(&read_file(path)?)?),
        None => None,
    };
    let json = read_file(&text.tokenizer)?;
    let FolderVocabulary { vocabulary, composes_text } =
        folder_vocabulary(&json, config.as_ref(), &text.end_of_generation, vocab)?;
    Ok(Some(Text { vocabulary, composes_text, chat_template: chat_template(text, config)? }))
}

fn read_file(path: &Path) -> Result<Vec<u8>, QuantizeError> {
    let failed = |source| QuantizeError::Io { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_JSON_BYTES as u64 {
        let message = format!("{length} bytes; at most {MAX_JSON_BYTES} expected");
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, message)));
    }
    std::fs::read(path).map_err(failed)
}

/// A file of its own goes before the template in the configuration.
fn chat_template(
    text: &FolderText,
    config: Option<TokenizerConfig>,
) -> Result<Option<String>, QuantizeError> {
    let Some(path) = &text.chat_template else { return Ok(config.and_then(|config| config.chat_template)) };
    let failed = |source| QuantizeError::Io { path: path.clone(), source };
    let template = String::from_utf8(read_file(path)?);
    template.map(Some).map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
}

impl Text {
    /// The keys of a GGUF file that hold it.
    pub(super) fn keys(&self) -> Vec<(String, OwnedValue)> {
        let vocabulary = &self.vocabulary;
        let mut keys = Vec::new();
        let mut set = |key: &str, value| keys.push((format!("tokenizer.{key}"), value));
        set("ggml.model", OwnedValue::String(vocabulary.model.clone()));
        set("ggml.pre", OwnedValue::String(vocabulary.pre.clone()));
        set("ggml.tokens", OwnedValue::Strings(vocabulary.tokens.clone()));
        set("ggml.token_type", OwnedValue::I32s(vocabulary.token_types.clone()));
        set("ggml.merges", OwnedValue::Strings(vocabulary.merges.clone()));
        let ids = [
            ("ggml.bos_token_id", vocabulary.bos),
            ("ggml.eos_token_id", vocabulary.eos),
            ("ggml.eot_token_id", vocabulary.eot),
            ("ggml.padding_token_id", vocabulary.pad),
        ];
        for (key, id) in ids {
            if let Some(id) = id {
                set(key, OwnedValue::U32(id));
            }
        }
        if vocabulary.add_bos {
            set("ggml.add_bos_token", OwnedValue::Bool(true));
        }
        if let Some(template) = &self.chat_template {
            set("chat_template", OwnedValue::String(template.clone()));
        }
        keys
    }
}
