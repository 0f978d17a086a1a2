//! The structures kernels and host share; `kernels/linear.cuh` holds their other half, and what they mean.

use std::mem::{offset_of, size_of};

use millpond::state::Step;
use millpond_models::{HeadMap, LinearSpec};

/// Most windows and folds of one launch.
pub const MAX_STEPS: usize = 29;

/// What one sequence does in one launch.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequencePlan {
    /// Base state and convolution ring.
    pub slot: i32,
    /// Log.
    pub ring: i32,
    /// First row in the batch.
    pub first_row: i32,
    /// Absolute position of the first row.
    pub start: u32,
    /// Log entries before the launch.
    pub log: u16,
    /// Rows.
    pub rows: u16,
    /// Whether there is a base before the launch.
    pub has_base: u8,
    /// Windows and folds.
    pub step_count: u8,
    /// Kind in the two top bits, rows or entries below.
    pub steps: [u16; MAX_STEPS],
}

const _: () = assert!(size_of::<SequencePlan>() == 80 && offset_of!(SequencePlan, steps) == 22);
const _: () = assert!(align_of::<SequencePlan>() == 4);

// SAFETY: whole numbers without padding, as the assertion on the size shows.
unsafe impl crate::device::Plain for SequencePlan {}

/// A step as kernels read it.
pub fn encode(step: Step) -> u16 {
    match step {
        Step::Window { rows } => rows as u16,
        Step::Fold { entries, durable: false } => 1 << 14 | entries as u16,
        Step::Fold { entries, durable: true } => 2 << 14 | entries as u16,
    }
}

/// Heads and logs of a layer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    key_heads: i32,
    value_heads: i32,
    capacity: i32,
    tiled: i32,
    divisor: i32,
    padding: i32,
    inverse: u64,
}

impl Shape {
    /// The shape of a mixer whose logs have `capacity` entries, a power of two.
    pub fn new(spec: &LinearSpec, capacity: usize) -> Shape {
        let (tiled, divisor) = match spec.head_map {
            HeadMap::Tiled => (1, spec.key_heads),
            HeadMap::Grouped => (0, spec.value_heads / spec.key_heads),
        };
        Shape {
            key_heads: spec.key_heads as i32,
            value_heads: spec.value_heads as i32,
            capacity: capacity as i32,
            tiled,
            divisor: divisor as i32,
            padding: 0,
            inverse: (1_u64 << 32).div_ceil(divisor.max(1) as u64),
        }
    }
}

/// Arguments of the convolution and the gates.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PrepareArgs {
    /// `[sequences]` [`SequencePlan`].
    pub plans: u64,
    /// `[rows][channels]`.
    pub inputs: u64,
    /// `[rows][value_heads]`.
    pub beta_inputs: u64,
    /// `[rows][value_heads]`.
    pub alpha_inputs: u64,
    /// `[slots][conv_rows][channels]`.
    pub conv_ring: u64,
    /// `[channels][width]`.
    pub conv_weights: u64,
    /// `[value_heads]`.
    pub decay_bias: u64,
    /// `[value_heads]`.
    pub decay_rate: u64,
    /// `[rings][key_heads][capacity][padded key_dim]`.
    pub key_log: u64,
    /// `[rings][key_heads][capacity]`.
    pub key_scale: u64,
    /// `[rings][value_heads][capacity]`.
    pub gate_log: u64,
    /// `[rows][key_heads][padded key_dim]`.
    pub queries: u64,
    /// `[rows][key_heads]`.
    pub query_scale: u64,
    /// `[rows][value_heads][padded value_dim]`.
    pub values: u64,
    /// `[rows][value_heads]`.
    pub beta: u64,
    /// Heads and logs.
    pub shape: Shape,
    /// Of the model.
    pub key_dim: i32,
    /// Of the model.
    pub value_dim: i32,
    /// Of the kernels.
    pub padded_value_dim: i32,
    /// Taps.
    pub conv_width: i32,
    /// Rows of a ring.
    pub conv_rows: i32,
    /// Largest write strength.
    pub beta_max: f32,
    /// `1 / sqrt(key_dim)`.
    pub query_factor: f32,
    /// Up to a round size.
    pub unused: i32,
}

/// Arguments of the gated delta rule.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StepArgs {
    /// `[sequences]` [`SequencePlan`].
    pub plans: u64,
    /// `[slots][value_heads][padded value_dim][padded key_dim]`.
    pub base: u64,
    /// As in [`PrepareArgs`].
    pub key_log: u64,
    /// As in [`PrepareArgs`].
    pub key_scale: u64,
    /// `[rings][value_heads][capacity][padded value_dim]`.
    pub delta_log: u64,
    /// As in [`PrepareArgs`].
    pub gate_log: u64,
    /// As in [`PrepareArgs`].
    pub queries: u64,
    /// As in [`PrepareArgs`].
    pub query_scale: u64,
    /// As in [`PrepareArgs`].
    pub values: u64,
    /// As in [`PrepareArgs`].
    pub beta: u64,
    /// As the values.
    pub out: u64,
    /// Heads and logs.
    pub shape: Shape,
    /// Padded.
    pub value_dim: i32,
    /// Up to a round size.
    pub unused: i32,
}

/// Arguments of the gated norm.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GatedNormArgs {
    /// `[vectors][padded_dim]`.
    pub x: u64,
    /// `[vectors][dim]`.
    pub gate: u64,
    /// `[dim]`.
    pub weight: u64,
    /// `[vectors][dim]`.
    pub out: u64,
    /// Heads of all rows.
    pub vectors: i32,
    /// Width of a head.
    pub dim: i32,
    /// Width of a head in `x`.
    pub padded_dim: i32,
    /// Inside the square root.
    pub eps: f32,
}

/// Arguments of the plain recurrence.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RecurrenceArgs {
    /// `[sequences][value_heads][value_dim][key_dim]`.
    pub base: u64,
    /// `[sequences][rows][value_heads][value_dim][key_dim]`, or 0.
    pub snapshots: u64,
    /// `[sequences][rows][key_heads][key_dim]`.
    pub keys: u64,
    /// As the keys.
    pub queries: u64,
    /// `[sequences][rows][value_heads][value_dim]`.
    pub values: u64,
    /// `[sequences][rows][value_heads]`.
    pub gates: u64,
    /// `[sequences][rows][value_heads]`.
    pub beta: u64,
    /// As the values.
    pub out: u64,
    /// Heads.
    pub shape: Shape,
    /// Width of a value.
    pub value_dim: i32,
    /// Tokens.
    pub rows: i32,
    /// Whether the base is written back.
    pub store: i32,
    /// `1 / sqrt(key_dim)`.
    pub scale: f32,
}

const _: () = assert!(size_of::<Shape>() == 32);
const _: () = assert!(size_of::<PrepareArgs>() == 15 * 8 + size_of::<Shape>() + 8 * 4);
const _: () = assert!(size_of::<StepArgs>() == 11 * 8 + size_of::<Shape>() + 2 * 4);
const _: () = assert!(size_of::<GatedNormArgs>() == 4 * 8 + 4 * 4);
const _: () = assert!(size_of::<RecurrenceArgs>() == 8 * 8 + size_of::<Shape>() + 4 * 4);

// SAFETY: numbers without padding, as the assertion on the size shows.
unsafe impl crate::device::Plain for PrepareArgs {}
// SAFETY: numbers without padding, as the assertion on the size shows.
unsafe impl crate::device::Plain for StepArgs {}
// SAFETY: numbers without padding, as the assertion on the size shows.
unsafe impl crate::device::Plain for GatedNormArgs {}
// SAFETY: numbers without padding, as the assertion on the size shows.
unsafe impl crate::device::Plain for RecurrenceArgs {}

/// The bytes of an argument structure.
pub fn argument_bytes<T: crate::device::Plain>(args: &T) -> &[u8] {
    crate::device::bytes_of(std::slice::from_ref(args))
}
