//! Streaming detokenisation: token bytes in, whole UTF-8 text out.
//!
//! A byte-level vocabulary cuts characters anywhere, so a token may end inside one. The bytes of an unfinished
//! character are held (at most three) until the next token completes them. Bytes that can never become a character
//! turn into U+FFFD where [`String::from_utf8_lossy`] would put one: the concatenation of everything emitted,
//! including [`Detokenizer::flush`], equals the lossy decoding of the concatenated bytes.

/// Holds the bytes of a character that is not complete yet.
#[derive(Debug, Clone, Default)]
pub struct Detokenizer {
    held: Vec<u8>,
}

impl Detokenizer {
    /// A detokeniser at the start of a text.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends to `text` everything that `bytes` completes. Nothing but whole characters is ever appended.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        if self.held.is_empty() {
            let consumed = append_complete(bytes, text);
            self.held.extend_from_slice(&bytes[consumed..]);
        } else {
            self.held.extend_from_slice(bytes);
            let consumed = append_complete(&self.held, text);
            self.held.drain(..consumed);
        }
    }

    /// Ends the text: what is still held can no longer be completed and becomes one U+FFFD.
    pub fn flush(&mut self, text: &mut String) {
        if !self.held.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.held.clear();
        }
    }

    /// The bytes waiting for the rest of their character (at most three).
    #[must_use]
    pub fn held(&self) -> &[u8] {
        &self.held
    }
}

/// Appends the decodable part of `bytes`, with U+FFFD for impossible sequences, and returns how many bytes that was;
/// the rest is the beginning of a character.
fn append_complete(bytes: &[u8], text: &mut String) -> usize {
    let mut consumed = 0;
    loop {
        let rest = &bytes[consumed..];
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                return bytes.len();
            }
            Err(error) => {
                let valid = error.valid_up_to();
                text.extend(rest[..valid].utf8_chunks().map(|chunk| chunk.valid()));
                consumed += valid;
                let Some(invalid) = error.error_len() else {
                    return consumed;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                consumed += invalid;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(pieces: &[Vec<u8>]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new();
        let mut chunks = Vec::new();
        for piece in pieces {
            let mut text = String::new();
            detokenizer.push(piece, &mut text);
            assert!(detokenizer.held().len() <= 3);
            chunks.push(text);
        }
        let mut text = String::new();
        detokenizer.flush(&mut text);
        chunks.push(text);
        chunks
    }

    #[test]
    fn a_character_cut_in_four_arrives_whole() {
        let pieces: Vec<Vec<u8>> = "🦀".bytes().map(|byte| vec![byte]).collect();
        assert_eq!(stream(&pieces), ["", "", "", "🦀", ""]);
    }

    #[test]
    fn an_unfinished_character_at_the_end_becomes_one_replacement() {
        assert_eq!(stream(&[vec![b'a', 0xF0, 0x9F]]), ["a", "\u{FFFD}"]);
    }

    proptest! {
        #[test]
        fn valid_text_cut_anywhere_comes_back(text in "\\PC{0,40}", cuts in prop::collection::vec(1usize..6, 0..40)) {
            let mut bytes = text.as_bytes();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (head, tail) = bytes.split_at(cut.min(bytes.len()));
                pieces.push(head.to_vec());
                bytes = tail;
            }
            pieces.push(bytes.to_vec());
            let chunks = stream(&pieces);
            prop_assert_eq!(chunks.concat(), text);
            prop_assert_eq!(chunks.last().map(String::as_str), Some(""));
        }

        #[test]
        fn any_bytes_equal_the_lossy_decoding(
            pieces in prop::collection::vec(
                prop::collection::vec(
                    prop_oneof![any::<u8>(), Just(0xF0), Just(0x9F), Just(0xED), Just(0xA0), Just(0xC3), 0x80u8..0xC0],
                    0..6,
                ),
                0..12,
            )
        ) {
            let whole: Vec<u8> = pieces.concat();
            prop_assert_eq!(stream(&pieces).concat(), String::from_utf8_lossy(&whole).into_owned());
        }
    }
}
