//! The right-hand sides of products, prepared once and shared by every matrix that reads them.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::MatmulKernels;
use super::buffer::AlignedBuffer;
use crate::LANES;
use crate::quant::QFormat;

/// What a weight format multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationKind {
    /// Floats, for float weights.
    F32,
    /// Signed bytes with one f32 scale per 32, for weights in blocks of 32.
    Q8Block32,
    /// Signed bytes with one f32 scale per 256, for weights in blocks of 256.
    Q8Block256,
}

impl ActivationKind {
    /// Values that share a scale; 1 for floats.
    pub const fn block_len(self) -> usize {
        match self {
            ActivationKind::F32 => 1,
            ActivationKind::Q8Block32 => 32,
            ActivationKind::Q8Block256 => 256,
        }
    }
}

impl QFormat {
    /// What weights of this format multiply with.
    pub const fn activation_kind(self) -> ActivationKind {
        match self.block_len() {
            1 => ActivationKind::F32,
            32 => ActivationKind::Q8Block32,
            _ => ActivationKind::Q8Block256,
        }
    }
}

/// Prepared rows `[rows][cols]` of one kind. The buffers are reused: after the largest call nothing is allocated.
pub struct Activations {
    kind: ActivationKind,
    rows: usize,
    cols: usize,
    floats: AlignedBuffer<f32>,
    quants: AlignedBuffer<i8>,
    scales: AlignedBuffer<f32>,
    sums: AlignedBuffer<i32>,
    sums16: AlignedBuffer<i16>,
    sums32: AlignedBuffer<i16>,
    claimed: Vec<AtomicBool>,
}

/// One prepared row. Only the fields of its kind are filled.
#[derive(Clone, Copy)]
#[allow(dead_code)] // the sums serve the vector paths, which not every architecture has
pub(crate) struct ActivationRow<'a> {
    /// F32: the values, zero-padded to a multiple of [`LANES`].
    pub(crate) floats: &'a [f32],
    /// Integers, -127 to 127.
    pub(crate) quants: &'a [i8],
    /// One scale per block.
    pub(crate) scales: &'a [f32],
    /// Q8Block32: the sum of the integers of each block.
    pub(crate) sums: &'a [i32],
    /// Q8Block256: the sum of each 16 integers.
    pub(crate) sums16: &'a [i16],
    /// Q8Block256: the sum of each 32 integers.
    pub(crate) sums32: &'a [i16],
}

/// Where the parts of one row start, for the vector paths. Each part may be read a cache line past its end.
#[derive(Clone, Copy)]
#[allow(dead_code)] // as above
pub(crate) struct RowPointers {
    pub(crate) floats: *const f32,
    pub(crate) quants: *const i8,
    pub(crate) scales: *const f32,
    pub(crate) sums: *const i32,
    pub(crate) sums16: *const i16,
    pub(crate) sums32: *const i16,
}

impl RowPointers {
    /// The row `rows` further.
    #[inline(always)]
    #[allow(dead_code)] // as above
    pub(crate) fn step(self, steps: RowSteps, rows: usize) -> RowPointers {
        let steps = steps.0;
        RowPointers {
            floats: self.floats.wrapping_add(rows * steps.floats),
            quants: self.quants.wrapping_add(rows * steps.quants),
            scales: self.scales.wrapping_add(rows * steps.scales),
            sums: self.sums.wrapping_add(rows * steps.sums),
            sums16: self.sums16.wrapping_add(rows * steps.sums16),
            sums32: self.sums32.wrapping_add(rows * steps.sums32),
        }
    }
}

/// The distances between rows.
#[derive(Clone, Copy)]
#[allow(dead_code)] // as above
pub(crate) struct RowSteps(RowShape);

/// The place of one row; same fields as [`ActivationRow`].
pub(crate) struct ActivationRowMut<'a> {
    pub(crate) floats: &'a mut [f32],
    pub(crate) quants: &'a mut [i8],
    pub(crate) scales: &'a mut [f32],
    pub(crate) sums: &'a mut [i32],
    pub(crate) sums16: &'a mut [i16],
    pub(crate) sums32: &'a mut [i16],
}

/// Lengths of a row's parts.
#[derive(Clone, Copy)]
struct RowShape {
    floats: usize,
    quants: usize,
    scales: usize,
    sums: usize,
    sums16: usize,
    sums32: usize,
}

impl RowShape {
    fn new(kind: ActivationKind, cols: usize) -> RowShape {
        let none = RowShape { floats: 0, quants: 0, scales: 0, sums: 0, sums16: 0, sums32: 0 };
        match kind {
            ActivationKind::F32 => RowShape { floats: cols.next_multiple_of(LANES), ..none },
            ActivationKind::Q8Block32 => {
                RowShape { quants: cols, scales: cols / 32, sums: cols / 32, ..none }
            }
            ActivationKind::Q8Block256 => {
                RowShape { quants: cols, scales: cols / 256, sums16: cols / 16, sums32: cols / 32, ..none }
            }
        }
    }
}

fn part(row: usize, len: usize) -> Range<usize> {
    row * len..(row + 1) * len
}

impl Default for Activations {
    fn default() -> Self {
        Activations::new()
    }
}

impl Activations {
    /// No rows yet.
    pub const fn new() -> Activations {
        Activations {
            kind: ActivationKind::F32,
            rows: 0,
            cols: 0,
            floats: AlignedBuffer::new(),
            quants: AlignedBuffer::new(),
            scales: AlignedBuffer::new(),
            sums: AlignedBuffer::new(),
            sums16: AlignedBuffer::new(),
            sums32: AlignedBuffer::new(),
            claimed: Vec::new(),
        }
    }

    /// The kind of the rows.
    pub const fn kind(&self) -> ActivationKind {
        self.kind
    }

    /// The number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Prepares `x` = `[rows][cols]` in the calling thread.
    ///
    /// # Panics
    /// If `x` has another size or `cols` is no multiple of the kind's block.
    pub fn prepare(
        &mut self,
        kernels: &MatmulKernels,
        kind: ActivationKind,
        x: &[f32],
        rows: usize,
        cols: usize,
    ) {
        assert_eq!(Some(x.len()), rows.checked_mul(cols), "x is [rows][cols]");
        let writer = self.start(kind, rows, cols);
        for row in 0..rows {
            writer.prepare_row(kernels, row, &x[part(row, cols)]);
        }
    }

    /// Makes room for `rows` rows, which several threads may then prepare through the writer. Rows that are not
    /// prepared hold unspecified numbers.
    ///
    /// # Panics
    /// If `cols` is no multiple of the kind's block.
    pub fn start(&mut self, kind: ActivationKind, rows: usize, cols: usize) -> ActivationWriter<'_> {
        assert!(cols.is_multiple_of(kind.block_len()), "{cols} values are no whole blocks of {kind:?}");
        (self.kind, self.rows, self.cols) = (kind, rows, cols);
        let shape = RowShape::new(kind, cols);
        self.floats.resize(rows * shape.floats);
        self.quants.resize(rows * shape.quants);
        self.scales.resize(rows * shape.scales);
        self.sums.resize(rows * shape.sums);
        self.sums16.resize(rows * shape.sums16);
        self.sums32.resize(rows * shape.sums32);
        if self.claimed.len() < rows {
            self.claimed.resize_with(rows, || AtomicBool::new(false));
        }
        for claim in &mut self.claimed[..rows] {
            *claim.get_mut() = false;
        }
        ActivationWriter {
            kind,
            cols,
            shape,
            floats: self.floats.as_mut_slice().as_mut_ptr(),
            quants: self.quants.as_mut_slice().as_mut_ptr(),
            scales: self.scales.as_mut_slice().as_mut_ptr(),
            sums: self.sums.as_mut_slice().as_mut_ptr(),
            sums16: self.sums16.as_mut_slice().as_mut_ptr(),
            sums32: self.sums32.as_mut_slice().as_mut_ptr(),
            claimed: &self.claimed[..rows],
        }
    }

    /// Row `row` for the vector paths.
    #[allow(dead_code)] // as above
    pub(crate) fn row_pointers(&self, row: usize) -> RowPointers {
        assert!(row < self.rows, "there is a row {row}");
        RowPointers {
            floats: self.floats.as_ptr(),
            quants: self.quants.as_ptr(),
            scales: self.scales.as_ptr(),
            sums: self.sums.as_ptr(),
            sums16: self.sums16.as_ptr(),
            sums32: self.sums32.as_ptr(),
        }
        .step(self.row_steps(), row)
    }

    /// The distances between rows.
    #[allow(dead_code)] // as above
    pub(crate) fn row_steps(&self) -> RowSteps {
        RowSteps(RowShape::new(self.kind, self.cols))
    }

    /// Row `row`, read only.
    pub(crate) fn row(&self, row: usize) -> ActivationRow<'_> {
        let shape = RowShape::new(self.kind, self.cols);
        ActivationRow {
            floats: &self.floats.as_slice()[part(row, shape.floats)],
            quants: &self.quants.as_slice()[part(row, shape.quants)],
            scales: &self.scales.as_slice()[part(row, shape.scales)],
            sums: &self.sums.as_slice()[part(row, shape.sums)],
            sums16: &self.sums16.as_slice()[part(row, shape.sums16)],
            sums32: &self.sums32.as_slice()[part(row, shape.sums32)],
        }
    }
}

/// Prepares rows of an [`Activations`] from any thread, each row once.
pub struct ActivationWriter<'a> {
    kind: ActivationKind,
    cols: usize,
    shape: RowShape,
    floats: *mut f32,
    quants: *mut i8,
    scales: *mut f32,
    sums: *mut i32,
    sums16: *mut i16,
    sums32: *mut i16,
    claimed: &'a [AtomicBool],
}

// SAFETY: the pointers stand for the exclusive borrow of the buffers behind `'a`; a row's memory is handed out only
// to the one caller that claims the row.
unsafe impl Send for ActivationWriter<'_> {}
// SAFETY: as for `Send`; claiming is atomic.
unsafe impl Sync for ActivationWriter<'_> {}

impl ActivationWriter<'_> {
    /// The number of rows to prepare.
    pub fn rows(&self) -> usize {
        self.claimed.len()
    }

    /// Prepares row `row` from its values.
    ///
    /// # Panics
    /// If the row does not exist, was prepared before, or `x` is not a row.
    pub fn prepare_row(&self, kernels: &MatmulKernels, row: usize, x: &[f32]) {
        assert_eq!(x.len(), self.cols, "x is one row");
        kernels.prepare_row(self.kind, x, self.place(row));
    }

    /// Takes row `from_row` of other activations, prepared for the same columns in the same kind, as row `row`.
    ///
    /// # Panics
    /// If the row does not exist, was prepared before, or the other row is of another shape.
    pub fn copy_row(&self, row: usize, from: &Activations, from_row: usize) {
        assert_eq!((from.kind, from.cols), (self.kind, self.cols), "rows of one shape");
        let place = self.place(row);
        let from = from.row(from_row);
        place.floats.copy_from_slice(from.floats);
        place.quants.copy_from_slice(from.quants);
        place.scales.copy_from_slice(from.scales);
        place.sums.copy_from_slice(from.sums);
        place.sums16.copy_from_slice(from.sums16);
        place.sums32.copy_from_slice(from.sums32);
    }

    /// The memory of a row, once.
    fn place(&self, row: usize) -> ActivationRowMut<'_> {
        let claimed = self.claimed[row].swap(true, Ordering::Relaxed);
        assert!(!claimed, "row {row} is prepared once");
        let shape = self.shape;
        // SAFETY: the buffers hold `rows` parts of each length and are borrowed exclusively for the writer's
        // lifetime; the claim above, made once per row, is what allows this caller alone to touch the row's parts.
        unsafe {
            ActivationRowMut {
                floats: row_of(self.floats, row, shape.floats),
                quants: row_of(self.quants, row, shape.quants),
                scales: row_of(self.scales, row, shape.scales),
                sums: row_of(self.sums, row, shape.sums),
                sums16: row_of(self.sums16, row, shape.sums16),
                sums32: row_of(self.sums32, row, shape.sums32),
            }
        }
    }
}

/// Part `row` of consecutive parts of `len` numbers.
///
/// # Safety
/// The part lies in memory borrowed exclusively for `'a`, and nobody else holds it.
unsafe fn row_of<'a, T>(start: *mut T, row: usize, len: usize) -> &'a mut [T] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(start.add(row * len), len) }
}
