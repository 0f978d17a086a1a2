//! Text that is JSON of a schema: `cargo run --example json_schema -- [MODEL]`.

use std::error::Error;
use std::path::PathBuf;

use millpond::engine::{Engine, EngineOptions, Event, Request};
use millpond::model::{LoadOptions, Model};
use millpond::sample::grammar::GrammarSource;
use serde_json::{Value, json};

const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/assets/delta-48m-Q4_K_M.gguf");

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).map_or_else(|| PathBuf::from(BUILT_IN), PathBuf::from);
    let model = Model::load(&path, &LoadOptions::default())?;
    let tokenizer = model.tokenizer.clone().ok_or("the model has no tokenizer")?;
    let engine = Engine::start(model, EngineOptions::default())?;

    let schema = json!({
        "type": "object",
        "properties": {
            "animal": { "enum": ["frog", "duck", "carp"] },
            "name": { "type": "string", "maxLength": 16 },
            "age": { "type": "integer", "minimum": 0, "maximum": 30 }
        },
        "required": ["animal", "name", "age"],
        "additionalProperties": false,
        // White space is free in JSON, and small models take to it.
        "x-guidance": { "whitespace_flexible": false }
    });
    let prompt = tokenizer.encode("Somebody who lives in the pond, as JSON: ", false)?;
    let grammar = Some(GrammarSource::JsonSchema(schema));
    let mut answer = String::new();
    for event in engine.handle().submit(Request { max_tokens: Some(200), grammar, ..Request::new(prompt) })? {
        match event {
            Event::Token { text, .. } | Event::Done { text, .. } => answer.push_str(&text),
            Event::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    let value: Value = serde_json::from_str(&answer)?;
    println!("{} is a {} of {} years", value["name"], value["animal"], value["age"]);
    Ok(())
}
