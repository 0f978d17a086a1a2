//! A conversation on the terminal, with the model's own template: `cargo run --example chat -- [MODEL]`.
//!
//! Each turn sends the whole history; the engine reads only what is new and says so.

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::PathBuf;

use millpond::engine::{Engine, EngineOptions, Event, Request};
use millpond::model::{LoadOptions, Model};
use millpond::text::ChatInput;
use serde_json::json;

const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).map_or_else(|| PathBuf::from(BUILT_IN), PathBuf::from);
    let model = Model::load(&path, &LoadOptions::default())?;
    let tokenizer = model.tokenizer.clone().ok_or("the model has no tokenizer")?;
    let engine = Engine::start(model.clone(), EngineOptions::default())?;
    let template = model.template.as_ref().ok_or("the model has no chat template")?;

    let mut messages = Vec::new();
    for line in std::io::stdin().lock().lines() {
        messages.push(json!({ "role": "user", "content": line? }));
        let chat = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
        let prompt = template.encode(&chat, &tokenizer)?;
        let mut answer = String::new();
        for event in engine.handle().submit(Request { max_tokens: Some(80), ..Request::new(prompt) })? {
            match event {
                Event::Token { text, .. } => {
                    print!("{text}");
                    std::io::stdout().flush()?;
                    answer.push_str(&text);
                }
                Event::Done { text, usage, .. } => {
                    println!("{text}");
                    answer.push_str(&text);
                    let (cached, prompt) = (usage.cached_tokens, usage.prompt_tokens);
                    eprintln!("[{cached} of {prompt} prompt tokens were there already]");
                }
                Event::Error(error) => return Err(error.into()),
                _ => {}
            }
        }
        messages.push(json!({ "role": "assistant", "content": answer }));
    }
    Ok(())
}
