//! Byte-pair merging on vocabulary tables, with the outcome of the `tokenizers` crate's.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::TokenTables;

/// A piece of a word: a token, the bytes of text it covers, and its neighbours.
#[derive(Clone, Copy, Debug)]
struct Piece {
    id: u32,
    start: usize,
    end: usize,
    before: usize,
    after: usize,
}

/// No neighbour.
const END: usize = usize::MAX;

/// A merge that may be due: rank first, then the leftmost.
type Due = Reverse<(u32, usize, u32)>;

impl TokenTables {
    /// Merges the characters of a word, the best rank first, and gives tokens with the bytes of text they cover.
    /// Characters that are no tokens are dropped.
    pub(crate) fn merge_word(&self, word: &str) -> Vec<(u32, usize, usize)> {
        let mut pieces: Vec<Piece> = Vec::with_capacity(word.len());
        for (start, character) in word.char_indices() {
            let end = start + character.len_utf8();
            if let Some(id) = self.id(&word[start..end]) {
                let at = pieces.len();
                if let Some(last) = pieces.last_mut() {
                    last.after = at;
                }
                pieces.push(Piece { id, start, end, before: at.checked_sub(1).unwrap_or(END), after: END });
            }
        }
        let mut due = BinaryHeap::with_capacity(pieces.len());
        (0..pieces.len()).for_each(|at| self.push_due(&pieces, at, &mut due));
        while let Some(Reverse((_, at, merged))) = due.pop() {
            let left = pieces[at];
            // What was pushed may have changed since: a merged piece has no text, a grown one another outcome.
            if left.start == left.end || left.after == END {
                continue;
            }
            let right = pieces[left.after];
            if self.merge(left.id, right.id).is_none_or(|(_, outcome)| outcome != merged) {
                continue;
            }
            pieces[left.after].end = pieces[left.after].start;
            pieces[at] = Piece { id: merged, end: right.end, after: right.after, ..left };
            if right.after != END {
                pieces[right.after].before = at;
            }
            if left.before != END {
                self.push_due(&pieces, left.before, &mut due);
            }
            self.push_due(&pieces, at, &mut due);
        }
        let kept = pieces.iter().filter(|piece| piece.start < piece.end);
        kept.map(|piece| (piece.id, piece.start, piece.end)).collect()
    }

    /// Notes the merge of a piece with the one after it, if there is one.
    fn push_due(&self, pieces: &[Piece], at: usize, due: &mut BinaryHeap<Due>) {
        let piece = pieces[at];
        if piece.after != END
            && let Some((rank, merged)) = self.merge(piece.id, pieces[piece.after].id)
        {
            due.push(Reverse((rank, at, merged)));
        }
    }
}
