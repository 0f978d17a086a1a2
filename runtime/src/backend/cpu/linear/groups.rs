//! Groups of v-tiles through windows and folds.

use millpond_simd::linear::{
    Ahead, FoldBase, FoldSource, FoldTile, Lookahead, State, StateMut, WindowTile, panel_len,
};
use millpond_simd::matmul::OutTile;

use super::Pass;
use super::placement::Placed;
use crate::par::Cut;

/// A part of a layer's base, as far as this pass may touch it.
pub(super) enum BasePart<'a> {
    /// There is none yet.
    Zero,
    /// It is only read.
    Shared(State<'a>),
    /// It is folded into.
    Owned(StateMut<'a>),
}

impl<'a> BasePart<'a> {
    /// The first `left` of `count` equal parts, and the others.
    pub(super) fn split(self, left: usize, count: usize) -> (BasePart<'a>, BasePart<'a>) {
        match self {
            BasePart::Zero => (BasePart::Zero, BasePart::Zero),
            BasePart::Shared(base) => {
                let (left, right) = base.split_at(base.len() / count * left);
                (BasePart::Shared(left), BasePart::Shared(right))
            }
            BasePart::Owned(base) => {
                let at = base.len() / count * left;
                let (left, right) = base.split_at(at);
                (BasePart::Owned(left), BasePart::Owned(right))
            }
        }
    }

    pub(super) fn values(&self) -> Option<State<'_>> {
        match self {
            BasePart::Zero => None,
            BasePart::Shared(base) => Some(*base),
            BasePart::Owned(base) => Some(base.shared()),
        }
    }
}

/// Consecutive groups of a unit and what they write.
pub(super) struct GroupsPart<'a> {
    pub(super) first: usize,
    pub(super) count: usize,
    /// `[count][capacity][group lanes]`.
    pub(super) deltas: &'a mut [f32],
    /// `[count][group_len]`.
    pub(super) base: BasePart<'a>,
    /// `[count][rows][group lanes]`.
    pub(super) outputs: &'a mut [f32],
    /// `[count][group_len]`, or empty where no fold is a preview.
    pub(super) preview: StateMut<'a>,
}

impl Cut for GroupsPart<'_> {
    fn pieces(&self) -> usize {
        self.count
    }

    fn split(self, left: usize) -> (Self, Self) {
        let count = self.count;
        let (deltas, more_deltas) = self.deltas.split_at_mut(self.deltas.len() / count * left);
        let (outputs, more_outputs) = self.outputs.split_at_mut(self.outputs.len() / count * left);
        let preview_len = self.preview.len() / count * left;
        let (preview, more_preview) = self.preview.split_at(preview_len);
        let (base, more_base) = self.base.split(left, count);
        (
            GroupsPart { first: self.first, count: left, deltas, base, outputs, preview },
            GroupsPart {
                first: self.first + left,
                count: count - left,
                deltas: more_deltas,
                base: more_base,
                outputs: more_outputs,
                preview: more_preview,
            },
        )
    }
}

/// What the groups of a unit read.
pub(super) struct Operands<'a> {
    pub(super) keys: &'a [f32],
    pub(super) key_panels: &'a [f32],
    /// From one value head's panel to the next; 0 where they share it.
    pub(super) panel_stride: usize,
    pub(super) coefficients: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) betas: &'a [f32],
    pub(super) base: &'a [f32],
    pub(super) folds: &'a [f32],
    /// Where decays are by key channel: keys with their weights and the base's decay.
    pub(super) fold_keys: Option<&'a [f32]>,
    /// Memory to ask for meanwhile.
    pub(super) requests: Requests,
}

/// What a unit asks for while it runs, so that memory never idles: by the time it has run, as many lines as its own
/// base has, beginning [`DISTANCE`] after its first. Its preparation asks for a share, its groups for the rest.
pub(super) struct Requests {
    /// The base of the unit, and of the one after it.
    own: Ahead,
    next: Ahead,
    groups: usize,
    distance: usize,
    early: usize,
}

/// Steps of a group that ask for memory: a fold and the window after it.
const ASKING_STEPS: usize = 2;

/// How far ahead of its use a line is asked for, in lines: 16 KiB, so that it is still in the first cache by then.
const DISTANCE: usize = 256;

/// Lines that a preparation asks for, at most. Processors drop requests that come many at a time.
const EARLY: usize = 96;

impl Requests {
    /// Of a unit of `groups` groups.
    pub(super) fn new(base: &BasePart<'_>, next: Ahead, groups: usize) -> Requests {
        let own = base.values().map_or(Ahead::NONE, Ahead::of_state);
        let (distance, early) = (DISTANCE.min(own.lines()), EARLY.min(own.lines()));
        Requests { own, next, groups, distance, early }
    }

    /// Lines `from..to` of the unit's base and of what comes after it.
    fn range(&self, from: usize, to: usize) -> [Ahead; 2] {
        let own = self.own.lines();
        [self.own.range(from, to), self.next.range(from.saturating_sub(own), to.saturating_sub(own))]
    }

    /// Asks for part `index` of `count` of what preparation asks for.
    pub(super) fn prepare(&self, index: usize, count: usize) {
        let at = |index: usize| self.distance + self.early * index / count;
        self.range(at(index), at(index + 1)).into_iter().for_each(Ahead::ask);
    }

    /// What step `step` of `steps` of a group asks for.
    fn of_group(&self, group: usize, (step, steps): (usize, usize)) -> [Ahead; 2] {
        let rest = self.own.lines() - self.early;
        let at =
            |step: usize| self.distance + self.early + rest * (group * steps + step) / (self.groups * steps);
        self.range(at(step), at(step + 1))
    }
}

/// The state a window reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GroupState {
    Zero,
    Base,
    Preview,
}

impl Pass<'_> {
    /// Runs some groups of a unit.
    pub(super) fn groups(&self, operands: &Operands<'_>, part: GroupsPart<'_>) {
        crate::par::each_piece(part, &|group| self.group(operands, group));
    }

    /// What group `group` asks for in step `step`: base values, and in the first step what the group after it reads of the
    /// log and will write to it.
    fn lookahead(&self, all: &Operands<'_>, deltas: &[f32], group: usize, step: usize) -> Lookahead {
        let steps = self.placement.steps.len().min(ASKING_STEPS);
        if step >= steps {
            return Lookahead::NONE;
        }
        let state = all.requests.of_group(group, (step, steps));
        if step > 0 {
            return Lookahead { state, ..Lookahead::NONE };
        }
        // Keys come first, since the next unit begins with them.
        let (log, dk) = (self.plan.log + self.plan.rows, self.layout.spec.key_dim);
        let last_of_unit = (group + 1) * self.layout.spec.key_heads == self.layout.total_groups();
        let log_deltas = Ahead::after(&deltas[..log * self.layout.group_lanes()], deltas.len());
        let keys =
            if last_of_unit { Ahead::after(&all.keys[..log * dk], all.keys.len()) } else { Ahead::NONE };
        Lookahead { state, log: [keys, log_deltas] }
    }

    fn group(&self, all: &Operands<'_>, part: GroupsPart<'_>) {
        let GroupsPart { first: group, deltas, mut base, outputs, mut preview, .. } = part;
        let (dk, rows, lanes) = (self.layout.spec.key_dim, self.plan.rows, self.layout.group_lanes());
        let head = group / self.layout.groups();
        let coefficients = &all.coefficients[2 * head * self.placement.scores..];
        let values = &all.values[group * rows * lanes..(group + 1) * rows * lanes];
        let folds = &all.folds[head * self.placement.fold_weights..];
        let key_panel = &all.key_panels[head * all.panel_stride..];
        let mut state = if self.plan.has_base { GroupState::Base } else { GroupState::Zero };
        for (index, step) in self.placement.steps.iter().enumerate() {
            let ahead = self.lookahead(all, deltas, group, index);
            match *step {
                Placed::Window { first_entry, committed, row, rows: count, scores } => {
                    let entries = committed + count;
                    let row_range = head * rows + row..head * rows + row + count;
                    self.kernels.linear.window_tile(WindowTile {
                        state: match state {
                            GroupState::Zero => None,
                            GroupState::Base => base.values(),
                            GroupState::Preview => Some(preview.shared()),
                        },
                        dk,
                        keys: &key_panel[panel_len(row, dk)..panel_len(row + count, dk)],
                        coefficients: &coefficients[2 * scores..2 * (scores + count * entries)],
                        base: &all.base[row_range.clone()],
                        beta: &all.betas[row_range],
                        values: &values[row * lanes..(row + count) * lanes],
                        value_stride: lanes,
                        deltas: OutTile::new(&mut deltas[first_entry * lanes..], lanes, entries, lanes),
                        out: OutTile::new(&mut outputs[row * lanes..], lanes, count, lanes),
                        ahead,
                    });
                }
                Placed::Fold { first_entry, entries, weights, durable } => {
                    let (each, own) = folds[weights..weights + entries + 1].split_at(entries);
                    let (keys, decay) = match all.fold_keys {
                        None => (
                            &all.keys[first_entry * dk..(first_entry + entries) * dk],
                            FoldBase::Head(own[0]),
                        ),
                        Some(keys) => {
                            let first = head * self.placement.fold_weights + weights;
                            let both = &keys[first * dk..(first + entries + 1) * dk];
                            let (keys, base) = both.split_at(entries * dk);
                            (keys, FoldBase::Channels(base))
                        }
                    };
                    let (source, destination) = match (durable, &mut base) {
                        (true, BasePart::Owned(owned)) => match state {
                            GroupState::Zero => (FoldSource::Zero, owned.reborrow()),
                            _ => (FoldSource::InPlace, owned.reborrow()),
                        },
                        (_, base) => match (state, base.values()) {
                            (GroupState::Base, Some(base)) => (FoldSource::From(base), preview.reborrow()),
                            (GroupState::Preview, _) => (FoldSource::InPlace, preview.reborrow()),
                            _ => (FoldSource::Zero, preview.reborrow()),
                        },
                    };
                    self.kernels.linear.fold_tile(FoldTile {
                        source,
                        destination,
                        dk,
                        keys,
                        base: decay,
                        weights: each,
                        deltas: &deltas[first_entry * lanes..(first_entry + entries) * lanes],
                        delta_stride: lanes,
                        ahead,
                    });
                    state = if durable { GroupState::Base } else { GroupState::Preview };
                }
            }
        }
    }
}
