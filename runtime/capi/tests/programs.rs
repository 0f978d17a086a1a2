//! The example programs against the library, and the header against compilers.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{KING, MODEL, compiler, library};
use millpond_capi::failure::Error;
use millpond_capi::types::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// How llama.cpp continues with the same file, greedily.
const REFERENCE: &str = ": \"What a fool I was";

/// C that does not compile unless a C compiler gives structures the sizes they have here.
macro_rules! sizes {
    ($($rust:ty => $c:literal),+ $(,)?) => {
        [$(format!("_Static_assert(sizeof({}) == {}, \"{}\");\n", $c, size_of::<$rust>(), $c)),+].concat()
    };
}

#[test]
fn structures_have_the_same_size_in_c() {
    let Some(cc) = compiler() else { return };
    let asserted = sizes!(
        Error => "millpond_error",
        LoadOptions => "millpond_load_options",
        ModelInfo => "millpond_model_info",
        ChatOptions => "millpond_chat_options",
        EngineOptions => "millpond_engine_options",
        Stats => "millpond_stats",
        SessionInfo => "millpond_session_info",
        Request => "millpond_request",
        Outcome => "millpond_result",
        Token => "millpond_token",
        Alternative => "millpond_alternative",
        Bias => "millpond_bias",
        Listener => "millpond_listener",
    );
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("sizes.c");
    std::fs::write(&source, format!("#include <millpond.h>\n{asserted}")).unwrap();
    for language in [&["-std=c11"][..], &["-x", "c++", "-D_Static_assert=static_assert"]] {
        let output = Command::new(cc)
            .args(language)
            .args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"])
            .arg(Path::new(ROOT).join("include"))
            .arg(&source)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn check_story(output: &Output) {
    let (text, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{notes}");
    assert!(text.starts_with(&format!("{KING}{REFERENCE}")), "{text}");
    assert!(notes.contains(" written"), "{notes}");
}

/// Compiles an example against the library that was built with this test.
fn compile(cc: &str, name: &str, folder: &Path) -> PathBuf {
    let program = folder.join(name);
    let output = Command::new(cc)
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(Path::new(ROOT).join("include"))
        .arg(Path::new(ROOT).join("examples").join(name).with_extension("c"))
        .arg(library())
        .args(["-lm", "-o"])
        .arg(&program)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

#[test]
fn the_c_program_tells_a_story_and_survives_a_file_that_is_no_model() {
    let Some(cc) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = compile(cc, "story", folder.path());
    check_story(&Command::new(&program).args([MODEL, KING]).output().unwrap());

    let output = Command::new(&program).arg(Path::new(ROOT).join("Cargo.toml")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(notes.contains("MILLPOND_STATUS_LOAD_FAILED"), "{notes}");
}

#[test]
fn the_c_tour_leads_everywhere() {
    let Some(cc) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = compile(cc, "tour", folder.path());
    let output = Command::new(&program).arg(MODEL).arg(folder.path().join("sessions")).output().unwrap();
    let (text, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{notes}");
    assert!(notes.contains("loaded 100 %"), "{notes}");
    let first = text.lines().next().unwrap_or_default();
    assert!(["{\"animal\":\"frog\"}", "{\"animal\":\"duck\"}"].contains(&first), "{text}");
    for said in [
        "probability of this answer: e^-",
        "as evening",
        " did not have to be read again",
        "like a duck by 0.",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
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

#[test]
fn the_python_program_chats() {
    let python = Command::new("python3").args(["-c", "import ctypes"]).output();
    if !python.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no python3 with ctypes");
        return;
    }
    let script = Path::new(ROOT).join("examples/chat.py");
    let output = Command::new("python3").arg(script).arg(library()).arg(MODEL).output().unwrap();
    let (text, notes) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{notes}");
    assert!(!text.trim().is_empty());
    assert!(notes.contains("tokens written, mean log probability -"), "{notes}");
}
