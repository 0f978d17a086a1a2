//! Where a sequence stands, and when its log is folded: pure data, no arithmetic on tensors, no I/O.
//!
//! One cursor per sequence is shared by every linear layer, the convolution rings and the attention cache. A *pass*
//! appends rows; [`Cursor::plan`] says, before anything runs, which windows and folds the pass consists of. Every
//! executor (CPU, CUDA, the oracle) carries out the same plan.
//!
//! # Fold positions
//! Folds happen at absolute positions of the sequence, so that a token's arithmetic is a function of its position
//! alone and not of how tokens were grouped into passes (the *aligned mode* of the design):
//! - never below `stateless`, the length up to which the log is smaller than the state;
//! - in decoding, at every position `p >= stateless` with `p % interval == phase`;
//! - in prefill, also at the start and the end of every full chunk (`p % PREFILL_CHUNK == 0`), and nowhere inside it. It is
//!   one window, or several where a pass has to end within it.
//!
//! Folds are *lazy*: the base advances in the first pass that has a row at or beyond the fold position, so the row
//! that fills the log can still be rolled back, and C = 1 needs no rule of its own. A window of unconfirmed rows
//! that crosses a fold position folds into scratch memory (a *preview*); once the rows are confirmed the next pass
//! repeats the fold durably, with the same bits.

/// Rows of a prefill chunk. Prefill cuts at absolute multiples of it.
pub const PREFILL_CHUNK: usize = 64;

/// When the log of a sequence is folded into its base state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldPolicy {
    /// Tokens between folds in decoding; 1 is the plain recurrence.
    pub interval: usize,
    /// Fold positions are congruent to this modulo `interval`. It spreads the folds of a batch over its steps.
    pub phase: usize,
    /// No fold below this position: the log alone holds a short sequence.
    pub stateless: usize,
    /// Rows the convolution rings keep besides their taps: the longest window, and how far a rewind can reach.
    pub window: usize,
}

impl FoldPolicy {
    /// A policy whose phase is a pure function of the sequence's first token.
    ///
    /// More tokens would make the phase depend on how a prompt is cut into passes.
    pub fn for_sequence(interval: usize, stateless: usize, window: usize, first_token: u32) -> FoldPolicy {
        let interval = interval.max(1);
        let mixed = (first_token as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        FoldPolicy { interval, phase: mixed as usize % interval, stateless, window }
    }

    /// The last decode fold position at or below `position`; 0 when there is none.
    fn boundary(&self, position: usize) -> usize {
        let back = (position + self.interval - self.phase % self.interval) % self.interval;
        let boundary = position.saturating_sub(back);
        if back > position || boundary < self.stateless { 0 } else { boundary }
    }

    /// The first decode fold position above `position`.
    fn next_boundary(&self, position: usize) -> usize {
        let at_least = (position + 1).max(self.stateless).max(1);
        let ahead = (self.phase + self.interval - at_least % self.interval) % self.interval;
        at_least + ahead
    }
}

/// What a pass does with its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassKind {
    /// Rows of a prompt: confirmed as they are appended.
    Prefill,
    /// As [`PassKind::Prefill`], of a prompt that reaches at least to the end of the chunk they end in: a chunk that is
    /// read in pieces has the folds, and so the bits, of one that is read whole.
    PrefillPart,
    /// One decoded row or a draft window: pending until [`Cursor::commit`].
    Window,
}

impl PassKind {
    /// Whether the rows are a prompt's.
    pub fn is_prompt(self) -> bool {
        self != PassKind::Window
    }
}

/// One step of a pass over the linear layers. Counts are relative to what earlier steps left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Compute the next `rows` rows of the pass against the base and all log entries before them.
    Window {
        /// Rows computed.
        rows: usize,
    },
    /// Fold the oldest `entries` entries of the log into the base.
    Fold {
        /// Entries folded.
        entries: usize,
        /// Whether the sequence's base changes, or only a scratch copy for the rest of this pass.
        durable: bool,
    },
}

/// Everything an executor needs to know about one sequence in one pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassPlan {
    /// Absolute position of the first row.
    pub start: usize,
    /// Rows appended.
    pub rows: usize,
    /// Log entries before the pass.
    pub log: usize,
    /// Whether there is a base state before the pass (otherwise it is zero and not read).
    pub has_base: bool,
    /// Windows and folds, in order.
    pub steps: Vec<Step>,
    /// What the rows are.
    pub kind: PassKind,
}

impl PassPlan {
    /// Entries that durable folds take out of the log.
    pub fn durably_folded(&self) -> usize {
        self.steps
            .iter()
            .map(|step| if let Step::Fold { entries, durable: true } = step { *entries } else { 0 })
            .sum()
    }

    /// Log entries after the pass, pending rows included.
    pub fn log_after(&self) -> usize {
        self.log + self.rows - self.durably_folded()
    }

    /// Whether there is a base state after the pass.
    pub fn has_base_after(&self) -> bool {
        self.has_base || self.durably_folded() > 0
    }
}

/// Where a sequence stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    policy: FoldPolicy,
    /// Confirmed tokens.
    position: usize,
    /// Tokens the base state holds; the log holds the others.
    base: usize,
    /// Rows appended but not confirmed.
    pending: usize,
    /// One past the last position ever appended: what the convolution rings have been overwritten up to.
    reach: usize,
    /// Whether the chunk that the position lies in is being read in pieces.
    open: bool,
}

/// A sequence cannot go back to a position its base state already holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot rewind to position {asked}: the sequence is at {position} and it can go back to {oldest}")]
pub struct RewindError {
    /// Position asked for.
    pub asked: usize,
    /// Where the sequence is.
    pub position: usize,
    /// The oldest position it can go back to.
    pub oldest: usize,
}

/// A commit of more rows than are pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot commit {asked} rows: {pending} are pending")]
pub struct CommitError {
    /// Rows asked for.
    pub asked: usize,
    /// Rows pending.
    pub pending: usize,
}

impl Cursor {
    /// A cursor at the start of an empty sequence.
    pub fn new(policy: FoldPolicy) -> Cursor {
        Cursor { policy, position: 0, base: 0, pending: 0, reach: 0, open: false }
    }

    /// A cursor in the middle of a sequence, as a session file records it; `None` when the numbers disagree. The
    /// convolution rings hold what a rewind by `reach_back` rows needs.
    pub fn restore(policy: FoldPolicy, position: usize, base: usize, reach_back: usize) -> Option<Cursor> {
        let reach = position + policy.window.saturating_sub(reach_back);
        let open = false;
        (base <= position).then_some(Cursor { policy, position, base, pending: 0, reach, open })
    }

    /// The policy the cursor follows.
    pub fn policy(&self) -> FoldPolicy {
        self.policy
    }

    /// Confirmed tokens.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Tokens the base state holds.
    pub fn base(&self) -> usize {
        self.base
    }

    /// Rows appended but not confirmed.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Confirmed entries in the log.
    pub fn log(&self) -> usize {
        self.position - self.base
    }

    /// Whether it stands inside a chunk that is being read in pieces.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The oldest position a rewind can reach: the log and the convolution rings must both still hold it.
    pub fn oldest(&self) -> usize {
        self.base.max(self.reach.saturating_sub(self.policy.window))
    }

    /// How far back of its position the convolution rings hold what a rewind needs.
    pub fn reach_back(&self) -> usize {
        self.policy.window.saturating_sub(self.reach.saturating_sub(self.position))
    }

    /// The steps of a pass that appends `rows` rows. Pending rows of an earlier pass count as rejected.
    pub fn plan(&self, rows: usize, kind: PassKind) -> PassPlan {
        self.plan_in(rows, kind, Vec::new())
    }

    /// As [`Cursor::plan`], with the memory of steps that are no longer needed.
    pub fn plan_in(&self, rows: usize, kind: PassKind, mut steps: Vec<Step>) -> PassPlan {
        steps.clear();
        let mut base = self.base;
        let end = self.position + rows;
        let mut at = self.position;
        while at < end {
            let chunk = at / PREFILL_CHUNK * PREFILL_CHUNK;
            let chunk_end = chunk + PREFILL_CHUNK;
            // Read from its start to its end, be it by this pass, by one before it, or by those after it.
            let begun = at == chunk || (self.open && at == self.position);
            let full_chunk = kind.is_prompt() && begun && (chunk_end <= end || kind == PassKind::PrefillPart);
            let due = match full_chunk {
                true if chunk >= self.policy.stateless => chunk,
                true => self.policy.boundary(chunk),
                false => self.policy.boundary(at),
            };
            // One fold for each fold position, however many a pass crosses: two folds in one are other bits.
            while base < due {
                let next = self.policy.next_boundary(base).min(due);
                // Entries before the pass are confirmed; entries of this pass are as final as its kind says.
                let durable = kind.is_prompt() || next <= self.position;
                steps.push(Step::Fold { entries: next - base, durable });
                base = next;
            }
            let stop = if full_chunk {
                end.min(chunk_end)
            } else {
                let stop = end.min(self.policy.next_boundary(at)).min(at + PREFILL_CHUNK);
                if kind.is_prompt() { stop.min(chunk_end) } else { stop }
            };
            steps.push(Step::Window { rows: stop - at });
            at = stop;
            if full_chunk && at == chunk_end && chunk >= self.policy.stateless {
                steps.push(Step::Fold { entries: at - base, durable: true });
                base = at;
            }
        }
        PassPlan { start: self.position, rows, log: self.log(), has_base: self.base > 0, steps, kind }
    }

    /// Records that a planned pass has run.
    pub fn advance(&mut self, plan: &PassPlan) {
        debug_assert_eq!(plan.start, self.position, "a plan runs where it was made");
        self.base += plan.durably_folded();
        let end = plan.start + plan.rows;
        self.reach = self.reach.max(end);
        let chunk = end / PREFILL_CHUNK * PREFILL_CHUNK;
        let begun = chunk >= plan.start || self.open;
        self.open = plan.kind == PassKind::PrefillPart && begun && end > chunk;
        match plan.kind {
            PassKind::Prefill | PassKind::PrefillPart => self.position = end,
            PassKind::Window => self.pending = plan.rows,
        }
    }

    /// Confirms the first `accepted` pending rows and rejects the others.
    ///
    /// # Errors
    /// [`CommitError`] when fewer rows are pending; nothing changes then.
    pub fn commit(&mut self, accepted: usize) -> Result<(), CommitError> {
        if accepted > self.pending {
            return Err(CommitError { asked: accepted, pending: self.pending });
        }
        self.position += accepted;
        self.pending = 0;
        Ok(())
    }

    /// Goes back to `position`, dropping everything after it.
    ///
    /// # Errors
    /// [`RewindError`] when the position lies before [`Cursor::oldest`] or ahead of the sequence.
    pub fn rewind(&mut self, position: usize) -> Result<(), RewindError> {
        if position > self.position || position < self.oldest() {
            return Err(RewindError { asked: position, position: self.position, oldest: self.oldest() });
        }
        self.open &= position == self.position;
        self.position = position;
        self.pending = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// For each row of a plan, the position up to which the base is folded when the row is computed.
    fn bases(cursor: &Cursor, plan: &PassPlan) -> Vec<usize> {
        let (mut base, mut bases) = (cursor.base(), Vec::new());
        for step in &plan.steps {
            match *step {
                Step::Fold { entries, .. } => base += entries,
                Step::Window { rows } => bases.extend(std::iter::repeat_n(base, rows)),
            }
        }
        bases
    }

    fn policies() -> impl Strategy<Value = FoldPolicy> {
        (1usize..40, 0usize..40, 0usize..130).prop_map(|(interval, phase, stateless)| FoldPolicy {
            interval,
            phase: phase % interval,
            stateless,
            window: 12,
        })
    }

    proptest! {
        /// The law: in decoding, the base a token sees depends on its position only.
        #[test]
        fn bases_do_not_depend_on_the_grouping(
            policy in policies(),
            passes in prop::collection::vec((1usize..12, 0usize..12), 1..60),
        ) {
            let mut cursor = Cursor::new(policy);
            for (rows, accepted) in passes {
                let plan = cursor.plan(rows, PassKind::Window);
                for (row, base) in bases(&cursor, &plan).into_iter().enumerate() {
                    prop_assert_eq!(base, policy.boundary(plan.start + row));
                }
                let mut base = cursor.base();
                for step in &plan.steps {
                    if let Step::Fold { entries, .. } = step {
                        prop_assert_eq!(base + entries, policy.next_boundary(base));
                        base += entries;
                    }
                }
                // Only confirmed entries leave the log.
                prop_assert!(cursor.base() + plan.durably_folded() <= plan.start);
                cursor.advance(&plan);
                cursor.commit(accepted.min(rows)).unwrap();
                prop_assert!(cursor.base() <= cursor.position());
            }
        }

        /// Cutting a prompt at multiples of the chunk changes nothing.
        #[test]
        fn prefill_slices_give_the_same_steps(
            policy in policies(),
            before in 0usize..200,
            rows in 1usize..400,
            cuts in prop::collection::vec(1usize..8, 0..6),
        ) {
            let mut start = Cursor::new(policy);
            let head = start.plan(before, PassKind::Prefill);
            start.advance(&head);
            let (mut whole, mut sliced) = (start.clone(), start);
            let plan = whole.plan(rows, PassKind::Prefill);
            let expected = bases(&whole, &plan);
            whole.advance(&plan);
            let (mut got, mut left, end) = (Vec::new(), rows, before + rows);
            for cut in cuts {
                let stop = ((sliced.position() / PREFILL_CHUNK + cut) * PREFILL_CHUNK).min(end);
                let take = stop - sliced.position();
                let plan = sliced.plan(take, PassKind::Prefill);
                got.extend(bases(&sliced, &plan));
                sliced.advance(&plan);
                left -= take;
            }
            let plan = sliced.plan(left, PassKind::Prefill);
            got.extend(bases(&sliced, &plan));
            sliced.advance(&plan);
            prop_assert_eq!(got, expected);
            prop_assert_eq!(sliced, whole);
        }

        /// Nor does cutting it inside chunks, where each piece but the last of a chunk is said to be one.
        #[test]
        fn pieces_of_chunks_give_the_same_steps(
            policy in policies(),
            before in 0usize..200,
            rows in 1usize..400,
            pieces in prop::collection::vec(1usize..100, 0..20),
        ) {
            let mut start = Cursor::new(policy);
            let head = start.plan(before, PassKind::Prefill);
            start.advance(&head);
            let (mut whole, mut pieced) = (start.clone(), start);
            let plan = whole.plan(rows, PassKind::Prefill);
            let expected = bases(&whole, &plan);
            whole.advance(&plan);
            let (mut got, mut left) = (Vec::new(), rows);
            for piece in pieces.into_iter().chain([rows]) {
                let take = piece.min(left);
                let end = pieced.position() + take;
                let part = end.next_multiple_of(PREFILL_CHUNK) <= before + rows && !end.is_multiple_of(PREFILL_CHUNK);
                let kind = if part { PassKind::PrefillPart } else { PassKind::Prefill };
                let plan = pieced.plan(take, kind);
                got.extend(bases(&pieced, &plan));
                prop_assert!(plan.log_after() <= policy.stateless + policy.interval + PREFILL_CHUNK);
                pieced.advance(&plan);
                left -= take;
                if left == 0 {
                    break;
                }
            }
            prop_assert_eq!(got, expected);
            prop_assert_eq!(pieced, whole);
        }

        /// Windows never exceed the chunk, logs stay bounded, and rows add up.
        #[test]
        fn plans_are_bounded(policy in policies(), before in 0usize..300, rows in 1usize..300) {
            let mut cursor = Cursor::new(policy);
            let head = cursor.plan(before, PassKind::Prefill);
            cursor.advance(&head);
            let plan = cursor.plan(rows, PassKind::Prefill);
            let total: usize = plan.steps.iter()
                .map(|s| if let Step::Window { rows } = s { *rows } else { 0 }).sum();
            prop_assert_eq!(total, rows);
            for step in &plan.steps {
                if let Step::Window { rows } = step {
                    prop_assert!(*rows >= 1 && *rows <= PREFILL_CHUNK);
                }
                if let Step::Fold { entries, .. } = step {
                    prop_assert!(*entries >= 1);
                    prop_assert!(*entries <= policy.stateless + policy.interval + PREFILL_CHUNK);
                }
            }
        }
    }

    #[test]
    fn rewinds_reach_back_to_the_base_and_no_further() {
        let mut cursor = Cursor::new(FoldPolicy { interval: 4, phase: 0, stateless: 0, window: 4 });
        for _ in 0..6 {
            let plan = cursor.plan(1, PassKind::Window);
            cursor.advance(&plan);
            cursor.commit(1).unwrap();
        }
        assert_eq!((cursor.position(), cursor.base()), (6, 4));
        assert!(cursor.rewind(7).is_err());
        assert_eq!(cursor.rewind(3), Err(RewindError { asked: 3, position: 6, oldest: 4 }));
        cursor.rewind(4).unwrap();
        assert_eq!(cursor.log(), 0);
        assert!(cursor.commit(1).is_err());
    }

    #[test]
    fn the_plain_recurrence_folds_every_token_one_pass_later() {
        let mut cursor = Cursor::new(FoldPolicy { interval: 1, phase: 0, stateless: 0, window: 4 });
        let first = cursor.plan(1, PassKind::Window);
        assert_eq!(first.steps, [Step::Window { rows: 1 }]);
        cursor.advance(&first);
        cursor.commit(1).unwrap();
        let second = cursor.plan(1, PassKind::Window);
        assert_eq!(second.steps, [Step::Fold { entries: 1, durable: true }, Step::Window { rows: 1 }]);
    }
}
