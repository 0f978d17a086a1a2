//! Whole models on the device against the CPU backend: the same runner, cursors and plans, other executors. On the
//! emulator everywhere, on the GPU where there is one.

#[allow(dead_code, reason = "shared with the other tests, which use all of it")]
mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Random, bits, devices};
use millpond::backend::cpu::{Arithmetic, CpuBackend, CpuOptions};
use millpond::backend::{BackendError, MtpSegment, Outputs, WantLogits};
use millpond::load::{LoadOptions, LoadedModel, load_model};
use millpond::par::Team;
use millpond::runner::{BufferOptions, RunError, Runner, Sequence, Work};
use millpond::state::PassKind;
use millpond::state::memory::{KvType, StateType};
use millpond::weights::{FfnWeights, Matrix};
use millpond_cuda::{CudaBackend, CudaOptions, Device};
use millpond_models::MixerSpec;
use millpond_simd::quant::QFormat;
use millpond_simd::{Isa, Kernels};

/// In single precision, relative to the largest logit.
const EXACT_TOLERANCE: f32 = 1e-4;
/// Quantised weights with activations rounded to bytes, against exact arithmetic: the rounding itself.
const QUANTISED_TOLERANCE: f32 = 3e-2;

const TINY: [&str; 5] = ["qwen35-dense", "qwen35-untied", "qwen35-real-heads", "qwen35-moe", "qwen3-next"];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data")
}

fn load(name: &str) -> LoadedModel {
    let path = data().join(name);
    load_model(&path, &LoadOptions::default()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Deterministic token ids.
fn ids(model: &LoadedModel, count: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + i * i * 31 + 5) % model.spec.vocab) as u32).collect()
}

fn cpu(model: &LoadedModel, buffer: BufferOptions, kv_type: KvType, arithmetic: Arithmetic) -> Runner {
    let options = CpuOptions {
        kv_type,
        state_type: buffer.state_type,
        max_window: buffer.max_window,
        fold_interval: buffer.fold_interval,
        arithmetic,
    };
    let kernels = Kernels::for_isa(Isa::detect()).unwrap();
    let spec = Arc::new(model.spec.clone());
    let weights = Arc::new(model.weights.clone());
    let backend = CpuBackend::new(spec.clone(), weights, kernels, Team::new(1).unwrap(), options).unwrap();
    Runner::new(Box::new(backend), spec, buffer, 4096)
}

fn cuda(
    device: &Arc<dyn Device>,
    model: &LoadedModel,
    buffer: BufferOptions,
    kv_type: KvType,
    arithmetic: Arithmetic,
) -> Runner {
    let spec = Arc::new(model.spec.clone());
    let options = CudaOptions { kv_type, buffer, arithmetic };
    let backend = CudaBackend::new(device.clone(), spec.clone(), &model.weights, options).unwrap();
    Runner::new(Box::new(backend), spec, buffer, 4096)
}

/// Both runners in single precision.
fn both(device: &Arc<dyn Device>, model: &LoadedModel, buffer: BufferOptions) -> (Runner, Runner) {
    let exact = Arithmetic::Exact;
    (cpu(model, buffer, KvType::F32, exact), cuda(device, model, buffer, KvType::F32, exact))
}

/// The first form of the device: what differs between the two stands in the linear mixer, which has tests of its own.
fn device() -> Option<&'static (String, Arc<dyn Device>)> {
    devices().first()
}

/// `max|a - b| / max|b|`, infinite where something is not finite.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "compared values are of one shape");
    assert!(!b.is_empty(), "there is something to compare");
    let scale = b.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let worst = a.iter().zip(b).fold(0.0_f32, |max, (x, y)| {
        let error = (x - y).abs();
        if error.is_finite() { max.max(error) } else { f32::INFINITY }
    });
    worst / scale
}

fn prefill(runner: &mut Runner, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    runner.prefill(sequence, tokens, 64, WantLogits::All).unwrap();
    runner.outputs().logits.clone()
}

fn window(runner: &mut Runner, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    let work = Work { sequence, tokens, kind: PassKind::Window, logits: WantLogits::All };
    runner.step(&mut [work]).unwrap().logits.clone()
}

/// Logits of a prompt, then of windows of which some rows are rejected.
fn schedule(runner: &mut Runner, tokens: &[u32], prompt: usize, windows: &[(usize, usize)]) -> Vec<f32> {
    let mut sequence = runner.create().unwrap();
    let mut logits = prefill(runner, &mut sequence, &tokens[..prompt]);
    for &(rows, accepted) in windows {
        let at = sequence.position();
        logits.extend(window(runner, &mut sequence, &tokens[at..at + rows]));
        runner.commit(&mut sequence, accepted).unwrap();
    }
    runner.release(sequence);
    logits
}

#[test]
fn every_kind_of_model_gives_the_logits_of_the_processor() {
    let Some((name, device)) = device() else { return };
    for golden in TINY {
        if name != "GPU" && golden == "qwen35-real-heads" {
            // Too much work for threads that are slow; the linear mixer's own tests have heads as wide.
            continue;
        }
        let model = load(&format!("golden/{golden}"));
        let (mut cpu, mut cuda) = both(device, &model, BufferOptions::default());
        for runner in [&mut cpu, &mut cuda] {
            runner.outputs_mut().want_residuals = true;
        }
        let tokens = ids(&model, 120);
        let windows = [(1, 1), (4, 2), (1, 1), (5, 5), (3, 0), (8, 7)];
        let expected = schedule(&mut cpu, &tokens, 70, &windows);
        let got = schedule(&mut cuda, &tokens, 70, &windows);
        let residuals = cuda.outputs().residuals.iter().zip(&cpu.outputs().residuals);
        let layers: Vec<f32> = residuals.map(|(a, b)| difference(a, b)).collect();
        let error = difference(&got, &expected);
        assert!(
            error < EXACT_TOLERANCE,
            "{name}, {golden}: {error:e}; before the layers of the last pass {layers:?}"
        );
    }
}

/// A matrix of a format with random blocks whose scales are small numbers.
fn random_blocks(format: QFormat, rows: usize, cols: usize, random: &mut Random) -> Matrix {
    let row_bytes = format.row_bytes(cols).unwrap();
    let mut bytes: Vec<u8> = (0..rows * row_bytes).map(|_| (random.unit() * 256.0) as u8).collect();
    let half = |value: f32| half::f16::from_f32(value).to_le_bytes();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let scale = 0.002 + 0.004 * random.unit();
        let halves: &[usize] = match format {
            QFormat::Q4_1 | QFormat::Q5_1 | QFormat::Q4K | QFormat::Q5K => &[0, 2],
            QFormat::Q2K => &[80, 82],
            QFormat::Q3K => &[108],
            QFormat::Q6K => &[208],
            QFormat::F32 => {
                block.copy_from_slice(&(scale * (8.0 * random.unit() - 4.0)).to_le_bytes());
                continue;
            }
            QFormat::BF16 => {
                block.copy_from_slice(&half::bf16::from_f32(8.0 * random.unit() * scale).to_le_bytes());
                continue;
            }
            QFormat::MXFP4 => {
                block[0] = 118 + (random.unit() * 4.0) as u8;
                continue;
            }
            _ => &[0],
        };
        for &at in halves {
            block[at..at + 2].copy_from_slice(&half(scale));
        }
    }
    let range = 0..bytes.len();
    Matrix::new(format, rows, cols, Arc::new(bytes), range).unwrap()
}

/// One attention layer of a model of wide rows, with feed-forward, embedding and head in a format.
fn layer_in(format: QFormat, random: &mut Random) -> LoadedModel {
    let mut model = load("golden/qwen35-real-heads");
    let attends = |spec: &millpond_models::LayerSpec| matches!(spec.mixer, MixerSpec::Attention(_));
    let index = model.spec.layers.iter().position(attends).unwrap();
    model.spec.layers = vec![model.spec.layers[index].clone()];
    model.weights.layers = vec![model.weights.layers[index].clone()];
    let mut other =
        |matrix: &mut Matrix| *matrix = random_blocks(format, matrix.rows(), matrix.cols(), random);
    other(&mut model.weights.embedding);
    model.weights.output = model.weights.embedding.clone();
    let FfnWeights::Dense(glu) = &mut model.weights.layers[0].ffn else { panic!("a dense model") };
    [&mut glu.gate, &mut glu.up, &mut glu.down].into_iter().for_each(&mut other);
    model
}

#[test]
fn every_format_multiplies_as_on_the_processor() {
    let Some((name, device)) = device() else { return };
    let mut random = Random::new(3);
    for format in QFormat::ALL {
        let (exact, quantised) =
            ((Arithmetic::Exact, EXACT_TOLERANCE), (Arithmetic::Quantised, QUANTISED_TOLERANCE));
        // Where threads are slow, a few formats stand for all.
        let kinds = match format {
            _ if name == "GPU" => vec![exact, quantised],
            QFormat::Q4K => vec![exact],
            QFormat::Q4_1 | QFormat::Q5_0 | QFormat::Q3K | QFormat::Q6K | QFormat::IQ4XS => vec![quantised],
            _ => vec![],
        };
        let prompt = if name == "GPU" { 66 } else { 10 };
        for (arithmetic, tolerance) in kinds {
            let model = layer_in(format, &mut random);
            let tokens = ids(&model, 80);
            let buffer = BufferOptions::default();
            let mut cpu = cpu(&model, buffer, KvType::F32, Arithmetic::Exact);
            let mut cuda = cuda(device, &model, buffer, KvType::F32, arithmetic);
            let windows = [(5, 5), (1, 1)];
            let expected = schedule(&mut cpu, &tokens, prompt, &windows);
            let got = schedule(&mut cuda, &tokens, prompt, &windows);
            let error = difference(&got, &expected);
            assert!(error < tolerance, "{name}, {format:?}, {arithmetic:?}: {error:e}");
        }
    }
}

/// Products make the activations of a single row themselves, and those of several rows come from kernels of their own.
#[test]
fn single_rows_have_the_bits_of_windows_in_block_formats() {
    let Some((_, device)) = device() else { return };
    let mut random = Random::new(11);
    for format in [QFormat::Q4K, QFormat::Q6K] {
        let model = layer_in(format, &mut random);
        let tokens = ids(&model, 16);
        let buffer = BufferOptions::default();
        let mut runner = cuda(device, &model, buffer, KvType::F16, Arithmetic::Quantised);
        let together = schedule(&mut runner, &tokens, 10, &[(3, 3)]);
        let alone = schedule(&mut runner, &tokens, 10, &[(1, 1), (1, 1), (1, 1)]);
        assert_eq!(bits(&together), bits(&alone), "{format:?}");
    }
}

#[test]
fn windows_and_batches_have_the_bits_of_single_steps() {
    let Some((_, device)) = device() else { return };
    for golden in ["qwen35-dense", "qwen35-moe"] {
        let model = load(&format!("golden/{golden}"));
        let options = BufferOptions { stateless_below: Some(8), ..BufferOptions::default() };
        let mut runner = cuda(device, &model, options, KvType::F16, Arithmetic::Quantised);
        let tokens = ids(&model, 60);
        let mut alone = runner.create().unwrap();
        let mut expected = prefill(&mut runner, &mut alone, &tokens[..20]);
        for token in &tokens[20..50] {
            expected.extend(window(&mut runner, &mut alone, &[*token]));
            runner.commit(&mut alone, 1).unwrap();
        }
        let windows = [(1, 1), (4, 2), (3, 3), (8, 5), (5, 4), (8, 8), (7, 7)];
        let vocab = model.spec.vocab;
        let mut sequence = runner.create().unwrap();
        let mut got = prefill(&mut runner, &mut sequence, &tokens[..20]);
        // Others run beside it, in prompts and windows of their own.
        let mut beside = runner.create().unwrap();
        for &(rows, accepted) in &windows {
            let at = sequence.position();
            let kind = if rows % 2 == 0 { PassKind::Prefill } else { PassKind::Window };
            let others =
                Work { sequence: &mut beside, tokens: &tokens[..rows], kind, logits: WantLogits::None };
            let own = Work {
                sequence: &mut sequence,
                tokens: &tokens[at..at + rows],
                kind: PassKind::Window,
                logits: WantLogits::All,
            };
            let logits = &runner.step(&mut [others, own]).unwrap().logits;
            got.extend_from_slice(&logits[..accepted * vocab]);
            runner.commit(&mut sequence, accepted).unwrap();
            if kind == PassKind::Window {
                runner.commit(&mut beside, rows).unwrap();
            }
        }
        assert_eq!(bits(&got), bits(&expected), "{golden}");
        [alone, sequence, beside].into_iter().for_each(|sequence| runner.release(sequence));
    }
}

#[test]
fn forks_go_their_own_ways() {
    let Some((_, device)) = device() else { return };
    let model = load("golden/qwen35-dense");
    let options = BufferOptions {
        stateless_below: Some(0),
        fold_interval: 4,
        max_window: 4,
        state_type: StateType::F32,
    };
    let mut runner = cuda(device, &model, options, KvType::F16, Arithmetic::Quantised);
    let tokens = ids(&model, 90);
    let mut parent = runner.create().unwrap();
    prefill(&mut runner, &mut parent, &tokens[..30]);
    let mut fork = runner.fork(&parent).unwrap();
    let shared = runner.footprint([&parent, &fork].into_iter());
    let first = window(&mut runner, &mut parent, &tokens[30..33]);
    runner.commit(&mut parent, 3).unwrap();
    assert!(runner.footprint([&parent, &fork].into_iter()) > shared, "a page was copied");
    // The other goes elsewhere first, comes back, and then does the same.
    window(&mut runner, &mut fork, &tokens[60..64]);
    runner.commit(&mut fork, 2).unwrap();
    runner.rewind(&mut fork, 30).unwrap();
    let second = window(&mut runner, &mut fork, &tokens[30..33]);
    assert_eq!(bits(&first), bits(&second));
    runner.release(parent);
    runner.commit(&mut fork, 3).unwrap();
    assert!(window(&mut runner, &mut fork, &tokens[33..34]).iter().all(|logit| logit.is_finite()));
    runner.release(fork);
}

#[test]
fn saved_sequences_go_on_here_and_on_the_processor() {
    let Some((_, device)) = device() else { return };
    for golden in ["qwen35-untied", "qwen3-next"] {
        let model = load(&format!("golden/{golden}"));
        for prompt in [5, 75] {
            let (mut cpu, mut cuda) = both(device, &model, BufferOptions::default());
            let tokens = ids(&model, 100);
            let mut there = cpu.create().unwrap();
            let mut here = cuda.create().unwrap();
            prefill(&mut cpu, &mut there, &tokens[..prompt]);
            prefill(&mut cuda, &mut here, &tokens[..prompt]);
            let from_cpu = cpu.export(&there).unwrap().unwrap();
            let from_cuda = cuda.export(&here).unwrap().unwrap();
            let expected = window(&mut cpu, &mut there, &tokens[prompt..prompt + 4]);
            let mut moved = [
                ("to the device", cuda.import(from_cpu).unwrap()),
                ("back to the device", cuda.import(from_cuda.fork().unwrap()).unwrap()),
            ];
            for (what, sequence) in &mut moved {
                let mut fork = cuda.fork(sequence).unwrap();
                let got = window(&mut cuda, sequence, &tokens[prompt..prompt + 4]);
                assert!(difference(&got, &expected) < EXACT_TOLERANCE, "{golden}, {prompt}, {what}");
                let got = window(&mut cuda, &mut fork, &tokens[prompt..prompt + 4]);
                assert!(difference(&got, &expected) < EXACT_TOLERANCE, "{golden}, {prompt}, a fork {what}");
            }
            let mut moved = cpu.import(from_cuda).unwrap();
            let got = window(&mut cpu, &mut moved, &tokens[prompt..prompt + 4]);
            assert!(difference(&got, &expected) < EXACT_TOLERANCE, "{golden}, {prompt}, to the processor");
        }
    }
}

#[test]
fn the_prediction_head_gives_the_logits_of_the_processor() {
    let Some((name, device)) = device() else { return };
    for folder in ["forms/qwen35-wrapper", "forms/qwen35-moe-wrapper"] {
        let model = load(folder);
        let tokens = ids(&model, 24);
        let (mut cpu, mut cuda) = both(device, &model, BufferOptions::default());
        let run = |runner: &mut Runner, hidden: Option<&[f32]>| {
            let mut sequence = runner.create().unwrap();
            runner.outputs_mut().want_hidden = true;
            prefill(runner, &mut sequence, &tokens[..20]);
            let own = runner.outputs().hidden.clone();
            let hidden = hidden.unwrap_or(&own).to_vec();
            let mut outputs = Outputs { want_hidden: true, ..Outputs::default() };
            let mut logits = Vec::new();
            for rows in [0..12, 12..20] {
                let segment = MtpSegment {
                    slot: sequence.slot(),
                    start: rows.start,
                    tokens: &tokens[rows.start + 1..rows.end + 1],
                    hidden: &hidden[rows.start * model.spec.hidden..rows.end * model.spec.hidden],
                    logits: WantLogits::All,
                };
                runner.step_mtp(&[segment], &mut outputs).unwrap();
                logits.extend_from_slice(&outputs.logits);
                logits.extend_from_slice(&outputs.hidden);
            }
            runner.release(sequence);
            (own, logits)
        };
        let (hidden, expected) = run(&mut cpu, None);
        let (own, got) = run(&mut cuda, Some(&hidden));
        assert!(difference(&own, &hidden) < EXACT_TOLERANCE, "{name}, {folder}: hidden states");
        assert!(difference(&got, &expected) < EXACT_TOLERANCE, "{name}, {folder}: predictions");
    }
}

#[test]
fn a_cache_of_half_floats_differs_by_its_rounding() {
    let Some((_, device)) = device() else { return };
    let model = load("golden/qwen35-dense");
    let tokens = ids(&model, 90);
    let (buffer, windows) = (BufferOptions::default(), [(1, 1), (3, 3)]);
    let mut cpu = cpu(&model, buffer, KvType::F16, Arithmetic::Exact);
    let mut cuda = cuda(device, &model, buffer, KvType::F16, Arithmetic::Exact);
    let expected = schedule(&mut cpu, &tokens, 65, &windows);
    let error = difference(&schedule(&mut cuda, &tokens, 65, &windows), &expected);
    assert!(error < 1e-3, "{error:e}");
}

#[test]
fn what_the_backend_cannot_do_is_an_error_and_changes_nothing() {
    let Some((_, device)) = device() else { return };
    let model = load("golden/qwen35-dense");
    let spec = Arc::new(model.spec.clone());
    let long = BufferOptions { stateless_below: Some(1000), ..BufferOptions::default() };
    let options = |buffer| CudaOptions { kv_type: KvType::F16, buffer, arithmetic: Arithmetic::Quantised };
    let refused = CudaBackend::new(device.clone(), spec.clone(), &model.weights, options(long));
    assert!(matches!(refused.err(), Some(BackendError::Unsupported { max: 128, .. })));
    let fitting = CudaBackend::fitting(long, &spec);
    assert!(CudaBackend::new(device.clone(), spec.clone(), &model.weights, options(fitting)).is_ok());

    let mut runner = cuda(device, &model, BufferOptions::default(), KvType::F16, Arithmetic::Quantised);
    let mut sequence = runner.create().unwrap();
    let tokens = vec![1; 9];
    let mut fails = |tokens: &[u32], kind| {
        let work = Work { sequence: &mut sequence, tokens, kind, logits: WantLogits::Last };
        runner.step(&mut [work]).err()
    };
    assert!(matches!(
        fails(&tokens, PassKind::Window),
        Some(RunError::Backend(BackendError::Window { rows: 9, max: 8 }))
    ));
    assert!(matches!(
        fails(&[1, 512], PassKind::Prefill),
        Some(RunError::Backend(BackendError::Token { token: 512, vocab: 512 }))
    ));
    assert!(fails(&tokens, PassKind::Prefill).is_none());
    assert_eq!(sequence.position(), 9);
}
