//! Parameters of a generation, with the names of llama.cpp's and OpenAI's APIs.

use millpond::engine::{Request, SpecMode, UnknownSpecMode};
use millpond::sample::{Mirostat, SamplerOrder, SamplingParams, StopMatcher};
use millpond::text::Tokenizer;
use serde::Deserialize;
use serde_json::Value;

use super::config::ServerConfig;
use super::error::{ApiError, ApiResult};
use super::integer;
use super::state::Served;

/// Largest temperature. Long before it, all tokens are as likely as each other.
const MAX_TEMPERATURE: f32 = 1e6;
/// Most biases of a request.
const MAX_BIASES: usize = 16_384;

/// One text or several.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

/// What a request may say about how tokens are chosen and when to stop.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct GenerationFields {
    pub(crate) temperature: Option<f64>,
    pub(crate) dynatemp_range: Option<f64>,
    pub(crate) dynatemp_exponent: Option<f64>,
    pub(crate) top_p: Option<f64>,
    #[serde(default, deserialize_with = "integer::maybe")]
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f64>,
    pub(crate) typical_p: Option<f64>,
    pub(crate) top_n_sigma: Option<f64>,
    pub(crate) xtc_probability: Option<f64>,
    pub(crate) xtc_threshold: Option<f64>,
    #[serde(alias = "repetition_penalty")]
    pub(crate) repeat_penalty: Option<f64>,
    #[serde(default, deserialize_with = "integer::maybe")]
    pub(crate) repeat_last_n: Option<i64>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) dry_multiplier: Option<f64>,
    pub(crate) dry_base: Option<f64>,
    #[serde(default, deserialize_with = "integer::maybe")]
    pub(crate) dry_allowed_length: Option<u32>,
    #[serde(default, deserialize_with = "integer::maybe")]
    pub(crate) dry_penalty_last_n: Option<i64>,
    #[serde(default, deserialize_with = "integer::maybe")]
    pub(crate) mirostat: Option<i64>,
    pub(crate) mirostat_tau: Option<f64>,
    pub(crate) mirostat_eta: Option<f64>,
    pub(crate) samplers: Option<OneOrMany>,
    #[serde(default, deserialize_with = "integer::maybe")]
    pub(crate) seed: Option<i64>,
    pub(crate) logit_bias: Option<Value>,
    pub(crate) stop: Option<OneOrMany>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) cache_prompt: Option<bool>,
    #[serde(alias = "speculative.type")]
    pub(crate) spec: Option<String>,
    #[serde(
        rename = "speculative.n_max",
        alias = "spec_draft_n_max",
        default,
        deserialize_with = "integer::maybe"
    )]
    pub(crate) draft_max: Option<i64>,
    #[serde(
        rename = "speculative.n_min",
        alias = "spec_draft_n_min",
        default,
        deserialize_with = "integer::maybe"
    )]
    pub(crate) draft_min: Option<i64>,
}

impl GenerationFields {
    /// A request for `prompt` with these parameters; the server's defaults for what they leave out.
    ///
    /// # Errors
    /// A value out of its range.
    pub(crate) fn request(
        &self,
        prompt: Vec<u32>,
        max_tokens: Option<usize>,
        config: &ServerConfig,
        tokenizer: Option<&Tokenizer>,
        vocab: usize,
    ) -> ApiResult<Request> {
        let stop = self.stop.clone().map_or_else(|| config.stop.clone(), OneOrMany::into_vec);
        StopMatcher::new(&stop).map_err(|error| ApiError::field("stop", error.to_string()))?;
        Ok(Request {
            max_tokens: max_tokens.or(config.max_tokens),
            sampling: self.sampling(&config.sampling, tokenizer, vocab)?,
            stop,
            ignore_eos: self.ignore_eos.unwrap_or(config.ignore_eos),
            cache_prompt: self.cache_prompt.unwrap_or(config.cache_prompt),
            spec: self.spec()?,
            spec_draft_max: draft_length("speculative.n_max", self.draft_max)?,
            spec_draft_min: draft_length("speculative.n_min", self.draft_min)?,
            ..Request::new(prompt)
        })
    }

    /// Refuses values out of their range, for routes that generate nothing.
    ///
    /// # Errors
    /// As for [`GenerationFields::request`].
    pub(crate) fn check(&self, served: &Served) -> ApiResult<()> {
        let model = served.model();
        self.request(Vec::new(), None, served.config(), model.tokenizer.as_deref(), model.spec.vocab)
            .map(drop)
    }

    fn spec(&self) -> ApiResult<Option<SpecMode>> {
        let wrong = |error: UnknownSpecMode| ApiError::field("spec", error.to_string());
        self.spec.as_deref().map(|name| name.parse().map_err(wrong)).transpose()
    }

    fn sampling(
        &self,
        base: &SamplingParams,
        tokenizer: Option<&Tokenizer>,
        vocab: usize,
    ) -> ApiResult<SamplingParams> {
        let float = |value: Option<f64>, base: f32| value.map_or(base, |value| value as f32);
        let int = |name: &str, value: Option<i64>, base: i32| match value {
            None => Ok(base),
            Some(value) => {
                i32::try_from(value).map_err(|_| ApiError::field(name, format!("{name} is {value}")))
            }
        };
        let params = SamplingParams {
            seed: seed(self.seed).or(base.seed),
            temperature: float(self.temperature, base.temperature),
            dynatemp_range: float(self.dynatemp_range, base.dynatemp_range),
            dynatemp_exponent: float(self.dynatemp_exponent, base.dynatemp_exponent),
            top_k: int("top_k", self.top_k, base.top_k)?,
            top_p: float(self.top_p, base.top_p),
            min_p: float(self.min_p, base.min_p),
            typical_p: float(self.typical_p, base.typical_p),
            top_n_sigma: float(self.top_n_sigma, base.top_n_sigma),
            xtc_probability: float(self.xtc_probability, base.xtc_probability),
            xtc_threshold: float(self.xtc_threshold, base.xtc_threshold),
            repeat_penalty: float(self.repeat_penalty, base.repeat_penalty),
            presence_penalty: float(self.presence_penalty, base.presence_penalty),
            frequency_penalty: float(self.frequency_penalty, base.frequency_penalty),
            repeat_last_n: int("repeat_last_n", self.repeat_last_n, base.repeat_last_n)?,
            dry_multiplier: float(self.dry_multiplier, base.dry_multiplier),
            dry_base: float(self.dry_base, base.dry_base),
            dry_allowed_length: self.dry_allowed_length.unwrap_or(base.dry_allowed_length),
            dry_penalty_last_n: int("dry_penalty_last_n", self.dry_penalty_last_n, base.dry_penalty_last_n)?,
            dry_breakers: base.dry_breakers.clone(),
            mirostat: self.mirostat.map_or(Ok(base.mirostat), mirostat)?,
            mirostat_tau: float(self.mirostat_tau, base.mirostat_tau),
            mirostat_eta: float(self.mirostat_eta, base.mirostat_eta),
            logit_bias: match &self.logit_bias {
                None | Some(Value::Null) => base.logit_bias.clone(),
                Some(value) => biases(value, tokenizer)?,
            },
            samplers: self.samplers(&base.samplers)?,
        };
        if params.temperature.abs() > MAX_TEMPERATURE {
            return Err(ApiError::field("temperature", format!("temperature exceeds {MAX_TEMPERATURE}")));
        }
        params.validate(vocab).map_err(|error| ApiError::invalid(error.to_string()))?;
        Ok(params)
    }

    fn samplers(&self, base: &SamplerOrder) -> ApiResult<SamplerOrder> {
        let Some(names) = &self.samplers else { return Ok(base.clone()) };
        let list = names.clone().into_vec().join(";");
        list.parse()
            .map_err(|error: millpond::sample::SamplingError| ApiError::field("samplers", error.to_string()))
    }
}

fn mirostat(number: i64) -> ApiResult<Mirostat> {
    let form = u8::try_from(number).ok().and_then(Mirostat::by_number);
    form.ok_or_else(|| ApiError::field("mirostat", format!("mirostat is {number}, expected 0, 1 or 2")))
}

/// A negative seed asks for a fresh one.
fn seed(seed: Option<i64>) -> Option<u64> {
    seed.and_then(|seed| u64::try_from(seed).ok())
}

/// `{"15043": 1.0}` or `[[15043, 1.0], ["Hello", false]]`; a text stands for each of its tokens.
fn biases(value: &Value, tokenizer: Option<&Tokenizer>) -> ApiResult<Vec<(u32, f32)>> {
    let wrong = || ApiError::field("logit_bias", "logit_bias must map token ids to numbers");
    let pairs: Vec<(Value, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(key, bias)| (Value::from(key.as_str()), bias)).collect(),
        Value::Array(items) => items
            .iter()
            .map(|item| match item.as_array().map(Vec::as_slice) {
                Some([token, bias]) => Ok((token.clone(), bias)),
                _ => Err(wrong()),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(wrong()),
    };
    if pairs.len() > MAX_BIASES {
        return Err(ApiError::field("logit_bias", format!("logit_bias has more than {MAX_BIASES} entries")));
    }
    let mut biases = Vec::new();
    for (token, bias) in pairs {
        let bias = match bias {
            Value::Bool(false) => f32::NEG_INFINITY,
            other => other.as_f64().ok_or_else(wrong)? as f32,
        };
        biases.extend(tokens_of(&token, tokenizer)?.into_iter().map(|id| (id, bias)));
    }
    Ok(biases)
}

fn tokens_of(token: &Value, tokenizer: Option<&Tokenizer>) -> ApiResult<Vec<u32>> {
    let wrong = || ApiError::field("logit_bias", format!("logit_bias: {token} is no token"));
    match token {
        Value::Number(id) => Ok(vec![id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)?]),
        Value::String(text) => match (text.parse::<u32>(), tokenizer) {
            (Ok(id), _) => Ok(vec![id]),
            (Err(_), Some(tokenizer)) if !text.is_empty() && text.parse::<i64>().is_err() => {
                Ok(tokenizer.encode(text, false)?)
            }
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

/// Checks a number of tokens; negative ones mean no limit only where the API says so.
///
/// # Errors
/// A negative number.
pub(crate) fn token_count(name: &str, value: Option<i64>) -> ApiResult<Option<usize>> {
    let wrong = |value| ApiError::field(name, format!("{name} is {value}, expected 0 or more"));
    value.map(|value| usize::try_from(value).map_err(|_| wrong(value))).transpose()
}

/// Checks the length of a draft.
fn draft_length(name: &str, value: Option<i64>) -> ApiResult<Option<usize>> {
    let wrong = |value| ApiError::field(name, format!("{name} is {value}, expected 0 to {}", u32::MAX));
    value.map(|value| u32::try_from(value).map(|value| value as usize).map_err(|_| wrong(value))).transpose()
}

/// Most answers to one prompt.
const MAX_ANSWERS: u32 = 64;

/// How many answers a prompt gets.
///
/// # Errors
/// None or too many.
pub(crate) fn answer_count(n: Option<u32>) -> ApiResult<usize> {
    match n.unwrap_or(1) {
        count @ 1..=MAX_ANSWERS => Ok(count as usize),
        count => Err(ApiError::field("n", format!("n is {count}, expected 1 to {MAX_ANSWERS}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sampling(fields: Value) -> ApiResult<SamplingParams> {
        let fields: GenerationFields = serde_json::from_value(fields).unwrap();
        fields.sampling(&SamplingParams::default(), None, 100)
    }

    #[test]
    fn what_is_left_out_is_the_servers_default() {
        assert_eq!(sampling(json!({})).unwrap(), SamplingParams::default());
        let params =
            sampling(json!({"temperature": 0, "top_k": -1, "seed": 3, "samplers": ["top_k"]})).unwrap();
        assert_eq!((params.temperature, params.top_k, params.seed), (0.0, -1, Some(3)));
        assert_eq!(sampling(json!({"seed": -1})).unwrap().seed, None);
        let params = sampling(json!({"mirostat": 2, "mirostat_tau": 3, "dynatemp_range": 0.5})).unwrap();
        assert_eq!((params.mirostat, params.mirostat_tau, params.dynatemp_range), (Mirostat::V2, 3.0, 0.5));
    }

    #[test]
    fn requests_choose_their_own_speculation() {
        let request = |fields: Value| {
            let fields: GenerationFields = serde_json::from_value(fields).unwrap();
            fields.request(vec![1], None, &ServerConfig::default(), None, 100)
        };
        let plain = request(json!({})).unwrap();
        assert_eq!((plain.spec, plain.spec_draft_max, plain.spec_draft_min), (None, None, None));
        for fields in [
            json!({"spec": "mtp", "speculative.n_max": 3, "speculative.n_min": 1}),
            json!({"speculative.type": "draft-mtp", "spec_draft_n_max": 3, "spec_draft_n_min": 1}),
        ] {
            let own = request(fields).unwrap();
            assert_eq!(own.spec, Some(SpecMode::Mtp));
            assert_eq!((own.spec_draft_max, own.spec_draft_min), (Some(3), Some(1)));
        }
        for wrong in [
            json!({"spec": "eagle"}),
            json!({"speculative.n_max": -1}),
            json!({"speculative.n_min": 1u64 << 32}),
        ] {
            assert!(request(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_server_says_where_answers_end_where_requests_do_not() {
        let config =
            ServerConfig { stop: vec!["###".to_owned()], ignore_eos: true, ..ServerConfig::default() };
        let request = |fields: Value| {
            let fields: GenerationFields = serde_json::from_value(fields).unwrap();
            fields.request(vec![1], None, &config, None, 100).unwrap()
        };
        let left_open = request(json!({}));
        assert_eq!((left_open.stop, left_open.ignore_eos), (vec!["###".to_owned()], true));
        let own = request(json!({"stop": [], "ignore_eos": false}));
        assert_eq!((own.stop.len(), own.ignore_eos), (0, false));
    }

    #[test]
    fn biases_come_as_object_or_list() {
        let expected = vec![(5, 1.5), (7, f32::NEG_INFINITY)];
        assert_eq!(sampling(json!({"logit_bias": {"5": 1.5, "7": false}})).unwrap().logit_bias, expected);
        assert_eq!(sampling(json!({"logit_bias": [[5, 1.5], [7, false]]})).unwrap().logit_bias, expected);
        assert_eq!(sampling(json!({"logit_bias": null})).unwrap().logit_bias, vec![]);
    }

    #[test]
    fn nonsense_is_refused() {
        for fields in [
            json!({"temperature": 1e308}),
            json!({"top_p": 2}),
            json!({"top_k": 1i64 << 40}),
            json!({"samplers": ["mirostat"]}),
            json!({"mirostat": 3}),
            json!({"mirostat_eta": -1}),
            json!({"dynatemp_range": -1}),
            json!({"logit_bias": {"100": 1}}),
            json!({"logit_bias": {"5": "x"}}),
            json!({"logit_bias": {"-5": 1}}),
            json!({"logit_bias": [[1]]}),
            json!({"logit_bias": [1, 2]}),
            json!({"logit_bias": "x"}),
            json!({"logit_bias": {"1": 1e308}}),
        ] {
            assert!(sampling(fields.clone()).is_err(), "{fields}");
        }
    }
}
