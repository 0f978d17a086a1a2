use super::*;
use crate::matmul::OutTile;
use crate::{Isa, LANES};
use half::bf16;
use proptest::prelude::*;

/// Deterministic uniform numbers.
struct Random(u64);

impl Random {
    /// In `[0, 1)`.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1_u64 << 31) as f64
    }

    fn vector(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (2.0 * self.unit() - 1.0) as f32).collect()
    }

    fn unit_vector(&mut self, len: usize) -> Vec<f32> {
        let x = self.vector(len);
        let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt() + 1e-6;
        x.into_iter().map(|x| x / norm).collect()
    }
}

/// How strongly the state decays.
#[derive(Clone, Copy, Debug)]
enum Gates {
    Ordinary,
    Slow,
    /// From 0 to -1e4, with forgetting altogether among them.
    Wild,
    /// Slow, with keys that hardly differ and writes of nearly full strength: what amplifies rounding most.
    Collinear,
    /// The same with writes of nearly twice the full strength, which turn the state around.
    Reflecting,
}

impl Gates {
    fn draw(self, random: &mut Random) -> f32 {
        match self {
            Gates::Ordinary => -(random.unit() as f32) * 0.5,
            Gates::Slow | Gates::Collinear | Gates::Reflecting => -(random.unit() as f32) * 1e-3,
            Gates::Wild => match (random.unit() * 6.0) as u32 {
                0 => 0.0,
                1 => -8.0 * random.unit() as f32,
                2 => -1e4,
                3 if random.unit() < 0.3 => f32::NEG_INFINITY,
                _ => -0.1,
            },
        }
    }

    /// A unit key.
    fn key(self, random: &mut Random, axis: &[f32]) -> Vec<f32> {
        let key = random.unit_vector(axis.len());
        match self {
            Gates::Ordinary | Gates::Slow | Gates::Wild => key,
            Gates::Collinear | Gates::Reflecting => {
                let key: Vec<f32> = key.iter().zip(axis).map(|(key, axis)| key + 3.0 * axis).collect();
                let norm = key.iter().map(|x| x * x).sum::<f32>().sqrt();
                key.into_iter().map(|x| x / norm).collect()
            }
        }
    }

    /// A write strength.
    fn beta(self, random: &mut Random) -> f32 {
        let unit = random.unit() as f32;
        match self {
            Gates::Ordinary | Gates::Slow | Gates::Wild => unit,
            Gates::Collinear => 1.0 - 0.07 * unit,
            Gates::Reflecting => 2.0 - 0.5 * unit,
        }
    }
}

/// Tokens of one value head.
#[derive(Clone)]
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
    fn random(seed: u64, count: usize, dk: usize, dv: usize, gates: Gates) -> Tokens {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xABCD);
        let mut tokens = Tokens { dk, dv, k: vec![], q: vec![], v: vec![], g: vec![], beta: vec![] };
        let axis = Random(seed).unit_vector(dk);
        for _ in 0..count {
            tokens.k.extend(gates.key(&mut random, &axis));
            let scale = (dk as f32).powf(-0.5);
            tokens.q.extend(random.unit_vector(dk).iter().map(|q| q * scale));
            tokens.v.extend(random.vector(dv));
            tokens.g.push(gates.draw(&mut random));
            tokens.beta.push(gates.beta(&mut random));
        }
        tokens
    }
}

/// The plain recurrence, in single or double precision.
macro_rules! recurrence {
    ($name:ident, $float:ty) => {
        /// Advances `state` (`[dk][dv]`) over the tokens of `range`; returns the outputs.
        fn $name(tokens: &Tokens, range: std::ops::Range<usize>, state: &mut [$float]) -> Vec<$float> {
            let (dk, dv) = (tokens.dk, tokens.dv);
            let mut outputs = Vec::new();
            for t in range {
                let k = &tokens.k[t * dk..][..dk];
                let q = &tokens.q[t * dk..][..dk];
                let alpha = (tokens.g[t] as $float).exp();
                for v in 0..dv {
                    let mut m = 0.0;
                    for i in 0..dk {
                        state[i * dv + v] *= alpha;
                        m += state[i * dv + v] * k[i] as $float;
                    }
                    let delta = tokens.beta[t] as $float * (tokens.v[t * dv + v] as $float - m);
                    let mut o = 0.0;
                    for i in 0..dk {
                        state[i * dv + v] += k[i] as $float * delta;
                        o += state[i * dv + v] * q[i] as $float;
                    }
                    outputs.push(o);
                }
            }
            outputs
        }
    };
}

recurrence!(recurrence_f64, f64);
recurrence!(recurrence_f32, f32);

/// A state in one of the types it can be kept in.
#[derive(Clone, Debug, PartialEq)]
enum Kept {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Kept {
    fn shared(&self) -> State<'_> {
        match self {
            Kept::F32(values) => State::F32(values),
            Kept::Bf16(values) => State::Bf16(values),
        }
    }

    fn exclusive(&mut self) -> StateMut<'_> {
        match self {
            Kept::F32(values) => StateMut::F32(values),
            Kept::Bf16(values) => StateMut::Bf16(values),
        }
    }

    fn dead(len: usize, sixteen_bits: bool) -> Kept {
        if sixteen_bits { Kept::Bf16(vec![bf16::NAN; len]) } else { Kept::F32(vec![f32::NAN; len]) }
    }
}

/// A value head under the kernels: state tiles and log. Everything beyond the log is NaN.
struct Head {
    kernels: &'static LinearKernels,
    state: Option<Kept>,
    sixteen_bits: bool,
    keys: Vec<f32>,
    deltas: Vec<f32>,
    g: Vec<f32>,
    n: usize,
    dk: usize,
    dv: usize,
}

const CAPACITY: usize = 120;
/// Deltas of another head share the rows.
const PADDING: usize = 3;

impl Head {
    fn new(kernels: &'static LinearKernels, dk: usize, dv: usize) -> Head {
        Head::kept(kernels, dk, dv, false)
    }

    fn kept(kernels: &'static LinearKernels, dk: usize, dv: usize, sixteen_bits: bool) -> Head {
        assert!(dv.is_multiple_of(LANES));
        Head {
            kernels,
            state: None,
            sixteen_bits,
            keys: vec![f32::NAN; CAPACITY * dk],
            deltas: vec![f32::NAN; CAPACITY * (dv + PADDING)],
            g: vec![f32::NAN; CAPACITY],
            n: 0,
            dk,
            dv,
        }
    }

    /// Outputs of a window; its rows become committed.
    fn window(&mut self, tokens: &Tokens, range: std::ops::Range<usize>) -> Vec<f32> {
        let (dk, dv, rows, entries) = (self.dk, self.dv, range.len(), self.n + range.len());
        let rows_of = |x: &[f32], width: usize| x[range.start * width..range.end * width].to_vec();
        let (k, q) = (rows_of(&tokens.k, dk), rows_of(&tokens.q, dk));
        self.keys[self.n * dk..entries * dk].copy_from_slice(&k);
        self.g[self.n..entries].copy_from_slice(&tokens.g[range.clone()]);

        let mut kk = vec![f32::NAN; rows * entries];
        let mut kq = kk.clone();
        self.kernels.key_scores(&self.keys[..entries * dk], &q, dk, &mut kk, &mut kq);
        let mut panel = vec![f32::NAN; panel_len(rows, dk)];
        self.kernels.pack_window(&k, &q, dk, &mut panel);
        let mut base = vec![f32::NAN; rows];
        let mut coefficients = vec![f32::NAN; panel_len(rows, entries)];
        self.kernels.head_coefficients(&self.g[..entries], &kk, &kq, &mut base, &mut coefficients);
        let mut out = vec![f32::NAN; rows * dv];
        self.kernels.window_tile(WindowTile {
            state: self.state.as_ref().map(Kept::shared),
            dk,
            keys: &panel,
            coefficients: &coefficients,
            base: &base,
            beta: &tokens.beta[range.clone()],
            values: &tokens.v[range.start * dv..],
            value_stride: dv,
            deltas: OutTile::new(&mut self.deltas, dv + PADDING, entries, dv),
            out: OutTile::new(&mut out, dv, rows, dv),
            ahead: Lookahead { state: [Ahead::NONE, Ahead::of(&tokens.v)], ..Lookahead::NONE },
        });
        self.n = entries;
        out
    }

    /// Folds the first `count` entries and moves the others to the front.
    fn fold(&mut self, count: usize) {
        let (dk, dv) = (self.dk, self.dv);
        let mut weights = vec![f32::NAN; count];
        let base = self.kernels.fold_weights(&self.g[..count], &mut weights);
        let (source, mut state) = match self.state.take() {
            None => (FoldSource::Zero, Kept::dead(dk * dv, self.sixteen_bits)),
            Some(state) => (FoldSource::InPlace, state),
        };
        self.kernels.fold_tile(FoldTile {
            source,
            destination: state.exclusive(),
            dk,
            keys: &self.keys,
            base: FoldBase::Head(base),
            weights: &weights,
            deltas: &self.deltas,
            delta_stride: dv + PADDING,
            ahead: Lookahead { log: [Ahead::after(&self.g, 1 << 40), Ahead::NONE], ..Lookahead::NONE },
        });
        self.state = Some(state);
        let stride = dv + PADDING;
        self.keys.copy_within(count * dk.., 0);
        self.deltas.copy_within(count * stride.., 0);
        self.g.copy_within(count.., 0);
        self.n -= count;
    }

    /// Forgets entries from `n` on and poisons them.
    fn truncate(&mut self, n: usize) {
        self.n = n;
        self.keys[n * self.dk..].fill(f32::NAN);
        self.deltas[n * (self.dv + PADDING)..].fill(f32::NAN);
        self.g[n..].fill(f32::NAN);
    }

    /// The state as `[dk][dv]`.
    fn plain_state(&self) -> Vec<f32> {
        self.state.as_ref().unwrap().shared().to_f32()
    }
}

fn tables() -> Vec<&'static LinearKernels> {
    Isa::available().into_iter().map(|isa| LinearKernels::for_isa(isa).unwrap()).collect()
}

fn best() -> &'static LinearKernels {
    LinearKernels::for_isa(Isa::detect()).unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Largest difference relative to the largest value.
fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-3_f64, |max, x| max.max(x.abs()));
    got.iter().zip(want).fold(0.0, |max, (&got, &want)| {
        assert!(got.is_finite());
        f64::max(max, (got as f64 - want).abs() / scale)
    })
}

fn any_gates() -> impl Strategy<Value = Gates> {
    prop_oneof![Just(Gates::Ordinary), Just(Gates::Slow), Just(Gates::Wild)]
}

fn any_dk() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), Just(5), Just(8), Just(16), Just(24), Just(32), Just(96), Just(128)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Splits, folds and truncations of every kind against the recurrence in double precision.
    #[test]
    fn any_schedule_follows_the_recurrence(
        seed: u64,
        gates in any_gates(),
        dk in any_dk(),
        tiles in 1_usize..6,
        steps in proptest::collection::vec((1_usize..65, 0_usize..3, 0.0..1.0_f64), 1..7),
    ) {
        let total: usize = steps.iter().map(|step| step.0).sum();
        let tokens = Tokens::random(seed, total, dk, tiles * LANES, gates);
        let mut head = Head::new(best(), dk, tiles * LANES);
        let mut state = vec![0.0; dk * tiles * LANES];
        let (mut position, mut folded) = (0, 0);
        for (rows, kind, share) in steps {
            if head.n + rows > 100 {
                recurrence_f64(&tokens, folded..folded + head.n, &mut state);
                folded += head.n;
                head.fold(head.n);
            }
            let mut reached = state.clone();
            recurrence_f64(&tokens, folded..position, &mut reached);
            let got = head.window(&tokens, position..position + rows);
            let want = recurrence_f64(&tokens, position..position + rows, &mut reached);
            prop_assert!(error(&got, &want) < 2e-6, "output {}", error(&got, &want));
            // Keep all, or accept a part of the window, or fold a part of the log.
            match kind {
                0 => position += rows,
                1 => {
                    let accepted = (share * rows as f64) as usize;
                    head.truncate(head.n - rows + accepted);
                    position += accepted;
                }
                _ => {
                    position += rows;
                    let count = (share * (head.n + 1) as f64) as usize;
                    recurrence_f64(&tokens, folded..folded + count, &mut state);
                    folded += count;
                    head.fold(count);
                    head.truncate(head.n);
                }
            }
        }
        head.fold(head.n);
        recurrence_f64(&tokens, folded..position, &mut state);
        prop_assert!(error(&head.plain_state(), &state) < 2e-6, "state {}", error(&head.plain_state(), &state));
    }

    /// One window has the bits of single steps and of any other division, under every instruction set.
    #[test]
    fn windows_have_the_bits_of_single_steps_on_every_instruction_set(
        seed: u64,
        gates in any_gates(),
        dk in any_dk(),
        tiles in 1_usize..6,
        (log, rows, split) in (0_usize..41, 1_usize..65).prop_flat_map(|(n, t)| (Just(n), Just(t), 0..t)),
        zero: bool,
        sixteen_bits: bool,
    ) {
        let tokens = Tokens::random(seed, 20 + log + rows, dk, tiles * LANES, gates);
        let start = |kernels| {
            let mut head = Head::kept(kernels, dk, tiles * LANES, sixteen_bits);
            if !zero {
                head.window(&tokens, 0..20);
                head.fold(20);
                head.truncate(0);
            }
            if log > 0 {
                head.window(&tokens, 20..20 + log);
            }
            head
        };
        let scalar = LinearKernels::for_isa(Isa::Scalar).unwrap();
        let mut head = start(scalar);
        let want: Vec<f32> = (20 + log..20 + log + rows).flat_map(|t| head.window(&tokens, t..t + 1)).collect();
        head.fold(log + rows / 2);
        let (want, state) = (bits(&want), bits(&head.plain_state()));
        for kernels in tables() {
            let mut whole = start(kernels);
            let got = whole.window(&tokens, 20 + log..20 + log + rows);
            prop_assert_eq!(bits(&got), &want[..]);
            whole.fold(log + rows / 2);
            prop_assert_eq!(bits(&whole.plain_state()), &state[..]);

            let mut parts = start(kernels);
            let mut got = Vec::new();
            if split > 0 {
                got.extend(parts.window(&tokens, 20 + log..20 + log + split));
            }
            got.extend(parts.window(&tokens, 20 + log + split..20 + log + rows));
            prop_assert_eq!(bits(&got), &want[..]);
        }
    }

    /// Doubling the values doubles outputs and state, bit for bit.
    #[test]
    fn outputs_are_linear_in_the_values(seed: u64, dk in any_dk(), rows in 1_usize..65) {
        let tokens = Tokens::random(seed, rows, dk, 32, Gates::Ordinary);
        let mut doubled = tokens.clone();
        doubled.v.iter_mut().for_each(|v| *v *= 2.0);
        let (mut a, mut b) = (Head::new(best(), dk, 32), Head::new(best(), dk, 32));
        let out: Vec<f32> = a.window(&tokens, 0..rows).iter().map(|o| o * 2.0).collect();
        prop_assert_eq!(bits(&out), bits(&b.window(&doubled, 0..rows)));
        a.fold(rows);
        b.fold(rows);
        let state: Vec<f32> = a.plain_state().iter().map(|x| x * 2.0).collect();
        prop_assert_eq!(bits(&state), bits(&b.plain_state()));
    }
}

#[test]
fn a_token_without_write_or_decay_leaves_the_state() {
    let mut tokens = Tokens::random(1, 30, 32, 32, Gates::Ordinary);
    let mut head = Head::new(best(), 32, 32);
    head.window(&tokens, 0..20);
    head.fold(20);
    let before = head.plain_state();
    for t in 20..30 {
        tokens.beta[t] = 0.0;
        tokens.g[t] = 0.0;
    }
    head.window(&tokens, 20..30);
    head.fold(10);
    assert_eq!(before, head.plain_state());
}

#[test]
fn folding_nothing_changes_no_bit_and_folding_elsewhere_equals_folding_in_place() {
    for sixteen_bits in [false, true] {
        folding_nothing_and_elsewhere(sixteen_bits);
    }
}

fn folding_nothing_and_elsewhere(sixteen_bits: bool) {
    let tokens = Tokens::random(2, 30, 24, 48, Gates::Ordinary);
    let mut head = Head::kept(best(), 24, 48, sixteen_bits);
    head.window(&tokens, 0..20);
    head.fold(20);
    let before = head.state.clone().unwrap();
    head.fold(0);
    assert_eq!(before, *head.state.as_ref().unwrap());

    head.window(&tokens, 20..30);
    let mut weights = vec![0.0; 10];
    let base = best().fold_weights(&head.g[..10], &mut weights);
    let mut copy = Kept::dead(24 * 48, sixteen_bits);
    best().fold_tile(FoldTile {
        source: FoldSource::From(before.shared()),
        destination: copy.exclusive(),
        dk: 24,
        keys: &head.keys,
        base: FoldBase::Head(base),
        weights: &weights,
        deltas: &head.deltas,
        delta_stride: 48 + PADDING,
        ahead: Lookahead::NONE,
    });
    head.fold(10);
    assert_eq!(copy, head.state.unwrap());
}

/// The nearest `bf16`, the even one of two: `half` is the oracle.
#[test]
fn states_of_16_bits_are_rounded_to_nearest_even_on_every_instruction_set() {
    let mut random = Random(3);
    let mut values: Vec<f32> =
        (0..4096).map(|_| f32::from_bits((random.unit() * 4294967296.0) as u32)).collect();
    values.extend([
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
    ]);
    // Halfway between two neighbours, and next to it; and what is no normal number.
    values.extend(
        [0x3f80_8000, 0x3f81_8000, 0x3f80_7fff, 0x3f80_8001, 0x0000_8000, 0x0001_8000, 0x7f7f_ffff]
            .map(f32::from_bits),
    );
    values.resize(values.len().next_multiple_of(LANES), 1.0);
    let expected: Vec<u16> = values.iter().map(|value| bf16::from_f32(value + 0.0).to_bits()).collect();
    for kernels in tables() {
        let mut state = vec![bf16::ONE; values.len()];
        kernels.fold_tile(FoldTile {
            source: FoldSource::Zero,
            destination: StateMut::Bf16(&mut state),
            dk: 1,
            keys: &[1.0],
            base: FoldBase::Head(1.0),
            weights: &[1.0],
            deltas: &values,
            delta_stride: values.len(),
            ahead: Lookahead::NONE,
        });
        for (i, (got, want)) in state.iter().zip(&expected).enumerate() {
            let both_nan = got.is_nan() && bf16::from_bits(*want).is_nan();
            assert!(both_nan || got.to_bits() == *want, "{:e} became {got}", values[i]);
        }
    }
}

#[test]
fn a_full_write_of_a_unit_key_is_read_back() {
    let mut tokens = Tokens::random(3, 12, 128, 16, Gates::Ordinary);
    tokens.beta[11] = 1.0;
    tokens.q[11 * 128..].copy_from_slice(&tokens.k[11 * 128..]);
    let mut head = Head::new(best(), 128, 16);
    let out = head.window(&tokens, 0..12);
    let value: Vec<f64> = tokens.v[11 * 16..].iter().map(|&v| v as f64).collect();
    assert!(error(&out[11 * 16..], &value) < 2e-6);
}

#[test]
fn total_forgetting_equals_a_fresh_start() {
    let mut tokens = Tokens::random(4, 20, 32, 16, Gates::Ordinary);
    tokens.g[10] = f32::NEG_INFINITY;
    let mut used = Head::new(best(), 32, 16);
    used.window(&tokens, 0..5);
    used.fold(5);
    used.window(&tokens, 5..10);
    let mut fresh = Head::new(best(), 32, 16);
    assert_eq!(used.window(&tokens, 10..20), fresh.window(&tokens, 10..20));
}

/// A state of 16 bits is rounded once a fold: the longer the log, the less it drifts, and no further in 100,000 tokens
/// than in the first few thousand. `--nocapture` prints the figures.
#[test]
fn states_of_16_bits_drift_less_the_longer_the_log_and_not_without_end() {
    let (dk, dv, count) = (32, 16, 100_000);
    for gates in [Gates::Ordinary, Gates::Slow, Gates::Collinear, Gates::Reflecting] {
        let tokens = Tokens::random(6, count, dk, dv, gates);
        // The largest error of the state at 4,000, 8,000 and so on.
        let every = 4000;
        let mut exact = vec![vec![0.0_f64; dk * dv]];
        for start in (0..count).step_by(every) {
            let mut state = exact.last().unwrap().clone();
            recurrence_f64(&tokens, start..start + every, &mut state);
            exact.push(state);
        }
        let drift = |interval: usize, sixteen_bits: bool| {
            let mut head = Head::kept(best(), dk, dv, sixteen_bits);
            let mut errors = Vec::new();
            for t in 0..count {
                head.window(&tokens, t..t + 1);
                if head.n >= interval {
                    head.fold(head.n);
                }
                if (t + 1) % every == 0 {
                    assert_eq!(head.n, 0, "the interval divides the stretch");
                    errors.push(error(&head.plain_state(), &exact[(t + 1) / every]));
                }
            }
            let early = errors[..5].iter().copied().fold(0.0, f64::max);
            (early, errors.into_iter().fold(0.0, f64::max))
        };
        let (single, each, buffered) = (drift(16, false), drift(1, true), drift(16, true));
        println!("{gates:?}: f32 {single:?}, bf16 rounded at each token {each:?}, once in 16 {buffered:?}");
        assert!(single.1 < 1e-5, "{gates:?}: {single:?}");
        assert!(buffered.1 < 2e-2, "{gates:?}: {buffered:?}");
        assert!(buffered.1 < each.1, "{gates:?}: {buffered:?} once in 16 tokens, {each:?} at each");
        assert!(buffered.1 < 2.0 * buffered.0, "{gates:?}: {buffered:?} grows");
    }
}

/// 4096 tokens, folded every 16 and in chunks of 64, drift no more than the plain recurrence in single precision.
#[test]
fn drift_stays_with_the_plain_recurrence() {
    let (dk, dv, count) = (64, 16, 4096);
    for gates in [Gates::Ordinary, Gates::Slow, Gates::Collinear, Gates::Reflecting] {
        let tokens = Tokens::random(5, count, dk, dv, gates);
        let mut exact = vec![0.0_f64; dk * dv];
        let mut plain = vec![0.0_f32; dk * dv];
        recurrence_f64(&tokens, 0..count, &mut exact);
        recurrence_f32(&tokens, 0..count, &mut plain);
        let allowed = 3.0 * error(&plain, &exact);
        for (rows, every) in [(1, 16), (4, 16), (64, 64)] {
            let mut head = Head::new(best(), dk, dv);
            for start in (0..count).step_by(rows) {
                head.window(&tokens, start..start + rows);
                if head.n >= every {
                    head.fold(head.n);
                }
            }
            let drift = error(&head.plain_state(), &exact);
            assert!(drift <= allowed, "{gates:?} {rows}: {drift} against {allowed}");
        }
    }
}
