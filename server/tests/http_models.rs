//! Several models by name from a folder: loaded on demand, unloaded when idle, within a budget.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Server, config, eventually};
use millpond::engine::{Engine, EngineOptions};
use millpond::model::{LoadOptions, Model};
use millpond_server::http::pool::{Loader, Pool, PoolOptions};
use millpond_server::http::state::AppState;
use serde_json::{Value, json};

/// A folder with two names of the built-in model, and a damaged file.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("alpha.gguf");
    std::fs::write(&first, millpond_server::built_in::bytes()).unwrap();
    std::fs::hard_link(&first, folder.path().join("beta.gguf")).unwrap();
    std::fs::write(folder.path().join("broken.gguf"), b"GGUF but no more than that").unwrap();
    folder
}

/// A server of the models of `folder`, and how often one was loaded.
fn serve(folder: &Path, options: PoolOptions) -> (Server, Arc<AtomicUsize>) {
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = loads.clone();
    let loader: Loader = Arc::new(move |path| {
        counted.fetch_add(1, Ordering::SeqCst);
        let model = Model::load(path.unwrap(), &LoadOptions::default())?;
        Ok(Engine::start(model, EngineOptions { threads: 1, ..EngineOptions::default() })?)
    });
    let options = PoolOptions { folder: Some(folder.to_owned()), ..options };
    (Server::on(AppState::with_pool(config(), Pool::new(options, loader))), loads)
}

fn ask(server: &Server, model: &str) -> common::Reply {
    server.post("/v1/completions", &json!({"model": model, "prompt": "Once", "max_tokens": 2}))
}

/// Names of the models in memory.
fn loaded(server: &Server) -> Vec<String> {
    let models = server.get("/api/ps").ok()["models"].clone();
    models.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_request_chooses_its_model_by_name() {
    let folder = folder();
    let (server, loads) = serve(folder.path(), PoolOptions::default());
    assert_eq!(server.get("/ready").status, 200);
    let list = server.get("/v1/models").ok();
    let names: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["alpha", "beta", "broken"]);
    assert_eq!(list["data"][0]["status"]["value"], "unloaded");
    assert_eq!(loads.load(Ordering::SeqCst), 0, "nothing is loaded before it is asked for");
    let beta = ask(&server, "beta").ok();
    assert_eq!(beta["model"], "beta");
    assert_eq!(loaded(&server), ["beta"]);
    let first = server.post("/v1/completions", &json!({"prompt": "Once", "max_tokens": 2})).ok();
    assert_eq!(first["model"], "alpha", "who names none gets the first");
    assert_eq!(first["choices"][0]["text"], beta["choices"][0]["text"], "they are the same model");
    let chat =
        json!({"model": "beta:latest", "messages": [{"role": "user", "content": "Hi"}], "stream": false});
    assert_eq!(server.post("/api/chat", &chat).ok()["done"], true);
    let message = json!({"model": "alpha", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]});
    assert_eq!(server.post("/v1/messages", &message).ok()["model"], "alpha");
    assert_eq!(server.get("/props?model=beta").ok()["model_alias"], "beta");
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    let metrics = server.get("/metrics").text;
    assert!(metrics.contains("millpond_requests_completed_total{model=\"beta\"} 2"), "{metrics}");
    assert!(metrics.contains("millpond_models_loaded 2"));
    assert_eq!(server.get("/v1/models/beta").ok()["meta"]["n_ctx"], 4096);
}

#[test]
fn an_unknown_name_is_refused_in_each_apis_words() {
    let folder = folder();
    let (server, _) = serve(folder.path(), PoolOptions::default());
    let chat = json!({"model": "gamma", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]});
    let error = server.post("/v1/chat/completions", &chat).refused(404);
    assert_eq!(error["code"], "model_not_found");
    server.post("/v1/embeddings", &json!({"model": "gamma", "input": "x"})).refused(404);
    server.post("/v1/responses", &json!({"model": "gamma", "input": "x"})).refused(404);
    server.post("/completion", &json!({"model": "../alpha", "prompt": "x"})).refused(404);
    server.get("/v1/models/gamma").refused(404);
    let anthropic = server.post("/v1/messages", &chat);
    assert_eq!(anthropic.status, 404);
    assert_eq!(anthropic.json()["type"], "error");
    assert_eq!(anthropic.json()["error"]["type"], "not_found_error");
    let ollama = server.post("/api/chat", &chat);
    assert_eq!(ollama.status, 404);
    assert!(ollama.json()["error"].as_str().unwrap().contains("gamma"));
    assert_eq!(server.post("/api/show", &json!({"model": "gamma"})).status, 404);
}

#[test]
fn a_damaged_file_hurts_nobody_and_tells_no_path() {
    let folder = folder();
    let (server, _) = serve(folder.path(), PoolOptions::default());
    ask(&server, "alpha").ok();
    for _ in 0..2 {
        let reply = ask(&server, "broken");
        let error = reply.refused(500);
        assert_eq!(error["code"], "model_load_failed");
        assert!(!reply.text.contains(folder.path().to_str().unwrap()), "{}", reply.text);
    }
    ask(&server, "alpha").ok();
    assert_eq!(loaded(&server), ["alpha"]);
    // A file that comes later is found, one that goes is gone.
    std::fs::write(folder.path().join("broken.gguf"), millpond_server::built_in::bytes()).unwrap();
    ask(&server, "broken").ok();
    std::fs::remove_file(folder.path().join("beta.gguf")).unwrap();
    assert!(!server.get("/v1/models").text.contains("beta"));
}

#[test]
fn a_model_that_nobody_asks_for_is_unloaded_and_comes_back() {
    let folder = folder();
    let options = PoolOptions { keep: Some(Duration::from_millis(300)), ..PoolOptions::default() };
    let (server, loads) = serve(folder.path(), options);
    ask(&server, "alpha").ok();
    eventually("alpha is unloaded", || loaded(&server).is_empty());
    ask(&server, "alpha").ok();
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    // A request that runs keeps its model, however long.
    let long = json!({"model": "beta", "prompt": "Once", "max_tokens": 600, "ignore_eos": true});
    let reply = server.post("/v1/completions", &long).ok();
    assert_eq!(reply["usage"]["completion_tokens"], 600);
    eventually("all are unloaded", || loaded(&server).is_empty());
}

#[test]
fn keep_alive_is_obeyed() {
    let folder = folder();
    let (server, _) = serve(folder.path(), PoolOptions::default());
    let load = server.post("/api/generate", &json!({"model": "alpha", "keep_alive": "10m"})).ok();
    assert_eq!(load["done_reason"], "load");
    let ps = server.get("/api/ps").ok();
    assert_eq!(ps["models"][0]["name"], "alpha");
    assert!(!ps["models"][0]["expires_at"].as_str().unwrap().starts_with("9999"));
    let unload = server.post("/api/generate", &json!({"model": "alpha", "keep_alive": 0})).ok();
    assert_eq!(unload["done_reason"], "unload");
    assert!(loaded(&server).is_empty());
    let once = json!({"model": "beta", "prompt": "Hi", "stream": false, "keep_alive": 0, "options": {"num_predict": 2}});
    assert_eq!(server.post("/api/generate", &once).ok()["done"], true);
    eventually("beta goes when it has answered", || loaded(&server).is_empty());
    let wrong = server.post("/api/generate", &json!({"model": "alpha", "prompt": "x", "keep_alive": "soon"}));
    assert_eq!(wrong.status, 400);
}

#[test]
fn the_model_least_recently_used_makes_room_but_never_one_in_use() {
    let folder = folder();
    let options = PoolOptions { max_loaded: Some(1), ..PoolOptions::default() };
    let (server, _) = serve(folder.path(), options);
    ask(&server, "alpha").ok();
    ask(&server, "beta").ok();
    assert_eq!(loaded(&server), ["beta"]);
    let long = json!({"model": "beta", "prompt": "Once", "max_tokens": 1500, "ignore_eos": true});
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.post("/v1/completions", &long).ok());
        eventually("it runs", || server.get("/metrics").text.contains("requests_running{model=\"beta\"} 1"));
        let reply = ask(&server, "alpha");
        // Unless it has ended meanwhile, the other model has to stay.
        if reply.status != 200 {
            reply.refused(503);
            assert!(reply.header("retry-after").is_some());
        }
        assert_eq!(running.join().unwrap()["usage"]["completion_tokens"], 1500);
    });
    ask(&server, "alpha").ok();
    let small = PoolOptions { memory: Some(1 << 20), ..PoolOptions::default() };
    let (server, _) = serve(folder.path(), small);
    let error = ask(&server, "alpha").refused(400);
    assert!(error["message"].as_str().unwrap().contains("MiB"));
}

#[test]
fn many_who_ask_at_once_load_a_model_once() {
    let folder = folder();
    let (server, loads) = serve(folder.path(), PoolOptions::default());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| ask(&server, "alpha").ok())).collect();
        let texts: Vec<Value> =
            threads.into_iter().map(|thread| thread.join().unwrap()["choices"].clone()).collect();
        assert!(texts.iter().all(|text| *text == texts[0]));
    });
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}
