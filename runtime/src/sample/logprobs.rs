//! Log probabilities of the model's own distribution, before the sampling chain.

use super::stages::Candidates;

/// Log probabilities for one position.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The most probable tokens, descending.
    pub top: Vec<(u32, f32)>,
}

/// Logarithm of the sum of exponentials, in float64: what is subtracted from a logit to get a log probability.
/// Negative infinity if all logits are.
#[must_use]
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if largest == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - largest).exp())).sum();
    f64::from(largest) + sum.ln()
}

/// Log probabilities of `chosen` and of the `count` most probable tokens. A chosen token outside the row has
/// probability zero.
#[must_use]
pub fn token_logprobs(logits: &[f32], chosen: u32, count: usize) -> TokenLogprobs {
    let normaliser = log_sum_exp(logits);
    let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
    let mut list = Candidates::default();
    list.fill_top(logits, count.min(logits.len()));
    TokenLogprobs {
        chosen: logits.get(chosen as usize).map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
        top: list.items().iter().map(|item| (item.id, logprob(item.logit))).collect(),
    }
}
