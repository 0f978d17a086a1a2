//! A hub of our own, with whatever manners a test wants.
#![allow(dead_code)] // not every test uses all of it

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// An answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Announced in place of the body's length.
    pub(crate) length: Option<usize>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: Vec::new(), body: body.into(), length: None }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// Something that can carry a request: plain or encrypted.
pub(crate) trait Connection: Read + Write {}
impl<C: Read + Write> Connection for C {}

pub(crate) struct Stub {
    pub(crate) address: String,
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
}

type Handler = dyn Fn(&Asked) -> Reply + Send + Sync;

impl Stub {
    pub(crate) fn start(handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Stub {
        Stub::start_with(|stream| Some(Box::new(stream)), "http", handler)
    }

    pub(crate) fn start_with(
        accept: impl Fn(std::net::TcpStream) -> Option<Box<dyn Connection>> + Send + 'static,
        scheme: &str,
        handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("{scheme}://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let handler: Arc<Handler> = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(connection) = accept(stream) {
                    serve(connection, &handler, &seen);
                }
            }
        });
        Stub { address, asked }
    }

    pub(crate) fn host(&self) -> String {
        self.address.split("://").nth(1).unwrap().to_owned()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(connection: Box<dyn Connection>, handler: &Arc<Handler>, seen: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() {
        return;
    }
    let path = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) if line.trim().is_empty() => break,
            Ok(_) => {
                if let Some((name, value)) = line.split_once(':') {
                    headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
                }
            }
        }
    }
    let asked = Asked { path, headers };
    seen.lock().unwrap().push(asked.clone());
    let reply = handler(&asked);
    let length = reply.length.unwrap_or(reply.body.len());
    let mut head =
        format!("HTTP/1.1 {} x\r\ncontent-length: {length}\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let connection = reader.get_mut();
    // A client that has heard enough is part of some tests.
    let _ = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(&reply.body));
    let _ = connection.flush();
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hub's list of files: all large ones with their hashes, but for those that end in `.json`.
pub(crate) fn listing(files: &[(&str, &[u8])]) -> Vec<u8> {
    let siblings: Vec<serde_json::Value> = files
        .iter()
        .map(|(path, bytes)| {
            let blob = format!("{:040x}", bytes.len());
            if path.ends_with(".json") {
                serde_json::json!({ "rfilename": path, "size": bytes.len(), "blobId": blob })
            } else {
                let large =
                    serde_json::json!({ "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134 });
                serde_json::json!({ "rfilename": path, "size": bytes.len(), "blobId": blob, "lfs": large })
            }
        })
        .collect();
    serde_json::to_vec(&serde_json::json!({ "sha": COMMIT, "siblings": siblings })).unwrap()
}

/// The bytes asked for, as a well-mannered server answers.
pub(crate) fn bytes(asked: &Asked, bytes: &[u8]) -> Reply {
    let from = asked
        .headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        Some(from) if from < bytes.len() => {
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, &bytes[from..]).with("content-range", range)
        }
        Some(_) => Reply::new(416, ""),
        None => Reply::new(200, bytes),
    }
}
