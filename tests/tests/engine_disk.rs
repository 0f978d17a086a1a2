//! The disk tier of the prefix cache: what memory has no room for comes back from files, or is read again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use millpond::engine::{Engine, EngineOptions};
use millpond_tests::engines::{answer, built_in_model, engine, greedy, options};

/// An engine whose prefix cache has no room in memory.
fn without_memory(folder: &Path) -> EngineOptions {
    EngineOptions { cache_budget: Some(0), cache_dir: Some(folder.to_owned()), ..options() }
}

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| 100 + (i * 37 + seed * 1009) % 5000).collect()
}

/// The files of all models.
fn files(folder: &Path) -> Vec<PathBuf> {
    let inner =
        |path: PathBuf| std::fs::read_dir(path).expect("a folder").map(|entry| entry.expect("one").path());
    inner(folder.to_owned()).flat_map(inner).collect()
}

/// Waits until an engine has written what it is about to write: it says so when it runs something.
fn settled(engine: &Engine, at_least: usize) {
    let started = Instant::now();
    while engine.handle().stats().cache_files < at_least || engine.handle().stats().cache_file_bytes == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", engine.handle().stats());
        answer(engine, greedy(&[1, 2, 3], 1));
    }
}

#[test]
fn what_memory_has_no_room_for_comes_back() {
    let model = built_in_model();
    let cold: Vec<_> =
        (0..3).map(|i| answer(&engine(&model, options()), greedy(&prompt(i, 400), 8))).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let first = engine(&model, without_memory(folder.path()));
    for i in 0..3 {
        answer(&first, greedy(&prompt(i, 400), 8));
    }
    settled(&first, 3);
    for i in 0..3 {
        let again = answer(&first, greedy(&prompt(i, 400), 8));
        assert!(again.usage.cached_tokens >= 256, "{:?}", again.usage);
        assert_eq!(again.tokens, cold[i as usize].tokens);
    }
    drop(first);
    // A second life, which also remembers what only memory held.
    let second = engine(&model, EngineOptions { cache_budget: None, ..without_memory(folder.path()) });
    let again = answer(&second, greedy(&prompt(1, 400), 8));
    assert!(again.usage.cached_tokens >= 256, "{:?}", again.usage);
    assert_eq!(again.tokens, cold[1].tokens);
    assert_eq!(answer(&second, greedy(&prompt(9, 700), 8)).usage.cached_tokens, 0);
    drop(second);
    let third = engine(&model, without_memory(folder.path()));
    let longer = [prompt(9, 700), vec![7; 20]].concat();
    assert!(answer(&third, greedy(&longer, 8)).usage.cached_tokens >= 512);
}

/// Exact reuse from files gives the bits of a run without a cache.
#[test]
fn exact_reuse_from_files_gives_the_bits_of_a_cold_run() {
    let model = built_in_model();
    let request = || millpond::engine::Request { logprobs: Some(4), ..greedy(&prompt(4, 500), 12) };
    let cold = answer(&engine(&model, options()), request());
    let folder = tempfile::tempdir().expect("a folder");
    let exact = EngineOptions { exact_cache: true, ..without_memory(folder.path()) };
    let engine = engine(&model, exact);
    answer(&engine, greedy(&prompt(4, 480), 4));
    settled(&engine, 1);
    let warm = answer(&engine, request());
    assert!(warm.usage.cached_tokens.is_multiple_of(64));
    assert_eq!((&warm.tokens, &warm.logprobs), (&cold.tokens, &cold.logprobs));
}

#[test]
fn files_that_cannot_be_read_are_no_loss() {
    let model = built_in_model();
    let folder = tempfile::tempdir().expect("a folder");
    let first = engine(&model, without_memory(folder.path()));
    let expected = answer(&first, greedy(&prompt(5, 400), 8)).tokens;
    settled(&first, 1);
    drop(first);
    let found = files(folder.path());
    assert!(!found.is_empty());
    for (i, file) in found.iter().enumerate() {
        let mut bytes = std::fs::read(file).expect("a file");
        match i % 3 {
            0 => *bytes.last_mut().expect("bytes") ^= 1,
            1 => bytes.truncate(bytes.len() / 2),
            _ => bytes[40] ^= 1,
        }
        std::fs::write(file, bytes).expect("written");
    }
    std::fs::write(found[0].with_file_name("something.else"), b"no snapshot").expect("written");
    std::fs::write(found[0].with_file_name("0123456789abcdef.session"), b"no snapshot").expect("written");
    let second = engine(&model, without_memory(folder.path()));
    let again = answer(&second, greedy(&prompt(5, 400), 8));
    assert_eq!((again.usage.cached_tokens, &again.tokens), (0, &expected));
    // What was read anew is written anew.
    settled(&second, 1);
    drop(second);
    let third = engine(&model, without_memory(folder.path()));
    let again = answer(&third, greedy(&prompt(5, 400), 8));
    assert!(again.usage.cached_tokens >= 256, "{:?}", again.usage);
    assert_eq!(again.tokens, expected);
}

#[test]
fn files_keep_to_their_budget() {
    let model = built_in_model();
    let folder = tempfile::tempdir().expect("a folder");
    let first = engine(&model, without_memory(folder.path()));
    answer(&first, greedy(&prompt(0, 300), 4));
    settled(&first, 1);
    let budget = 3 * first.handle().stats().cache_file_bytes;
    drop(first);
    let small = engine(&model, EngineOptions { cache_dir_budget: budget, ..without_memory(folder.path()) });
    for i in 1..12 {
        answer(&small, greedy(&prompt(i, 300), 4));
        assert!(small.handle().stats().cache_file_bytes <= budget);
    }
    drop(small);
    let again = engine(&model, EngineOptions { cache_dir_budget: budget, ..without_memory(folder.path()) });
    assert!(again.handle().stats().cache_file_bytes <= budget);
    drop(again);
    let left: u64 = files(folder.path()).iter().map(|file| file.metadata().expect("it is there").len()).sum();
    assert!(left > 0 && left <= budget, "{left} bytes, {budget} are allowed");
}

/// A folder that cannot be written costs the files and nothing else.
#[cfg(unix)]
#[test]
fn a_folder_that_is_none_is_done_without() {
    let model = built_in_model();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, b"").expect("written");
    let engine = engine(&model, without_memory(&file));
    let first = answer(&engine, greedy(&prompt(2, 300), 4));
    let second = answer(&engine, greedy(&prompt(2, 300), 4));
    assert_eq!((second.usage.cached_tokens, second.tokens), (0, first.tokens));
}
