//! Ways to damage bytes.

/// A way to damage bytes. Positions are taken modulo the length.
#[derive(Clone, Debug)]
pub enum Mutation {
    /// Flips a bit.
    Flip(usize, u8),
    /// Writes bytes over what is there.
    Overwrite(usize, Vec<u8>),
    /// Puts bytes between what is there.
    Insert(usize, Vec<u8>),
    /// Takes bytes away.
    Delete(usize, usize),
    /// Repeats bytes behind themselves.
    Repeat(usize, usize),
    /// Cuts the end off.
    Truncate(usize),
}

/// Most bytes that one mutation deletes or repeats.
const MAX_SPAN: usize = 256;

impl Mutation {
    /// Damages bytes.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len().max(1);
        let span = |at: usize, count: usize| {
            let at = at % length;
            at.min(bytes.len())..(at + 1 + count % MAX_SPAN).min(bytes.len())
        };
        match self {
            Mutation::Flip(at, bit) => {
                let range = span(*at, 0);
                bytes[range].iter_mut().for_each(|byte| *byte ^= 1 << (bit % 8));
            }
            Mutation::Overwrite(at, with) => {
                let at = at % length;
                let end = (at + with.len()).min(bytes.len());
                bytes[at.min(end)..end].copy_from_slice(&with[..end - at.min(end)]);
            }
            Mutation::Insert(at, with) => {
                let at = (at % length).min(bytes.len());
                bytes.splice(at..at, with.iter().copied());
            }
            Mutation::Delete(at, count) => {
                let range = span(*at, *count);
                bytes.drain(range);
            }
            Mutation::Repeat(at, count) => {
                let range = span(*at, *count);
                let copy = bytes[range.clone()].to_vec();
                bytes.splice(range.end..range.end, copy);
            }
            Mutation::Truncate(at) => bytes.truncate(at % length),
        }
    }
}
