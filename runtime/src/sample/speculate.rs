//! Rules of speculative decoding: which drafted tokens stand, and how many to draft.
//!
//! A draft of n tokens is verified by one forward pass that gives n + 1 rows of logits: row i is the distribution after
//! the first i drafted tokens. A drafter that proposes one fixed token (prompt lookup, the largest logit of an MTP head)
//! needs no rule of its own: row i is sampled exactly as without speculation, and the draft stands as long as it agrees.
//! That accepts with the same probability as rejection sampling, and gives the very tokens of plain decoding.

use super::random::{Purpose, uniform};
use super::stages::{Candidate, choose};

/// What verification decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// How many drafted tokens stand, from the first on.
    pub accepted: usize,
    /// The token after them, not among the drafted ones unless by chance.
    pub next: u32,
}

/// Verifies a draft by sampling: `sample(i)` chooses the token after the first i drafted tokens and is called for
/// ascending i until it disagrees.
///
/// # Errors
/// Those of `sample`.
pub fn verify<E>(draft: &[u32], mut sample: impl FnMut(usize) -> Result<u32, E>) -> Result<Verdict, E> {
    for (accepted, &drafted) in draft.iter().enumerate() {
        let next = sample(accepted)?;
        if next != drafted {
            return Ok(Verdict { accepted, next });
        }
    }
    Ok(Verdict { accepted: draft.len(), next: sample(draft.len())? })
}

/// What becomes of one token that a drafter drew from its own distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It stands.
    Accept,
    /// It falls, and this token takes its place.
    Replace(u32),
}

/// Rejection sampling (Leviathan, Kalman, Matias, "Fast inference from transformers via speculative decoding", 2023):
/// a token drawn from `draft` is accepted with probability min(1, target/draft); otherwise a token of the positive part
/// of target - draft replaces it. The outcome is distributed as `target`. `position` is the token's place in the stream.
///
/// Both lists hold candidates with probabilities, each token at most once. `None` if `target` is empty.
#[must_use]
pub fn accept_drawn(
    target: &[Candidate],
    draft: &[Candidate],
    drafted: u32,
    seed: u64,
    position: u64,
) -> Option<Decision> {
    let of = |list: &[Candidate], id: u32| {
        list.iter().find(|item| item.id == id).map_or(0.0, |item| f64::from(item.probability))
    };
    let (wanted, proposed) = (of(target, drafted), of(draft, drafted));
    if wanted > 0.0 && uniform(seed, position, Purpose::Accept) * proposed < wanted {
        return Some(Decision::Accept);
    }
    let surplus = target.iter().map(|item| (f64::from(item.probability) - of(draft, item.id)).max(0.0));
    let draw = uniform(seed, position, Purpose::Residual);
    // Equal distributions leave no surplus; rejection then is a matter of rounding, and any draw of the target is right.
    let place =
        choose(surplus, draw).or_else(|| choose(target.iter().map(|item| f64::from(item.probability)), draw));
    place.map(|place| Decision::Replace(target[place].id))
}

/// Seconds that a decoding step takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCosts<'a> {
    /// Forward pass over 1, 2, 3, ... tokens of one stream; the first is plain decoding.
    pub forward: &'a [f64],
    /// Making one more drafted token.
    pub draft: f64,
}

/// Share by which speculation has to be faster than plain decoding to be used at all: less could not be told from noise.
pub const LEAST_GAIN: f64 = 0.01;

/// The number of drafted tokens with the best expected speed. `acceptance[i]` is the probability that drafted token i
/// stands given that those before it do. With n drafts a step gives `1 + a0 + a0 a1 + ...` tokens and costs
/// `forward[n] + n draft`. Zero if nothing is faster than plain decoding; never more than either list supports.
#[must_use]
pub fn best_draft_length(acceptance: &[f64], costs: StepCosts<'_>) -> usize {
    let Some(&plain) = costs.forward.first() else { return 0 };
    let mut best = (0, (1.0 + LEAST_GAIN) / plain);
    let (mut tokens, mut chance) = (1.0, 1.0);
    for (index, &accepted) in acceptance.iter().enumerate() {
        let Some(&forward) = costs.forward.get(index + 1) else { break };
        chance *= accepted.clamp(0.0, 1.0);
        tokens += chance;
        let speed = tokens / (forward + (index + 1) as f64 * costs.draft);
        if speed > best.1 {
            best = (index + 1, speed);
        }
    }
    best.0
}

/// Longest draft that a controller considers.
pub const MAX_DRAFT: usize = 16;
/// Weight of the newest observation.
const BLEND: f64 = 1.0 / 16.0;
/// Share of the time that may be lost on drafts that do not pay, among them those tried to notice when they begin to.
const LOSS_SHARE: f64 = 0.015;
/// Plain steps that may be lost from the start on.
const LOSS_STEPS: f64 = 2.0;
/// Speculative steps after which one plain step is taken, to keep its cost known.
const PLAIN_EVERY: u32 = 128;

/// Adapts the length of drafts of one stream to what was accepted and what steps cost.
#[derive(Debug, Clone)]
pub struct DraftController {
    longest: usize,
    /// Running estimate of conditional acceptance for each place.
    acceptance: [f64; MAX_DRAFT],
    /// Running estimate of seconds for steps of 1 + n tokens; zero where none was seen.
    forward: [f64; MAX_DRAFT + 1],
    draft: f64,
    /// Seconds spent in all, and seconds lost on drafts that were slower than plain decoding.
    spent: f64,
    lost: f64,
    since_plain: u32,
}

impl DraftController {
    /// A controller that drafts at most `longest` tokens ([`MAX_DRAFT`] at most) and begins with moderate hope.
    #[must_use]
    pub fn new(longest: usize) -> Self {
        Self {
            longest: longest.min(MAX_DRAFT),
            acceptance: [0.6; MAX_DRAFT],
            forward: [0.0; MAX_DRAFT + 1],
            draft: 0.0,
            spent: 0.0,
            lost: 0.0,
            since_plain: 0,
        }
    }

    /// Draft length for the next step.
    #[must_use]
    pub fn next_length(&self) -> usize {
        let plain = self.forward[0];
        if self.longest == 0 || plain == 0.0 || self.since_plain >= PLAIN_EVERY {
            return 0;
        }
        let budget = LOSS_STEPS * plain + LOSS_SHARE * self.spent - self.lost;
        let mut forward = [0.0; MAX_DRAFT + 1];
        self.fill_costs(&mut forward);
        let costs = StepCosts { forward: &forward[..=self.longest], draft: self.draft };
        let best = best_draft_length(&self.acceptance[..self.longest], costs);
        // Where nothing seems to pay, one token is tried when its loss can be afforded.
        let length = best.max(1);
        let risk = (forward[length] + length as f64 * self.draft - plain).max(0.0);
        if risk <= budget { length } else { 0 }
    }

    /// Costs of steps that were never seen are continued linearly from the two nearest shorter ones.
    fn fill_costs(&self, forward: &mut [f64; MAX_DRAFT + 1]) {
        for length in 0..=MAX_DRAFT {
            forward[length] = match length {
                _ if self.forward[length] > 0.0 => self.forward[length],
                0 => 0.0,
                1 => forward[0],
                _ => forward[length - 1] + (forward[length - 1] - forward[length - 2]).max(0.0),
            };
        }
    }

    /// Takes note of a step: `drafted` tokens were verified, `accepted` of them stood; the forward pass took
    /// `forward` seconds and drafting `drafting` seconds.
    pub fn record(&mut self, drafted: usize, accepted: usize, forward: f64, drafting: f64) {
        let drafted = drafted.min(MAX_DRAFT);
        for place in 0..drafted.min(accepted + 1) {
            blend(&mut self.acceptance[place], f64::from(place < accepted));
        }
        if self.forward[drafted] == 0.0 {
            self.forward[drafted] = forward;
        } else {
            blend(&mut self.forward[drafted], forward);
        }
        if drafted > 0 {
            let each = drafting / drafted as f64;
            if self.draft == 0.0 { self.draft = each } else { blend(&mut self.draft, each) }
        }
        self.since_plain = if drafted == 0 { 0 } else { self.since_plain + 1 };
        self.spent += forward + drafting;
        let plain = self.forward[0] * (accepted.min(drafted) + 1) as f64;
        // A step that gained pays back what others lost, but earns no credit to lose more later.
        self.lost = if drafted > 0 { (self.lost + forward + drafting - plain).max(0.0) } else { self.lost };
    }

    /// Estimated probability that the token at each place of a draft stands, given that those before do.
    #[must_use]
    pub fn acceptance(&self) -> &[f64] {
        &self.acceptance[..self.longest]
    }
}

fn blend(estimate: &mut f64, observed: f64) {
    *estimate += (observed - *estimate) * BLEND;
}
