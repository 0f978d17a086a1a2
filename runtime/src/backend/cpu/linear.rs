//! The linear mixer: convolution, gates, and the gated delta rule over base state and log.
//!
//! One sequence's rows go through three parallel regions, over key heads, value heads and v-tiles. Every unit owns
//! contiguous blocks of the scratch memory, so the regions need no locks and no unsafe code.

use std::sync::Arc;

use millpond_models::LinearSpec;
use millpond_simd::LANES;
use millpond_simd::kernels::Kernels;
use millpond_simd::linear::{FoldSource, FoldTile, WindowTile, panel_len};
use millpond_simd::matmul::OutTile;
use rayon::prelude::*;

use super::scratch::{Buffer, grown};
use crate::state::arena::Arena;
use crate::state::layout::{LinearLayout, StateLayout};
use crate::state::memory::{LayerLog, SequenceMemory};
use crate::state::{PassPlan, Step};
use crate::weights::LinearWeights;

/// Epsilon inside the square root that normalises queries and keys.
const NORMALIZE_EPS: f32 = 1e-6;

/// Projections of one sequence's rows.
pub(super) struct LinearRows<'a> {
    /// `[rows][conv_channels]`, before the convolution.
    pub(super) qkv: &'a [f32],
    /// `[rows][value_heads]`, before the sigmoid.
    pub(super) beta: &'a [f32],
    /// `[rows][value_heads]`, before bias and softplus.
    pub(super) alpha: &'a [f32],
    /// `[rows][value_heads * value_dim]`, receives what the state returns.
    pub(super) out: &'a mut [f32],
}

/// Working memory of one sequence in one layer, reused from layer to layer.
#[derive(Default)]
pub(super) struct LinearScratch {
    /// Log of a pass whose rows do not fit the sequence's own.
    long_log: Option<LayerLog>,
    /// `[key_heads][rows][key_dim]`, normalised and scaled.
    queries: Buffer,
    /// `[value_heads][groups][rows][group lanes]`.
    values: Buffer,
    /// As `values`.
    outputs: Buffer,
    /// `[rows][value_heads]`: beta and log decay.
    beta_rows: Buffer,
    decay_rows: Buffer,
    /// `[value_heads][rows]`.
    betas: Buffer,
    /// `[key_heads][scores]`: key-key and key-query products of every window.
    key_key: Buffer,
    key_query: Buffer,
    /// `[key_heads][2 rows key_dim]`: keys and queries of every window, packed.
    key_panels: Buffer,
    /// `[value_heads][2 scores]`: coefficients of every window, packed.
    coefficient_panels: Buffer,
    /// `[value_heads][rows]`: decay of the base at each row.
    base_weights: Buffer,
    /// `[value_heads][folded entries]`: decay of each entry at its fold; the base's own comes last.
    fold_weights: Buffer,
    /// Laid out as the base: the base after a preview fold.
    preview: Buffer,
}

/// A step of the plan with its place in the scratch memory.
#[derive(Clone, Copy, Debug)]
enum Placed {
    Window { first_entry: usize, committed: usize, row: usize, rows: usize, scores: usize },
    Fold { first_entry: usize, entries: usize, weights: usize, durable: bool },
}

/// The plan's steps with their offsets, and the sizes they add up to.
#[derive(Default)]
pub(super) struct Placement {
    steps: Vec<Placed>,
    /// Scores of all windows: rows times entries each.
    scores: usize,
    fold_weights: usize,
    previews: bool,
}

impl Placement {
    /// Places the steps of a plan.
    pub(super) fn new(plan: &PassPlan) -> Placement {
        let mut placement = Placement::default();
        let (mut folded, mut row) = (0, 0);
        for step in &plan.steps {
            match *step {
                Step::Window { rows } => {
                    let committed = plan.log + row - folded;
                    let scores = placement.scores;
                    placement.steps.push(Placed::Window {
                        first_entry: folded,
                        committed,
                        row,
                        rows,
                        scores,
                    });
                    placement.scores += rows * (committed + rows);
                    row += rows;
                }
                Step::Fold { entries, durable } => {
                    let weights = placement.fold_weights;
                    placement.steps.push(Placed::Fold { first_entry: folded, entries, weights, durable });
                    placement.fold_weights += entries + 1;
                    placement.previews |= !durable;
                    folded += entries;
                }
            }
        }
        placement
    }
}

/// What stays the same for every unit of a pass.
struct Pass<'a> {
    kernels: &'a Kernels,
    layout: &'a LinearLayout,
    weights: &'a LinearWeights,
    plan: &'a PassPlan,
    placement: &'a Placement,
    capacity: usize,
}

/// Runs one sequence's rows through the state of one layer.
///
/// The base must be writable (unshared) where the plan folds durably; the caller sees to it.
pub(super) fn mix(
    kernels: &Kernels,
    state: &StateLayout,
    index: usize,
    weights: &LinearWeights,
    plan: &PassPlan,
    placement: &Placement,
    memory: &mut SequenceMemory,
    scratch: &mut LinearScratch,
    rows: LinearRows<'_>,
) {
    let layout = &state.linear[index];
    let in_place = plan.log + plan.rows <= memory.logs[index].capacity;
    let mut long_log = scratch.long_log.take().filter(|_| !in_place);
    if !in_place {
        let needed = plan.log + plan.rows;
        let log = match long_log.take() {
            Some(log) if fits(&log, layout, needed) => long_log.insert(log),
            _ => long_log.insert(LayerLog::new(layout, needed)),
        };
        log.copy_entries(&memory.logs[index], layout, 0, plan.log);
    }
    let log = long_log.as_mut().unwrap_or(&mut memory.logs[index]);
    let pass = Pass { kernels, layout, weights, plan, placement, capacity: log.capacity };

    let ring =
        Ring { rows: &memory.conv[index], count: memory.conv_rows, channels: layout.spec.conv_channels() };
    pass.key_heads(&ring, rows.qkv, log, scratch);
    pass.gates(&rows, scratch);
    pass.value_heads(&ring, rows.qkv, log, scratch);
    pass.tiles(memory.base.as_mut(), log, scratch);
    pass.gather(scratch, rows.out);

    ring_write(&mut memory.conv[index], memory.conv_rows, plan.start, rows.qkv, layout.spec.conv_channels());
    let (dropped, kept) = (plan.durably_folded(), plan.log_after());
    match long_log {
        Some(log) => {
            memory.logs[index].copy_entries(&log, layout, dropped, kept);
            scratch.long_log = Some(log);
        }
        None => memory.logs[index].drop_front(layout, dropped, kept),
    }
}

fn fits(log: &LayerLog, layout: &LinearLayout, needed: usize) -> bool {
    let fresh = (layout.spec.key_heads * layout.spec.key_dim, layout.total_groups() * layout.group_lanes());
    log.capacity >= needed
        && log.keys.len() == fresh.0 * log.capacity
        && log.deltas.len() == fresh.1 * log.capacity
}

/// The convolution inputs of a sequence, by absolute position.
struct Ring<'a> {
    rows: &'a [f32],
    count: usize,
    channels: usize,
}

impl Ring<'_> {
    fn row(&self, position: usize) -> &[f32] {
        let at = position % self.count * self.channels;
        &self.rows[at..at + self.channels]
    }
}

/// Keeps the inputs of a pass that later rows can still need.
fn ring_write(ring: &mut [f32], count: usize, start: usize, inputs: &[f32], channels: usize) {
    let rows = inputs.len() / channels;
    for row in rows.saturating_sub(count)..rows {
        let at = (start + row) % count * channels;
        ring[at..at + channels].copy_from_slice(&inputs[row * channels..(row + 1) * channels]);
    }
}

impl Pass<'_> {
    fn spec(&self) -> &LinearSpec {
        &self.layout.spec
    }

    fn rows(&self) -> usize {
        self.plan.rows
    }

    /// Convolution and SiLU of the channels from `first` on, for one row of the pass.
    fn convolve(&self, ring: &Ring<'_>, inputs: &[f32], row: usize, first: usize, out: &mut [f32]) {
        let taps = self.spec().conv_width;
        let zeros = [0.0; CONV_BLOCK];
        for at in (0..out.len()).step_by(CONV_BLOCK) {
            let width = CONV_BLOCK.min(out.len() - at);
            let channels = first + at..first + at + width;
            let mut rows: [&[f32]; MAX_TAPS] = [&[]; MAX_TAPS];
            for (tap, input) in rows[..taps].iter_mut().enumerate() {
                let age = taps - 1 - tap;
                *input = if age <= row {
                    let start = (row - age) * ring.channels;
                    &inputs[start + channels.start..start + channels.end]
                } else if let Some(position) = (self.plan.start + row).checked_sub(age) {
                    &ring.row(position)[channels.clone()]
                } else {
                    &zeros[..width]
                };
            }
            let weights = &self.weights.conv[channels.start * taps..channels.end * taps];
            self.kernels.vector.conv_silu(&rows[..taps], weights, &mut out[at..at + width]);
        }
    }

    /// Queries and keys: convolution, normalisation, and the products every value head of the key head shares.
    fn key_heads(&self, ring: &Ring<'_>, qkv: &[f32], log: &mut LayerLog, scratch: &mut LinearScratch) {
        let (spec, rows) = (self.spec(), self.rows());
        let (dk, scores) = (spec.key_dim, self.placement.scores);
        let key_offset = spec.key_heads * dk;
        let scale = (dk as f32).sqrt().recip();
        let queries = grown(&mut scratch.queries, spec.key_heads * rows * dk);
        let key_key = grown(&mut scratch.key_key, spec.key_heads * scores);
        let key_query = grown(&mut scratch.key_query, spec.key_heads * scores);
        let panels = grown(&mut scratch.key_panels, spec.key_heads * panel_len(rows, dk));
        log.keys
            .par_chunks_exact_mut(self.capacity * dk)
            .zip(
                queries.par_chunks_exact_mut(rows * dk).zip(panels.par_chunks_exact_mut(panel_len(rows, dk))),
            )
            .zip(key_key.par_chunks_exact_mut(scores).zip(key_query.par_chunks_exact_mut(scores)))
            .enumerate()
            .for_each(|(head, ((keys, (queries, panel)), (key_key, key_query)))| {
                for row in 0..rows {
                    let query = &mut queries[row * dk..(row + 1) * dk];
                    self.convolve(ring, qkv, row, head * dk, query);
                    self.kernels.vector.l2_normalize(query, NORMALIZE_EPS, scale);
                    let at = (self.plan.log + row) * dk;
                    let key = &mut keys[at..at + dk];
                    self.convolve(ring, qkv, row, key_offset + head * dk, key);
                    self.kernels.vector.l2_normalize(key, NORMALIZE_EPS, 1.0);
                }
                for step in &self.placement.steps {
                    let Placed::Window { first_entry, committed, row, rows, scores } = *step else {
                        continue;
                    };
                    let entries = committed + rows;
                    let block = scores..scores + rows * entries;
                    let queries = &queries[row * dk..(row + rows) * dk];
                    let keys = &keys[first_entry * dk..(first_entry + entries) * dk];
                    let (key_key, key_query) = (&mut key_key[block.clone()], &mut key_query[block]);
                    self.kernels.linear.key_scores(keys, queries, dk, key_key, key_query);
                    let panel = &mut panel[panel_len(row, dk)..panel_len(row + rows, dk)];
                    self.kernels.linear.pack_window(&keys[committed * dk..], queries, dk, panel);
                }
            });
    }

    /// Values, gates, and the coefficients of every window and fold.
    fn value_heads(&self, ring: &Ring<'_>, qkv: &[f32], log: &mut LayerLog, scratch: &mut LinearScratch) {
        let (spec, rows) = (self.spec(), self.rows());
        let (heads, width) = (spec.value_heads, self.layout.tiles * LANES);
        let (scores, folds) = (self.placement.scores, self.placement.fold_weights);
        let value_offset = 2 * spec.key_heads * spec.key_dim;
        let (key_key, key_query) = (&scratch.key_key, &scratch.key_query);
        let (beta_rows, decay_rows) = (&scratch.beta_rows, &scratch.decay_rows);
        let values = grown(&mut scratch.values, heads * rows * width);
        let betas = grown(&mut scratch.betas, heads * rows);
        let base = grown(&mut scratch.base_weights, heads * rows);
        let panels = grown(&mut scratch.coefficient_panels, heads * 2 * scores);
        // One value more, so that a pass without folds still has a block per head.
        let fold_weights = grown(&mut scratch.fold_weights, heads * (folds + 1));
        log.gates
            .par_chunks_exact_mut(self.capacity)
            .zip(values.par_chunks_exact_mut(rows * width))
            .zip(betas.par_chunks_exact_mut(rows).zip(base.par_chunks_exact_mut(rows)))
            .zip(panels.par_chunks_exact_mut(2 * scores).zip(fold_weights.par_chunks_exact_mut(folds + 1)))
            .enumerate()
            .for_each(|(head, (((gates, values), (betas, base)), (panels, fold_weights)))| {
                for row in 0..rows {
                    self.convolve_value(ring, qkv, row, value_offset + head * spec.value_dim, values);
                    betas[row] = beta_rows[row * heads + head];
                    gates[self.plan.log + row] = decay_rows[row * heads + head];
                }
                let at = spec.key_head_of(head) * scores;
                let (key_key, key_query) = (&key_key[at..at + scores], &key_query[at..at + scores]);
                for step in &self.placement.steps {
                    match *step {
                        Placed::Window { first_entry, committed, row, rows, scores } => {
                            let entries = committed + rows;
                            let block = scores..scores + rows * entries;
                            self.kernels.linear.head_coefficients(
                                &gates[first_entry..first_entry + entries],
                                &key_key[block.clone()],
                                &key_query[block.clone()],
                                &mut base[row..row + rows],
                                &mut panels[2 * block.start..2 * block.end],
                            );
                        }
                        Placed::Fold { first_entry, entries, weights, .. } => {
                            let (each, own) =
                                fold_weights[weights..weights + entries + 1].split_at_mut(entries);
                            let gates = &gates[first_entry..first_entry + entries];
                            own[0] = self.kernels.linear.fold_weights(gates, each);
                        }
                    }
                }
            });
    }

    /// Beta and log decay of every row, `[rows][value_heads]`: computed here and nowhere else, in f32.
    fn gates(&self, inputs: &LinearRows<'_>, scratch: &mut LinearScratch) {
        let millpond_models::Write::Delta { beta_max } = self.spec().write;
        let (vector, heads) = (self.kernels.vector, self.spec().value_heads);
        let betas = grown(&mut scratch.beta_rows, inputs.beta.len());
        betas.copy_from_slice(inputs.beta);
        vector.sigmoid(betas);
        vector.scale(betas, beta_max);
        let decays = grown(&mut scratch.decay_rows, inputs.alpha.len());
        for (raw, decay) in inputs.alpha.chunks_exact(heads).zip(decays.chunks_exact_mut(heads)) {
            vector.decay_gates(raw, &self.weights.dt_bias, &self.weights.a, decay);
        }
    }

    /// One row of a value head into its groups of tiles.
    fn convolve_value(&self, ring: &Ring<'_>, qkv: &[f32], row: usize, first: usize, values: &mut [f32]) {
        let (rows, lanes) = (self.rows(), self.layout.group_lanes());
        for group in 0..self.layout.groups() {
            let width = lanes.min(self.spec().value_dim - group * lanes);
            let at = (group * rows + row) * lanes;
            let values = &mut values[at..at + lanes];
            values[width..].fill(0.0);
            self.convolve(ring, qkv, row, first + group * lanes, &mut values[..width]);
        }
    }

    /// Every group of tiles through windows and folds.
    fn tiles(&self, base: Option<&mut Arc<Arena>>, log: &mut LayerLog, scratch: &mut LinearScratch) {
        let (rows, lanes, group_len) = (self.rows(), self.layout.group_lanes(), self.layout.group_len());
        let total = self.layout.total_groups();
        // Without preview folds a block of one value stands for the unused scratch state.
        let preview_len = if self.placement.previews { group_len } else { 1 };
        let outputs = grown(&mut scratch.outputs, total * rows * lanes);
        let preview = grown(&mut scratch.preview, total * preview_len);
        let operands = Operands {
            keys: &log.keys,
            key_panels: &scratch.key_panels,
            coefficient_panels: &scratch.coefficient_panels,
            values: &scratch.values,
            betas: &scratch.betas,
            base: &scratch.base_weights,
            folds: &scratch.fold_weights,
        };
        let units = log
            .deltas
            .par_chunks_exact_mut(self.capacity * lanes)
            .zip(outputs.par_chunks_exact_mut(rows * lanes))
            .zip(preview.par_chunks_exact_mut(preview_len))
            .enumerate();
        let range = self.layout.base_offset..self.layout.base_offset + self.layout.base_len();
        let run =
            |group: usize, base: GroupBase<'_>, deltas: &mut [f32], out: &mut [f32], preview: &mut [f32]| {
                self.group(group, &operands, base, deltas, out, preview);
            };
        match base {
            Some(base) if self.plan.durably_folded() > 0 => {
                // Unshared: the backend copied it before the pass where it was not.
                let arena = Arc::get_mut(base).expect("a base that is folded is not shared");
                let bases = arena.values_mut()[range].par_chunks_exact_mut(group_len);
                units.zip(bases).for_each(|((group, ((deltas, out), preview)), base)| {
                    run(group, GroupBase::Owned(base), deltas, out, preview);
                });
            }
            Some(base) if self.plan.has_base => {
                let bases = base.values()[range].par_chunks_exact(group_len);
                units.zip(bases).for_each(|((group, ((deltas, out), preview)), base)| {
                    run(group, GroupBase::Shared(base), deltas, out, preview);
                });
            }
            _ => units.for_each(|(group, ((deltas, out), preview))| {
                run(group, GroupBase::Zero, deltas, out, preview);
            }),
        }
    }

    fn group(
        &self,
        group: usize,
        all: &Operands<'_>,
        mut base: GroupBase<'_>,
        deltas: &mut [f32],
        out: &mut [f32],
        preview: &mut [f32],
    ) {
        let (dk, rows, lanes) = (self.spec().key_dim, self.rows(), self.layout.group_lanes());
        let head = group / self.layout.groups();
        let key_head = self.spec().key_head_of(head);
        let keys = &all.keys[key_head * self.capacity * dk..(key_head + 1) * self.capacity * dk];
        let key_panels =
            &all.key_panels[panel_len(key_head * rows, dk)..panel_len((key_head + 1) * rows, dk)];
        let coefficients = &all.coefficient_panels[2 * head * self.placement.scores..];
        let values = &all.values[group * rows * lanes..(group + 1) * rows * lanes];
        let folds = &all.folds[head * (self.placement.fold_weights + 1)..];
        let mut state = if self.plan.has_base { GroupState::Base } else { GroupState::Zero };
        for step in &self.placement.steps {
            match *step {
                Placed::Window { first_entry, committed, row, rows: count, scores } => {
                    let entries = committed + count;
                    let row_range = head * rows + row..head * rows + row + count;
                    self.kernels.linear.window_tile(WindowTile {
                        state: match state {
                            GroupState::Zero => None,
                            GroupState::Base => base.values(),
                            GroupState::Preview => Some(&*preview),
                        },
                        dk,
                        keys: &key_panels[panel_len(row, dk)..panel_len(row + count, dk)],
                        coefficients: &coefficients[2 * scores..2 * (scores + count * entries)],
                        base: &all.base[row_range.clone()],
                        beta: &all.betas[row_range],
                        values: &values[row * lanes..(row + count) * lanes],
                        value_stride: lanes,
                        deltas: OutTile::new(&mut deltas[first_entry * lanes..], lanes, entries, lanes),
                        out: OutTile::new(&mut out[row * lanes..], lanes, count, lanes),
                    });
                }
                Placed::Fold { first_entry, entries, weights, durable } => {
                    let (each, own) = folds[weights..weights + entries + 1].split_at(entries);
                    let (source, destination) = match (durable, &mut base) {
                        (true, GroupBase::Owned(owned)) => match state {
                            GroupState::Zero => (FoldSource::Zero, &mut **owned),
                            _ => (FoldSource::InPlace, &mut **owned),
                        },
                        (_, base) => match state {
                            GroupState::Zero => (FoldSource::Zero, &mut *preview),
                            GroupState::Base => {
                                (FoldSource::From(base.values().unwrap_or(&[])), &mut *preview)
                            }
                            GroupState::Preview => (FoldSource::InPlace, &mut *preview),
                        },
                    };
                    self.kernels.linear.fold_tile(FoldTile {
                        source,
                        destination,
                        dk,
                        keys: &keys[first_entry * dk..(first_entry + entries) * dk],
                        base: own[0],
                        weights: each,
                        deltas: &deltas[first_entry * lanes..(first_entry + entries) * lanes],
                        delta_stride: lanes,
                    });
                    state = if durable { GroupState::Base } else { GroupState::Preview };
                }
            }
        }
    }

    /// From groups of tiles to rows.
    fn gather(&self, scratch: &LinearScratch, out: &mut [f32]) {
        let (spec, rows, lanes) = (self.spec(), self.rows(), self.layout.group_lanes());
        let (width, groups) = (spec.value_heads * spec.value_dim, self.layout.groups());
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            for (head, out) in out.chunks_exact_mut(spec.value_dim).enumerate() {
                for (group, out) in out.chunks_mut(lanes).enumerate() {
                    let at = ((head * groups + group) * rows + row) * lanes;
                    out.copy_from_slice(&scratch.outputs[at..at + out.len()]);
                }
            }
        }
    }
}

/// Channels convolved at a time.
const CONV_BLOCK: usize = 256;

/// Taps of the widest convolution the kernels know.
pub(super) const MAX_TAPS: usize = 8;

/// The state a window reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GroupState {
    Zero,
    Base,
    Preview,
}

/// A group's part of the base, as far as this pass may touch it.
enum GroupBase<'a> {
    Zero,
    Shared(&'a [f32]),
    Owned(&'a mut [f32]),
}

impl GroupBase<'_> {
    fn values(&self) -> Option<&[f32]> {
        match self {
            GroupBase::Zero => None,
            GroupBase::Shared(base) => Some(base),
            GroupBase::Owned(base) => Some(base),
        }
    }
}

/// What the units of a pass read.
struct Operands<'a> {
    keys: &'a [f32],
    key_panels: &'a [f32],
    coefficient_panels: &'a [f32],
    values: &'a [f32],
    betas: &'a [f32],
    base: &'a [f32],
    folds: &'a [f32],
}
