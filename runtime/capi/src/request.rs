//! Requests: from a host's structure to the library's.

use std::ffi::c_char;
use std::ptr::null;

use millpond::engine::{self, Class, SpecMode};
use millpond::sample::grammar::GrammarSource;
use millpond::sample::{Mirostat, SamplingParams};

use crate::engine::spec_mode;
use crate::failure::{Failure, Status, initialise};
use crate::pointers;
use crate::types::{Bias, Request};

/// Writes the defaults: those of the library, and no prompt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_request_init(request: *mut Request) -> i32 {
    let defaults = || {
        let base = SamplingParams::default();
        Request {
            size: size_of::<Request>(),
            prompt: null(),
            prompt_count: 0,
            max_tokens: -1,
            seed: -1,
            stop: null(),
            stop_count: 0,
            json_schema: null(),
            grammar: null(),
            lark: null(),
            regex: null(),
            session: null(),
            temperature: base.temperature,
            top_k: base.top_k,
            top_p: base.top_p,
            min_p: base.min_p,
            repeat_penalty: base.repeat_penalty,
            presence_penalty: base.presence_penalty,
            frequency_penalty: base.frequency_penalty,
            repeat_last_n: base.repeat_last_n,
            logprobs: -1,
            echo: 0,
            ignore_eos: 0,
            cache_prompt: 1,
            background: 0,
            typical_p: base.typical_p,
            top_n_sigma: base.top_n_sigma,
            xtc_probability: base.xtc_probability,
            xtc_threshold: base.xtc_threshold,
            dry_multiplier: base.dry_multiplier,
            dry_base: base.dry_base,
            dry_allowed_length: base.dry_allowed_length,
            dry_penalty_last_n: base.dry_penalty_last_n,
            dynatemp_range: base.dynatemp_range,
            dynatemp_exponent: base.dynatemp_exponent,
            mirostat: base.mirostat.number().into(),
            mirostat_tau: base.mirostat_tau,
            mirostat_eta: base.mirostat_eta,
            speculation: -1,
            bias: null(),
            bias_count: 0,
            draft_max: -1,
        }
    };
    // SAFETY: the caller vouches for the memory.
    unsafe { initialise(request, defaults) }
}

/// The library's request.
pub(crate) unsafe fn engine_request(request: *const Request) -> Result<engine::Request, Failure> {
    // SAFETY: the caller vouches for the memory.
    let (request, prompt, stop, session, grammar, bias) = unsafe {
        let request = pointers::sized("request", request)?;
        let prompt = pointers::slice("prompt", request.prompt, request.prompt_count)?;
        let stop = pointers::slice("stop", request.stop, request.stop_count)?;
        let session = pointers::optional_string("session", request.session)?;
        let bias = pointers::slice("bias", request.bias, request.bias_count)?;
        (request, prompt, stop, session, grammar_source(&request)?, bias)
    };
    let text = |pointer: &*const c_char| {
        // SAFETY: the caller vouches for the memory.
        unsafe { pointers::string("stop", *pointer) }.map(str::to_owned)
    };
    Ok(engine::Request {
        max_tokens: number("max_tokens", request.max_tokens)?,
        sampling: sampling(&request, bias)?,
        stop: stop.iter().map(text).collect::<Result<_, _>>()?,
        ignore_eos: request.ignore_eos != 0,
        grammar,
        logprobs: number("logprobs", request.logprobs.into())?,
        echo: request.echo != 0,
        class: if request.background == 0 { Class::Interactive } else { Class::Background },
        cache_prompt: request.cache_prompt != 0,
        session: session.map(str::to_owned),
        spec: speculation(request.speculation)?,
        spec_draft_max: number("draft_max", request.draft_max)?,
        ..engine::Request::new(prompt.to_vec())
    })
}

/// A number where -1 means none.
fn number<T: TryFrom<i64>>(name: &str, value: i64) -> Result<Option<T>, Failure> {
    match value {
        -1 => Ok(None),
        value => T::try_from(value)
            .map(Some)
            .map_err(|_| Failure::new(Status::InvalidArgument, format!("{name} is {value}"))),
    }
}

/// Where drafts come from; -1 says nothing about it.
fn speculation(number: i32) -> Result<Option<SpecMode>, Failure> {
    if number == -1 { Ok(None) } else { spec_mode(number).map(Some) }
}

fn sampling(request: &Request, bias: &[Bias]) -> Result<SamplingParams, Failure> {
    let wrong = || Failure::new(Status::InvalidArgument, format!("mirostat is {}", request.mirostat));
    let mirostat = u8::try_from(request.mirostat).ok().and_then(Mirostat::by_number).ok_or_else(wrong)?;
    Ok(SamplingParams {
        seed: number("seed", request.seed)?,
        temperature: request.temperature,
        top_k: request.top_k,
        top_p: request.top_p,
        min_p: request.min_p,
        repeat_penalty: request.repeat_penalty,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        repeat_last_n: request.repeat_last_n,
        typical_p: request.typical_p,
        top_n_sigma: request.top_n_sigma,
        xtc_probability: request.xtc_probability,
        xtc_threshold: request.xtc_threshold,
        dry_multiplier: request.dry_multiplier,
        dry_base: request.dry_base,
        dry_allowed_length: request.dry_allowed_length,
        dry_penalty_last_n: request.dry_penalty_last_n,
        dynatemp_range: request.dynatemp_range,
        dynatemp_exponent: request.dynatemp_exponent,
        mirostat,
        mirostat_tau: request.mirostat_tau,
        mirostat_eta: request.mirostat_eta,
        logit_bias: bias.iter().map(|bias| (bias.id, bias.bias)).collect(),
        ..SamplingParams::default()
    })
}

unsafe fn grammar_source(request: &Request) -> Result<Option<GrammarSource>, Failure> {
    let invalid = |message: String| Failure::new(Status::InvalidArgument, message);
    // SAFETY: the caller vouches for the memory.
    let given = unsafe {
        [
            pointers::optional_string("json_schema", request.json_schema)?,
            pointers::optional_string("grammar", request.grammar)?,
            pointers::optional_string("lark", request.lark)?,
            pointers::optional_string("regex", request.regex)?,
        ]
    };
    match given {
        [None, None, None, None] => Ok(None),
        [Some(schema), None, None, None] => serde_json::from_str(schema)
            .map(|schema| Some(GrammarSource::JsonSchema(schema)))
            .map_err(|error| invalid(format!("json_schema is no JSON: {error}"))),
        [None, Some(gbnf), None, None] => Ok(Some(GrammarSource::Gbnf(gbnf.to_owned()))),
        [None, None, Some(lark), None] => Ok(Some(GrammarSource::Lark(lark.to_owned()))),
        [None, None, None, Some(regex)] => Ok(Some(GrammarSource::Regex(regex.to_owned()))),
        _ => Err(invalid("json_schema, grammar, lark and regex exclude each other".to_owned())),
    }
}
