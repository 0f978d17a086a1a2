//! `quantize` and `pack` as a user meets them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/delta-48m-Q4_K_M.gguf");
const FLOATS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/forms/gguf/qwen35-bf16.gguf");
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/forms/qwen35-wrapper");

fn millpond(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.args(arguments).env_clear().env("NO_COLOR", "1").stdin(Stdio::null()).output().unwrap()
}

/// Standard output of a command line that must work.
fn works(arguments: &[&str]) -> String {
    let output = millpond(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code and standard error of one that must not.
fn fails(arguments: &[&str]) -> (i32, String) {
    let output = millpond(arguments);
    assert!(!output.status.success(), "{arguments:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a model says.
fn says(model: &str) -> String {
    works(&["-m", model, "-p", "The king said", "-n", "8", "--temp", "0"])
}

fn names(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_packed_model_answers_as_the_original() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.mill");
    let report = works(&["pack", MODEL, "-o", text(&path), "--verify"]);
    assert!(report.contains("Q6_K") && report.contains("model.mill"), "{report}");
    assert_eq!(says(text(&path)), says(MODEL));
    assert_eq!(
        works(&["tokenize", "-m", text(&path), "a b  c\u{e9}", "--ids"]),
        works(&["tokenize", "-m", MODEL, "a b  c\u{e9}", "--ids"])
    );
    let seen = works(&["inspect", "--verify", text(&path)]);
    assert!(seen.contains("packed version 1") && seen.contains("layers"), "{seen}");

    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (code, error) = fails(&["inspect", "--verify", text(&path)]);
    assert!(code == 1 && error.contains("damaged"), "{error}");
    bytes.truncate(last);
    std::fs::write(&path, &bytes).unwrap();
    let (code, error) = fails(&["run", "-m", text(&path), "x", "-n", "1"]);
    assert!(code == 1 && error.contains("bytes long"), "{error}");
}

#[test]
fn quantised_files_run_wherever_they_come_from() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one.gguf"), folder.path().join("other.mill"));
    let report = works(&["quantize", FLOATS, text(&one), "Q8_0", "1"]);
    assert!(report.contains("Q8_0") && report.contains("bits a weight"), "{report}");
    works(&["pack", FOLDER, "-o", text(&other), "--type", "Q8_0"]);
    assert_eq!(says(text(&one)), says(text(&other)));
    // Two files, and nothing temporary.
    assert_eq!(names(folder.path()).len(), 2);
}

#[test]
fn what_cannot_be_done_is_said_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let out = text(&path);
    for (arguments, code, named) in [
        (vec!["quantize", FLOATS, out, "Q9_K"], 2, "Q4_K_M"),
        (vec!["quantize", FLOATS, "--output", out], 2, "type"),
        (vec!["pack", FLOATS, "-o", out, "--pure"], 2, "--type"),
        (vec!["pack", FLOATS, "-o", out, "--type", "Q8_0", "--output-tensor-type", "Q1"], 2, "Q1"),
        (vec!["quantize", MODEL, out, "Q4_0"], 1, "--allow-requantize"),
        (vec!["pack", "absent.gguf", "-o", out], 1, "absent.gguf"),
        (vec!["inspect", "--verify", MODEL], 2, "checksums"),
    ] {
        let (found, error) = fails(&arguments);
        assert!(found == code && error.contains(named), "{arguments:?}: {found} {error}");
    }
    assert!(names(folder.path()).is_empty());
    let (code, error) = fails(&["quantize", FLOATS, FLOATS, "Q8_0"]);
    assert!(code == 1 && error.contains("input as well"), "{error}");
}
