//! Writing vocabulary tables.

use std::collections::HashMap;

use super::{Header, KINDS, MAX_PROBES, NONE, pair_hash, probes, text_hash};
use crate::text::gguf_vocabulary::{GgufVocabulary, pattern_number};
use crate::text::tokenizer::{TokenizerError, TokenizerParts, all_token_bytes, check_parts};

/// The tables of a vocabulary. `composes_text` says whether text is brought to Unicode's composed form first; without it,
/// that is inferred as for a GGUF file.
///
/// # Errors
/// As [`Tokenizer::from_gguf`](crate::text::Tokenizer::from_gguf).
pub fn encode(vocabulary: GgufVocabulary, composes_text: Option<bool>) -> Result<Vec<u8>, TokenizerError> {
    let pattern = pattern_number(&vocabulary.pre)?;
    let parts = vocabulary.into_parts()?;
    check_parts(&parts)?;
    let (token_bytes, byte_ends) = all_token_bytes(&parts);
    let texts: String = parts.pieces.concat();
    let text_slots = text_table(&parts);
    let merge_slots = merge_table(&parts);
    let header = Header {
        tokens: parts.pieces.len(),
        composes_text: composes_text.unwrap_or(parts.normalizer.is_some()),
        add_bos: parts.add_bos,
        pattern,
        special: parts.special,
        text_slots: text_slots.len(),
        merge_slots: merge_slots.len(),
        text_bytes: texts.len(),
        token_bytes: token_bytes.len(),
        added: parts.added.len(),
    };
    let mut out = Vec::with_capacity(header.layout().bytes.end);
    let mut put = |words: &mut dyn Iterator<Item = u32>| {
        words.for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    };
    put(&mut header.write().into_iter());
    let mut end = 0;
    put(&mut parts.pieces.iter().map(|piece| {
        end += piece.len() as u32;
        end
    }));
    put(&mut byte_ends.into_iter());
    put(&mut parts.added.iter().map(|token| token.id));
    put(&mut text_slots.into_iter());
    put(&mut merge_slots.into_iter().flatten());
    let code = |kind| KINDS.iter().position(|other| other == kind).unwrap_or_default() as u8;
    out.extend(parts.kinds.iter().map(code));
    out.extend_from_slice(texts.as_bytes());
    out.extend_from_slice(&token_bytes);
    Ok(out)
}

/// A table of a power of two of slots, at least twice as many as entries, in which no entry lies far from its slot.
fn table<E: Copy, S: Copy>(
    entries: &[E],
    empty: S,
    hash: impl Fn(E) -> usize,
    is_free: impl Fn(S) -> bool,
    slot_of: impl Fn(E) -> S,
) -> Vec<S> {
    let mut size = (2 * entries.len()).next_power_of_two().max(MAX_PROBES);
    loop {
        let mut slots = vec![empty; size];
        let all_placed = entries.iter().all(|&entry| {
            let free = probes(hash(entry), size).find(|&slot| is_free(slots[slot]));
            free.map(|slot| slots[slot] = slot_of(entry)).is_some()
        });
        if all_placed {
            return slots;
        }
        size *= 2;
    }
}

fn text_table(parts: &TokenizerParts) -> Vec<u32> {
    let mut entries: Vec<(&str, u32)> =
        parts.vocabulary.iter().map(|(text, &id)| (text.as_str(), id)).collect();
    entries.sort_unstable_by_key(|entry| entry.1);
    table(&entries, 0, |entry| text_hash(entry.0), |slot| slot == 0, |entry| entry.1 + 1)
}

/// A later merge of the same pair replaces an earlier one, as in the `tokenizers` crate.
fn merge_table(parts: &TokenizerParts) -> Vec<[u32; 4]> {
    let mut merges: HashMap<(u32, u32), (u32, u32)> = HashMap::with_capacity(parts.merges.len());
    for (rank, (left, right)) in parts.merges.iter().enumerate() {
        let id = |text: &str| parts.vocabulary.get(text).copied();
        let merged = id(&format!("{left}{right}"));
        if let (Some(left), Some(right), Some(merged)) = (id(left), id(right), merged) {
            merges.insert((left, right), (rank as u32, merged));
        }
    }
    let mut entries: Vec<[u32; 4]> =
        merges.into_iter().map(|((left, right), (rank, merged))| [left, right, rank, merged]).collect();
    entries.sort_unstable_by_key(|entry| entry[2]);
    table(
        &entries,
        [0, 0, NONE, 0],
        |entry| pair_hash(entry[0], entry[1]),
        |slot| slot[2] == NONE,
        |entry| entry,
    )
}
