//! The header against the code, and the example programs against the library.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use millpond_capi::Status;
use millpond_capi::failure::{Error, MESSAGE_BYTES};
use millpond_capi::types::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../server/assets/delta-48m-Q4_K_M.gguf");
const KING: &str = "The king looked at the dragon and said";
/// How llama.cpp continues with the same file, greedily.
const REFERENCE: &str = ": \"What a fool I was";

fn header() -> String {
    std::fs::read_to_string(Path::new(ROOT).join("include/millpond.h")).unwrap()
}

/// Names of functions: `millpond_` to an opening bracket.
fn functions(text: &str, before: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix(before))
        .filter_map(|rest| rest.trim_start_matches('*').split_once('('))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.starts_with("millpond_"))
        .collect()
}

#[test]
fn the_header_declares_what_the_library_exports() {
    let header = header();
    let declared = &functions(&header, "int32_t ") | &functions(&header, "const char *");
    let mut exported = BTreeSet::new();
    for file in std::fs::read_dir(Path::new(ROOT).join("src")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let found =
            &functions(&text, "pub unsafe extern \"C\" fn ") | &functions(&text, "pub extern \"C\" fn ");
        assert_eq!(found.len(), text.matches("#[unsafe(no_mangle)]").count());
        exported.extend(found);
    }
    assert!(exported.len() > 15, "{exported:?}");
    assert_eq!(declared, exported);
}

#[test]
fn the_header_names_every_status() {
    let header = header();
    for status in Status::ALL {
        let line = format!("    {} = {}", status.name().to_str().unwrap(), status as i32);
        let found = header.lines().filter_map(|text| text.strip_prefix(&line));
        let ends: Vec<&str> = found.filter(|rest| rest.starts_with([',', ' '])).collect();
        assert_eq!(ends.len(), 1, "{line}");
    }
    assert!(header.contains(&format!("#define MILLPOND_MESSAGE_BYTES {MESSAGE_BYTES}\n")));
}

/// The C compiler, if there is one.
fn compiler() -> Option<&'static str> {
    let found = Command::new("cc").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: no C compiler (cc)");
    }
    found.then_some("cc")
}

/// Lines of C that fail to compile unless a structure is laid out as in Rust.
macro_rules! layout {
    ($lines:ident, $rust:ty, $c:literal, $($field:ident),+) => {
        $lines.push(format!("_Static_assert(sizeof({}) == {}, \"size\");", $c, size_of::<$rust>()));
        $($lines.push(format!(
            "_Static_assert(offsetof({}, {}) == {}, \"offset\");",
            $c,
            stringify!($field),
            offset_of!($rust, $field)
        ));)+
    };
}

#[test]
fn structures_are_laid_out_as_the_header_says() {
    let Some(cc) = compiler() else { return };
    let mut lines = vec!["#include <millpond.h>".to_owned()];
    layout!(lines, Error, "millpond_error", status, message);
    layout!(lines, LoadOptions, "millpond_load_options", size, mtp_path, no_mmap);
    layout!(
        lines,
        ModelInfo,
        "millpond_model_info",
        vocabulary,
        context,
        parameters,
        bytes,
        fingerprint,
        has_tokenizer,
        has_chat_template
    );
    layout!(
        lines,
        EngineOptions,
        "millpond_engine_options",
        size,
        threads,
        context,
        max_running,
        max_queue,
        memory_budget,
        cache_budget
    );
    layout!(
        lines,
        Request,
        "millpond_request",
        size,
        prompt,
        prompt_count,
        max_tokens,
        seed,
        stop,
        stop_count,
        json_schema,
        grammar,
        temperature,
        top_k,
        top_p,
        min_p,
        repeat_penalty,
        presence_penalty,
        frequency_penalty,
        repeat_last_n,
        ignore_eos,
        cache_prompt,
        background
    );
    layout!(
        lines,
        Outcome,
        "millpond_result",
        finish,
        prompt_tokens,
        cached_tokens,
        completion_tokens,
        drafted_tokens,
        accepted_tokens,
        queued_seconds,
        prefill_seconds,
        decode_seconds
    );
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("layout.c");
    std::fs::write(&source, lines.join("\n") + "\n").unwrap();
    let output = Command::new(cc)
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"])
        .arg(Path::new(ROOT).join("include"))
        .arg(&source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The shared library that was built with this test, in the same folder; the newest, if others are left over.
fn library() -> PathBuf {
    let start = format!("{}millpond_capi", std::env::consts::DLL_PREFIX);
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let built = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap()).filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with(&start) && name.ends_with(std::env::consts::DLL_SUFFIX)
    });
    let newest = built.max_by_key(|entry| entry.metadata().unwrap().modified().unwrap());
    newest.unwrap_or_else(|| panic!("no {start}* in {}", folder.display())).path()
}

fn check_story(output: &Output) {
    let (text, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{notes}");
    assert!(text.starts_with(&format!("{KING}{REFERENCE}")), "{text}");
    assert!(notes.contains(" written"), "{notes}");
}

#[test]
fn the_c_program_tells_a_story_and_survives_a_file_that_is_no_model() {
    let Some(cc) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("story");
    let output = Command::new(cc)
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(Path::new(ROOT).join("include"))
        .arg(Path::new(ROOT).join("examples/story.c"))
        .arg(library())
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    check_story(&Command::new(&program).args([MODEL, KING]).output().unwrap());

    let output = Command::new(&program).arg(Path::new(ROOT).join("Cargo.toml")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(notes.contains("MILLPOND_LOAD_FAILED"), "{notes}");
}

#[test]
fn the_python_program_tells_the_same_story() {
    let python = Command::new("python3").args(["-c", "import ctypes"]).output();
    if !python.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no python3 with ctypes");
        return;
    }
    let script = Path::new(ROOT).join("examples/story.py");
    check_story(&Command::new("python3").arg(script).arg(library()).args([MODEL, KING]).output().unwrap());
}
