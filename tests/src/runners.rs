//! Models on the CPU backend, set up for tests.

use std::path::Path;
use std::sync::Arc;

use millpond::backend::WantLogits;
use millpond::backend::cpu::{Arithmetic, CpuBackend, CpuOptions};
use millpond::load::{LoadOptions, LoadedModel, load_model};
use millpond::par::Team;
use millpond::runner::{BufferOptions, Runner, Sequence, Work};
use millpond::state::PassKind;
use millpond::state::memory::KvType;
use millpond_simd::{Isa, Kernels};

use crate::poison::Poisoned;

/// Loads a model.
pub fn load(path: &Path) -> LoadedModel {
    load_model(path, &LoadOptions::default()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A runner with single-precision attention cache, whose dead memory is full of NaN.
pub fn runner(model: &LoadedModel, options: BufferOptions, threads: usize, isa: Isa) -> Runner {
    let backend = Poisoned::new(backend(model, options, threads, isa));
    Runner::new(Box::new(backend), Arc::new(model.spec.clone()), options, 4096)
}

/// A CPU backend with single-precision attention cache.
pub fn backend(model: &LoadedModel, options: BufferOptions, threads: usize, isa: Isa) -> CpuBackend {
    let cpu = CpuOptions {
        kv_type: KvType::F32,
        state_type: options.state_type,
        max_window: options.max_window,
        fold_interval: options.fold_interval,
        arithmetic: Arithmetic::Exact,
    };
    CpuBackend::new(
        Arc::new(model.spec.clone()),
        Arc::new(model.weights.clone()),
        Kernels::for_isa(isa).expect("an available level"),
        Team::new(threads).expect("threads"),
        cpu,
    )
    .expect("a supported model")
}

/// A runner at the processor's best level, folding every `fold_interval` tokens.
pub fn buffered(model: &LoadedModel, fold_interval: usize) -> Runner {
    let options = BufferOptions { fold_interval, ..BufferOptions::default() };
    runner(model, options, 2, Isa::detect())
}

/// Logits of every position, from one prefill.
pub fn prefill_logits(runner: &mut Runner, ids: &[u32]) -> Vec<f32> {
    let mut sequence = runner.create().expect("a sequence");
    let logits = runner
        .prefill(&mut sequence, ids, usize::MAX / 4, WantLogits::All)
        .expect("a prefill")
        .logits
        .clone();
    runner.release(sequence);
    logits
}

/// Appends tokens as pending rows and returns their logits.
pub fn window(runner: &mut Runner, sequence: &mut Sequence, tokens: &[u32]) -> Vec<f32> {
    let work = Work { sequence, tokens, kind: PassKind::Window, logits: WantLogits::All };
    runner.step(&mut [work]).expect("a window").logits.clone()
}

/// Logits of every position, one token at a time.
pub fn stepwise_logits(runner: &mut Runner, ids: &[u32]) -> Vec<f32> {
    let mut sequence = runner.create().expect("a sequence");
    let mut logits = Vec::new();
    for &id in ids {
        logits.extend(window(runner, &mut sequence, &[id]));
        runner.commit(&mut sequence, 1).expect("one pending row");
    }
    runner.release(sequence);
    logits
}

/// The greedy continuation of a prompt.
pub fn greedy(runner: &mut Runner, ids: &[u32], count: usize) -> Vec<u32> {
    let mut sequence = runner.create().expect("a sequence");
    let mut logits =
        runner.prefill(&mut sequence, ids, 512, WantLogits::Last).expect("a prefill").logits.clone();
    let mut tokens = Vec::new();
    while tokens.len() < count {
        let best = argmax(&logits);
        tokens.push(best);
        logits = window(runner, &mut sequence, &[best]);
        runner.commit(&mut sequence, 1).expect("one pending row");
    }
    runner.release(sequence);
    tokens
}

/// Index of the first largest value.
pub fn argmax(values: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = i;
        }
    }
    best as u32
}
