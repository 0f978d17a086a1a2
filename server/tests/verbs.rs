//! Sessions, running servers, manual pages: the smaller verbs as a user meets them.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const KING: &str = "The king looked at the dragon and said";

fn command(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.args(arguments).env_clear().env("HOME", home).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_saved_text_goes_on_as_if_it_had_never_been_put_away() {
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| command(home.path(), arguments).output().unwrap();
    let whole = succeeds(&run(&["run", KING, "-n", "9", "--temp", "0"]));
    let saved = succeeds(&run(&["session", "save", "king", KING]));
    let tokens = succeeds(&run(&["tokenize", "--show-count", KING]));
    assert!(saved.lines().any(|line| line.starts_with("tokens") && line.ends_with(tokens.trim())), "{saved}");
    let first = run(&[
        "session",
        "load",
        "king",
        "-n",
        "4",
        "--temp",
        "0",
        "--save-as",
        "king-2",
        "--print-cache-report",
    ]);
    assert!(text(&first.stderr).starts_with("cache: "), "{}", text(&first.stderr));
    assert!(
        !text(&first.stderr).starts_with("cache: 0 of"),
        "the saved state is used: {}",
        text(&first.stderr)
    );
    let rest = succeeds(&run(&["session", "load", "king-2", "-n", "5", "--temp", "0"]));
    assert_eq!(succeeds(&first) + &rest, whole);
    let with_more = succeeds(&run(&["session", "load", "king", " no more", "-n", "4", "--temp", "0"]));
    assert_eq!(with_more, succeeds(&run(&["run", &format!("{KING} no more"), "-n", "4", "--temp", "0"])));
}

#[test]
fn sessions_are_listed_shown_and_deleted_without_a_model() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("elsewhere");
    let run = |arguments: &[&str]| {
        command(home.path(), &[arguments, &["--session-dir", folder.to_str().unwrap()]].concat())
            .output()
            .unwrap()
    };
    assert_eq!(json(&succeeds(&run(&["session", "list", "--json"]))), serde_json::json!([]));
    succeeds(&run(&["session", "save", "a", "Once"]));
    let listed = json(&succeeds(&run(&["session", "list", "--json"])));
    assert_eq!(listed[0]["name"], "a");
    assert_eq!(json(&succeeds(&run(&["session", "show", "a", "--json"]))), listed[0]);
    assert!(succeeds(&run(&["session", "ls"])).lines().nth(1).unwrap().starts_with("a "));
    // A damaged file is not listed, and said to be damaged when it is asked for.
    std::fs::write(folder.join("b.session"), b"MILLPOND and nothing more").unwrap();
    assert_eq!(json(&succeeds(&run(&["session", "list", "--json"]))), listed);
    for (arguments, message) in [
        (&["session", "load", "b"][..], "cannot be read"),
        (&["session", "show", "c"], "no session 'c'"),
        (&["session", "show", "../a"], "no name for a session"),
        (&["session", "delete", "c"], "no session 'c'"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(message), "{arguments:?}: {}", text(&output.stderr));
    }
    succeeds(&run(&["session", "delete", "a", "b"]));
    assert_eq!(json(&succeeds(&run(&["session", "list", "--json"]))), serde_json::json!([]));
}

#[cfg(unix)]
#[test]
fn servers_are_listed_while_they_answer() {
    let home = tempfile::tempdir().unwrap();
    let servers = || json(&succeeds(&command(home.path(), &["ps", "--json"]).output().unwrap()));
    let ours = |process: u32| {
        let all = servers();
        all.as_array().unwrap().iter().find(|server| server["process"] == process).cloned()
    };
    let mut server =
        command(home.path(), &["serve", "--port", "0", "-t", "1"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let serving = |line: &std::io::Result<String>| line.as_ref().unwrap().contains("serving");
    let words: Vec<String> = lines.by_ref().take_while(|line| !serving(line)).map(Result::unwrap).collect();
    let listed = ours(server.id()).expect("it is listed");
    assert_eq!((&listed["model"], &listed["state"]), (&"delta-48m".into(), &"ready".into()));
    assert!(words[0].contains(listed["address"].as_str().unwrap()), "{words:?}");
    let table = succeeds(&command(home.path(), &["ps"]).output().unwrap());
    assert!(table.lines().any(|line| line.starts_with(&server.id().to_string())), "{table}");
    // Killed, it cannot take back what it said of itself; nobody answers, so it is not listed.
    server.kill().unwrap();
    server.wait().unwrap();
    let told = home.path().join(format!(".local/state/millpond/running/{}.json", server.id()));
    assert!(told.exists());
    assert_eq!(ours(server.id()), None);
    assert!(!told.exists());
}

#[test]
fn manual_pages_are_written_for_every_verb() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("man");
    succeeds(&command(home.path(), &["man", folder.to_str().unwrap()]).output().unwrap());
    for verb in ["", "-run", "-chat", "-serve", "-pull", "-session", "-session-save", "-bench-linear"] {
        let page = std::fs::read_to_string(folder.join(format!("millpond{verb}.1"))).unwrap();
        assert!(page.contains(".TH") && page.contains("SYNOPSIS"), "{verb}: {page}");
    }
    let run = std::fs::read_to_string(folder.join("millpond-run.1")).unwrap();
    for part in ["\\-\\-temp", "\\-\\-hf\\-repo", "MILLPOND_THREADS"] {
        assert!(run.contains(part), "{part}");
    }
    let general = succeeds(&command(home.path(), &["man"]).output().unwrap());
    assert!(general.contains(".TH millpond 1"), "{general}");
}

#[test]
fn the_built_in_model_can_be_inspected() {
    let home = tempfile::tempdir().unwrap();
    let of = |arguments: &[&str]| json(&succeeds(&command(home.path(), arguments).output().unwrap()));
    let built_in = of(&["inspect", "--json"]);
    let file = of(&["show", "--json", concat!(env!("CARGO_MANIFEST_DIR"), "/assets/delta-48m-Q4_K_M.gguf")]);
    assert_eq!(built_in["model"], file["model"]);
    assert_eq!(built_in["tensors"], file["tensors"]);
}
