//! Drafts change the speed of a stream and never its tokens.

use std::sync::Arc;

use millpond::engine::{DraftSource, Engine, EngineOptions, Generation, Request, SpecMode};
use millpond::model::Model;
use millpond::runner::BufferOptions;
use millpond::sample::SamplingParams;
use millpond_tests::engines::{
    Answer, Golden, answer, built_in_model, collect, engine, golden_model, greedy, options,
};

/// Drafts of a known text in which some tokens are wrong.
struct Script {
    text: Vec<u32>,
    vocab: u32,
    /// Of 256 tokens, how many are wrong; which ones is up to the seed.
    wrong: u64,
    seed: u64,
}

impl DraftSource for Script {
    fn draft(&self, tokens: &[u32], longest: usize, draft: &mut Vec<u32>) {
        let mut hash = self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ tokens.len() as u64;
        for &token in self.text.iter().skip(tokens.len()).take(longest) {
            hash = (hash ^ (hash >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let wrong = (hash >> 40) % 256 < self.wrong;
            draft.push(if wrong { (token + 1) % self.vocab } else { token });
        }
    }
}

fn drafting(draft: Script, longest: usize) -> EngineOptions {
    EngineOptions {
        spec: SpecMode::Ngram,
        spec_adaptive: false,
        spec_draft_max: longest,
        draft_source: Some(Arc::new(draft)),
        ..options()
    }
}

/// Right, wrong and mixed drafts of every length over many seeds: tokens and probabilities keep their very bits, alone
/// and in a crowd.
#[test]
fn greedy_streams_with_drafts_equal_plain_ones_bit_for_bit() {
    for (name, prompts) in [("qwen35-dense", 0..6), ("qwen3-next", 2..5)] {
        let (golden, model) = (Golden::of(name), golden_model(name));
        let plain = engine(&model, options());
        for p in prompts {
            let (prompt, expected) = golden.prompt(p);
            let request = Request { logprobs: Some(2), ..greedy(&prompt, 32) };
            let reference = answer(&plain, request.clone());
            assert_eq!(reference.tokens, expected);
            for (wrong, seeds) in [(0, 1), (256, 1), (40, 8), (128, 4)] {
                for seed in 0..seeds {
                    let text = [&prompt[..], &expected].concat();
                    let script = Script { text, vocab: model.spec.vocab as u32, wrong, seed };
                    let longest = [7, 1, 4, 15][(seed as usize + p) % 4];
                    let engine = engine(&model, drafting(script, longest));
                    let Answer { tokens, logprobs, usage, .. } = answer(&engine, request.clone());
                    assert_eq!((&tokens, &logprobs), (&expected, &reference.logprobs), "{name} {p} {seed}");
                    assert!(usage.drafted > 0);
                    if wrong % 256 == 0 {
                        let right = if wrong == 0 { usage.drafted } else { 0 };
                        assert_eq!(usage.accepted, right, "{name} {p}");
                    }
                }
            }
        }
    }
}

/// Every stream of a crowd, drafting or not, gives what it gives alone.
#[test]
fn crowds_of_drafting_and_plain_streams_equal_solo_ones() {
    let (golden, model) = (Golden::of("qwen35-dense"), golden_model("qwen35-dense"));
    let (prompt, expected) = golden.prompt(4);
    let text = [&prompt[..], &expected].concat();
    let script = Script { text, vocab: model.spec.vocab as u32, wrong: 60, seed: 5 };
    let engine = engine(&model, drafting(script, 5));
    let running: Vec<(usize, Generation)> = (0..12)
        .map(|i| {
            let p = if i % 3 == 0 { i / 3 } else { 4 };
            let spec = if i % 2 == 0 { Some(SpecMode::Off) } else { None };
            let request = Request { spec, ..greedy(&golden.prompt(p).0, 32) };
            (p, engine.handle().submit(request).expect("room"))
        })
        .collect();
    for (p, generation) in running {
        assert_eq!(collect(generation).tokens, golden.prompt(p).1, "prompt {p}");
    }
    assert_eq!(golden.prompt(4).1, expected);
}

/// Sampled tokens are those of the seed, whatever was drafted: so their distribution is that of plain decoding.
#[test]
fn sampled_streams_with_drafts_equal_plain_ones() {
    let (golden, model) = (Golden::of("qwen35-dense"), golden_model("qwen35-dense"));
    let (prompt, likely) = golden.prompt(3);
    let request = |seed| {
        let sampling = SamplingParams { seed: Some(seed), temperature: 0.2, ..SamplingParams::default() };
        Request { sampling, logprobs: Some(1), ..greedy(&prompt, 32) }
    };
    let plain = engine(&model, options());
    let text = [&prompt[..], &likely].concat();
    let mut accepted = 0;
    for seed in 0..10 {
        let script = Script { text: text.clone(), vocab: model.spec.vocab as u32, wrong: 0, seed };
        let with_drafts = answer(&engine(&model, drafting(script, 4)), request(seed));
        let without = answer(&plain, request(seed));
        assert_eq!((with_drafts.tokens, with_drafts.logprobs), (without.tokens, without.logprobs));
        accepted += with_drafts.usage.accepted;
    }
    assert!(accepted > 0);
}

fn story(model: &Arc<Model>) -> Vec<u32> {
    let tokenizer = model.tokenizer.as_ref().expect("a tokenizer");
    tokenizer.encode("Once upon a time there was a miller who had three sons.", false).expect("tokens")
}

fn with_head(longest: usize) -> EngineOptions {
    EngineOptions { spec: SpecMode::Mtp, spec_adaptive: false, spec_draft_max: longest, ..options() }
}

/// The share of first drafts that stand says that the head reads the right states: its training reached 58 %.
#[test]
fn the_prediction_head_proposes_what_the_model_then_says() {
    let model = built_in_model();
    let request = Request { logprobs: Some(1), ..greedy(&story(&model), 200) };
    let plain = answer(&engine(&model, options()), request.clone());
    let mut per_step = Vec::new();
    for longest in [1, 2, 4] {
        let engine = engine(&model, with_head(longest));
        let drafted = answer(&engine, request.clone());
        assert_eq!((&drafted.tokens, &drafted.logprobs), (&plain.tokens, &plain.logprobs));
        let steps = drafted.usage.completion_tokens - drafted.usage.accepted;
        per_step.push(200.0 / steps as f64);
        if longest == 1 {
            let share = drafted.usage.accepted as f64 / drafted.usage.drafted as f64;
            assert!(share > 0.45, "{share}");
        }
    }
    assert!(per_step[0] > 1.4 && per_step[1] > per_step[0] && per_step[2] >= per_step[1], "{per_step:?}");
}

/// The head's cache goes with snapshots: turns that reuse them draft as well as cold ones.
#[test]
fn drafts_are_as_good_on_reused_state() {
    let model = built_in_model();
    let prompt = story(&model);
    let reuse = engine(&model, with_head(1));
    let first = answer(&reuse, greedy(&prompt, 100));
    let longer = [&prompt[..], &first.tokens].concat();
    let warm = answer(&reuse, greedy(&longer, 100));
    assert_eq!(warm.usage.cached_tokens, longer.len() - 1);
    let cold = answer(&engine(&model, with_head(1)), greedy(&longer, 100));
    assert_eq!(warm.tokens, cold.tokens);
    let share = |usage: &millpond::engine::Usage| usage.accepted as f64 / usage.drafted as f64;
    assert!((share(&warm.usage) - share(&cold.usage)).abs() < 0.1, "{:?} {:?}", warm.usage, cold.usage);
}

/// A head that reads only the start of the vocabulary proposes less, and nothing else changes.
#[test]
fn a_trimmed_head_changes_no_token() {
    let model = built_in_model();
    let request = greedy(&story(&model), 60);
    let plain = answer(&engine(&model, options()), request.clone());
    let trimmed = engine(&model, EngineOptions { draft_vocabulary: 2000, ..with_head(3) });
    let drafted = answer(&trimmed, request);
    assert_eq!(drafted.tokens, plain.tokens);
    assert!(drafted.usage.accepted > 0);
}

/// The default mode, with prompts long enough to be read in slices beside streams that draft.
#[test]
fn adaptive_drafts_beside_prompts_change_no_token() {
    let model = built_in_model();
    let prompts: Vec<Vec<u32>> =
        (0..4u32).map(|p| (0..40 + p * 150).map(|i| 50 + (i * (p + 3)) % 900).collect()).collect();
    let solo = |engine: &Engine| -> Vec<Vec<u32>> {
        prompts.iter().map(|prompt| answer(engine, greedy(prompt, 48)).tokens).collect()
    };
    let plain = solo(&engine(&model, options()));
    let auto = engine(&model, EngineOptions { spec: SpecMode::Auto, ..options() });
    let running: Vec<Generation> =
        prompts.iter().map(|prompt| auto.handle().submit(greedy(prompt, 48)).expect("room")).collect();
    let together: Vec<Vec<u32>> = running.into_iter().map(|generation| collect(generation).tokens).collect();
    assert_eq!(together, plain);
}

/// Long greedy answers keep their bits with drafts of the head, at the plain recurrence and with the buffer.
#[test]
fn long_answers_keep_their_bits() {
    let tokens = 4000;
    let model = built_in_model();
    let request = Request { logprobs: Some(1), ..greedy(&story(&model), tokens) };
    for interval in [1, 16] {
        let buffer = BufferOptions { fold_interval: interval, ..BufferOptions::default() };
        let plain = answer(&engine(&model, EngineOptions { buffer, ..options() }), request.clone());
        assert_eq!(plain.tokens.len(), tokens);
        for drafting in [with_head(3), EngineOptions { spec: SpecMode::Auto, ..options() }] {
            let drafted = answer(&engine(&model, EngineOptions { buffer, ..drafting }), request.clone());
            assert_eq!(
                (&drafted.tokens, &drafted.logprobs),
                (&plain.tokens, &plain.logprobs),
                "C = {interval}"
            );
            assert!(drafted.usage.accepted > 0);
        }
    }
}
