//! The desktop example without a screen: a plain HTTP client in the place of its page.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

fn built_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/assets/delta-48m-Q4_K_M.gguf")
}

/// The running app.
struct App {
    child: Child,
    port: u16,
}

impl App {
    fn start(models: &[&Path]) -> App {
        let this = std::env::current_exe().unwrap();
        let folder = this.parent().and_then(Path::parent).unwrap();
        let path = folder.join("examples").join(format!("desktop{}", std::env::consts::EXE_SUFFIX));
        let mut child = Command::new(&path)
            .args(models)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{}: {error}; build it with cargo build --examples", path.display())
            });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (_, rest) = line.split_once("127.0.0.1:").unwrap();
        let port = rest.split('/').next().unwrap().parse().unwrap();
        App { child, port }
    }

    /// Sends a request, with the headers that a browser would send for the app's own page.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
            .unwrap();
        stream
    }

    fn own_headers(&self) -> String {
        let port = self.port;
        format!(
            "Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        )
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> (u16, String) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        whole(self.send(method, path, &self.own_headers(), &body))
    }

    fn state(&self) -> Value {
        let (status, body) = self.call("GET", "/state", &Value::Null);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The state once nothing is being loaded any more.
    fn settled(&self) -> Value {
        for _ in 0..600 {
            let state = self.state();
            if state["loading"].is_null() {
                return state;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("it never ended loading");
    }

    fn load(&self, path: &Path) -> Value {
        self.call("POST", "/load", &json!({ "path": path }));
        self.settled()
    }

    fn ask(&self, text: &str) -> Vec<Value> {
        let (status, body) = self.call("POST", "/ask", &json!({ "text": text, "max_tokens": 24 }));
        assert_eq!(status, 200, "{body}");
        events(&body)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn whole(mut stream: TcpStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn events(body: &str) -> Vec<Value> {
    body.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

#[test]
fn it_chats_switches_models_and_survives_a_damaged_one() {
    let folder = tempfile::tempdir().unwrap();
    let (good, damaged) = (folder.path().join("second.gguf"), folder.path().join("damaged.gguf"));
    let bytes = std::fs::read(built_in()).unwrap();
    std::fs::write(&good, &bytes).unwrap();
    std::fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();

    let app = App::start(&[&built_in(), &good, &damaged]);
    let state = app.settled();
    assert!(state["problem"].is_null(), "{state}");
    let model = state["model"].clone();
    assert_eq!(state["models"].as_array().unwrap().len(), 3);
    let (status, page) = app.call("GET", "/", &Value::Null);
    assert!(status == 200 && page.contains("<title>Pond</title>") && page.contains("/ask"));

    let said = app.ask("Good morning");
    assert_eq!(said.last(), Some(&json!({ "done": true })));
    assert!(said.len() > 2, "an answer comes in pieces: {said:?}");
    let answer: String = said.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(app.state()["messages"][1]["content"], answer);

    for (bad, why) in [(damaged, "damaged.gguf"), (folder.path().join("none.gguf"), "none.gguf")] {
        let state = app.load(&bad);
        assert!(state["problem"].as_str().unwrap().contains(why), "{state}");
        assert_eq!(state["model"], model, "the old one stays in use");
        assert_eq!(app.ask("Still there?").last(), Some(&json!({ "done": true })));
    }

    let state = app.load(&good);
    assert!(state["problem"].is_null(), "{state}");
    assert_eq!(app.ask("And you?").last(), Some(&json!({ "done": true })));
    let messages = app.state()["messages"].as_array().unwrap().len();
    assert_eq!(messages, 8, "the conversation went on over the change of models");
    app.call("POST", "/reset", &json!({}));
    assert_eq!(app.state()["messages"], json!([]));
}

/// Reads from a stream of events until one has come, and returns it.
fn first_event(reader: &mut impl BufRead) -> Value {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the stream ended");
        if let Some(data) = line.strip_prefix("data: ") {
            return serde_json::from_str(data).unwrap();
        }
    }
}

/// What was shown of an answer is what the conversation holds, wherever the button caught it; an answer that nobody reads
/// any more does not keep the app from the next question.
#[test]
fn answers_are_stopped_by_a_button_and_by_leaving() {
    let app = App::start(&[&built_in()]);
    app.settled();
    let question = json!({ "text": "Tell me a long story" }).to_string();
    let mut reader = BufReader::new(app.send("POST", "/ask", &app.own_headers(), &question));
    let first = first_event(&mut reader);
    app.call("POST", "/stop", &json!({}));
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    let shown = [vec![first], events(&rest)].concat();
    assert_eq!(shown.last(), Some(&json!({ "done": true })), "{rest}");
    let text: String = shown.iter().filter_map(|event| event["text"].as_str()).collect();
    let kept = app.state()["messages"][1]["content"].as_str().unwrap().to_owned();
    assert!(kept.starts_with(&text), "{kept:?} {text:?}");

    let mut reader = BufReader::new(app.send("POST", "/ask", &app.own_headers(), &question));
    first_event(&mut reader);
    drop(reader); // the page was closed
    for _ in 0..600 {
        let said = app.ask("Hello?");
        if said[0]["error"].is_null() {
            return;
        }
        assert!(said[0]["error"].as_str().unwrap().contains("under way"), "{said:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the answer that nobody reads never ended");
}

#[test]
fn other_sites_pages_are_refused() {
    let app = App::start(&[&built_in()]);
    let port = app.port;
    let status = |method: &str, headers: &str, body: &str| whole(app.send(method, "/state", headers, body)).0;
    let host = format!("Host: localhost:{port}\r\n");
    assert_eq!(status("GET", &host, ""), 200);
    assert_eq!(status("GET", "Host: evil.example\r\n", ""), 403, "a name that was made to point here");
    assert_eq!(status("GET", &format!("{host}Origin: http://evil.example\r\n"), ""), 403);
    assert_eq!(status("POST", &format!("{host}Content-Type: text/plain\r\n"), "{}"), 403, "a form");
    assert_eq!(status("POST", &format!("{host}Content-Type: application/json\r\n"), "{"), 400);
    assert_eq!(whole(app.send("GET", "/etc/passwd", &host, "")).0, 404);
    let stream = app.send("GET", "/state", &format!("X: {}\r\n", "y".repeat(20_000)), "");
    assert_eq!(whole(stream).0, 400);
}
