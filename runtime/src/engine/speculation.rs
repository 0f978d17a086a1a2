//! How many tokens to draft for whom: as many as the measured cost of passes and the acceptance so far make worth it.
//!
//! A pass over the weights costs less per row the more rows it has, so drafts pay while a stream is alone and cease to
//! as the batch grows. All streams of a step are planned together, since they share the pass.

use super::costs::CostModel;

/// Longest draft that is considered.
pub const MAX_DRAFT: usize = 16;
/// Weight of the newest observation of acceptance.
const BLEND: f64 = 1.0 / 16.0;
/// Acceptance assumed of a source nobody has used yet.
const HOPE: f64 = 0.6;
/// Share by which drafts have to be faster than plain decoding to be used: less could not be told from noise.
const LEAST_GAIN: f64 = 0.03;
/// Share of all time that may be lost on drafts that do not pay, among them those tried to notice when they begin to.
const LOSS_SHARE: f64 = 0.01;
/// Plain steps that may be lost from the start of the engine on.
const LOSS_STEPS: f64 = 8.0;
/// Speculative steps after which a plain one is taken, to keep its cost known.
const PLAIN_EVERY: u32 = 32;
/// Speculative steps in which one draft is longer than seems best and one shorter, to keep their costs known.
const EXPLORE_EVERY: u32 = 64;
/// The one that is shorter.
const EXPLORE_SHORTER: u32 = 32;
/// Rows that a step may draft beyond what was ever measured: what longer drafts cost is not known before.
const STRIDE: usize = 2;
/// Most rows of a decode pass.
const MAX_ROWS: usize = 64;

/// Who proposes a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Earlier text: costs nothing to speak of.
    Lookup,
    /// The prediction head: a pass for each token.
    Head,
    /// The draft model: a pass for each token.
    Model,
}

impl Source {
    pub(super) const ALL: [Source; 3] = [Source::Lookup, Source::Head, Source::Model];
}

/// Estimated probability that the token at each place of a draft stands, given that those before it do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Acceptance([f64; MAX_DRAFT]);

impl Default for Acceptance {
    fn default() -> Acceptance {
        Acceptance([HOPE; MAX_DRAFT])
    }
}

impl Acceptance {
    /// Takes note of a draft of which the first `accepted` of `drafted` tokens stood.
    pub(super) fn record(&mut self, drafted: usize, accepted: usize) {
        for place in 0..drafted.min(accepted + 1).min(MAX_DRAFT) {
            self.0[place] += (f64::from(u8::from(place < accepted)) - self.0[place]) * BLEND;
        }
    }

    /// Tokens that a draft of `length` is expected to gain.
    pub(super) fn gain(&self, length: usize) -> f64 {
        let chances = self.0[..length.min(MAX_DRAFT)].iter().scan(1.0, |chance, accepted| {
            *chance *= accepted;
            Some(*chance)
        });
        chances.sum()
    }
}

/// A stream that could draft.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// How likely its drafts stand.
    pub(super) acceptance: Acceptance,
    /// Most tokens it may draft.
    pub(super) longest: usize,
    /// Who proposes them.
    pub(super) source: Source,
}

/// Keeps account of what drafts gain and lose.
#[derive(Clone, Debug, Default)]
pub(super) struct Speculation {
    /// Seconds spent in decode steps, and seconds lost on drafts that were slower than none.
    spent: f64,
    lost: f64,
    since_plain: u32,
    /// Speculative steps so far.
    drafted_steps: u32,
}

impl Speculation {
    /// The longest draft of each candidate, whatever it costs: for measurements.
    pub(super) fn longest(candidates: &[Candidate]) -> Vec<usize> {
        candidates.iter().map(|candidate| candidate.longest.min(MAX_DRAFT)).collect()
    }

    /// Tokens a second that a candidate would reach alone, as far as costs are known; tokens a step otherwise.
    pub(super) fn promise(candidate: &Candidate, costs: &CostModel) -> f64 {
        let rate = |length: usize| {
            let seconds = costs.decode_pass(1, length).unwrap_or(1.0);
            let drafting = costs.draft_pass(candidate.source) * length as f64;
            (1.0 + candidate.acceptance.gain(length)) / (seconds + drafting)
        };
        (1..=candidate.longest).map(rate).fold(0.0, f64::max)
    }

    /// The draft length of each candidate of a step in which `others` more streams decode without.
    pub(super) fn lengths(&self, candidates: &[Candidate], others: usize, costs: &CostModel) -> Vec<usize> {
        let none = vec![0; candidates.len()];
        let streams = candidates.len() + others;
        let Some(plain) = costs.plain_pass(streams) else { return none };
        let allowance = LOSS_STEPS * plain + LOSS_SHARE * self.spent - self.lost;
        if self.since_plain >= PLAIN_EVERY || allowance < 0.0 {
            return none;
        }
        let mut path = path(candidates, streams);
        path.truncate(costs.longest_known(streams) + STRIDE);
        let seconds = |stage: &Stage| {
            let pass = costs.decode_pass(streams, stage.drafted).unwrap_or(plain).max(plain);
            pass + Source::ALL
                .map(|source| stage.passes[source as usize] as f64 * costs.draft_pass(source))
                .iter()
                .sum::<f64>()
        };
        let mut best = (streams as f64 / plain * (1.0 + LEAST_GAIN), 0);
        for (i, stage) in path.iter().enumerate() {
            let rate = stage.tokens / seconds(stage);
            if rate > best.0 {
                best = (rate, i + 1);
            }
        }
        // Where nothing seems to pay, the likeliest token is tried when its loss can be afforded. Otherwise what is known
        // of longer and shorter drafts is refreshed now and then.
        let taken = match self.drafted_steps % EXPLORE_EVERY {
            0 if best.1 > 0 => best.1 + 1,
            EXPLORE_SHORTER if best.1 > 0 => best.1 - 1,
            _ => best.1,
        };
        let taken = taken.max(1).min(path.len());
        let Some(stage) = taken.checked_sub(1).map(|last| &path[last]) else { return none };
        let risk = (seconds(stage) - plain).max(0.0);
        if best.1 == 0 && risk > allowance {
            return none;
        }
        let mut lengths = none;
        for stage in &path[..taken] {
            lengths[stage.candidate] += 1;
        }
        lengths
    }

    /// Takes note of a decode step: what it took by itself, the tokens it gave, and what a plain one would have cost.
    pub(super) fn record(
        &mut self,
        streams: usize,
        tokens: usize,
        drafted: usize,
        took: f64,
        plain: Option<f64>,
    ) {
        self.spent += took;
        if drafted == 0 {
            self.since_plain = 0;
            return;
        }
        self.since_plain += 1;
        self.drafted_steps = self.drafted_steps.wrapping_add(1);
        if let Some(plain) = plain {
            let worth = plain * tokens as f64 / streams.max(1) as f64;
            // A step that gained pays back what others lost, but earns no credit to lose more later.
            self.lost = (self.lost + took - worth).max(0.0);
        }
    }
}

/// One more drafted token, the likeliest to stand of all that could be added.
struct Stage {
    candidate: usize,
    /// Drafted rows of the pass with it.
    drafted: usize,
    /// Tokens the step is expected to give with it.
    tokens: f64,
    /// Passes of each source with it.
    passes: [usize; Source::ALL.len()],
}

fn path(candidates: &[Candidate], streams: usize) -> Vec<Stage> {
    let mut lengths = vec![0; candidates.len()];
    let mut chances = vec![1.0; candidates.len()];
    let (mut stages, mut tokens, mut passes) = (Vec::new(), streams as f64, [0; Source::ALL.len()]);
    while streams + stages.len() < MAX_ROWS {
        let open = (0..candidates.len()).filter(|&i| lengths[i] < candidates[i].longest.min(MAX_DRAFT));
        let chance = |i: usize| chances[i] * candidates[i].acceptance.0[lengths[i]];
        let Some(i) = open.max_by(|&a, &b| chance(a).total_cmp(&chance(b)).then(b.cmp(&a))) else { break };
        chances[i] = chance(i);
        lengths[i] += 1;
        tokens += chances[i];
        let own = &mut passes[candidates[i].source as usize];
        *own = lengths[i].max(*own);
        stages.push(Stage { candidate: i, drafted: stages.len() + 1, tokens, passes });
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    /// A machine on which a pass takes `fixed + rows * each` seconds, and a pass of the head `head`.
    #[derive(Clone, Copy, Debug)]
    struct Machine {
        fixed: f64,
        each: f64,
        head: f64,
        /// Width of the disturbance, as a share of what is measured.
        noise: f64,
    }

    /// Steps of `streams` streams whose drafted tokens stand with the given chance; tokens and seconds.
    fn simulate(machine: Machine, streams: usize, chance: f64, steps: usize) -> (f64, f64) {
        simulate_with(machine, streams, chance, steps, |_, _| 1.0)
    }

    /// The same where a pass takes a multiple that depends on its step and on the rows drafted.
    fn simulate_with(
        machine: Machine,
        streams: usize,
        chance: f64,
        steps: usize,
        disturbed: impl Fn(usize, usize) -> f64,
    ) -> (f64, f64) {
        let mut costs = CostModel::default();
        let mut speculation = Speculation::default();
        let mut acceptance = vec![Acceptance::default(); streams];
        let mut state = 1u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64
        };
        let (mut tokens, mut seconds) = (0, 0.0);
        for step in 0..steps {
            let candidates: Vec<Candidate> = acceptance
                .iter()
                .map(|&acceptance| Candidate { acceptance, longest: 4, source: Source::Head })
                .collect();
            let lengths = speculation.lengths(&candidates, 0, &costs);
            let (drafted, passes) =
                (lengths.iter().sum::<usize>(), lengths.iter().max().copied().unwrap_or(0));
            let mut noise = || 1.0 + machine.noise * (draw() - 0.5);
            let pass = (machine.fixed + machine.each * (streams + drafted) as f64)
                * noise()
                * disturbed(step, drafted);
            let drafting = machine.head * passes as f64 * noise();
            costs.record(streams, drafted, 0, 0, Duration::from_secs_f64(pass));
            if passes > 0 {
                costs.record_drafts(Source::Head, passes, Duration::from_secs_f64(drafting));
            }
            let mut given = 0;
            for (acceptance, &length) in acceptance.iter_mut().zip(&lengths) {
                let accepted = (0..length).take_while(|_| draw() < chance).count();
                acceptance.record(length, accepted);
                given += accepted + 1;
            }
            let own = costs.own_share(streams, drafted, pass) + drafting;
            speculation.record(streams, given, drafted, own, costs.plain_pass(streams));
            tokens += given;
            seconds += pass + drafting;
        }
        (tokens as f64, seconds)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Whatever the machine and the drafts are like, drafting costs no more than 3 % against not drafting.
        #[test]
        fn drafts_never_cost_more_than_three_percent(
            fixed in 1.0f64..20.0,
            each in 0.01f64..10.0,
            head in 0.1f64..10.0,
            streams in 1usize..9,
            chance in 0.0f64..1.0,
            noise in 0.0f64..0.3,
        ) {
            let machine = Machine { fixed: fixed / 1e3, each: each / 1e3, head: head / 1e3, noise };
            let steps = 2000;
            let (tokens, seconds) = simulate(machine, streams, chance, steps);
            let plain = machine.fixed + machine.each * streams as f64;
            let speed = tokens / seconds * plain / streams as f64;
            prop_assert!(speed >= 0.97, "{speed}");
        }
    }

    /// A few steps that are disturbed, and passes that are slow the first time, do not put an end to drafts that pay.
    #[test]
    fn disturbances_do_not_end_drafts_that_pay() {
        let machine = Machine { fixed: 0.010, each: 0.001, head: 0.0005, noise: 0.1 };
        let disturbed = |step: usize, drafted: usize| match (step, drafted) {
            (0..5, 1..) => 20.0,
            (step, _) if step % 50 == 49 => 15.0,
            _ => 1.0,
        };
        let (tokens, _) = simulate_with(machine, 1, 0.7, 600, disturbed);
        assert!(tokens > 600.0 * 1.4, "{tokens}");
    }

    #[test]
    fn good_drafts_are_used_and_long_where_they_are_cheap() {
        let machine = Machine { fixed: 0.010, each: 0.0005, head: 0.001, noise: 0.1 };
        let (tokens, seconds) = simulate(machine, 1, 0.8, 1000);
        assert!(tokens / seconds * 0.0105 > 2.0, "{}", tokens / seconds * 0.0105);
    }

    #[test]
    fn a_batch_that_computes_all_the_time_does_not_draft() {
        let machine = Machine { fixed: 0.001, each: 0.010, head: 0.002, noise: 0.1 };
        let (tokens, _) = simulate(machine, 8, 0.6, 1000);
        assert!(tokens < 8.0 * 1000.0 * 1.05, "{tokens}");
    }
}
