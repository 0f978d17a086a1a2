//! Speculation: verification equals plain decoding, rejection keeps the distribution, lengths follow costs.

use millpond::sample::ngram::{self, NgramParams};
use millpond::sample::random::{Purpose, uniform};
use millpond::sample::speculate::{
    Decision, DraftController, StepCosts, Verdict, accept_drawn, best_draft_length, verify,
};
use millpond::sample::stages::choose;
use millpond::sample::{Candidate, SampleError, Sampler, SamplingParams};
use proptest::prelude::*;

/// A made-up model: logits that depend on the last two tokens.
fn row(history: &[u32], vocabulary: usize) -> Vec<f32> {
    let mut state = history.iter().rev().take(2).fold(99u64, |state, &token| state * 31 + u64::from(token));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 4_194_304.0
    };
    (0..vocabulary).map(|_| next()).collect()
}

const VOCABULARY: usize = 12;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn speculation_gives_the_tokens_of_plain_decoding(
        seed: u64,
        temperature in prop_oneof![Just(0.0f32), 0.3f32..1.5],
        drafts in prop::collection::vec(prop::collection::vec(0u32..VOCABULARY as u32, 0..6), 1..20),
    ) {
        let params = SamplingParams { seed: Some(seed), temperature, presence_penalty: 0.5, ..SamplingParams::default() };
        let mut sampler = Sampler::new(params, VOCABULARY).expect("valid");
        let mut plain = vec![1u32, 2];
        for _ in 0..120 {
            let token = sampler.sample(&row(&plain, VOCABULARY), &plain, None).expect("a token");
            plain.push(token.id);
        }
        let mut history = vec![1u32, 2];
        for (step, noise) in drafts.iter().enumerate() {
            // Half of the drafts are what will come, with noise at the end.
            let mut draft: Vec<u32> = if step % 2 == 0 { plain[history.len()..history.len() + 3].to_vec() } else { vec![] };
            draft.extend(noise);
            let verdict: Result<Verdict, SampleError> = verify(&draft, |accepted| {
                let mut seen = history.clone();
                seen.extend(&draft[..accepted]);
                Ok(sampler.sample(&row(&seen, VOCABULARY), &seen, None)?.id)
            });
            let Verdict { accepted, next } = verdict.expect("a token");
            if step % 2 == 0 {
                prop_assert!(accepted >= 3);
            }
            history.extend(&draft[..accepted]);
            history.push(next);
            prop_assume!(history.len() < 110);
            prop_assert_eq!(&history, &plain[..history.len()]);
        }
    }

    #[test]
    fn lookup_finds_the_longest_agreement(history in prop::collection::vec(0u32..3, 0..40), count in 0usize..6, shortest in 1usize..4, longest in 4usize..8) {
        let params = NgramParams { shortest, longest, window: 1000 };
        let mut draft = Vec::new();
        ngram::draft(&history, params, count, &mut draft);
        let end = history.len();
        let agreement = |place: usize| (1..=place).take_while(|&back| history[place - back] == history[end - back]).count().min(longest);
        let best = (1..end).max_by_key(|&place| (agreement(place), place)).filter(|&place| agreement(place) >= shortest);
        let expected = best.map_or(vec![], |place| history[place..].iter().copied().take(count).collect());
        prop_assert_eq!(draft, expected);
    }

    #[test]
    fn draft_length_is_the_fastest(
        acceptance in prop::collection::vec(0.0f64..1.0, 0..8),
        forward in prop::collection::vec(0.5f64..3.0, 1..9),
        draft in 0.0f64..0.5,
    ) {
        let speed = |length: usize| {
            let chances = (1..=length).map(|upto| acceptance[..upto].iter().product::<f64>());
            (1.0 + chances.sum::<f64>()) / (forward[length] + length as f64 * draft)
        };
        let longest = acceptance.len().min(forward.len() - 1);
        let length = best_draft_length(&acceptance, StepCosts { forward: &forward, draft });
        prop_assert!(length <= longest);
        let fastest = (0..=longest).map(speed).fold(0.0, f64::max);
        if length == 0 {
            prop_assert!(fastest <= speed(0) * 1.0101);
        } else {
            prop_assert!(speed(length) >= fastest * (1.0 - 1e-12));
        }
    }
}

fn candidates(weights: &[f64]) -> Vec<Candidate> {
    let sum: f64 = weights.iter().sum();
    let listed = (0u32..).zip(weights).filter(|item| *item.1 > 0.0);
    listed.map(|(id, weight)| Candidate { id, logit: 0.0, probability: (weight / sum) as f32 }).collect()
}

#[test]
fn drawn_drafts_keep_the_targets_distribution() {
    let cases = [
        ([4.0, 3.0, 2.0, 1.0, 0.0], [1.0, 2.0, 3.0, 4.0, 0.0]),
        ([4.0, 3.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0]), // the drafter prefers what the target forbids
        ([1.0, 0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]),
        ([4.0, 3.0, 2.0, 1.0, 5.0], [4.0, 3.0, 2.0, 1.0, 5.0]), // equal
    ];
    for (case, (target, draft)) in cases.iter().enumerate() {
        let (target, draft) = (candidates(target), candidates(draft));
        let rounds = 60_000u64;
        let (mut counts, mut accepted) = ([0.0f64; 5], 0.0);
        for position in 0..rounds {
            let draw = uniform(7, position, Purpose::Draft);
            let place = choose(draft.iter().map(|item| f64::from(item.probability)), draw).expect("a token");
            let drafted = draft[place].id;
            match accept_drawn(&target, &draft, drafted, 7, position).expect("a token") {
                Decision::Accept => {
                    counts[drafted as usize] += 1.0;
                    accepted += 1.0;
                }
                Decision::Replace(token) => counts[token as usize] += 1.0,
            }
        }
        let share = |list: &[Candidate], id: u32| {
            list.iter().find(|item| item.id == id).map_or(0.0, |item| f64::from(item.probability))
        };
        let expected: Vec<f64> = (0..5).map(|id| share(&target, id) * rounds as f64).collect();
        for id in 0..5 {
            assert!(expected[id] > 0.0 || counts[id] == 0.0, "case {case}: token {id} has probability zero");
        }
        let terms = (0..5)
            .filter(|&id| expected[id] > 0.0)
            .map(|id| (counts[id] - expected[id]).powi(2) / expected[id]);
        let chi_square: f64 = terms.sum();
        assert!(chi_square < 18.5, "case {case}: {chi_square}"); // 99.9 % quantile of four degrees of freedom: 18.47
        // Acceptance is as high as any rule can have it: the overlap of the two distributions.
        let overlap: f64 = (0..5).map(|id| share(&target, id).min(share(&draft, id))).sum();
        assert!(
            (accepted / rounds as f64 - overlap).abs() < 0.01,
            "case {case}: {accepted} of {rounds}, overlap {overlap}"
        );
    }
    assert_eq!(accept_drawn(&[], &candidates(&[1.0]), 0, 1, 1), None);
}

/// Runs a controller against made-up acceptance and costs; returns seconds, tokens and the last draft length.
fn simulate(
    controller: &mut DraftController,
    accept: f64,
    forward: impl Fn(usize) -> f64,
    draft: f64,
    steps: u64,
) -> (f64, f64, usize) {
    let (mut seconds, mut tokens) = (0.0, 0.0);
    let mut length = 0;
    for step in 0..steps {
        length = controller.next_length();
        let accepted = (0..length)
            .take_while(|&place| uniform(5, step * 32 + place as u64, Purpose::Accept) < accept)
            .count();
        controller.record(length, accepted, forward(length), length as f64 * draft);
        seconds += forward(length) + length as f64 * draft;
        tokens += 1.0 + accepted as f64;
    }
    (seconds, tokens, length)
}

#[test]
fn hopeless_drafts_cost_next_to_nothing() {
    let mut controller = DraftController::new(8);
    let forward = |length: usize| 1.0 + 0.5 * length as f64;
    let (seconds, tokens, _) = simulate(&mut controller, 0.02, forward, 0.1, 3000);
    assert!(seconds / tokens < 1.03, "{} seconds a token, plain takes 1", seconds / tokens);
    let mut off = DraftController::new(0);
    assert_eq!(simulate(&mut off, 0.9, forward, 0.1, 100), (100.0, 100.0, 0));
}

#[test]
fn good_drafts_are_used_and_their_length_found() {
    let mut controller = DraftController::new(8);
    let forward = |length: usize| 1.0 + 0.1 * length as f64;
    let (seconds, tokens, _) = simulate(&mut controller, 0.9, forward, 0.05, 3000);
    let best = (0..=8).map(|length| {
        let expected: f64 = (0..=length).map(|place| 0.9f64.powi(place)).sum();
        expected / (forward(length as usize) + f64::from(length) * 0.05)
    });
    let best = best.fold(0.0, f64::max);
    assert!(tokens / seconds > 0.93 * best, "{} tokens a second of {best}", tokens / seconds);
}

#[test]
fn a_controller_follows_a_change_of_the_text() {
    let mut controller = DraftController::new(8);
    let forward = |length: usize| 1.0 + 0.2 * length as f64;
    simulate(&mut controller, 0.05, forward, 0.05, 1000);
    let (seconds, tokens, _) = simulate(&mut controller, 0.95, forward, 0.05, 2000);
    assert!(tokens / seconds > 2.0, "{} tokens a second", tokens / seconds);
    let (seconds, tokens, _) = simulate(&mut controller, 0.02, forward, 0.05, 2000);
    assert!(seconds / tokens < 1.06, "{} seconds a token", seconds / tokens);
}
