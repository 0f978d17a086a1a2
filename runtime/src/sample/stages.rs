//! The stages of the chain as pure functions.
//!
//! Two representations: dense logits indexed by token, on which penalties act, and a list of candidates that the
//! truncating stages shorten. A list is ordered by descending logit, ties by ascending id, so that every result is
//! determined; a prefix of it may be ordered already and the rest not.

/// A token that may still be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit as far as the chain has changed it.
    pub logit: f32,
    /// Its probability, valid after [`Candidates::normalise`] until the list changes.
    pub probability: f32,
}

fn descending(left: &Candidate, right: &Candidate) -> std::cmp::Ordering {
    right.logit.total_cmp(&left.logit).then(left.id.cmp(&right.id))
}

/// Candidates in a buffer that is kept between tokens.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    items: Vec<Candidate>,
    /// How many items from the start are in order and not below any later one.
    ordered: usize,
}

impl Candidates {
    /// Fills the list with all tokens whose logit is above negative infinity, in the order of ids.
    pub fn fill(&mut self, logits: &[f32]) {
        self.items.clear();
        self.ordered = 0;
        self.items.extend(candidates(logits));
    }

    /// Fills the list with the `count` largest, in order, without building the whole list.
    pub fn fill_top(&mut self, logits: &[f32], count: usize) {
        self.items.clear();
        // Twice as many as wanted are collected before the lower half is thrown away, so each costs O(1) amortised.
        let mut least = f32::NEG_INFINITY;
        for candidate in candidates(logits) {
            if candidate.logit < least {
                continue;
            }
            self.items.push(candidate);
            if self.items.len() >= 2 * count.max(16) {
                self.items.select_nth_unstable_by(count, descending);
                least = self.items[count].logit;
                self.items.truncate(count);
            }
        }
        self.items.sort_unstable_by(descending);
        self.items.truncate(count);
        self.ordered = self.items.len();
    }

    /// The candidates.
    #[must_use]
    pub fn items(&self) -> &[Candidate] {
        &self.items
    }

    /// Puts the first `count` in order.
    fn order(&mut self, count: usize) {
        let count = count.min(self.items.len());
        if count <= self.ordered {
            return;
        }
        let rest = &mut self.items[self.ordered..];
        let wanted = count - self.ordered;
        if wanted < rest.len() {
            rest.select_nth_unstable_by(wanted, descending);
        }
        rest[..wanted].sort_unstable_by(descending);
        self.ordered = count;
    }

    fn largest(&self) -> f32 {
        let items = if self.ordered > 0 { &self.items[..1] } else { &self.items };
        items.iter().fold(f32::NEG_INFINITY, |largest, item| largest.max(item.logit))
    }

    /// Sets probabilities to the softmax of the logits.
    pub fn normalise(&mut self) {
        let largest = self.largest();
        let mut sum = 0.0f64;
        for item in &mut self.items {
            item.probability = (item.logit - largest).exp();
            sum += f64::from(item.probability);
        }
        let scale = (1.0 / sum) as f32;
        self.items.iter_mut().for_each(|item| item.probability *= scale);
    }

    /// Changes the logit of one token, if it is still a candidate.
    pub fn change(&mut self, id: u32, change: impl Fn(f32) -> f32) {
        if let Some(place) = self.items.iter().position(|item| item.id == id) {
            self.items[place].logit = change(self.items[place].logit);
            self.ordered = self.ordered.min(place);
            // A token that has grown may have to stand before those in order.
            let logit = self.items[place].logit;
            let overtaken = self.items[..self.ordered].partition_point(|item| item.logit > logit);
            self.ordered = self.ordered.min(overtaken);
        }
    }

    /// Keeps the `count` most probable.
    pub fn top_k(&mut self, count: usize) {
        if count < self.items.len() {
            self.order(count);
            self.items.truncate(count);
            self.ordered = self.ordered.min(count);
        }
    }

    /// Sets the probabilities and puts the `count` most probable in order; all stay.
    pub fn top_k_ordered(&mut self, count: usize) {
        self.normalise();
        self.order(count);
    }

    /// Keeps tokens of a surprise, -log2 of the probability, of at most `bits`, and always the most probable one.
    pub fn surprise_at_most(&mut self, bits: f32) {
        self.normalise();
        self.order(1);
        let least = f64::from(-bits).exp2();
        let first = self.items.first().map(|item| item.id);
        self.keep(|item| f64::from(item.probability) >= least || Some(item.id) == first);
    }

    /// Keeps the shortest list of most probable tokens that together reach probability `share`, at least one.
    pub fn top_p(&mut self, share: f32) {
        if share >= 1.0 || self.items.is_empty() {
            return;
        }
        self.normalise();
        let mut sum = 0.0f64;
        let mut kept = 0;
        let mut step = 64;
        while kept < self.items.len() {
            self.order(kept + step);
            step *= 2;
            while kept < self.ordered {
                sum += f64::from(self.items[kept].probability);
                kept += 1;
                if sum >= f64::from(share) {
                    self.items.truncate(kept);
                    self.ordered = self.ordered.min(kept);
                    return;
                }
            }
        }
    }

    /// Keeps tokens with at least `share` of the largest probability.
    pub fn min_p(&mut self, share: f32) {
        if share > 0.0 {
            let least = self.largest() + share.ln();
            self.keep(|item| item.logit >= least);
        }
    }

    /// Keeps the tokens whose information -log p is closest to the entropy of the distribution, as few as reach
    /// probability `share` (Meister et al., "Locally typical sampling", 2023).
    pub fn typical_p(&mut self, share: f32) {
        if share >= 1.0 || self.items.is_empty() {
            return;
        }
        self.normalise();
        let information = |item: &Candidate| -f64::from(item.probability).ln();
        let occurring = self.items.iter().filter(|item| item.probability > 0.0);
        let entropy: f64 = occurring.map(|item| f64::from(item.probability) * information(item)).sum();
        let distance = |item: &Candidate| (information(item) - entropy).abs();
        self.items.sort_unstable_by(|left, right| {
            distance(left).total_cmp(&distance(right)).then_with(|| descending(left, right))
        });
        let mut sum = 0.0f64;
        let reached = self.items.iter().position(|item| {
            sum += f64::from(item.probability);
            sum > f64::from(share)
        });
        if let Some(last) = reached {
            self.items.truncate(last + 1);
        }
        self.ordered = 0;
    }

    /// Keeps logits at most `deviations` standard deviations below the largest (Tang et al., "Top-nσ", 2024).
    pub fn top_n_sigma(&mut self, deviations: f32) {
        if deviations > 0.0 {
            let least = sigma_threshold(self.items.iter().map(|item| item.logit), deviations);
            self.keep(|item| item.logit >= least);
        }
    }

    /// Removes all tokens of probability `threshold` and above but the least probable of them.
    pub fn xtc(&mut self, threshold: f32) {
        if threshold > 0.5 || self.items.len() < 2 {
            return;
        }
        self.normalise();
        let probable = self.items.iter().filter(|item| item.probability >= threshold).count();
        if probable >= 2 {
            self.order(probable);
            self.items.drain(..probable - 1);
            self.ordered = 1;
        }
    }

    /// Divides by the temperature; at 0 and below only the most probable stays.
    pub fn temperature(&mut self, temperature: f32) {
        if temperature <= 0.0 {
            self.top_k(1);
        } else {
            // Dividing by almost nothing must not leave the range of numbers.
            let largest = self.largest();
            let shift = if (largest / temperature).is_finite() { 0.0 } else { largest };
            self.items.iter_mut().for_each(|item| item.logit = (item.logit - shift) / temperature);
        }
    }

    /// The temperature between `lowest` and `highest` that the entropy of the list asks for: its share of the largest
    /// entropy that so many tokens can have, to the power of `exponent`, is the share of the way up (Kalomaze, "Dynamic
    /// temperature", 2023). `None` where fewer than two tokens leave nothing to change.
    #[must_use]
    pub fn temperature_by_entropy(&mut self, lowest: f32, highest: f32, exponent: f32) -> Option<f32> {
        if self.items.len() < 2 {
            return None;
        }
        self.normalise();
        let probabilities = self.items.iter().map(|item| f64::from(item.probability)).filter(|&p| p > 0.0);
        let entropy: f64 = probabilities.map(|p| -p * p.ln()).sum();
        let share = (entropy / (self.items.len() as f64).ln()).clamp(0.0, 1.0);
        let way = share.powf(exponent.into()) as f32;
        Some(lowest + (highest - lowest) * way)
    }

    /// Chooses by `uniform` in `[0, 1)`: the token in whose part of the unit interval it falls, the parts standing in
    /// the list's order. `None` if the list is empty.
    pub fn choose(&mut self, uniform: f64) -> Option<Candidate> {
        self.normalise();
        choose(self.items.iter().map(|item| f64::from(item.probability)), uniform)
            .map(|place| self.items[place])
    }

    /// Puts the whole list in order and sets the probabilities.
    pub fn finish(&mut self) {
        self.order(self.items.len());
        self.normalise();
    }

    fn keep(&mut self, fits: impl Fn(&Candidate) -> bool) {
        let still = self.items[..self.ordered].iter().filter(|item| fits(item)).count();
        self.items.retain(fits);
        self.ordered = still;
    }
}

/// Place of `uniform` among consecutive parts of the unit interval in proportion to `weights`; the last one that is not
/// zero takes what rounding leaves over. `None` if all are zero.
pub fn choose(weights: impl Iterator<Item = f64> + Clone, uniform: f64) -> Option<usize> {
    let total: f64 = weights.clone().sum();
    let target = uniform * total;
    let mut sum = 0.0;
    let mut last = None;
    for (place, weight) in weights.enumerate() {
        if weight > 0.0 {
            last = Some(place);
            sum += weight;
            if sum > target {
                break;
            }
        }
    }
    last
}

fn candidates(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    let all = logits.iter().zip(0u32..);
    all.filter(|&(&logit, _)| logit > f32::NEG_INFINITY).map(|(&logit, id)| Candidate {
        id,
        logit,
        probability: 0.0,
    })
}

/// The logit `deviations` population standard deviations below the largest, over the logits above negative infinity.
pub fn sigma_threshold(logits: impl Iterator<Item = f32> + Clone, deviations: f32) -> f32 {
    let finite = logits.filter(|&logit| logit > f32::NEG_INFINITY).map(f64::from);
    let count = finite.clone().count().max(1) as f64;
    let mean = finite.clone().sum::<f64>() / count;
    let variance = finite.clone().map(|logit| (logit - mean).powi(2)).sum::<f64>() / count;
    let largest = finite.fold(f64::NEG_INFINITY, f64::max);
    (largest - f64::from(deviations) * variance.sqrt()) as f32
}

/// The logit of a token that occurs `count` times in the window of the penalties.
#[must_use]
pub fn penalised(logit: f32, count: u32, repeat: f32, presence: f32, frequency: f32) -> f32 {
    let repeated = if logit <= 0.0 { logit * repeat } else { logit / repeat };
    repeated - (count as f32 * frequency + presence)
}

/// Counts the tokens of `window` into `counts`, ascending by id.
pub fn count_tokens(window: &[u32], sorted: &mut Vec<u32>, counts: &mut Vec<(u32, u32)>) {
    sorted.clear();
    sorted.extend_from_slice(window);
    sorted.sort_unstable();
    counts.clear();
    for &id in sorted.iter() {
        match counts.last_mut() {
            Some((last, count)) if *last == id => *count += 1,
            _ => counts.push((id, 1)),
        }
    }
}

/// For each token that followed an earlier occurrence of what `window` ends with: the length of the longest such
/// repetition. `lengths` is scratch; `repetitions` gets `(token, length)`, ascending by token, one entry each. Repetitions
/// do not reach across a breaker.
///
/// The common suffix of the window and each of its prefixes is the Z-function of the reversed window (Gusfield,
/// "Algorithms on Strings, Trees, and Sequences", 1997), so the cost is linear.
pub fn repetitions(
    window: &[u32],
    breakers: &[u32],
    lengths: &mut Vec<u32>,
    repetitions: &mut Vec<(u32, u32)>,
) {
    repetitions.clear();
    let size = window.len();
    let reach = window.iter().rev().position(|token| breakers.contains(token)).unwrap_or(size);
    let reversed = |place: usize| window[size - 1 - place];
    lengths.clear();
    lengths.resize(size, 0);
    let (mut left, mut right) = (0, 0);
    for place in 1..size {
        let mut length = if place < right { (lengths[place - left] as usize).min(right - place) } else { 0 };
        while place + length < size && reversed(length) == reversed(place + length) {
            length += 1;
        }
        if place + length > right {
            (left, right) = (place, place + length);
        }
        lengths[place] = length as u32;
        // The suffix occurs ending `place` tokens before the end, so the token after it stands one later.
        let length = length.min(reach);
        if length > 0 {
            repetitions.push((window[size - place], length as u32));
        }
    }
    repetitions.sort_unstable_by(|left, right| left.0.cmp(&right.0).then(right.1.cmp(&left.1)));
    repetitions.dedup_by_key(|repetition| repetition.0);
}

/// What DRY subtracts for a repetition of `length` tokens (p-e-w, "DRY: A modern repetition penalty", 2024).
#[must_use]
pub fn dry_penalty(length: u32, multiplier: f32, base: f32, allowed: u32) -> f32 {
    if length < allowed {
        return 0.0;
    }
    let penalty = f64::from(multiplier) * f64::from(base).powi((length - allowed).min(100_000) as i32);
    penalty.min(f64::from(f32::MAX)) as f32
}
