//! Probabilities of tokens, in the words of the APIs.

use millpond::engine::TokenLogprob;
use millpond::text::Tokenizer;
use serde_json::{Map, Value, json};

/// A token's text, with U+FFFD where it is part of a character.
#[must_use]
pub(crate) fn text_of(tokenizer: Option<&Tokenizer>, id: u32) -> String {
    tokenizer
        .map_or_else(String::new, |tokenizer| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned())
}

fn bytes_of(tokenizer: Option<&Tokenizer>, id: u32) -> &[u8] {
    tokenizer.map_or(&[], |tokenizer| tokenizer.token_bytes(id))
}

/// JSON has no infinity: what cannot happen at all has a logarithm beyond any that can.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// An entry of `logprobs.content` in OpenAI's chat API. With `ids`, llama.cpp's `id` comes along.
#[must_use]
pub(crate) fn chat_entry(tokenizer: Option<&Tokenizer>, found: &TokenLogprob, ids: bool) -> Value {
    let one = |id: u32, logprob: f32| {
        let mut entry = Map::new();
        if ids {
            entry.insert("id".to_owned(), id.into());
        }
        entry.insert("token".to_owned(), text_of(tokenizer, id).into());
        entry.insert("logprob".to_owned(), finite(logprob).into());
        entry.insert("bytes".to_owned(), bytes_of(tokenizer, id).into());
        entry
    };
    let mut entry = one(found.id, found.logprob);
    let top: Vec<Value> = found.top.iter().map(|&(id, logprob)| one(id, logprob).into()).collect();
    entry.insert("top_logprobs".to_owned(), top.into());
    entry.into()
}

/// An entry of llama.cpp's `completion_probabilities` with probabilities after sampling.
#[must_use]
pub(crate) fn sampled_entry(tokenizer: Option<&Tokenizer>, found: &TokenLogprob) -> Value {
    let one = |id: u32, logprob: f32| {
        json!({
            "id": id,
            "token": text_of(tokenizer, id),
            "prob": logprob.exp(),
            "bytes": bytes_of(tokenizer, id),
        })
    };
    let mut entry = one(found.id, found.logprob);
    entry["top_probs"] = found.top.iter().map(|&(id, logprob)| one(id, logprob)).collect();
    entry
}

/// `logprobs` of OpenAI's completions API, collected token by token.
#[derive(Clone, Debug, Default)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<Value>,
    offset: usize,
}

impl CompletionLogprobs {
    /// Adds a token; the first of a prompt has no probability.
    pub(crate) fn add(&mut self, tokenizer: Option<&Tokenizer>, id: u32, found: Option<&TokenLogprob>) {
        let text = text_of(tokenizer, id);
        self.text_offset.push(self.offset.into());
        self.offset += text.chars().count();
        self.tokens.push(text.into());
        self.token_logprobs.push(found.map_or(Value::Null, |found| finite(found.logprob).into()));
        let top = |found: &TokenLogprob| -> Value {
            let pair = |&(id, logprob): &(u32, f32)| (text_of(tokenizer, id), Value::from(finite(logprob)));
            found.top.iter().map(pair).collect::<Map<_, _>>().into()
        };
        self.top_logprobs.push(found.map_or(Value::Null, top));
    }

    /// What was collected since the last call.
    #[must_use]
    pub(crate) fn take(&mut self) -> Value {
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.token_logprobs),
            "top_logprobs": std::mem::take(&mut self.top_logprobs),
            "text_offset": std::mem::take(&mut self.text_offset),
        })
    }
}
