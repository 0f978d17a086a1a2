//! Where a model's tokenizer and chat template come from.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::LoadError;
use super::open::read_json;
use crate::file::gguf::{Gguf, GgufError, Value as GgufValue, ValueType};
use crate::file::packed::Packed;
use crate::text::{GgufVocabulary, TokenTables};

/// Where a model's tokenizer and chat template come from.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// The metadata of a GGUF file.
    Gguf(Box<GgufText>),
    /// The tables of a packed file.
    Tables(Box<TablesText>),
    /// Files beside the weights.
    Folder(FolderText),
    /// The model came without: it can only be given token ids.
    Absent,
}

/// Tokenizer and chat template of a GGUF file.
#[derive(Clone, Debug)]
pub struct GgufText {
    /// `tokenizer.ggml.*`.
    pub vocabulary: GgufVocabulary,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
    /// Further templates by name (`tokenizer.chat_template.NAME`), such as `tool_use`.
    pub named_templates: Vec<(String, String)>,
}

/// Tokenizer and chat template of a packed file.
#[derive(Clone, Debug)]
pub struct TablesText {
    /// The tables, where they lie.
    pub tables: TokenTables,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
    /// Further templates by name (`tokenizer.chat_template.NAME`), such as `tool_use`.
    pub named_templates: Vec<(String, String)>,
}

/// Tokenizer files of a checkpoint folder. Those that exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderText {
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<PathBuf>,
    /// `chat_template.jinja`; where it exists it goes before the template in `tokenizer_config.json`.
    pub chat_template: Option<PathBuf>,
    /// `generation_config.json`.
    pub generation_config: Option<PathBuf>,
    /// Ids that end a text: `eos_token_id` of `generation_config.json`, else of `config.json`.
    pub end_of_generation: Vec<u32>,
}

/// Names under which templates are listed.
const TEMPLATE_KEY: &str = "tokenizer.chat_template";
/// Most named templates.
const MAX_TEMPLATES: usize = 64;

impl TokenizerSource {
    /// The tokenizer of a GGUF file with `vocab` embeddings.
    pub(super) fn of_gguf(path: &Path, gguf: &Gguf, vocab: usize) -> Result<TokenizerSource, LoadError> {
        let failed = |source| LoadError::Gguf { path: path.to_owned(), source };
        let Some(text) = gguf_text(gguf).map_err(failed)? else { return Ok(TokenizerSource::Absent) };
        let ids = [
            ("tokenizer.ggml.bos_token_id", text.vocabulary.bos),
            ("tokenizer.ggml.eos_token_id", text.vocabulary.eos),
            ("tokenizer.ggml.eot_token_id", text.vocabulary.eot),
            ("tokenizer.ggml.padding_token_id", text.vocabulary.pad),
        ];
        for (key, id) in ids {
            check_id(path, key, id.map(i128::from), vocab)?;
        }
        Ok(TokenizerSource::Gguf(Box::new(text)))
    }

    /// The tokenizer of a packed file with `vocab` embeddings.
    pub(super) fn of_packed(
        path: &Path,
        packed: &Packed,
        vocab: usize,
    ) -> Result<TokenizerSource, LoadError> {
        let Some(range) = packed.tokenizer() else { return Ok(TokenizerSource::Absent) };
        let tables = TokenTables::open(packed.source().clone(), range)
            .map_err(|source| LoadError::Tables { path: path.to_owned(), source })?;
        if tables.tokens() != vocab {
            return Err(LoadError::Tokens { path: path.to_owned(), found: tables.tokens(), vocab });
        }
        let failed = |source| LoadError::Gguf { path: path.to_owned(), source };
        let chat_template = packed.keys().text(TEMPLATE_KEY).map_err(failed)?.map(str::to_owned);
        let named_templates = named_templates(packed.keys()).map_err(failed)?;
        Ok(TokenizerSource::Tables(Box::new(TablesText { tables, chat_template, named_templates })))
    }

    /// The tokenizer of a checkpoint folder with `vocab` embeddings.
    pub(super) fn of_folder(
        folder: &Path,
        config: &Value,
        vocab: usize,
    ) -> Result<TokenizerSource, LoadError> {
        let existing = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        let Some(tokenizer) = existing("tokenizer.json") else { return Ok(TokenizerSource::Absent) };
        let generation_config = existing("generation_config.json");
        let end_of_generation = match &generation_config {
            Some(path) => match end_ids(path, &read_json(path)?, vocab)? {
                ids if ids.is_empty() => config_end_ids(folder, config, vocab)?,
                ids => ids,
            },
            None => config_end_ids(folder, config, vocab)?,
        };
        Ok(TokenizerSource::Folder(FolderText {
            tokenizer,
            tokenizer_config: existing("tokenizer_config.json"),
            chat_template: existing("chat_template.jinja"),
            generation_config,
            end_of_generation,
        }))
    }
}

fn gguf_text(gguf: &Gguf) -> Result<Option<GgufText>, GgufError> {
    let Some(tokens) = gguf.texts("tokenizer.ggml.tokens")? else { return Ok(None) };
    let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let text = |key| gguf.text(key).map(|text| text.unwrap_or_default().to_owned());
    let vocabulary = GgufVocabulary {
        model: text("tokenizer.ggml.model")?,
        pre: text("tokenizer.ggml.pre")?,
        tokens: owned(tokens),
        token_types: token_types(gguf)?,
        merges: owned(gguf.texts("tokenizer.ggml.merges")?.unwrap_or_default()),
        bos: token_id(gguf, "tokenizer.ggml.bos_token_id")?,
        eos: token_id(gguf, "tokenizer.ggml.eos_token_id")?,
        eot: token_id(gguf, "tokenizer.ggml.eot_token_id")?,
        pad: token_id(gguf, "tokenizer.ggml.padding_token_id")?,
        add_bos: gguf.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(false),
    };
    let chat_template = gguf.text(TEMPLATE_KEY)?.map(str::to_owned);
    Ok(Some(GgufText { vocabulary, chat_template, named_templates: named_templates(gguf)? }))
}

fn token_types(gguf: &Gguf) -> Result<Vec<i32>, GgufError> {
    let Some(types) = gguf.array("tokenizer.ggml.token_type", ValueType::I32)? else { return Ok(Vec::new()) };
    let code = |value| match value {
        GgufValue::I32(code) => Some(code),
        _ => None,
    };
    Ok(types.iter().filter_map(code).collect())
}

/// A token id; `u32::MAX` and -1 are how some files say that there is none.
fn token_id(gguf: &Gguf, key: &str) -> Result<Option<u32>, GgufError> {
    match gguf.integer(key)? {
        None | Some(-1) => Ok(None),
        Some(id) if id == i128::from(u32::MAX) => Ok(None),
        Some(id) => match u32::try_from(id) {
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(GgufError::Mistyped {
                key: key.to_owned(),
                found: id.to_string(),
                expected: "a token id",
            }),
        },
    }
}

fn named_templates(gguf: &Gguf) -> Result<Vec<(String, String)>, GgufError> {
    let mut templates = Vec::new();
    for key in gguf.keys() {
        let name = key.strip_prefix(TEMPLATE_KEY).and_then(|rest| rest.strip_prefix('.'));
        if let Some(name) = name
            && let Some(template) = gguf.text(key)?
            && templates.len() < MAX_TEMPLATES
        {
            templates.push((name.to_owned(), template.to_owned()));
        }
    }
    Ok(templates)
}

/// `eos_token_id` of `config.json`: that of the text part goes first.
fn config_end_ids(folder: &Path, config: &Value, vocab: usize) -> Result<Vec<u32>, LoadError> {
    let path = folder.join("config.json");
    for part in [config.get("text_config"), Some(config)].into_iter().flatten() {
        let ids = end_ids(&path, part, vocab)?;
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    Ok(Vec::new())
}

/// `eos_token_id` of a configuration: one id, several, or none.
fn end_ids(path: &Path, config: &Value, vocab: usize) -> Result<Vec<u32>, LoadError> {
    const KEY: &str = "eos_token_id";
    let listed: Vec<&Value> = match config.get(KEY) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().collect(),
        Some(id) => vec![id],
    };
    let id_of = |value: &Value| {
        let message = || format!("`{KEY}` is {value}; a token id or an array of them expected");
        let id =
            value.as_i64().ok_or_else(|| LoadError::Json { path: path.to_owned(), message: message() })?;
        check_id(path, KEY, Some(id.into()), vocab)?;
        u32::try_from(id).map_err(|_| LoadError::Json { path: path.to_owned(), message: message() })
    };
    listed.into_iter().map(id_of).collect()
}

fn check_id(path: &Path, key: &str, id: Option<i128>, vocab: usize) -> Result<(), LoadError> {
    match id {
        Some(found) if !(0..vocab as i128).contains(&found) => {
            Err(LoadError::TokenId { path: path.to_owned(), key: key.to_owned(), found, vocab })
        }
        _ => Ok(()),
    }
}
