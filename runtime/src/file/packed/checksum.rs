//! XXH64, the checksum of packed files: as good as a stranger's typing errors and bad disks need, and as fast as memory.
//!
//! After the specification of xxHash (github.com/Cyan4973/xxHash, `doc/xxhash_spec.md`), seed 0.

const PRIMES: [u64; 5] = [
    0x9E37_79B1_85EB_CA87,
    0xC2B2_AE3D_27D4_EB4F,
    0x1656_67B1_9E37_79F9,
    0x85EB_CA77_C2B2_AE63,
    0x27D4_EB2F_1656_67C5,
];

/// Bytes of a stripe: four lanes of eight.
const STRIPE: usize = 32;

/// A checksum of bytes that come in parts.
#[derive(Clone, Debug)]
pub struct Checksum {
    lanes: [u64; 4],
    /// The beginning of a stripe.
    pending: [u8; STRIPE],
    pending_len: usize,
    total: u64,
}

impl Default for Checksum {
    fn default() -> Checksum {
        Checksum::new()
    }
}

fn round(lane: u64, input: u64) -> u64 {
    lane.wrapping_add(input.wrapping_mul(PRIMES[1])).rotate_left(31).wrapping_mul(PRIMES[0])
}

fn word(bytes: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*bytes)
}

impl Checksum {
    /// The checksum of nothing yet.
    #[must_use]
    pub fn new() -> Checksum {
        let [first, second, ..] = PRIMES;
        Checksum {
            lanes: [first.wrapping_add(second), second, 0, 0u64.wrapping_sub(first)],
            pending: [0; STRIPE],
            pending_len: 0,
            total: 0,
        }
    }

    /// The checksum of bytes at hand.
    #[must_use]
    pub fn of(bytes: &[u8]) -> u64 {
        let mut checksum = Checksum::new();
        checksum.add(bytes);
        checksum.finish()
    }

    /// Adds bytes.
    pub fn add(&mut self, mut bytes: &[u8]) {
        self.total = self.total.wrapping_add(bytes.len() as u64);
        if self.pending_len > 0 {
            let taken = bytes.len().min(STRIPE - self.pending_len);
            self.pending[self.pending_len..self.pending_len + taken].copy_from_slice(&bytes[..taken]);
            self.pending_len += taken;
            bytes = &bytes[taken..];
            if self.pending_len < STRIPE {
                return;
            }
            let stripe = self.pending;
            self.stripes(&stripe);
        }
        let whole = bytes.len() - bytes.len() % STRIPE;
        self.stripes(&bytes[..whole]);
        let rest = &bytes[whole..];
        self.pending[..rest.len()].copy_from_slice(rest);
        self.pending_len = rest.len();
    }

    /// Adds whole stripes.
    fn stripes(&mut self, bytes: &[u8]) {
        let mut lanes = self.lanes;
        for stripe in bytes.as_chunks::<STRIPE>().0 {
            for (lane, bytes) in lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
                *lane = round(*lane, word(bytes));
            }
        }
        self.lanes = lanes;
    }

    /// The checksum of all that was added.
    #[must_use]
    pub fn finish(&self) -> u64 {
        let mut hash = match self.total >= STRIPE as u64 {
            true => self.merged_lanes(),
            false => PRIMES[4],
        };
        hash = hash.wrapping_add(self.total);
        let (words, rest) = self.pending[..self.pending_len].as_chunks::<8>();
        for bytes in words {
            hash = (hash ^ round(0, word(bytes))).rotate_left(27).wrapping_mul(PRIMES[0]);
            hash = hash.wrapping_add(PRIMES[3]);
        }
        let (halves, rest) = rest.as_chunks::<4>();
        for bytes in halves {
            let half = u64::from(u32::from_le_bytes(*bytes));
            hash = (hash ^ half.wrapping_mul(PRIMES[0])).rotate_left(23).wrapping_mul(PRIMES[1]);
            hash = hash.wrapping_add(PRIMES[2]);
        }
        for &byte in rest {
            hash = (hash ^ u64::from(byte).wrapping_mul(PRIMES[4])).rotate_left(11).wrapping_mul(PRIMES[0]);
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(PRIMES[1]);
        hash = (hash ^ (hash >> 29)).wrapping_mul(PRIMES[2]);
        hash ^ (hash >> 32)
    }

    fn merged_lanes(&self) -> u64 {
        let rotations = [1, 7, 12, 18];
        let lanes = self.lanes.iter().zip(rotations);
        let sum = lanes.fold(0u64, |sum, (lane, by)| sum.wrapping_add(lane.rotate_left(by)));
        self.lanes
            .iter()
            .fold(sum, |hash, &lane| (hash ^ round(0, lane)).wrapping_mul(PRIMES[0]).wrapping_add(PRIMES[3]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the reference implementation (`xxh64` of the Python package xxhash) for seed 0.
    #[test]
    fn values_are_those_of_the_reference() {
        assert_eq!(Checksum::of(b""), 0xEF46_DB37_51D8_E999);
        assert_eq!(Checksum::of(b"a"), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(Checksum::of(b"abc"), 0x44BC_2CF5_AD77_0999);
        assert_eq!(
            Checksum::of(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"),
            0xFD5E_2CE9_5208_72DD
        );
        let counting: Vec<u8> = (0..=255).collect();
        assert_eq!(Checksum::of(&counting), 0x1FAC_BE84_06CD_904B);
    }

    #[test]
    fn parts_make_no_difference() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i * i % 251) as u8).collect();
        for size in [1, 3, 8, 31, 32, 33, 100] {
            let mut checksum = Checksum::new();
            bytes.chunks(size).for_each(|part| checksum.add(part));
            assert_eq!(checksum.finish(), Checksum::of(&bytes), "parts of {size}");
        }
    }
}
