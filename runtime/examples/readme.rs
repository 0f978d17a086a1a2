//! The README's program, word for word: it reads `model.gguf` in the current folder.

use millpond::conversation::Conversation;
use millpond::engine::{Engine, EngineOptions, Request};
use millpond::model::{LoadOptions, Model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::load("model.gguf".as_ref(), &LoadOptions::default())?;
    let engine = Engine::start(model, EngineOptions { context: 4096, ..EngineOptions::default() })?;
    let mut talk = Conversation::new(&engine.handle())?;
    for piece in talk.ask("What is a mill pond?", Request { max_tokens: Some(200), ..Request::default() })? {
        print!("{}", piece?);
    }
    println!();
    Ok(())
}
