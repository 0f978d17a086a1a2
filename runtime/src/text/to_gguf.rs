//! A tokenizer of a checkpoint folder in the terms of a GGUF file.
//!
//! GGUF names a word pattern instead of holding it, and knows nothing of whitespace rules around added tokens or of
//! Unicode normalisation: what it cannot express is refused, but for composition (NFC), which readers infer.

use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use super::gguf_vocabulary::{GgufVocabulary, pattern_name};
use super::tokenizer::{TokenKind, TokenizerError, TokenizerParts};
use super::tokenizer_json::{self, TokenizerConfig};

/// A tokenizer in the terms of a GGUF file.
pub(crate) struct FolderVocabulary {
    pub(crate) vocabulary: GgufVocabulary,
    /// Whether text is brought to Unicode's composed form first.
    pub(crate) composes_text: bool,
}

/// From `tokenizer.json`: `ends` are ids that end a text, the vocabulary is filled up to `rows`.
pub(crate) fn folder_vocabulary(
    json: &[u8],
    config: Option<&TokenizerConfig>,
    ends: &[u32],
    rows: usize,
) -> Result<FolderVocabulary, TokenizerError> {
    let mut parts = tokenizer_json::parse(json, config)?;
    let composes_text = match &parts.normalizer {
        None => false,
        Some(NormalizerWrapper::NFC(_)) => true,
        Some(other) => return Err(inexpressible("normalizer", &format!("{other:?}"), "NFC or none")),
    };
    if parts.ignore_merges {
        return Err(inexpressible("model.ignore_merges", "true", "false"));
    }
    if let Some(unknown) = &parts.unknown {
        return Err(inexpressible("model.unk_token", unknown, "none"));
    }
    if parts.pieces.len() > rows {
        return Err(TokenizerError::VocabularySize { found: parts.pieces.len() });
    }
    let pre = word_pattern(&parts.pre_tokenizer)?;
    let (tokens, token_types) = tokens(&mut parts, rows);
    // The roles beyond `eos` that a GGUF file has room for: one more end of text.
    let eos = parts.special.eos.or(ends.first().copied());
    let eot = parts.special.eot.or(ends.iter().copied().find(|&id| Some(id) != eos));
    let vocabulary = GgufVocabulary {
        model: "gpt2".to_owned(),
        pre: pre.to_owned(),
        tokens,
        token_types,
        merges: parts.merges.iter().map(|(left, right)| format!("{left} {right}")).collect(),
        bos: parts.special.bos,
        eos,
        eot,
        pad: parts.special.pad,
        add_bos: parts.add_bos,
    };
    Ok(FolderVocabulary { vocabulary, composes_text })
}

fn inexpressible(what: &'static str, found: &str, expected: &'static str) -> TokenizerError {
    TokenizerError::Unsupported { what, found: found.to_owned(), expected }
}

/// The name of the word pattern.
fn word_pattern(pre_tokenizer: &PreTokenizerWrapper) -> Result<&'static str, TokenizerError> {
    let json =
        serde_json::to_value(pre_tokenizer).map_err(|error| TokenizerError::Library(error.to_string()))?;
    let mut patterns = Vec::new();
    collect_patterns(&json, &mut patterns);
    let [pattern] = patterns[..] else {
        let found = format!("{} patterns", patterns.len());
        return Err(inexpressible("pre_tokenizer", &found, "one word pattern"));
    };
    pattern_name(pattern)
        .ok_or_else(|| inexpressible("pre_tokenizer", pattern, "the word pattern of Qwen2 or Qwen3.5"))
}

/// Every `"Regex"` of the components; their nesting was bounded when they were read.
fn collect_patterns<'v>(value: &'v serde_json::Value, found: &mut Vec<&'v str>) {
    match value {
        serde_json::Value::Object(fields) => {
            found.extend(fields.get("Regex").and_then(|regex| regex.as_str()));
            fields.values().for_each(|field| collect_patterns(field, found));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_patterns(item, found)),
        _ => {}
    }
}

/// Texts and types by id, padded with unused rows.
fn tokens(parts: &mut TokenizerParts, rows: usize) -> (Vec<String>, Vec<i32>) {
    let mut tokens = std::mem::take(&mut parts.pieces);
    let mut kinds = parts.kinds.clone();
    tokens.resize(rows, String::new());
    kinds.resize(rows, TokenKind::Unused);
    for (id, (token, kind)) in tokens.iter_mut().zip(&kinds).enumerate() {
        if *kind == TokenKind::Unused {
            *token = format!("[PAD{id}]");
        }
    }
    (tokens, kinds.into_iter().map(TokenKind::to_ggml).collect())
}
