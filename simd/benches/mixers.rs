//! Rates of the delta-rule, attention and vector kernels beside the machine's ceilings.
//!
//! `cargo bench -p millpond-simd --bench mixers -- [isa] [vector] [linear] [attention]`. Every line is the best of several runs.

use std::hint::black_box;
use std::time::Instant;

use half::f16;
use millpond_simd::attention::{AttendPage, KvBlock, Partials};
use millpond_simd::linear::{
    Ahead, FoldBase, FoldSource, FoldTile, LinearKernels, Lookahead, State, StateMut, WindowTile, panel_len,
};
use millpond_simd::matmul::OutTile;
use millpond_simd::{Isa, Kernels, LANES};

const DK: usize = 128;
const DV: usize = 128;
const REPEATS: usize = 15;

/// Best time of several runs, in seconds.
fn best(mut run: impl FnMut()) -> f64 {
    (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// Runs `work(thread)` on `threads` threads.
fn on_threads(threads: usize, work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for thread in 1..threads {
            let work = &work;
            scope.spawn(move || work(thread));
        }
        work(0);
    });
}

fn filled(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 1000.0 - 0.5).collect()
}

/// Reads all of the memory once.
fn read(memory: &[f32], threads: usize) {
    let share = memory.len() / threads;
    on_threads(threads, |thread| {
        let mut sums = [0_u32; 64];
        for group in memory[thread * share..][..share].as_chunks::<64>().0 {
            for (sum, x) in sums.iter_mut().zip(group) {
                *sum = sum.wrapping_add(x.to_bits());
            }
        }
        black_box(sums);
    });
}

/// Runs `work`, which reads `bytes`, in turn with plain reading; prints both best rates and the median of the
/// ratios of neighbouring runs.
fn against_reading(name: &str, memory: &[f32], threads: usize, bytes: usize, mut work: impl FnMut()) {
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    let runs: Vec<(f64, f64)> = (0..REPEATS)
        .map(|_| {
            let reading = (memory.len() * 4) as f64 / time(&mut || read(memory, threads)) / 1e9;
            (bytes as f64 / time(&mut work) / 1e9, reading)
        })
        .collect();
    let most = |rate: fn(&(f64, f64)) -> f64| runs.iter().map(rate).fold(0.0, f64::max);
    let mut ratios: Vec<f64> = runs.iter().map(|(rate, reading)| rate / reading).collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "{name}, {threads} threads: {:.1} GB/s, reading {:.1}, median ratio {:.2}",
        most(|run| run.0),
        most(|run| run.1),
        ratios[REPEATS / 2]
    );
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_adds(rounds: usize) {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(1e-9)), _mm512_set1_ps(black_box(0.5)));
    let mut sums = [_mm512_set1_ps(1.0); 12];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, b, a);
        }
    }
    black_box(sums);
}

/// GFLOP/s of fused multiply-adds on one thread.
fn multiply_add_peak() -> f64 {
    let rounds = 200_000;
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512.is_available() {
        // SAFETY: AVX-512 was detected.
        let seconds = best(|| unsafe { multiply_adds(rounds) });
        return (rounds * 12 * LANES * 2) as f64 / seconds / 1e9;
    }
    black_box(rounds);
    f64::NAN
}

/// Everything a window of one value head needs but its state.
struct Window {
    rows: usize,
    entries: usize,
    keys: Vec<f32>,
    queries: Vec<f32>,
    values: Vec<f32>,
    g: Vec<f32>,
    beta: Vec<f32>,
    kk: Vec<f32>,
    kq: Vec<f32>,
    panel: Vec<f32>,
    coefficients: Vec<f32>,
    base: Vec<f32>,
    deltas: Vec<f32>,
    out: Vec<f32>,
}

impl Window {
    fn new(log: usize, rows: usize) -> Window {
        let entries = log + rows;
        Window {
            rows,
            entries,
            keys: filled(entries * DK),
            queries: filled(rows * DK),
            values: filled(rows * DV),
            g: vec![-0.1; entries],
            beta: vec![0.5; rows],
            kk: vec![0.0; rows * entries],
            kq: vec![0.0; rows * entries],
            panel: vec![0.0; panel_len(rows, DK)],
            coefficients: vec![0.0; panel_len(rows, entries)],
            base: vec![0.0; rows],
            deltas: filled(entries * DV),
            out: vec![0.0; rows * DV],
        }
    }

    fn scores(&mut self, k: &LinearKernels) {
        k.key_scores(&self.keys, &self.queries, DK, &mut self.kk, &mut self.kq);
    }

    fn pack(&mut self, k: &LinearKernels) {
        k.pack_window(&self.keys[(self.entries - self.rows) * DK..], &self.queries, DK, &mut self.panel);
    }

    fn coefficients(&mut self, k: &LinearKernels) {
        k.head_coefficients(&self.g, &self.kk, &self.kq, &mut self.base, &mut self.coefficients);
    }

    fn solve(&mut self, k: &LinearKernels, state: &[f32]) {
        k.window_tile(WindowTile {
            state: Some(State::F32(state)),
            dk: DK,
            keys: &self.panel,
            coefficients: &self.coefficients,
            base: &self.base,
            beta: &self.beta,
            values: &self.values,
            value_stride: DV,
            deltas: OutTile::new(&mut self.deltas, DV, self.entries, DV),
            out: OutTile::new(&mut self.out, DV, self.rows, DV),
            ahead: Lookahead { state: [Ahead::after(state, state.len()), Ahead::NONE], ..Lookahead::NONE },
        });
    }

    fn fold(&self, k: &LinearKernels, state: &mut [f32]) {
        k.fold_tile(FoldTile {
            source: FoldSource::InPlace,
            destination: StateMut::F32(state),
            dk: DK,
            keys: &self.keys,
            base: FoldBase::Head(0.9),
            weights: &self.g,
            deltas: &self.deltas,
            delta_stride: DV,
            ahead: Lookahead::NONE,
        });
    }
}

fn linear(kernels: &Kernels, memory: &mut [f32], peak: f64) {
    let k = kernels.linear;
    for threads in [1, 2] {
        for rows in [1, 2, 4] {
            let memory = &*memory;
            let (heads, _) = memory.as_chunks::<{ DK * DV }>();
            let share = heads.len() / threads;
            let name = format!("window of {rows} after 8 entries, states from memory");
            against_reading(&name, memory, threads, share * threads * DK * DV * 4, || {
                on_threads(threads, |thread| {
                    let mut window = Window::new(8, rows);
                    for head in &heads[thread * share..][..share] {
                        window.scores(k);
                        window.pack(k);
                        window.coefficients(k);
                        window.solve(k, head);
                    }
                    black_box(&window.out);
                });
            });
        }
    }
    let rounds = 50;
    let flops = |pairs: usize| (pairs * 2) as f64;
    let report = |name: &str, pairs: usize, seconds: f64| {
        let rate = flops(pairs) / (seconds / rounds as f64) / 1e9;
        println!(
            "{name}: {:.1} us, {rate:.0} GFLOP/s, {:.0} % of {peak:.0}",
            seconds / rounds as f64 * 1e6,
            100.0 * rate / peak
        );
    };
    for (log, rows) in [(0, 64), (8, 1), (8, 4), (16, 16)] {
        let mut window = Window::new(log, rows);
        let entries = window.entries;
        let pairs = rows * (2 * log + rows + 1) / 2;
        println!("-- {rows} rows after {log} entries, one head of {DK} x {DV}, cached");
        let seconds = best(|| (0..rounds).for_each(|_| window.scores(k)));
        report("  key_scores", 2 * pairs * DK, seconds);
        let seconds = best(|| (0..rounds).for_each(|_| window.pack(k)));
        println!("  pack_window: {:.1} us", seconds / rounds as f64 * 1e6);
        let seconds = best(|| (0..rounds).for_each(|_| window.coefficients(k)));
        println!("  head_coefficients: {:.1} us", seconds / rounds as f64 * 1e6);
        let state = &mut memory[..DK * DV];
        let seconds = best(|| (0..rounds).for_each(|_| window.solve(k, state)));
        report("  window_tile", 2 * rows * DK * DV + 2 * pairs * DV, seconds);
        window.deltas.fill(1e-3);
        let seconds = best(|| (0..rounds).for_each(|_| window.fold(k, state)));
        report("  fold_tile", entries * DK * DV, seconds);
        state.fill(0.1);
    }
}

fn attention(kernels: &Kernels, memory: &[f32], peak: f64) {
    const DIM: usize = 256;
    const PAGE: usize = 64;
    const CONTEXT: usize = 16384;
    let k = kernels.attention;
    let halves: Vec<f16> = memory.iter().map(|&x| f16::from_f32(x)).collect();
    let (pages, _) = halves.as_chunks::<{ PAGE * DIM }>();
    let spans = pages.len() / (2 * CONTEXT / PAGE);
    for threads in [1, 2] {
        // Each span is the keys and values of one key/value head; a thread takes every other one.
        let name = format!("attention of 4 rows, f16, context {CONTEXT}");
        against_reading(&name, memory, threads, spans * 2 * CONTEXT * DIM * 2, || {
            on_threads(threads, |thread| {
                let queries = filled(4 * DIM);
                let mut partials = Partials::new();
                let mut out = [0.0; DIM];
                for span in pages.chunks_exact(2 * CONTEXT / PAGE).skip(thread).step_by(threads) {
                    let (keys, values) = span.split_at(CONTEXT / PAGE);
                    partials.reset(4, DIM);
                    for (index, (page_keys, values)) in keys.iter().zip(values).enumerate() {
                        let next_keys = keys.get(index + 1).map(|keys| KvBlock::F16(keys));
                        let (keys, values) = (KvBlock::F16(page_keys), KvBlock::F16(values));
                        let page = AttendPage {
                            queries: &queries,
                            head_dim: DIM,
                            keys,
                            values,
                            visible: &[PAGE; 4],
                            next_keys,
                        };
                        k.attend_page(page, &mut partials);
                    }
                    k.finish_row(&partials, 0, &mut out);
                }
                black_box(out);
            });
        });
    }
    let rows = 256;
    let queries = filled(rows * DIM);
    let mut partials = Partials::new();
    for (name, half) in [("f16", true), ("f32", false)] {
        let seconds = best(|| {
            partials.reset(rows, DIM);
            for page in 0..16 {
                let (keys, values) = if half {
                    (KvBlock::F16(&pages[2 * page]), KvBlock::F16(&pages[2 * page + 1]))
                } else {
                    let at = |index: usize| KvBlock::F32(&memory[index * PAGE * DIM..][..PAGE * DIM]);
                    (at(2 * page), at(2 * page + 1))
                };
                let page = AttendPage {
                    queries: &queries,
                    head_dim: DIM,
                    keys,
                    values,
                    visible: &[PAGE; 256],
                    next_keys: None,
                };
                k.attend_page(page, &mut partials);
            }
        });
        let rate = (16 * PAGE * rows * DIM * 4) as f64 / seconds / 1e9;
        println!(
            "attention prefill, {rows} rows, {name}: {rate:.0} GFLOP/s, {:.0} % of {peak:.0}",
            100.0 * rate / peak
        );
    }
}

fn vector(kernels: &Kernels) {
    let k = kernels.vector;
    let source = filled(4096);
    let (mut x, mut out) = (source.clone(), source.clone());
    let inputs = [&source[..]; 4];
    let weight = filled(4 * 4096);
    let rounds = 500;
    let mut report = |name: &str, run: &mut dyn FnMut(&mut [f32], &mut [f32])| {
        let seconds = best(|| (0..rounds).for_each(|_| run(&mut x, &mut out)));
        println!("{name} of 4096: {:.2} us", seconds / rounds as f64 * 1e6);
        x.copy_from_slice(&source);
    };
    report("exp", &mut |x, _| k.exp(x));
    report("silu_mul", &mut |x, out| k.silu_mul(x, &source, out));
    report("softplus", &mut |x, _| k.softplus(x));
    report("softmax", &mut |x, _| k.softmax(x));
    report("rms_norm", &mut |x, out| k.rms_norm(x, &source, 1e-6, out));
    report("conv_silu, 4 taps", &mut |_, out| k.conv_silu(&inputs, &weight, out));
    report("argmax", &mut |x, _| {
        black_box(k.argmax(x));
    });
}

fn main() {
    let isa =
        std::env::args().skip(1).find_map(|argument| argument.parse::<Isa>().ok()).unwrap_or(Isa::detect());
    let kernels = Kernels::for_isa(isa).expect("the processor has the instruction set");
    let mut memory = filled(1 << 27);
    let peak = multiply_add_peak();
    println!("{isa}; multiply-add peak {peak:.0} GFLOP/s per thread");
    let wanted = |part: &str| {
        let parts = ["vector", "linear", "attention"];
        let named = |part: &str| std::env::args().any(|argument| argument == part);
        named(part) || !parts.into_iter().any(named)
    };
    if wanted("vector") {
        vector(kernels);
    }
    if wanted("linear") {
        linear(kernels, &mut memory, peak);
    }
    if wanted("attention") {
        attention(kernels, &memory, peak);
    }
}
