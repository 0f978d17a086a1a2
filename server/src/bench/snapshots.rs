//! Verifying drafts as others do: the recurrence writes a state after every token, and the accepted one is copied
//! back. Same kernels, same layout, the next tiles are asked for ahead, a tile goes through all tokens while it is in
//! the cache, and the states are written past the caches, so that they are not read before they are written. The state
//! after the last token takes the place of the first, so a window of `T` tokens needs `T` states, and no copy where all
//! are accepted.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use millpond::par::Team;
use millpond::state::StateLayout;
use millpond::state::arena::Arena;
use millpond::state::layout::LinearLayout;
use millpond::state::memory::{Aligned, zeroed};
use millpond_models::{HeadMap, LinearSpec};
use millpond_simd::Kernels;
use millpond_simd::linear::{
    Ahead, FoldBase, FoldSource, FoldTile, Lookahead, State, StateMut, WindowTile, panel_len,
};
use millpond_simd::matmul::OutTile;
use millpond_simd::memory::MemoryKernels;
use rayon::prelude::*;

use super::shapes::Shape;
use super::streams::{Noise, Operands};
use super::traffic::{self, Traffic};

/// One sequence: its state and one more for each token of a window.
struct Sequence {
    state: Arena,
    /// `[layers][groups][tokens - 1][group_len]`: the states of a tile group after each token but the last.
    snapshots: Arena,
    operands: Operands,
    /// `[groups][tokens][group lanes]`.
    outputs: Vec<f32>,
}

/// Sequences that are verified by snapshots.
pub(super) struct Snapshots {
    kernels: &'static Kernels,
    memory: &'static MemoryKernels,
    layout: StateLayout,
    rows: usize,
    sequences: Vec<Sequence>,
}

impl Snapshots {
    /// Sequences of `layers` layers whose windows have `rows` tokens.
    ///
    /// # Errors
    /// There is not enough memory.
    pub(super) fn new(
        kernels: &'static Kernels,
        shape: Shape,
        layers: usize,
        batch: usize,
        rows: usize,
    ) -> anyhow::Result<Snapshots> {
        let layout = StateLayout::new(&shape.model(layers));
        let memory = MemoryKernels::for_isa(kernels.isa)
            .ok_or_else(|| anyhow::anyhow!("this processor does not have {}", kernels.isa))?;
        let mut all = Snapshots { kernels, memory, rows, sequences: Vec::new(), layout };
        for _ in 0..batch {
            all.add()?;
        }
        Ok(all)
    }

    /// Adds a sequence.
    ///
    /// # Errors
    /// There is not enough memory.
    pub(super) fn add(&mut self) -> anyhow::Result<()> {
        let (layout, rows) = (&self.layout, self.rows);
        let (layer, seed) = (&layout.linear[0], self.sequences.len() as u64 + 1);
        let mut noise = Noise::new(seed);
        let mut state = Arena::zeroed(layout.base_len, "recurrent state")?;
        state.values_mut().iter_mut().for_each(|x| *x = 0.1 * noise.next());
        let mut snapshots = Arena::zeroed(layout.base_len * (rows - 1), "snapshots")?;
        snapshots.values_mut().fill(1.0);
        self.sequences.push(Sequence {
            state,
            snapshots,
            operands: Operands::new(&layer.spec, rows, seed),
            outputs: vec![0.0; layer.total_groups() * rows * layer.group_lanes()],
        });
        Ok(())
    }

    /// Sequences.
    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Bytes of the states of one more sequence.
    pub(super) fn bytes_each(&self) -> usize {
        self.layout.state_bytes() * self.rows
    }

    /// Verifies a window of every sequence in every layer and makes the state after `accepted(sequence)` tokens, at
    /// least one, its own. Returns the time, and the bytes moved in one layer.
    pub(super) fn step(
        &mut self,
        team: &Team,
        accepted: impl Fn(usize) -> usize + Sync,
    ) -> (Duration, Traffic) {
        let (kernels, memory, layout, rows) = (self.kernels, self.memory, &self.layout, self.rows);
        let sequences = &mut self.sequences;
        let start = Instant::now();
        team.install(|| {
            for index in 0..layout.linear.len() {
                sequences
                    .par_iter_mut()
                    .for_each(|sequence| verify(kernels, memory, layout, index, rows, sequence));
            }
            sequences.par_iter_mut().enumerate().for_each(|(stream, sequence)| {
                let group_len = layout.linear[0].group_len();
                let accepted = accepted(stream);
                if accepted == rows {
                    return;
                }
                let snapshots = sequence.snapshots.values().par_chunks_exact((rows - 1) * group_len);
                let groups = sequence.state.values_mut().par_chunks_exact_mut(group_len);
                groups.zip(snapshots).for_each(|(state, snapshots)| {
                    memory.copy_streaming(&snapshots[(accepted - 1) * group_len..][..group_len], state);
                });
            });
        });
        let time = start.elapsed();
        let mut moved = Traffic::default();
        for stream in 0..self.len() {
            let copied = accepted(stream) < rows;
            moved += traffic::snapshots(&self.layout.linear[0].spec, rows, copied);
        }
        (time, moved)
    }

    /// Output of one row and value of a sequence, as the last layer left it.
    #[cfg(test)]
    pub(super) fn output(&self, stream: usize, row: usize, value_head: usize, value: usize) -> f32 {
        let layer = &self.layout.linear[0];
        let slot =
            (0..layer.spec.value_heads).find(|slot| head_of(&layer.spec, *slot) == value_head).unwrap();
        let lanes = layer.group_lanes();
        let group = slot * layer.groups() + value / lanes;
        self.sequences[stream].outputs[(group * self.rows + row) * lanes + value % lanes]
    }

    /// The state of a sequence in one layer, value heads in the order of their key heads.
    #[cfg(test)]
    pub(super) fn state(&self, stream: usize, layer: usize) -> &[f32] {
        let layout = &self.layout.linear[layer];
        &self.sequences[stream].state.values()[layout.base_offset..][..layout.base_len()]
    }
}

/// The value head in place `slot`, value heads being in the order of their key heads.
fn head_of(spec: &LinearSpec, slot: usize) -> usize {
    match spec.head_map {
        HeadMap::Grouped => slot,
        HeadMap::Tiled => {
            let group = spec.value_heads / spec.key_heads;
            slot / group + slot % group * spec.key_heads
        }
    }
}

fn verify(
    kernels: &Kernels,
    memory: &MemoryKernels,
    layout: &StateLayout,
    index: usize,
    rows: usize,
    sequence: &mut Sequence,
) {
    let layer = &layout.linear[index];
    let (group_len, lanes) = (layer.group_len(), layer.group_lanes());
    let range = layer.base_offset..layer.base_offset + layer.base_len();
    let later = rows - 1;
    let states = sequence.state.values_mut()[range.clone()].par_chunks_exact_mut(group_len);
    let outputs = sequence.outputs.par_chunks_exact_mut(rows * lanes);
    let operands = &sequence.operands;
    let run = |group: usize, state: &mut [f32], snapshots: &mut [f32], out: &mut [f32]| {
        verify_group(kernels, memory, layer, group, operands, (state, snapshots, out));
    };
    if later == 0 {
        let units = states.zip(outputs).enumerate();
        units.for_each(|(group, (state, out))| run(group, state, &mut [], out));
        return;
    }
    let snapshots = &mut sequence.snapshots.values_mut()[range.start * later..range.end * later];
    let units = states.zip(snapshots.par_chunks_exact_mut(later * group_len)).zip(outputs).enumerate();
    units.for_each(|(group, ((state, snapshots), out))| run(group, state, snapshots, out));
}

thread_local! {
    /// The state of the group that is being computed, between its tokens.
    static RUNNING: RefCell<Aligned<f32>> = RefCell::new(zeroed(0));
}

/// One group of tiles through all tokens of the window.
fn verify_group(
    kernels: &Kernels,
    memory: &MemoryKernels,
    layer: &LinearLayout,
    group: usize,
    operands: &Operands,
    (state, snapshots, out): (&mut [f32], &mut [f32], &mut [f32]),
) {
    RUNNING.with_borrow_mut(|running| {
        running.resize(state.len(), 0.0);
        let rows = out.len() / layer.group_lanes();
        for row in 0..rows {
            verify_token(kernels, layer, (group, row), operands, (state, running), out);
            // Written past the caches: the next token goes on from the copy that is in them.
            let kept = if row + 1 == rows {
                &mut *state
            } else {
                &mut snapshots[row * running.len()..][..running.len()]
            };
            memory.copy_streaming(running, kept);
        }
    });
}

/// One token of a group of tiles: reads the state (the first) or what the token before left in `running`, and leaves
/// the state after it there.
fn verify_token(
    kernels: &Kernels,
    layer: &LinearLayout,
    (group, row): (usize, usize),
    operands: &Operands,
    (state, running): (&[f32], &mut [f32]),
    out: &mut [f32],
) {
    let (spec, lanes, groups) = (&layer.spec, layer.group_lanes(), layer.groups());
    let (dk, head) = (spec.key_dim, head_of(spec, group / groups));
    let key_at = row * spec.key_heads * dk + spec.key_head_of(head) * dk;
    let value_at = row * spec.value_heads * spec.value_dim + head * spec.value_dim + group % groups * lanes;
    let (key, query) = (&operands.keys[key_at..key_at + dk], &operands.queries[key_at..key_at + dk]);
    let gate = &operands.decay[row * spec.value_heads + head..][..1];
    let beta = &operands.beta[row * spec.value_heads + head..][..1];
    let (mut key_key, mut key_query) = ([0.0], [0.0]);
    let (mut base, mut coefficients, mut weight) = ([0.0], [0.0; 2], [0.0]);
    let mut panel = [0.0; panel_len(1, MAX_KEY_DIM)];
    let panel = &mut panel[..panel_len(1, dk)];
    let mut delta = [0.0; MAX_LANES];
    let delta = &mut delta[..lanes];
    kernels.linear.key_scores(key, query, dk, &mut key_key, &mut key_query);
    kernels.linear.pack_window(key, query, dk, panel);
    kernels.linear.head_coefficients(gate, &key_key, &key_query, &mut base, &mut coefficients);
    // The group after this one, for the time that all tokens of this one take.
    let next = if row == 0 { Ahead::of(state).following() } else { Ahead::NONE };
    kernels.linear.window_tile(WindowTile {
        state: Some(State::F32(if row == 0 { state } else { running })),
        dk,
        keys: panel,
        coefficients: &coefficients,
        base: &base,
        beta,
        values: &operands.values[value_at..][..lanes],
        value_stride: lanes,
        deltas: OutTile::new(delta, lanes, 1, lanes),
        out: OutTile::new(&mut out[row * lanes..], lanes, 1, lanes),
        ahead: Lookahead { state: [next, Ahead::NONE], ..Lookahead::NONE },
    });
    let decay = kernels.linear.fold_weights(gate, &mut weight);
    kernels.linear.fold_tile(FoldTile {
        source: if row == 0 { FoldSource::From(State::F32(state)) } else { FoldSource::InPlace },
        destination: StateMut::F32(running),
        dk,
        keys: key,
        base: FoldBase::Head(decay),
        weights: &weight,
        deltas: delta,
        delta_stride: lanes,
        ahead: Lookahead::NONE,
    });
}

/// Widest key of the shapes.
const MAX_KEY_DIM: usize = 128;

/// Most lanes of a group.
const MAX_LANES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::streams::{Part, Setup, Streams};
    use millpond::state::memory::StateType;
    use millpond_simd::Isa;

    /// Both ways of verifying drafts give the same outputs and, once the buffer is folded, the same state.
    #[test]
    fn snapshots_and_buffer_agree() {
        let shape = Shape { name: "small", key_heads: 2, value_heads: 4, layers: 1 };
        let kernels = Kernels::for_isa(Isa::detect()).unwrap();
        let team = Team::new(2).unwrap();
        let rows = 4;
        let setup = Setup {
            shape,
            layers: 2,
            batch: 2,
            interval: 1,
            rows,
            part: Part::State,
            state_type: StateType::F32,
        };
        let mut buffered = Streams::new(kernels, setup).unwrap();
        let mut snapshots = Snapshots::new(kernels, shape, 2, 2, rows).unwrap();
        let spec = shape.linear();
        for round in 0..12 {
            let accepted = |stream: usize| 1 + (round + stream) % rows;
            buffered.step(&team, accepted).unwrap();
            snapshots.step(&team, accepted);
            for stream in 0..2 {
                for (i, &got) in buffered.outputs(stream).iter().enumerate() {
                    let (row, at) = (i / (spec.value_heads * 128), i % (spec.value_heads * 128));
                    let expected = snapshots.output(stream, row, at / 128, at % 128);
                    assert!((got - expected).abs() < 1e-4, "round {round}, {got} and {expected}");
                }
            }
        }
        // A window that is rejected whole makes the buffer fold what was accepted before it.
        buffered.step(&team, |_| 0).unwrap();
        for (stream, layer) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let states = buffered.base(stream, layer).into_iter().zip(snapshots.state(stream, layer));
            assert!(states.clone().count() == 4 * 128 * 128);
            assert!(states.clone().all(|(a, b)| (a - b).abs() < 1e-4), "stream {stream}, layer {layer}");
        }
    }
}
