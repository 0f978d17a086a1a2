//! What short sequences cost, by the operating system's accounting. A process of its own: it measures the process.
#![cfg(target_os = "linux")]

use millpond::backend::WantLogits;
use millpond::runner::{BufferOptions, Sequence};
use millpond_models::{MixerSpec, ModelSpec};
use millpond_simd::Isa;
use millpond_tests::runners::{backend, load};
use millpond_tests::tiny_files::{GGUF_NAMES, as_f32, gguf, gguf_metadata, tensors, tiny_spec};

/// A model with one linear layer whose state is that of four heads of the released ones, and little else.
fn spec() -> ModelSpec {
    let mut spec = tiny_spec("qwen35");
    if let MixerSpec::Linear(linear) = &mut spec.layers[0].mixer {
        (linear.key_heads, linear.value_heads) = (4, 4);
        (linear.key_dim, linear.value_dim) = (128, 128);
    }
    spec
}

/// Resident bytes of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("resident memory");
    let kib: usize = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    kib << 10
}

/// A thousand sequences of 40 tokens hold no state: they cost what their logs cost.
#[test]
fn a_thousand_short_sequences_cost_their_logs() {
    const SEQUENCES: usize = 1000;
    const TOKENS: usize = 40;
    let spec = spec();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let file = gguf(&gguf_metadata(&spec), &as_f32(tensors(&spec, &GGUF_NAMES)));
    std::fs::write(&path, file).expect("a file");
    let model = load(&path);
    let options = BufferOptions { max_window: 1, ..BufferOptions::default() };
    let backend = backend(&model, options, 2, Isa::detect());
    let mut runner = millpond::runner::Runner::new(Box::new(backend), model.spec.clone().into(), options, 64);
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|token| token % 7).collect();
    let run = |runner: &mut millpond::runner::Runner, sequence: &mut Sequence| {
        runner.prefill(sequence, &tokens[..TOKENS - 1], 64, WantLogits::None).expect("a prefill");
        let last = &[TOKENS as u32 % 7];
        let window = millpond::runner::Work {
            sequence: &mut *sequence,
            tokens: last,
            kind: millpond::state::PassKind::Window,
            logits: WantLogits::None,
        };
        runner.step(&mut [window]).expect("a step");
        runner.commit(sequence, 1).expect("one row");
    };
    // Working memory of passes, which all sequences share.
    let mut first = runner.create().expect("room");
    run(&mut runner, &mut first);

    let before = resident();
    let mut sequences: Vec<Sequence> = (0..SEQUENCES).map(|_| runner.create().expect("room")).collect();
    for sequence in &mut sequences {
        run(&mut runner, sequence);
    }
    let full = resident();

    let usage = runner.usage(&sequences[0]).expect("a sequence");
    let (entry, state) = (runner.layout().log_entry_bytes(), runner.layout().state_bytes());
    assert_eq!((usage.base, usage.log), (0, TOKENS * entry));
    // Rings are given by the system when the first row is written; their and the attention cache's share is apart.
    let each = (full - before) / SEQUENCES - usage.conv - usage.kv;
    println!(
        "a sequence of {TOKENS} tokens: {each} bytes for a log of {}, beside rings of {} and an attention cache of {}; a state has {state}",
        usage.log, usage.conv, usage.kv
    );
    assert!(each * 100 <= state * 66, "{each} bytes each, a state has {state}");
    assert!(each * 100 >= usage.log * 95, "{each} bytes resident cannot hold a log of {}", usage.log);
}
