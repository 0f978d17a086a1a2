//! Logits and greedy tokens equal those of other people's code, through every path.

use millpond_tests::reference::{Reference, check_prompt, data, relative_error};
use millpond_tests::runners::{buffered, greedy, load, prefill_logits, stepwise_logits, window};

const TINY: [&str; 5] = ["qwen35-dense", "qwen35-untied", "qwen35-real-heads", "qwen35-moe", "qwen3-next"];

fn check_all(name: &str, what: &str, mut logits: impl FnMut(&[u32]) -> Vec<f32>) {
    let reference = Reference::open(&data().join("golden").join(name).join("golden.safetensors"));
    assert!(reference.prompts() > 0);
    for prompt in 0..reference.prompts() {
        let ids = reference.integers(&format!("prompt.{prompt}.ids"));
        if let Err(error) = check_prompt(&reference, prompt, &logits(&ids)) {
            panic!("{name}, {what}: {error}");
        }
    }
}

#[test]
fn one_prefill_gives_the_reference_logits() {
    for name in TINY {
        let model = load(&data().join("golden").join(name));
        let mut runner = buffered(&model, 16);
        check_all(name, "one prefill", |ids| prefill_logits(&mut runner, ids));
    }
}

#[test]
fn token_by_token_gives_the_reference_logits_at_every_fold_interval() {
    for name in TINY {
        let model = load(&data().join("golden").join(name));
        for interval in [1, 4, 16, 64] {
            let mut runner = buffered(&model, interval);
            check_all(name, &format!("C = {interval}"), |ids| stepwise_logits(&mut runner, ids));
        }
    }
}

#[test]
fn any_split_into_prefill_and_windows_gives_the_reference_logits() {
    for name in TINY {
        let model = load(&data().join("golden").join(name));
        for (prefill, width) in [(1, 3), (63, 5), (64, 8), (70, 2), (129, 7)] {
            let mut runner = buffered(&model, 16);
            check_all(name, &format!("prefill {prefill}, windows of {width}"), |ids| {
                let (head, tail) = ids.split_at(prefill.min(ids.len()));
                let mut sequence = runner.create().unwrap();
                let want = millpond::backend::WantLogits::All;
                let mut logits = runner.prefill(&mut sequence, head, 1 << 20, want).unwrap().logits.clone();
                for tokens in tail.chunks(width) {
                    logits.extend(window(&mut runner, &mut sequence, tokens));
                    runner.commit(&mut sequence, tokens.len()).unwrap();
                }
                runner.release(sequence);
                logits
            });
        }
    }
}

#[test]
fn greedy_tokens_are_the_reference_ones() {
    for name in TINY {
        let model = load(&data().join("golden").join(name));
        let reference = Reference::open(&data().join("golden").join(name).join("golden.safetensors"));
        let mut runner = buffered(&model, 16);
        for prompt in 0..reference.prompts() {
            let ids = reference.integers(&format!("prompt.{prompt}.ids"));
            let expected = reference.integers(&format!("prompt.{prompt}.greedy"));
            assert_eq!(greedy(&mut runner, &ids, expected.len()), expected, "{name}, prompt {prompt}");
        }
    }
}

#[test]
fn the_residual_stream_agrees_layer_by_layer() {
    for name in TINY {
        let model = load(&data().join("golden").join(name));
        let reference = Reference::open(&data().join("golden").join(name).join("golden.safetensors"));
        let mut runner = buffered(&model, 16);
        runner.outputs_mut().want_residuals = true;
        prefill_logits(&mut runner, &reference.integers("prompt.1.ids"));
        for (layer, residual) in runner.outputs().residuals.iter().enumerate() {
            let error = relative_error(residual, reference.floats(&format!("hidden.{layer}")));
            assert!(error < 2e-5, "{name}, before layer {layer}: {error:e}");
        }
        assert_eq!(runner.outputs().residuals.len(), model.spec.layers.len());
    }
}
