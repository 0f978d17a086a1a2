//! What an answer cost, in the words of the APIs.

use std::time::Duration;

use millpond::engine::Usage;
use serde_json::{Value, json};

/// Sums over the answers of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    /// Tokens of all prompts.
    pub(crate) prompt: usize,
    /// Tokens generated.
    pub(crate) completion: usize,
    /// Tokens of the prompts that were not computed again.
    pub(crate) cached: usize,
    /// Why the rest was.
    miss: Option<String>,
    drafted: usize,
    accepted: usize,
    prefill: Duration,
    decode: Duration,
}

impl Totals {
    /// Adds one answer. Answers to the same prompt count it once, as OpenAI's API does.
    pub(crate) fn add(&mut self, usage: &Usage, same_prompt: bool) {
        if !same_prompt {
            self.prompt += usage.prompt_tokens;
            self.cached += usage.cached_tokens;
            self.prefill += usage.prefill;
        }
        self.completion += usage.completion_tokens;
        self.drafted += usage.drafted;
        self.accepted += usage.accepted;
        self.decode = self.decode.max(usage.decode);
        if self.miss.is_none() {
            self.miss.clone_from(&usage.miss_reason);
        }
    }

    /// `usage` of OpenAI's API.
    #[must_use]
    pub(crate) fn openai(&self) -> Value {
        let details = self.explained(json!({ "cached_tokens": self.cached }));
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": details,
        })
    }

    /// A count of tokens reused, with the reason why they are no more, if there is one.
    pub(crate) fn explained(&self, mut value: Value) -> Value {
        if let Some(reason) = &self.miss {
            value["cache_miss_reason"] = reason.as_str().into();
        }
        value
    }

    /// `usage` of Anthropic's API.
    #[must_use]
    pub(crate) fn anthropic(&self) -> Value {
        self.explained(json!({
            "input_tokens": self.prompt - self.cached,
            "cache_read_input_tokens": self.cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": self.completion,
        }))
    }

    /// `usage` of OpenAI's Responses API.
    #[must_use]
    pub(crate) fn responses(&self) -> Value {
        json!({
            "input_tokens": self.prompt,
            "input_tokens_details": self.explained(json!({ "cached_tokens": self.cached })),
            "output_tokens": self.completion,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": self.prompt + self.completion,
        })
    }

    /// `timings` of llama.cpp's API.
    #[must_use]
    pub(crate) fn timings(&self) -> Value {
        let read = self.prompt - self.cached;
        let (prompt_ms, per_prompt, prompt_rate) = rates(read, self.prefill);
        // The first token costs no decode pass: it comes with the prompt's last one.
        let (decode_ms, per_token, decode_rate) = rates(self.completion.saturating_sub(1), self.decode);
        let mut timings = json!({
            "cache_n": self.cached,
            "prompt_n": read,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": per_prompt,
            "prompt_per_second": prompt_rate,
            "predicted_n": self.completion,
            "predicted_ms": decode_ms,
            "predicted_per_token_ms": per_token,
            "predicted_per_second": decode_rate,
        });
        if self.drafted > 0 {
            timings["draft_n"] = self.drafted.into();
            timings["draft_n_accepted"] = self.accepted.into();
        }
        timings
    }

    /// Durations in nanoseconds and counts, as Ollama's API writes them, and what that has no word for: tokens reused.
    #[must_use]
    pub(crate) fn ollama(&self) -> Value {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.explained(json!({
            "total_duration": nanoseconds(self.prefill + self.decode),
            "load_duration": 0,
            "prompt_eval_count": self.prompt,
            "cached_tokens": self.cached,
            "prompt_eval_duration": nanoseconds(self.prefill),
            "eval_count": self.completion,
            "eval_duration": nanoseconds(self.decode),
        }))
    }
}

/// Milliseconds, milliseconds each, number a second; zeros where nothing was done.
fn rates(count: usize, time: Duration) -> (f64, f64, f64) {
    let milliseconds = time.as_secs_f64() * 1e3;
    if count == 0 || milliseconds <= 0.0 {
        return (milliseconds, 0.0, 0.0);
    }
    (milliseconds, milliseconds / count as f64, count as f64 * 1e3 / milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_with_several_answers_counts_once() {
        let mut usage = Usage::default();
        (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) = (10, 3, 4);
        usage.miss_reason = Some("nothing begins like this".to_owned());
        let mut totals = Totals::default();
        totals.add(&usage, false);
        totals.add(&usage, true);
        let openai = totals.openai();
        assert_eq!((&openai["prompt_tokens"], &openai["completion_tokens"]), (&10.into(), &6.into()));
        assert_eq!(openai["total_tokens"], 16);
        assert_eq!(openai["prompt_tokens_details"]["cached_tokens"], 4);
        assert_eq!(totals.anthropic()["input_tokens"], 6);
        for told in [
            &openai["prompt_tokens_details"],
            &totals.anthropic(),
            &totals.responses()["input_tokens_details"],
            &totals.ollama(),
        ] {
            assert_eq!(told["cache_miss_reason"], "nothing begins like this");
        }
        assert_eq!(totals.timings()["prompt_per_second"], 0.0);
        assert!(
            totals.timings().as_object().unwrap().values().all(Value::is_number),
            "dashboards add them up"
        );
    }
}
