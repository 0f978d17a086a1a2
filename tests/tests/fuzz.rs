//! The fuzz bodies over their committed corpora and damaged copies of them.

use std::path::{Path, PathBuf};

use millpond_tests::fuzz::{Mutation, TARGETS, Target};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Damaged files for each body.
const CASES: u32 = 400;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} holds files", folder.display());
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let numbers =
        [0u64, 1, u64::from(u32::MAX), 1 << 32, 1 << 63, u64::MAX].map(|n| n.to_le_bytes().to_vec());
    let pieces =
        [&b"9999999999"[..], b"-1", b"1e999", b"null", b"[[[[", b"{\"", b"{%", b"{{", b"%}", b"\xff", b"\0"];
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..9),
        prop::sample::select(numbers.to_vec()),
        prop::sample::select(pieces.map(<[u8]>::to_vec).to_vec()),
    ];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (any::<usize>(), bytes.clone()).prop_map(|(at, bytes)| Mutation::Overwrite(at, bytes)),
        (any::<usize>(), bytes).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (any::<usize>(), any::<usize>()).prop_map(|(at, count)| Mutation::Delete(at, count)),
        (any::<usize>(), any::<usize>()).prop_map(|(at, count)| Mutation::Repeat(at, count)),
        any::<usize>().prop_map(Mutation::Truncate),
    ]
}

fn run((name, body): Target) {
    let files = corpus(name);
    for (_, bytes) in &files {
        body(bytes);
    }
    let damaged = (prop::sample::select(files), prop::collection::vec(mutation(), 1..5));
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) };
    let result = TestRunner::new(config).run(&damaged, |((path, mut bytes), mutations)| {
        mutations.iter().for_each(|mutation| mutation.apply(&mut bytes));
        let panicked = std::panic::catch_unwind(|| body(&bytes)).is_err();
        prop_assert!(!panicked, "{name} on a damaged {}", path.display());
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn target(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.0 == name).expect("a target of this name")
}

#[test]
fn gguf() {
    run(target("gguf"));
}

#[test]
fn packed() {
    run(target("packed"));
}

#[test]
fn safetensors() {
    run(target("safetensors"));
}

#[test]
fn config() {
    run(target("config"));
}

#[test]
fn tokenizer_json() {
    run(target("tokenizer_json"));
}

#[test]
fn template() {
    run(target("template"));
}

#[test]
fn each_body_has_a_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let wrapper = std::fs::read_to_string(folder.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(wrapper.contains(&format!("millpond_tests::fuzz::{name}")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
