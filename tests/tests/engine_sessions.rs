//! Sessions: what is saved comes back whole, or not at all.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use millpond::engine::{Engine, EngineOptions, Request, SessionError, SpecMode};
use millpond_tests::engines::{Golden, answer, built_in_model, engine, golden_model, greedy, options};
use proptest::prelude::*;

fn in_folder(folder: &Path) -> EngineOptions {
    EngineOptions { session_dir: Some(folder.to_owned()), ..options() }
}

fn named(request: Request, session: &str) -> Request {
    Request { session: Some(session.to_owned()), logprobs: Some(2), ..request }
}

/// Answers part of a request, saves, restarts, loads, answers the rest: the same as in one go, and nothing is read
/// twice.
fn continues(start: impl Fn() -> Engine, prompt: &[u32], first: usize, rest: usize) {
    let whole = answer(&start(), named(greedy(prompt, first + rest), "whole"));
    let before = start();
    let begun = answer(&before, named(greedy(prompt, first), "talk"));
    let info = before.handle().save_session("talk", "talk-1").expect("saved");
    assert_eq!(info.tokens, prompt.len() + first - 1, "the last token has no state yet");
    drop(before);
    let after = start();
    let tokens = after.handle().load_session("talk-1", "talk").expect("loaded");
    let longer = [prompt, &begun.tokens].concat();
    assert_eq!(tokens, longer[..info.tokens]);
    let ended = answer(&after, named(greedy(&longer, rest), "talk"));
    assert_eq!(ended.usage.cached_tokens, info.tokens);
    assert_eq!([begun.tokens, ended.tokens].concat(), whole.tokens);
    let logprobs = [begun.logprobs, ended.logprobs].concat();
    assert_eq!(logprobs, whole.logprobs, "bit for bit");
    // What was loaded can be saved again.
    assert_eq!(after.handle().save_session("talk", "talk-2").expect("saved").tokens, longer.len() + rest - 1);
}

#[test]
fn a_restart_changes_nothing() {
    for name in ["qwen35-dense", "qwen3-next"] {
        let (golden, model) = (Golden::of(name), golden_model(name));
        for p in 0..6 {
            let folder = tempfile::tempdir().expect("a folder");
            continues(|| engine(&model, in_folder(folder.path())), &golden.prompt(p).0, 11, 13);
        }
    }
    let model = built_in_model();
    let prompt: Vec<u32> = (0..150u32).map(|i| 100 + i * 37 % 5000).collect();
    for kv_type in [millpond::state::memory::KvType::F16, millpond::state::memory::KvType::F32] {
        let folder = tempfile::tempdir().expect("a folder");
        let options = EngineOptions { kv_type, spec: SpecMode::Auto, ..in_folder(folder.path()) };
        continues(|| engine(&model, options.clone()), &prompt, 20, 20);
    }
}

/// Another longest draft, another fold interval: the state is still of use.
#[test]
fn sessions_outlive_a_change_of_options() {
    let (golden, model) = (Golden::of("qwen35-dense"), golden_model("qwen35-dense"));
    let folder = tempfile::tempdir().expect("a folder");
    let (prompt, expected) = golden.prompt(4);
    let before = engine(&model, in_folder(folder.path()));
    answer(&before, named(greedy(&prompt, 12), "talk"));
    before.handle().save_session("talk", "talk").expect("saved");
    let longer = [&prompt[..], &expected[..12]].concat();
    for (window, interval) in [(4, 16), (16, 16), (8, 1), (8, 32)] {
        let mut changed = in_folder(folder.path());
        changed.spec_draft_max = window - 1;
        changed.buffer.max_window = window;
        changed.buffer.fold_interval = interval;
        let after = engine(&model, changed);
        after.handle().load_session("talk", "talk").expect("loaded");
        let ended = answer(&after, greedy(&longer, 20));
        assert_eq!(ended.tokens, expected[12..], "window {window}, interval {interval}");
        assert_eq!(ended.usage.cached_tokens, longer.len() - 1);
    }
}

#[test]
fn sessions_are_listed_and_deleted() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = engine(&golden_model("qwen35-dense"), in_folder(folder.path()));
    let handle = engine.handle();
    assert!(handle.list_sessions().expect("a list").is_empty());
    answer(&engine, named(greedy(&[1, 2, 3], 2), "a"));
    handle.save_session("a", "first").expect("saved");
    handle.save_session("a", "second.v1").expect("saved");
    std::fs::write(folder.path().join("broken.session"), b"MILLPOND").expect("a file");
    std::fs::write(folder.path().join(".third.saving"), b"left by somebody who was killed").expect("a file");
    let names = |list: Vec<millpond::engine::SessionInfo>| -> Vec<String> {
        list.into_iter().map(|info| info.name).collect()
    };
    assert_eq!(names(handle.list_sessions().expect("a list")), ["first", "second.v1"]);
    handle.save_session("a", "third").expect("what was left there is no obstacle");
    handle.delete_session("first").expect("deleted");
    assert_eq!(names(handle.list_sessions().expect("a list")), ["second.v1", "third"]);
    assert!(matches!(handle.delete_session("first"), Err(SessionError::Unknown(_))));
    assert!(matches!(handle.load_session("first", "a"), Err(SessionError::Unknown(_))));
    assert!(matches!(handle.load_session("broken", "a"), Err(SessionError::Damaged { .. })));
    assert!(handle.erase_session("a").expect("an answer"));
    assert!(!handle.erase_session("a").expect("an answer"));
    assert!(matches!(handle.save_session("a", "x"), Err(SessionError::Unknown(_))));
}

#[test]
fn another_models_session_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = engine(&golden_model("qwen35-dense"), in_folder(folder.path()));
    answer(&first, named(greedy(&[1, 2, 3], 2), "a"));
    first.handle().save_session("a", "a").expect("saved");
    for name in ["qwen35-untied", "qwen3-next"] {
        let other = engine(&golden_model(name), in_folder(folder.path()));
        let error = other.handle().load_session("a", "a").expect_err("a refusal");
        assert!(matches!(error, SessionError::OtherModel { .. }), "{error}");
    }
}

#[test]
fn names_stay_in_the_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = engine(&golden_model("qwen35-dense"), in_folder(folder.path()));
    answer(&engine, named(greedy(&[1, 2, 3], 2), "a"));
    let handle = engine.handle();
    let long = "x".repeat(256);
    for name in [
        "",
        ".",
        "..",
        "a/../b",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "C:\\x",
        "C:x",
        "\\\\host\\share",
        "a\0b",
        &long,
        "a.",
        "a ",
        " a",
        ".hidden",
        "CON",
        "nul",
        "com1",
        "LPT9.txt",
        "a\u{FF0E}b",
        "a\u{2215}b",
        "a\u{2216}b",
        "a\nb",
        "ä",
    ] {
        assert!(matches!(handle.save_session("a", name), Err(SessionError::Name(_))), "{name:?}");
        assert!(matches!(handle.load_session(name, "a"), Err(SessionError::Name(_))), "{name:?}");
        assert!(matches!(handle.delete_session(name), Err(SessionError::Name(_))), "{name:?}");
    }
    for name in ["a", "A-1_b.c", "console", "com10"] {
        handle.save_session("a", name).expect("a good name");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 4, "nothing lies beside them");
}

#[cfg(unix)]
#[test]
fn links_are_not_followed() {
    let (folder, outside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let engine = engine(&golden_model("qwen35-dense"), in_folder(folder.path()));
    answer(&engine, named(greedy(&[1, 2, 3], 2), "a"));
    let handle = engine.handle();
    handle.save_session("a", "a").expect("saved");
    let target = outside.path().join("target");
    std::fs::rename(folder.path().join("a.session"), &target).expect("moved");
    let before = std::fs::read(&target).expect("a file");
    std::os::unix::fs::symlink(&target, folder.path().join("a.session")).expect("a link");
    assert!(matches!(handle.load_session("a", "b"), Err(SessionError::Unknown(_))));
    assert!(handle.list_sessions().expect("a list").is_empty());
    handle.save_session("a", "a").expect("the link itself is replaced");
    assert_eq!(std::fs::read(&target).expect("a file"), before);
    handle.load_session("a", "b").expect("now it is a file");
}

/// A session file, and an engine to load others with.
fn sample(folder: &Path) -> (Engine, Vec<u8>) {
    let engine = engine(&golden_model("qwen35-dense"), in_folder(folder));
    answer(&engine, named(greedy(&[7; 100], 3), "a"));
    engine.handle().save_session("a", "a").expect("saved");
    let bytes = std::fs::read(folder.join("a.session")).expect("a file");
    (engine, bytes)
}

#[test]
fn cut_files_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (engine, bytes) = sample(folder.path());
    let lengths = (0..200).chain((200..bytes.len()).step_by(4096)).chain([bytes.len() - 1]);
    for length in lengths {
        std::fs::write(folder.path().join("cut.session"), &bytes[..length]).expect("a file");
        let error = engine.handle().load_session("cut", "b").expect_err("a refusal");
        assert!(matches!(error, SessionError::Damaged { .. }), "{length}: {error}");
    }
    let longer = [&bytes[..], &[0]].concat();
    std::fs::write(folder.path().join("cut.session"), longer).expect("a file");
    assert!(engine.handle().load_session("cut", "b").is_err());
}

#[test]
fn changed_files_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (engine, bytes) = sample(folder.path());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) };
    proptest!(config, |(at in prop_oneof![0..bytes.len(), 0usize..160], flip in 1u8..=255)| {
        let mut changed = bytes.clone();
        changed[at] ^= flip;
        std::fs::write(folder.path().join("changed.session"), &changed).expect("a file");
        prop_assert!(engine.handle().load_session("changed", "b").is_err(), "byte {} of {}", at, bytes.len());
    });
}

/// A file that claims a thousand million tokens costs nothing to refuse.
#[test]
fn absurd_numbers_are_refused_before_memory_is_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let (engine, bytes) = sample(folder.path());
    for word in 0..9 {
        for value in [0, 1_000_000_000, 1 << 40, u64::MAX, u64::MAX / 4] {
            let mut changed = bytes.clone();
            changed[64 + word * 8..72 + word * 8].copy_from_slice(&value.to_ne_bytes());
            if changed != bytes {
                std::fs::write(folder.path().join("absurd.session"), &changed).expect("a file");
                let error = engine.handle().load_session("absurd", "b").expect_err("a refusal");
                assert!(matches!(error, SessionError::Damaged { .. }), "number {word}: {error}");
            }
        }
    }
}

/// Whoever comes second waits for nobody and is told so; what lies there is always one of the two, whole.
#[test]
fn two_who_save_under_one_name_do_not_mix() {
    let folder = tempfile::tempdir().expect("a folder");
    let writers: Vec<Engine> = [1, 2]
        .map(|token| {
            let engine = engine(&golden_model("qwen35-dense"), in_folder(folder.path()));
            answer(&engine, named(greedy(&[token; 120], 2), "own"));
            engine
        })
        .into();
    writers[0].handle().save_session("own", "shared").expect("saved");
    let reader = engine(&golden_model("qwen35-dense"), in_folder(folder.path()));
    std::thread::scope(|scope| {
        for writer in &writers {
            scope.spawn(|| {
                for _ in 0..40 {
                    match writer.handle().save_session("own", "shared") {
                        Ok(_) | Err(SessionError::Busy(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for _ in 0..40 {
            let tokens = reader.handle().load_session("shared", "shared").expect("a whole file");
            assert!(tokens.len() == 121 && tokens[..120].iter().all(|&token| token == tokens[0]));
        }
    });
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing lies beside it");
}

/// Saves over and over until it is killed; run as a process of its own by the test below.
fn save_for_ever(folder: &Path) {
    let engine = engine(&golden_model("qwen35-dense"), in_folder(folder));
    for (name, token) in [("one", 1), ("two", 2)] {
        answer(&engine, named(greedy(&[token; 120], 2), name));
    }
    loop {
        for name in ["one", "two"] {
            engine.handle().save_session(name, "kept").expect("saved");
        }
    }
}

#[test]
fn killed_while_saving_the_old_or_the_new_file_is_there() {
    const FOLDER: &str = "MILLPOND_TEST_SESSION_FOLDER";
    if let Ok(folder) = std::env::var(FOLDER) {
        save_for_ever(Path::new(&folder));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let reader = engine(&golden_model("qwen35-dense"), in_folder(folder.path()));
    let this = std::env::current_exe().expect("a path");
    let mut kept = false;
    for round in 0..12u64 {
        let mut child = Command::new(&this)
            .args(["--exact", "killed_while_saving_the_old_or_the_new_file_is_there"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a process");
        // From the second round on the file is there from the start, so wait until this process has saved at all.
        let saving = folder.path().join(".kept.saving");
        while !saving.exists() {
            assert!(child.try_wait().expect("a status").is_none(), "it ended by itself");
            std::thread::sleep(Duration::from_micros(200));
        }
        // The first rounds may end before anything was ever kept; the later ones let one save come to its end.
        while round >= 4 && !kept {
            assert!(child.try_wait().expect("a status").is_none(), "it ended by itself");
            kept = reader.handle().load_session("kept", "kept").is_ok();
        }
        std::thread::sleep(Duration::from_micros(round * 700));
        child.kill().expect("killed");
        child.wait().expect("an end");
        match reader.handle().load_session("kept", "kept") {
            Ok(tokens) => {
                assert!(tokens.len() == 121 && (tokens[0] == 1 || tokens[0] == 2));
                kept = true;
            }
            Err(error) => assert!(!kept && matches!(error, SessionError::Unknown(_)), "{error}"),
        }
        if saving.exists() {
            std::fs::remove_file(&saving).expect("what the killed one left");
        }
    }
    assert!(kept);
}
