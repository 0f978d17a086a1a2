//! A server with the built-in model, at a port of its own, for as long as a test runs.

#![allow(dead_code)] // each test file uses its part

pub(crate) mod process;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use millpond::engine::{Engine, EngineOptions};
use millpond::model::Model;
use millpond::sample::SamplingParams;
use millpond_server::http;
use millpond_server::http::config::ServerConfig;
use millpond_server::http::listen::{self, Listener};
use millpond_server::http::state::AppState;
use serde_json::Value;
use tokio::sync::watch;

/// A running server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    engine: Option<Engine>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// The built-in model, loaded once for all tests of a file.
pub(crate) fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL.get_or_init(|| Model::from_static(millpond_server::built_in::bytes()).unwrap()).clone()
}

/// Answers are greedy unless a request says otherwise.
pub(crate) fn config() -> ServerConfig {
    ServerConfig { name: "pond".to_owned(), sampling: SamplingParams::greedy(), ..ServerConfig::default() }
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::with(config(), EngineOptions { threads: 2, ..EngineOptions::default() })
    }

    pub(crate) fn with(config: ServerConfig, options: EngineOptions) -> Server {
        let engine = Engine::start(model(), options).unwrap();
        let state = AppState::with_engine(config, engine.handle());
        let mut server = Server::on(state);
        server.engine = Some(engine);
        server
    }

    /// A server whose model never finishes loading.
    pub(crate) fn loading() -> Server {
        Server::on(AppState::new(config()))
    }

    pub(crate) fn on(state: AppState) -> Server {
        let (stop, stopped) = watch::channel(false);
        let (ready, address) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async move {
                tokio::spawn(state.clone().sweep());
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                listen::serve(Listener::Tcp(listener), None, http::app(state.clone()), state, stopped).await;
            });
            runtime.shutdown_background();
        });
        Server { address: address.recv().unwrap(), engine: None, stop, thread: Some(thread) }
    }

    pub(crate) fn stats(&self) -> millpond::engine::Stats {
        self.engine.as_ref().unwrap().handle().stats()
    }

    /// Asks the server to stop, without waiting.
    pub(crate) fn begin_stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until it has.
    pub(crate) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        Reply::of(agent().get(self.url(path)).call())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Reply {
        Reply::of(agent().post(self.url(path)).send_json(body))
    }

    pub(crate) fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut request = agent().post(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Reply::of(request.send(body))
    }

    /// The values of a stream of events, the last mark left out, and the comments counted.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        let data = reply.text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    /// Sends bytes as they are and returns everything that comes back until the server closes.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may have refused and closed before the last byte.
        let _sent = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ended = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends a request without reading the answer.
    pub(crate) fn send(&self, path: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let mut socket = self.connect();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        socket.write_all((head + &body).as_bytes()).unwrap();
        socket
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.begin_stop();
        self.join();
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) text: String,
}

impl Reply {
    fn of(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Reply {
        let mut response = result.unwrap();
        let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let headers =
            response.headers().iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        Reply {
            status: response.status().as_u16(),
            headers,
            text: response.body_mut().read_to_string().unwrap(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The JSON of an answer that must be a success.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// The error of an answer that must be a refusal in OpenAI's form.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        let error = self.json()["error"].clone();
        assert!(error["message"].is_string() && error["type"].is_string(), "{}", self.text);
        error
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .into()
}

/// Joins the pieces of text at `pointer`.
pub(crate) fn joined(values: &[Value], pointer: &str) -> String {
    values.iter().filter_map(|value| value.pointer(pointer)?.as_str()).collect()
}

/// Waits for something to become true; tests do not depend on how long it takes, only that it happens.
#[track_caller]
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    for _ in 0..600 {
        if check() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("never happened: {what}");
}

/// Tests that load the machine run one after the other.
pub(crate) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
