//! Random numbers that are a function of where they are used.
//!
//! A generator with a running state gives other numbers when a request is batched, rewound or verified in another
//! order. Here the draw for a position is a hash of seed, position and purpose, so it is the same on every path.

use std::hash::{BuildHasher, RandomState};

/// What a draw decides; draws for different purposes at one position are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Which token of the distribution.
    Token = 1,
    /// Whether XTC cuts at this position.
    Xtc = 2,
    /// Whether a drafted token is accepted.
    Accept = 3,
    /// Which token replaces a rejected draft.
    Residual = 4,
    /// Which token a drafter with a distribution proposes.
    Draft = 5,
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): a bijection
/// in which every input bit changes every output bit with probability near one half.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// A uniform number in `[0, 1)`, a multiple of 2^-53.
#[must_use]
pub fn uniform(seed: u64, position: u64, purpose: Purpose) -> f64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let key = mix(seed.wrapping_add(GOLDEN));
    let counter = mix(position.wrapping_mul(GOLDEN).wrapping_add(key));
    let bits = mix(counter.wrapping_add((purpose as u64).wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// A seed that differs between calls and between runs, for requests that ask for none.
#[must_use]
pub fn fresh_seed() -> u64 {
    // The standard library seeds its hasher from the system's entropy and steps it on every use.
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chi-square of `counts` against equal shares; 99.9 % of true uniforms lie below 1.4 times the degrees of freedom
    /// here (255 degrees: 330.5).
    fn chi_square(counts: &[u32]) -> f64 {
        let expected = counts.iter().sum::<u32>() as f64 / counts.len() as f64;
        counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum()
    }

    #[test]
    fn draws_are_uniform_along_positions_seeds_and_purposes() {
        let along: [fn(u64) -> f64; 3] = [
            |index| uniform(7, index, Purpose::Token),
            |index| uniform(index, 3, Purpose::Token),
            |index| {
                uniform(
                    index / 2,
                    11,
                    if index.is_multiple_of(2) { Purpose::Accept } else { Purpose::Residual },
                )
            },
        ];
        for draw in along {
            let mut counts = [0u32; 256];
            let mut pairs = [0u32; 256];
            for index in 0..100_000 {
                let (value, next) = (draw(index), draw(index + 1));
                assert!((0.0..1.0).contains(&value));
                counts[(value * 256.0) as usize] += 1;
                pairs[(value * 16.0) as usize * 16 + (next * 16.0) as usize] += 1;
            }
            assert!(chi_square(&counts) < 330.5, "{}", chi_square(&counts));
            assert!(chi_square(&pairs) < 330.5, "{}", chi_square(&pairs));
        }
    }

    #[test]
    fn fresh_seeds_differ() {
        assert_ne!(fresh_seed(), fresh_seed());
    }
}
