//! Every stage of the sampling chain against its definition, computed the long way in float64.

use millpond::sample::stages::{self, Candidates};
use millpond::sample::{Candidate, SampleError, Sampler, SamplerOrder, SamplingParams, TokenMask};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        6 => -12.0f32..12.0,
        2 => (-4i32..4).prop_map(|step| step as f32), // ties
        1 => Just(f32::NEG_INFINITY),
        1 => Just(0.0f32),
    ];
    prop::collection::vec(logit, 1..300)
        .prop_filter("one token", |row| row.iter().any(|&l| l > f32::NEG_INFINITY))
}

/// `(id, logit)` of descending logit, ties by id.
fn sorted(row: &[f32]) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f64)> = (0u32..).zip(row.iter().map(|&logit| f64::from(logit))).collect();
    all.retain(|item| item.1 > f64::NEG_INFINITY);
    all.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
    all
}

fn softmax(list: &[(u32, f64)]) -> Vec<f64> {
    let largest = list.iter().fold(f64::NEG_INFINITY, |largest, item| largest.max(item.1));
    let weights: Vec<f64> = list.iter().map(|item| (item.1 - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
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

fn ascending(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids
}

/// Whether a comparison in float32 may fall either way.
fn near(left: f64, right: f64) -> bool {
    (left - right).abs() < 1e-5 * (1.0 + left.abs() + right.abs())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn top_k_keeps_the_k_largest(row in logits(), count in 1usize..320) {
        let expected: Vec<u32> = sorted(&row).iter().take(count).map(|item| item.0).collect();
        let mut list = filled(&row);
        list.top_k(count);
        prop_assert_eq!(ids(&list), ascending(expected.clone()));
        let mut list = Candidates::default();
        list.fill_top(&row, count);
        prop_assert_eq!(list.items().iter().map(|item| item.id).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn top_p_keeps_the_shortest_list_that_reaches_the_share(row in logits(), share in 0.0f32..1.0) {
        let all = sorted(&row);
        let probabilities = softmax(&all);
        let mut sum = 0.0;
        let mut kept = 0;
        let mut doubtful = false;
        for probability in &probabilities {
            sum += probability;
            kept += 1;
            doubtful |= near(sum, share.into());
            if sum >= f64::from(share) {
                break;
            }
        }
        prop_assume!(!doubtful);
        let mut list = filled(&row);
        list.top_p(share);
        prop_assert_eq!(ids(&list), ascending(all[..kept].iter().map(|item| item.0).collect()));
    }

    #[test]
    fn min_p_keeps_shares_of_the_largest(row in logits(), share in 0.001f32..1.0) {
        let all = sorted(&row);
        let probabilities = softmax(&all);
        let least = f64::from(share) * probabilities[0];
        prop_assume!(!probabilities.iter().any(|&probability| near(probability / least, 1.0)));
        let expected = all.iter().zip(&probabilities).filter(|item| *item.1 >= least).map(|item| item.0.0).collect();
        let mut list = filled(&row);
        list.min_p(share);
        prop_assert_eq!(ids(&list), ascending(expected));
    }

    #[test]
    fn typical_p_keeps_what_is_closest_to_the_entropy(row in logits(), share in 0.01f32..0.99) {
        let all = sorted(&row);
        let probabilities = softmax(&all);
        prop_assume!(probabilities.iter().all(|&probability| probability > 1e-30));
        let entropy: f64 = probabilities.iter().map(|p| -p * p.ln()).sum();
        let mut by_distance: Vec<(f64, usize)> = probabilities.iter().map(|p| (-p.ln() - entropy).abs()).zip(0..).collect();
        by_distance.sort_by(|left, right| left.0.total_cmp(&right.0));
        let mut sum = 0.0;
        let mut kept = Vec::new();
        let mut doubtful = false;
        for (index, &(distance, place)) in by_distance.iter().enumerate() {
            sum += probabilities[place];
            kept.push(all[place].0);
            doubtful |= near(sum, share.into());
            if sum > f64::from(share) {
                // Which of two equally distant tokens is last depends on rounding.
                doubtful |= by_distance.get(index + 1).is_some_and(|next| (next.0 - distance).abs() < 1e-4);
                break;
            }
        }
        prop_assume!(!doubtful);
        let mut list = filled(&row);
        list.typical_p(share);
        prop_assert_eq!(ids(&list), ascending(kept));
    }

    #[test]
    fn top_n_sigma_keeps_deviations_below_the_largest(row in logits(), deviations in 0.1f32..3.0) {
        let all = sorted(&row);
        let mean = all.iter().map(|item| item.1).sum::<f64>() / all.len() as f64;
        let variance = all.iter().map(|item| (item.1 - mean).powi(2)).sum::<f64>() / all.len() as f64;
        let least = all[0].1 - f64::from(deviations) * variance.sqrt();
        prop_assume!(!all.iter().any(|item| near(item.1, least)));
        let expected: Vec<u32> = all.iter().filter(|item| item.1 >= least).map(|item| item.0).collect();
        let mut list = filled(&row);
        list.top_n_sigma(deviations);
        prop_assert_eq!(ids(&list), ascending(expected));
    }

    #[test]
    fn xtc_removes_all_probable_tokens_but_the_last(row in logits(), threshold in 0.01f32..0.6) {
        let all = sorted(&row);
        let probabilities = softmax(&all);
        prop_assume!(!probabilities.iter().any(|&probability| near(probability, threshold.into())));
        let probable = probabilities.iter().filter(|&&probability| probability >= f64::from(threshold)).count();
        let removed = if threshold > 0.5 { 0 } else { probable.saturating_sub(1) };
        let mut list = filled(&row);
        list.xtc(threshold);
        prop_assert_eq!(ids(&list), ascending(all[removed..].iter().map(|item| item.0).collect()));
    }

    #[test]
    fn temperature_divides(row in logits(), temperature in 0.05f32..5.0) {
        let all = sorted(&row);
        let scaled: Vec<(u32, f64)> = all.iter().map(|&(id, logit)| (id, logit / f64::from(temperature))).collect();
        let mut list = filled(&row);
        list.temperature(temperature);
        list.finish();
        for (item, probability) in list.items().iter().zip(softmax(&scaled)) {
            prop_assert!((f64::from(item.probability) - probability).abs() < 2e-5);
        }
        let mut list = filled(&row);
        list.temperature(0.0);
        prop_assert_eq!(ids(&list), [all[0].0]);
    }

    #[test]
    fn stages_in_any_sequence_keep_the_list_ordered(row in logits(), steps in prop::collection::vec((0u8..8, 0u32..300, 0.05f32..1.0), 0..8)) {
        let mut list = filled(&row);
        let mut plain: BTreeMap<u32, f32> = list.items().iter().map(|item| (item.id, item.logit)).collect();
        for (stage, token, share) in steps {
            match stage {
                0 => list.top_k(1 + token as usize),
                1 => list.top_p(share),
                2 => list.min_p(share),
                3 => list.typical_p(share),
                4 => list.top_n_sigma(share * 3.0),
                5 => list.xtc(share * 0.5),
                6 => {
                    list.change(token, |logit| logit - 3.0);
                    plain.entry(token).and_modify(|logit| *logit -= 3.0);
                }
                _ => {
                    list.change(token, |logit| logit + 3.0);
                    plain.entry(token).and_modify(|logit| *logit += 3.0);
                }
            }
            prop_assert!(!list.items().is_empty());
            plain.retain(|id, _| list.items().iter().any(|item| item.id == *id));
        }
        list.finish();
        let expected = sorted(&(0..300).map(|id| plain.get(&id).copied().unwrap_or(f32::NEG_INFINITY)).collect::<Vec<_>>());
        let found: Vec<(u32, f64)> = list.items().iter().map(|item| (item.id, f64::from(item.logit))).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn penalties_follow_their_formula(
        row in logits(),
        history in prop::collection::vec(0u32..300, 0..80),
        window in -1i32..90,
        repeat in 0.5f32..2.0,
        presence in -2.0f32..2.0,
        frequency in -2.0f32..2.0,
    ) {
        let params = SamplingParams {
            repeat_penalty: repeat,
            presence_penalty: presence,
            frequency_penalty: frequency,
            repeat_last_n: window,
            samplers: "penalties".parse().expect("a stage"),
            ..SamplingParams::default()
        };
        let skipped = if window < 0 { 0 } else { history.len().saturating_sub(window as usize) };
        let expected: Vec<f32> = row.iter().zip(0u32..).map(|(&logit, id)| {
            let count = history[skipped..].iter().filter(|&&token| token == id).count();
            if count == 0 {
                return logit;
            }
            let scaled = if logit <= 0.0 { logit * repeat } else { logit / repeat };
            scaled - (count as f32 * frequency + presence)
        }).collect();
        let mut sampler = Sampler::new(params, row.len()).expect("valid");
        let list = sampler.distribution(&row, &history, None).expect("a token");
        for item in list {
            prop_assert_eq!(item.logit, expected[item.id as usize]);
        }
        prop_assert_eq!(list.len(), sorted(&row).len());
    }

    #[test]
    fn penalties_after_truncation_change_what_is_left(row in logits(), history in prop::collection::vec(0u32..300, 0..80)) {
        let order: SamplerOrder = "top_k;penalties".parse().expect("stages");
        let params = SamplingParams { top_k: 20, presence_penalty: 1.5, repeat_last_n: -1, samplers: order, ..Default::default() };
        let mut sampler = Sampler::new(params, row.len()).expect("valid");
        let mut expected: Vec<(u32, f64)> = sorted(&row).into_iter().take(20).collect();
        for item in &mut expected {
            item.1 = f64::from(item.1 as f32 - if history.contains(&item.0) { 1.5 } else { 0.0 });
        }
        expected.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
        let list = sampler.distribution(&row, &history, None).expect("a token");
        prop_assert_eq!(list.iter().map(|item| (item.id, f64::from(item.logit))).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn repetitions_equal_their_definition(window in prop::collection::vec(0u32..4, 0..40), breakers in prop::collection::vec(0u32..4, 0..2)) {
        let mut expected: BTreeMap<u32, u32> = BTreeMap::new();
        for end in 1..window.len() {
            // Longest common suffix of window[..end] and the whole window, without breakers in it.
            let agree = (1..=end)
                .take_while(|&back| {
                    let here = window[window.len() - back];
                    window[end - back] == here && !breakers.contains(&here)
                })
                .count() as u32;
            if agree > 0 {
                let longest = expected.entry(window[end]).or_default();
                *longest = agree.max(*longest);
            }
        }
        let (mut lengths, mut found) = (Vec::new(), Vec::new());
        stages::repetitions(&window, &breakers, &mut lengths, &mut found);
        prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn bias_and_mask_apply_before_all_else(row in logits(), bias in prop::collection::vec((0u32..300, -5.0f32..5.0), 0..5), allowed in prop::collection::vec(0u32..300, 0..40)) {
        let bias: Vec<(u32, f32)> = bias.into_iter().filter(|item| (item.0 as usize) < row.len()).collect();
        let params = SamplingParams { logit_bias: bias.clone(), samplers: "".parse().expect("no stage"), ..Default::default() };
        let Ok(mut sampler) = Sampler::new(params, row.len()) else { return Ok(()) };
        let mut mask = TokenMask::none(row.len());
        allowed.iter().for_each(|&id| mask.allow(id));
        let mut expected = row.clone();
        bias.iter().for_each(|&(id, change)| expected[id as usize] += change);
        (0..row.len()).filter(|&id| !mask.allows(id as u32)).for_each(|id| expected[id] = f32::NEG_INFINITY);
        match sampler.distribution(&row, &[], Some(&mask)) {
            Ok(list) => {
                let found: Vec<(u32, f64)> = list.iter().map(|item| (item.id, f64::from(item.logit))).collect();
                prop_assert_eq!(found, sorted(&expected));
            }
            Err(error) => {
                prop_assert_eq!(error, SampleError::Nothing);
                prop_assert!(sorted(&expected).is_empty());
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest(row in logits()) {
        let best = sorted(&row)[0].0;
        let mut fast = Sampler::new(SamplingParams::greedy(), row.len()).expect("valid");
        prop_assert_eq!(fast.sample(&row, &[], None).expect("a token").id, best);
        let mut masked = Sampler::new(SamplingParams::greedy(), row.len()).expect("valid");
        let token = masked.sample(&row, &[], Some(&TokenMask::all(row.len()))).expect("a token");
        prop_assert_eq!((token.id, token.logprob), (best, 0.0));
    }

    #[test]
    fn a_token_is_always_one_of_the_distribution(row in logits(), seed: u64, position in 0usize..50, temperature in 0.01f32..3.0) {
        let params = SamplingParams { seed: Some(seed), temperature, xtc_probability: 0.5, dry_multiplier: 0.8, ..Default::default() };
        let mut sampler = Sampler::new(params, row.len()).expect("valid");
        let history: Vec<u32> = (0..position as u32).map(|token| token % 7).collect();
        let token = sampler.sample(&row, &history, None).expect("a token");
        let again = sampler.sample(&row, &history, None).expect("a token");
        prop_assert_eq!(token, again);
        let list = sampler.distribution(&row, &history, None).expect("a token");
        let item = list.iter().find(|item| item.id == token.id).expect("among the candidates");
        prop_assert!((item.probability.ln() - token.logprob).abs() < 1e-4);
        let sum: f64 = list.iter().map(|item| f64::from(item.probability)).sum();
        prop_assert!((sum - 1.0).abs() < 1e-4);
    }
}

#[test]
fn dry_grows_with_the_length_of_the_repetition() {
    assert_eq!(stages::dry_penalty(1, 0.8, 1.75, 2), 0.0);
    assert_eq!(stages::dry_penalty(2, 0.8, 1.75, 2), 0.8);
    assert!((stages::dry_penalty(4, 0.8, 1.75, 2) - 0.8 * 1.75 * 1.75).abs() < 1e-6);
    assert_eq!(stages::dry_penalty(u32::MAX, 1.0, 2.0, 2), f32::MAX);
    // "1 2 3 ... 1 2": a repetition of two would be prolonged by 3.
    let params = SamplingParams {
        dry_multiplier: 0.8,
        samplers: "dry".parse().expect("a stage"),
        ..Default::default()
    };
    let mut sampler = Sampler::new(params, 6).expect("valid");
    let list = sampler.distribution(&[0.0; 6], &[1, 2, 3, 4, 1, 2], None).expect("a token");
    let logit = |id| list.iter().find(|item: &&Candidate| item.id == id).expect("there").logit;
    assert_eq!((logit(3), logit(4), logit(1)), (-0.8, 0.0, 0.0));
}

#[test]
fn draws_follow_the_distribution() {
    let row = [1.0f32, 0.0, -1.0, 2.0, f32::NEG_INFINITY, 0.5];
    let params = |seed| SamplingParams {
        seed: Some(seed),
        temperature: 1.0,
        samplers: "temperature".parse().expect("a stage"),
        ..SamplingParams::default()
    };
    let probabilities = softmax(&sorted(&row));
    let by_id: BTreeMap<u32, f64> = sorted(&row).iter().map(|item| item.0).zip(probabilities).collect();
    let history = vec![0; 20_000];
    let mut counts: BTreeMap<u32, f64> = BTreeMap::new();
    for seed in 0..2 {
        let mut sampler = Sampler::new(params(seed), row.len()).expect("valid");
        for position in 0..history.len() {
            *counts
                .entry(sampler.sample(&row, &history[..position], None).expect("a token").id)
                .or_default() += 1.0;
        }
    }
    assert!(!counts.contains_key(&4));
    let draws: f64 = counts.values().sum();
    let chi_square: f64 = by_id.iter().map(|(id, p)| (counts[id] - draws * p).powi(2) / (draws * p)).sum();
    assert!(chi_square < 18.5, "{chi_square}"); // 99.9 % quantile of four degrees of freedom: 18.47
}

#[test]
fn broken_rows_are_errors() {
    let mut sampler = Sampler::new(SamplingParams::default(), 3).expect("valid");
    let mut greedy = Sampler::new(SamplingParams::greedy(), 3).expect("valid");
    for sampler in [&mut sampler, &mut greedy] {
        let mut sample = |row: &[f32]| sampler.sample(row, &[], None).map(|token| token.id);
        assert_eq!(sample(&[0.0; 4]), Err(SampleError::Length { found: 4, expected: 3 }));
        assert!(matches!(sample(&[0.0, f32::NAN, 0.0]), Err(SampleError::NotFinite { id: 1, .. })));
        assert!(matches!(sample(&[0.0, 0.0, f32::INFINITY]), Err(SampleError::NotFinite { id: 2, .. })));
        assert_eq!(sample(&[f32::NEG_INFINITY; 3]), Err(SampleError::Nothing));
        assert_eq!(sample(&[f32::NEG_INFINITY, f32::MIN, f32::NEG_INFINITY]), Ok(1));
    }
    assert_eq!(sampler.sample(&[0.0; 3], &[], Some(&TokenMask::none(3))), Err(SampleError::Nothing));
    let extreme = SamplingParams { temperature: 1e-38, ..SamplingParams::default() };
    let mut extreme = Sampler::new(extreme, 3).expect("valid");
    assert_eq!(extreme.sample(&[3e38, -3e38, 1.0], &[], None).expect("a token").id, 0);
    // Tokens of another vocabulary in the history are ignored.
    let strict = SamplingParams { presence_penalty: 1.0, ..SamplingParams::default() };
    let mut strict = Sampler::new(strict, 3).expect("valid");
    assert!(strict.sample(&[0.0; 3], &[0, 99, u32::MAX], None).is_ok());
}

#[test]
fn log_probabilities_are_those_of_the_whole_row() {
    let row = [1.0f32, 3.0, 2.0, f32::NEG_INFINITY];
    let normaliser = (1f64.exp() + 3f64.exp() + 2f64.exp()).ln();
    let found = millpond::sample::logprobs::token_logprobs(&row, 0, 2);
    assert!((f64::from(found.chosen) - (1.0 - normaliser)).abs() < 1e-6);
    let top: Vec<u32> = found.top.iter().map(|item| item.0).collect();
    assert_eq!(top, [1, 2]);
    assert!((f64::from(found.top[0].1) - (3.0 - normaliser)).abs() < 1e-6);
    assert_eq!(millpond::sample::logprobs::token_logprobs(&row, 9, 0).chosen, f32::NEG_INFINITY);
}
