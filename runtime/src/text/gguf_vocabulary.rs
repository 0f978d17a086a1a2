//! The tokenizer part of a GGUF file's metadata, as the reader hands it over, and its checks.

use super::tokenizer::{
    AddedToken, MAX_TOKEN_BYTES, MAX_TOKENS, SpecialTokens, TokenKind, TokenizerError, TokenizerParts,
};
use std::collections::HashSet;
use tokenizers::models::bpe::Vocab;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{NormalizerWrapper, normalizers::NFC};

/// How the Qwen2, Qwen3 and Qwen3-Next tokenizers cut text into words before merging.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The same for Qwen3.5 and later: combining marks belong to the letters around them.
const QWEN35_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GGUF does not record normalisation. The released Qwen vocabularies (151 k and 248 k entries) normalise to NFC in
/// their own `tokenizer.json`; small vocabularies trained with the same word pattern do not.
const NORMALISED_FROM_TOKENS: usize = 100_000;

/// `tokenizer.ggml.*` of a GGUF file. The reader fills the fields and leaves the judgement to
/// [`Tokenizer::from_gguf`](super::Tokenizer::from_gguf).
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`; only `gpt2` (byte-level BPE) is supported.
    pub model: String,
    /// `tokenizer.ggml.pre`: the name of the word pattern, `qwen2` or `qwen35`.
    pub pre: String,
    /// `tokenizer.ggml.tokens`, one per id, byte-level characters for normal tokens.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, one per token, or empty if the file has none (all normal then).
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`, best first, each two tokens with one space between.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; absent means no for this family.
    pub add_bos: bool,
}

impl GgufVocabulary {
    pub(super) fn into_parts(self) -> Result<TokenizerParts, TokenizerError> {
        if self.model != "gpt2" {
            return Err(TokenizerError::Unsupported {
                what: "tokenizer.ggml.model",
                found: self.model,
                expected: "gpt2 (byte-level BPE)",
            });
        }
        let words = PATTERNS[pattern_number(&self.pre)? as usize].1;
        let special = self.special_tokens();
        let kinds = self.kinds()?;
        let normalizer = (self.tokens.len() >= NORMALISED_FROM_TOKENS).then(|| NormalizerWrapper::from(NFC));
        let mut added = Vec::new();
        let mut vocabulary = Vocab::with_capacity(self.tokens.len());
        let mut pieces = Vec::with_capacity(self.tokens.len());
        for (id, (token, &kind)) in self.tokens.into_iter().zip(&kinds).enumerate() {
            check_token(id, &token)?;
            if matches!(kind, TokenKind::Control | TokenKind::Added) {
                added.push(AddedToken::exact(id as u32, token.clone(), kind));
            }
            // Two ids may carry the same text (padding rows): the first one is what text encodes to.
            if kind != TokenKind::Unused {
                vocabulary.entry(token.clone()).or_insert(id as u32);
            }
            pieces.push(token);
        }
        // A duplicated added token would be recognised under an arbitrary id; keep the first as above.
        let mut seen = HashSet::new();
        added.retain(|token| seen.insert(token.content.clone()));
        Ok(TokenizerParts {
            merges: split_merges(&self.merges)?,
            vocabulary,
            pieces,
            kinds,
            added,
            normalizer,
            pre_tokenizer: byte_level_words(words)?,
            ignore_merges: false,
            unknown: None,
            special,
            add_bos: self.add_bos,
        })
    }

    fn special_tokens(&self) -> SpecialTokens {
        SpecialTokens { bos: self.bos, eos: self.eos, eot: self.eot, pad: self.pad }
    }

    fn kinds(&self) -> Result<Vec<TokenKind>, TokenizerError> {
        let count = self.tokens.len();
        if count == 0 || count > MAX_TOKENS {
            return Err(TokenizerError::VocabularySize { found: count });
        }
        if self.token_types.is_empty() {
            return Ok(vec![TokenKind::Normal; count]);
        }
        if self.token_types.len() != count {
            return Err(TokenizerError::TokenTypeCount { tokens: count, types: self.token_types.len() });
        }
        let kind = |(id, &code): (usize, &i32)| {
            TokenKind::from_ggml(code).ok_or(TokenizerError::TokenType { id, code })
        };
        self.token_types.iter().enumerate().map(kind).collect()
    }
}

/// Word patterns by their names in GGUF files.
const PATTERNS: [(&str, &str); 2] = [("qwen2", QWEN2_WORDS), ("qwen35", QWEN35_WORDS)];

/// The name of a word pattern in GGUF files.
pub(super) fn pattern_name(pattern: &str) -> Option<&'static str> {
    PATTERNS.iter().find(|row| row.1 == pattern).map(|row| row.0)
}

/// The position of a word pattern in the list of all.
pub(super) fn pattern_number(pre: &str) -> Result<u32, TokenizerError> {
    let number = PATTERNS.iter().position(|row| row.0 == pre).map(|number| number as u32);
    number.ok_or_else(|| TokenizerError::Unsupported {
        what: "tokenizer.ggml.pre",
        found: pre.to_owned(),
        expected: "qwen2 or qwen35",
    })
}

/// How a word pattern, by its position in the list of all, cuts text.
pub(super) fn numbered_words(number: u32) -> Option<Result<PreTokenizerWrapper, TokenizerError>> {
    PATTERNS.get(number as usize).map(|row| byte_level_words(row.1))
}

fn byte_level_words(pattern: &str) -> Result<PreTokenizerWrapper, TokenizerError> {
    let split = Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
        .map_err(|error| TokenizerError::Library(error.to_string()))?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
}

pub(super) fn check_token(id: usize, token: &str) -> Result<(), TokenizerError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenizerError::TokenLength { id, bytes: token.len() });
    }
    Ok(())
}

/// `"a b"` to `("a", "b")`: byte-level pieces contain no space, so there is exactly one.
pub(super) fn split_merge(index: usize, merge: &str) -> Result<(String, String), TokenizerError> {
    match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left.to_owned(), right.to_owned()))
        }
        _ => Err(TokenizerError::MergeForm { index, merge: merge.chars().take(64).collect() }),
    }
}

fn split_merges(merges: &[String]) -> Result<Vec<(String, String)>, TokenizerError> {
    merges.iter().enumerate().map(|(index, merge)| split_merge(index, merge)).collect()
}
