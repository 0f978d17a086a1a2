//! The binary as a server: sockets, signals, what it prints.

mod common;

use common::process::{Process, completion, exchange};

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
    let request = completion(&address, 300);
    let reader = std::thread::spawn(move || exchange(running, &request));
    let slots = format!("GET /slots HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    while !exchange(connect(), &slots).contains("\"is_processing\":true") {}
    server.signal("TERM");
    server.line_with("stopping");
    let answer = reader.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"completion_tokens\":300"), "{answer}");
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
