//! A desktop app around the library: `cargo run --example desktop -- [MODEL]...`
//!
//! The window is a page in the browser, served to this machine alone: what a web view would show, without needing one. It
//! chats, streams, stops, loads models with progress, switches between them in the middle of a conversation, and goes on
//! with the model it has when a file turns out to be damaged.

mod app;
mod http;

use std::error::Error;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use app::App;
use http::{Reply, Request};
use serde_json::{Value, json};

const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");
/// Connections at a time: a page has one or two.
const MOST_CONNECTIONS: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let mut models: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if models.is_empty() {
        models.push(PathBuf::from(BUILT_IN));
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let app = Arc::new(App::new(models));
    app.load(None);
    println!("Open http://127.0.0.1:{port}/ in a browser; Ctrl-C ends it.");

    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        // A connection that failed before it was taken concerns nobody else.
        let Ok(stream) = stream else { continue };
        if open.load(Ordering::Relaxed) >= MOST_CONNECTIONS {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (app, open) = (app.clone(), open.clone());
        std::thread::spawn(move || {
            if let Err(error) = serve(&app, &stream, port) {
                eprintln!("a connection ended early: {error}");
            }
            http::part(&stream);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

fn serve(app: &App, stream: &TcpStream, port: u16) -> std::io::Result<()> {
    let reply = Reply::new(stream);
    let request = match Request::read(stream, port) {
        Ok(request) => request,
        Err(refusal) => return reply.json(refusal.status(), &json!({ "error": refusal.to_string() })),
    };
    let body = &request.body;
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/") => reply.html(include_str!("page.html")),
        ("GET", "/state") => reply.json(200, &app.state()),
        ("POST", "/load") => {
            app.load(body["path"].as_str().map(PathBuf::from));
            reply.json(200, &app.state())
        }
        ("POST", "/load/cancel") => {
            app.cancel_loading();
            reply.json(200, &app.state())
        }
        ("POST", "/ask") => ask(app, body, reply),
        ("POST", "/stop") => {
            app.stop();
            reply.json(200, &app.state())
        }
        ("POST", "/reset") => {
            app.reset();
            reply.json(200, &app.state())
        }
        _ => reply.json(404, &json!({ "error": "there is no such page" })),
    }
}

/// Streams the answer as server-sent events. A page that goes away ends it.
fn ask(app: &App, body: &Value, reply: Reply<'_>) -> std::io::Result<()> {
    let Some(question) = body["text"].as_str() else {
        return reply.json(400, &json!({ "error": "what is the question?" }));
    };
    let longest = body["max_tokens"].as_u64().and_then(|tokens| usize::try_from(tokens).ok());
    let mut events = reply.events()?;
    match app.ask(question, longest, |piece| events.send(&json!({ "text": piece }))) {
        Ok(()) => events.send(&json!({ "done": true })),
        Err(error) => events.send(&json!({ "error": error })),
    }
}
