//! Reading `tokenizer.json` and `tokenizer_config.json` with bounds, into the parts a tokenizer is made of.
//!
//! Only what a byte-level BPE tokenizer needs is let through to the `tokenizers` crate: a list of component types
//! decides, so that parts with a history of trouble on hostile input are never built.

use super::gguf_vocabulary::{check_token, split_merge};
use super::tokenizer::{
    AddedToken, MAX_JSON_BYTES, MAX_TOKENS, SpecialTokens, TokenKind, TokenizerError, TokenizerParts,
};
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::fmt;
use tokenizers::models::bpe::Vocab;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

/// Longest word pattern, and most components in a sequence: real files have 200 bytes and two.
const MAX_PATTERN_BYTES: usize = 4096;
const MAX_COMPONENTS: usize = 16;

/// What `tokenizer_config.json` adds: which tokens have which role, and the chat template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerConfig {
    /// Text of the beginning-of-text token.
    pub bos_token: Option<String>,
    /// Text of the end-of-text token.
    pub eos_token: Option<String>,
    /// Text of the padding token.
    pub pad_token: Option<String>,
    /// Whether every text starts with the beginning-of-text token.
    pub add_bos_token: bool,
    /// Source of the chat template (the one named `default` if there are several).
    pub chat_template: Option<String>,
}

impl TokenizerConfig {
    /// Parses the file.
    ///
    /// # Errors
    /// Not JSON, or a field of the wrong type.
    pub fn parse(json: &[u8]) -> Result<Self, TokenizerError> {
        check_size(json)?;
        let raw: RawConfig =
            serde_json::from_slice(json).map_err(|error| json_error("tokenizer_config.json", &error))?;
        Ok(Self {
            bos_token: raw.bos_token.map(TokenText::into_text),
            eos_token: raw.eos_token.map(TokenText::into_text),
            pad_token: raw.pad_token.map(TokenText::into_text),
            add_bos_token: raw.add_bos_token.unwrap_or(false),
            chat_template: raw.chat_template.and_then(ConfigTemplate::into_default),
        })
    }
}

#[derive(Deserialize)]
struct RawConfig {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    pad_token: Option<TokenText>,
    add_bos_token: Option<bool>,
    chat_template: Option<ConfigTemplate>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Text(String),
    Token { content: String },
}

impl TokenText {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Token { content: text } => text,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ConfigTemplate {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl ConfigTemplate {
    fn into_default(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(list) => {
                list.into_iter().find(|named| named.name == "default").map(|named| named.template)
            }
        }
    }
}

#[derive(Deserialize)]
struct RawTokenizer {
    #[serde(default)]
    added_tokens: Vec<RawAddedToken>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    model: RawModel,
}

#[derive(Deserialize)]
struct RawAddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct RawModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: RawVocabulary,
    #[serde(default)]
    merges: Vec<RawMerge>,
}

/// Entries in file order, at most one more than allowed.
struct RawVocabulary(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for RawVocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawVocabulary;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map from token to id")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawVocabulary, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                    if entries.len() > MAX_TOKENS {
                        return Err(de::Error::custom(format_args!("more than {MAX_TOKENS} tokens")));
                    }
                }
                Ok(RawVocabulary(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// `"a b"` (older files) or `["a", "b"]`.
enum RawMerge {
    Joined(String),
    Pair(String, String),
}

impl<'de> Deserialize<'de> for RawMerge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Merge;
        impl<'de> Visitor<'de> for Merge {
            type Value = RawMerge;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("two pieces, as a pair or separated by a space")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawMerge, E> {
                Ok(RawMerge::Joined(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<RawMerge, A::Error> {
                let mut piece =
                    |place| sequence.next_element()?.ok_or_else(|| de::Error::invalid_length(place, &Merge));
                Ok(RawMerge::Pair(piece(0)?, piece(1)?))
            }
        }
        deserializer.deserialize_any(Merge)
    }
}

/// Parses and checks `tokenizer.json`.
pub(super) fn parse(json: &[u8], config: Option<&TokenizerConfig>) -> Result<TokenizerParts, TokenizerError> {
    check_size(json)?;
    let raw: RawTokenizer =
        serde_json::from_slice(json).map_err(|error| json_error("tokenizer.json", &error))?;
    check_model(&raw.model)?;
    let normalizer = raw.normalizer.filter(|value| !value.is_null()).map(read_normalizer).transpose()?;
    let pre_tokenizer = read_pre_tokenizer(raw.pre_tokenizer.unwrap_or(Value::Null))?;
    let mut table = Table::default();
    for (text, id) in raw.model.vocab.0 {
        table.insert(text, id, TokenKind::Normal)?;
    }
    let mut added = Vec::with_capacity(raw.added_tokens.len());
    for token in raw.added_tokens {
        let kind = if token.special { TokenKind::Control } else { TokenKind::Added };
        table.insert(token.content.clone(), token.id, kind)?;
        added.push(token.into_added());
    }
    let merge = |(index, merge)| match merge {
        RawMerge::Joined(text) => split_merge(index, &text),
        RawMerge::Pair(left, right) => Ok((left, right)),
    };
    let merges = raw.model.merges.into_iter().enumerate().map(merge).collect::<Result<_, _>>()?;
    let no_config = TokenizerConfig::default();
    let config = config.unwrap_or(&no_config);
    let special = SpecialTokens {
        bos: table.role("bos_token", config.bos_token.as_ref())?,
        eos: table.role("eos_token", config.eos_token.as_ref())?,
        eot: None,
        pad: table.role("pad_token", config.pad_token.as_ref())?,
    };
    let add_bos = config.add_bos_token || post_processor_adds_bos(raw.post_processor.as_ref(), config);
    if table.pieces.is_empty() {
        return Err(TokenizerError::VocabularySize { found: 0 });
    }
    Ok(TokenizerParts {
        vocabulary: table.ids,
        pieces: table.pieces,
        kinds: table.kinds,
        merges,
        added,
        normalizer,
        pre_tokenizer,
        ignore_merges: raw.model.ignore_merges,
        unknown: raw.model.unk_token.filter(|token| !token.is_empty()),
        special,
        add_bos,
    })
}

/// Tokens by text and by id, kept consistent with each other.
#[derive(Default)]
struct Table {
    ids: Vocab,
    pieces: Vec<String>,
    kinds: Vec<TokenKind>,
}

impl Table {
    fn insert(&mut self, text: String, id: u32, kind: TokenKind) -> Result<(), TokenizerError> {
        let place = id as usize;
        if place >= MAX_TOKENS {
            return Err(TokenizerError::VocabularySize { found: place.saturating_add(1) });
        }
        check_token(place, &text)?;
        if place >= self.pieces.len() {
            self.pieces.resize(place + 1, String::new());
            self.kinds.resize(place + 1, TokenKind::Unused);
        }
        let taken = self.kinds[place] != TokenKind::Unused;
        let elsewhere = self.ids.get(&text).is_some_and(|&other| other != id);
        if elsewhere || taken && self.pieces[place] != text {
            return Err(TokenizerError::DuplicateId { id, first: self.pieces[place].clone(), second: text });
        }
        self.pieces[place].clone_from(&text);
        self.kinds[place] = kind;
        self.ids.insert(text, id);
        Ok(())
    }

    fn role(&self, name: &'static str, text: Option<&String>) -> Result<Option<u32>, TokenizerError> {
        let Some(text) = text else { return Ok(None) };
        match self.ids.get(text) {
            Some(&id) => Ok(Some(id)),
            None => Err(TokenizerError::SpecialText { name, token: text.clone() }),
        }
    }
}

impl RawAddedToken {
    fn into_added(self) -> AddedToken {
        let rule = tokenizers::AddedToken {
            content: self.content.clone(),
            single_word: self.single_word,
            lstrip: self.lstrip,
            rstrip: self.rstrip,
            normalized: self.normalized,
            special: self.special,
        };
        AddedToken { id: self.id, content: self.content, rule }
    }
}

fn check_size(json: &[u8]) -> Result<(), TokenizerError> {
    if json.len() > MAX_JSON_BYTES {
        return Err(TokenizerError::FileSize { bytes: json.len() });
    }
    Ok(())
}

fn json_error(file: &'static str, error: &serde_json::Error) -> TokenizerError {
    TokenizerError::Json { file, message: error.to_string() }
}

fn check_model(model: &RawModel) -> Result<(), TokenizerError> {
    let unsupported =
        |what, found: String| Err(TokenizerError::Unsupported { what, found, expected: "byte-level BPE" });
    if let Some(kind) = model.kind.as_ref().filter(|kind| *kind != "BPE") {
        return unsupported("model.type", kind.clone());
    }
    if let Some(dropout) = model.dropout.filter(|&dropout| dropout != 0.0) {
        return unsupported("model.dropout", dropout.to_string());
    }
    if model.byte_fallback {
        return unsupported("model.byte_fallback", "true".to_owned());
    }
    let texts = [
        ("model.continuing_subword_prefix", &model.continuing_subword_prefix),
        ("model.end_of_word_suffix", &model.end_of_word_suffix),
    ];
    for (what, text) in texts {
        if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
            return unsupported(what, text.clone());
        }
    }
    Ok(())
}

/// The components of a possibly nested sequence, flattened, as long as there are few of them.
fn components<'v>(
    value: &'v Value,
    list: &'static str,
    flat: &mut Vec<&'v Value>,
) -> Result<(), TokenizerError> {
    match value.get(list).and_then(Value::as_array) {
        Some(parts) => parts.iter().try_for_each(|part| components(part, list, flat))?,
        None => flat.push(value),
    }
    if flat.len() > MAX_COMPONENTS {
        return Err(TokenizerError::Unsupported {
            what: list,
            found: format!("more than {MAX_COMPONENTS} components"),
            expected: "a short sequence",
        });
    }
    Ok(())
}

fn type_name(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("")
}

fn read_normalizer(value: Value) -> Result<NormalizerWrapper, TokenizerError> {
    let mut flat = Vec::new();
    components(&value, "normalizers", &mut flat)?;
    if let Some(part) =
        flat.iter().find(|part| !matches!(type_name(part), "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase"))
    {
        return Err(TokenizerError::Unsupported {
            what: "normalizer",
            found: type_name(part).to_owned(),
            expected: "NFC, NFD, NFKC, NFKD or Lowercase",
        });
    }
    serde_json::from_value(value).map_err(|error| json_error("tokenizer.json, normalizer", &error))
}

fn read_pre_tokenizer(value: Value) -> Result<PreTokenizerWrapper, TokenizerError> {
    let mut flat = Vec::new();
    components(&value, "pretokenizers", &mut flat)?;
    for part in &flat {
        let fits = match type_name(part) {
            "ByteLevel" | "Digits" => true,
            "Split" => pattern_bytes(part) <= MAX_PATTERN_BYTES,
            _ => false,
        };
        if !fits {
            return Err(TokenizerError::Unsupported {
                what: "pre_tokenizer",
                found: type_name(part).to_owned(),
                expected: "Split (with a pattern of at most 4096 bytes), Digits or ByteLevel",
            });
        }
    }
    if !flat.iter().any(|part| type_name(part) == "ByteLevel") {
        return Err(TokenizerError::Unsupported {
            what: "pre_tokenizer",
            found: "no ByteLevel component".to_owned(),
            expected: "byte-level BPE",
        });
    }
    serde_json::from_value(value).map_err(|error| json_error("tokenizer.json, pre_tokenizer", &error))
}

fn pattern_bytes(split: &Value) -> usize {
    let pattern = split.get("pattern");
    let text = |kind| pattern.and_then(|pattern| pattern.get(kind)).and_then(Value::as_str);
    text("Regex").or_else(|| text("String")).map_or(usize::MAX, str::len)
}

/// Older files say "starts with the beginning-of-text token" by a template of the post-processor.
fn post_processor_adds_bos(value: Option<&Value>, config: &TokenizerConfig) -> bool {
    let first = value.and_then(|value| value.get("single")).and_then(|single| single.get(0));
    let id = first.and_then(|part| part.get("SpecialToken")).and_then(|token| token.get("id"));
    match (id.and_then(Value::as_str), &config.bos_token) {
        (Some(id), Some(bos)) => id == bos,
        _ => false,
    }
}
