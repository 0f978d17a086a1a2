//! The tokenizer: byte-level BPE, built from `tokenizer.json` or from GGUF metadata.
//!
//! Merging, splitting and matching of added tokens are the `tokenizers` crate's; this type owns what that crate
//! leaves open: bounds on hostile files, the exact bytes of every token, and whether control tokens are recognised
//! in text (`parse_special`), which must not happen in text that a stranger wrote.

use super::gguf_vocabulary::{GgufVocabulary, numbered_words};
use super::tables::TokenTables;
use super::tokenizer_json::{self, TokenizerConfig};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tokenizers::models::bpe::{BPE, BpeTrainer, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::tokenizer::{Model, Token};
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

/// Most tokens a vocabulary may have. The largest in use has 262 k.
pub const MAX_TOKENS: usize = 1 << 20;
/// Longest text of one token, in bytes as written in the file.
pub const MAX_TOKEN_BYTES: usize = 4096;
/// Longest text of all tokens together.
pub const MAX_TOTAL_BYTES: usize = 64 << 20;
/// Largest `tokenizer.json` accepted.
pub const MAX_JSON_BYTES: usize = 128 << 20;

/// Why a tokenizer was refused, or a text could not be encoded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file is larger than any tokenizer is.
    #[error("tokenizer.json has {bytes} bytes, more than the limit of {MAX_JSON_BYTES}")]
    FileSize {
        /// Size of the file.
        bytes: usize,
    },
    /// Not JSON, or not of the form the format prescribes.
    #[error("{file}: {message}")]
    Json {
        /// Which file.
        file: &'static str,
        /// Parser's message with line and column.
        message: String,
    },
    /// A kind of tokenizer that this runtime does not implement.
    #[error("{what} is {found:?}, expected {expected}")]
    Unsupported {
        /// Key or field.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What is implemented.
        expected: &'static str,
    },
    /// No tokens, or more than [`MAX_TOKENS`].
    #[error("vocabulary of {found} tokens, expected 1 to {MAX_TOKENS}")]
    VocabularySize {
        /// Number of tokens (or largest id plus one).
        found: usize,
    },
    /// A token's text is longer than [`MAX_TOKEN_BYTES`].
    #[error("token {id} has {bytes} bytes of text, more than the limit of {MAX_TOKEN_BYTES}")]
    TokenLength {
        /// The token.
        id: usize,
        /// Length of its text.
        bytes: usize,
    },
    /// All tokens together are longer than [`MAX_TOTAL_BYTES`].
    #[error("the tokens have more than {MAX_TOTAL_BYTES} bytes of text together")]
    TotalBytes,
    /// Token list and type list differ in length.
    #[error("{tokens} tokens but {types} token types")]
    TokenTypeCount {
        /// Number of tokens.
        tokens: usize,
        /// Number of types.
        types: usize,
    },
    /// A type code outside 1 to 6.
    #[error("token {id} has type {code}, expected 1 to 6")]
    TokenType {
        /// The token.
        id: usize,
        /// Its code.
        code: i32,
    },
    /// Two entries of the vocabulary claim one id.
    #[error("token id {id} is given to both {first:?} and {second:?}")]
    DuplicateId {
        /// The id.
        id: u32,
        /// Token that has it.
        first: String,
        /// Token that claims it too.
        second: String,
    },
    /// A merge that is not two pieces separated by one space.
    #[error("merge {index} is {merge:?}, expected two pieces separated by one space")]
    MergeForm {
        /// Position in the list.
        index: usize,
        /// Its text (shortened).
        merge: String,
    },
    /// A merge whose parts or result are no tokens.
    #[error("merge {index} names {piece:?}, which is not in the vocabulary")]
    MergePiece {
        /// Position in the list.
        index: usize,
        /// The unknown piece (shortened).
        piece: String,
    },
    /// A special id outside the vocabulary.
    #[error("{name} token is {id}, outside the vocabulary of {size}")]
    SpecialId {
        /// `bos`, `eos`, `eot` or `pad`.
        name: &'static str,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        size: usize,
    },
    /// A special token that the configuration names and the vocabulary lacks.
    #[error("{name} is {token:?}, which is not in the vocabulary")]
    SpecialText {
        /// Key of the configuration.
        name: &'static str,
        /// Its text.
        token: String,
    },
    /// The `tokenizers` crate refused a part or failed on a text.
    #[error("tokenizer: {0}")]
    Library(String),
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// Steers the model (turn markers, end of text); matched in text only on request.
    Control,
    /// Added after training, always matched in text as a whole.
    Added,
    /// A row without meaning; never produced by encoding, decodes to nothing.
    Unused,
}

impl TokenKind {
    /// From GGUF's `tokenizer.ggml.token_type`; `None` for codes that do not exist.
    pub(super) fn from_ggml(code: i32) -> Option<Self> {
        match code {
            1 | 2 | 6 => Some(Self::Normal),
            3 => Some(Self::Control),
            4 => Some(Self::Added),
            5 => Some(Self::Unused),
            _ => None,
        }
    }

    /// The code in GGUF's `tokenizer.ggml.token_type`.
    pub(super) fn to_ggml(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Control => 3,
            Self::Added => 4,
            Self::Unused => 5,
        }
    }
}

/// Ids with a role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of text.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// End of turn.
    pub eot: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
}

/// A token that is matched in text as a whole, before words are cut.
#[derive(Debug, Clone)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    pub(super) rule: tokenizers::AddedToken,
}

impl AddedToken {
    /// Matched exactly as written, without whitespace rules: what GGUF can express.
    pub(super) fn exact(id: u32, content: String, kind: TokenKind) -> Self {
        let rule =
            tokenizers::AddedToken::from(content.clone(), kind == TokenKind::Control).normalized(false);
        Self { id, content, rule }
    }
}

/// Everything a tokenizer is made of, whichever file it came from.
pub(super) struct TokenizerParts {
    /// Text (byte-level) to id, without unused rows.
    pub(super) vocabulary: Vocab,
    /// Text by id; the empty string for ids that the file leaves out.
    pub(super) pieces: Vec<String>,
    pub(super) kinds: Vec<TokenKind>,
    pub(super) merges: Vec<(String, String)>,
    pub(super) added: Vec<AddedToken>,
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: PreTokenizerWrapper,
    pub(super) ignore_merges: bool,
    /// What stands for a byte whose character the vocabulary lacks; such a byte is dropped without it.
    pub(super) unknown: Option<String>,
    pub(super) special: SpecialTokens,
    pub(super) add_bos: bool,
}

/// The merging of words. Two encoders share one vocabulary, so it is behind a reference count.
#[derive(Clone)]
enum SharedBpe {
    /// Built in memory.
    Built(Arc<BPE>),
    /// Tables of a packed file, where they lie.
    Tables(Arc<TokenTables>),
}

impl Model for SharedBpe {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        match self {
            Self::Built(model) => model.tokenize(sequence),
            Self::Tables(tables) => {
                // Nothing here reads the texts of an encoding, so none are made.
                let token = |(id, start, end)| Token::new(id, String::new(), (start, end));
                Ok(tables.merge_word(sequence).into_iter().map(token).collect())
            }
        }
    }
    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Self::Built(model) => model.token_to_id(token),
            Self::Tables(tables) => tables.id(token),
        }
    }
    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Built(model) => model.id_to_token(id),
            Self::Tables(tables) => tables.text(id).map(str::to_owned),
        }
    }
    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Self::Built(model) => Model::get_vocab(&**model),
            Self::Tables(tables) => {
                let texts =
                    (0..tables.tokens() as u32).filter_map(|id| Some((tables.text(id)?.to_owned(), id)));
                texts.collect()
            }
        }
    }
    fn get_vocab_size(&self) -> usize {
        match self {
            Self::Built(model) => model.get_vocab_size(),
            Self::Tables(tables) => tables.tokens(),
        }
    }
    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        match self {
            Self::Built(model) => model.save(folder, prefix),
            Self::Tables(_) => Err("tables are not saved in another form".into()),
        }
    }
    fn get_trainer(&self) -> BpeTrainer {
        match self {
            Self::Built(model) => model.get_trainer(),
            Self::Tables(_) => BpeTrainer::default(),
        }
    }
}

type Encoder =
    TokenizerImpl<SharedBpe, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Text to token ids and back. Cheap to share by reference; all methods take `&self` and may run on any thread.
///
/// ```
/// # use millpond::model::{LoadOptions, Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");
/// # let model = Model::load(path.as_ref(), &LoadOptions::default())?;
/// let tokenizer = model.tokenizer.as_ref().ok_or("the model has no tokenizer")?;
/// let ids = tokenizer.encode("The old mill", false)?;
/// assert_eq!(tokenizer.decode(&ids, true), "The old mill");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Tokenizer {
    /// Matches control tokens in the text.
    parsing: Encoder,
    /// Encodes the text of control tokens like any other text.
    plain: Encoder,
    /// Bytes of all tokens, one after the other; token `id` is `bytes[ends[id - 1]..ends[id]]`.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    special: SpecialTokens,
    end_of_generation: Vec<u32>,
    add_bos: bool,
}

impl Tokenizer {
    /// From a Hugging Face `tokenizer.json`, with the roles of special tokens from `tokenizer_config.json`.
    ///
    /// # Errors
    /// A file that is not a byte-level BPE tokenizer, exceeds a cap, or contradicts itself.
    pub fn from_json(json: &[u8], config: Option<&TokenizerConfig>) -> Result<Self, TokenizerError> {
        Self::build(tokenizer_json::parse(json, config)?)
    }

    /// From GGUF metadata.
    ///
    /// # Errors
    /// As [`Tokenizer::from_json`]; an unknown `tokenizer.ggml.pre` is an error, since a guess would silently
    /// tokenise differently from the model's training.
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self, TokenizerError> {
        Self::build(vocabulary.into_parts()?)
    }

    /// From the tables of a packed file, which stay where they are.
    ///
    /// # Errors
    /// The `tokenizers` crate refuses a part; no tables are known to make it.
    pub fn from_tables(tables: TokenTables) -> Result<Self, TokenizerError> {
        let header = *tables.header();
        let unknown = TokenizerError::Library("no such word pattern".to_owned());
        let pre_tokenizer = numbered_words(header.pattern).ok_or(unknown)??;
        let normalizer = header.composes_text.then(|| NormalizerWrapper::from(NFC));
        let added: Vec<AddedToken> = tables
            .added()
            .map(|(id, content, kind)| AddedToken::exact(id, content.to_owned(), kind))
            .collect();
        let end_of_generation = end_of_generation(&added, header.special);
        let (ends, bytes) = tables.token_bytes();
        let (bytes, kinds) = (bytes.to_vec(), tables.kinds());
        let model = SharedBpe::Tables(Arc::new(tables));
        let (parsing, plain) = encoders(model, normalizer, pre_tokenizer, added)?;
        let (special, add_bos) = (header.special, header.add_bos);
        Ok(Self { parsing, plain, bytes, ends, kinds, special, end_of_generation, add_bos })
    }

    fn build(parts: TokenizerParts) -> Result<Self, TokenizerError> {
        check_parts(&parts)?;
        let (bytes, ends) = all_token_bytes(&parts);
        let end_of_generation = end_of_generation(&parts.added, parts.special);
        let mut builder = BPE::builder();
        if let Some(unknown) = parts.unknown {
            builder = builder.unk_token(unknown);
        }
        let model = builder
            .vocab_and_merges(parts.vocabulary, parts.merges)
            .ignore_merges(parts.ignore_merges)
            .build()
            .map_err(|error| TokenizerError::Library(error.to_string()))?;
        let model = SharedBpe::Built(Arc::new(model));
        let (parsing, plain) = encoders(model, parts.normalizer, parts.pre_tokenizer, parts.added)?;
        Ok(Self {
            parsing,
            plain,
            bytes,
            ends,
            kinds: parts.kinds,
            special: parts.special,
            end_of_generation,
            add_bos: parts.add_bos,
        })
    }

    /// Ids of `text`, without a beginning-of-text token. Control tokens written in the text (`<|im_end|>`) become
    /// their ids only with `parse_special`: pass `true` for text that a template wrote, `false` for a stranger's.
    ///
    /// # Errors
    /// The `tokenizers` crate failed; no text is known to make it.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoder = if parse_special { &self.parsing } else { &self.plain };
        encoder
            .encode_fast(text, false)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokenizerError::Library(error.to_string()))
    }

    /// Text of `ids`, U+FFFD where their bytes are no UTF-8. Control tokens are left out with `skip_special`.
    #[must_use]
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let kept = ids.iter().filter(|&&id| !(skip_special && self.is_special(id)));
        let bytes: Vec<u8> = kept.flat_map(|&id| self.token_bytes(id)).copied().collect();
        match String::from_utf8_lossy(&bytes) {
            std::borrow::Cow::Borrowed(text) => text.to_owned(),
            std::borrow::Cow::Owned(text) => text,
        }
    }

    /// The bytes that a token stands for; none for unused rows and ids outside the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// The id whose text is exactly `text`, control tokens included (`"<|im_end|>"`, `"</think>"`).
    #[must_use]
    pub fn token_id(&self, text: &str) -> Option<u32> {
        let added = self.parsing.get_added_vocabulary();
        added.token_to_id(text, self.parsing.get_model())
    }

    /// Text and kind of the tokens that are matched in text as a whole, in no particular order.
    pub fn added_tokens(&self) -> impl Iterator<Item = (&str, TokenKind)> {
        let added = self.parsing.get_added_vocabulary().get_added_tokens_decoder();
        added.values().map(|token| {
            (token.content.as_str(), if token.special { TokenKind::Control } else { TokenKind::Added })
        })
    }

    /// Number of ids. The embedding matrix may have more rows; those ids decode to nothing.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.kinds.len()
    }

    /// What the token is for; `None` outside the vocabulary.
    #[must_use]
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Whether the token steers the model instead of standing for text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.kind(id) == Some(TokenKind::Control)
    }

    /// Ids with a role.
    #[must_use]
    pub fn special(&self) -> SpecialTokens {
        self.special
    }

    /// Whether the model was trained with a beginning-of-text token before every text.
    #[must_use]
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Ids that end a generation, ascending.
    #[must_use]
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Whether the id ends a generation.
    #[must_use]
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.binary_search(&id).is_ok()
    }

    /// Adds an id that ends a generation (`eos_token_id` of `generation_config.json`).
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn add_end_of_generation(&mut self, id: u32) -> Result<(), TokenizerError> {
        if id as usize >= self.kinds.len() {
            return Err(TokenizerError::SpecialId { name: "eos", id, size: self.kinds.len() });
        }
        if let Err(place) = self.end_of_generation.binary_search(&id) {
            self.end_of_generation.insert(place, id);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocabulary_size", &self.kinds.len())
            .field("special", &self.special)
            .field("end_of_generation", &self.end_of_generation)
            .field("add_bos", &self.add_bos)
            .finish_non_exhaustive()
    }
}

/// The encoder that matches control tokens, and the one that does not.
fn encoders(
    model: SharedBpe,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: PreTokenizerWrapper,
    added: Vec<AddedToken>,
) -> Result<(Encoder, Encoder), TokenizerError> {
    let library = |error: tokenizers::Error| TokenizerError::Library(error.to_string());
    let mut parsing = Encoder::new(model);
    parsing.with_normalizer(normalizer).map_err(library)?;
    parsing.with_pre_tokenizer(Some(pre_tokenizer));
    parsing.add_tokens(added.into_iter().map(|token| token.rule)).map_err(library)?;
    let mut plain = parsing.clone();
    plain.set_encode_special_tokens(true);
    Ok((parsing, plain))
}

/// Refuses parts that are too large or contradict each other.
pub(super) fn check_parts(parts: &TokenizerParts) -> Result<(), TokenizerError> {
    check_total(parts)?;
    check_merges(parts)?;
    check_special(parts)
}

/// The library indexes by merge results without checking them, so every name is looked up first.
fn check_merges(parts: &TokenizerParts) -> Result<(), TokenizerError> {
    if parts.merges.len() > MAX_TOKENS {
        return Err(TokenizerError::VocabularySize { found: parts.merges.len() });
    }
    let mut merged = String::new();
    for (index, (left, right)) in parts.merges.iter().enumerate() {
        merged.clear();
        merged.push_str(left);
        merged.push_str(right);
        for piece in [left, right, &merged] {
            if !parts.vocabulary.contains_key(piece) {
                let piece = piece.chars().take(64).collect();
                return Err(TokenizerError::MergePiece { index, piece });
            }
        }
    }
    Ok(())
}

fn check_total(parts: &TokenizerParts) -> Result<(), TokenizerError> {
    let total: usize = parts.pieces.iter().map(String::len).sum();
    if total > MAX_TOTAL_BYTES { Err(TokenizerError::TotalBytes) } else { Ok(()) }
}

fn check_special(parts: &TokenizerParts) -> Result<(), TokenizerError> {
    let size = parts.kinds.len();
    let SpecialTokens { bos, eos, eot, pad } = parts.special;
    for (name, id) in [("bos", bos), ("eos", eos), ("eot", eot), ("pad", pad)] {
        if let Some(id) = id.filter(|&id| id as usize >= size) {
            return Err(TokenizerError::SpecialId { name, id, size });
        }
    }
    Ok(())
}

/// Control tokens that end a turn or a text whatever the metadata says: base and chat releases of one family
/// disagree on which of them is `eos`, and a model that emits either has finished.
const END_NAMES: [&str; 4] = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"];

fn end_of_generation(added: &[AddedToken], special: SpecialTokens) -> Vec<u32> {
    let named = added.iter().filter(|token| END_NAMES.contains(&token.content.as_str()));
    let named = named.filter(|token| token.rule.special).map(|token| token.id);
    let mut ids: Vec<u32> = named.chain(special.eos).chain(special.eot).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

pub(super) fn all_token_bytes(parts: &TokenizerParts) -> (Vec<u8>, Vec<u32>) {
    let table = byte_of_char();
    let mut bytes = Vec::with_capacity(parts.pieces.iter().map(String::len).sum());
    let mut ends = Vec::with_capacity(parts.pieces.len());
    for (piece, kind) in parts.pieces.iter().zip(&parts.kinds) {
        match kind {
            TokenKind::Unused => {}
            TokenKind::Control | TokenKind::Added => bytes.extend_from_slice(piece.as_bytes()),
            TokenKind::Normal => append_byte_level(piece, &table, &mut bytes),
        }
        ends.push(bytes.len() as u32); // below MAX_TOTAL_BYTES, which was checked
    }
    (bytes, ends)
}

fn append_byte_level(piece: &str, table: &[Option<u8>; 512], bytes: &mut Vec<u8>) {
    let lookup = |character: char| table.get(character as usize).copied().flatten();
    if piece.chars().all(|character| lookup(character).is_some()) {
        bytes.extend(piece.chars().filter_map(lookup));
    } else {
        bytes.extend_from_slice(piece.as_bytes());
    }
}

/// GPT-2's byte alphabet, inverted: printable Latin-1 characters stand for themselves, the other 68 bytes in
/// ascending order for U+0100 onwards.
fn byte_of_char() -> [Option<u8>; 512] {
    let mut table = [None; 512];
    let mut next = 256;
    for byte in 0..=255u8 {
        let itself = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let place = if itself { byte as usize } else { next };
        next += usize::from(!itself);
        table[place] = Some(byte);
    }
    table
}
