//! Engines and what they stream, set up for tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use millpond::engine::{
    Engine, EngineOptions, Event, FinishReason, Generation, Request, TokenLogprob, Usage,
};
use millpond::model::{LoadOptions, Model};
use millpond::sample::SamplingParams;
use millpond::state::memory::KvType;

/// A file of the tests' folder.
pub fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A tiny checkpoint with transformers' answers.
pub fn golden_model(name: &str) -> Arc<Model> {
    Model::load(&data("data/golden").join(name), &LoadOptions::default()).expect("a golden checkpoint")
}

/// The built-in model.
pub fn built_in_model() -> Arc<Model> {
    let path = data("../server/assets/delta-48m-Q4_K_M.gguf");
    Model::load(&path, &LoadOptions::default()).expect("the built-in model")
}

/// Two threads, a single-precision attention cache, no speculation.
pub fn options() -> EngineOptions {
    use millpond::engine::SpecMode;
    EngineOptions { threads: 2, kv_type: KvType::F32, spec: SpecMode::Off, ..EngineOptions::default() }
}

/// An engine for a model.
pub fn engine(model: &Arc<Model>, options: EngineOptions) -> Engine {
    Engine::start(model.clone(), options).expect("an engine")
}

/// A greedy request for `count` tokens.
pub fn greedy(prompt: &[u32], count: usize) -> Request {
    let sampling = SamplingParams::greedy();
    Request { sampling, max_tokens: Some(count), ignore_eos: true, ..Request::new(prompt.to_vec()) }
}

/// What a generation streamed.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Their probabilities, where asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// The text.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// What it cost.
    pub usage: Usage,
    /// Probabilities of the prompt.
    pub prompt: Vec<Option<TokenLogprob>>,
    /// The vector asked for.
    pub embedding: Vec<f32>,
}

/// Waits for a generation; `Err` with the message of a failed one.
pub fn try_collect(generation: Generation) -> Result<Answer, String> {
    let (mut tokens, mut logprobs, mut all) = (Vec::new(), Vec::new(), String::new());
    let (mut prompt, mut embedding) = (Vec::new(), Vec::new());
    for event in generation {
        match event {
            Event::Token { id, text, logprob } => {
                tokens.push(id);
                logprobs.extend(logprob);
                all.push_str(&text);
            }
            Event::Done { reason, text, usage } => {
                all.push_str(&text);
                return Ok(Answer { tokens, logprobs, text: all, reason, usage, prompt, embedding });
            }
            Event::Error(error) => return Err(error.to_string()),
            Event::Prompt(logprobs) => prompt = logprobs,
            Event::Embedding(vector) => embedding = vector,
            _ => {}
        }
    }
    Err("the stream ended without an end".to_owned())
}

/// Waits for a generation that succeeds.
pub fn collect(generation: Generation) -> Answer {
    try_collect(generation).unwrap_or_else(|error| panic!("{error}"))
}

/// Submits a request and waits for it.
pub fn answer(engine: &Engine, request: Request) -> Answer {
    collect(engine.handle().submit(request).expect("room"))
}

/// A golden file.
pub struct Golden(Vec<u8>);

impl Golden {
    /// That of a tiny checkpoint.
    pub fn of(name: &str) -> Golden {
        Golden(std::fs::read(data("data/golden").join(name).join("golden.safetensors")).expect("a file"))
    }

    /// A tensor of ids.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let file = safetensors::SafeTensors::deserialize(&self.0).expect("a golden file");
        let tensor = file.tensor(name).expect("a tensor of the golden file");
        tensor.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
    }

    /// A tensor of single-precision numbers.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.ids(name).into_iter().map(f32::from_bits).collect()
    }

    /// A prompt and its greedy continuation.
    pub fn prompt(&self, index: usize) -> (Vec<u32>, Vec<u32>) {
        (self.ids(&format!("prompt.{index}.ids")), self.ids(&format!("prompt.{index}.greedy")))
    }
}
