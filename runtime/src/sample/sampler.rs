//! The sampling chain of one stream.

use super::mask::TokenMask;
use super::mirostat;
use super::params::{SamplingError, SamplingParams, Stage};
use super::random::{self, Purpose, uniform};
use super::stages::{self, Candidate, Candidates};
use thiserror::Error;

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The row of logits has another length than the vocabulary that the parameters were checked against.
    #[error("{found} logits for a vocabulary of {expected}")]
    Length {
        /// Length of the row.
        found: usize,
        /// Size of the vocabulary.
        expected: usize,
    },
    /// A logit is NaN or positive infinity: the model's weights or the computation are broken.
    #[error("the logit of token {id} is {value}")]
    NotFinite {
        /// The token.
        id: u32,
        /// Its logit.
        value: f32,
    },
    /// Mask and biases together forbid every token.
    #[error("no token is allowed")]
    Nothing,
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability in the distribution it was chosen from, after all stages.
    pub logprob: f32,
}

/// Parameters with their buffers; one for each stream. After the first tokens nothing is allocated any more, but for
/// histories that grow beyond any before when penalties look at all of them.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    vocabulary_size: usize,
    seed: u64,
    /// Logits as the dense stages have changed them.
    dense: Vec<f32>,
    candidates: Candidates,
    sorted: Vec<u32>,
    counts: Vec<(u32, u32)>,
    lengths: Vec<u32>,
    /// Mirostat's limit on the surprise of the next token, in bits.
    surprise: f32,
}

/// Where a stage finds the logits.
enum Form {
    Dense,
    List,
}

impl Sampler {
    /// A sampler for logits of `vocabulary_size` tokens.
    ///
    /// # Errors
    /// A parameter out of bounds.
    pub fn new(params: SamplingParams, vocabulary_size: usize) -> Result<Self, SamplingError> {
        params.validate(vocabulary_size)?;
        let seed = params.seed.unwrap_or_else(random::fresh_seed);
        Ok(Self {
            surprise: 2.0 * params.mirostat_tau,
            params,
            vocabulary_size,
            seed,
            dense: Vec::new(),
            candidates: Candidates::default(),
            sorted: Vec::new(),
            counts: Vec::new(),
            lengths: Vec::new(),
        })
    }

    /// The parameters.
    #[must_use]
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The seed in use, which a caller that asked for none may want to report.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses the token after `history`. The draw depends on the seed and on the length of the history alone, so the
    /// same stream gives the same tokens however it is batched, and whether or not its tokens were drafted first. With
    /// Mirostat it depends on the tokens chosen before as well, each of which has to be chosen once.
    ///
    /// # Errors
    /// Broken logits, or nothing to choose from.
    pub fn sample(
        &mut self,
        logits: &[f32],
        history: &[u32],
        mask: Option<&TokenMask>,
    ) -> Result<SampledToken, SampleError> {
        if self.is_plain_greedy() && mask.is_none() {
            return self.plain_greedy(logits);
        }
        self.run(logits, history, mask)?;
        let draw = uniform(self.seed, history.len() as u64, Purpose::Token);
        let chosen = self.candidates.choose(draw).ok_or(SampleError::Nothing)?;
        if self.params.mirostat.is_on() {
            let error = -chosen.probability.log2() - self.params.mirostat_tau;
            self.surprise -= self.params.mirostat_eta * error;
        }
        Ok(SampledToken { id: chosen.id, logprob: chosen.probability.ln() })
    }

    /// The distribution that [`Sampler::sample`] would choose from: tokens of descending probability.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn distribution(
        &mut self,
        logits: &[f32],
        history: &[u32],
        mask: Option<&TokenMask>,
    ) -> Result<&[Candidate], SampleError> {
        self.run(logits, history, mask)?;
        self.candidates.finish();
        let items = self.candidates.items();
        if items.is_empty() { Err(SampleError::Nothing) } else { Ok(items) }
    }

    /// Whether the largest logit of the row decides.
    fn is_plain_greedy(&self) -> bool {
        let params = &self.params;
        let changes_order = |stage: &Stage| match stage {
            Stage::Penalties => self.has_penalties(),
            Stage::Dry => self.has_dry(),
            Stage::TypicalP => params.typical_p < 1.0,
            Stage::Xtc => params.xtc_probability > 0.0,
            Stage::TopNSigma | Stage::TopK | Stage::TopP | Stage::MinP | Stage::Temperature => false,
        };
        params.is_greedy() && params.logit_bias.is_empty() && !params.stages().iter().any(changes_order)
    }

    fn plain_greedy(&self, logits: &[f32]) -> Result<SampledToken, SampleError> {
        check_row(logits, self.vocabulary_size)?;
        let best = first_largest(logits);
        match logits.get(best) {
            Some(&logit) if logit > f32::NEG_INFINITY => Ok(SampledToken { id: best as u32, logprob: 0.0 }),
            _ => Err(SampleError::Nothing),
        }
    }

    fn has_penalties(&self) -> bool {
        let SamplingParams { repeat_penalty, presence_penalty, frequency_penalty, repeat_last_n, .. } =
            self.params;
        repeat_last_n != 0 && (repeat_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0)
    }

    /// Whether the temperature follows the entropy.
    fn moves_temperature(&self) -> bool {
        self.params.dynatemp_range > 0.0 && !self.params.mirostat.is_on()
    }

    fn has_dry(&self) -> bool {
        self.params.dry_multiplier > 0.0 && self.params.dry_penalty_last_n != 0
    }

    /// Leaves the chain's result in `candidates`.
    fn run(&mut self, logits: &[f32], history: &[u32], mask: Option<&TokenMask>) -> Result<(), SampleError> {
        check_row(logits, self.vocabulary_size)?;
        self.dense.clear();
        match mask {
            Some(mask) => self.dense.extend(
                logits.iter().zip(0u32..).map(
                    |(&logit, id)| {
                        if mask.allows(id) { logit } else { f32::NEG_INFINITY }
                    },
                ),
            ),
            None => self.dense.extend_from_slice(logits),
        }
        for &(id, bias) in &self.params.logit_bias {
            self.dense[id as usize] += bias;
        }
        let mut form = Form::Dense;
        for index in 0..self.params.stages().len() {
            let stage = self.params.stages()[index];
            self.run_stage(stage, history, &mut form);
        }
        if matches!(form, Form::Dense) {
            self.candidates.fill(&self.dense);
        }
        let (form, size) = (self.params.mirostat, self.vocabulary_size);
        mirostat::truncate(form, &mut self.candidates, self.surprise, size);
        Ok(())
    }

    fn run_stage(&mut self, stage: Stage, history: &[u32], form: &mut Form) {
        let params = &self.params;
        let does_something = match stage {
            Stage::Penalties => self.has_penalties(),
            Stage::Dry => self.has_dry(),
            Stage::TopNSigma => params.top_n_sigma > 0.0,
            Stage::TopK => params.top_k > 0,
            Stage::TypicalP => params.typical_p < 1.0,
            Stage::TopP => params.top_p < 1.0,
            Stage::MinP => params.min_p > 0.0,
            Stage::Xtc => params.xtc_probability > 0.0,
            Stage::Temperature => params.temperature != 1.0 || self.moves_temperature(),
        };
        if !does_something {
            return;
        }
        match stage {
            Stage::Penalties => return self.penalise(history, form),
            Stage::Dry => return self.dry(history, form),
            Stage::TopNSigma if matches!(form, Form::Dense) => {
                let least = stages::sigma_threshold(self.dense.iter().copied(), params.top_n_sigma);
                let below = self.dense.iter_mut().filter(|logit| **logit < least);
                below.for_each(|logit| *logit = f32::NEG_INFINITY);
                return;
            }
            _ => {}
        }
        if matches!(form, Form::Dense) {
            *form = Form::List;
            let top = match stage {
                Stage::TopK => usize::try_from(params.top_k).unwrap_or(usize::MAX),
                Stage::Temperature if params.temperature <= 0.0 && !self.moves_temperature() => 1,
                _ => usize::MAX,
            };
            if top < self.dense.len() {
                self.candidates.fill_top(&self.dense, top);
            } else {
                self.candidates.fill(&self.dense);
            }
        }
        let moves_temperature = self.moves_temperature();
        let list = &mut self.candidates;
        match stage {
            Stage::TopNSigma => list.top_n_sigma(params.top_n_sigma),
            Stage::TopK => list.top_k(usize::try_from(params.top_k).unwrap_or(usize::MAX)),
            Stage::TypicalP => list.typical_p(params.typical_p),
            Stage::TopP => list.top_p(params.top_p),
            Stage::MinP => list.min_p(params.min_p),
            Stage::Temperature if moves_temperature => {
                let (middle, range) = (params.temperature, params.dynatemp_range);
                let lowest = (middle - range).max(0.0);
                if let Some(temperature) =
                    list.temperature_by_entropy(lowest, middle + range, params.dynatemp_exponent)
                {
                    list.temperature(temperature);
                }
            }
            Stage::Temperature => list.temperature(params.temperature),
            Stage::Xtc => {
                if uniform(self.seed, history.len() as u64, Purpose::Xtc) < f64::from(params.xtc_probability)
                {
                    list.xtc(params.xtc_threshold);
                }
            }
            Stage::Penalties | Stage::Dry => {}
        }
    }

    fn penalise(&mut self, history: &[u32], form: &Form) {
        let params = &self.params;
        stages::count_tokens(last(history, params.repeat_last_n), &mut self.sorted, &mut self.counts);
        for &(id, count) in &self.counts {
            let change = |logit| {
                let SamplingParams { repeat_penalty, presence_penalty, frequency_penalty, .. } = *params;
                stages::penalised(logit, count, repeat_penalty, presence_penalty, frequency_penalty)
            };
            change_logit(form, &mut self.dense, &mut self.candidates, id, change);
        }
    }

    fn dry(&mut self, history: &[u32], form: &Form) {
        let params = &self.params;
        let window = last(history, params.dry_penalty_last_n);
        stages::repetitions(window, &params.dry_breakers, &mut self.lengths, &mut self.counts);
        for &(id, length) in &self.counts {
            let SamplingParams { dry_multiplier, dry_base, dry_allowed_length, .. } = *params;
            let penalty = stages::dry_penalty(length, dry_multiplier, dry_base, dry_allowed_length);
            change_logit(form, &mut self.dense, &mut self.candidates, id, |logit| logit - penalty);
        }
    }
}

fn change_logit(form: &Form, dense: &mut [f32], list: &mut Candidates, id: u32, change: impl Fn(f32) -> f32) {
    match form {
        Form::Dense => {
            if let Some(logit) = dense.get_mut(id as usize) {
                *logit = change(*logit);
            }
        }
        Form::List => list.change(id, change),
    }
}

/// The last `count` tokens; all for -1.
fn last(history: &[u32], count: i32) -> &[u32] {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    &history[history.len().saturating_sub(count)..]
}

fn check_row(logits: &[f32], expected: usize) -> Result<(), SampleError> {
    if logits.len() != expected {
        return Err(SampleError::Length { found: logits.len(), expected });
    }
    // NaN compares false, so one comparison finds both. Every logit of a group is looked at, which takes vectors.
    let sound = |group: &[f32]| group.iter().fold(true, |sound, &logit| sound & (logit < f32::INFINITY));
    if logits.chunks(GROUP).all(sound) {
        return Ok(());
    }
    let broken = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY).unwrap_or(0);
    Err(SampleError::NotFinite { id: broken as u32, value: logits[broken] })
}

/// Logits looked at together.
const GROUP: usize = 512;

/// The index of the largest value, of the first among equals; 0 where none is above negative infinity. Values that are
/// not numbers are passed over.
pub(crate) fn first_largest(values: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (group, start) in values.chunks(GROUP).zip((0..).step_by(GROUP)) {
        let largest = largest(group);
        if largest > best.1 {
            best = (start + group.iter().position(|&value| value == largest).unwrap_or(0), largest);
        }
    }
    best.0
}

/// The largest value, lane by lane.
fn largest(group: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (whole, rest) = group.as_chunks::<16>();
    for values in whole {
        for (lane, &value) in lanes.iter_mut().zip(values) {
            *lane = larger(*lane, value);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}
