//! Several requests at once, without a thread for each: `cargo run --example many_streams -- [MODEL]`.

use std::error::Error;
use std::path::PathBuf;
use std::sync::mpsc;

use millpond::engine::{Class, Engine, EngineOptions, Event, RecvError, Request};
use millpond::model::{LoadOptions, Model};

const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).map_or_else(|| PathBuf::from(BUILT_IN), PathBuf::from);
    let model = Model::load(&path, &LoadOptions::default())?;
    let tokenizer = model.tokenizer.clone().ok_or("the model has no tokenizer")?;
    let engine = Engine::start(model, EngineOptions::default())?;

    let beginnings = ["The miller", "A frog", "In the evening", "Nobody", "The old boat", "A stranger"];
    let (wake, woken) = mpsc::channel();
    let mut streams = Vec::new();
    for (i, beginning) in beginnings.iter().enumerate() {
        let class = if i < 4 { Class::Interactive } else { Class::Background };
        let prompt = tokenizer.encode(beginning, false)?;
        let generation =
            engine.handle().submit(Request { max_tokens: Some(24), class, ..Request::new(prompt) })?;
        let wake = wake.clone();
        generation.set_waker(move || {
            // Which stream has news. Nobody listens any more once all have ended.
            wake.send(i).ok();
        });
        streams.push((generation, beginning.to_string()));
    }
    drop(wake);
    let mut open = streams.len();
    while open > 0 {
        let (generation, text) = &mut streams[woken.recv()?];
        loop {
            match generation.try_recv() {
                Ok(Event::Token { text: more, .. }) => text.push_str(&more),
                Ok(Event::Done { text: last, .. }) => {
                    open -= 1;
                    println!("{text}{last}\n");
                }
                Ok(Event::Error(error)) => return Err(error.into()),
                Ok(_) => {}
                Err(RecvError::Empty | RecvError::Ended) => break,
            }
        }
    }
    let stats = engine.handle().stats();
    println!("{} tokens in {} passes over the weights", stats.generated_tokens, stats.steps);
    Ok(())
}
