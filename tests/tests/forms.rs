//! Layouts of real releases, and llama.cpp's GGUF files of them, give the logits of their originals.

use std::path::{Path, PathBuf};

use millpond::backend::{MtpSegment, Outputs, WantLogits};
use millpond::load::{LoadOptions, LoadedModel, load_model};
use millpond::runner::Runner;
use millpond_tests::reference::{Reference, check_prompt, data, relative_error};
use millpond_tests::runners::{buffered, greedy, load, prefill_logits, stepwise_logits};

const FOLDERS: [&str; 4] = ["qwen35-wrapper", "qwen35-moe-wrapper", "qwen3-next-mtp", "qwen35-plain"];

/// GGUF files and the folders they were converted from; the BF16 ones hold the very values of the checkpoint.
const FILES: [(&str, &str); 5] = [
    ("qwen35-f32.gguf", "qwen35-wrapper"),
    ("qwen35-bf16.gguf", "qwen35-wrapper"),
    ("qwen35-trunk-v2.gguf", "qwen35-wrapper"),
    ("qwen35moe-bf16-00001-of-00003.gguf", "qwen35-moe-wrapper"),
    ("qwen3next-bf16.gguf", "qwen3-next-mtp"),
];

fn forms() -> PathBuf {
    data().join("forms")
}

fn reference(folder: &str) -> Reference {
    Reference::open(&forms().join(folder).join("golden.safetensors"))
}

fn check(model: &LoadedModel, reference: &Reference, what: &str) {
    let mut runner = buffered(model, 16);
    for prompt in 0..reference.prompts() {
        let ids = reference.integers(&format!("prompt.{prompt}.ids"));
        for (path, logits) in
            [("prefill", prefill_logits(&mut runner, &ids)), ("steps", stepwise_logits(&mut runner, &ids))]
        {
            if let Err(error) = check_prompt(reference, prompt, &logits) {
                panic!("{what}, {path}: {error}");
            }
        }
        let expected = reference.integers(&format!("prompt.{prompt}.greedy"));
        assert_eq!(greedy(&mut runner, &ids, expected.len()), expected, "{what}, prompt {prompt}");
    }
}

#[test]
fn hugging_face_layouts_give_their_logits() {
    for folder in FOLDERS {
        check(&load(&forms().join(folder)), &reference(folder), folder);
    }
}

#[test]
fn gguf_files_give_the_logits_of_their_originals() {
    for (file, folder) in FILES {
        check(&load(&forms().join("gguf").join(file)), &reference(folder), file);
    }
}

/// Logits of the multi-token-prediction head for every row but the last, from the normed hidden states.
fn mtp_logits(runner: &mut Runner, ids: &[u32], split: usize) -> Vec<f32> {
    runner.outputs_mut().want_hidden = true;
    let mut sequence = runner.create().unwrap();
    let outputs = runner.prefill(&mut sequence, ids, 1 << 20, WantLogits::None).unwrap();
    let hidden = outputs.hidden.clone();
    let width = hidden.len() / ids.len();
    let mut outputs = Outputs::default();
    let mut logits = Vec::new();
    let rows = ids.len() - 1;
    for (start, end) in [(0, split.min(rows)), (split.min(rows), rows)] {
        let segment = MtpSegment {
            slot: sequence.slot(),
            start,
            tokens: &ids[start + 1..end + 1],
            hidden: &hidden[start * width..end * width],
            logits: WantLogits::All,
        };
        if start < end {
            runner.step_mtp(&[segment], &mut outputs).unwrap();
            logits.extend_from_slice(&outputs.logits);
        }
    }
    runner.release(sequence);
    logits
}

fn check_mtp(model: &LoadedModel, reference: &Reference, what: &str) {
    let mut runner = buffered(model, 16);
    for prompt in 0..reference.prompts() {
        let ids = reference.integers(&format!("prompt.{prompt}.ids"));
        let expected = reference.maybe_floats(&format!("prompt.{prompt}.mtp_logits"));
        if expected.is_empty() {
            continue;
        }
        for split in [ids.len(), 1, ids.len() / 2] {
            let logits = mtp_logits(&mut runner, &ids, split);
            let error = relative_error(&logits[..expected.len()], expected);
            assert!(error < 2e-5, "{what}, prompt {prompt}, split at {split}: {error:e}");
        }
    }
}

#[test]
fn the_prediction_head_gives_its_reference_logits() {
    for folder in ["qwen35-wrapper", "qwen35-moe-wrapper", "qwen3-next-mtp"] {
        let reference = reference(folder);
        assert!(!reference.maybe_floats("prompt.1.mtp_logits").is_empty(), "{folder} has reference logits");
        check_mtp(&load(&forms().join(folder)), &reference, folder);
    }
    check_mtp(
        &load(&forms().join("gguf/qwen35-bf16.gguf")),
        &reference("qwen35-wrapper"),
        "inside the GGUF file",
    );
    let options =
        LoadOptions { mtp: Some(forms().join("gguf/mtp-qwen35-bf16.gguf")), ..LoadOptions::default() };
    let path: &Path = &forms().join("gguf/qwen35-trunk-v2.gguf");
    let separate = load_model(path, &options).unwrap();
    check_mtp(&separate, &reference("qwen35-wrapper"), "in a GGUF file of its own");
    assert!(load(path).spec.mtp.is_none());
}
