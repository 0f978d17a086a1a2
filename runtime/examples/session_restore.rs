//! A story that survives its program: `cargo run --example session_restore -- [MODEL]`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millpond::engine::{Engine, EngineOptions, Event, Request, Usage};
use millpond::model::{LoadOptions, Model};

const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");

/// Goes on with a text for some tokens, under the name "story".
fn go_on(engine: &Engine, tokens: &mut Vec<u32>) -> Result<Usage, Box<dyn Error>> {
    let session = Some("story".to_owned());
    let request = Request { max_tokens: Some(30), session, ..Request::new(tokens.clone()) };
    for event in engine.handle().submit(request)? {
        match event {
            Event::Token { id, .. } => tokens.push(id),
            Event::Done { usage, .. } => return Ok(usage),
            Event::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    Err("the stream ended early".into())
}

fn start(model: &Arc<Model>, folder: &Path) -> Result<Engine, Box<dyn Error>> {
    let session_dir = Some(folder.to_owned());
    Ok(Engine::start(model.clone(), EngineOptions { session_dir, ..EngineOptions::default() })?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).map_or_else(|| PathBuf::from(BUILT_IN), PathBuf::from);
    let model = Model::load(&path, &LoadOptions::default())?;
    let tokenizer = model.tokenizer.clone().ok_or("the model has no tokenizer")?;
    let folder = std::env::temp_dir().join(format!("millpond-example-{}", std::process::id()));

    let engine = start(&model, &folder)?;
    let mut tokens = tokenizer.encode("The mill had stood still for a hundred years.", false)?;
    go_on(&engine, &mut tokens)?;
    let saved = engine.handle().save_session("story", "story")?;
    println!("saved {} tokens in {} bytes", saved.tokens, saved.bytes);
    drop(engine);

    let engine = start(&model, &folder)?;
    engine.handle().load_session("story", "story")?;
    let usage = go_on(&engine, &mut tokens)?;
    println!("{}", tokenizer.decode(&tokens, true));
    println!("{} of {} tokens did not have to be read again", usage.cached_tokens, usage.prompt_tokens);
    engine.handle().delete_session("story")?;
    std::fs::remove_dir(&folder)?;
    Ok(())
}
