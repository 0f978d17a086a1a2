//! `millpond tokenize`: text to token ids.

use millpond::text::Tokenizer;

use super::args::TokenizeArgs;
use super::{output, settings};

/// Runs the command.
///
/// # Errors
/// A model that does not load, a text that cannot be read.
pub(crate) fn run(args: &TokenizeArgs) -> anyhow::Result<()> {
    let words = settings::joined(&args.text);
    let text = match settings::text_of(words.as_deref().or(args.prompt.as_deref()), args.file.as_deref())? {
        Some(text) => text,
        None => settings::read_stdin()?,
    };
    let model = settings::load_model(&args.model)?;
    let tokenizer = settings::tokenizer(&model)?;
    let ids = tokenizer.encode(&text, !args.no_parse_special)?;
    if args.json {
        let tokens: Vec<_> = ids.iter().map(|&id| described(tokenizer, id)).collect();
        output::line(&serde_json::to_string(&tokens)?)
    } else if args.ids {
        output::line(&serde_json::to_string(&ids)?)
    } else if args.show_count {
        output::line(&ids.len().to_string())
    } else {
        ids.iter().try_for_each(|&id| output::line(&describe(tokenizer, id)))
    }
}

/// A token for a program: with its bytes where they are no text by themselves, as in llama.cpp.
fn described(tokenizer: &Tokenizer, id: u32) -> serde_json::Value {
    let bytes = tokenizer.token_bytes(id);
    match std::str::from_utf8(bytes) {
        Ok(text) => serde_json::json!({ "id": id, "piece": text }),
        Err(_) => serde_json::json!({ "id": id, "piece": bytes }),
    }
}

/// The id and the text of a token, on one line.
fn describe(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id);
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("{id:6}  {text:?}"),
        Err(_) => format!("{id:6}  bytes {bytes:02x?}"),
    }
}
