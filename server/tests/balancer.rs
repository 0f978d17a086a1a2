//! The balancer's configuration of the guide, with two instances behind it. Needs `haproxy`; says so where there is none.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

const CONFIGURATION: &str = include_str!("../../docs/haproxy.cfg");

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.0.kill();
        let _status = self.0.wait();
    }
}

/// An instance, and its address.
fn instance(name: &str) -> (Process, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_millpond"))
        .args(["serve", "--port", "0", "-t", "1", "-a", name])
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut address = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, found)) = line.split_once("http://") {
            address = found.trim().to_owned();
        }
        if line.contains("serving") {
            break;
        }
    }
    (Process(child), address)
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Asks for an answer; the instance that gave it.
fn ask(address: &str, session: Option<&str>, tokens: usize) -> Result<String, String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .into();
    let mut request = agent.post(format!("http://{address}/v1/completions"));
    if let Some(session) = session {
        request = request.header("x-session-affinity", session);
    }
    let body = json!({"prompt": "Once", "max_tokens": tokens, "ignore_eos": true});
    let mut response = request.send_json(&body).map_err(|error| error.to_string())?;
    let status = response.status();
    let text = response.body_mut().read_to_string().map_err(|error| error.to_string())?;
    let value: Value = serde_json::from_str(&text).map_err(|error| format!("{status}: {error}: {text}"))?;
    value["model"].as_str().map(str::to_owned).ok_or(format!("{status}: {text}"))
}

#[test]
fn sessions_stick_and_an_instance_that_drains_loses_no_request() {
    if Command::new("haproxy").arg("-v").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: there is no haproxy on the path");
        return;
    }
    let (one, first) = instance("one");
    let (_two, second) = instance("two");
    let address = free_address();
    let configuration = CONFIGURATION
        .replace("127.0.0.1:8080", &address)
        .replace("127.0.0.1:8137", &first)
        .replace("127.0.0.1:8138", &second);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("haproxy.cfg");
    std::fs::write(&path, configuration).unwrap();
    let _balancer = balancer(&path, &address);

    // Without a header both instances answer; with one, always the same.
    let answers: Vec<String> = (0..6).map(|_| ask(&address, None, 1).unwrap()).collect();
    assert!(
        answers.iter().any(|name| name == "one") && answers.iter().any(|name| name == "two"),
        "{answers:?}"
    );
    let mut homes = Vec::new();
    for session in 0..8 {
        let name = format!("conversation-{session}");
        let home = ask(&address, Some(&name), 1).unwrap();
        for _ in 0..3 {
            assert_eq!(ask(&address, Some(&name), 1).unwrap(), home);
        }
        homes.push(home);
    }
    homes.sort();
    homes.dedup();
    assert_eq!(homes, ["one", "two"], "sessions are spread");

    // One instance is asked to end while requests go on: all are answered.
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..4 {
            let (stop, answered, address) = (&stop, &answered, &address);
            scope.spawn(move || {
                let name = format!("client-{client}");
                while !stop.load(Ordering::SeqCst) {
                    ask(address, Some(&name), 20).unwrap();
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let wait_for = |count: usize| {
            while answered.load(Ordering::SeqCst) < count {
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        wait_for(8);
        let status = Command::new("kill").args(["-TERM", &one.0.id().to_string()]).status().unwrap();
        assert!(status.success());
        wait_for(answered.load(Ordering::SeqCst) + 24);
        stop.store(true, Ordering::SeqCst);
    });
    for session in 0..4 {
        assert_eq!(ask(&address, Some(&format!("conversation-{session}")), 1).unwrap(), "two");
    }
}

/// Starts HAProxy and waits until it sees an instance.
fn balancer(configuration: &Path, address: &str) -> Process {
    let child = Command::new("haproxy").arg("-f").arg(configuration).stderr(Stdio::null()).spawn().unwrap();
    let process = Process(child);
    for _ in 0..200 {
        if ask(address, None, 1).is_ok() {
            return process;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("HAProxy answers nothing");
}
