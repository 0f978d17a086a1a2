//! Options from the command line, the environment and the configuration file, as a user meets them.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/delta-48m-Q4_K_M.gguf");
const KING: &str = "The king looked at the dragon and said";

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The answer of a run that goes well and says nothing beside it.
fn answer(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout)
}

fn fails(output: &Output, code: i32, message: &str) {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(errors.contains(message), "{message:?} in {errors}");
    assert_eq!(text(&output.stdout), "");
}

/// Tokens of a text.
fn count(text: &str) -> usize {
    let counted = answer(&mut command(&["tokenize", "--show-count", text]));
    counted.trim().parse().unwrap()
}

#[test]
fn the_line_goes_before_the_environment_and_that_before_the_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("millpond")).unwrap();
    let file = folder.path().join("millpond/config.toml");
    std::fs::write(&file, "predict = 2\ntemp = 0\n[run]\nseed = 1\n").unwrap();
    let run = |arguments: &[&str]| {
        let mut command = command(&[&["run", KING][..], arguments].concat());
        command.env("XDG_CONFIG_HOME", folder.path());
        command
    };
    let full = answer(&mut command(&["run", KING, "-n", "6", "--temp", "0"]));
    let of = |tokens: usize| answer(&mut command(&["run", KING, "-n", &tokens.to_string(), "--temp", "0"]));
    assert_eq!(answer(&mut run(&[])), of(2));
    assert_eq!(answer(run(&[]).env("MILLPOND_PREDICT", "4")), of(4));
    assert_eq!(answer(run(&["-n", "6"]).env("MILLPOND_PREDICT", "4")), full);
    // A file named in the environment, and one on the line.
    let other = folder.path().join("other.toml");
    std::fs::write(&other, "predict = 3\ntemp = 0\n").unwrap();
    assert_eq!(answer(run(&[]).env("MILLPOND_CONFIG", &other)), of(3));
    assert_eq!(answer(&mut run(&["--config", other.to_str().unwrap()])), of(3));
}

#[test]
fn a_mistake_in_the_file_is_wrong_usage_and_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    std::fs::write(&file, "temp = 0.5\n\n[serve]\nprt = 1\n").unwrap();
    let output = command(&["run", KING, "--config", file.to_str().unwrap()]).output().unwrap();
    fails(&output, 2, "c.toml:4: prt: no option of serve that a file can set; port is near");
    let output = command(&["doctor"]).env("MILLPOND_CONFIG", "/no/such.toml").output().unwrap();
    fails(&output, 2, "/no/such.toml");
}

#[test]
fn what_is_typed_silences_its_rivals_from_elsewhere() {
    let output = command(&["run", "x", "--no-mmap", "-m", MODEL, "-n", "1"])
        .env("MILLPOND_MLOCK", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = command(&["inspect", MODEL]).env("MILLPOND_MODEL", "/no/such").output().unwrap();
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    fails(&command(&["run", "x", "--no-mmap", "--mlock"]).output().unwrap(), 2, "cannot be used with");
    let json = command(&["run", "x", "-j", "{}", "--grammar", "start: \"a\""]).output().unwrap();
    fails(&json, 2, "cannot be used with");
}

#[test]
fn switches_in_the_environment_are_on_unless_they_say_no() {
    let stats = |value: &str| {
        let output = command(&["run", "x", "-n", "1"]).env("MILLPOND_STATS", value).output().unwrap();
        assert!(output.status.success());
        text(&output.stderr)
    };
    let line = stats("1");
    for part in ["prompt: ", "cached", "answer: 1 tokens", "tok/s", "memory: "] {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(stats("0"), "");
    let output = command(&["run", "x"]).env("MILLPOND_PREDICT", "few").output().unwrap();
    fails(&output, 2, "few");
}

#[test]
fn layers_on_a_card_are_named_where_there_is_none() {
    let warned = command(&["-ngl", "99", "-p", "x", "-n", "1"]).output().unwrap();
    assert!(warned.status.success());
    assert_eq!(
        text(&warned.stderr),
        "millpond: -ngl 99: this build has no CUDA backend, the processor computes\n"
    );
    answer(&mut command(&["-ngl", "0", "-p", "x", "-n", "1"]));
    fails(&command(&["run", "x", "--device", "cuda"]).output().unwrap(), 1, "no CUDA backend");
}

#[test]
fn words_are_joined_and_escapes_read() {
    let joined = answer(&mut command(&["tokenize", "--ids", "Once", "upon", "a time"]));
    assert_eq!(joined, answer(&mut command(&["tokenize", "--ids", "Once upon a time"])));
    let run = |arguments: &[&str]| {
        answer(&mut command(&[&["run", "-n", "5", "--temp", "0"][..], arguments].concat()))
    };
    assert_eq!(run(&["The", "king", "looked"]), run(&["-p", "The king looked"]));
    assert_eq!(run(&["-p", r"The king\n\nlooked"]), run(&["-p", "The king\n\nlooked"]));
    assert_ne!(run(&["-p", r"The king\n\nlooked", "--no-escape"]), run(&["-p", "The king\n\nlooked"]));
    // The first word may be the model.
    assert_eq!(run(&[MODEL, "The king looked"]), run(&["The king looked"]));
    fails(&command(&["run", "a", "-f", MODEL]).output().unwrap(), 2, "cannot be used with");
}

#[test]
fn answers_keep_to_grammars_and_schemas() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("g.gbnf");
    std::fs::write(&file, "root ::= (\"yes\" | \"no\") \"!\"\n").unwrap();
    let word = answer(&mut command(&["run", KING, "--grammar-file", file.to_str().unwrap(), "-s", "3"]));
    assert!(["yes!", "no!"].contains(&word.as_str()), "{word}");
    let lark = answer(&mut command(&["run", "--chat", KING, "--grammar", "start: \"maybe\""]));
    assert_eq!(lark, "maybe");
    let schema = r#"{"type":"object","properties":{"n":{"type":"integer","minimum":0,"maximum":99}},"required":["n"],"additionalProperties":false}"#;
    let json = answer(&mut command(&["run", KING, "-j", schema, "-n", "60", "-s", "1"]));
    let json: serde_json::Value =
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
    assert!(json["n"].is_i64() || json["n"].is_u64(), "{json}");
    fails(&command(&["run", KING, "--grammar", "root ::= ("]).output().unwrap(), 2, "--grammar");
    fails(&command(&["run", KING, "-j", "{\"type\": \"nonsense\"}"]).output().unwrap(), 2, "nonsense");
}

#[test]
fn templates_can_be_replaced_and_given_variables() {
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tail }}";
    let chat = ["run", "--chat", "The king", "-n", "6", "--temp", "0", "--chat-template", template];
    let kwargs = [&chat[..], &["--chat-template-kwargs", "{\"tail\": \" looked\"}"]].concat();
    assert_eq!(
        answer(&mut command(&chat)),
        answer(&mut command(&["run", "The king", "-n", "6", "--temp", "0"]))
    );
    assert_eq!(
        answer(&mut command(&kwargs)),
        answer(&mut command(&["run", "The king looked", "-n", "6", "--temp", "0"]))
    );
    let own = answer(&mut command(&["run", "--chat", "Hello!", "-n", "6", "--temp", "0"]));
    let chatml = answer(&mut command(&[
        "run",
        "--chat",
        "Hello!",
        "-n",
        "6",
        "--temp",
        "0",
        "--chat-template",
        "chatml",
    ]));
    assert_eq!(own, chatml, "the built-in model was trained with that format");
    fails(
        &command(&["run", "--chat", "x", "--chat-template", "{% for %}"]).output().unwrap(),
        2,
        "--chat-template",
    );
    fails(
        &command(&["run", "--chat", "x", "--chat-template-kwargs", "7"]).output().unwrap(),
        2,
        "a JSON object",
    );
}

#[test]
fn a_system_prompt_makes_a_question_of_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("system.txt");
    std::fs::write(&file, "Be brief.\n").unwrap();
    let run = |arguments: &[&str]| {
        answer(&mut command(&[&["run", "Hello!", "-n", "8", "--temp", "0"][..], arguments].concat()))
    };
    let told = run(&["--chat", "-sys", "Be brief."]);
    assert_eq!(run(&["-sys", "Be brief."]), told);
    assert_eq!(run(&["-sysf", file.to_str().unwrap()]), told);
}

#[test]
fn thoughts_are_no_part_of_the_answer_unless_asked_for() {
    // A template that opens thoughts and a grammar that closes them: whatever the model, this is what it says.
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n";
    let grammar = "root ::= \"A thought.\\n</think>\\n\\nAn answer.\"";
    let run = |arguments: &[&str]| {
        let line = ["run", "--chat", "x", "--chat-template", template, "--grammar", grammar];
        answer(&mut command(&[&line[..], arguments].concat()))
    };
    assert_eq!(run(&[]), "An answer.");
    assert_eq!(run(&["--reasoning-format", "none"]), "A thought.\n</think>\n\nAn answer.");
}

#[test]
fn a_log_tells_what_was_done_and_the_answer_stays_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, json) = (folder.path().join("log"), folder.path().join("log.jsonl"));
    let first =
        answer(&mut command(&["run", KING, "-n", "2", "--temp", "0", "--log-file", plain.to_str().unwrap()]));
    let log = std::fs::read_to_string(&plain).unwrap();
    assert!(log.contains("INFO") && log.contains("model loaded") && !log.contains('\x1b'), "{log}");
    let second = answer(&mut command(&[
        "run",
        KING,
        "-n",
        "2",
        "--temp",
        "0",
        "--log-jsonl",
        "--log-file",
        json.to_str().unwrap(),
    ]));
    assert_eq!(first, second);
    let log = std::fs::read_to_string(&json).unwrap();
    let events: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|event| event["fields"]["message"] == "model loaded"), "{log}");
    let said = command(&["run", KING, "-n", "1", "-v"]).output().unwrap();
    assert!(text(&said.stderr).contains("model loaded"));
    let output = command(&["run", "x", "--log-file", "/no/such/folder/log"]).output().unwrap();
    fails(&output, 1, "/no/such/folder/log");
}

#[test]
fn an_answer_for_a_program_has_figures() {
    let line = ["run", KING, "-n", "5", "--temp", "0", "--ignore-eos"];
    let json = answer(&mut command(&[&line[..], &["--json"]].concat()));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["text"], answer(&mut command(&line)));
    assert_eq!((&json["finish_reason"], &json["completion_tokens"]), (&"length".into(), &5.into()));
    assert_eq!(json["prompt_tokens"], count(KING));
}

#[test]
fn errors_tell_their_cause_once() {
    let output = command(&["run", "x", "-m", "/no/such/file"]).output().unwrap();
    fails(&output, 1, "/no/such/file");
    assert_eq!(text(&output.stderr).matches("No such file").count(), 1, "{}", text(&output.stderr));
}

#[test]
fn every_verb_tells_its_version() {
    let expected = format!("millpond {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(answer(&mut command(&["--version"])), expected);
    for arguments in [&["-m", "x", "--version"][..], &["serve", "-V"]] {
        assert!(answer(&mut command(arguments)).ends_with(&format!("{}\n", env!("CARGO_PKG_VERSION"))));
    }
}

/// The bytes that a process has locked in memory.
fn locked(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn a_locked_model_is_locked_or_the_limit_is_named() {
    for option in [&["--mlock"][..], &["--load-mode", "mmap+mlock"]] {
        let mut child = command(&[&["chat", "-m", MODEL, "-n", "2"], option].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "Hello!").unwrap();
        // Once it answers, the model is loaded.
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
        let locked = locked(child.id());
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let errors = text(&output.stderr);
        let size = std::fs::metadata(Path::new(MODEL)).unwrap().len();
        let told = errors.contains("cannot be locked in memory") && errors.contains("limit: ");
        assert!(locked >= size || told, "{locked} of {size}: {errors}");
    }
}

#[test]
fn a_cache_report_says_what_was_reused() {
    let output = command(&["run", KING, "-n", "1", "--print-cache-report"]).output().unwrap();
    let line = text(&output.stderr);
    assert!(line.starts_with(&format!("cache: 0 of {} prompt tokens reused", count(KING))), "{line}");
}
