//! The binary as a server of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, Command, Stdio};

/// A running `millpond serve`.
pub(crate) struct Process {
    pub(crate) child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Process {
    pub(crate) fn start(arguments: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.arg("serve").args(arguments);
        Process::of(command)
    }

    /// Starts a server through a shell that first runs `before`, to limit what it may use.
    pub(crate) fn under(before: &str, arguments: &[&str]) -> Process {
        let mut command = Command::new("/bin/sh");
        let line = format!("{before}; exec \"$@\"");
        command.args(["-c", &line, "sh", env!("CARGO_BIN_EXE_millpond"), "serve"]).args(arguments);
        Process::of(command)
    }

    fn of(mut command: Command) -> Process {
        let mut child = command.env_clear().stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Process { child, stderr }
    }

    /// Reads lines until one holds `text`, and returns it.
    pub(crate) fn line_with(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "ended before it said {text:?}");
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The address it listens at, once it serves.
    pub(crate) fn address(&mut self) -> String {
        let line = self.line_with("listening at");
        let address = line.trim().rsplit("http://").next().unwrap().to_owned();
        self.line_with("serving");
        address
    }

    pub(crate) fn signal(&self, name: &str) {
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

pub(crate) fn exchange(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn completion(host: &str, tokens: usize) -> String {
    let body = format!("{{\"prompt\": \"Once\", \"max_tokens\": {tokens}, \"ignore_eos\": true}}");
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}
