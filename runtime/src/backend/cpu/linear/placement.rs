//! Where the steps of a plan find their operands.

use crate::state::{PassPlan, Step};

/// A step of the plan with its place in the scratch memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Placed {
    Window { first_entry: usize, committed: usize, row: usize, rows: usize, scores: usize },
    Fold { first_entry: usize, entries: usize, weights: usize, durable: bool },
}

/// The plan's steps with their offsets, and the sizes they add up to.
#[derive(Default)]
pub struct Placement {
    pub(super) steps: Vec<Placed>,
    /// Scores of all windows: rows times entries each.
    pub(super) scores: usize,
    /// Weights of all folds: one per entry, and the base's own.
    pub(super) fold_weights: usize,
    /// Whether any fold goes to scratch memory.
    pub(super) previews: bool,
}

impl Placement {
    /// Places the steps of a plan.
    pub fn new(plan: &PassPlan) -> Placement {
        Placement::default().placed(plan)
    }

    /// The places of another plan's steps, in the memory of these.
    pub fn placed(self, plan: &PassPlan) -> Placement {
        let mut steps = self.steps;
        steps.clear();
        let mut placement = Placement { steps, ..Placement::default() };
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
