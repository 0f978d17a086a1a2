//! Mirostat and the temperature that follows the entropy, against their formulas, computed the long way in float64.

use millpond::sample::mirostat;
use millpond::sample::stages::Candidates;
use millpond::sample::{Mirostat, Sampler, SamplingParams};
use proptest::prelude::*;

fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![6 => -9.0f32..9.0, 1 => Just(f32::NEG_INFINITY)];
    prop::collection::vec(logit, 2..250)
        .prop_filter("two tokens", |row| row.iter().filter(|&&logit| logit > f32::NEG_INFINITY).count() > 1)
}

/// `(id, probability)`, most probable first.
fn distribution(row: &[f32], temperature: f64) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f64)> = (0u32..)
        .zip(row)
        .filter(|&(_, &logit)| logit > f32::NEG_INFINITY)
        .map(|(id, &logit)| (id, (f64::from(logit) / temperature).exp()))
        .collect();
    let sum: f64 = all.iter().map(|item| item.1).sum();
    all.iter_mut().for_each(|item| item.1 /= sum);
    all.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
    all
}

fn filled(row: &[f32]) -> Candidates {
    let mut list = Candidates::default();
    list.fill(row);
    list
}

fn ids(list: &Candidates) -> Vec<u32> {
    let mut ids: Vec<u32> = list.items().iter().map(|item| item.id).collect();
    ids.sort_unstable();
    ids
}

/// Whether a comparison in float32 may fall either way.
fn near(left: f64, right: f64) -> bool {
    (left - right).abs() < 1e-4 * (1.0 + left.abs() + right.abs())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_second_form_cuts_where_the_surprise_exceeds_the_limit(row in logits(), bits in -1.0f32..12.0) {
        let all = distribution(&row, 1.0);
        prop_assume!(all.iter().all(|item| !near(-item.1.log2(), bits.into())));
        let mut kept: Vec<u32> =
            all.iter().filter(|item| -item.1.log2() <= f64::from(bits)).map(|item| item.0).collect();
        if kept.is_empty() {
            kept.push(all[0].0);
        }
        kept.sort_unstable();
        let mut list = filled(&row);
        mirostat::truncate(Mirostat::V2, &mut list, bits, row.len());
        prop_assert_eq!(ids(&list), kept);
    }

    #[test]
    fn the_first_form_keeps_what_the_estimate_of_the_slope_asks_for(row in logits(), bits in 0.5f32..8.0) {
        let all = distribution(&row, 1.0);
        let (mut above, mut below) = (0.0, 0.0);
        for place in 0..99.min(all.len() - 1) {
            let step = ((place + 2) as f64 / (place + 1) as f64).ln();
            above += step * (all[place].1 / all[place + 1].1).ln();
            below += step * step;
        }
        let slope = above / below;
        let excess = slope - 1.0;
        let count = (excess * f64::from(bits).exp2() / (1.0 - (row.len() as f64).powf(-excess))).powf(1.0 / slope);
        prop_assume!(excess.abs() > 1e-3 && !near(count, count.round()));
        let kept = (count as usize).clamp(1, all.len());
        let mut list = filled(&row);
        mirostat::truncate(Mirostat::V1, &mut list, bits, row.len());
        let mut expected: Vec<u32> = all[..kept].iter().map(|item| item.0).collect();
        expected.sort_unstable();
        prop_assert_eq!(ids(&list), expected);
    }

    /// Token by token: the limit starts at twice the target, and each choice moves it by its error.
    #[test]
    fn the_limit_follows_the_errors(row in logits(), tau in 0.5f32..6.0, eta in 0.0f32..1.0, seed in any::<u64>()) {
        let params = SamplingParams {
            temperature: 0.9,
            mirostat: Mirostat::V2,
            mirostat_tau: tau,
            mirostat_eta: eta,
            seed: Some(seed),
            // Would leave one token, if it ran.
            top_k: 1,
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(params, row.len()).expect("valid");
        let all = distribution(&row, 0.9);
        let (mut limit, mut history) = (2.0 * f64::from(tau), Vec::new());
        for _ in 0..20 {
            if all.iter().any(|item| near(-item.1.log2(), limit)) {
                break;
            }
            let mut kept: Vec<(u32, f64)> = all.iter().copied().filter(|item| -item.1.log2() <= limit).collect();
            if kept.is_empty() {
                kept.push(all[0]);
            }
            let sum: f64 = kept.iter().map(|item| item.1).sum();
            let chosen = sampler.sample(&row, &history, None).expect("a token");
            let found = kept.iter().find(|item| item.0 == chosen.id);
            let probability = found.map(|item| item.1 / sum);
            prop_assert!(probability.is_some(), "{} is not among {:?} under {}", chosen.id, kept, limit);
            let probability = probability.unwrap_or_default();
            prop_assert!((f64::from(chosen.logprob) - probability.ln()).abs() < 1e-3);
            limit -= f64::from(eta) * (-probability.log2() - f64::from(tau));
            history.push(chosen.id);
        }
    }

    #[test]
    fn the_temperature_follows_the_entropy(
        row in logits(), middle in 0.0f32..2.0, range in 0.01f32..1.5, exponent in 0.3f32..3.0,
    ) {
        let all = distribution(&row, 1.0);
        let entropy: f64 = all.iter().map(|item| -item.1 * item.1.ln()).sum();
        let share = entropy / (all.len() as f64).ln();
        let lowest = f64::from(middle - range).max(0.0);
        let temperature = lowest + (f64::from(middle) + f64::from(range) - lowest) * share.powf(exponent.into());
        prop_assume!(temperature > 0.02);
        let params = SamplingParams {
            temperature: middle,
            dynatemp_range: range,
            dynatemp_exponent: exponent,
            samplers: "temperature".parse().expect("a stage"),
            ..SamplingParams::default()
        };
        prop_assert!(!params.is_greedy());
        let mut sampler = Sampler::new(params, row.len()).expect("valid");
        let found = sampler.distribution(&row, &[], None).expect("tokens");
        let expected = distribution(&row, temperature);
        for item in found {
            let (_, probability) = expected.iter().find(|other| other.0 == item.id).expect("a token");
            prop_assert!((f64::from(item.probability) - probability).abs() < 2e-3, "{:?} {}", item, probability);
        }
    }
}

#[test]
fn without_heat_mirostat_takes_the_likeliest() {
    let row = [0.0, 3.0, 1.0];
    for form in [Mirostat::V1, Mirostat::V2] {
        let params = SamplingParams { mirostat: form, temperature: 0.0, ..SamplingParams::default() };
        assert!(params.is_greedy());
        let mut sampler = Sampler::new(params, row.len()).unwrap();
        assert_eq!(sampler.sample(&row, &[], None).unwrap().id, 1);
    }
}

#[test]
fn one_token_has_no_entropy_to_follow() {
    let params = SamplingParams { temperature: 0.5, dynatemp_range: 1.0, ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, 2).unwrap();
    let chosen = sampler.sample(&[1.0, f32::NEG_INFINITY], &[], None).unwrap();
    assert_eq!((chosen.id, chosen.logprob), (0, 0.0));
}

#[test]
fn forms_have_numbers() {
    assert_eq!(
        [0, 1, 2, 3].map(Mirostat::by_number),
        [Some(Mirostat::Off), Some(Mirostat::V1), Some(Mirostat::V2), None]
    );
    assert_eq!(Mirostat::V2.number(), 2);
}
