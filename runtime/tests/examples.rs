//! The examples run, on the built-in model. `cargo test` builds them beforehand.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Runs an example and returns what it printed.
fn run(name: &str, input: &str) -> String {
    run_in(Path::new("."), name, input)
}

fn run_in(current: &Path, name: &str, input: &str) -> String {
    let this = std::env::current_exe().expect("a path");
    let folder = this.parent().and_then(|deps| deps.parent()).expect("a target folder");
    let path: PathBuf = folder.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let mut child = Command::new(&path)
        .current_dir(current)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; build it with cargo build --examples", path.display()));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("input");
    let output = child.wait_with_output().expect("an end");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_program_of_the_readme_answers() {
    let readme = std::fs::read_to_string(Path::new(ROOT).join("README.md")).expect("the README");
    let source = include_str!("../examples/readme.rs");
    let (_, program) = source.split_once("\n\n").expect("a first line about the file");
    assert!(readme.contains(program), "examples/readme.rs and the README have parted");
    let folder = tempfile::tempdir().expect("a folder");
    let model = Path::new(ROOT).join("server/assets/delta-48m-Q4_K_M.gguf");
    std::fs::copy(model, folder.path().join("model.gguf")).expect("a copy");
    assert!(!run_in(folder.path(), "readme", "").is_empty());
}

#[test]
fn one_shot_goes_on_with_its_prompt() {
    assert!(run("one_shot", "").starts_with("Once upon a time, by a quiet pond,"));
}

#[test]
fn chat_answers_every_line() {
    assert!(run("chat", "Hello\nWho are you?\n").lines().count() >= 2);
}

#[test]
fn many_streams_share_their_passes() {
    let printed = run("many_streams", "");
    let last = printed.lines().last().expect("a line");
    let numbers: Vec<usize> = last.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0] > numbers[1], "{last}");
}

#[test]
fn session_restore_reads_nothing_twice() {
    let printed = run("session_restore", "");
    let last = printed.lines().last().expect("a line");
    let numbers: Vec<usize> = last.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers[0] + 1, numbers[1], "{last}");
}

#[cfg(feature = "grammar")]
#[test]
fn json_schema_yields_an_animal() {
    let printed = run("json_schema", "");
    assert!(["frog", "duck", "carp"].iter().any(|animal| printed.contains(animal)), "{printed}");
}
