//! The kernels of the linear mixer against the recurrence in double precision, and their invariants: on the emulator
//! everywhere, on the GPU where there is one.

mod common;

use common::{Oracle, Random, Rig, Rows, Tokens, Weights, bits, devices, error, options, spec};
use millpond::state::{Cursor, FoldPolicy, PassKind};
use millpond_cuda::linear::Activation;
use millpond_models::{HeadMap, Write};
use proptest::prelude::*;

/// Rounding of bfloat16 keys, queries, values and outputs, together.
const BF16_TOLERANCE: f64 = 2e-2;
const F32_TOLERANCE: f64 = 4e-6;

fn policy(interval: usize, phase: usize, stateless: usize) -> FoldPolicy {
    FoldPolicy { interval, phase: phase % interval, stateless, window: 8 }
}

/// Outputs of `count` tokens from the oracle, which advances.
fn expected(oracle: &mut Oracle, tokens: &Tokens, first: usize, count: usize) -> Vec<f64> {
    (first..first + count)
        .flat_map(|t| oracle.step(&tokens.qkv[t], &tokens.beta[t], &tokens.alpha[t]))
        .collect()
}

/// What a pass of a random schedule does: rows, whether they are a prompt, and the share that is accepted.
type Pass = (usize, bool, f64);

fn schedules() -> impl Strategy<Value = Vec<Pass>> {
    let window = (1_usize..9, Just(false), 0.0..1.01_f64);
    let prompt = (1_usize..100, Just(true), Just(1.0));
    prop::collection::vec(prop_oneof![4 => window, 1 => prompt], 1..7)
}

/// Runs a schedule on a device; returns the largest error of the outputs and of the base.
fn run_schedule(
    rig: &mut Rig,
    weights: &Weights,
    policy: FoldPolicy,
    schedule: &[Pass],
    tokens: &Tokens,
) -> (f64, f64) {
    let mut cursor = Cursor::new(policy);
    let mut oracle = Oracle::new(&rig.spec, weights);
    let mut folded = (0, oracle.clone());
    let mut worst = (0.0_f64, 0.0_f64);
    for &(rows, prompt, share) in schedule {
        let kind = if prompt { PassKind::Prefill } else { PassKind::Window };
        let first = cursor.position();
        let got = rig.append(0, &mut cursor, tokens, first, rows, kind);
        let want = expected(&mut oracle.clone(), tokens, first, rows);
        worst.0 = worst.0.max(error(&got, &want));
        if !prompt {
            let accepted = ((share * rows as f64) as usize).min(rows);
            cursor.commit(accepted).unwrap();
        }
        expected(&mut oracle, tokens, first, cursor.position() - first);
        if cursor.base() > folded.0 {
            expected(&mut folded.1, tokens, folded.0, cursor.base() - folded.0);
            folded.0 = cursor.base();
            worst.1 = worst.1.max(error(&rig.layer.base(0).unwrap(), &base_of(rig, &folded.1)));
        }
    }
    worst
}

/// The oracle's state in the order and padding of the device's.
fn base_of(rig: &Rig, oracle: &Oracle) -> Vec<f64> {
    let (dk, dv) = (rig.spec.key_dim, rig.spec.value_dim);
    let (wide_k, wide_v) = millpond_cuda::linear::padded(dk, dv).unwrap();
    let mut base = vec![0.0; rig.spec.value_heads * wide_v * wide_k];
    for head in 0..rig.spec.value_heads {
        for k in 0..dk {
            for v in 0..dv {
                base[(head * wide_v + v) * wide_k + k] = oracle.state[(head * dk + k) * dv + v];
            }
        }
    }
    base
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any split into prompts, decode steps and windows, any acceptance, any fold policy.
    #[test]
    fn any_schedule_follows_the_recurrence(
        seed: u64,
        interval in 1_usize..17,
        phase in 0_usize..17,
        stateless in prop_oneof![Just(0_usize), 1_usize..40],
        schedule in schedules(),
        (key_dim, value_dim) in prop_oneof![Just((32, 32)), Just((16, 16)), Just((24, 40))],
        tiled: bool,
    ) {
        let mut random = Random::new(seed);
        let mut spec = spec(2, 4, key_dim, value_dim);
        spec.head_map = if tiled { HeadMap::Tiled } else { HeadMap::Grouped };
        spec.write = Write::Delta { beta_max: if seed % 2 == 0 { 1.0 } else { 2.0 } };
        let weights = Weights::random(&spec, &mut random);
        let total = schedule.iter().map(|pass| pass.0).sum();
        let tokens = Tokens::random(&spec, total, &mut random);
        for (name, device) in devices() {
            let mut rig = Rig::new(device, &spec, options(Activation::F32, 1), &weights);
            let policy = policy(interval, phase, stateless);
            let (output, base) = run_schedule(&mut rig, &weights, policy, &schedule, &tokens);
            prop_assert!(output < F32_TOLERANCE && base < F32_TOLERANCE, "{name}: output {output}, base {base}");
        }
    }

    /// A verify window has the bits of single steps, whatever is accepted: outputs and base.
    #[test]
    fn windows_have_the_bits_of_single_steps(
        seed: u64,
        interval in 1_usize..17,
        phase in 0_usize..17,
        windows in prop::collection::vec((1_usize..9, 0.0..1.01_f64), 2..10),
    ) {
        let mut random = Random::new(seed);
        let spec = spec(1, 2, 32, 32);
        let weights = Weights::random(&spec, &mut random);
        let total = windows.iter().map(|window| window.0).sum();
        let tokens = Tokens::random(&spec, total, &mut random);
        for (name, device) in devices() {
            let policy = policy(interval, phase, 0);
            let mut single = Rig::new(device, &spec, options(Activation::F32, 1), &weights);
            let mut cursor = Cursor::new(policy);
            let mut steps = Vec::new();
            for t in 0..total {
                steps.push(bits(&single.append(0, &mut cursor, &tokens, t, 1, PassKind::Window)));
                cursor.commit(1).unwrap();
            }
            let mut drafted = Rig::new(device, &spec, options(Activation::F32, 1), &weights);
            let mut cursor = Cursor::new(policy);
            for &(rows, share) in &windows {
                let first = cursor.position();
                let got = drafted.append(0, &mut cursor, &tokens, first, rows, PassKind::Window);
                prop_assert_eq!(bits(&got), steps[first..first + rows].concat(), "{} at {}", name, first);
                cursor.commit(((share * rows as f64) as usize).min(rows)).unwrap();
            }
        }
    }
}

/// Heads of the width that real models have, in both precisions and on every device.
#[test]
fn real_head_widths_follow_the_recurrence() {
    let mut random = Random::new(3);
    let spec = spec(1, 2, 128, 128);
    let weights = Weights::random(&spec, &mut random);
    let schedule: Vec<Pass> =
        [(70, true), (1, false), (4, false), (8, false), (3, false), (1, false), (2, false)]
            .iter()
            .map(|&(rows, prompt)| (rows, prompt, 0.8))
            .collect();
    let tokens = Tokens::random(&spec, 100, &mut random);
    for (name, device) in devices() {
        for (activation, tolerance) in [(Activation::F32, F32_TOLERANCE), (Activation::Bf16, BF16_TOLERANCE)]
        {
            // Few processors choose large blocks, many choose small ones.
            for processors in [0, 1000] {
                let mut options = options(activation, 1);
                options.processors = processors;
                let mut rig = Rig::new(device, &spec, options, &weights);
                let (output, base) = run_schedule(&mut rig, &weights, policy(16, 3, 0), &schedule, &tokens);
                assert!(output < tolerance && base < tolerance, "{name}: output {output}, base {base}");
            }
        }
    }
}

/// Gates from none to total forgetting, mixed in one window.
#[test]
fn strong_gates_stay_finite_and_exact() {
    let mut random = Random::new(5);
    let spec = spec(1, 4, 32, 32);
    let mut weights = Weights::random(&spec, &mut random);
    weights.a = vec![0.0, -8.0, -1e4, f32::NEG_INFINITY];
    let tokens = Tokens::random(&spec, 60, &mut random);
    let schedule: Vec<Pass> =
        vec![(20, true, 1.0), (8, false, 1.0), (8, false, 0.5), (8, false, 1.0), (1, false, 1.0)];
    for (name, device) in devices() {
        let mut rig = Rig::new(device, &spec, options(Activation::F32, 1), &weights);
        let (output, base) = run_schedule(&mut rig, &weights, policy(5, 1, 0), &schedule, &tokens);
        assert!(output < F32_TOLERANCE && base < F32_TOLERANCE, "{name}: output {output}, base {base}");
    }
}

/// The base changes only where a fold is durable, and rejected windows leave no trace.
#[test]
fn the_base_is_untouched_between_folds_and_by_rejected_windows() {
    let mut random = Random::new(7);
    let spec = spec(1, 2, 32, 32);
    let weights = Weights::random(&spec, &mut random);
    let tokens = Tokens::random(&spec, 100, &mut random);
    let others = Tokens::random(&spec, 100, &mut random);
    for (name, device) in devices() {
        let mut rig = Rig::new(device, &spec, options(Activation::F32, 2), &weights);
        let mut cursors = [Cursor::new(policy(4, 1, 0)), Cursor::new(policy(4, 1, 0))];
        for step in 0..30 {
            // Slot 1 also drafts other tokens, all rejected, before each step.
            let before = rig.layer.base(1).unwrap();
            let at = cursors[1].position();
            let plan = cursors[1].plan(8, PassKind::Window);
            rig.pass(&[Rows { slot: 1, plan: &plan, tokens: &others, first: at }]);
            let folded = plan.durably_folded() > 0;
            cursors[1].advance(&plan);
            cursors[1].commit(0).unwrap();
            assert_eq!(bits(&before) == bits(&rig.layer.base(1).unwrap()), !folded, "{name} at {step}");
            let plans = cursors.each_ref().map(|cursor| cursor.plan(1, PassKind::Window));
            let rows: Vec<Rows<'_>> = plans
                .iter()
                .enumerate()
                .map(|(slot, plan)| Rows { slot, plan, tokens: &tokens, first: at })
                .collect();
            let outs = rig.pass(&rows);
            assert_eq!(bits(&outs[0]), bits(&outs[1]), "{name} at {step}");
            for (cursor, plan) in cursors.iter_mut().zip(&plans) {
                cursor.advance(plan);
                cursor.commit(1).unwrap();
            }
        }
    }
}

/// Neighbours and order in a batch do not matter.
#[test]
fn a_sequence_does_not_depend_on_its_neighbours() {
    let mut random = Random::new(9);
    let spec = spec(1, 2, 32, 32);
    let weights = Weights::random(&spec, &mut random);
    let tokens: Vec<Tokens> = (0..3).map(|_| Tokens::random(&spec, 120, &mut random)).collect();
    // Slot 0 decodes, slot 1 verifies, slot 2 takes a prompt.
    let rows = [1, 5, 90];
    for (name, device) in devices() {
        let mut alone = Rig::new(device, &spec, options(Activation::Bf16, 3), &weights);
        let mut together = Rig::new(device, &spec, options(Activation::Bf16, 3), &weights);
        let mut cursors = [0, 1, 2].map(|phase| Cursor::new(policy(4, phase, 0)));
        for pass in 0..2 {
            let plans: Vec<_> = cursors
                .iter()
                .zip(rows)
                .map(|(cursor, rows)| cursor.plan(if pass == 0 { 7 } else { rows }, PassKind::Prefill))
                .collect();
            let row = |slot: usize| Rows {
                slot,
                plan: &plans[slot],
                tokens: &tokens[slot],
                first: cursors[slot].position(),
            };
            let joined = together.pass(&[row(2), row(0), row(1)]);
            for (slot, place) in [(0, 1), (1, 2), (2, 0)] {
                let single = alone.pass(&[row(slot)]).remove(0);
                assert_eq!(bits(&single), bits(&joined[place]), "{name} slot {slot} pass {pass}");
            }
            for (cursor, plan) in cursors.iter_mut().zip(&plans) {
                cursor.advance(plan);
            }
        }
    }
}

/// The gated norm against its formula in double precision.
#[test]
fn the_gated_norm_follows_its_formula() {
    let mut random = Random::new(11);
    let spec = spec(1, 3, 32, 40);
    let weights = Weights::random(&spec, &mut random);
    let (rows, eps, padded) = (5, 1e-6, 64);
    let x = random.vector(rows * 3 * padded, 2.0);
    let gate = random.vector(rows * 3 * 40, 4.0);
    for (name, device) in devices() {
        let rig = Rig::new(device, &spec, options(Activation::F32, 1), &weights);
        let mut out = rig.upload(&vec![f32::NAN; rows * 3 * 40]);
        rig.layer.gated_norm(rows, &rig.upload(&x), &rig.upload(&gate), eps, &mut out).unwrap();
        let got = common::loaded(Activation::F32, &out, rows * 3 * 40);
        let mut want = Vec::new();
        for (x, gate) in x.chunks(padded).zip(gate.chunks(40)) {
            let mean = x[..40].iter().map(|&x| x as f64 * x as f64).sum::<f64>() / 40.0;
            for ((&x, &z), &w) in x.iter().zip(gate).zip(&weights.norm) {
                let silu = z as f64 / (1.0 + (-z as f64).exp());
                want.push(x as f64 / (mean + eps as f64).sqrt() * w as f64 * silu);
            }
        }
        assert!(error(&got, &want) < 1e-6, "{name}: {}", error(&got, &want));
    }
}
