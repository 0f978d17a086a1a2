//! Groups of v-tiles through windows and folds.

use millpond_simd::linear::{Ahead, FoldSource, FoldTile, WindowTile, panel_len};
use millpond_simd::matmul::OutTile;

use super::Pass;
use super::placement::Placed;

/// A part of a layer's base, as far as this pass may touch it.
pub(super) enum BasePart<'a> {
    /// There is none yet.
    Zero,
    /// It is only read.
    Shared(&'a [f32]),
    /// It is folded into.
    Owned(&'a mut [f32]),
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
                let (left, right) = base.split_at_mut(base.len() / count * left);
                (BasePart::Owned(left), BasePart::Owned(right))
            }
        }
    }

    fn values(&self) -> Option<&[f32]> {
        match self {
            BasePart::Zero => None,
            BasePart::Shared(base) => Some(base),
            BasePart::Owned(base) => Some(base),
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
    pub(super) preview: &'a mut [f32],
}

impl<'a> GroupsPart<'a> {
    fn halve(self) -> (GroupsPart<'a>, GroupsPart<'a>) {
        let (count, left) = (self.count, self.count / 2);
        let (deltas, more_deltas) = self.deltas.split_at_mut(self.deltas.len() / count * left);
        let (outputs, more_outputs) = self.outputs.split_at_mut(self.outputs.len() / count * left);
        let (preview, more_preview) = self.preview.split_at_mut(self.preview.len() / count * left);
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
    pub(super) coefficients: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) betas: &'a [f32],
    pub(super) base: &'a [f32],
    pub(super) folds: &'a [f32],
    /// Whether this is the sequence's last key head.
    pub(super) last: bool,
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
        if part.count > 1 {
            let (left, right) = part.halve();
            crate::par::join(|| self.groups(operands, left), || self.groups(operands, right));
        } else {
            self.group(operands, part);
        }
    }

    /// What the unit after group `group` of this one reads first, were they run in order: the next group's base and
    /// log, and the next key head's keys.
    fn next(&self, all: &Operands<'_>, base: &BasePart<'_>, deltas: &[f32], group: usize) -> [Ahead; 3] {
        let (log, dk) = (self.plan.log, self.layout.spec.key_dim);
        let unit_groups = self.layout.total_groups() / self.layout.spec.key_heads;
        let last_of_unit = group + 1 == unit_groups;
        if last_of_unit && all.last {
            return [Ahead::NONE; 3];
        }
        let base = match base.values() {
            Some(base) if self.plan.has_base => Ahead::after(base, base.len()),
            _ => Ahead::NONE,
        };
        let log_deltas = &deltas[..log * self.layout.group_lanes()];
        let deltas = Ahead::after(log_deltas, deltas.len());
        let keys =
            if last_of_unit { Ahead::after(&all.keys[..log * dk], all.keys.len()) } else { Ahead::NONE };
        [base, deltas, keys]
    }

    fn group(&self, all: &Operands<'_>, part: GroupsPart<'_>) {
        let GroupsPart { first: group, deltas, mut base, outputs, preview, .. } = part;
        let (dk, rows, lanes) = (self.layout.spec.key_dim, self.plan.rows, self.layout.group_lanes());
        let head = group / self.layout.groups();
        let coefficients = &all.coefficients[2 * head * self.placement.scores..];
        let values = &all.values[group * rows * lanes..(group + 1) * rows * lanes];
        let folds = &all.folds[head * self.placement.fold_weights..];
        let next = self.next(all, &base, deltas, group);
        let mut ahead: &[Ahead] = &next;
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
                        keys: &all.key_panels[panel_len(row, dk)..panel_len(row + count, dk)],
                        coefficients: &coefficients[2 * scores..2 * (scores + count * entries)],
                        base: &all.base[row_range.clone()],
                        beta: &all.betas[row_range],
                        values: &values[row * lanes..(row + count) * lanes],
                        value_stride: lanes,
                        deltas: OutTile::new(&mut deltas[first_entry * lanes..], lanes, entries, lanes),
                        out: OutTile::new(&mut outputs[row * lanes..], lanes, count, lanes),
                        ahead: std::mem::take(&mut ahead),
                    });
                }
                Placed::Fold { first_entry, entries, weights, durable } => {
                    let (each, own) = folds[weights..weights + entries + 1].split_at(entries);
                    let (source, destination) = match (durable, &mut base) {
                        (true, BasePart::Owned(owned)) => match state {
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
                        keys: &all.keys[first_entry * dk..(first_entry + entries) * dk],
                        base: own[0],
                        weights: each,
                        deltas: &deltas[first_entry * lanes..(first_entry + entries) * lanes],
                        delta_stride: lanes,
                        ahead: std::mem::take(&mut ahead),
                    });
                    state = if durable { GroupState::Base } else { GroupState::Preview };
                }
            }
        }
    }
}
