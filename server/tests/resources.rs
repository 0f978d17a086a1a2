//! A server with less than it may hope for: descriptors, cores, a disk that is full, a model that is gone.

#![cfg(target_os = "linux")]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::process::{Process, completion, exchange};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/delta-48m-Q4_K_M.gguf");
const LINE: [&str; 4] = ["-t", "1", "--port", "0"];

/// The answer of a server to a short question.
fn asked(address: &str) -> String {
    exchange(TcpStream::connect(address).unwrap(), &completion(address, 3))
}

#[track_caller]
fn answers(address: &str) {
    let answer = asked(address);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"completion_tokens\":3"), "{answer}");
}

fn get(address: &str, path: &str, headers: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n");
    exchange(TcpStream::connect(address).unwrap(), &request)
}

/// Runs a command of the binary through a shell that first runs `before`.
fn run(before: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{before}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_millpond")]);
    command.args(arguments).env_clear().output().unwrap()
}

#[test]
fn sockets_beyond_the_descriptors_there_are_wait_and_are_served() {
    let mut server = Process::under("ulimit -n 64", &LINE);
    let address = server.address();
    let idle: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&address).unwrap()).collect();
    // The idle ones are closed once the time for their headers is over, which makes room for this one.
    let begun = Instant::now();
    answers(&address);
    assert!(begun.elapsed() < Duration::from_secs(60));
    drop(idle);
    answers(&address);
}

#[test]
fn a_log_on_a_full_disk_stops_nothing() {
    let mut server = Process::start(&[&LINE[..], &["--log-file", "/dev/full", "-v"]].concat());
    let address = server.address();
    answers(&address);
    assert!(get(&address, "/ready", "").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_model_that_is_deleted_while_it_is_loaded_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pond.gguf");
    std::fs::copy(MODEL, &path).unwrap();
    let mut server = Process::start(&[&LINE[..], &["-m", path.to_str().unwrap()]].concat());
    let address = server.address();
    std::fs::remove_file(&path).unwrap();
    answers(&address);
}

#[test]
fn one_core_gives_the_same_answer() {
    let question = ["run", "Once upon a time", "-n", "8", "--temp", "0"];
    let free = run("true", &question);
    let bound = run("command -v taskset >/dev/null && taskset -p -c 0 $$ >/dev/null", &question);
    assert!(free.status.success() && bound.status.success(), "{}", String::from_utf8_lossy(&bound.stderr));
    assert_eq!(free.stdout, bound.stdout);
}

#[test]
fn a_limit_on_addresses_is_kept_to() {
    // Twice as many ask as there is room for: none is refused, and the server lives.
    let mut server = Process::under("ulimit -v 1000000", &LINE);
    let address = server.address();
    let asking: Vec<_> = (0..24)
        .map(|_| {
            let address = address.clone();
            std::thread::spawn(move || answers(&address))
        })
        .collect();
    asking.into_iter().for_each(|thread| thread.join().unwrap());
    answers(&address);
}

#[test]
fn states_that_cannot_be_written_are_refused_without_a_path() {
    let folder = tempfile::tempdir().unwrap();
    let states = folder.path().join("states");
    let line = [&LINE[..], &["--slot-save-path", states.to_str().unwrap()]].concat();
    // Files may have no more than four blocks of 512 bytes, as if the disk were full.
    let mut server = Process::under("trap '' XFSZ; ulimit -f 4", &line);
    let address = server.address();
    let post = |path: &str, body: &str| {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        exchange(TcpStream::connect(&address).unwrap(), &request)
    };
    let filled = post("/completion", "{\"prompt\": \"Once upon a time\", \"n_predict\": 2, \"id_slot\": 0}");
    assert!(filled.starts_with("HTTP/1.1 200"), "{filled}");
    let refused = post("/slots/0?action=save", "{\"filename\": \"frog\"}");
    assert!(refused.starts_with("HTTP/1.1 5") && !refused.contains("states"), "{refused}");
    assert_eq!(std::fs::read_dir(&states).unwrap().count(), 0, "nothing unfinished stays behind");
    answers(&address);
}

#[test]
fn logs_hold_no_key_and_no_line_of_a_client() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let line = ["--api-key", "s3cret-key", "--log-file", log.to_str().unwrap(), "-vvv"];
    let mut server = Process::start(&[&LINE[..], &line].concat());
    let address = server.address();
    let body = "{\"model\": \"a\\r\\nINFO forged\\u001b[31m\", \"prompt\": \"x\\nINFO forged\\u001b[2J\", \"max_tokens\": 1}";
    for key in ["s3cret-key", "s3cret-wrong"] {
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             authorization: Bearer {key}\r\nuser-agent: x\u{1b}[31m\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = exchange(TcpStream::connect(&address).unwrap(), &request);
        assert!(answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let mut torn = TcpStream::connect(&address).unwrap();
    torn.write_all(b"GET /\x1b[31m\nINFO forged HTTP/1.1\r\n\r\n").unwrap();
    drop(torn);
    get(&address, "/v1/models?api_key=s3cret-key", "");
    server.signal("TERM");
    assert!(server.child.wait().unwrap().success());
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("INFO"), "{log}");
    assert!(!log.contains("s3cret") && !log.contains('\x1b'), "{log}");
    assert!(!log.lines().any(|line| line.trim_start().starts_with("INFO forged")), "{log}");
}
