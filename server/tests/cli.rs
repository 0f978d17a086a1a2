//! The binary as a user meets it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn millpond(arguments: &[&str]) -> Output {
    command(arguments).stdin(Stdio::null()).output().unwrap()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.args(arguments).env_clear().env("NO_COLOR", "1");
    command
}

fn with_input(arguments: &[&str], input: &str) -> Output {
    let mut child = command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/delta-48m-Q4_K_M.gguf");
const KING: &str = "The king looked at the dragon and said";

#[test]
fn the_built_in_model_continues_a_text_as_the_reference_does() {
    let output = millpond(&["run", KING, "-n", "11", "--temp", "0"]);
    assert!(output.status.success(), "{}", stderr(&output));
    // What llama.cpp makes of the same file; further on, near-ties may fall either way.
    let reference = ": \"What a fool I was to see you with my own eyes!";
    let text = stdout(&output);
    assert!(text.len() > 30 && reference.starts_with(&text), "{text}");
    assert_eq!(stderr(&output), "");
}

#[test]
fn prompts_come_from_everywhere_and_mean_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, format!("{KING}\n")).unwrap();
    let expected = stdout(&millpond(&["run", KING, "-n", "4", "--temp", "0"]));
    let same = [
        millpond(&["-m", MODEL, "-p", KING, "-n", "4", "--temp", "0"]),
        millpond(&["run", "-f", file.to_str().unwrap(), "-n", "4", "--temp", "0", "-t", "1"]),
        millpond(&["-ngl", "99", "-fa", "on", "-p", KING, "--n-predict", "4", "--temp", "0"]),
        with_input(&["run", "-n", "4", "--temp", "0"], KING),
    ];
    for output in same {
        assert_eq!(stdout(&output), expected, "{}", stderr(&output));
    }
}

#[test]
fn a_seed_repeats_an_answer_whatever_the_threads() {
    let answer = |threads| stdout(&millpond(&["run", "Once", "-n", "12", "-s", "42", "-t", threads]));
    assert_eq!(answer("1"), answer("2"));
}

#[test]
fn a_chat_answer_ends_by_itself_without_markers() {
    let output = millpond(&["run", "--chat", "Hello!", "-n", "200", "--temp", "0"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(!text.is_empty() && !text.contains("<|im_end|>"), "{text}");
}

#[test]
fn dropped_options_get_one_line_and_unknown_ones_the_nearest() {
    let output = millpond(&["-p", "x", "-n", "1", "-fa", "on", "--cache-reuse", "256"]);
    assert!(output.status.success());
    assert_eq!(stderr(&output), "millpond: ignored, as they have no meaning here: -fa --cache-reuse\n");
    for (arguments, nearest) in [
        (vec!["run", "x", "--tempp", "1"], "--temp"),
        (vec!["run", "x", "-topk", "1"], "--top-k"),
        (vec!["inspct", "x"], "inspect"),
    ] {
        let output = millpond(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(nearest), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn wrong_usage_is_2_and_failure_is_1() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage.gguf");
    std::fs::write(&garbage, b"GGUF but not really").unwrap();
    let cases: [(&[&str], i32, &str); 12] = [
        (&["run", "x", "-p", "y"], 2, "cannot be used with"),
        (&["run", "x", "-n", "-7"], 2, "-n -7"),
        (&["run", "x", "--top-p", "2"], 2, "top_p"),
        (&["run", "x", "-ctk", "f16", "-ctv", "f32"], 2, "must be the same"),
        (&["run", "x", "--isa", "mmx"], 2, "mmx"),
        (&["perplexity", "-f", MODEL, "-c", "1"], 2, "at least 4"),
        (&["run", "x", "-m", "/no/such/file"], 1, "/no/such/file"),
        (&["run", "mistyped.gguf", "Once"], 1, "mistyped.gguf: No such file"),
        (&["run", "x", "-m", garbage.to_str().unwrap()], 1, "garbage.gguf"),
        (&["inspect", garbage.to_str().unwrap()], 1, "garbage.gguf"),
        (&["run", "one two three four five", "-c", "4"], 1, "exceed the context of 4"),
        (&["run", "--chat"], 2, "the prompt is empty"),
    ];
    for (arguments, code, message) in cases {
        let output = millpond(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(message), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut child = command(&["inspect", "--all", MODEL])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn tokenize_prints_ids_pieces_or_their_number() {
    let ids = millpond(&["tokenize", "--ids", "<|im_start|>user"]);
    let ids: Vec<u32> = serde_json::from_str(&stdout(&ids)).unwrap();
    assert_eq!(ids[0], 1);
    let plain = millpond(&["tokenize", "--ids", "--no-parse-special", "<|im_start|>user"]);
    let plain: Vec<u32> = serde_json::from_str(&stdout(&plain)).unwrap();
    assert!(plain.len() > ids.len() && !plain.contains(&1));
    let count = with_input(&["tokenize", "--show-count"], "<|im_start|>user");
    assert_eq!(stdout(&count).trim().parse::<usize>().unwrap(), ids.len());
    let pieces = stdout(&millpond(&["tokenize", "<|im_start|>user"]));
    assert_eq!(pieces.lines().next(), Some("     1  \"<|im_start|>\""));
}

#[test]
fn inspect_tells_shapes_and_memory() {
    let text = stdout(&millpond(&["show", MODEL]));
    for part in ["qwen35", "12 (9 linear, 3 attention", "16384", "4 query, 1 key/value of 128"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let json = stdout(&millpond(&["inspect", "--json", MODEL]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["model"]["layers"], 12);
    assert_eq!(json["problem"], serde_json::Value::Null);
}

/// A tensor of a safetensors file: its shape and its values' bytes.
fn tensor(path: &Path, name: &str) -> (Vec<usize>, Vec<[u8; 4]>) {
    use millpond::file::mmap::{Access, open};
    let file = millpond::file::safetensors::SafetensorsFile::parse(open(path, Access::Map).unwrap()).unwrap();
    let tensor = file.tensors().iter().find(|tensor| tensor.name == name).unwrap();
    let bytes = &file.source().bytes()[tensor.range.clone()];
    (tensor.shape.clone(), bytes.chunks_exact(4).map(|bytes| bytes.try_into().unwrap()).collect())
}

fn floats(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let (shape, values) = tensor(path, name);
    (shape, values.into_iter().map(f32::from_le_bytes).collect())
}

#[test]
fn logits_are_those_of_transformers() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/golden/qwen35-dense");
    let reference = golden.join("golden.safetensors");
    let (expected_shape, expected) = floats(&reference, "prompt.1.logits");
    let (_, ids) = tensor(&reference, "prompt.1.ids");
    let ids: Vec<String> = ids.into_iter().map(|id| i32::from_le_bytes(id).to_string()).collect();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("logits.safetensors");
    let (model, out_text) = (golden.to_str().unwrap(), out.to_str().unwrap());
    let output = millpond(&["logits", "-m", model, "--ids", &ids.join(","), "-o", out_text]);
    assert!(output.status.success(), "{}", stderr(&output));
    let (shape, logits) = floats(&out, "logits");
    assert_eq!(shape, expected_shape);
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let difference = logits.iter().zip(&expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(difference <= 2e-5 * largest, "{difference} of {largest}");
}

#[test]
fn perplexity_is_that_of_llama_cpp() {
    let heldout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/delta48m/heldout.txt");
    let arguments = ["perplexity", "-f", heldout.to_str().unwrap(), "-c", "512", "--chunks", "32", "--json"];
    let output = millpond(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let result: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let perplexity = result["perplexity"].as_f64().unwrap();
    assert!((perplexity / 35.6923 - 1.0).abs() < 0.005, "{perplexity}");
    assert_eq!(result["windows"], 32);
    assert_eq!(result["tokens"], 32 * 255);
}
