//! The place a product is written to.

use std::marker::PhantomData;

/// A `[rows][cols]` window of a row-major f32 matrix: element `(i, j)` lies `i * stride + j` after the first.
/// Several threads may each hold a disjoint window of one matrix.
#[derive(Debug)]
pub struct OutTile<'a> {
    start: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is an exclusive borrow of its elements, like `&mut [f32]`.
unsafe impl Send for OutTile<'_> {}

impl<'a> OutTile<'a> {
    /// The window of the first `cols` columns of `rows` rows of `out`.
    ///
    /// # Panics
    /// If `out` is too short or `stride < cols`.
    pub fn new(out: &'a mut [f32], stride: usize, rows: usize, cols: usize) -> OutTile<'a> {
        assert!(cols <= stride, "rows do not overlap");
        let needed = match rows {
            0 => Some(0),
            _ => (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(cols)),
        };
        assert!(needed.is_some_and(|needed| needed <= out.len()), "out holds the tile");
        OutTile { start: out.as_mut_ptr(), stride, rows, cols, memory: PhantomData }
    }

    /// The window at `start`.
    ///
    /// # Safety
    /// For the lifetime `'a` every element of the window is valid memory that nobody else reads or writes.
    pub unsafe fn from_raw(start: *mut f32, stride: usize, rows: usize, cols: usize) -> OutTile<'a> {
        OutTile { start, stride, rows, cols, memory: PhantomData }
    }

    /// Rows of the window.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the window.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    #[allow(dead_code)] // as `element`
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The columns before and from `col`.
    ///
    /// # Panics
    /// If `col > cols`.
    pub fn split_at_col(self, col: usize) -> (OutTile<'a>, OutTile<'a>) {
        assert!(col <= self.cols, "the tile has column {col}");
        let left = OutTile { cols: col, ..self };
        let right = OutTile {
            // SAFETY: `col <= cols` stays in the window or one past a row's end.
            start: unsafe { left.start.add(col) },
            cols: self.cols - col,
            ..left
        };
        (left, right)
    }

    /// Element `(i, j)`, or one past the end of a row.
    #[allow(dead_code)] // for the vector paths, which not every architecture has
    pub(crate) fn element(&mut self, i: usize, j: usize) -> *mut f32 {
        assert!(i < self.rows && j <= self.cols, "the tile has ({i}, {j})");
        // SAFETY: inside the window or one past a row's end.
        unsafe { self.start.add(i * self.stride + j) }
    }

    /// Row `i`.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        assert!(i < self.rows, "the tile has row {i}");
        // SAFETY: the row lies in the window, which this tile borrows.
        unsafe { std::slice::from_raw_parts(self.start.add(i * self.stride), self.cols) }
    }

    /// Row `i`, writable.
    ///
    /// # Panics
    /// If `i >= rows`.
    #[inline(always)]
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "the tile has row {i}");
        // SAFETY: the row lies in the window, which this tile borrows exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.stride), self.cols) }
    }
}
