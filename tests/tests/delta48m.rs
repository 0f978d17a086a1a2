//! The built-in model against transformers' outputs of the weights it stands for.

use millpond::backend::{MtpSegment, Outputs, WantLogits};
use millpond::load::{LoadedModel, TokenizerSource};
use millpond::runner::{BufferOptions, Runner};
use millpond_simd::Isa;
use millpond_tests::reference::{Reference, data, relative_error};
use millpond_tests::runners::{backend, greedy, load, window};

fn model() -> LoadedModel {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    load(&root.join("server/assets/delta-48m-Q4_K_M.gguf"))
}

/// Without poisoned memory, which costs a pass over it each step.
fn runner(model: &LoadedModel) -> Runner {
    let options = BufferOptions::default();
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
    let tokenizer = millpond::text::Tokenizer::from_json(
        &std::fs::read(data().join("delta48m/tokenizer.json")).unwrap(),
        None,
    )
    .unwrap();
    let prose = std::fs::read_to_string(data().join("delta48m/heldout.txt")).unwrap();
    let ids = &tokenizer.encode(&prose[..8000], false).unwrap()[..513];
    let mut runner = runner(&model);
    let mut sequence = runner.create().unwrap();
    // Half by one prefill, half by windows of five, so that both paths are in the sum.
    let mut logits =
        runner.prefill(&mut sequence, &ids[..257], 1 << 20, WantLogits::All).unwrap().logits.clone();
    for tokens in ids[257..512].chunks(5) {
        logits.extend(window(&mut runner, &mut sequence, tokens));
        runner.commit(&mut sequence, tokens.len()).unwrap();
    }
    let mut total = 0.0;
    for (row, &id) in logits.chunks_exact(model.spec.vocab).zip(&ids[1..]) {
        let max = row.iter().fold(f32::MIN, |m, &x| m.max(x)) as f64;
        let sum: f64 = row.iter().map(|&x| (x as f64 - max).exp()).sum();
        total += max + sum.ln() - row[id as usize] as f64;
    }
    let loss = total / 512.0;
    assert!((loss - expected).abs() < 1e-4, "{loss} for {expected}");
}
