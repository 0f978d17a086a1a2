//! Anthropic's, llama.cpp's and Ollama's API, and what looks after a server.

mod common;

use common::{Server, config, joined};
use millpond::engine::EngineOptions;
use serde_json::{Value, json};

fn hello() -> Value {
    json!([{"role": "user", "content": "Hello!"}])
}

#[test]
fn messages_are_answered_whole_and_as_events_alike() {
    let server = Server::start();
    let mut request = json!({"messages": hello(), "max_tokens": 24, "system": "Be kind."});
    let whole = server.post("/v1/messages", &request).ok();
    let text = whole["content"][0]["text"].as_str().unwrap();
    assert_eq!((&whole["type"], &whole["role"]), (&json!("message"), &json!("assistant")));
    assert!(!text.is_empty());
    request["stream"] = true.into();
    let events = server.stream("/v1/messages", &request);
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(joined(&events, "/delta/text"), text);
    let delta = &events[events.len() - 2];
    assert_eq!(delta["delta"]["stop_reason"], whole["stop_reason"]);
    assert_eq!(delta["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
}

#[test]
fn messages_count_stop_and_fail_in_their_own_words() {
    let server = Server::start();
    let count = server.post("/v1/messages/count_tokens", &json!({"messages": hello()})).ok();
    let answer = server.post("/v1/messages", &json!({"messages": hello(), "max_tokens": 2})).ok();
    let usage = &answer["usage"];
    let read = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(count["input_tokens"], read);
    assert_eq!(answer["stop_reason"], "max_tokens");
    let request = json!({"messages": hello(), "max_tokens": 24, "stop_sequences": ["!"]});
    let answer = server.post("/v1/messages", &request).ok();
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("stop_sequence"), &json!("!")));
    let reply = server.post("/v1/messages", &json!({"messages": hello(), "max_tokens": -1}));
    assert_eq!(reply.status, 400);
    assert_eq!(reply.json()["type"], "error");
    assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
}

#[test]
fn a_forced_tool_comes_as_a_block() {
    let server = Server::start();
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Bonn"]}}, "required": ["city"],
        "additionalProperties": false});
    let request = json!({
        "messages": [{"role": "user", "content": "Weather?"}], "max_tokens": 60,
        "tools": [{"name": "weather", "input_schema": schema}],
        "tool_choice": {"type": "tool", "name": "weather"},
    });
    let answer = server.post("/v1/messages", &request).ok();
    assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
    let block = &answer["content"][0];
    assert_eq!((&block["type"], &block["input"]), (&json!("tool_use"), &json!({"city": "Bonn"})));
}

#[test]
fn llama_cpp_completions_have_their_shape() {
    let server = Server::start();
    let request =
        json!({"prompt": "The king looked at the dragon and said", "n_predict": 8, "return_tokens": true});
    let whole = server.post("/completion", &request).ok();
    assert_eq!(whole["stop"], true);
    assert_eq!(whole["stop_type"], "limit");
    assert_eq!(whole["tokens_predicted"], 8);
    assert_eq!(whole["tokens"].as_array().unwrap().len(), 8);
    assert_eq!(whole["prompt"], request["prompt"]);
    assert!(whole["timings"]["predicted_per_second"].as_f64().unwrap() > 0.0);
    let mut streamed = request.clone();
    streamed["stream"] = true.into();
    let chunks = server.stream("/completion", &streamed);
    assert_eq!(joined(&chunks, "/content"), whole["content"].as_str().unwrap());
    assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk["stop"] == false));
    let several = json!({"prompt": ["Once", "Twice"], "n_predict": 2, "n_probs": 2});
    let several = server.post("/completion", &several).ok();
    let first = &several[0]["completion_probabilities"][0];
    assert_eq!(first["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(several.as_array().unwrap().len(), 2);
}

#[test]
fn llama_cpp_completions_report_what_was_sampled_from() {
    let server = Server::start();
    let request = |temperature: f64, stream: bool| {
        json!({
            "prompt": "The king looked at the", "n_predict": 3, "n_probs": 4, "post_sampling_probs": true, "stream": stream,
            "temperature": temperature, "logit_bias": [[16, -3.5]], "samplers": ["top_k", "temperature"], "top_k": 3,
        })
    };
    for temperature in [0.0, 0.7] {
        let answer = server.post("/completion", &request(temperature, false)).ok();
        let settings = &answer["generation_settings"];
        assert_eq!(settings["logit_bias"], json!([{"token": 16, "bias": -3.5}]));
        assert_eq!((&settings["post_sampling_probs"], &settings["n_probs"]), (&json!(true), &json!(4)));
        let entries = answer["completion_probabilities"].as_array().unwrap();
        assert_eq!(entries.len(), 3);
        for entry in entries {
            let top = entry["top_probs"].as_array().unwrap();
            let sum: f64 = top.iter().map(|one| one["prob"].as_f64().unwrap()).sum();
            assert!((sum - 1.0).abs() < 1e-4, "{entry}");
            assert_eq!(top.len(), if temperature == 0.0 { 1 } else { 3 });
            let own = top.iter().find(|one| one["id"] == entry["id"]).unwrap();
            assert!((own["prob"].as_f64().unwrap() - entry["prob"].as_f64().unwrap()).abs() < 1e-5);
            assert!(entry["top_logprobs"].is_null());
        }
        let chunks = server.stream("/completion", &request(temperature, true));
        assert!(chunks[0]["completion_probabilities"][0]["top_probs"].is_array(), "{}", chunks[0]);
    }
}

#[test]
fn progress_and_tokens_come_with_timings_where_asked_for() {
    let server = Server::start();
    let story = "Once upon a time there was a frog who lived in a pond. ".repeat(30);
    let wish = json!({"stream": true, "return_progress": true, "timings_per_token": true, "max_tokens": 4, "ignore_eos": true});
    for (path, prompt) in [
        ("/completion", json!({"prompt": story})),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": story}]})),
    ] {
        let mut request = wish.clone();
        request.as_object_mut().unwrap().extend(prompt.as_object().unwrap().clone());
        let events = server.stream(path, &request);
        let progress: Vec<&Value> =
            events.iter().filter(|event| event.get("prompt_progress").is_some()).collect();
        assert!(progress.len() > 1, "{path}");
        assert_eq!(progress[0]["prompt_progress"]["processed"], progress[0]["prompt_progress"]["cache"]);
        assert_eq!(
            (&progress[0]["timings"]["prompt_n"], &progress[0]["timings"]["prompt_ms"]),
            (&0.into(), &0.0.into())
        );
        let last = progress[progress.len() - 1];
        assert_eq!(last["prompt_progress"]["processed"], last["prompt_progress"]["total"]);
        assert!(last["timings"]["prompt_ms"].as_f64().unwrap() > 0.0);
        let counts: Vec<u64> = events
            .iter()
            .filter_map(|event| event["timings"]["predicted_n"].as_u64())
            .filter(|&count| count > 0)
            .collect();
        assert_eq!(counts[..4], [1, 2, 3, 4], "{path}");
    }
}

#[test]
fn tokens_and_templates_go_both_ways() {
    let server = Server::start();
    let tokens = server.post("/tokenize", &json!({"content": "Hello, world!"})).ok()["tokens"].clone();
    let text = server.post("/detokenize", &json!({"tokens": tokens})).ok();
    assert_eq!(text["content"], "Hello, world!");
    let pieces = server.post("/tokenize", &json!({"content": "Hello, wörld!", "with_pieces": true})).ok();
    let pieces = pieces["tokens"].as_array().unwrap();
    let bytes = |piece: &Value| match piece {
        Value::String(text) => text.clone().into_bytes(),
        other => other.as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8).collect(),
    };
    let whole: Vec<u8> = pieces.iter().flat_map(|entry| bytes(&entry["piece"])).collect();
    assert_eq!(whole, "Hello, wörld!".as_bytes());
    server.post("/detokenize", &json!({"tokens": [1 << 20]})).refused(400);
    let prompt = server.post("/apply-template", &json!({"messages": hello()})).ok()["prompt"].clone();
    let expected = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(prompt, expected);
    let plain = server.post("/tokenize", &json!({"content": "<|im_end|>", "parse_special": false})).ok();
    assert!(plain["tokens"].as_array().unwrap().len() > 1);
}

#[test]
fn ollama_clients_find_what_they_need() {
    let server = Server::start();
    assert!(server.get("/api/version").ok()["version"].is_string());
    assert_eq!(server.get("/api/tags").ok()["models"][0]["name"], "pond");
    assert_eq!(server.get("/api/ps").ok()["models"][0]["model"], "pond");
    let shown = server.post("/api/show", &json!({"model": "pond"})).ok();
    assert_eq!(shown["details"]["family"], "qwen35");
    let reply = server.post("/api/show", &json!({"model": "other"}));
    assert_eq!(reply.status, 404);
    assert!(reply.json()["error"].is_string());
    let options = json!({"num_predict": 24, "temperature": 0});
    let request = json!({"model": "pond", "messages": hello(), "options": options, "stream": false});
    let whole = server.post("/api/chat", &request).ok();
    assert_eq!(whole["done"], true);
    let request = json!({"model": "pond", "messages": hello(), "options": options});
    let lines: Vec<Value> = server
        .post_with(
            "/api/chat",
            &[("content-type", "application/x-www-form-urlencoded")],
            &request.to_string(),
        )
        .text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(joined(&lines, "/message/content"), whole["message"]["content"].as_str().unwrap());
    assert_eq!(lines.last().unwrap()["eval_count"], whole["eval_count"]);
    let request = json!({"model": "pond", "prompt": "Once upon a time", "raw": true, "options": {"num_predict": 5},
        "stream": false});
    let raw = server.post("/api/generate", &request).ok();
    assert!(raw["response"].as_str().unwrap().starts_with(" there"), "{raw}");
    let loaded = server.post("/api/generate", &json!({"model": "pond"})).ok();
    assert_eq!(loaded["done_reason"], "load");
}

#[test]
fn vectors_have_length_one_and_texts_that_are_equal_have_equal_ones() {
    let server = Server::start();
    let request = json!({"input": ["a frog", "a frog", "the king"]});
    let data = server.post("/v1/embeddings", &request).ok()["data"].clone();
    let vector = |index: usize| -> Vec<f64> {
        data[index]["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let length = vector(0).iter().map(|value| value * value).sum::<f64>();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    assert_eq!(vector(0), vector(1));
    assert_ne!(vector(0), vector(2));
    let coded = json!({"input": "a frog", "encoding_format": "base64"});
    let coded = server.post("/v1/embeddings", &coded).ok()["data"][0]["embedding"].clone();
    assert_eq!(coded.as_str().unwrap().len(), (512usize * 4).div_ceil(3) * 4);
    server.post("/v1/embeddings", &json!({"input": []})).refused(400);
    server.post("/v1/embeddings", &json!({"input": "x", "dimensions": 3})).refused(400);
}

#[test]
fn a_slot_is_saved_and_restored_in_another_server() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        || EngineOptions { session_dir: Some(folder.path().to_owned()), threads: 2, ..Default::default() };
    let story = "Once upon a time there was a frog who lived in a pond. ".repeat(10);
    let request = json!({"prompt": story, "n_predict": 4, "id_slot": 1});
    let first = Server::with(config(), options());
    let before = first.post("/completion", &request).ok();
    let saved = first.post("/slots/1?action=save", &json!({"filename": "frog"})).ok();
    assert!(saved["n_saved"].as_u64().unwrap() >= before["tokens_evaluated"].as_u64().unwrap());
    drop(first);
    let second = Server::with(config(), options());
    let restored = second.post("/slots/1?action=restore", &json!({"filename": "frog"})).ok();
    assert_eq!(restored["n_restored"], saved["n_saved"]);
    let after = second.post("/completion", &request).ok();
    assert_eq!(after["content"], before["content"]);
    let (cached, all) =
        (after["tokens_cached"].as_u64().unwrap(), after["tokens_evaluated"].as_u64().unwrap());
    assert!(cached + 1 >= all, "{cached} of {all}");
    second.post("/slots/1?action=restore", &json!({"filename": "missing"})).refused(404);
    for name in
        ["..", "a/../b", "/etc/passwd", "C:\\x", "a\0b", "", "x.", "\u{ff0e}\u{ff0e}", &"a".repeat(256)]
    {
        let error = second.post("/slots/1?action=save", &json!({"filename": name})).refused(400);
        assert!(!error["message"].as_str().unwrap().contains(folder.path().to_str().unwrap()));
    }
    // A request that names no slot has one all the same, and its answer says which.
    let other = second.post("/completion", &json!({"prompt": "A toad", "n_predict": 2})).ok();
    assert_eq!(other["id_slot"], 0);
    let chat = json!({"messages": [{"role": "user", "content": story}], "max_tokens": 2});
    let read = second.post("/v1/chat/completions", &chat).ok()["usage"]["prompt_tokens"].as_u64().unwrap();
    let saved = second.post("/slots/0?action=save", &json!({"filename": "toad"})).ok();
    assert!(saved["n_saved"].as_u64().unwrap() > read, "the last one counts");
    assert_eq!(second.post("/slots/1?action=erase", &json!({})).ok()["erased"], true);
    assert_eq!(second.post_with("/slots/0?action=erase", &[], "").ok()["erased"], true);
    second.post("/slots/1?action=dance", &json!({})).refused(400);
}

#[test]
fn health_readiness_metrics_and_slots_tell_how_it_stands() {
    let server = Server::start();
    assert_eq!(server.get("/health").ok(), json!({"status": "ok"}));
    assert_eq!(server.get("/ready").ok(), json!({"status": "ok"}));
    server.post("/completion", &json!({"prompt": "Once", "n_predict": 3})).ok();
    let metrics = server.get("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.text.contains("\nmillpond_generated_tokens_total 3\n"), "{}", metrics.text);
    let value = |name: &str| {
        let line = metrics.text.lines().find_map(|line| line.strip_prefix(&format!("llamacpp:{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {}", metrics.text)).parse::<f64>().unwrap()
    };
    // llama-server's own test of its metrics asks for these.
    for name in [
        "prompt_tokens_cached_total",
        "prompt_seconds_total",
        "tokens_predicted_seconds_total",
        "spec_decode_num_draft_tokens_total",
        "spec_decode_num_accepted_tokens_total",
        "spec_decode_num_drafts_total",
        "requests_processing",
        "requests_deferred",
    ] {
        assert!(value(name) >= 0.0, "{name}");
    }
    assert_eq!((value("prompt_tokens_total"), value("tokens_predicted_total")), (1.0, 3.0));
    assert_eq!(value("n_busy_slots_per_decode"), 1.0, "it was alone");
    assert!(value("n_tokens_max") >= 3.0 && value("n_decode_total") >= 1.0);
    assert!(value("prompt_tokens_seconds") > 0.0 && value("predicted_tokens_seconds") > 0.0);
    let slots = server.get("/slots").ok();
    assert_eq!(slots.as_array().unwrap().len(), server.stats().max_running);
    let props = server.get("/props").ok();
    assert_eq!(props["default_generation_settings"]["n_ctx"], 4096);
    server.get("/nowhere").refused(404);
    server.get("/completion").refused(405);
}

#[test]
fn while_the_model_loads_the_server_says_so() {
    let server = Server::loading();
    assert_eq!(server.get("/health").status, 200);
    for path in ["/ready", "/v1/models", "/slots", "/metrics"] {
        let reply = server.get(path);
        reply.refused(503);
        assert!(reply.header("retry-after").is_some());
    }
    let error = server.post("/completion", &json!({"prompt": "x"})).refused(503);
    assert_eq!(error["message"], "Loading model");
}

#[test]
fn the_chat_page_is_served_unless_switched_off() {
    let server = Server::start();
    let page = server.get("/");
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    assert!(page.text.starts_with("<!doctype html>"));
    let config = millpond_server::http::config::ServerConfig { page: false, ..config() };
    Server::with(config, EngineOptions::default()).get("/").refused(404);
}
