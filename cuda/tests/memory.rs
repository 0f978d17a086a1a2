//! Device memory comes back: a thousand streams leave nothing behind, in one layer and in a whole model.
//!
//! A file of its own, so that no other test allocates meanwhile.

#[allow(dead_code, reason = "shared with the other tests, which use all of it")]
mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Random, Rig, Tokens, Weights, devices, options, spec};
use millpond::backend::WantLogits;
use millpond::backend::cpu::Arithmetic;
use millpond::load::{LoadOptions, LoadedModel, load_model};
use millpond::runner::{BufferOptions, Runner};
use millpond::state::memory::KvType;
use millpond::state::{Cursor, FoldPolicy, PassKind};
use millpond_cuda::linear::Activation;
use millpond_cuda::{CudaBackend, CudaOptions, Device};
use millpond_models::ModelSpec;

/// One test, so that nothing else allocates meanwhile.
#[test]
fn memory_is_back_to_the_baseline_after_a_thousand_streams() {
    layers_leave_nothing();
    models_leave_nothing();
}

fn layers_leave_nothing() {
    let mut random = Random::new(1);
    let spec = spec(1, 1, 32, 32);
    let weights = Weights::random(&spec, &mut random);
    let tokens = Tokens::random(&spec, 2, &mut random);
    for (name, device) in devices() {
        let stream = || {
            let mut rig = Rig::new(device, &spec, options(Activation::Bf16, 2), &weights);
            let policy = FoldPolicy { interval: 1, phase: 0, stateless: 0, window: 8 };
            let mut cursor = Cursor::new(policy);
            rig.append(1, &mut cursor, &tokens, 0, 2, PassKind::Window);
        };
        // The first loads kernels, which stay.
        stream();
        let before = device.memory_info().unwrap();
        for _ in 0..1000 {
            stream();
        }
        assert_eq!(device.memory_info().unwrap(), before, "{name}");
    }
}

fn models_leave_nothing() {
    let Some((name, device)) = devices().first() else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/golden/qwen35-dense");
    let model = load_model(&path, &LoadOptions::default()).unwrap();
    let spec = Arc::new(model.spec.clone());
    let buffer = BufferOptions { stateless_below: Some(0), ..BufferOptions::default() };
    let options = CudaOptions { kv_type: KvType::F16, buffer, arithmetic: Arithmetic::Quantised };
    // The first passes load kernels, which stay.
    for round in 0..2 {
        let before = device.memory_info().unwrap();
        serve_a_thousand(name, device, &model, &spec, options);
        if round > 0 {
            assert_eq!(device.memory_info().unwrap(), before, "{name}: the model itself");
        }
    }
}

fn serve_a_thousand(
    name: &str,
    device: &Arc<dyn Device>,
    model: &LoadedModel,
    spec: &Arc<ModelSpec>,
    options: CudaOptions,
) {
    let buffer = options.buffer;
    let backend = CudaBackend::new(device.clone(), spec.clone(), &model.weights, options).unwrap();
    let mut runner = Runner::new(Box::new(backend), spec.clone(), buffer, 4096);
    let mut stream = |tokens: &[u32]| {
        let mut sequence = runner.create().unwrap();
        if !tokens.is_empty() {
            runner.prefill(&mut sequence, tokens, 64, WantLogits::Last).unwrap();
        }
        runner.release(sequence);
    };
    stream(&[1; 3]);
    let ready = device.memory_info().unwrap();
    // Where threads are slow, few streams run a pass: memory is taken when a sequence is made and when a page is.
    let every = if name == "GPU" { 1 } else { 250 };
    for count in 0..1000 {
        stream(if count % every == 0 { &[1, 2, 3] } else { &[] });
    }
    assert_eq!(device.memory_info().unwrap(), ready, "{name}: one after the other");
    let sequences: Vec<_> = (0..200).map(|_| runner.create().unwrap()).collect();
    assert!(device.memory_info().unwrap().0 < ready.0, "{name}: sequences take memory");
    sequences.into_iter().for_each(|sequence| runner.release(sequence));
    assert_eq!(device.memory_info().unwrap(), ready, "{name}: all at once");
}
