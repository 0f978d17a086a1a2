//! `/v1/completions`: continues texts, as evaluation tools use it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use millpond::engine::{Event, TokenLogprob};
use millpond::text::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{StreamOptions, fingerprint};
use crate::http::answer::finish_reason;
use crate::http::body::JsonBody;
use crate::http::constraint::ConstraintFields;
use crate::http::error::{ApiError, ApiResult};
use crate::http::events::Events;
use crate::http::ids;
use crate::http::integer;
use crate::http::logprobs::CompletionLogprobs;
use crate::http::object;
use crate::http::params::{GenerationFields, answer_count, token_count};
use crate::http::prompt::PromptInput;
use crate::http::sse::{self, Framing, Gone, Sender};
use crate::http::state::{AppState, Served};
use crate::http::usage::Totals;

/// Tokens generated where a request does not say, as OpenAI's API has it.
const DEFAULT_TOKENS: usize = 16;
/// Most alternatives reported for a token.
const MAX_LOGPROBS: u32 = 64;

/// The body of a request.
#[derive(Debug, Deserialize)]
pub(crate) struct CompletionRequest {
    model: Option<String>,
    prompt: PromptInput,
    #[serde(flatten)]
    generation: GenerationFields,
    #[serde(flatten)]
    constraint: ConstraintFields,
    #[serde(default, deserialize_with = "integer::maybe")]
    max_tokens: Option<i64>,
    stream: Option<bool>,
    #[serde(default, deserialize_with = "object::maybe")]
    stream_options: Option<StreamOptions>,
    #[serde(default, deserialize_with = "integer::maybe")]
    n: Option<u32>,
    logprobs: Option<Logprobs>,
    echo: Option<bool>,
    suffix: Option<String>,
}

/// A number in OpenAI's API; some clients send a truth value.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Logprobs {
    Count(#[serde(deserialize_with = "integer::one")] u32),
    Wanted(bool),
}

/// How the answers are written.
struct Shape {
    id: String,
    created: u64,
    model: String,
    /// For each answer, its prompt, where it is to be repeated.
    echo: Vec<Option<Vec<u32>>>,
    /// Answers to each prompt.
    each: usize,
    logprobs: bool,
    usage: bool,
}

/// Continues texts.
pub(crate) async fn create(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<CompletionRequest>,
) -> ApiResult {
    let stream = body.stream.unwrap_or(false);
    let served = state.select(body.model.as_deref()).await?;
    let (events, shape) = served.prepare(move |served| begin(served, body)).await?;
    let tokenizer = served.model().tokenizer.clone();
    let texts = shape.echo.iter().map(|_| Text::default()).collect();
    let writer = Writer { shape, tokenizer, texts };
    if stream {
        return Ok(sse::respond(Framing::Sse, |sender| writer.write(sender, events)));
    }
    writer.collect(events).await
}

fn begin(served: &Served, body: CompletionRequest) -> ApiResult<(Events, Shape)> {
    if body.suffix.as_deref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::field("suffix", "suffix is not supported"));
    }
    let limit = token_count("max_tokens", body.max_tokens)?.unwrap_or(DEFAULT_TOKENS);
    let model = served.model();
    let prompts = body.prompt.tokens(served)?;
    let each = answer_count(body.n)?;
    let echo = body.echo.unwrap_or(false);
    let logprobs = match body.logprobs {
        None | Some(Logprobs::Wanted(false)) => None,
        Some(Logprobs::Wanted(true)) => Some(0),
        Some(Logprobs::Count(count)) if count <= MAX_LOGPROBS => Some(count as usize),
        Some(Logprobs::Count(count)) => {
            let message = format!("logprobs is {count}, expected at most {MAX_LOGPROBS}");
            return Err(ApiError::field("logprobs", message));
        }
    };
    let constraint = body.constraint.source()?;
    let mut requests = Vec::new();
    let mut echoes = Vec::new();
    for prompt in prompts {
        let tokenizer = model.tokenizer.as_deref();
        let mut request = body.generation.request(
            prompt.clone(),
            Some(limit),
            served.config(),
            tokenizer,
            model.spec.vocab,
        )?;
        request.logprobs = logprobs;
        request.echo = echo && logprobs.is_some();
        request.grammar.clone_from(&constraint);
        echoes.extend((0..each).map(|_| echo.then(|| prompt.clone())));
        requests.push(request);
    }
    let shape = Shape {
        id: ids::unique("cmpl-"),
        created: ids::now(),
        model: served.name(),
        echo: echoes,
        each,
        logprobs: logprobs.is_some(),
        usage: body.stream_options.unwrap_or_default().include_usage,
    };
    Ok((served.submit(requests, each)?, shape))
}

/// One answer while it comes.
#[derive(Default)]
struct Text {
    text: String,
    logprobs: CompletionLogprobs,
    reason: Option<&'static str>,
    begun: bool,
}

struct Writer {
    shape: Shape,
    tokenizer: Option<Arc<Tokenizer>>,
    texts: Vec<Text>,
}

impl Writer {
    /// Takes in an event: the text it adds and whether the answer has ended.
    fn take(&mut self, index: usize, event: Event, totals: &mut Totals) -> ApiResult<bool> {
        if !self.texts[index].begun && !matches!(event, Event::Prefill { .. }) {
            self.begin(index, &event);
        }
        let tokenizer = self.tokenizer.as_deref();
        let text = &mut self.texts[index];
        match event {
            Event::Token { id, text: piece, logprob } => {
                text.text.push_str(&piece);
                if let Some(found) = logprob {
                    text.logprobs.add(tokenizer, id, Some(&found));
                }
            }
            Event::Done { reason, text: piece, usage } => {
                text.text.push_str(&piece);
                text.reason = Some(finish_reason(&reason, 0));
                totals.add(&usage, !index.is_multiple_of(self.shape.each));
                return Ok(true);
            }
            Event::Error(error) => return Err(error.into()),
            _ => {}
        }
        Ok(false)
    }

    /// Repeats the prompt, with the probabilities of its tokens where they were asked for.
    fn begin(&mut self, index: usize, event: &Event) {
        let text = &mut self.texts[index];
        text.begun = true;
        let (Some(prompt), Some(tokenizer)) = (&self.shape.echo[index], self.tokenizer.as_deref()) else {
            return;
        };
        text.text.push_str(&tokenizer.decode(prompt, false));
        if let Event::Prompt(found) = event {
            for (&id, found) in prompt.iter().zip(found) {
                text.logprobs.add(Some(tokenizer), id, found.as_ref().map(|found: &TokenLogprob| found));
            }
        }
    }

    async fn collect(mut self, mut events: Events) -> ApiResult {
        let mut totals = Totals::default();
        while let Some((index, event)) = events.next().await {
            self.take(index, event, &mut totals)?;
        }
        let choices: Vec<Value> = (0..self.texts.len()).map(|index| self.choice(index)).collect();
        let mut value = self.value(&choices.into());
        value["usage"] = totals.openai();
        value["timings"] = totals.timings();
        Ok(Json(value).into_response())
    }

    /// What has come of an answer since the last call.
    fn choice(&mut self, index: usize) -> Value {
        let logprobs = self.shape.logprobs;
        let text = &mut self.texts[index];
        json!({
            "index": index,
            "text": std::mem::take(&mut text.text),
            "logprobs": if logprobs { text.logprobs.take() } else { Value::Null },
            "finish_reason": text.reason,
        })
    }

    fn value(&self, choices: &Value) -> Value {
        json!({
            "id": self.shape.id,
            "object": "text_completion",
            "created": self.shape.created,
            "model": self.shape.model,
            "system_fingerprint": fingerprint(),
            "choices": choices,
        })
    }

    async fn write(mut self, sender: Sender, mut events: Events) -> Result<(), Gone> {
        let mut totals = Totals::default();
        while let Some((index, event)) = sender.next(&mut events).await? {
            let ended = match self.take(index, event, &mut totals) {
                Ok(ended) => ended,
                Err(error) => return sender.data(&error.openai()).await,
            };
            if !ended && self.texts[index].text.is_empty() {
                continue;
            }
            let choice = self.choice(index);
            let mut chunk = self.value(&json!([choice]));
            if ended {
                chunk["timings"] = totals.timings();
            }
            sender.data(&chunk).await?;
        }
        if self.shape.usage {
            let mut chunk = self.value(&json!([]));
            chunk["usage"] = totals.openai();
            sender.data(&chunk).await?;
        }
        sender.done().await
    }
}
