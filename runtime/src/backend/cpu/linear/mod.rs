//! The linear mixer: convolution, gates, and the gated delta rule over base state and log.
//!
//! A unit of work is one key head of one sequence with the value heads that read it: it computes queries, keys and
//! values, the products the value heads share, then takes every group of v-tiles through windows and folds. Units
//! fork into groups, so that a single sequence still fills all cores. A unit owns its blocks of the log and of the
//! base, which are ordered by key head, so there are no locks and no unsafe code.

mod groups;
mod placement;
mod rows;
mod unit;

use std::sync::Arc;

use millpond_simd::kernels::Kernels;
use millpond_simd::linear::Ahead;

use super::scratch::{Buffer, grown};
use crate::par::{SharedRows, each_mut};
use crate::state::PassPlan;
use crate::state::layout::{LinearLayout, StateLayout};
use crate::state::logs::{LogMut, LogRef, log_len};
use crate::state::memory::{SequenceMemory, StateType};
use crate::weights::LinearWeights;
use groups::BasePart;
pub use placement::Placement;
use rows::{Front, Ring, Source, ring_write};
use unit::HeadsPart;

/// Taps of the widest convolution the kernels know.
pub(super) const MAX_TAPS: usize = 8;

/// The weights a linear mixer needs besides its projections.
#[derive(Clone, Copy, Debug)]
pub struct LinearParameters<'a> {
    /// Convolution taps, `[channels][conv_width]`, oldest tap first.
    pub conv: &'a [f32],
    /// `-exp(A_log)` of each value head.
    pub a: &'a [f32],
    /// Bias of the decay's softplus, one per value head.
    pub dt_bias: &'a [f32],
}

impl<'a> From<&'a LinearWeights> for LinearParameters<'a> {
    fn from(weights: &'a LinearWeights) -> LinearParameters<'a> {
        LinearParameters { conv: &weights.conv, a: &weights.a, dt_bias: &weights.dt_bias }
    }
}

/// The operands of one sequence's rows. `Hk`, `Hv`: key and value heads; `dk`, `dv`: their widths.
#[derive(Clone, Copy, Debug)]
pub enum RowInputs<'a> {
    /// As projections leave them: before convolution, normalisation and gates.
    Projected {
        /// `[rows][2 Hk dk + Hv dv]`, before the convolution.
        qkv: &'a [f32],
        /// `[rows][Hv]`, before the sigmoid.
        beta: &'a [f32],
        /// `[rows][Hv]`, before bias and softplus.
        alpha: &'a [f32],
    },
    /// The state's own operands: for measurements and tests of the state alone. Convolution inputs are left as they
    /// were.
    Ready {
        /// `[rows][Hk dk]`, normalised and scaled.
        queries: &'a [f32],
        /// `[rows][Hk dk]`, normalised.
        keys: &'a [f32],
        /// `[rows][Hv dv]`.
        values: &'a [f32],
        /// `[rows][Hv]`, the write strength.
        beta: &'a [f32],
        /// `[rows][Hv]`, the log decay; `[rows][Hv][dk]` where it is by key channel.
        decay: &'a [f32],
    },
}

/// One sequence in one layer of a pass.
pub struct LinearStream<'a> {
    /// Windows and folds.
    pub plan: &'a PassPlan,
    /// The plan, placed.
    pub placement: &'a Placement,
    /// The sequence's memory. The base must be unshared where the plan folds durably.
    pub memory: &'a mut SequenceMemory,
    /// Working memory, reused from layer to layer and from pass to pass.
    pub scratch: &'a mut LinearScratch,
    /// Operands of the rows.
    pub inputs: RowInputs<'a>,
    /// What is read after this sequence, from [`first_unit`].
    pub next: Ahead,
    /// `[rows][Hv dv]`, receives what the state returns.
    pub out: &'a mut [f32],
}

/// Working memory of one sequence, reused from layer to layer.
#[derive(Default)]
pub struct LinearScratch {
    /// Log of a pass whose rows do not fit the sequence's own.
    long_log: Buffer,
    /// `[rows][value_heads]`: beta and log decay.
    betas: Buffer,
    decays: Buffer,
}

/// What stays the same for every unit of one sequence in one layer.
struct Pass<'a> {
    kernels: &'a Kernels,
    layout: &'a LinearLayout,
    state_type: StateType,
    /// What is read after the last unit.
    next: Ahead,
    plan: &'a PassPlan,
    placement: &'a Placement,
    /// Entries the log has room for.
    capacity: usize,
    front: Front<'a>,
    out: SharedRows<'a>,
}

/// Runs the rows of several sequences through the state of linear layer `index`, inside the team's pool.
pub fn mix_batch<'a>(
    kernels: &Kernels,
    layout: &StateLayout,
    index: usize,
    parameters: LinearParameters<'_>,
    streams: impl IntoIterator<Item = LinearStream<'a>>,
) {
    let mut streams: Vec<Option<LinearStream<'a>>> = streams.into_iter().map(Some).collect();
    each_mut(&mut streams, 1, |_, stream| {
        if let Some(stream) = stream.take() {
            mix(kernels, layout, index, parameters, stream);
        }
    });
}

/// What the first unit of a sequence reads of its base in linear layer `index`.
pub fn first_unit(state: &StateLayout, index: usize, plan: &PassPlan, memory: &SequenceMemory) -> Ahead {
    let layout = &state.linear[index];
    let unit = layout.base_len() / layout.spec.key_heads;
    match &memory.base {
        Some(base) if plan.has_base => {
            Ahead::of_state(base.part(layout.base_offset..layout.base_offset + unit))
        }
        _ => Ahead::NONE,
    }
}

/// Runs one sequence's rows through the state of one layer.
pub(super) fn mix(
    kernels: &Kernels,
    state: &StateLayout,
    index: usize,
    parameters: LinearParameters<'_>,
    stream: LinearStream<'_>,
) {
    let LinearStream { plan, placement, memory, scratch, inputs, next, out } = stream;
    let layout = &state.linear[index];
    let (spec, needed) = (&layout.spec, plan.log + plan.rows);
    let layers = &state.linear;
    let long = needed > memory.logs.capacity();
    let log = if long {
        let mut log = LogMut::over(grown(&mut scratch.long_log, log_len(layout, needed)), layout, needed);
        log.copy_entries(memory.logs.layer(layers, index), layout, 0, plan.log);
        log
    } else {
        memory.logs.layer_mut(layers, index)
    };

    let ring = Ring {
        rows: memory.rings.layer(layers, index),
        count: memory.rings.rows(),
        channels: spec.conv_channels(),
    };
    let (source, betas, decays) = match inputs {
        RowInputs::Projected { qkv, beta, alpha } => {
            let betas = grown(&mut scratch.betas, beta.len());
            let decays = grown(&mut scratch.decays, alpha.len());
            rows::gates(kernels.vector, spec, parameters, (beta, alpha), betas, decays);
            (Source::Convolved { qkv, ring, weights: parameters.conv }, &*betas, &*decays)
        }
        RowInputs::Ready { queries, keys, values, beta, decay } => {
            (Source::Ready { queries, keys, values }, beta, decay)
        }
    };
    let pass = Pass {
        kernels,
        layout,
        state_type: state.state_type,
        next,
        plan,
        placement,
        capacity: log.capacity,
        front: Front { source, betas, decays, start: plan.start },
        out: SharedRows::new(out, plan.rows, spec.value_heads * spec.value_dim),
    };
    let base_range = layout.base_offset..layout.base_offset + layout.base_len();
    let base = match memory.base.as_mut() {
        Some(base) if plan.durably_folded() > 0 => {
            // Unshared: the backend copied it before the pass where it was not.
            let arena = Arc::get_mut(base).expect("a base that is folded is not shared");
            BasePart::Owned(arena.part_mut(base_range))
        }
        Some(base) if plan.has_base => BasePart::Shared(base.part(base_range)),
        _ => BasePart::Zero,
    };
    pass.key_heads(HeadsPart {
        first: 0,
        count: spec.key_heads,
        keys: log.keys,
        deltas: log.deltas,
        gates: log.gates,
        base,
    });

    if let RowInputs::Projected { qkv, .. } = inputs {
        let rows = memory.rings.rows();
        let ring = memory.rings.layer_mut(layers, index);
        ring_write(ring, rows, plan.start, qkv, spec.conv_channels());
    }
    if long {
        let log = LogRef::over(&scratch.long_log, layout, needed);
        let mut own = memory.logs.layer_mut(layers, index);
        own.copy_entries(log, layout, plan.durably_folded(), plan.log_after());
    }
}
