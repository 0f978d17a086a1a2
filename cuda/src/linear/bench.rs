//! Time of one linear layer on a GPU: the plain recurrence, buffered decoding over whole fold cycles, and verification
//! of draft windows, each as CUDA graphs over states that no cache holds. For measurements.

use std::sync::Arc;

use millpond::state::{Cursor, FoldPolicy, PassKind, PassPlan, Step};
use millpond_models::LinearSpec;

use super::abi::{RecurrenceArgs, Shape, argument_bytes};
use super::{
    Activation, Batch, BatchSequence, LinearError, LinearInputs, LinearLayer, LinearOptions,
    LinearWeightsView, Workspace,
};
use crate::device::{Device, DeviceError, Launch, Memory};
use crate::driver::Driver;

const DIM: usize = 128;
/// Replays whose median counts.
const REPLAYS: usize = 15;
/// Most rows of a window.
const MAX_WINDOW: usize = 8;

/// What is timed, with the bytes it cannot do without.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Of one layer, in the mean over a cycle of folds.
    pub microseconds: f64,
    /// Of one layer in the slowest pass of the cycle.
    pub slowest: f64,
    /// Read at least.
    pub read: f64,
    /// Written at least.
    pub written: f64,
}

impl Timing {
    /// Read and written.
    pub fn bytes(&self) -> f64 {
        self.read + self.written
    }
}

/// A layer's shape and the GPU it is measured on.
pub struct LinearBench {
    driver: Arc<Driver>,
    device: Arc<dyn Device>,
    spec: LinearSpec,
}

impl LinearBench {
    /// Measures layers of `spec`, whose keys and values must be 128 wide, on a GPU.
    ///
    /// # Errors
    /// [`LinearError::Unsupported`] for other widths.
    pub fn new(driver: Arc<Driver>, spec: LinearSpec) -> Result<LinearBench, LinearError> {
        if (spec.key_dim, spec.value_dim) != (DIM, DIM) {
            return Err(LinearError::Unsupported("measuring a layer whose heads are not 128 wide"));
        }
        Ok(LinearBench { device: driver.clone(), driver, spec })
    }

    fn state_bytes(&self) -> f64 {
        self.spec.state_bytes() as f64
    }

    /// Bytes of a log entry: 16-bit key and its scale, delta, gate.
    fn entry_bytes(&self) -> f64 {
        (self.spec.key_heads * (DIM * 2 + 4) + self.spec.value_heads * (DIM * 4 + 4)) as f64
    }

    /// Bytes of a row's queries, values, outputs and beta.
    fn row_bytes(&self) -> f64 {
        (self.spec.key_heads * (DIM * 2 + 4) + self.spec.value_heads * (DIM * 4 + 4)) as f64
    }

    /// Bytes that a buffered pass of one sequence reads and writes at least.
    fn plan_bytes(&self, plan: &PassPlan) -> (f64, f64) {
        let state = |there: bool| if there { self.state_bytes() } else { 0.0 };
        let (log, rows) = (plan.log as f64, plan.rows as f64);
        let read = state(plan.has_base) + (log + rows) * self.entry_bytes() + rows * self.row_bytes();
        (read, state(plan.durably_folded() > 0) + rows * self.entry_bytes())
    }

    /// Median microseconds per launch of a graph of `count` launches.
    fn graph(
        &self,
        count: usize,
        work: impl FnOnce() -> Result<(), LinearError>,
    ) -> Result<f64, LinearError> {
        let graph = self.driver.capture(work)?;
        for _ in 0..3 {
            graph.launch()?;
        }
        self.driver.synchronize()?;
        let mut times = Vec::new();
        for _ in 0..REPLAYS {
            times.push(self.driver.time(|| graph.launch())?);
        }
        times.sort_by(f32::total_cmp);
        Ok(times[REPLAYS / 2] as f64 * 1e3 / count as f64)
    }

    /// Layers enough that their states outgrow every cache; at least two, as in a model.
    pub fn layers(&self, batch: usize) -> usize {
        (240e6 / (self.state_bytes() * batch as f64)).ceil().clamp(2.0, 120.0) as usize
    }

    /// The plain recurrence over `rows` tokens. With snapshots: the state after every token besides, and a copy of the
    /// accepted one back, as verification without a log needs.
    fn recurrence(
        &self,
        batch: usize,
        rows: usize,
        block: usize,
        snapshots: bool,
        overlaps: bool,
    ) -> Result<Timing, LinearError> {
        let (h, hv) = (self.spec.key_heads, self.spec.value_heads);
        let layers = self.layers(batch);
        let device = &self.device;
        let state = self.spec.state_bytes() * batch;
        let bases = (0..layers)
            .map(|seed| Memory::of(device, &noise(seed, state / 4, 0.1)))
            .collect::<Result<Vec<_>, _>>()?;
        let saved = Memory::filled(device, if snapshots { state * rows } else { 0 }, 0)?;
        let tokens = batch * rows;
        let keys = Memory::of(device, &bf16(&noise(1, tokens * h * DIM, 1.0)))?;
        let queries = Memory::of(device, &bf16(&noise(2, tokens * h * DIM, 1.0)))?;
        let values = Memory::of(device, &bf16(&noise(3, tokens * hv * DIM, 1.0)))?;
        let gates = Memory::of(device, &vec![-0.05_f32; tokens * hv])?;
        let beta = Memory::of(device, &vec![0.5_f32; tokens * hv])?;
        let out = Memory::filled(device, tokens * hv * DIM * 2, 0)?;
        let name = format!("linear_recurrence_bf16_k128_v{block}");
        let launch = Launch {
            kernel: &name,
            grid: [(DIM / block) as u32, hv as u32, batch as u32],
            threads: 128,
            shared_bytes: 0,
            overlaps,
        };
        let microseconds = self.graph(layers, || {
            for base in &bases {
                let args = RecurrenceArgs {
                    base: base.address(),
                    snapshots: if snapshots { saved.address() } else { 0 },
                    keys: keys.address(),
                    queries: queries.address(),
                    values: values.address(),
                    gates: gates.address(),
                    beta: beta.address(),
                    out: out.address(),
                    shape: Shape::new(&self.spec, 1),
                    value_dim: DIM as i32,
                    rows: rows as i32,
                    store: !snapshots as i32,
                    scale: (DIM as f32).sqrt().recip(),
                };
                // SAFETY: every operand was allocated above for this shape.
                unsafe { self.driver.launch(&launch, argument_bytes(&args))? };
                if snapshots {
                    // SAFETY: the snapshots hold at least one state of every sequence.
                    unsafe { self.driver.copy(saved.address(), base.address(), state)? };
                }
            }
            Ok(())
        })?;
        let io = tokens * (2 * h * DIM * 2 + 2 * hv * DIM * 2 + 2 * hv * 4);
        // Snapshots: the state is read, one is written for each row, and the accepted one is copied back.
        let (read, written) = if snapshots { (2, rows + 1) } else { (1, 1) };
        Ok(Timing {
            microseconds,
            slowest: microseconds,
            read: (read * state + io) as f64,
            written: (written * state) as f64,
        })
    }

    /// The recurrence, one token of each of `batch` sequences: the best of its forms.
    ///
    /// # Errors
    /// No room on the device, or a lost device.
    pub fn best_recurrence(&self, batch: usize) -> Result<Timing, LinearError> {
        let forms = [(64, false), (32, false), (64, true), (32, true)];
        best(forms.map(|(block, overlap)| self.recurrence(batch, 1, block, false, overlap)))
    }

    /// Verification of windows of `rows` rows by a state after each of them and a copy of the accepted one.
    ///
    /// # Errors
    /// As for [`LinearBench::best_recurrence`].
    pub fn by_snapshots(&self, batch: usize, rows: usize) -> Result<Timing, LinearError> {
        self.recurrence(batch, rows, 64, true, false)
    }

    /// Buffered windows of `rows` rows, `accepted(round, sequence)` of which are accepted, over a whole cycle of folds every `interval`
    /// tokens: the best of the forms.
    ///
    /// # Errors
    /// As for [`LinearBench::best_recurrence`], and for logs that are too long.
    pub fn best_buffered(
        &self,
        batch: usize,
        rows: usize,
        accepted: &dyn Fn(usize, usize) -> usize,
        interval: usize,
    ) -> Result<Timing, LinearError> {
        let plans = self.plans(batch, rows, accepted, interval);
        best([0, 1_000_000].map(|processors| self.buffered(batch, &plans, processors, true, false)))
    }

    /// Convolution, gates, decode step and gated norm together.
    ///
    /// # Errors
    /// As for [`LinearBench::best_buffered`].
    pub fn whole_mixer(&self, batch: usize, interval: usize) -> Result<Timing, LinearError> {
        let plans = self.plans(batch, 1, &|_, _| 1, interval);
        self.buffered(batch, &plans, self.driver.processors(), true, true)
    }

    /// Plans of as many passes as tokens lie between folds, with windows of `rows` rows of which `accepted(round,
    /// sequence)` are accepted, for sequences whose folds are spread: cursors advance, so whole fold cycles are timed.
    fn plans(
        &self,
        batch: usize,
        rows: usize,
        accepted: &dyn Fn(usize, usize) -> usize,
        interval: usize,
    ) -> Vec<Vec<PassPlan>> {
        let mut cursors: Vec<Cursor> = (0..batch)
            .map(|sequence| {
                let phase = sequence % interval;
                Cursor::new(FoldPolicy { interval, phase, stateless: 0, window: MAX_WINDOW })
            })
            .collect();
        let mut advance = |round: usize| -> Vec<PassPlan> {
            let cursors = cursors.iter_mut().enumerate();
            cursors
                .map(|(sequence, cursor)| {
                    let plan = cursor.plan(rows, PassKind::Window);
                    cursor.advance(&plan);
                    // Never more than were just appended.
                    cursor.commit(accepted(round, sequence).min(rows)).expect("accepted rows are pending");
                    plan
                })
                .collect()
        };
        let warm = 4 * interval.max(8);
        (0..warm + interval).map(&mut advance).skip(warm).collect()
    }

    /// Buffered passes over many layers.
    fn buffered(
        &self,
        batch: usize,
        plans: &[Vec<PassPlan>],
        processors: usize,
        overlap: bool,
        whole: bool,
    ) -> Result<Timing, LinearError> {
        let spec = &self.spec;
        let layers = self.layers(batch);
        let options = LinearOptions {
            activation: Activation::Bf16,
            slots: batch,
            log_capacity: log_room(plans),
            max_window: MAX_WINDOW,
            processors,
            overlap,
        };
        let conv = noise(1, spec.conv_channels() * spec.conv_width, 0.5);
        let (bias, a) = (vec![0.0; spec.value_heads], vec![-0.05; spec.value_heads]);
        let norm = vec![1.0; spec.value_dim];
        let weights = LinearWeightsView { conv: &conv, dt_bias: &bias, a: &a, norm: &norm };
        let mut stack = (0..layers)
            .map(|_| LinearLayer::new(&self.device, spec, options, weights))
            .collect::<Result<Vec<_>, _>>()?;
        let batches = plans
            .iter()
            .map(|plans| {
                let sequences: Vec<_> =
                    plans.iter().enumerate().map(|(slot, plan)| BatchSequence { slot, plan }).collect();
                Batch::new(&self.device, spec, &options, &sequences)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let rows = batches[0].rows();
        let qkv = Memory::of(&self.device, &bf16(&noise(5, rows * spec.conv_channels(), 1.0)))?;
        let gate = Memory::of(&self.device, &bf16(&noise(6, rows * spec.value_heads * DIM, 1.0)))?;
        let beta = Memory::of(&self.device, &noise(7, rows * spec.value_heads, 1.0))?;
        let alpha = Memory::of(&self.device, &noise(8, rows * spec.value_heads, 1.0))?;
        let mut out = Memory::filled(&self.device, stack[0].output_bytes(rows), 0)?;
        let mut normed = Memory::filled(&self.device, stack[0].output_bytes(rows), 0)?;
        let mut workspace = Workspace::default();
        let inputs = LinearInputs { qkv: &qkv, beta: &beta, alpha: &alpha };
        // Real sequences: from empty ones to where the timed plans begin.
        self.fill(&mut stack, &options, plans, batch, &mut workspace)?;
        let mut passes = |batches: &[Batch]| {
            self.graph(batches.len() * layers, || {
                for batch in batches {
                    for layer in &mut stack {
                        if whole {
                            layer.forward(batch, &mut workspace, inputs, &mut out)?;
                            layer.gated_norm(rows, &out, &gate, 1e-6, &mut normed)?;
                        } else {
                            layer.step(batch, &mut workspace, &mut out)?;
                        }
                    }
                }
                Ok(())
            })
        };
        let microseconds = passes(&batches)?;
        let mut slowest = 0.0_f64;
        for batch in batches.chunks(1) {
            slowest = slowest.max(passes(batch)?);
        }
        let (mut read, mut written) = (0.0, 0.0);
        for (r, w) in plans.iter().flatten().map(|plan| self.plan_bytes(plan)) {
            read += r;
            written += w;
        }
        let count = plans.len() as f64;
        Ok(Timing { microseconds, slowest, read: read / count, written: written / count })
    }

    /// Gives every sequence of every layer a base and a full log, by a pass over 32 tokens with a fold.
    fn fill(
        &self,
        stack: &mut [LinearLayer],
        options: &LinearOptions,
        plans: &[Vec<PassPlan>],
        batch: usize,
        workspace: &mut Workspace,
    ) -> Result<(), LinearError> {
        let spec = &self.spec;
        let rows = options.log_capacity;
        let qkv = Memory::of(&self.device, &bf16(&noise(9, batch * rows * spec.conv_channels(), 1.0)))?;
        let beta = Memory::of(&self.device, &noise(10, batch * rows * spec.value_heads, 1.0))?;
        let alpha = Memory::of(&self.device, &noise(11, batch * rows * spec.value_heads, 1.0))?;
        let inputs = LinearInputs { qkv: &qkv, beta: &beta, alpha: &alpha };
        let filled: Vec<PassPlan> = plans[0]
            .iter()
            .map(|plan| PassPlan {
                start: (plan.start / rows) * rows,
                rows,
                log: 0,
                has_base: false,
                steps: vec![Step::Window { rows }, Step::Fold { entries: rows, durable: true }],
                kind: PassKind::Prefill,
            })
            .collect();
        let sequences: Vec<_> =
            filled.iter().enumerate().map(|(slot, plan)| BatchSequence { slot, plan }).collect();
        let first = Batch::new(&self.device, spec, options, &sequences)?;
        let mut out = Memory::filled(&self.device, stack[0].output_bytes(first.rows()), 0)?;
        for layer in stack {
            layer.forward(&first, workspace, inputs, &mut out)?;
        }
        self.driver.synchronize()?;
        Ok(())
    }
}

/// Entries that the longest log of some plans has, with its window.
fn log_room(plans: &[Vec<PassPlan>]) -> usize {
    plans.iter().flatten().map(|plan| plan.log + plan.rows).max().unwrap_or(1).next_power_of_two()
}

fn best(timings: impl IntoIterator<Item = Result<Timing, LinearError>>) -> Result<Timing, LinearError> {
    let mut best: Option<Timing> = None;
    for timing in timings {
        let timing = timing?;
        if best.is_none_or(|best| timing.microseconds < best.microseconds) {
            best = Some(timing);
        }
    }
    best.ok_or(LinearError::Unsupported("measuring nothing"))
}

fn noise(seed: usize, len: usize, scale: f32) -> Vec<f32> {
    let mut state = (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0) * scale
        })
        .collect()
}

fn bf16(values: &[f32]) -> Vec<half::bf16> {
    values.iter().map(|&x| half::bf16::from_f32(x)).collect()
}

/// Bytes read and written per second by a copy within the device.
///
/// # Errors
/// No room on the device, or a lost device.
pub fn copy_rate(driver: &Arc<Driver>) -> Result<f64, DeviceError> {
    const BYTES: usize = 1 << 30;
    let device: Arc<dyn Device> = driver.clone();
    let (from, mut to) = (Memory::filled(&device, BYTES, 1)?, Memory::filled(&device, BYTES, 2)?);
    let mut times = Vec::new();
    for _ in 0..9 {
        times.push(driver.time(|| to.copy_from(0, &from, 0, BYTES))?);
    }
    times.sort_by(f32::total_cmp);
    Ok(2.0 * BYTES as f64 / (times[4] as f64 * 1e-3))
}
