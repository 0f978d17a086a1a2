//! Time of one linear layer on a GPU: the plain recurrence, buffered decoding over whole fold cycles, and verification
//! of draft windows, each as CUDA graphs over states that no cache holds.
//!
//! Usage: `bench_linear [--batches 1,4,16,64,256] [--heads 32] [--key-heads 16] [--interval 16] [--quick]`

use std::collections::VecDeque;
use std::sync::Arc;

use millpond::state::{Cursor, FoldPolicy, PassKind, PassPlan, Step};
use millpond_cuda::device::Launch;
use millpond_cuda::driver::Driver;
use millpond_cuda::linear::abi::{RecurrenceArgs, Shape, argument_bytes};
use millpond_cuda::linear::{
    Activation, Batch, BatchSequence, LinearError, LinearInputs, LinearLayer, LinearOptions,
    LinearWeightsView, Workspace,
};
use millpond_cuda::{Device, DeviceError, Memory};
use millpond_models::{Decay, HeadMap, LinearSpec, Write};

const DIM: usize = 128;
/// Replays whose median counts.
const REPLAYS: usize = 15;

struct Options {
    batches: Vec<usize>,
    heads: usize,
    key_heads: usize,
    interval: usize,
    quick: bool,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { batches: vec![1, 4, 16, 64, 256], heads: 32, key_heads: 16, interval: 16, quick: false };
    let mut arguments: VecDeque<String> = std::env::args().skip(1).collect();
    while let Some(name) = arguments.pop_front() {
        if name == "--quick" {
            options.quick = true;
            continue;
        }
        let value = arguments.pop_front().ok_or(format!("{name} needs a value"))?;
        let number = |value: &str| value.parse::<usize>().map_err(|error| format!("{name} {value}: {error}"));
        match name.as_str() {
            "--batches" => options.batches = value.split(',').map(number).collect::<Result<_, _>>()?,
            "--heads" => options.heads = number(&value)?,
            "--key-heads" => options.key_heads = number(&value)?,
            "--interval" => options.interval = number(&value)?,
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(options)
}

/// What is timed, with the bytes it cannot do without.
struct Timing {
    microseconds: f64,
    bytes: f64,
}

struct Bench {
    driver: Arc<Driver>,
    device: Arc<dyn Device>,
    spec: LinearSpec,
    interval: usize,
    /// Bytes per second of a copy within the device, read and written.
    copy_rate: f64,
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

impl Bench {
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

    /// Bytes that a buffered pass moves at least.
    fn plan_bytes(&self, plan: &PassPlan) -> f64 {
        let fold = plan.durably_folded() > 0;
        let base = plan.has_base as usize + fold as usize;
        let log = (plan.log + 2 * plan.rows) as f64;
        base as f64 * self.state_bytes() + log * self.entry_bytes() + plan.rows as f64 * self.row_bytes()
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
    fn layers(&self, batch: usize) -> usize {
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
        let states = if snapshots { 3 + rows } else { 2 };
        Ok(Timing { microseconds, bytes: (states * state + io) as f64 })
    }

    /// Plans of `passes` passes with windows of `rows` rows of which `accepted` are accepted, for sequences whose
    /// phases are `phase(sequence)`: cursors advance, so whole fold cycles are timed.
    fn plans(
        &self,
        batch: usize,
        rows: usize,
        accepted: usize,
        passes: usize,
        phase: impl Fn(usize) -> usize,
    ) -> Vec<Vec<PassPlan>> {
        let mut cursors: Vec<Cursor> = (0..batch)
            .map(|sequence| {
                let phase = phase(sequence) % self.interval;
                Cursor::new(FoldPolicy { interval: self.interval, phase, stateless: 0, window: 8 })
            })
            .collect();
        let mut advance = || -> Vec<PassPlan> {
            cursors
                .iter_mut()
                .map(|cursor| {
                    let plan = cursor.plan(rows, PassKind::Window);
                    cursor.advance(&plan);
                    // Never more than were just appended.
                    cursor.commit(accepted).expect("accepted rows are pending");
                    plan
                })
                .collect()
        };
        for _ in 0..4 * self.interval {
            advance();
        }
        (0..passes).map(|_| advance()).collect()
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
            log_capacity: 2 * self.interval,
            max_window: 8,
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
        let microseconds = self.graph(plans.len() * layers, || {
            for batch in &batches {
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
        })?;
        let bytes: f64 = plans.iter().flatten().map(|plan| self.plan_bytes(plan)).sum();
        Ok(Timing { microseconds, bytes: bytes / plans.len() as f64 })
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

    fn report(&self, batch: usize, what: &str, timing: Result<Timing, LinearError>) -> Option<f64> {
        match timing {
            Ok(Timing { microseconds, bytes }) => {
                let rate = bytes / microseconds / 1e3;
                println!(
                    "{batch:4}  {what:34} {microseconds:9.2} us {:9.1} MB {rate:7.0} GB/s {:5.1}% of copy, bound {:7.2} us",
                    bytes / 1e6,
                    100.0 * rate * 1e9 / self.copy_rate,
                    bytes / self.copy_rate * 1e6,
                );
                Some(microseconds)
            }
            Err(error) => {
                println!("{batch:4}  {what:34} {error}");
                None
            }
        }
    }

    fn run(&self, batch: usize, quick: bool) {
        let best = |times: Vec<Option<f64>>| times.into_iter().flatten().fold(f64::INFINITY, f64::min);
        let recurrences = [(64, false), (32, false), (64, true), (32, true)]
            .map(|(block, overlaps)| {
                let name = format!("recurrence {block}{}", if overlaps { " overlapped" } else { "" });
                self.report(batch, &name, self.recurrence(batch, 1, block, false, overlaps))
            })
            .to_vec();
        let recurrence = best(recurrences);
        let staggered = |rows: usize, accepted: usize| {
            self.plans(batch, rows, accepted, self.interval, |sequence| sequence)
        };
        let decode = staggered(1, 1);
        let mut decodes = Vec::new();
        for (block, processors) in [(64, 0), (32, 1_000_000)] {
            for overlap in [false, true] {
                let name = format!("buffered {block}{}", if overlap { " overlapped" } else { "" });
                decodes.push(self.report(
                    batch,
                    &name,
                    self.buffered(batch, &decode, processors, overlap, false),
                ));
            }
            if !quick {
                let cycle = self.plans(batch, 1, 1, self.interval, |_| 0);
                let folding = |plan: &PassPlan| plan.durably_folded() > 0;
                let (folds, others): (Vec<_>, Vec<_>) =
                    cycle.into_iter().partition(|plans| folding(&plans[0]));
                for (what, plans) in [("fold", folds), ("mid-cycle", others[7..9].to_vec())] {
                    let name = format!("buffered {block} {what} only");
                    self.report(batch, &name, self.buffered(batch, &plans, processors, true, false));
                }
            }
        }
        let buffered = best(decodes);
        println!(
            "{batch:4}  reduction against the recurrence: {:.1}%",
            100.0 * (1.0 - buffered / recurrence)
        );
        self.report(batch, "conv + gates + decode + norm", self.buffered(batch, &decode, 132, true, true));
        for (rows, accepted) in [(2, 1), (4, 3), (8, 5)] {
            let plans = staggered(rows, accepted);
            for (block, processors) in [(64, 0), (32, 1_000_000)] {
                let name = format!("verify {rows}, {accepted} accepted, {block}");
                self.report(batch, &name, self.buffered(batch, &plans, processors, true, false));
            }
        }
        let rows = 4;
        let name = format!("verify {rows}, snapshots and commit");
        self.report(batch, &name, self.recurrence(batch, rows, 64, true, false));
    }
}

/// Bytes read and written per second by a copy within the device.
fn copy_rate(driver: &Arc<Driver>, device: &Arc<dyn Device>) -> Result<f64, DeviceError> {
    const BYTES: usize = 4 << 30;
    let (from, to) = (Memory::filled(device, BYTES, 1)?, Memory::filled(device, BYTES, 2)?);
    let mut times = Vec::new();
    for _ in 0..9 {
        // SAFETY: both blocks have this many bytes.
        times.push(driver.time(|| unsafe { driver.copy(from.address(), to.address(), BYTES) })?);
    }
    times.sort_by(f32::total_cmp);
    Ok(2.0 * BYTES as f64 / (times[4] as f64 * 1e-3))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = options()?;
    let driver = Driver::new(0)?;
    let device: Arc<dyn Device> = driver.clone();
    println!("{}, {} processors", driver.describe(), driver.processors());
    let copy_rate = copy_rate(&driver, &device)?;
    println!("copy within the device: {:.0} GB/s read and written", copy_rate / 1e9);
    let spec = LinearSpec {
        key_heads: options.key_heads,
        value_heads: options.heads,
        key_dim: DIM,
        value_dim: DIM,
        conv_width: 4,
        decay: Decay::PerHead,
        write: Write::Delta { beta_max: 1.0 },
        head_map: HeadMap::Grouped,
    };
    let (before, _) = device.memory_info()?;
    let bench = Bench { driver, device: device.clone(), spec, interval: options.interval, copy_rate };
    for batch in options.batches {
        bench.run(batch, options.quick);
    }
    let (after, _) = device.memory_info()?;
    println!("memory not given back: {} bytes", before.saturating_sub(after));
    Ok(())
}
