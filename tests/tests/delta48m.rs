//! The built-in model against transformers' outputs of the weights it stands for.

use millpond::backend::{MtpSegment, Outputs, WantLogits};
use millpond::load::{LoadedModel, TokenizerSource};
use millpond::runner::{BufferOptions, Runner};
use millpond::state::memory::StateType;
use millpond_simd::Isa;
use millpond_tests::reference::{Reference, data, relative_error};
use millpond_tests::runners::{backend, greedy, load, window};

fn model() -> LoadedModel {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    load(&root.join("server/assets/delta-48m-Q4_K_M.gguf"))
}

/// Without poisoned memory, which costs a pass over it each step.
fn runner(model: &LoadedModel) -> Runner {
    runner_with(model, BufferOptions::default())
}

fn runner_with(model: &LoadedModel, options: BufferOptions) -> Runner {
    let backend = backend(model, options, 2, Isa::detect());
    Runner::new(Box::new(backend), std::sync::Arc::new(model.spec.clone()), options, 4096)
}

fn reference() -> Reference {
    Reference::open(&data().join("delta48m/reference_q4km.safetensors"))
}

#[test]
fn logits_and_losses_are_the_reference_ones() {
    let model = model();
    assert!(matches!(model.tokenizer, TokenizerSource::Gguf(_)));
    let (mut runner, reference) = (runner(&model), reference());
    runner.outputs_mut().want_hidden = true;
    let vocab = model.spec.vocab;
    for prompt in 0..reference.prompts() {
        let ids = reference.integers(&format!("prompt.{prompt}.ids"));
        let mut sequence = runner.create().unwrap();
        let outputs = runner.prefill(&mut sequence, &ids, 1 << 20, WantLogits::All).unwrap();
        let (logits, hidden) = (outputs.logits.clone(), outputs.hidden.clone());
        let expected = reference.floats(&format!("prompt.{prompt}.last_logits"));
        let error = relative_error(&logits[logits.len() - expected.len()..], expected);
        assert!(error < 2e-5, "prompt {prompt}: {error:e}");

        let losses: Vec<f32> = ids[1..]
            .iter()
            .zip(logits.chunks_exact(vocab))
            .map(|(&id, row)| {
                let max = row.iter().fold(f32::MIN, |m, &x| m.max(x)) as f64;
                let sum: f64 = row.iter().map(|&x| (x as f64 - max).exp()).sum();
                (max + sum.ln() - row[id as usize] as f64) as f32
            })
            .collect();
        let expected = reference.floats(&format!("prompt.{prompt}.nll"));
        assert!(relative_error(&losses, expected) < 1e-4, "losses of prompt {prompt}");

        let rows = ids.len() - 1;
        let segment = MtpSegment {
            slot: sequence.slot(),
            start: 0,
            tokens: &ids[1..],
            hidden: &hidden[..rows * model.spec.hidden],
            logits: WantLogits::All,
        };
        let mut drafts = Outputs::default();
        runner.step_mtp(&[segment], &mut drafts).unwrap();
        let expected = reference.floats(&format!("prompt.{prompt}.mtp_last_logits"));
        let error = relative_error(&drafts.logits[drafts.logits.len() - expected.len()..], expected);
        assert!(error < 2e-5, "prediction head, prompt {prompt}: {error:e}");
        runner.release(sequence);
    }
}

#[test]
fn greedy_tokens_are_the_reference_ones() {
    let model = model();
    let (mut runner, reference) = (runner(&model), reference());
    for prompt in 0..reference.prompts() {
        let ids = reference.integers(&format!("prompt.{prompt}.ids"));
        let length = reference.integers(&format!("prompt.{prompt}.prompt_length"))[0] as usize;
        let expected = reference.integers(&format!("prompt.{prompt}.greedy"));
        assert_eq!(greedy(&mut runner, &ids[..length], expected.len()), expected, "prompt {prompt}");
    }
}

#[test]
fn held_out_prose_has_the_reference_loss() {
    // The first of the windows whose losses `reference_q4km.json` lists: 512 predicted tokens each.
    let text = std::fs::read_to_string(data().join("delta48m/reference_q4km.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = reference["nll_of_windows"][0].as_f64().expect("the loss of the first window");
    let model = model();
    // Half by one prefill, half by windows of five, so that both paths are in the sum.
    let loss = loss(&mut runner(&model), &prose(512), 257);
    assert!((loss - expected).abs() < 1e-4, "{loss} for {expected}");
}

/// The first tokens of held-out prose, and one more.
fn prose(count: usize) -> Vec<u32> {
    let tokenizer = std::fs::read(data().join("delta48m/tokenizer.json")).unwrap();
    let tokenizer = millpond::text::Tokenizer::from_json(&tokenizer, None).unwrap();
    let prose = std::fs::read_to_string(data().join("delta48m/heldout.txt")).unwrap();
    let prose: String = prose.chars().take(16 * count).collect();
    tokenizer.encode(&prose, false).unwrap()[..count + 1].to_vec()
}

/// Mean loss of all tokens but the first: `prefill` of them in one pass, the others in windows of five.
fn loss(runner: &mut Runner, ids: &[u32], prefill: usize) -> f64 {
    let (vocab, count) = (runner.spec().vocab, ids.len() - 1);
    let mut sequence = runner.create().unwrap();
    let mut total = 0.0;
    let mut add = |logits: &[f32], ids: &[u32]| {
        for (row, &id) in logits.chunks_exact(vocab).zip(ids) {
            let max = row.iter().fold(f32::MIN, |m, &x| m.max(x)) as f64;
            let sum: f64 = row.iter().map(|&x| (x as f64 - max).exp()).sum();
            total += max + sum.ln() - row[id as usize] as f64;
        }
    };
    let first = runner.prefill(&mut sequence, &ids[..prefill], 1 << 20, WantLogits::All).unwrap();
    add(&first.logits, &ids[1..]);
    for at in (prefill..count).step_by(5) {
        let rows = at..(at + 5).min(count);
        add(&window(runner, &mut sequence, &ids[rows.clone()]), &ids[rows.start + 1..]);
        runner.commit(&mut sequence, rows.len()).unwrap();
    }
    runner.release(sequence);
    total / count as f64
}

/// A state of 16 bits, folded into from the first token on, does not show in the loss. `--nocapture` prints it.
#[test]
fn a_state_of_16_bits_does_not_show_in_the_loss_of_held_out_prose() {
    let (model, ids) = (model(), prose(256));
    let of = |state_type: StateType, fold_interval: usize| {
        let options =
            BufferOptions { stateless_below: Some(0), state_type, fold_interval, ..BufferOptions::default() };
        loss(&mut runner_with(&model, options), &ids, 64)
    };
    let exact = of(StateType::F32, 16);
    let (each, buffered) = (of(StateType::Bf16, 1), of(StateType::Bf16, 16));
    println!(
        "loss with a state in f32 {exact:.5}, in bf16 rounded once in 16 tokens {buffered:.5}, at each {each:.5}"
    );
    assert!((buffered - exact).abs() < 2e-3, "{buffered} for {exact}");
    assert!((each - exact).abs() < 1e-2, "{each} for {exact}");
}
