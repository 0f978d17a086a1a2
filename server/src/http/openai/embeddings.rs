//! `/v1/embeddings`: the hidden states of a text as one vector of length 1.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use millpond::engine::{Event, Pooling, Request};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::base64;
use crate::http::body::JsonBody;
use crate::http::error::{ApiError, ApiResult};
use crate::http::events::Events;
use crate::http::integer;
use crate::http::prompt::PromptInput;
use crate::http::state::{AppState, Served};
use crate::http::usage::Totals;

/// The body of a request.
#[derive(Debug, Deserialize)]
pub(crate) struct EmbeddingRequest {
    model: Option<String>,
    #[serde(alias = "content")]
    input: PromptInput,
    encoding_format: Option<Encoding>,
    pooling: Option<PoolingName>,
    #[serde(default, deserialize_with = "integer::maybe")]
    dimensions: Option<usize>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    Base64,
}

/// How hidden states become one vector.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum PoolingName {
    Mean,
    Last,
}

/// Turns texts into vectors.
pub(crate) async fn create(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<EmbeddingRequest>,
) -> ApiResult {
    let encoding = body.encoding_format.unwrap_or(Encoding::Float);
    let served = state.select(body.model.as_deref()).await?;
    let (mut events, count) = served.prepare(move |served| begin(served, body)).await?;
    let mut vectors = vec![Vec::new(); count];
    let mut totals = Totals::default();
    while let Some((index, event)) = events.next().await {
        match event {
            Event::Embedding(vector) => vectors[index] = normalized(vector),
            Event::Done { usage, .. } => totals.add(&usage, false),
            Event::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    let data: Vec<Value> = vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| json!({ "object": "embedding", "index": index, "embedding": write(vector, encoding) }))
        .collect();
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "model": served.name(),
        "usage": { "prompt_tokens": totals.prompt, "total_tokens": totals.prompt },
    }))
    .into_response())
}

fn begin(served: &Served, body: EmbeddingRequest) -> ApiResult<(Events, usize)> {
    let hidden = served.model().spec.hidden;
    if body.dimensions.is_some_and(|dimensions| dimensions != hidden) {
        return Err(ApiError::field("dimensions", format!("the model's vectors have {hidden} dimensions")));
    }
    let pooling = match body.pooling.unwrap_or(PoolingName::Mean) {
        PoolingName::Mean => Pooling::Mean,
        PoolingName::Last => Pooling::Last,
    };
    let request = |prompt| Request { embeddings: Some(pooling), cache_prompt: false, ..Request::new(prompt) };
    let requests: Vec<Request> = body.input.tokens(served)?.into_iter().map(request).collect();
    let count = requests.len();
    Ok((served.submit(requests, 1)?, count))
}

fn normalized(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    vector
}

fn write(vector: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => vector.into(),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            base64::encode(&bytes).into()
        }
    }
}
