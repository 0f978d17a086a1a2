//! Rules of the house that a compiler does not check.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every file of the repository's own text, with its path from the root.
fn files(extensions: &[&str]) -> Vec<(String, String)> {
    fn walk(folder: &Path, root: &Path, extensions: &[&str], found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder).expect("a readable folder").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "data" && name != "corpus" {
                    walk(&path, root, extensions, found);
                }
            } else if extensions.iter().any(|extension| name.ends_with(extension)) {
                let text = std::fs::read_to_string(&path).expect("text");
                let path = path.strip_prefix(root).expect("inside the root").display().to_string();
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &root(), extensions, &mut found);
    assert!(!found.is_empty());
    found
}

#[test]
fn crates_depend_in_one_direction() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("metadata");
    let mut arrows = BTreeSet::new();
    for package in metadata["packages"].as_array().expect("packages") {
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let (from, to) = (package["name"].as_str().unwrap(), dependency["name"].as_str().unwrap());
            if to.starts_with("millpond") && dependency["kind"].is_null() && from != "millpond-tests" {
                arrows.insert((from.to_owned(), to.to_owned()));
            }
            assert!(
                !(from == "millpond-simd" && to == "rayon" && dependency["kind"].is_null()),
                "kernels do not spawn"
            );
        }
    }
    let allowed = [
        ("millpond", "millpond-simd"),
        ("millpond", "millpond-models"),
        ("millpond-capi", "millpond"),
        ("millpond-cuda", "millpond"),
        ("millpond-cuda", "millpond-models"),
        ("millpond-cuda", "millpond-simd"),
        ("millpond-server", "millpond"),
        ("millpond-server", "millpond-simd"),
        ("millpond-server", "millpond-models"),
        ("millpond-server", "millpond-cuda"),
    ];
    for (from, to) in &arrows {
        assert!(allowed.contains(&(from, to)), "{from} must not depend on {to}");
    }
    assert!(arrows.contains(&("millpond".to_owned(), "millpond-simd".to_owned())));
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let rooms = ["simd/", "cuda/", "runtime/src/file/mmap.rs", "runtime/src/par/", "runtime/capi/"];
    for (path, text) in files(&[".rs"]) {
        if rooms.iter().any(|room| path.starts_with(room)) || path == "tests/tests/tidy.rs" {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let found =
                code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl");
            assert!(!found, "{path}:{}: unsafe code outside its rooms", number + 1);
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    let words = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!(", "#[ignore"];
    for (path, text) in files(&[".rs", ".toml", ".cu", ".html"]) {
        if path == "tests/tests/tidy.rs" {
            continue;
        }
        for word in words {
            assert!(!text.contains(word), "{path} contains {word}");
        }
    }
}

#[test]
fn files_are_of_a_size_to_read() {
    for (path, text) in files(&[".rs", ".cu", ".py"]) {
        let lines = text.lines().count();
        assert!(lines <= 700, "{path} has {lines} lines: look for the seam");
    }
}

#[test]
fn every_source_file_says_what_it_is() {
    for (path, text) in files(&[".rs"]) {
        if path.ends_with("/tests.rs") {
            continue; // tests of the module they lie in
        }
        let first = text.lines().find(|line| !line.starts_with("#!")).unwrap_or_default();
        assert!(first.starts_with("//!"), "{path} starts without a module comment");
    }
}

#[test]
fn the_readme_names_the_test_command_that_continuous_integration_runs() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let ci = std::fs::read_to_string(root().join(".ci/run")).unwrap();
    assert!(readme.contains("cargo test --workspace"));
    assert!(ci.contains("\ncargo test --workspace\n"));
    assert!(readme.contains("cargo run --release -- run \"The king looked at the dragon and said\""));
}
