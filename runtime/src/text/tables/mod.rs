//! A vocabulary in a form that is used where it lies: texts, bytes and kinds of tokens, and two hash tables, one from
//! texts to ids and one from pairs of ids to what they merge into.
//!
//! All numbers are little-endian and 32 bits wide unless said otherwise:
//!
//! | what | how many |
//! |---|---|
//! | version (1), tokens, flags, word pattern, `bos`, `eos`, `eot`, `pad`, text slots, merge slots, bytes of texts, bytes of tokens, added tokens | 13 |
//! | zero | 3 |
//! | end of each token's text | tokens |
//! | end of each token's bytes | tokens |
//! | ids of the tokens that are matched in text as a whole | added tokens |
//! | slots of texts: an id plus one, or zero | text slots |
//! | slots of merges: left id, right id, rank, merged id; rank `u32::MAX` is an empty slot | 4 x merge slots |
//! | kinds, 8 bits each: 0 normal, 1 control, 2 added, 3 unused | tokens |
//! | texts, as in the vocabulary (byte-level characters) | bytes of texts |
//! | bytes that tokens stand for | bytes of tokens |
//!
//! Flags: 1 text is brought to Unicode's composed form first, 2 every text starts with `bos`. Word patterns: 0 Qwen2, 1
//! Qwen3.5. A missing special token is `u32::MAX`. Both tables have a power of two of slots; what hashes to slot `h` lies in
//! the first free of `h`, `h + 1`, ..., at most [`MAX_PROBES`] away.
//!
//! A file is checked once when it is opened: every number that is used as a position afterwards lies where it must.

mod bpe;
mod build;

use std::ops::Range;
use std::sync::Arc;

use super::tokenizer::{MAX_TOKEN_BYTES, MAX_TOKENS, MAX_TOTAL_BYTES, SpecialTokens, TokenKind};
use crate::weights::ByteSource;

pub use build::encode;

/// Version of the tables.
const VERSION: u32 = 1;
/// Words of the header.
const HEADER: usize = 16;
/// Furthest that an entry lies from the slot it hashes to. Builders take larger tables until it holds.
pub const MAX_PROBES: usize = 64;
/// What stands for no token, and for the rank of an empty slot.
const NONE: u32 = u32::MAX;

const COMPOSES_TEXT: u32 = 1;
const ADD_BOS: u32 = 2;

/// Why bytes are no tables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TablesError {
    /// Another length than the header asks for.
    #[error("token tables of {found} bytes, {expected} expected")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes the header asks for; `usize::MAX` if more than memory holds.
        expected: usize,
    },
    /// Tables of another version.
    #[error("token tables of version {found}, {VERSION} expected")]
    Version {
        /// The version.
        found: u32,
    },
    /// A number of the header that cannot be.
    #[error("token tables: {what} is {found}, {expected} expected")]
    Header {
        /// The field.
        what: &'static str,
        /// What it is.
        found: u32,
        /// What it may be.
        expected: &'static str,
    },
    /// An entry that cannot be.
    #[error("token tables: entry {index} of {what} {problem}")]
    Entry {
        /// The array.
        what: &'static str,
        /// The position in it.
        index: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Numbers of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) tokens: usize,
    pub(super) composes_text: bool,
    pub(super) add_bos: bool,
    pub(super) pattern: u32,
    pub(super) special: SpecialTokens,
    pub(super) text_slots: usize,
    pub(super) merge_slots: usize,
    pub(super) text_bytes: usize,
    pub(super) token_bytes: usize,
    pub(super) added: usize,
}

/// Where the arrays lie, relative to the tables' first byte.
#[derive(Clone, Debug)]
struct Layout {
    text_ends: Range<usize>,
    byte_ends: Range<usize>,
    added: Range<usize>,
    text_slots: Range<usize>,
    merge_slots: Range<usize>,
    kinds: Range<usize>,
    texts: Range<usize>,
    bytes: Range<usize>,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Header, TablesError> {
        let (words, _) = bytes.as_chunks::<4>();
        let Some(words) = words.first_chunk::<HEADER>() else {
            return Err(TablesError::Length { found: bytes.len(), expected: 4 * HEADER });
        };
        let words = words.map(u32::from_le_bytes);
        let [version, tokens, flags, pattern, bos, eos, eot, pad, text_slots, merge_slots, ..] = words;
        let (text_bytes, token_bytes, added) = (words[10], words[11], words[12]);
        if version != VERSION {
            return Err(TablesError::Version { found: version });
        }
        let check = |what, found: u32, fits, expected| match fits {
            true => Ok(found as usize),
            false => Err(TablesError::Header { what, found, expected }),
        };
        let size = |what, found: u32, most: usize| {
            check(what, found, found as usize <= most, "less (see the limits of tokenizers)")
        };
        let slots = |what, found: u32| {
            let fits = found.is_power_of_two() && found as usize <= 64 * MAX_TOKENS;
            check(what, found, fits, "a power of two, not too large")
        };
        let tokens = size("the number of tokens", tokens, MAX_TOKENS)?;
        check("the flags", flags, flags & !(COMPOSES_TEXT | ADD_BOS) == 0, "flags that are known")?;
        check("the word pattern", pattern, pattern <= 1, "0 or 1")?;
        for reserved in &words[13..] {
            check("a reserved number", *reserved, *reserved == 0, "0")?;
        }
        let id = |what, id: u32| {
            check(what, id, id == NONE || (id as usize) < tokens, "a token")?;
            Ok::<_, TablesError>(Some(id).filter(|&id| id != NONE))
        };
        Ok(Header {
            tokens,
            composes_text: flags & COMPOSES_TEXT != 0,
            add_bos: flags & ADD_BOS != 0,
            pattern,
            special: SpecialTokens {
                bos: id("`bos`", bos)?,
                eos: id("`eos`", eos)?,
                eot: id("`eot`", eot)?,
                pad: id("`pad`", pad)?,
            },
            text_slots: slots("the number of text slots", text_slots)?,
            merge_slots: slots("the number of merge slots", merge_slots)?,
            text_bytes: size("the number of text bytes", text_bytes, MAX_TOTAL_BYTES)?,
            token_bytes: size("the number of token bytes", token_bytes, MAX_TOTAL_BYTES)?,
            added: size("the number of added tokens", added, tokens)?,
        })
    }

    fn write(&self) -> [u32; HEADER] {
        let flag = |set: bool, flag| if set { flag } else { 0 };
        let id = |id: Option<u32>| id.unwrap_or(NONE);
        let SpecialTokens { bos, eos, eot, pad } = self.special;
        let flags = flag(self.composes_text, COMPOSES_TEXT) | flag(self.add_bos, ADD_BOS);
        // All sizes are below the limits that were checked when they were counted.
        let [tokens, text_slots, merge_slots] =
            [self.tokens, self.text_slots, self.merge_slots].map(|size| size as u32);
        let [texts, bytes, added] = [self.text_bytes, self.token_bytes, self.added].map(|size| size as u32);
        [
            VERSION,
            tokens,
            flags,
            self.pattern,
            id(bos),
            id(eos),
            id(eot),
            id(pad),
            text_slots,
            merge_slots,
            texts,
            bytes,
            added,
            0,
            0,
            0,
        ]
    }

    /// Where the arrays are; the end of the last is the length of all. Sizes are limited far below overflow.
    fn layout(&self) -> Layout {
        let mut at = 4 * HEADER;
        let mut next = |bytes: usize| {
            at += bytes;
            at - bytes..at
        };
        Layout {
            text_ends: next(4 * self.tokens),
            byte_ends: next(4 * self.tokens),
            added: next(4 * self.added),
            text_slots: next(4 * self.text_slots),
            merge_slots: next(16 * self.merge_slots),
            kinds: next(self.tokens),
            texts: next(self.text_bytes),
            bytes: next(self.token_bytes),
        }
    }
}

/// The hash of a text, FNV-1a with its bits mixed.
fn text_hash(text: &str) -> usize {
    let hash = text.bytes().fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    mixed(hash)
}

/// The hash of a pair of ids.
fn pair_hash(left: u32, right: u32) -> usize {
    mixed((u64::from(left) << 32 | u64::from(right)).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn mixed(hash: u64) -> usize {
    (hash ^ (hash >> 29)) as usize
}

/// Vocabulary tables where they lie.
#[derive(Clone)]
pub struct TokenTables {
    source: Arc<dyn ByteSource>,
    range: Range<usize>,
    header: Header,
    layout: Layout,
}

impl std::fmt::Debug for TokenTables {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "TokenTables({} tokens)", self.header.tokens)
    }
}

impl TokenTables {
    /// Tables in some bytes of a source.
    ///
    /// # Errors
    /// [`TablesError`] for anything that [`encode`] does not write.
    pub fn open(source: Arc<dyn ByteSource>, range: Range<usize>) -> Result<TokenTables, TablesError> {
        let Some(bytes) = source.bytes().get(range.clone()) else {
            return Err(TablesError::Length { found: source.bytes().len(), expected: range.end });
        };
        let header = Header::read(bytes)?;
        let layout = header.layout();
        if bytes.len() != layout.bytes.end {
            return Err(TablesError::Length { found: bytes.len(), expected: layout.bytes.end });
        }
        let tables = TokenTables { source, range, header, layout };
        tables.check()?;
        Ok(tables)
    }

    fn array(&self, range: &Range<usize>) -> &[u8] {
        &self.source.bytes()[self.range.clone()][range.clone()]
    }

    fn words(&self, range: &Range<usize>) -> &[[u8; 4]] {
        self.array(range).as_chunks().0
    }

    fn check(&self) -> Result<(), TablesError> {
        let entry = |what, index, problem| TablesError::Entry { what, index, problem };
        self.check_ends("text ends", &self.layout.text_ends, self.header.text_bytes, MAX_TOKEN_BYTES)?;
        self.check_ends("byte ends", &self.layout.byte_ends, self.header.token_bytes, MAX_TOKEN_BYTES)?;
        let texts = std::str::from_utf8(self.array(&self.layout.texts))
            .map_err(|error| entry("texts", error.valid_up_to(), "is no UTF-8"))?;
        for (index, end) in self.words(&self.layout.text_ends).iter().enumerate() {
            if !texts.is_char_boundary(u32::from_le_bytes(*end) as usize) {
                return Err(entry("text ends", index, "cuts a character"));
            }
        }
        for (index, &kind) in self.array(&self.layout.kinds).iter().enumerate() {
            if kind_of(kind).is_none() {
                return Err(entry("kinds", index, "is no kind"));
            }
        }
        for (index, id) in self.words(&self.layout.added).iter().enumerate() {
            let kind = self.kind(u32::from_le_bytes(*id));
            if !matches!(kind, Some(TokenKind::Control | TokenKind::Added)) {
                return Err(entry("added tokens", index, "is no such token"));
            }
        }
        let tokens = self.header.tokens as u32;
        for (index, slot) in self.words(&self.layout.text_slots).iter().enumerate() {
            if u32::from_le_bytes(*slot) > tokens {
                return Err(entry("text slots", index, "names no token"));
            }
        }
        // A token that is matched as a whole but cannot be looked up would be given an id beyond the vocabulary.
        for (index, (_, text, _)) in self.added().enumerate() {
            if self.id(text).is_none() {
                return Err(entry("added tokens", index, "is not found by its text"));
            }
        }
        for (index, slot) in self.merge_slots().iter().enumerate() {
            let [left, right, rank, merged] = words_of(slot);
            if rank != NONE && (left >= tokens || right >= tokens || merged >= tokens) {
                return Err(entry("merge slots", index, "names no token"));
            }
        }
        Ok(())
    }

    fn check_ends(
        &self,
        what: &'static str,
        range: &Range<usize>,
        total: usize,
        longest: usize,
    ) -> Result<(), TablesError> {
        let mut start = 0;
        for (index, end) in self.words(range).iter().enumerate() {
            let end = u32::from_le_bytes(*end) as usize;
            if end < start || end > total || end - start > longest {
                return Err(TablesError::Entry { what, index, problem: "is out of order" });
            }
            start = end;
        }
        match start == total {
            true => Ok(()),
            false => Err(TablesError::Entry { what, index: self.header.tokens, problem: "is missing" }),
        }
    }

    fn merge_slots(&self) -> &[[u8; 16]] {
        self.array(&self.layout.merge_slots).as_chunks().0
    }

    /// The numbers of the header.
    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// Ends of the tokens' bytes, and the bytes.
    pub(super) fn token_bytes(&self) -> (Vec<u32>, &[u8]) {
        let ends = self.words(&self.layout.byte_ends).iter().map(|end| u32::from_le_bytes(*end)).collect();
        (ends, self.array(&self.layout.bytes))
    }

    /// The kinds of all tokens.
    pub(super) fn kinds(&self) -> Vec<TokenKind> {
        self.array(&self.layout.kinds).iter().filter_map(|&kind| kind_of(kind)).collect()
    }

    fn kind(&self, id: u32) -> Option<TokenKind> {
        kind_of(*self.array(&self.layout.kinds).get(id as usize)?)
    }

    /// Ids of the tokens that are matched in text as a whole.
    pub(super) fn added(&self) -> impl Iterator<Item = (u32, &str, TokenKind)> {
        let ids = self.words(&self.layout.added).iter().map(|id| u32::from_le_bytes(*id));
        ids.filter_map(|id| Some((id, self.text(id)?, self.kind(id)?)))
    }

    /// Number of tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.header.tokens
    }

    /// The text of a token, as in the vocabulary.
    #[must_use]
    pub fn text(&self, id: u32) -> Option<&str> {
        let ends = self.words(&self.layout.text_ends);
        let end = u32::from_le_bytes(*ends.get(id as usize)?) as usize;
        let start = match (id as usize).checked_sub(1) {
            None => 0,
            Some(before) => u32::from_le_bytes(ends[before]) as usize,
        };
        std::str::from_utf8(self.array(&self.layout.texts).get(start..end)?).ok()
    }

    /// The token with a text.
    #[must_use]
    pub fn id(&self, text: &str) -> Option<u32> {
        let slots = self.words(&self.layout.text_slots);
        for slot in probes(text_hash(text), slots.len()) {
            let id = u32::from_le_bytes(slots[slot]).checked_sub(1)?;
            if self.text(id) == Some(text) {
                return Some(id);
            }
        }
        None
    }

    /// Rank and result of merging two tokens.
    #[must_use]
    pub fn merge(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let slots = self.merge_slots();
        for slot in probes(pair_hash(left, right), slots.len()) {
            let found = words_of(&slots[slot]);
            if found[2] == NONE {
                return None;
            }
            if (found[0], found[1]) == (left, right) {
                return Some((found[2], found[3]));
            }
        }
        None
    }
}

/// The slots where an entry may lie.
fn probes(hash: usize, slots: usize) -> impl Iterator<Item = usize> {
    (0..MAX_PROBES.min(slots)).map(move |probe| (hash.wrapping_add(probe)) & (slots - 1))
}

fn words_of(slot: &[u8; 16]) -> [u32; 4] {
    let (words, _) = slot.as_chunks::<4>();
    [words[0], words[1], words[2], words[3]].map(u32::from_le_bytes)
}

const KINDS: [TokenKind; 4] = [TokenKind::Normal, TokenKind::Control, TokenKind::Added, TokenKind::Unused];

fn kind_of(code: u8) -> Option<TokenKind> {
    KINDS.get(usize::from(code)).copied()
}
