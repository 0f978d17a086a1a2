//! One linear layer and the sequences in it.

use std::sync::Arc;

use millpond_models::{Decay, LinearSpec, Write};

use super::LinearError;
use super::abi::{GatedNormArgs, PrepareArgs, Shape, StepArgs, argument_bytes};
use super::batch::{Batch, Round};
use super::kernels::{Activation, MAX_ENTRIES, STEP_THREADS, padded};
use crate::device::{Device, Launch, Memory};

/// Taps of the widest convolution the kernels know.
const MAX_TAPS: usize = 8;

/// Heads that a block of the convolution or of the norm computes: one per warp.
const HEADS_PER_BLOCK: usize = 4;

/// How a layer's memory is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearOptions {
    /// Type of activations and of logged keys.
    pub activation: Activation,
    /// Sequences there is memory for.
    pub slots: usize,
    /// Entries of a log ring; rounded up to a power of two, at most [`MAX_ENTRIES`]. A fold interval and two windows
    /// are enough for decoding; a pass over a prompt needs 64 more than the longest log.
    pub log_capacity: usize,
    /// Most rows of a window that may be rolled back.
    pub max_window: usize,
    /// Multiprocessors to keep busy.
    pub processors: usize,
    /// Whether a kernel may start while the one before it ends: the gated delta rule loads its state and its log then.
    pub overlap: bool,
}

/// The small weights of a linear layer, in single precision.
#[derive(Clone, Copy, Debug)]
pub struct LinearWeightsView<'a> {
    /// `[channels][width]`, oldest tap first.
    pub conv: &'a [f32],
    /// `[value_heads]`, added before the softplus.
    pub dt_bias: &'a [f32],
    /// `[value_heads]`, `-exp(A_log)`.
    pub a: &'a [f32],
    /// `[value_dim]`, of the gated norm.
    pub norm: &'a [f32],
}

/// What the projections of a pass yield.
#[derive(Clone, Copy, Debug)]
pub struct LinearInputs<'a> {
    /// `[rows][channels]` activations before the convolution.
    pub qkv: &'a Memory,
    /// `[rows][value_heads]` floats before the sigmoid.
    pub beta: &'a Memory,
    /// `[rows][value_heads]` floats before bias and softplus.
    pub alpha: &'a Memory,
}

/// Values between the kernels of a layer, reused from layer to layer.
#[derive(Default)]
pub struct Workspace {
    queries: Option<Memory>,
    query_scale: Option<Memory>,
    values: Option<Memory>,
    beta: Option<Memory>,
}

/// Addresses of the workspace's parts.
struct Rows {
    queries: u64,
    query_scale: u64,
    values: u64,
    beta: u64,
}

impl Workspace {
    /// Where its parts stand; they move when a pass has more rows than any before.
    pub fn addresses(&self) -> [u64; 4] {
        [&self.queries, &self.query_scale, &self.values, &self.beta]
            .map(|memory| memory.as_ref().map_or(0, Memory::address))
    }

    /// Room for `rows` rows of a layer.
    fn rows(&mut self, layer: &LinearLayer, rows: usize) -> Result<Rows, LinearError> {
        let (device, activation) = (&layer.device, layer.options.activation.bytes());
        let keys = rows * layer.spec.key_heads;
        let values = rows * layer.spec.value_heads;
        Ok(Rows {
            queries: grown(device, &mut self.queries, keys * layer.key_dim * activation)?,
            query_scale: grown(device, &mut self.query_scale, keys * 4)?,
            values: grown(device, &mut self.values, layer.output_bytes(rows))?,
            beta: grown(device, &mut self.beta, values * 4)?,
        })
    }
}

/// One linear layer with the state of every sequence in it.
pub struct LinearLayer {
    pub(super) device: Arc<dyn Device>,
    spec: LinearSpec,
    pub(super) options: LinearOptions,
    key_dim: usize,
    value_dim: usize,
    conv_rows: usize,
    beta_max: f32,
    pub(super) base: Memory,
    pub(super) key_log: Memory,
    pub(super) key_scale: Memory,
    pub(super) delta_log: Memory,
    pub(super) gate_log: Memory,
    pub(super) conv_ring: Memory,
    conv_weights: Memory,
    decay_bias: Memory,
    decay_rate: Memory,
    norm: Memory,
}

pub(super) fn ring_capacity(options: &LinearOptions) -> usize {
    options.log_capacity.clamp(1, MAX_ENTRIES).next_power_of_two()
}

/// The address of room for at least `bytes`; the content may be lost.
fn grown(device: &Arc<dyn Device>, memory: &mut Option<Memory>, bytes: usize) -> Result<u64, LinearError> {
    if let Some(memory) = memory
        && memory.bytes() >= bytes
    {
        return Ok(memory.address());
    }
    // Freed first, so that the old and the new need not fit side by side.
    *memory = None;
    let fresh = Memory::new(device, bytes.next_power_of_two())?;
    let address = fresh.address();
    *memory = Some(fresh);
    Ok(address)
}

fn check(what: &'static str, memory: &Memory, expected: usize) -> Result<(), LinearError> {
    if memory.bytes() < expected {
        return Err(LinearError::Length { what, found: memory.bytes(), expected });
    }
    Ok(())
}

impl LinearLayer {
    /// A layer without sequences.
    ///
    /// # Errors
    /// [`LinearError`] for shapes the kernels do not know, weights of the wrong length, and when there is no room.
    pub fn new(
        device: &Arc<dyn Device>,
        spec: &LinearSpec,
        options: LinearOptions,
        weights: LinearWeightsView<'_>,
    ) -> Result<LinearLayer, LinearError> {
        let (key_dim, value_dim) = padded(spec.key_dim, spec.value_dim)?;
        let Write::Delta { beta_max } = spec.write;
        if spec.decay != Decay::PerHead {
            return Err(LinearError::Unsupported("a decay per key channel"));
        }
        if !(1..=MAX_TAPS).contains(&spec.conv_width) {
            return Err(LinearError::Unsupported("a convolution of more than 8 taps"));
        }
        // Lanes of wide heads take four channels at a time.
        if key_dim > 32 && !(spec.key_dim.is_multiple_of(4) && spec.value_dim.is_multiple_of(4)) {
            return Err(LinearError::Unsupported("a head that is not a multiple of 4 wide"));
        }
        let expect = |what: &'static str, values: &[f32], len: usize| {
            let (found, expected) = (values.len() * 4, len * 4);
            if found == expected { Ok(()) } else { Err(LinearError::Length { what, found, expected }) }
        };
        let channels = spec.conv_channels();
        expect("the convolution", weights.conv, channels * spec.conv_width)?;
        expect("dt_bias", weights.dt_bias, spec.value_heads)?;
        expect("A", weights.a, spec.value_heads)?;
        expect("the norm", weights.norm, spec.value_dim)?;
        let (slots, capacity) = (options.slots, ring_capacity(&options));
        let conv_rows = (spec.conv_width - 1 + options.max_window).next_power_of_two();
        let activation = options.activation.bytes();
        let keys = slots * spec.key_heads * capacity;
        let values = slots * spec.value_heads * capacity;
        let fresh = |bytes: usize| Memory::new(device, bytes);
        Ok(LinearLayer {
            base: fresh(slots * spec.value_heads * value_dim * key_dim * 4)?,
            key_log: fresh(keys * key_dim * activation)?,
            key_scale: fresh(keys * 4)?,
            delta_log: fresh(values * value_dim * 4)?,
            gate_log: fresh(values * 4)?,
            conv_ring: fresh(slots * conv_rows * channels * activation)?,
            conv_weights: Memory::of(device, weights.conv)?,
            decay_bias: Memory::of(device, weights.dt_bias)?,
            decay_rate: Memory::of(device, weights.a)?,
            norm: Memory::of(device, weights.norm)?,
            device: device.clone(),
            spec: spec.clone(),
            options,
            key_dim,
            value_dim,
            conv_rows,
            beta_max,
        })
    }

    /// Bytes of the output of `rows` rows: `[rows][value_heads][padded value_dim]` activations.
    pub fn output_bytes(&self, rows: usize) -> usize {
        rows * self.spec.value_heads * self.value_dim * self.options.activation.bytes()
    }

    /// Width of a value head in the output.
    pub fn padded_value_dim(&self) -> usize {
        self.value_dim
    }

    /// Bytes of state and logs.
    pub fn state_bytes(&self) -> usize {
        let parts =
            [&self.base, &self.key_log, &self.key_scale, &self.delta_log, &self.gate_log, &self.conv_ring];
        parts.iter().map(|memory| memory.bytes()).sum()
    }

    /// The mixer.
    pub fn spec(&self) -> &LinearSpec {
        &self.spec
    }

    /// How the layer's memory is set up.
    pub fn options(&self) -> &LinearOptions {
        &self.options
    }

    /// Entries of a log ring.
    pub fn log_capacity(&self) -> usize {
        ring_capacity(&self.options)
    }

    /// Rows of a convolution ring.
    pub fn conv_rows(&self) -> usize {
        self.conv_rows
    }

    /// Padded widths of keys and values.
    pub fn widths(&self) -> (usize, usize) {
        (self.key_dim, self.value_dim)
    }

    /// Runs a batch: convolution, gates, and the gated delta rule over base and log. `out` receives what the state
    /// returns, before the gated norm.
    ///
    /// # Errors
    /// [`LinearError::Length`] for operands that are too short, before anything has run, and what the device says.
    pub fn forward(
        &mut self,
        batch: &Batch,
        workspace: &mut Workspace,
        inputs: LinearInputs<'_>,
        out: &mut Memory,
    ) -> Result<(), LinearError> {
        let rows = batch.rows;
        let (activation, gates) = (self.options.activation.bytes(), rows * self.spec.value_heads * 4);
        check("the input of the convolution", inputs.qkv, rows * self.spec.conv_channels() * activation)?;
        check("beta", inputs.beta, gates)?;
        check("alpha", inputs.alpha, gates)?;
        check("the output", out, self.output_bytes(rows))?;
        let rows = workspace.rows(self, rows)?;
        for round in &batch.rounds {
            self.launch_prepare(round, &inputs, &rows)?;
            self.launch_step(round, &rows, out)?;
        }
        Ok(())
    }

    /// Only the gated delta rule, on the rows that the last [`LinearLayer::forward`] with this workspace left, or any
    /// others: for measurements.
    ///
    /// # Errors
    /// As for [`LinearLayer::forward`].
    pub fn step(
        &mut self,
        batch: &Batch,
        workspace: &mut Workspace,
        out: &mut Memory,
    ) -> Result<(), LinearError> {
        check("the output", out, self.output_bytes(batch.rows))?;
        let rows = workspace.rows(self, batch.rows)?;
        batch.rounds.iter().try_for_each(|round| self.launch_step(round, &rows, out))
    }

    fn shape(&self) -> Shape {
        Shape::new(&self.spec, ring_capacity(&self.options))
    }

    fn launch_prepare(
        &self,
        round: &Round,
        inputs: &LinearInputs<'_>,
        rows: &Rows,
    ) -> Result<(), LinearError> {
        let spec = &self.spec;
        let args = PrepareArgs {
            plans: round.plans,
            inputs: inputs.qkv.address(),
            beta_inputs: inputs.beta.address(),
            alpha_inputs: inputs.alpha.address(),
            conv_ring: self.conv_ring.address(),
            conv_weights: self.conv_weights.address(),
            decay_bias: self.decay_bias.address(),
            decay_rate: self.decay_rate.address(),
            key_log: self.key_log.address(),
            key_scale: self.key_scale.address(),
            gate_log: self.gate_log.address(),
            queries: rows.queries,
            query_scale: rows.query_scale,
            values: rows.values,
            beta: rows.beta,
            shape: self.shape(),
            key_dim: spec.key_dim as i32,
            value_dim: spec.value_dim as i32,
            padded_value_dim: self.value_dim as i32,
            conv_width: spec.conv_width as i32,
            conv_rows: self.conv_rows as i32,
            beta_max: self.beta_max,
            query_factor: (spec.key_dim as f32).sqrt().recip(),
            unused: 0,
        };
        let name = format!("linear_prepare_{}_k{}", self.options.activation.name(), self.key_dim);
        let heads = 2 * spec.key_heads + spec.value_heads;
        let launch = Launch {
            kernel: &name,
            grid: [heads.div_ceil(HEADS_PER_BLOCK) as u32, 1, round.sequences as u32],
            threads: 32 * HEADS_PER_BLOCK as u32,
            shared_bytes: 0,
            overlaps: self.options.overlap,
        };
        // SAFETY: the batch was checked against the slots of its options, `forward` checked the lengths of the
        // operands, and every other address is memory that was sized for these options and rows.
        unsafe { self.device.launch(&launch, argument_bytes(&args))? };
        Ok(())
    }

    fn launch_step(&self, round: &Round, rows: &Rows, out: &Memory) -> Result<(), LinearError> {
        let args = StepArgs {
            plans: round.plans,
            base: self.base.address(),
            key_log: self.key_log.address(),
            key_scale: self.key_scale.address(),
            delta_log: self.delta_log.address(),
            gate_log: self.gate_log.address(),
            queries: rows.queries,
            query_scale: rows.query_scale,
            values: rows.values,
            beta: rows.beta,
            out: out.address(),
            shape: self.shape(),
            value_dim: self.value_dim as i32,
            unused: 0,
        };
        let (kernel, activation) = (&round.kernel, self.options.activation);
        let blocks = self.value_dim / kernel.block_values;
        let launch = Launch {
            kernel: &kernel.name(activation),
            grid: [blocks as u32, self.spec.value_heads as u32, round.sequences as u32],
            threads: STEP_THREADS,
            shared_bytes: kernel.shared_bytes(activation) as u32,
            // Before it waits it reads plans, base and older log entries, which only earlier passes write.
            overlaps: self.options.overlap,
        };
        // SAFETY: as for the launch of the convolution.
        unsafe { self.device.launch(&launch, argument_bytes(&args))? };
        Ok(())
    }

    /// `out = norm(x) * weight * silu(gate)` over every head of `rows` rows: `x` as `forward` leaves it, `gate` and
    /// `out` `[rows][value_heads][value_dim]`.
    ///
    /// # Errors
    /// [`LinearError::Length`] for operands that are too short, and what the device says.
    pub fn gated_norm(
        &self,
        rows: usize,
        x: &Memory,
        gate: &Memory,
        eps: f32,
        out: &mut Memory,
    ) -> Result<(), LinearError> {
        let activation = self.options.activation;
        let vectors = rows * self.spec.value_heads;
        let bytes = vectors * self.spec.value_dim * activation.bytes();
        check("the input of the norm", x, self.output_bytes(rows))?;
        check("the gate", gate, bytes)?;
        check("the output", out, bytes)?;
        let args = GatedNormArgs {
            x: x.address(),
            gate: gate.address(),
            weight: self.norm.address(),
            out: out.address(),
            vectors: vectors as i32,
            dim: self.spec.value_dim as i32,
            padded_dim: self.value_dim as i32,
            eps,
        };
        let name = format!("gated_norm_{}", activation.name());
        let launch = Launch {
            kernel: &name,
            grid: [vectors.div_ceil(HEADS_PER_BLOCK) as u32, 1, 1],
            threads: 32 * HEADS_PER_BLOCK as u32,
            shared_bytes: 0,
            overlaps: self.options.overlap,
        };
        // SAFETY: the lengths were checked above.
        unsafe { self.device.launch(&launch, argument_bytes(&args))? };
        Ok(())
    }

    /// The base state of a slot, `[value_heads][padded value_dim][padded key_dim]`: for tests and session files.
    ///
    /// # Errors
    /// [`LinearError::Slot`], and what the device says.
    pub fn base(&self, slot: usize) -> Result<Vec<f32>, LinearError> {
        if slot >= self.options.slots {
            return Err(LinearError::Slot(slot));
        }
        let mut base = vec![0.0; self.spec.value_heads * self.value_dim * self.key_dim];
        self.base.read(slot * base.len() * 4, &mut base)?;
        Ok(base)
    }
}
