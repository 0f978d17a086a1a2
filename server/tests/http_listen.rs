//! The binary as a server: sockets, signals, what it prints.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, Command, Stdio};

/// A running `millpond serve`.
struct Process {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Process {
    fn start(arguments: &[&str]) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_millpond"))
            .arg("serve")
            .args(arguments)
            .env_clear()
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Process { child, stderr }
    }

    /// Reads lines until one holds `text`, and returns it.
    fn line_with(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "ended before it said {text:?}");
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn completion(host: &str, tokens: usize) -> String {
    let body = format!("{{\"prompt\": \"Once\", \"max_tokens\": {tokens}, \"ignore_eos\": true}}");
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(unix)]
#[test]
fn it_listens_at_a_socket_and_takes_over_one_left_behind() {
    use std::os::unix::net::UnixStream;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pond");
    let host = format!("unix:{}", path.display());
    for signal in ["KILL", "TERM"] {
        let mut server = Process::start(&["--host", &host, "-t", "1"]);
        server.line_with("serving delta-48m");
        let answer = exchange(UnixStream::connect(&path).unwrap(), &completion("localhost", 3));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // A second server does not take the socket away from the first.
        let mut second = Process::start(&["--host", &host, "-t", "1"]);
        second.line_with("cannot listen");
        assert!(!second.child.wait().unwrap().success());
        server.signal(signal);
        server.child.wait().unwrap();
    }
}

#[test]
fn asked_to_end_it_finishes_what_runs_and_says_what_each_request_may_hold() {
    let mut server = Process::start(&["--port", "0", "-t", "1", "-c", "1024", "-a", "pond,lake"]);
    let line = server.line_with("listening at");
    let address = line.trim().rsplit("http://").next().unwrap().to_owned();
    let line = server.line_with("serving");
    assert!(line.contains("pond") && line.contains("1024 tokens for each request"), "{line}");
    let connect = || std::net::TcpStream::connect(&address).unwrap();
    let running = connect();
    let request = completion(&address, 700);
    let reader = std::thread::spawn(move || exchange(running, &request));
    let slots = format!("GET /slots HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    while !exchange(connect(), &slots).contains("\"is_processing\":true") {}
    server.signal("TERM");
    server.line_with("stopping");
    let answer = reader.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"completion_tokens\":700"), "{answer}");
    assert!(server.child.wait().unwrap().success());
    assert!(std::net::TcpStream::connect(&address).is_err());
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut server = Process::start(&["--port", &port]);
    let line = server.line_with("cannot listen at");
    assert!(line.contains(&port), "{line}");
    assert_eq!(server.child.wait().unwrap().code(), Some(1));
}
