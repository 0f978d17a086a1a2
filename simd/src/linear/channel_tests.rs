//! Decay by key channel against the plain recurrence.

use super::*;
use crate::matmul::OutTile;
use crate::{Isa, LANES};
use proptest::prelude::*;

/// Tokens of one value head; decays are `[tokens][dk]`.
struct Tokens {
    dk: usize,
    dv: usize,
    k: Vec<f32>,
    q: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    beta: Vec<f32>,
}

impl Tokens {
    fn random(seed: u64, count: usize, dk: usize, dv: usize) -> Tokens {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut unit = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let mut rows = |norm: f32| -> Vec<f32> {
            let mut values: Vec<f32> = (0..count * dk).map(|_| 2.0 * unit() - 1.0).collect();
            for row in values.chunks_exact_mut(dk) {
                let length = row.iter().map(|x| x * x).sum::<f32>().sqrt() + 1e-6;
                row.iter_mut().for_each(|x| *x *= norm / length);
            }
            values
        };
        let (k, q) = (rows(1.0), rows((dk as f32).powf(-0.5)));
        let v = (0..count * dv).map(|_| 2.0 * unit() - 1.0).collect();
        // From none to total, and different in each channel.
        let g = (0..count * dk)
            .map(|_| match (unit() * 8.0) as u32 {
                0 => 0.0,
                1 => -1e4,
                2 => f32::NEG_INFINITY,
                3 => -4.0 * unit(),
                _ => -0.1 * unit(),
            })
            .collect();
        let beta = (0..count).map(|_| unit()).collect();
        Tokens { dk, dv, k, q, v, g, beta }
    }

    /// `S <- Diag(e^g) S; S <- S + k beta (v - S^T k)^T; o = S^T q`, one channel and value at a time.
    fn recurrence(&self, range: std::ops::Range<usize>, state: &mut [f64]) -> Vec<f64> {
        let (dk, dv) = (self.dk, self.dv);
        let mut outputs = Vec::new();
        for t in range {
            let (k, q) = (&self.k[t * dk..][..dk], &self.q[t * dk..][..dk]);
            for v in 0..dv {
                let mut m = 0.0;
                for c in 0..dk {
                    state[c * dv + v] *= f64::from(self.g[t * dk + c]).exp();
                    m += state[c * dv + v] * f64::from(k[c]);
                }
                let delta = f64::from(self.beta[t]) * (f64::from(self.v[t * dv + v]) - m);
                let mut o = 0.0;
                for c in 0..dk {
                    state[c * dv + v] += f64::from(k[c]) * delta;
                    o += state[c * dv + v] * f64::from(q[c]);
                }
                outputs.push(o);
            }
        }
        outputs
    }
}

/// Steps the tokens in windows of the given lengths and folds all of the log after each window in `folds`. Returns
/// outputs and state.
fn run(isa: Isa, tokens: &Tokens, windows: &[usize], folds: &[bool]) -> (Vec<f32>, Vec<f32>) {
    let kernels = LinearKernels::for_isa(isa).unwrap();
    let (dk, dv) = (tokens.dk, tokens.dv);
    let (mut state, mut has_state) = (vec![f32::NAN; dk * dv], false);
    let mut deltas = vec![f32::NAN; 128 * dv];
    let (mut base, mut at, mut outputs) = (0, 0, Vec::new());
    for (&rows, &fold) in windows.iter().zip(folds) {
        let entries = at - base + rows;
        let log = base * dk..(at + rows) * dk;
        let mut panel = vec![f32::NAN; panel_len(rows, dk)];
        let mut coefficients = vec![f32::NAN; panel_len(rows, entries)];
        kernels.channel_window(ChannelWindow {
            keys: &tokens.k[log.clone()],
            queries: &tokens.q[at * dk..(at + rows) * dk],
            decays: &tokens.g[log.clone()],
            dk,
            panel: &mut panel,
            coefficients: &mut coefficients,
            scratch: &mut vec![f32::NAN; 2 * dk],
        });
        let mut out = vec![f32::NAN; rows * dv];
        kernels.window_tile(WindowTile {
            state: has_state.then_some(State::F32(&state)),
            dk,
            keys: &panel,
            coefficients: &coefficients,
            base: &vec![1.0; rows],
            beta: &tokens.beta[at..at + rows],
            values: &tokens.v[at * dv..],
            value_stride: dv,
            deltas: OutTile::new(&mut deltas, dv, entries, dv),
            out: OutTile::new(&mut out, dv, rows, dv),
            ahead: Lookahead::NONE,
        });
        outputs.extend(out);
        at += rows;
        if fold {
            let (mut weighted, mut decay) = (vec![f32::NAN; entries * dk], vec![f32::NAN; dk]);
            kernels.channel_fold(&tokens.k[log.clone()], &tokens.g[log], &mut weighted, &mut decay);
            kernels.fold_tile(FoldTile {
                source: if has_state { FoldSource::InPlace } else { FoldSource::Zero },
                destination: StateMut::F32(&mut state),
                dk,
                keys: &weighted,
                base: FoldBase::Channels(&decay),
                weights: &vec![1.0; entries],
                deltas: &deltas,
                delta_stride: dv,
                ahead: Lookahead::NONE,
            });
            (base, has_state) = (at, true);
        }
    }
    (outputs, state)
}

fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-3_f64, |max, x| max.max(x.abs()));
    got.iter().zip(want).fold(0.0, |max, (&got, &want)| {
        assert!(got.is_finite());
        f64::max(max, (f64::from(got) - want).abs() / scale)
    })
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The plain recurrence in double precision, in windows and folds of every kind.
    #[test]
    fn decay_by_key_channel_follows_the_recurrence(
        seed: u64,
        dk in prop_oneof![Just(1_usize), Just(5), Just(16), Just(40), Just(128)],
        tiles in 1_usize..4,
        windows in proptest::collection::vec((1_usize..20, any::<bool>()), 1..6),
    ) {
        let (lengths, mut folds): (Vec<usize>, Vec<bool>) = windows.into_iter().unzip();
        folds.pop();
        folds.push(true);
        let count = lengths.iter().sum();
        let tokens = Tokens::random(seed, count, dk, tiles * LANES);
        let mut state = vec![0.0; dk * tiles * LANES];
        let want = tokens.recurrence(0..count, &mut state);
        let (got, reached) = run(Isa::detect(), &tokens, &lengths, &folds);
        prop_assert!(error(&got, &want) < 2e-6, "outputs {}", error(&got, &want));
        prop_assert!(error(&reached, &state) < 2e-6, "state {}", error(&reached, &state));
    }

    /// One window has the bits of single steps, under every instruction set.
    #[test]
    fn windows_with_decay_by_key_channel_have_the_bits_of_single_steps(
        seed: u64,
        dk in prop_oneof![Just(5_usize), Just(16), Just(40)],
        log in 1_usize..20,
        rows in 1_usize..20,
    ) {
        let tokens = Tokens::random(seed, 8 + log + rows, dk, 2 * LANES);
        let mut singles = vec![1; log + rows];
        singles.insert(0, 8);
        let mut folds = vec![false; singles.len()];
        folds[0] = true;
        let (want, _) = run(Isa::Scalar, &tokens, &singles, &folds);
        for isa in Isa::available() {
            let (got, _) = run(isa, &tokens, &[8, log, rows], &[true, false, false]);
            prop_assert_eq!(bits(&got), bits(&want), "{}", isa);
        }
    }
}
