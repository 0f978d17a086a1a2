//! A pass cut into launches: the plan's steps, grouped so that each launch has room for its log.

use millpond::state::{PassPlan, Step};

use super::LinearError;
use super::abi::{MAX_STEPS, SequencePlan, encode};

/// A run of consecutive steps of one plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Absolute position of the first row.
    pub start: usize,
    /// Rows of the pass before this part.
    pub first_row: usize,
    /// Rows.
    pub rows: usize,
    /// Log entries before the part.
    pub log: usize,
    /// Whether there is a base before it.
    pub has_base: bool,
    /// Windows and folds.
    pub steps: Vec<Step>,
}

impl Part {
    /// Log entries that the part's kernel holds at once: those before it and its own rows.
    pub fn entries(&self) -> usize {
        self.log + self.rows
    }

    fn folded(&self) -> usize {
        let folded = |step: &Step| if let Step::Fold { entries, .. } = step { *entries } else { 0 };
        self.steps.iter().map(folded).sum()
    }

    fn previews(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Fold { durable: false, .. }))
    }

    /// The part that follows.
    fn next(&self) -> Part {
        Part {
            start: self.start + self.rows,
            first_row: self.first_row + self.rows,
            rows: 0,
            log: self.entries() - self.folded(),
            has_base: self.has_base || self.folded() > 0,
            steps: Vec::new(),
        }
    }

    /// The part as kernels read it. Sequence `slot` begins at row `first_row` of the batch.
    pub fn sequence_plan(&self, slot: usize, first_row: usize) -> SequencePlan {
        let mut steps = [0; MAX_STEPS];
        for (to, step) in steps.iter_mut().zip(&self.steps) {
            *to = encode(*step);
        }
        SequencePlan {
            slot: slot as i32,
            ring: slot as i32,
            first_row: (first_row + self.first_row) as i32,
            start: self.start as u32,
            log: self.log as u16,
            rows: self.rows as u16,
            has_base: self.has_base as u8,
            step_count: self.steps.len() as u8,
            steps,
        }
    }
}

/// Cuts a plan into parts of at most `entries` log entries, their own rows included.
///
/// A window may be cut in two, which changes nothing but the number of launches. A preview fold lives in the shared
/// memory of one launch, so a part with one cannot be cut after it.
///
/// # Errors
/// [`LinearError::LogTooLong`] when the log leaves no room for a row.
pub fn parts(plan: &PassPlan, entries: usize) -> Result<Vec<Part>, LinearError> {
    let too_long = |log: usize| LinearError::LogTooLong { log, capacity: entries };
    let mut current = Part {
        start: plan.start,
        first_row: 0,
        rows: 0,
        log: plan.log,
        has_base: plan.has_base,
        steps: Vec::new(),
    };
    if current.log > entries {
        return Err(too_long(current.log));
    }
    let mut done = Vec::new();
    for step in &plan.steps {
        match *step {
            Step::Fold { .. } => {
                if current.steps.len() == MAX_STEPS {
                    if current.previews() {
                        return Err(too_long(current.entries()));
                    }
                    let next = current.next();
                    done.push(std::mem::replace(&mut current, next));
                }
                current.steps.push(*step);
            }
            Step::Window { rows } => {
                let mut left = rows;
                while left > 0 {
                    let room = entries - current.entries();
                    if room == 0 || current.steps.len() == MAX_STEPS {
                        if current.previews() || current.steps.is_empty() {
                            return Err(too_long(current.entries()));
                        }
                        let next = current.next();
                        done.push(std::mem::replace(&mut current, next));
                        continue;
                    }
                    let take = left.min(room);
                    current.steps.push(Step::Window { rows: take });
                    current.rows += take;
                    left -= take;
                }
            }
        }
    }
    if !current.steps.is_empty() {
        done.push(current);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use millpond::state::{Cursor, FoldPolicy, PassKind};
    use proptest::prelude::*;

    proptest! {
        /// Parts keep every row and fold in order, within their limits.
        #[test]
        fn parts_are_the_plan_in_pieces(
            interval in 1_usize..20,
            phase in 0_usize..20,
            stateless in 0_usize..60,
            before in 0_usize..200,
            rows in 1_usize..300,
        ) {
            let policy = FoldPolicy { interval, phase: phase % interval, stateless, window: 8 };
            let mut cursor = Cursor::new(policy);
            let head = cursor.plan(before, PassKind::Prefill);
            cursor.advance(&head);
            let plan = cursor.plan(rows, PassKind::Prefill);
            let parts = parts(&plan, 128).unwrap();
            let (mut at, mut log, mut base) = (0, plan.log, plan.has_base);
            for part in &parts {
                prop_assert_eq!((part.first_row, part.log, part.has_base), (at, log, base));
                prop_assert!(part.entries() <= 128 && part.steps.len() <= MAX_STEPS);
                prop_assert!(!part.previews());
                at += part.rows;
                log = part.entries() - part.folded();
                base |= part.folded() > 0;
            }
            prop_assert_eq!((at, log, base), (rows, plan.log_after(), plan.has_base_after()));
        }
    }

    #[test]
    fn a_log_without_room_is_an_error() {
        let steps = vec![Step::Window { rows: 1 }];
        let plan = PassPlan { start: 32, rows: 1, log: 32, has_base: false, steps, kind: PassKind::Window };
        assert!(matches!(parts(&plan, 32), Err(LinearError::LogTooLong { log: 32, capacity: 32 })));
        assert_eq!(parts(&plan, 33).unwrap().len(), 1);
    }
}
