//! A prompt in, text out: `cargo run --example one_shot -- [MODEL] [PROMPT]`.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;

use millpond::engine::{Engine, EngineOptions, Event, Request};
use millpond::model::{LoadOptions, Model};

const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().map_or_else(|| PathBuf::from(BUILT_IN), PathBuf::from);
    let prompt = arguments.next().unwrap_or_else(|| "Once upon a time, by a quiet pond,".to_owned());

    let model = Model::load(&path, &LoadOptions::default())?;
    let tokenizer = model.tokenizer.clone().ok_or("the model has no tokenizer")?;
    let engine = Engine::start(model, EngineOptions::default())?;

    let request = Request { max_tokens: Some(60), ..Request::new(tokenizer.encode(&prompt, false)?) };
    print!("{prompt}");
    for event in engine.handle().submit(request)? {
        match event {
            Event::Token { text, .. } => {
                print!("{text}");
                std::io::stdout().flush()?;
            }
            Event::Done { text, usage, .. } => {
                println!("{text}");
                let seconds = usage.decode.as_secs_f64();
                eprintln!("{} tokens in {seconds:.2} s", usage.completion_tokens);
            }
            Event::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
