//! One request on its way through the engine.

use std::time::{Duration, Instant};

use super::drafts::Drafter;
use super::emit::TextEmitter;
use super::generation::EventSink;
use super::request::{Event, FinishReason, Pooling, Request, RequestError, TokenLogprob, Usage};
use super::scheduler::Phase;
use crate::runner::Sequence;
#[cfg(feature = "grammar")]
use crate::sample::grammar::{Grammar, GrammarError};
use crate::sample::logprobs::token_logprobs;
use crate::sample::{SampleError, SampledToken, Sampler, StopMatcher, TokenMask};
use crate::state::cursor::PREFILL_CHUNK;
use crate::text::Tokenizer;

/// What a stream needs besides its request.
pub(super) struct Parts {
    pub(super) sampler: Sampler,
    pub(super) stops: StopMatcher,
    pub(super) drafter: Drafter,
    #[cfg(feature = "grammar")]
    pub(super) grammar: Option<Grammar>,
}

/// One request on its way through the engine.
pub(crate) struct Stream {
    pub(super) id: u64,
    /// What the answers to one request have in common.
    pub(super) group: u64,
    #[cfg(feature = "grammar")]
    grammar: Option<Grammar>,
    pub(super) request: Request,
    pub(super) sink: EventSink,
    /// Prompt, then what has been generated.
    pub(super) tokens: Vec<u32>,
    /// Most tokens to generate.
    pub(super) limit: usize,
    /// Its state; absent while it waits.
    pub(super) sequence: Option<Sequence>,
    /// Whether its tokens were read as a prompt in whole chunks, as they would be without a cache.
    pub(super) prefilled: bool,
    /// Positions in its prompt that are worth a snapshot, ascending.
    pub(super) cuts: Vec<usize>,
    /// Streams that entered before with a prompt that begins alike, and how many tokens that is.
    pub(super) relatives: Vec<(u64, usize)>,
    /// State of the cache when it was last searched for this prompt.
    pub(super) searched: Option<u64>,
    /// The file of the prefix cache that it waits for; and whether it has ever waited for one.
    pub(super) fetching: Option<u64>,
    pub(super) fetched: bool,
    /// Bytes reserved for it.
    pub(super) reserved: usize,
    /// Tokens that the reserved bytes are enough for.
    pub(super) room: usize,
    /// How often a later request has entered before it.
    pub(super) overtaken: u32,
    /// Rows of the next decode pass: the last token and drafts after it.
    pub(super) window: Vec<u32>,
    /// Sum of hidden states, or the last of them.
    pub(super) pooled: Vec<f64>,
    /// Probabilities of the prompt's tokens, where asked for.
    pub(super) prompt_logprobs: Vec<Option<TokenLogprob>>,
    pub(super) usage: Usage,
    pub(super) drafter: Drafter,
    sampler: Sampler,
    emitter: TextEmitter,
    arrived: Instant,
    entered: Option<Instant>,
    first_token: Option<Instant>,
    /// Since when its receiver has not kept up.
    congested: Option<Instant>,
}

impl Stream {
    pub(super) fn new(
        id: u64,
        group: u64,
        request: Request,
        limit: usize,
        sink: EventSink,
        parts: Parts,
    ) -> Stream {
        let Parts { sampler, stops, drafter, .. } = parts;
        let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        Stream {
            id,
            group,
            #[cfg(feature = "grammar")]
            grammar: parts.grammar,
            tokens: request.prompt.clone(),
            limit,
            sequence: None,
            prefilled: true,
            cuts: Vec::new(),
            relatives: Vec::new(),
            searched: None,
            fetching: None,
            fetched: false,
            reserved: 0,
            room: 0,
            overtaken: 0,
            window: Vec::new(),
            pooled: Vec::new(),
            prompt_logprobs: Vec::new(),
            usage,
            drafter,
            sampler,
            emitter: TextEmitter::new(stops),
            arrived: Instant::now(),
            entered: None,
            first_token: None,
            congested: None,
            request,
            sink,
        }
    }

    /// Tokens of the prompt.
    pub(super) fn prompt_len(&self) -> usize {
        self.usage.prompt_tokens
    }

    /// Tokens generated.
    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len()
    }

    /// Tokens whose state is there.
    pub(super) fn position(&self) -> usize {
        self.sequence.as_ref().map_or(0, Sequence::position)
    }

    /// What it does next, if nothing holds it up.
    pub(super) fn phase(&self) -> Phase {
        let position = self.position();
        if position < self.prompt_len() {
            let left = self.prompt_len() - position;
            // Logits of every row are large, so prompts that want them go chunk by chunk.
            let chunk = if self.request.echo { PREFILL_CHUNK - position % PREFILL_CHUNK } else { left };
            let cut = self.cuts.iter().find(|&&cut| cut > position).map_or(left, |cut| cut - position);
            let stop = chunk.min(cut);
            return Phase::Prefill { position, left, stop: stop.min(left), kin: self.id };
        }
        Phase::Decode
    }

    /// Whether its receiver has left it unread for longer than `timeout`.
    pub(super) fn stalled(&mut self, timeout: Duration) -> bool {
        if !self.sink.congested() {
            self.congested = None;
            return false;
        }
        self.congested.get_or_insert_with(Instant::now).elapsed() > timeout
    }

    /// Whether two prompts that are still being read go on alike for at least a chunk, or to their end: then one of them
    /// can find the state of the other.
    pub(super) fn is_kin(&self, other: &Stream) -> bool {
        let of = |a: &Stream, b: &Stream| {
            a.relatives.iter().find(|&&(id, _)| id == b.id).map(|&(_, common)| common)
        };
        let Some(common) = of(self, other).or_else(|| of(other, self)) else { return false };
        let reading = |stream: &Stream| stream.position() < stream.prompt_len();
        let same = common == self.prompt_len() && common == other.prompt_len();
        let further = common / PREFILL_CHUNK * PREFILL_CHUNK > self.position().max(other.position());
        reading(self) && reading(other) && (same || further)
    }

    /// Tokens that two prompts begin with alike.
    pub(super) fn common(&self, other: &Stream) -> usize {
        let (a, b) = (&self.tokens[..self.prompt_len()], &other.tokens[..other.prompt_len()]);
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    /// Leaves the queue.
    pub(super) fn enter(&mut self, sequence: Sequence) {
        self.sequence = Some(sequence);
        let now = Instant::now();
        self.usage.queued = now - self.arrived;
        self.entered = Some(now);
    }

    /// Reports progress of the prompt.
    pub(super) fn report_prefill(&self) {
        let (done, total, cached) = (self.position(), self.prompt_len(), self.usage.cached_tokens);
        self.sink.send(Event::Prefill { done, total, cached });
    }

    /// Chooses the next token from a row of logits; with its probability, where asked for.
    ///
    /// # Errors
    /// [`RequestError`] where there is nothing to choose from, or the grammar gives up.
    #[cfg(feature = "grammar")]
    pub(super) fn choose(&mut self, logits: &[f32]) -> Result<(u32, Option<TokenLogprob>), RequestError> {
        let failed = |error: GrammarError| RequestError::Grammar(error.to_string());
        let mask = self.grammar.as_mut().map(Grammar::mask).transpose().map_err(failed)?;
        let chosen = choose(&mut self.sampler, &self.request, &self.tokens, logits, mask)?;
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(chosen.0).map_err(failed)?;
        }
        Ok(chosen)
    }

    /// Chooses the next token from a row of logits; with its probability, where asked for.
    ///
    /// # Errors
    /// [`RequestError`] where there is nothing to choose from.
    #[cfg(not(feature = "grammar"))]
    pub(super) fn choose(&mut self, logits: &[f32]) -> Result<(u32, Option<TokenLogprob>), RequestError> {
        Ok(choose(&mut self.sampler, &self.request, &self.tokens, logits, None)?)
    }

    /// Cuts the draft to what the grammar allows.
    pub(super) fn cut_draft(&mut self) {
        #[cfg(feature = "grammar")]
        if let Some(grammar) = &mut self.grammar {
            // A grammar that gives up drafts nothing; the next token to be chosen will say so.
            let allowed = grammar.accepted_of(&self.drafter.draft).unwrap_or(0);
            self.drafter.draft.truncate(allowed);
        }
    }

    /// Whether the grammar leaves nothing to add.
    fn is_complete(&self) -> bool {
        #[cfg(feature = "grammar")]
        let complete = self.grammar.as_ref().is_some_and(Grammar::is_finished);
        #[cfg(not(feature = "grammar"))]
        let complete = false;
        complete
    }

    /// Takes a row of logits of the prompt: that after the token at `position`.
    pub(super) fn push_prompt_row(&mut self, position: usize, logits: &[f32]) {
        if self.prompt_logprobs.is_empty() {
            self.prompt_logprobs.push(None);
        }
        if let Some(&next) = self.tokens[..self.prompt_len()].get(position + 1) {
            let found = token_logprobs(logits, next, self.request.logprobs.unwrap_or(0));
            self.prompt_logprobs.push(Some(TokenLogprob { id: next, logprob: found.chosen, top: found.top }));
        }
    }

    /// Takes hidden states of the prompt, `[rows][width]`.
    pub(super) fn pool(&mut self, hidden: &[f32], width: usize) {
        self.pooled.resize(width, 0.0);
        for row in hidden.chunks_exact(width) {
            let last = self.request.embeddings == Some(Pooling::Last);
            for (sum, &value) in self.pooled.iter_mut().zip(row) {
                *sum = if last { f64::from(value) } else { *sum + f64::from(value) };
            }
        }
    }

    /// Sends what the prompt itself yields.
    pub(super) fn report_prompt(&mut self) {
        if self.request.echo {
            self.sink.send(Event::Prompt(std::mem::take(&mut self.prompt_logprobs)));
        }
        if let Some(pooling) = self.request.embeddings {
            let rows = if pooling == Pooling::Mean { self.prompt_len() as f64 } else { 1.0 };
            self.sink.send(Event::Embedding(self.pooled.iter().map(|sum| (sum / rows) as f32).collect()));
        }
    }

    /// Takes a generated token; returns why the generation ends with it, if it does.
    pub(super) fn push(
        &mut self,
        token: u32,
        logprob: Option<TokenLogprob>,
        tokenizer: Option<&Tokenizer>,
    ) -> Option<FinishReason> {
        self.first_token.get_or_insert_with(Instant::now);
        self.tokens.push(token);
        self.usage.completion_tokens += 1;
        let ends = tokenizer.is_some_and(|tokenizer| tokenizer.is_end_of_generation(token));
        if ends && (!self.request.ignore_eos || self.is_complete()) {
            self.sink.send(Event::Token { id: token, text: String::new(), logprob });
            return Some(FinishReason::Eos);
        }
        // Control tokens steer the model; they are no text.
        let bytes = match tokenizer {
            Some(tokenizer) if !tokenizer.is_special(token) => tokenizer.token_bytes(token),
            _ => &[],
        };
        let (text, stop) = self.emitter.push(bytes);
        self.sink.send(Event::Token { id: token, text, logprob });
        match stop {
            Some(stop) => Some(FinishReason::Stop(stop)),
            None => (self.generated() >= self.limit).then_some(FinishReason::Length),
        }
    }

    /// Sends the last event.
    pub(super) fn finish(&mut self, reason: FinishReason) {
        let text = if let FinishReason::Stop(_) = reason { String::new() } else { self.emitter.finish() };
        let now = Instant::now();
        match (self.entered, self.first_token) {
            (Some(entered), Some(first)) => {
                self.usage.prefill = first - entered;
                self.usage.decode = now - first;
            }
            (Some(entered), None) => self.usage.prefill = now - entered,
            (None, _) => self.usage.queued = now - self.arrived,
        }
        self.sink.send(Event::Done { reason, text, usage: self.usage.clone() });
    }

    /// Sends the last event of a request that failed.
    pub(super) fn fail(&self, error: RequestError) {
        self.sink.send(Event::Error(error));
    }
}

/// Chooses a token, with the probabilities that the request asks for.
fn choose(
    sampler: &mut Sampler,
    request: &Request,
    history: &[u32],
    logits: &[f32],
    mask: Option<&TokenMask>,
) -> Result<(u32, Option<TokenLogprob>), SampleError> {
    let SampledToken { id, logprob } = sampler.sample(logits, history, mask)?;
    let Some(count) = request.logprobs else { return Ok((id, None)) };
    if request.sampled_logprobs {
        let likeliest = sampler.distribution(logits, history, mask)?.iter().take(count);
        let top = likeliest.map(|candidate| (candidate.id, candidate.probability.ln())).collect();
        return Ok((id, Some(TokenLogprob { id, logprob, top })));
    }
    let found = token_logprobs(logits, id, count);
    Ok((id, Some(TokenLogprob { id, logprob: found.chosen, top: found.top })))
}
