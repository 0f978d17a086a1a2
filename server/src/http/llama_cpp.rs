//! llama.cpp's own API: `/completion`, `/tokenize`, `/detokenize`, `/props`.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::IntoResponse;
use millpond::engine::{Event, FinishReason, Request, TokenLogprob};
use millpond::sample::SamplingParams;
use millpond::text::{ChatTemplate, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::JsonBody;
use super::clock::Clock;
use super::constraint::ConstraintFields;
use super::error::{ApiError, ApiResult};
use super::events::Events;
use super::integer;
use super::logprobs;
use super::openai::chat::session;
use super::params::{GenerationFields, answer_count};
use super::prompt::PromptInput;
use super::sse::{self, Framing, Gone, Sender};
use super::state::{AppState, Served};
use super::usage::Totals;

/// The body of a request to `/completion`.
#[derive(Debug, Deserialize)]
pub(crate) struct CompletionRequest {
    model: Option<String>,
    prompt: PromptInput,
    #[serde(flatten)]
    generation: GenerationFields,
    #[serde(flatten)]
    constraint: ConstraintFields,
    #[serde(alias = "max_tokens")]
    #[serde(default, deserialize_with = "integer::maybe")]
    n_predict: Option<i64>,
    stream: Option<bool>,
    #[serde(alias = "n_cmpl")]
    #[serde(default, deserialize_with = "integer::maybe")]
    n: Option<u32>,
    #[serde(default, deserialize_with = "integer::maybe")]
    n_probs: Option<u32>,
    post_sampling_probs: Option<bool>,
    return_tokens: Option<bool>,
    return_progress: Option<bool>,
    timings_per_token: Option<bool>,
    response_fields: Option<Vec<String>>,
    #[serde(default, deserialize_with = "integer::maybe")]
    id_slot: Option<i64>,
    session: Option<String>,
}

/// What each answer of a request needs to be written.
struct Shape {
    model: String,
    prompts: Vec<String>,
    /// Most tokens of a prompt and its answer.
    context: usize,
    settings: Value,
    each: usize,
    tokens: bool,
    progress: bool,
    /// Whether timings come with every token.
    timings: bool,
    /// Whether probabilities are those after sampling.
    sampled: bool,
    /// The only fields that are wanted, with slashes between the names of nested ones.
    fields: Vec<String>,
}

impl Shape {
    /// The probabilities of a token.
    fn probabilities(&self, tokenizer: Option<&Tokenizer>, found: &TokenLogprob) -> Value {
        match self.sampled {
            true => logprobs::sampled_entry(tokenizer, found),
            false => logprobs::chat_entry(tokenizer, found, true),
        }
    }

    /// The fields of an answer that are wanted.
    fn wanted(&self, answer: Value) -> Value {
        if self.fields.is_empty() {
            return answer;
        }
        let named = self.fields.iter().filter_map(|name| Some((name, answer.pointer(&format!("/{name}"))?)));
        Value::Object(named.map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}

/// One answer while it comes.
#[derive(Default)]
struct Text {
    text: String,
    tokens: Vec<u32>,
    probabilities: Vec<Value>,
}

/// Continues texts.
pub(crate) async fn completion(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<CompletionRequest>,
) -> ApiResult {
    let stream = body.stream.unwrap_or(false);
    let served = state.select(body.model.as_deref()).await?;
    let (events, shape) = served.prepare(move |served| begin(served, body)).await?;
    let count = shape.prompts.len() * shape.each;
    if stream {
        return Ok(sse::respond(Framing::Sse, |sender| write(sender, served, events, shape, count)));
    }
    collect(&served, events, &shape, count).await
}

fn begin(served: &Served, body: CompletionRequest) -> ApiResult<(Events, Shape)> {
    if body.id_slot.is_some_and(|slot| slot < -1) {
        return Err(ApiError::field("id_slot", "id_slot must be -1 or above"));
    }
    let limit = match body.n_predict {
        None | Some(-1) => None,
        Some(count) => {
            let wrong =
                || ApiError::field("n_predict", format!("n_predict is {count}, expected -1 or above"));
            Some(usize::try_from(count).map_err(|_| wrong())?)
        }
    };
    let model = served.model();
    let tokenizer = model.tokenizer.as_deref();
    let constraint = body.constraint.source()?;
    let each = answer_count(body.n)?;
    let mut requests = Vec::new();
    let mut prompts = Vec::new();
    for prompt in body.prompt.tokens(served)? {
        prompts.push(tokenizer.map_or_else(String::new, |tokenizer| tokenizer.decode(&prompt, false)));
        let mut request =
            body.generation.request(prompt, limit, served.config(), tokenizer, model.spec.vocab)?;
        request.logprobs = body.n_probs.filter(|&count| count > 0).map(|count| count as usize);
        request.sampled_logprobs = body.post_sampling_probs.unwrap_or(false);
        request.grammar.clone_from(&constraint);
        request.session = session(body.session.as_deref(), body.id_slot);
        requests.push(request);
    }
    let settings = requests.first().map_or(Value::Null, |request| settings(request, served));
    let shape = Shape {
        model: served.name(),
        prompts,
        context: served.engine().context(),
        settings,
        each,
        tokens: body.return_tokens.unwrap_or(false),
        progress: body.return_progress.unwrap_or(false),
        timings: body.timings_per_token.unwrap_or(false),
        sampled: body.post_sampling_probs.unwrap_or(false),
        fields: body.response_fields.unwrap_or_default(),
    };
    Ok((served.submit(requests, each)?, shape))
}

fn settings(request: &Request, served: &Served) -> Value {
    let mut settings = sampling_value(&request.sampling);
    let limit = request.max_tokens.map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX));
    settings["n_predict"] = limit.into();
    settings["max_tokens"] = limit.into();
    settings["stop"] = request.stop.clone().into();
    settings["ignore_eos"] = request.ignore_eos.into();
    if let (true, Some(tokenizer)) = (request.ignore_eos, served.model().tokenizer.as_deref()) {
        // llama-server bans the tokens that end an answer, and shows it; JSON has no infinity.
        let banned =
            tokenizer.end_of_generation().iter().map(|token| json!({ "token": token, "bias": null }));
        if let Some(biases) = settings["logit_bias"].as_array_mut() {
            biases.extend(banned);
        }
    }
    settings["n_probs"] = request.logprobs.unwrap_or(0).into();
    settings["post_sampling_probs"] = request.sampled_logprobs.into();
    let options = served.engine().options();
    settings["speculative.type"] = request.spec.unwrap_or(options.spec).to_string().into();
    let longest = request.spec_draft_max.unwrap_or(usize::MAX).min(options.spec_draft_max);
    settings["speculative.n_max"] = longest.into();
    settings["speculative.n_min"] = request.spec_draft_min.unwrap_or(options.spec_draft_min).into();
    settings["n_ctx"] = served.engine().context().into();
    settings
}

/// Sampling parameters with their names in the API.
fn sampling_value(params: &SamplingParams) -> Value {
    let bias = |&(token, bias): &(u32, f32)| json!({ "token": token, "bias": bias });
    let biases: Vec<Value> = params.logit_bias.iter().map(bias).collect();
    json!({
        "seed": params.seed.map_or(-1, |seed| i64::try_from(seed).unwrap_or(i64::MAX)),
        "temperature": params.temperature,
        "dynatemp_range": params.dynatemp_range,
        "dynatemp_exponent": params.dynatemp_exponent,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "typical_p": params.typical_p,
        "top_n_sigma": params.top_n_sigma,
        "xtc_probability": params.xtc_probability,
        "xtc_threshold": params.xtc_threshold,
        "repeat_penalty": params.repeat_penalty,
        "repeat_last_n": params.repeat_last_n,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "dry_multiplier": params.dry_multiplier,
        "dry_base": params.dry_base,
        "dry_allowed_length": params.dry_allowed_length,
        "dry_penalty_last_n": params.dry_penalty_last_n,
        "logit_bias": biases,
        "mirostat": params.mirostat.number(),
        "mirostat_tau": params.mirostat_tau,
        "mirostat_eta": params.mirostat_eta,
        "samplers": params.samplers.stages().iter().map(|stage| stage.name()).collect::<Vec<_>>(),
    })
}

async fn collect(served: &Served, mut events: Events, shape: &Shape, count: usize) -> ApiResult {
    let tokenizer = served.model().tokenizer.as_deref();
    let mut texts: Vec<Text> = (0..count).map(|_| Text::default()).collect();
    let mut answers = vec![Value::Null; count];
    while let Some((index, event)) = events.next().await {
        let text = &mut texts[index];
        match event {
            Event::Token { id, text: piece, logprob } => {
                text.text.push_str(&piece);
                text.tokens.push(id);
                text.probabilities.extend(logprob.map(|found| shape.probabilities(tokenizer, &found)));
            }
            Event::Done { reason, text: piece, usage } => {
                text.text.push_str(&piece);
                let mut totals = Totals::default();
                totals.add(&usage, false);
                let mut answer = last(shape, index, &reason, &totals);
                answer["id_slot"] = events.slot(index).into();
                answer["has_new_line"] = text.text.contains('\n').into();
                answer["content"] = std::mem::take(&mut text.text).into();
                answer["tokens"] = if shape.tokens { text.tokens.clone().into() } else { json!([]) };
                if !text.probabilities.is_empty() {
                    answer["completion_probabilities"] = std::mem::take(&mut text.probabilities).into();
                }
                answers[index] = shape.wanted(answer);
            }
            Event::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    let body = if answers.len() == 1 { answers.swap_remove(0) } else { answers.into() };
    Ok(Json(body).into_response())
}

/// The end of an answer.
fn last(shape: &Shape, index: usize, reason: &FinishReason, totals: &Totals) -> Value {
    let (kind, word) = match reason {
        FinishReason::Eos => ("eos", ""),
        FinishReason::Stop(word) => ("word", word.as_str()),
        _ => ("limit", ""),
    };
    totals.explained(json!({
        "index": index,
        "content": "",
        "tokens": [],
        "stop": true,
        "model": shape.model,
        "tokens_predicted": totals.completion,
        "tokens_evaluated": totals.prompt,
        "tokens_cached": totals.cached,
        "generation_settings": shape.settings,
        "prompt": shape.prompts[index / shape.each],
        "has_new_line": false,
        "truncated": *reason == FinishReason::Length && totals.prompt + totals.completion >= shape.context,
        "stop_type": kind,
        "stopping_word": word,
        "timings": totals.timings(),
    }))
}

async fn write(
    sender: Sender,
    served: Served,
    mut events: Events,
    shape: Shape,
    count: usize,
) -> Result<(), Gone> {
    let tokenizer = served.model().tokenizer.as_deref();
    let mut generated = vec![0usize; count];
    let mut clocks = vec![Clock::new(); count];
    let mut broken = vec![false; count];
    while let Some((index, event)) = sender.next(&mut events).await? {
        clocks[index].note(&event);
        match event {
            Event::Token { id, text, logprob } => {
                generated[index] += 1;
                broken[index] |= text.contains('\n');
                let mut chunk = json!({ "index": index, "content": text, "tokens": [id], "stop": false });
                chunk["id_slot"] = events.slot(index).into();
                chunk["tokens_predicted"] = generated[index].into();
                if shape.timings {
                    chunk["timings"] = clocks[index].timings();
                }
                if let Some(found) = logprob {
                    chunk["completion_probabilities"] = json!([shape.probabilities(tokenizer, &found)]);
                }
                sender.data(&chunk).await?;
            }
            Event::Done { reason, text, usage } => {
                let mut totals = Totals::default();
                totals.add(&usage, false);
                let mut chunk = last(&shape, index, &reason, &totals);
                chunk["id_slot"] = events.slot(index).into();
                chunk["has_new_line"] = (broken[index] || text.contains('\n')).into();
                chunk["content"] = text.into();
                sender.data(&shape.wanted(chunk)).await?;
            }
            Event::Error(error) => return sender.data(&ApiError::from(error).openai()).await,
            Event::Prefill { done, total, cached } if shape.progress => {
                let progress = json!({ "total": total, "cache": cached, "processed": done });
                let chunk = json!({
                    "index": index, "content": "", "tokens": [], "stop": false, "prompt_progress": progress,
                    "timings": clocks[index].timings(),
                });
                sender.data(&chunk).await?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The body of a request to `/tokenize`.
#[derive(Debug, Deserialize)]
pub(crate) struct TokenizeRequest {
    model: Option<String>,
    content: String,
    add_special: Option<bool>,
    parse_special: Option<bool>,
    with_pieces: Option<bool>,
}

/// Text to token ids.
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<TokenizeRequest>,
) -> ApiResult {
    let served = state.select(body.model.as_deref()).await?;
    let tokens = served.prepare(move |served| tokens(served, &body)).await?;
    Ok(Json(json!({ "tokens": tokens })).into_response())
}

fn tokens(served: &Served, body: &TokenizeRequest) -> ApiResult<Vec<Value>> {
    let tokenizer = served.tokenizer()?;
    let bos = tokenizer.special().bos.filter(|_| body.add_special.unwrap_or(false) && tokenizer.add_bos());
    let text = tokenizer.encode(&body.content, body.parse_special.unwrap_or(true))?;
    let ids = bos.into_iter().chain(text);
    if !body.with_pieces.unwrap_or(false) {
        return Ok(ids.map(Value::from).collect());
    }
    let piece = |id| match std::str::from_utf8(tokenizer.token_bytes(id)) {
        Ok(text) => Value::from(text),
        Err(_) => Value::from(tokenizer.token_bytes(id)),
    };
    Ok(ids.map(|id| json!({ "id": id, "piece": piece(id) })).collect())
}

/// The body of a request to `/detokenize`.
#[derive(Debug, Deserialize)]
pub(crate) struct DetokenizeRequest {
    model: Option<String>,
    #[serde(deserialize_with = "integer::many")]
    tokens: Vec<u32>,
}

/// Token ids to text.
pub(crate) async fn detokenize(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<DetokenizeRequest>,
) -> ApiResult {
    let served = state.select(body.model.as_deref()).await?;
    let vocab = served.model().spec.vocab;
    if let Some(id) = body.tokens.iter().find(|&&id| id as usize >= vocab) {
        return Err(ApiError::field("tokens", format!("token {id} is not in the vocabulary of {vocab}")));
    }
    Ok(Json(json!({ "content": served.tokenizer()?.decode(&body.tokens, false) })).into_response())
}

/// The query of requests that carry no body.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ModelQuery {
    model: Option<String>,
}

impl ModelQuery {
    /// The model it names.
    ///
    /// # Errors
    /// As [`AppState::select`]; the query makes no sense.
    pub(crate) async fn select(
        query: Result<Query<ModelQuery>, QueryRejection>,
        state: &AppState,
    ) -> ApiResult<Served> {
        let Query(query) = query.map_err(|error| ApiError::field("model", error.body_text()))?;
        state.select(query.model.as_deref()).await
    }
}

/// What the server is.
pub(crate) async fn props(
    State(state): State<AppState>,
    query: Result<Query<ModelQuery>, QueryRejection>,
) -> ApiResult {
    let served = ModelQuery::select(query, &state).await?;
    let (engine, model) = (served.engine(), served.model());
    let tokenizer = model.tokenizer.as_deref();
    let special = |id: Option<u32>| id.map_or_else(String::new, |id| logprobs::text_of(tokenizer, id));
    let ids = tokenizer.map(Tokenizer::special).unwrap_or_default();
    Ok(Json(json!({
        "default_generation_settings": {
            "n_ctx": engine.context(),
            "params": sampling_value(&state.config().sampling),
        },
        "total_slots": engine.options().max_running,
        "model_alias": served.name(),
        "model_path": served.name(),
        "modalities": { "vision": false, "audio": false },
        "chat_template": model.template.as_ref().map_or_else(String::new, ChatTemplate::source),
        "chat_template_caps": { "available": model.template.is_some() },
        "bos_token": special(ids.bos),
        "eos_token": special(ids.eos),
        "build_info": super::openai::chat::fingerprint(),
    }))
    .into_response())
}
