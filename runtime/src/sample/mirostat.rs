//! Mirostat: a truncation that holds the surprise of the chosen tokens near a target (Basu et al., "Mirostat: a neural
//! text decoding algorithm that directly controls perplexity", 2021).
//!
//! The only stage with a memory: a limit on the surprise, in bits, that moves after every chosen token. It takes the
//! place of all stages but the temperature, as in llama.cpp.

use super::stages::Candidates;

/// Which form of Mirostat runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mirostat {
    /// None.
    #[default]
    Off,
    /// The paper's: the number of tokens kept follows from an estimate of the distribution's slope.
    V1,
    /// Without the estimate: tokens whose surprise exceeds the limit go.
    V2,
}

impl Mirostat {
    /// The form by its number: 0, 1 or 2.
    #[must_use]
    pub fn by_number(number: u8) -> Option<Self> {
        [Self::Off, Self::V1, Self::V2].get(usize::from(number)).copied()
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Whether a form of it runs.
    #[must_use]
    pub fn is_on(self) -> bool {
        self != Self::Off
    }
}

/// Most probable tokens that the slope is estimated from.
const SLOPE_TOKENS: usize = 100;

/// Shortens the list to what `form` keeps under a limit of `bits` of surprise, for a vocabulary of `size` tokens.
pub fn truncate(form: Mirostat, list: &mut Candidates, bits: f32, size: usize) {
    match form {
        Mirostat::Off => {}
        Mirostat::V1 => {
            list.top_k_ordered(SLOPE_TOKENS);
            let slope = slope(list.items().iter().take(SLOPE_TOKENS).map(|item| f64::from(item.probability)));
            if let Some(slope) = slope {
                list.top_k(kept(slope, bits.into(), size));
            }
        }
        Mirostat::V2 => list.surprise_at_most(bits),
    }
}

/// The exponent of the power law that probabilities in descending order follow, by least squares; `None` for fewer than
/// two.
fn slope(probabilities: impl Iterator<Item = f64> + Clone) -> Option<f64> {
    let pairs = probabilities.clone().zip(probabilities.skip(1)).take_while(|pair| pair.1 > 0.0);
    let (mut products, mut squares) = (0.0, 0.0);
    for (place, (larger, smaller)) in pairs.enumerate() {
        let step = ((place + 2) as f64 / (place + 1) as f64).ln();
        products += step * (larger / smaller).ln();
        squares += step * step;
    }
    (squares > 0.0).then_some(products / squares)
}

/// How many of `size` tokens that follow a power law of exponent `slope` have to stay for their mean surprise to be
/// `bits`; at least one.
fn kept(slope: f64, bits: f64, size: usize) -> usize {
    let excess = slope - 1.0;
    // The quotient's limit for an exponent of one, where both sides vanish.
    let per_bits = if excess.abs() < 1e-6 {
        1.0 / (size.max(2) as f64).ln()
    } else {
        excess / (1.0 - (size as f64).powf(-excess))
    };
    let count = (per_bits * bits.exp2()).powf(1.0 / slope);
    // Conversions from floats saturate.
    (count as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_law_has_the_slope_it_was_made_with() {
        for exponent in [0.5, 1.0, 1.7, 3.0] {
            let law = (1..=100).map(|rank| f64::from(rank).powf(-exponent));
            assert!((slope(law).unwrap() - exponent).abs() < 1e-9);
        }
        assert_eq!(slope([1.0].into_iter()), None);
        assert_eq!(slope([1.0, 0.0, 0.0].into_iter()), None);
    }

    #[test]
    fn more_surprise_keeps_more_tokens() {
        for slope in [0.0, 0.3, 1.0, 1.0 + 1e-9, 2.5] {
            let counts: Vec<usize> = (0..20).map(|bits| kept(slope, bits.into(), 1000)).collect();
            assert!(counts.is_sorted() && counts[0] >= 1, "{slope}: {counts:?}");
        }
        // (eps 2^mu / (1 - N^-eps))^(1/s) by hand: s = 2, N = 1000, mu = 5 gives sqrt(32 / (1 - 1/1000)).
        assert_eq!(kept(2.0, 5.0, 1000), 5);
        let near = kept(1.001, 8.0, 1000) as f64 / kept(1.0, 8.0, 1000) as f64;
        assert!((0.9..1.1).contains(&near), "{near}");
    }
}
