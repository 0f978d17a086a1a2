//! Work in pieces, shared as soon as a thread has none.

use super::{join, wanted};

/// Pieces of work that lie one after the other.
pub(crate) trait Cut: Send + Sized {
    /// How many there are.
    fn pieces(&self) -> usize;

    /// The first `left` pieces, and the others.
    fn split(self, left: usize) -> (Self, Self);
}

/// Does one piece after the other, and leaves half of the rest to a thread that has no work.
pub(crate) fn each_piece<W: Cut>(mut work: W, piece: &(impl Fn(W) + Sync)) {
    while work.pieces() > 1 {
        if wanted() {
            let half = work.pieces() / 2;
            let (left, right) = work.split(half);
            join(|| each_piece(left, piece), || each_piece(right, piece));
            return;
        }
        let (one, rest) = work.split(1);
        piece(one);
        work = rest;
    }
    piece(work);
}
