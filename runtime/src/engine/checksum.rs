//! Bytes of session files with their checksum.

use std::io::{self, Read, Write};

use crate::state::snapshot::{Sink, Source};

/// Bytes between checks and copies: large enough that calls do not count.
pub(super) const BUFFER: usize = 1 << 20;

/// Bytes with a running checksum: four lanes of odd multiplications over words of 8 bytes. Each step is a bijection of
/// the lane for a given word and of the word for a given lane, so a change of one word never goes unnoticed.
#[derive(Clone, Copy)]
pub(super) struct Checksum {
    lanes: [u64; 4],
    count: u64,
}

const PRIME: u64 = 0x9E37_79B9_7F4A_7C15;

impl Checksum {
    pub(super) fn new() -> Checksum {
        Checksum { lanes: [1, 2, 3, 4], count: 0 }
    }

    /// Takes bytes; how they are cut matters, so reader and writer cut alike.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.count = self.count.wrapping_add(bytes.len() as u64);
        let mut lane = 0;
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let mixed = (self.lanes[lane] ^ u64::from_le_bytes(word)).wrapping_mul(PRIME);
            self.lanes[lane] = mixed ^ (mixed >> 32);
            lane = (lane + 1) % 4;
        }
    }

    pub(super) fn value(&self) -> u64 {
        self.lanes.iter().fold(self.count, |sum, &lane| {
            let mixed = (sum ^ lane).wrapping_mul(PRIME);
            mixed ^ (mixed >> 29)
        })
    }
}

/// Takes note of the checksum of what is written.
pub(super) struct Writer<W> {
    pub(super) to: W,
    pub(super) checksum: Checksum,
}

impl<W: Write> Sink for Writer<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(BUFFER) {
            self.checksum.add(piece);
            self.to.write_all(piece)?;
        }
        Ok(())
    }
}

/// Takes note of the checksum of what is read.
pub(super) struct Reader<R> {
    pub(super) from: R,
    pub(super) checksum: Checksum,
}

impl<R: Read> Source for Reader<R> {
    fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        for piece in bytes.chunks_mut(BUFFER) {
            self.from.read_exact(piece)?;
            self.checksum.add(piece);
        }
        Ok(())
    }
}
