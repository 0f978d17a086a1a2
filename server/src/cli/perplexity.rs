//! `millpond perplexity`: how well a model predicts a text, by llama.cpp's method.
//!
//! The text is cut into windows of the same number of tokens, each evaluated from an empty context; the predictions of
//! the second half of each window are scored, so that every scored token has at least half a window before it.

use std::io::IsTerminal;

use millpond::state::memory::KvType;
use serde::Serialize;

use super::args::PerplexityArgs;
use super::evaluate::Evaluator;
use super::failure::usage;
use super::settings::{self, Compute};

/// Runs the command.
///
/// # Errors
/// Wrong usage, a model that does not load, a text that is too short.
pub(crate) fn run(args: &PerplexityArgs) -> anyhow::Result<()> {
    if args.ctx_size < 4 {
        return Err(usage("-c must be at least 4"));
    }
    let compute = Compute::new(&args.compute, KvType::F16)?.with_arithmetic(args.arithmetic);
    let text = settings::text_of(None, Some(&args.file))?.unwrap_or_default();
    let model = settings::load_model(&args.model)?;
    let tokenizer = settings::tokenizer(&model)?;
    let mut tokens = tokenizer.encode(&text, true)?;
    let bos = tokenizer.special().bos.filter(|_| tokenizer.add_bos());
    tokens.splice(0..0, bos);
    let windows = (tokens.len() / args.ctx_size).min(args.chunks.unwrap_or(usize::MAX));
    if windows == 0 {
        anyhow::bail!("the text has {} tokens, less than one window of {}", tokens.len(), args.ctx_size);
    }
    let mut evaluator = Evaluator::new(&model, &compute, args.ctx_size)?;
    let mut score = Score::default();
    for (index, window) in tokens.chunks_exact(args.ctx_size).take(windows).enumerate() {
        score_window(&mut evaluator, window, bos, &mut score)?;
        if std::io::stderr().is_terminal() {
            super::output::note!("[{}/{windows}] {:.4}", index + 1, score.result(windows).perplexity);
        }
    }
    print_result(&score.result(windows), args.json)
}

fn score_window(
    evaluator: &mut Evaluator,
    window: &[u32],
    bos: Option<u32>,
    score: &mut Score,
) -> anyhow::Result<()> {
    let mut tokens = window.to_vec();
    if let Some(bos) = bos {
        tokens[0] = bos;
    }
    // The last position predicts a token outside the window.
    let scored = &tokens[..tokens.len() - 1];
    evaluator.logits(scored, window.len() / 2, |position, logits| {
        score.add(negative_log_likelihood(logits, window[position + 1]));
        Ok(())
    })
}

/// `-ln softmax(logits)[token]`, summed in double precision.
fn negative_log_likelihood(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    sum.ln() - f64::from(logits[token as usize] - max)
}

/// Sums over the scored tokens.
#[derive(Default)]
struct Score {
    count: usize,
    sum: f64,
    sum_of_squares: f64,
}

/// What came out.
#[derive(Debug, Serialize)]
struct PerplexityResult {
    perplexity: f64,
    /// One standard error.
    error: f64,
    /// Mean negative log-likelihood in nats.
    loss: f64,
    windows: usize,
    tokens: usize,
}

impl Score {
    fn add(&mut self, loss: f64) {
        self.count += 1;
        self.sum += loss;
        self.sum_of_squares += loss * loss;
    }

    fn result(&self, windows: usize) -> PerplexityResult {
        let count = self.count as f64;
        let loss = self.sum / count;
        let variance = self.sum_of_squares / count - loss * loss;
        let perplexity = loss.exp();
        let error =
            if self.count > 1 { (variance.max(0.0) / (count - 1.0)).sqrt() * perplexity } else { 0.0 };
        PerplexityResult { perplexity, error, loss, windows, tokens: self.count }
    }
}

fn print_result(result: &PerplexityResult, json: bool) -> anyhow::Result<()> {
    if json {
        super::output::line(&serde_json::to_string(result)?)
    } else {
        super::output::line(&format!(
            "PPL = {:.4} +/- {:.5} ({} windows, {} tokens scored)",
            result.perplexity, result.error, result.windows, result.tokens
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_prediction_has_the_perplexity_of_its_size() {
        let mut score = Score::default();
        for token in 0..8 {
            score.add(negative_log_likelihood(&[3.0; 8], token));
        }
        let result = score.result(1);
        assert!((result.perplexity - 8.0).abs() < 1e-12, "{result:?}");
        assert!(result.error < 1e-6);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let loss = negative_log_likelihood(&[1e4, 1e4 - 1.0, -1e30], 1);
        assert!((loss - (1.0f64 + (-1.0f64).exp().ln_1p())).abs() < 1e-6, "{loss}");
    }
}
