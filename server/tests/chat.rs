//! A conversation through a pipe, and the smaller verbs.

use std::io::Write;
use std::process::{Command, Stdio};

/// Runs the binary with `input` and a home of its own; returns its exit code, output and errors.
fn millpond(arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let home = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_millpond"))
        .args(arguments)
        .env_clear()
        .env("HOME", home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const CHAT: [&str; 7] = ["chat", "-n", "24", "--temp", "0", "-s", "1"];

#[test]
fn questions_are_answered_one_line_each_until_the_end() {
    let (code, answers, errors) = millpond(&CHAT, "Hello!\nWho are you?\n/bye\nnever said\n");
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert_eq!(answers.lines().count(), 2, "{answers}");
    let (_, again, _) = millpond(&CHAT, "Hello!\n/regenerate\nWho are you?");
    let lines: Vec<&str> = again.lines().collect();
    assert_eq!(lines[0], lines[1], "a greedy answer is the same again");
    assert_eq!(lines[2], answers.lines().nth(1).unwrap(), "the first answer was taken back");
}

#[test]
fn conversations_are_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.json");
    let path = file.to_str().unwrap();
    let (_, whole, _) = millpond(&CHAT, &format!("Hello!\n/save {path}\nWho are you?\n"));
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(saved["messages"][0]["content"], "Hello!");
    assert_eq!(saved["messages"][1]["role"], "assistant");
    let (_, rest, errors) = millpond(&CHAT, &format!("/load {path}\nWho are you?\n"));
    assert_eq!(errors, "2 messages\n");
    assert_eq!(rest.lines().next(), whole.lines().nth(1));
}

#[test]
fn mistakes_in_commands_do_not_end_the_conversation() {
    let input = "/nonsense\n/set top-p 7\n/set x 1\n/set threads 3\n/load /no/such\n/regenerate\n/set temp -1\nHello!\n";
    let (code, answers, errors) = millpond(&CHAT, input);
    assert_eq!(code, Some(0));
    assert_eq!(answers.lines().count(), 1, "{answers}");
    let errors: Vec<&str> = errors.lines().collect();
    let expected = ["/nonsense", "top_p is 7", "--x", "threads cannot change", "/no/such", "no question"];
    assert_eq!(errors.len(), expected.len(), "{errors:?}");
    for (error, part) in errors.iter().zip(expected) {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn every_shell_gets_a_script_that_knows_the_verbs() {
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let (code, script, _) = millpond(&["completions", shell], "");
        assert_eq!(code, Some(0));
        assert!(script.contains("perplexity") && script.contains("millpond"), "{shell}");
    }
    assert_eq!(millpond(&["completions", "tcsh"], "").0, Some(2));
}

#[test]
fn doctor_measures_the_machine() {
    let (code, text, _) = millpond(&["doctor", "--json", "-t", "1"], "");
    assert_eq!(code, Some(0));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(report["read_bandwidth"].as_f64().unwrap() > 1e6);
    let levels: Vec<&str> =
        report["kernels_available"].as_array().unwrap().iter().filter_map(|level| level.as_str()).collect();
    assert!(levels.contains(&report["kernels"].as_str().unwrap()));
}

#[test]
fn bench_reports_each_test_in_every_form() {
    let arguments = ["bench", "-p", "8", "-n", "4", "-d", "0,70", "-npl", "1,2", "-r", "2", "-t", "1"];
    let run = |form: &str| {
        let (code, text, errors) = millpond(&[&arguments[..], &["-o", form]].concat(), "");
        assert_eq!((code, errors.as_str()), (Some(0), ""));
        text
    };
    let records: Vec<serde_json::Value> =
        run("jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = records.iter().map(|record| record["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp8", "tg4", "tg4x2", "pp8 @ d70", "tg4 @ d70", "tg4x2 @ d70"]);
    assert!(records.iter().all(|record| record["samples_ts"].as_array().unwrap().len() == 2));
    // 26 MB of weights for each token, at least.
    let read = records[1]["read_bytes_per_second"].as_f64().unwrap() / records[1]["avg_ts"].as_f64().unwrap();
    assert!((26e6..32e6).contains(&read), "{read}");
    assert!(run("md").contains("of bandwidth"));
    assert!(run("csv").starts_with("model_name,"));
}
