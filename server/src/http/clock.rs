//! Timings of an answer while it comes, by the clock of whoever passes it on: the engine's own come with its end.

use std::time::Instant;

use millpond::engine::{Event, Usage};
use serde_json::Value;

use super::usage::Totals;

/// How far an answer has come, and when.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    begun: Instant,
    first_token: Option<Instant>,
    usage: Usage,
}

impl Clock {
    /// The clock of an answer that nothing is known of.
    pub(crate) fn new() -> Clock {
        Clock { begun: Instant::now(), first_token: None, usage: Usage::default() }
    }

    /// Takes note of an event of the answer.
    pub(crate) fn note(&mut self, event: &Event) {
        self.note_at(event, Instant::now());
    }

    fn note_at(&mut self, event: &Event, now: Instant) {
        match event {
            // Nothing of the prompt has been read yet: what came before was waiting.
            Event::Prefill { done, cached, .. } if done == cached => {
                self.begun = now;
                (self.usage.prompt_tokens, self.usage.cached_tokens) = (*done, *cached);
            }
            Event::Prefill { done, cached, .. } => {
                (self.usage.prompt_tokens, self.usage.cached_tokens) = (*done, *cached);
                self.usage.prefill = now - self.begun;
            }
            Event::Token { .. } => {
                let first = *self.first_token.get_or_insert(now);
                self.usage.completion_tokens += 1;
                self.usage.decode = now - first;
            }
            _ => {}
        }
    }

    /// `timings` of llama.cpp's API as they stand.
    pub(crate) fn timings(&self) -> Value {
        let mut totals = Totals::default();
        totals.add(&self.usage, false);
        totals.timings()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_is_timed_while_it_comes() {
        let mut clock = Clock::new();
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let prefill = |done: usize| Event::Prefill { done, total: 30, cached: 10 };
        clock.note_at(&prefill(10), at(5));
        let timings = clock.timings();
        assert_eq!((&timings["prompt_n"], &timings["prompt_ms"]), (&0.into(), &0.0.into()));
        clock.note_at(&prefill(30), at(7));
        for second in [7, 8, 9] {
            clock.note_at(&Event::Token { id: 1, text: String::new(), logprob: None }, at(second));
        }
        let timings = clock.timings();
        assert_eq!((&timings["cache_n"], &timings["prompt_n"]), (&10.into(), &20.into()));
        assert_eq!(timings["prompt_per_second"], 10.0);
        assert_eq!((&timings["predicted_n"], &timings["predicted_ms"]), (&3.into(), &2000.0.into()));
    }
}
