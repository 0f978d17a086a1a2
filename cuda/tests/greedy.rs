//! The built-in model on a GPU and on the processor: the same greedy tokens in exact arithmetic, and 8-bit activations
//! that cost no more there than here.
//!
//! Logits of both with 8-bit activations are not compared with each other: values next to a half are rounded either way
//! after sums of another order, every later layer rounds other values, and after some layers the two differ by about as
//! much as each differs from exact arithmetic.

use std::path::Path;
use std::sync::Arc;

use millpond::backend::WantLogits;
use millpond::backend::cpu::{Arithmetic, CpuBackend, CpuOptions};
use millpond::load::{LoadOptions, LoadedModel, load_model};
use millpond::par::Team;
use millpond::runner::{BufferOptions, Runner, Work};
use millpond::state::PassKind;
use millpond::state::memory::KvType;
use millpond_cuda::driver::{Driver, driver_present};
use millpond_cuda::{CudaBackend, CudaOptions};
use millpond_simd::{Isa, Kernels};

const TOKENS: usize = 200;
/// Positions of a pass of a prompt.
const CHUNK: usize = 64;
/// In exact arithmetic, of the largest logit of a row.
const EXACT_TOLERANCE: f32 = 1e-4;
/// How much further than on the processor rounded activations may take logits from exact ones, on average.
const MOST_ROUNDING: f32 = 1.1;

fn processor(model: &LoadedModel, buffer: BufferOptions, arithmetic: Arithmetic) -> Runner {
    let options = CpuOptions {
        kv_type: KvType::F16,
        state_type: buffer.state_type,
        max_window: buffer.max_window,
        fold_interval: buffer.fold_interval,
        arithmetic,
    };
    let kernels = Kernels::for_isa(Isa::detect()).unwrap();
    let (spec, weights) = (Arc::new(model.spec.clone()), Arc::new(model.weights.clone()));
    let team = Team::new(2).unwrap();
    let backend = CpuBackend::new(spec.clone(), weights, kernels, team, options).unwrap();
    Runner::new(Box::new(backend), spec, buffer, 4096)
}

fn card(model: &LoadedModel, buffer: BufferOptions, arithmetic: Arithmetic) -> Runner {
    let spec = Arc::new(model.spec.clone());
    let options = CudaOptions { kv_type: KvType::F16, buffer, arithmetic };
    let backend = CudaBackend::new(Driver::new(0).unwrap(), spec.clone(), &model.weights, options).unwrap();
    Runner::new(Box::new(backend), spec, buffer, 4096)
}

/// The largest logit's token; the first of several.
fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// The logits after a prompt and after each of `given`, or after greedy tokens where none are given.
fn rows(runner: &mut Runner, prompt: &[u32], given: Option<&[u32]>) -> (Vec<u32>, Vec<Vec<f32>>) {
    let mut sequence = runner.create().unwrap();
    runner.prefill(&mut sequence, prompt, CHUNK, WantLogits::Last).unwrap();
    let (mut tokens, mut rows) = (Vec::new(), vec![runner.outputs().logits.clone()]);
    while tokens.len() < TOKENS {
        let token = given.map_or_else(|| best(&rows[rows.len() - 1]), |given| given[tokens.len()]);
        tokens.push(token);
        let work = Work {
            sequence: &mut sequence,
            tokens: &[token],
            kind: PassKind::Window,
            logits: WantLogits::Last,
        };
        rows.push(runner.step(&mut [work]).unwrap().logits.clone());
        runner.commit(&mut sequence, 1).unwrap();
    }
    runner.release(sequence);
    (tokens, rows)
}

/// Differences of the rows of `others` from those of `rows`, as `measure` has them.
fn differences(rows: &[Vec<f32>], others: &[Vec<f32>], measure: fn(&[f32], &[f32]) -> f32) -> Vec<f32> {
    rows.iter().zip(others).map(|(row, other)| measure(row, other)).collect()
}

/// The largest difference, relative to the largest logit.
fn largest(row: &[f32], other: &[f32]) -> f32 {
    let logit = row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    row.iter().zip(other).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs())) / logit
}

/// The norm of the difference, relative to that of the row.
fn norm(row: &[f32], other: &[f32]) -> f32 {
    let squares: f32 = row.iter().zip(other).map(|(a, b)| (a - b).powi(2)).sum();
    (squares / row.iter().map(|value| value * value).sum::<f32>()).sqrt()
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len() as f32
}

#[test]
fn the_built_in_model_says_the_same_on_a_card() {
    if !driver_present() {
        eprintln!("skipped: there is no CUDA driver, and an emulated card would take hours");
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/assets/delta-48m-Q4_K_M.gguf");
    let model = load_model(&path, &LoadOptions::default()).unwrap();
    let buffer = CudaBackend::fitting(BufferOptions::default(), &model.spec);
    let on_processor = |arithmetic| processor(&model, buffer, arithmetic);
    let on_card = |arithmetic| card(&model, buffer, arithmetic);
    for seed in 1..=4 {
        let prompt: Vec<u32> =
            (1..=40).map(|i| (i * 7919 * seed + i * i * 31) % model.spec.vocab as u32).collect();
        let (tokens, exact) = rows(&mut on_processor(Arithmetic::Exact), &prompt, None);
        let (card_tokens, card_exact) = rows(&mut on_card(Arithmetic::Exact), &prompt, None);
        assert_eq!(card_tokens, tokens, "prompt {seed}");
        let worst = differences(&exact, &card_exact, largest).into_iter().fold(0.0, f32::max);
        assert!(worst < EXACT_TOLERANCE, "prompt {seed}: logits differ by {worst:e}");

        let (_, rounded) = rows(&mut on_processor(Arithmetic::Quantised), &prompt, Some(&tokens));
        let (_, card_rounded) = rows(&mut on_card(Arithmetic::Quantised), &prompt, Some(&tokens));
        let rounding = mean(&differences(&exact, &rounded, norm));
        let card_rounding = mean(&differences(&exact, &card_rounded, norm));
        eprintln!(
            "prompt {seed}: exact arithmetic differs by at most {worst:.1e}; rounding on the processor {rounding:.2e}, \
             on the card {card_rounding:.2e}"
        );
        assert!(card_rounding < MOST_ROUNDING * rounding, "prompt {seed}");
    }
}
