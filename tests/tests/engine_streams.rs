//! Requests through the engine: several at once, limits, stops, cancellation, failures that stay alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millpond::engine::{Engine, EngineOptions, Event, FinishReason, Generation, Request, SubmitError, Usage};
use millpond::model::{LoadOptions, Model};
use millpond::sample::SamplingParams;
use millpond::state::memory::KvType;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn golden(name: &str) -> Arc<Model> {
    Model::load(&data("data/golden").join(name), &LoadOptions::default()).expect("a golden checkpoint")
}

fn built_in() -> Arc<Model> {
    let path = data("../server/assets/delta-48m-Q4_K_M.gguf");
    Model::load(&path, &LoadOptions::default()).expect("the built-in model")
}

fn options() -> EngineOptions {
    EngineOptions { threads: 2, kv_type: KvType::F32, ..EngineOptions::default() }
}

/// A greedy request.
fn greedy(prompt: Vec<u32>) -> Request {
    Request { sampling: SamplingParams::greedy(), ..Request::new(prompt) }
}

fn i32s(file: &safetensors::SafeTensors<'_>, name: &str) -> Vec<u32> {
    let tensor = file.tensor(name).expect("a tensor of the golden file");
    tensor.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
}

/// Tokens, text, and the end.
fn collect(generation: Generation) -> (Vec<u32>, String, FinishReason, Usage) {
    let (mut tokens, mut all) = (Vec::new(), String::new());
    for event in generation {
        match event {
            Event::Token { id, text, .. } => {
                tokens.push(id);
                all.push_str(&text);
            }
            Event::Done { reason, text, usage } => {
                all.push_str(&text);
                return (tokens, all, reason, usage);
            }
            Event::Error(error) => panic!("{error}"),
            Event::Prefill { .. } | Event::Prompt(_) | Event::Embedding(_) => {}
        }
    }
    panic!("the stream ended without an end");
}

/// transformers' greedy continuations, with all prompts in the engine at once.
#[test]
fn concurrent_greedy_streams_equal_transformers() {
    for name in ["qwen35-dense", "qwen3-next", "qwen35-moe"] {
        let bytes = std::fs::read(data("data/golden").join(name).join("golden.safetensors")).expect("a file");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("a golden file");
        let engine = Engine::start(golden(name), options()).expect("an engine");
        let prompts: Vec<usize> = (0..6).collect();
        let running: Vec<Generation> = prompts
            .iter()
            .map(|p| {
                let prompt = i32s(&file, &format!("prompt.{p}.ids"));
                let request = Request { max_tokens: Some(32), ..greedy(prompt) };
                engine.handle().submit(request).expect("room")
            })
            .collect();
        for (p, generation) in prompts.iter().zip(running) {
            let (tokens, _, reason, usage) = collect(generation);
            assert_eq!(tokens, i32s(&file, &format!("prompt.{p}.greedy")), "{name}, prompt {p}");
            assert_eq!(reason, FinishReason::Length);
            assert_eq!(usage.completion_tokens, 32);
        }
    }
}

#[test]
fn text_streams_and_stops() {
    let model = built_in();
    let tokenizer = model.tokenizer.clone().expect("a tokenizer");
    let engine = Engine::start(model, options()).expect("an engine");
    let prompt = tokenizer.encode("Once upon a time", false).expect("tokens");
    let request = Request { max_tokens: Some(40), ..greedy(prompt) };
    let (tokens, text, reason, _) = collect(engine.handle().submit(request.clone()).expect("room"));
    assert_eq!(text, tokenizer.decode(&tokens, true));
    assert_eq!(reason, FinishReason::Length);
    // Stop at a word of its own making: the text before it comes out whole, and nothing of it.
    let word = text.split_whitespace().nth(5).expect("words").to_owned();
    let before = &text[..text.find(&word).expect("the word")];
    let request = Request { stop: vec![word.clone()], ..request };
    let (_, stopped, reason, usage) = collect(engine.handle().submit(request).expect("room"));
    assert_eq!(stopped, before);
    assert_eq!(reason, FinishReason::Stop(word));
    assert!(usage.completion_tokens < 40);
}

#[test]
fn dropped_and_cancelled_streams_give_everything_back() {
    let model = built_in();
    let engine = Engine::start(model, options()).expect("an engine");
    let handle = engine.handle();
    let request = Request { ignore_eos: true, ..Request::new(vec![5; 700]) };
    let dropped = handle.submit(request.clone()).expect("room");
    let cancelled = handle.submit(request.clone()).expect("room");
    let stays = handle.submit(Request { max_tokens: Some(8), ..request }).expect("room");
    drop(dropped);
    cancelled.cancel();
    assert_eq!(collect(cancelled).2, FinishReason::Cancelled);
    assert_eq!(collect(stays).2, FinishReason::Length);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !handle.stats().slots.is_empty() {
        assert!(std::time::Instant::now() < deadline, "streams stay");
        std::thread::sleep(Duration::from_millis(5));
    }
    let stats = handle.stats();
    assert_eq!((stats.reserved_bytes, stats.waiting), (0, 0));
    assert_eq!((stats.cancelled, stats.completed, stats.failed), (2, 1, 0));
}

#[test]
fn requests_that_cannot_be_served_are_refused_at_once() {
    let engine =
        Engine::start(golden("qwen35-dense"), EngineOptions { context: 100, max_queue: 0, ..options() })
            .expect("an engine");
    let handle = engine.handle();
    let refuse = |request: Request| handle.submit(request).expect_err("a refusal");
    assert!(matches!(refuse(Request::new(vec![])), SubmitError::Invalid(_)));
    assert!(matches!(refuse(Request::new(vec![u32::MAX])), SubmitError::Invalid(_)));
    let long = Request { max_tokens: Some(51), ..Request::new(vec![1; 50]) };
    assert_eq!(
        refuse(long).to_string(),
        "50 prompt tokens and 51 tokens to generate exceed the context of 100"
    );
    assert!(matches!(refuse(Request::new(vec![1])), SubmitError::QueueFull { waiting: 0, .. }));
    let huge = EngineOptions { memory_budget: Some(1000), ..options() };
    let engine = Engine::start(golden("qwen35-dense"), huge).expect("an engine");
    let error = engine.handle().submit(Request::new(vec![1])).expect_err("a refusal");
    assert!(matches!(error, SubmitError::TooLarge { budget: 1000, .. }));
}
