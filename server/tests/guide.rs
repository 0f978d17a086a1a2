//! The README's and the guide's command lines, run by a shell as a reader would: in a folder with the files they name, a
//! home of their own, and a hub that is a stub. `docs.rs` reads them all; this runs them.
#![cfg(unix)]

mod hub_stub;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hub_stub::{COMMIT, Reply, Stub, bytes, listing};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// How long a measurement may go on before it has shown that it works.
const MEASURING: Duration = Duration::from_secs(4);
/// How long anything else is waited for: a guard against hanging.
const PATIENCE: Duration = Duration::from_secs(300);
/// What else stands in shell blocks: the building and packaging of this very program, the C example (which
/// `millpond-capi` runs), and a client of the server.
const OTHER_PROGRAMS: [&str; 7] =
    ["cargo ", "rustup ", "export ", "scripts/package_deb.sh", "cc ", "LD_LIBRARY_PATH=", "curl "];

fn read(page: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(page)).unwrap()
}

/// The lines of a page's shell blocks, continued ones joined.
fn shell_lines(page: &str) -> Vec<String> {
    let text = read(page);
    let (mut lines, mut in_shell) = (Vec::new(), false);
    let mut whole = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(language) = line.strip_prefix("```") {
            in_shell = language == "sh";
        } else if in_shell && !line.is_empty() {
            whole.push_str(line.trim_end_matches('\\'));
            if !line.ends_with('\\') {
                lines.push(std::mem::take(&mut whole));
            }
        }
    }
    lines
}

/// A hub that has the built-in model, under the name that the guide uses.
fn hub() -> Stub {
    let model = std::fs::read(Path::new(ROOT).join("server/assets/delta-48m-Q4_K_M.gguf")).unwrap();
    let list = listing(&[("Qwen3.5-4B-Q4_K_M.gguf", &model)]);
    let repository = "unsloth/Qwen3.5-4B-GGUF";
    Stub::start(move |asked| {
        if asked.path.starts_with(&format!("/api/models/{repository}/revision/main")) {
            return Reply::new(200, list.clone());
        }
        match asked.path == format!("/{repository}/resolve/{COMMIT}/Qwen3.5-4B-Q4_K_M.gguf") {
            true => bytes(asked, &model),
            false => Reply::new(404, ""),
        }
    })
}

/// A reader of a page, with the files that its lines name.
struct Reader {
    home: tempfile::TempDir,
    hub: Stub,
}

impl Reader {
    fn new() -> Reader {
        let reader = Reader { home: tempfile::tempdir().unwrap(), hub: hub() };
        let model = "server/assets/delta-48m-Q4_K_M.gguf";
        let floats = "tests/data/forms/gguf/qwen35-bf16.gguf";
        reader.link("work/model.gguf", model);
        reader.link("work/models/small.gguf", model);
        // No link: some pages make this file.
        std::fs::copy(Path::new(ROOT).join(model), reader.path("work/model-Q4_K_M.gguf")).unwrap();
        reader.link("work/bf16.gguf", floats);
        reader.link("work/model-BF16.gguf", floats);
        reader.link("work/hf-folder", "tests/data/forms/qwen35-wrapper");
        // A model without a head, its head, and two models of one vocabulary.
        let head = "tests/data/forms/gguf/mtp-qwen35-bf16.gguf";
        reader.link("heads/model.gguf", "tests/data/forms/gguf/qwen35-trunk-v2.gguf");
        for (names, target) in [
            (&["head.gguf", "mtp.gguf", "mtp-model.gguf"][..], head),
            (&["large.gguf", "small.gguf"], floats),
        ] {
            names.iter().for_each(|name| reader.link(&format!("heads/{name}"), target));
        }
        let book = read("tests/data/delta48m/heldout.txt");
        reader.write("book.txt", &book[..book.floor_char_boundary(10_000)]);
        reader.write("text.txt", &book[..book.floor_char_boundary(5_000)]);
        reader.write("prompt.txt", "Once upon a time");
        reader.write("yes-or-no.gbnf", "root ::= \"yes\" | \"no\"");
        reader.write("keys.txt", "secret\n");
        reader
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn link(&self, name: &str, target: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        symlink(Path::new(ROOT).canonicalize().unwrap().join(target), self.path(name)).unwrap();
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path("work").join(name), text).unwrap();
    }

    /// A shell that runs a line.
    fn shell(&self, line: &str) -> Child {
        let program = Path::new(env!("CARGO_BIN_EXE_millpond")).parent().unwrap();
        let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap_or_default());
        let needs_head = ["head.gguf", "mtp", "small.gguf"].iter().any(|name| line.contains(name));
        Command::new("sh")
            .args(["-c", &format!("exec {line}")])
            .current_dir(self.path(if needs_head { "heads" } else { "work" }))
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.home.path())
            .env("HF_ENDPOINT", &self.hub.address)
            // What a line leaves open: short answers, and any port that is free.
            .env("MILLPOND_PREDICT", "8")
            .env("MILLPOND_PORT", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs a line to its end; a measurement may be ended.
    fn run(&self, place: &str, line: &str) {
        let mut child = self.shell(line);
        let is_measurement = line.starts_with("millpond bench");
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let output = std::thread::spawn(|| whole(out));
        let errors = std::thread::spawn(|| whole(err));
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if is_measurement && started.elapsed() > MEASURING {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            assert!(started.elapsed() < PATIENCE, "{place}: {line} does not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        let (output, errors) = (output.join().unwrap(), errors.join().unwrap());
        assert!(status.is_none_or(|status| status.success()), "{place}: {line}: {output}{errors}");
        assert!(!errors.contains("ignored") && !errors.contains("not known"), "{place}: {line}: {errors}");
    }

    /// Starts a server, talks to it as the lines after it do, and asks it to stop.
    fn serve(&self, place: &str, line: &str, clients: &[&String]) {
        let line = ["8137", "8080"].iter().fold(line.to_owned(), |line, port| line.replace(port, "0"));
        let line = line.replace("/run/user/1000", self.home.path().to_str().unwrap());
        let mut child = self.shell(&line);
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        errors.read_line(&mut first).unwrap();
        let address = first.trim_end().split_once("listening at ").map(|(_, address)| address.to_owned());
        let address = address.unwrap_or_else(|| panic!("{place}: {line}: {first}{}", whole(&mut errors)));
        for client in clients {
            let client = client.replace("http://127.0.0.1:8137", &address);
            let client = client.replacen("curl ", "curl --silent --fail --retry 30 --retry-all-errors ", 1);
            self.run(place, &client);
        }
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
        let rest = std::thread::spawn(|| whole(errors));
        let status = child.wait().unwrap();
        assert!(status.success(), "{place}: {line}: {status} {}", rest.join().unwrap());
    }
}

fn whole(mut source: impl Read) -> String {
    let mut bytes = Vec::new();
    source.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn has_curl() -> bool {
    Command::new("curl").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Runs the lines of some pages; returns how many.
fn follow(pages: &[&str]) -> usize {
    let mut count = 0;
    for page in pages {
        let reader = Reader::new();
        let lines = shell_lines(page);
        for (number, line) in lines.iter().enumerate() {
            let place = format!("{page}, line {}", number + 1);
            if line.starts_with("millpond serve") {
                let clients = lines[number + 1..].iter().take_while(|line| line.starts_with("curl "));
                let clients: Vec<&String> = clients.filter(|_| has_curl()).collect();
                reader.serve(&place, line, &clients);
            } else if line.starts_with("millpond ") {
                reader.run(&place, line);
            } else {
                let known = OTHER_PROGRAMS.iter().any(|program| line.starts_with(program));
                assert!(known, "{place}: who runs {line:?}?");
                continue;
            }
            count += 1;
        }
    }
    count
}

#[test]
fn the_lines_of_the_readme_work() {
    assert!(follow(&["README.md", "docs/first-minute.md"]) >= 20);
}

#[test]
fn the_lines_of_the_pages_on_the_command_line_work() {
    assert!(follow(&["docs/command-line.md"]) >= 35);
}

#[test]
fn the_lines_of_the_other_pages_work() {
    let mut pages: Vec<String> = std::fs::read_dir(Path::new(ROOT).join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|page| page.ends_with(".md"))
        .filter(|page| !["docs/first-minute.md", "docs/command-line.md"].contains(&page.as_str()))
        .collect();
    pages.sort();
    assert!(follow(&pages.iter().map(String::as_str).collect::<Vec<_>>()) >= 20);
}

#[test]
fn the_configuration_of_the_guide_is_one() {
    let page = read("docs/command-line.md");
    let blocks: Vec<&str> =
        page.split("```toml\n").skip(1).map(|part| part.split("```").next().unwrap()).collect();
    assert!(!blocks.is_empty());
    let reader = Reader::new();
    for block in blocks {
        reader.write("config.toml", block);
        reader.run("the block", "millpond list --config config.toml");
        reader.write("config.toml", &format!("{block}\nnonsense = 1\n"));
        let mut child = reader.shell("millpond list --config config.toml");
        assert_eq!(child.wait().unwrap().code(), Some(2), "it was not read");
    }
}
