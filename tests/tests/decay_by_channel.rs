//! The executor of linear layers on states that decay by key channel, as Kimi Delta Attention has them. No family of
//! model files with such layers is read yet; windows, folds and rollbacks of their states work.

use std::ops::Range;

use millpond::backend::cpu::linear::{
    LinearParameters, LinearScratch, LinearStream, Placement, RowInputs, mix_batch,
};
use millpond::par::Team;
use millpond::state::memory::{KvType, SequenceMemory, StateType};
use millpond::state::{Cursor, FoldPolicy, PassKind, StateLayout};
use millpond_models::{Decay, FfnSpec, HeadMap, LayerSpec, LinearSpec, MixerSpec, ModelSpec, Write};
use millpond_simd::linear::Ahead;
use millpond_simd::{Isa, Kernels};
use proptest::prelude::*;

const WINDOW: usize = 6;

fn spec() -> LinearSpec {
    LinearSpec {
        key_heads: 2,
        value_heads: 4,
        key_dim: 24,
        value_dim: 40,
        conv_width: 1,
        decay: Decay::PerKeyChannel,
        write: Write::Delta { beta_max: 1.0 },
        head_map: HeadMap::Grouped,
    }
}

fn layout(state_type: StateType) -> StateLayout {
    let layer = LayerSpec { mixer: MixerSpec::Linear(spec()), ffn: FfnSpec::Dense { width: 0 } };
    let model = ModelSpec {
        arch: "kda".to_owned(),
        hidden: 0,
        vocab: 0,
        context: usize::MAX,
        norm_eps: 1e-6,
        layers: vec![layer],
        tied_head: true,
        mtp: None,
    };
    StateLayout::new(&model).with_state_type(state_type)
}

/// Operands of the tokens of a stream.
struct Tokens {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    beta: Vec<f32>,
    decay: Vec<f32>,
}

impl Tokens {
    fn random(seed: u64, count: usize) -> Tokens {
        let spec = spec();
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut unit = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let mut rows = |norm: f32| -> Vec<f32> {
            let mut values: Vec<f32> =
                (0..count * spec.key_heads * spec.key_dim).map(|_| 2.0 * unit() - 1.0).collect();
            for row in values.chunks_exact_mut(spec.key_dim) {
                let length = row.iter().map(|x| x * x).sum::<f32>().sqrt() + 1e-6;
                row.iter_mut().for_each(|x| *x *= norm / length);
            }
            values
        };
        let (queries, keys) = (rows((spec.key_dim as f32).powf(-0.5)), rows(1.0));
        let heads = count * spec.value_heads;
        Tokens {
            queries,
            keys,
            values: (0..heads * spec.value_dim).map(|_| 2.0 * unit() - 1.0).collect(),
            beta: (0..heads).map(|_| unit()).collect(),
            decay: (0..heads * spec.key_dim).map(|_| -unit() * unit()).collect(),
        }
    }

    fn inputs(&self, rows: Range<usize>) -> RowInputs<'_> {
        let spec = spec();
        let part = |width: usize| rows.start * width..rows.end * width;
        let key_width = spec.key_heads * spec.key_dim;
        RowInputs::Ready {
            queries: &self.queries[part(key_width)],
            keys: &self.keys[part(key_width)],
            values: &self.values[part(spec.value_heads * spec.value_dim)],
            beta: &self.beta[part(spec.value_heads)],
            decay: &self.decay[part(spec.value_heads * spec.key_dim)],
        }
    }

    /// The plain recurrence in double precision, one value head and channel at a time.
    fn recurrence(&self, count: usize) -> Vec<f64> {
        let LinearSpec { key_heads, value_heads, key_dim, value_dim, .. } = spec();
        let mut outputs = vec![0.0; count * value_heads * value_dim];
        for head in 0..value_heads {
            let mut state = vec![0.0; key_dim * value_dim];
            for t in 0..count {
                let at = (t * key_heads + spec().key_head_of(head)) * key_dim;
                let (k, q) = (&self.keys[at..at + key_dim], &self.queries[at..at + key_dim]);
                let g = &self.decay[(t * value_heads + head) * key_dim..][..key_dim];
                for v in 0..value_dim {
                    let mut m = 0.0;
                    for c in 0..key_dim {
                        state[c * value_dim + v] *= f64::from(g[c]).exp();
                        m += state[c * value_dim + v] * f64::from(k[c]);
                    }
                    let at = (t * value_heads + head) * value_dim + v;
                    let beta = f64::from(self.beta[t * value_heads + head]);
                    let delta = beta * (f64::from(self.values[at]) - m);
                    for c in 0..key_dim {
                        state[c * value_dim + v] += f64::from(k[c]) * delta;
                        outputs[at] += state[c * value_dim + v] * f64::from(q[c]);
                    }
                }
            }
        }
        outputs
    }
}

/// A stream that appends windows and confirms parts of them.
struct Stream {
    layout: StateLayout,
    kernels: &'static Kernels,
    team: Team,
    memory: SequenceMemory,
    cursor: Cursor,
    scratch: LinearScratch,
}

impl Stream {
    fn new(interval: usize, state_type: StateType, isa: Isa) -> Stream {
        let layout = layout(state_type);
        let mut memory = SequenceMemory::new(&layout, KvType::F32, WINDOW).unwrap();
        memory.resize_logs(&layout, interval + 2 * WINDOW, 0).unwrap();
        let policy = FoldPolicy { interval, phase: interval / 2, stateless: 0, window: WINDOW };
        Stream {
            layout,
            kernels: Kernels::for_isa(isa).unwrap(),
            team: Team::new(2).unwrap(),
            memory,
            cursor: Cursor::new(policy),
            scratch: LinearScratch::default(),
        }
    }

    /// Outputs of the tokens of a window, of which the first `accepted` are confirmed.
    fn window(&mut self, tokens: &Tokens, rows: Range<usize>, accepted: usize) -> Vec<f32> {
        let plan = self.cursor.plan(rows.len(), PassKind::Window);
        if plan.durably_folded() > 0 {
            self.memory.base_mut(&self.layout).unwrap();
        }
        let mut out = vec![f32::NAN; rows.len() * spec().value_heads * spec().value_dim];
        let stream = LinearStream {
            plan: &plan,
            placement: &Placement::new(&plan),
            memory: &mut self.memory,
            scratch: &mut self.scratch,
            inputs: tokens.inputs(rows),
            next: Ahead::NONE,
            out: &mut out,
        };
        let none = LinearParameters { conv: &[], a: &[], dt_bias: &[] };
        self.team.run(|| mix_batch(self.kernels, &self.layout, 0, none, vec![stream]));
        self.cursor.advance(&plan);
        self.cursor.commit(accepted).unwrap();
        out
    }
}

fn one_at_a_time(tokens: &Tokens, count: usize, mut stream: Stream) -> Vec<f32> {
    (0..count).flat_map(|t| stream.window(tokens, t..t + 1, 1)).collect()
}

#[test]
fn decay_by_key_channel_follows_the_recurrence_and_instruction_sets_agree() {
    let tokens = Tokens::random(1, 90);
    let want = tokens.recurrence(90);
    let scale = want.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    for interval in [1, 7, 16] {
        let expected = one_at_a_time(&tokens, 90, Stream::new(interval, StateType::F32, Isa::Scalar));
        for (got, want) in expected.iter().zip(&want) {
            assert!((f64::from(*got) - want).abs() < 4e-6 * scale, "C = {interval}: {got} and {want}");
        }
        for isa in Isa::available() {
            let got = one_at_a_time(&tokens, 90, Stream::new(interval, StateType::F32, isa));
            assert!(got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Windows of any length and any acceptance leave no trace in the bits.
    #[test]
    fn any_schedule_gives_the_bits_of_single_steps(
        seed in 0u64..1000,
        interval in prop::sample::select(vec![1usize, 3, 16]),
        state_type in prop::sample::select(vec![StateType::F32, StateType::Bf16]),
        windows in prop::collection::vec((1usize..=WINDOW, 0usize..=WINDOW), 1..30),
    ) {
        let (count, width) = (60, spec().value_heads * spec().value_dim);
        let tokens = Tokens::random(seed, count);
        let wrong = Tokens::random(seed + 5000, count);
        let expected = one_at_a_time(&tokens, count, Stream::new(interval, state_type, Isa::detect()));
        let mut stream = Stream::new(interval, state_type, Isa::detect());
        for (rows, accepted) in windows {
            let at = stream.cursor.position();
            let rows = at..(at + rows).min(count);
            if rows.is_empty() {
                break;
            }
            // Rejected whole, with other tokens: it must not have happened.
            stream.window(&wrong, rows.clone(), 0);
            let accepted = accepted.min(rows.len());
            let got = stream.window(&tokens, rows.clone(), accepted);
            let want = &expected[rows.start * width..rows.end * width];
            prop_assert!(got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()), "rows {:?}", rows);
        }
    }
}
