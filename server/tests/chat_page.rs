//! The chat page in a real browser, driven by `scripts/chat_page.py`. Needs Python and Chromium; says so where they are not.

use std::path::Path;
use std::process::Command;

/// The script's exit status where there is no browser.
const SKIPPED: i32 = 77;

#[test]
fn the_chat_page_works_in_a_browser() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let run = Command::new("python3")
        .arg(root.join("scripts/chat_page.py"))
        .args(["--server", env!("CARGO_BIN_EXE_millpond"), "--model"])
        .arg(root.join("server/assets/delta-48m-Q4_K_M.gguf"))
        .output();
    let Ok(output) = run else {
        eprintln!("skipped: there is no python3 on the path");
        return;
    };
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(SKIPPED) {
        eprintln!("{said}");
        return;
    }
    assert!(output.status.success(), "{said}");
}
