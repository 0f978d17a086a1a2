//! One key head of one sequence with the value heads that read it.

use std::cell::RefCell;

use half::bf16;
use millpond_models::{Decay, HeadMap, LinearSpec};
use millpond_simd::linear::{Ahead, ChannelWindow, StateMut, panel_len};

use super::Pass;
use super::groups::{BasePart, GroupsPart, Operands, Requests};
use super::placement::Placed;
use crate::backend::cpu::scratch::{Buffer, grown};
use crate::par::Cut;
use crate::state::memory::StateType;

/// The log and the base of consecutive key heads.
pub(super) struct HeadsPart<'a> {
    pub(super) first: usize,
    pub(super) count: usize,
    /// `[count][capacity][key_dim]`.
    pub(super) keys: &'a mut [f32],
    /// `[count][value heads of a key head][groups][capacity][group lanes]`.
    pub(super) deltas: &'a mut [f32],
    /// `[count][value heads of a key head][capacity][decay width]`.
    pub(super) gates: &'a mut [f32],
    /// `[count][value heads of a key head][groups][group_len]`.
    pub(super) base: BasePart<'a>,
}

impl Cut for HeadsPart<'_> {
    fn pieces(&self) -> usize {
        self.count
    }

    fn split(self, left: usize) -> (Self, Self) {
        let count = self.count;
        let (keys, more_keys) = self.keys.split_at_mut(self.keys.len() / count * left);
        let (deltas, more_deltas) = self.deltas.split_at_mut(self.deltas.len() / count * left);
        let (gates, more_gates) = self.gates.split_at_mut(self.gates.len() / count * left);
        let (base, more_base) = self.base.split(left, count);
        (
            HeadsPart { first: self.first, count: left, keys, deltas, gates, base },
            HeadsPart {
                first: self.first + left,
                count: count - left,
                keys: more_keys,
                deltas: more_deltas,
                gates: more_gates,
                base: more_base,
            },
        )
    }
}

/// Working memory of a unit. `r`: value heads of a key head.
#[derive(Default)]
struct UnitScratch {
    /// `[rows][key_dim]`.
    queries: Buffer,
    /// Key-key and key-query products of every window.
    key_key: Buffer,
    key_query: Buffer,
    /// Keys and queries of every window, packed: once, or for each value head where decays are by key channel.
    key_panels: Buffer,
    /// `[r][2 scores]`: coefficients of every window, packed.
    coefficients: Buffer,
    /// `[r][groups][rows][group lanes]`.
    values: Buffer,
    outputs: Buffer,
    /// `[r][rows]`.
    betas: Buffer,
    /// `[r][rows]`: decay of the base at each row.
    base: Buffer,
    /// `[r][fold weights]`: decay of each entry at its fold; the base's own comes last.
    folds: Buffer,
    /// `[r][fold weights][key_dim]`, where decays are by key channel: keys with their weights, the base's decay last.
    fold_keys: Buffer,
    /// Working memory of kernels.
    channels: Buffer,
    /// `[r][groups][group_len]`: the base after a preview fold, in the type of the base.
    preview: Buffer,
    short_preview: Buffer<bf16>,
}

/// Operands of a value head whose state decays by key channel.
struct Channels<'a> {
    keys: &'a [f32],
    queries: &'a [f32],
    gates: &'a [f32],
    key_panel: &'a mut [f32],
    fold_keys: &'a mut [f32],
    scratch: &'a mut [f32],
}

thread_local! {
    /// Working memory of units that are not running. While a unit waits for its groups its thread may run another
    /// unit, so there can be several.
    static IDLE: RefCell<Vec<UnitScratch>> = const { RefCell::new(Vec::new()) };
}

/// Value head number `j` of those that read `key_head`.
fn value_head(spec: &LinearSpec, key_head: usize, j: usize) -> usize {
    match spec.head_map {
        HeadMap::Grouped => key_head * (spec.value_heads / spec.key_heads) + j,
        HeadMap::Tiled => key_head + j * spec.key_heads,
    }
}

impl Pass<'_> {
    /// Runs the units of some key heads.
    pub(super) fn key_heads(&self, part: HeadsPart<'_>) {
        crate::par::each_piece(part, &|head| self.key_head(head));
    }

    fn key_head(&self, part: HeadsPart<'_>) {
        let mut scratch = IDLE.with_borrow_mut(Vec::pop).unwrap_or_default();
        self.unit(part, &mut scratch);
        IDLE.with_borrow_mut(|idle| idle.push(scratch));
    }

    fn unit(&self, part: HeadsPart<'_>, scratch: &mut UnitScratch) {
        let HeadsPart { first: key_head, keys, deltas, gates, base, .. } = part;
        let (spec, rows) = (&self.layout.spec, self.plan.rows);
        let (group, lanes) = (spec.value_heads / spec.key_heads, self.layout.group_lanes());
        let groups = group * self.layout.groups();
        let next = if key_head + 1 < spec.key_heads {
            base.values().map_or(Ahead::NONE, |base| Ahead::of_state(base).following())
        } else {
            self.next
        };
        let requests = Requests::new(&base, next, groups);
        self.key_side(key_head, keys, scratch, &requests);
        self.value_side(key_head, (keys, gates), scratch, &requests);

        let outputs = grown(&mut scratch.outputs, groups * rows * lanes);
        let preview_len = if self.placement.previews { groups * self.layout.group_len() } else { 0 };
        let preview = match self.state_type {
            StateType::F32 => StateMut::F32(grown(&mut scratch.preview, preview_len)),
            StateType::Bf16 => StateMut::Bf16(grown(&mut scratch.short_preview, preview_len)),
        };
        let operands = Operands {
            keys,
            key_panels: &scratch.key_panels,
            panel_stride: if self.by_channel() { panel_len(rows, spec.key_dim) } else { 0 },
            coefficients: &scratch.coefficients,
            values: &scratch.values,
            betas: &scratch.betas,
            base: &scratch.base,
            folds: &scratch.folds,
            fold_keys: self.by_channel().then_some(&*scratch.fold_keys),
            requests,
        };
        let part = GroupsPart { first: 0, count: groups, deltas, base, outputs: &mut *outputs, preview };
        self.groups(&operands, part);

        self.write_out(key_head, outputs);
        let (dropped, kept) = (self.plan.durably_folded(), self.plan.log_after());
        if dropped > 0 && kept > 0 {
            for (values, width) in [(keys, spec.key_dim), (deltas, lanes), (gates, spec.decay_width())] {
                for block in values.chunks_exact_mut(self.capacity * width) {
                    block.copy_within(dropped * width..(dropped + kept) * width, 0);
                }
            }
        }
    }

    /// Whether the state decays by key channel, so that value heads share no products.
    fn by_channel(&self) -> bool {
        self.layout.spec.decay == Decay::PerKeyChannel
    }

    /// Moments at which the preparation of a unit asks for memory: two for its keys, two for each of its value heads.
    fn moments(&self) -> usize {
        2 + 2 * self.layout.spec.value_heads / self.layout.spec.key_heads
    }

    /// Queries and keys, and the products every value head shares.
    fn key_side(&self, head: usize, keys: &mut [f32], scratch: &mut UnitScratch, requests: &Requests) {
        let (spec, rows) = (&self.layout.spec, self.plan.rows);
        let (dk, scores) = (spec.key_dim, self.placement.scores);
        let queries = grown(&mut scratch.queries, rows * dk);
        let key_key = grown(&mut scratch.key_key, scores);
        let key_query = grown(&mut scratch.key_query, scores);
        let panels = grown(&mut scratch.key_panels, panel_len(rows, dk));
        for row in 0..rows {
            let query = &mut queries[row * dk..(row + 1) * dk];
            let key = &mut keys[(self.plan.log + row) * dk..][..dk];
            self.front.query_and_key(self.kernels.vector, spec, row, head, query, key);
        }
        let (moments, mut moment) = (self.moments(), 0);
        requests.prepare(moment, moments);
        if self.by_channel() {
            return;
        }
        for step in &self.placement.steps {
            let Placed::Window { first_entry, committed, row, rows, scores } = *step else { continue };
            let entries = committed + rows;
            let block = scores..scores + rows * entries;
            let queries = &queries[row * dk..(row + rows) * dk];
            let keys = &keys[first_entry * dk..(first_entry + entries) * dk];
            let (key_key, key_query) = (&mut key_key[block.clone()], &mut key_query[block]);
            self.kernels.linear.key_scores(keys, queries, dk, key_key, key_query);
            if moment == 0 {
                moment = 1;
                requests.prepare(moment, moments);
            }
            let panel = &mut panels[panel_len(row, dk)..panel_len(row + rows, dk)];
            self.kernels.linear.pack_window(&keys[committed * dk..], queries, dk, panel);
        }
    }

    /// Values, gates, and the coefficients of every window and fold, of every value head of the unit.
    fn value_side(
        &self,
        key_head: usize,
        (keys, gates): (&[f32], &mut [f32]),
        scratch: &mut UnitScratch,
        requests: &Requests,
    ) {
        let (spec, rows, log) = (&self.layout.spec, self.plan.rows, self.plan.log);
        let (heads, group) = (spec.value_heads, spec.value_heads / spec.key_heads);
        let (lanes, head_lanes) =
            (self.layout.group_lanes(), self.layout.groups() * self.layout.group_lanes());
        let (scores, folds) = (self.placement.scores, self.placement.fold_weights);
        let values = grown(&mut scratch.values, group * rows * head_lanes);
        let betas = grown(&mut scratch.betas, group * rows);
        let base = grown(&mut scratch.base, group * rows);
        let coefficients = grown(&mut scratch.coefficients, group * 2 * scores);
        let fold_weights = grown(&mut scratch.folds, group * folds);
        let (dk, width) = (spec.key_dim, spec.decay_width());
        let (panel, channels) = (panel_len(rows, dk), if self.by_channel() { group } else { 0 });
        if channels > 0 {
            grown(&mut scratch.key_panels, channels * panel);
            grown(&mut scratch.fold_keys, channels * folds * dk);
            grown(&mut scratch.channels, 2 * dk);
        }
        for j in 0..group {
            let head = value_head(spec, key_head, j);
            let gates = &mut gates[j * self.capacity * width..(j + 1) * self.capacity * width];
            for row in 0..rows {
                betas[j * rows + row] = self.front.betas[row * heads + head];
                let decays = &self.front.decays[(row * heads + head) * width..][..width];
                gates[(log + row) * width..][..width].copy_from_slice(decays);
                for tile_group in 0..self.layout.groups() {
                    let at = j * rows * head_lanes + (tile_group * rows + row) * lanes;
                    let width = lanes.min(spec.value_dim - tile_group * lanes);
                    let values = &mut values[at..at + lanes];
                    values[width..].fill(0.0);
                    let first = tile_group * lanes;
                    self.front.values(self.kernels.vector, spec, row, head, first, &mut values[..width]);
                }
            }
            requests.prepare(2 + 2 * j, self.moments());
            let base = &mut base[j * rows..(j + 1) * rows];
            let panels = &mut coefficients[j * 2 * scores..(j + 1) * 2 * scores];
            let weights = &mut fold_weights[j * folds..(j + 1) * folds];
            if channels > 0 {
                let channels = Channels {
                    keys,
                    queries: &scratch.queries,
                    gates,
                    key_panel: &mut scratch.key_panels[j * panel..(j + 1) * panel],
                    fold_keys: &mut scratch.fold_keys[j * folds * dk..(j + 1) * folds * dk],
                    scratch: &mut scratch.channels,
                };
                self.channel_coefficients(channels, base, panels, weights);
            } else {
                self.coefficients(gates, (&scratch.key_key, &scratch.key_query), base, panels, weights);
            }
            requests.prepare(3 + 2 * j, self.moments());
        }
    }

    /// Coefficients of every window and fold of one value head.
    fn coefficients(
        &self,
        gates: &[f32],
        (key_key, key_query): (&[f32], &[f32]),
        base: &mut [f32],
        panels: &mut [f32],
        fold_weights: &mut [f32],
    ) {
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
                    let (each, own) = fold_weights[weights..weights + entries + 1].split_at_mut(entries);
                    let gates = &gates[first_entry..first_entry + entries];
                    own[0] = self.kernels.linear.fold_weights(gates, each);
                }
            }
        }
    }

    /// The same of a value head whose state decays by key channel: decays go into its keys, and weights are ones.
    fn channel_coefficients(
        &self,
        channels: Channels<'_>,
        base: &mut [f32],
        panels: &mut [f32],
        fold_weights: &mut [f32],
    ) {
        let Channels { keys, queries, gates, key_panel, fold_keys, scratch } = channels;
        let dk = self.layout.spec.key_dim;
        base.fill(1.0);
        fold_weights.fill(1.0);
        for step in &self.placement.steps {
            match *step {
                Placed::Window { first_entry, committed, row, rows, scores } => {
                    let entries = committed + rows;
                    let log = first_entry * dk..(first_entry + entries) * dk;
                    self.kernels.linear.channel_window(ChannelWindow {
                        keys: &keys[log.clone()],
                        queries: &queries[row * dk..(row + rows) * dk],
                        decays: &gates[log],
                        dk,
                        panel: &mut key_panel[panel_len(row, dk)..panel_len(row + rows, dk)],
                        coefficients: &mut panels[2 * scores..2 * (scores + rows * entries)],
                        scratch,
                    });
                }
                Placed::Fold { first_entry, entries, weights, .. } => {
                    let log = first_entry * dk..(first_entry + entries) * dk;
                    let both = &mut fold_keys[weights * dk..(weights + entries + 1) * dk];
                    let (weighted, base) = both.split_at_mut(entries * dk);
                    self.kernels.linear.channel_fold(&keys[log.clone()], &gates[log], weighted, base);
                }
            }
        }
    }

    /// From groups of tiles to rows.
    fn write_out(&self, key_head: usize, outputs: &[f32]) {
        let (spec, rows, lanes) = (&self.layout.spec, self.plan.rows, self.layout.group_lanes());
        let head_len = self.layout.groups() * rows * lanes;
        for (j, outputs) in outputs.chunks_exact(head_len).enumerate() {
            let first = value_head(spec, key_head, j) * spec.value_dim;
            let mut tile = self.out.columns(first..first + spec.value_dim);
            for row in 0..rows {
                for (group, out) in tile.row_mut(row).chunks_mut(lanes).enumerate() {
                    let at = (group * rows + row) * lanes;
                    out.copy_from_slice(&outputs[at..at + out.len()]);
                }
            }
        }
    }
}
