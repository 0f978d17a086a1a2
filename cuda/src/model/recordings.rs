//! Passes whose launches were recorded: a step of decoding then takes one call instead of hundreds.

use std::collections::{HashMap, HashSet};

use super::backend::CudaBackend;
use super::ops::{RowRange, span_room};
use super::pass::Pass;
use crate::device::Recording;
use crate::linear::StepKernel;

/// Most recordings, and most passes that are remembered to have run.
const MOST: usize = 64;

/// All that the launches of a pass depend on: their number, grids, kernels and addresses. What changes from step to
/// step (tokens, positions, plans, pages) stands in the table of the pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    ranges: Vec<RowRange>,
    spans: usize,
    head_rows: usize,
    want_hidden: bool,
    /// Sequences and kernel of each launch of the linear layers.
    linear: Vec<(usize, StepKernel)>,
    addresses: Vec<u64>,
}

impl Key {
    /// The key of a pass whose table stands at `table`.
    pub(super) fn new(pass: &Pass, want_hidden: bool, table: u64, backend: &CudaBackend) -> Key {
        let mut addresses = backend.addresses();
        addresses.extend([table, pass.page_table]);
        Key {
            ranges: pass.ranges.clone(),
            spans: span_room(pass.end),
            head_rows: pass.head_rows,
            want_hidden,
            linear: pass.batches.iter().flat_map(|batch| batch.forms()).collect(),
            addresses,
        }
    }
}

/// Recorded passes.
#[derive(Default)]
pub(super) struct Recordings {
    kept: HashMap<Key, Box<dyn Recording>>,
    seen: HashSet<Key>,
}

impl Recordings {
    pub(super) fn get(&self, key: &Key) -> Option<&dyn Recording> {
        self.kept.get(key).map(|recording| &**recording)
    }

    /// Whether a pass like this ran before; it counts from now on.
    pub(super) fn seen(&mut self, key: &Key) -> bool {
        if self.seen.len() >= MOST {
            self.seen.clear();
        }
        !self.seen.insert(key.clone())
    }

    /// Keeps a recording. Where there are too many, all others go: what is still in use comes back at once.
    pub(super) fn keep(&mut self, key: Key, recording: Box<dyn Recording>) {
        if self.kept.len() >= MOST {
            self.kept.clear();
        }
        self.kept.insert(key, recording);
    }
}
