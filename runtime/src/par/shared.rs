//! One matrix that several threads write.

use std::marker::PhantomData;
use std::ops::Range;

use millpond_simd::matmul::OutTile;

/// A row-major matrix that several threads write at once, each a tile of its own.
pub(crate) struct SharedRows<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    claimed: ClaimCheck,
    values: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a unique borrow that lives as long as the value, and `tile` hands out tiles that its
// callers keep apart, so no two threads touch the same value.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    /// Shares `values` as `rows x cols`.
    ///
    /// # Panics
    /// When `values` is shorter than that.
    pub(crate) fn new(values: &'a mut [f32], rows: usize, cols: usize) -> SharedRows<'a> {
        assert!(values.len() >= rows * cols, "{} values are no {rows} x {cols} matrix", values.len());
        SharedRows {
            start: values.as_mut_ptr(),
            rows,
            cols,
            claimed: ClaimCheck::new(rows * cols),
            values: PhantomData,
        }
    }

    /// All rows of some columns. Each value may be taken once; debug builds check it.
    ///
    /// # Panics
    /// When the columns are not columns of the matrix.
    pub(crate) fn columns(&self, columns: Range<usize>) -> OutTile<'_> {
        self.tile(0..self.rows, columns)
    }

    /// Some rows of some columns. Each value may be taken once; debug builds check it.
    ///
    /// # Panics
    /// When they are not rows and columns of the matrix.
    pub(crate) fn tile(&self, rows: Range<usize>, columns: Range<usize>) -> OutTile<'_> {
        assert!(columns.start <= columns.end && columns.end <= self.cols);
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        for row in rows.clone() {
            self.claimed.claim(row * self.cols + columns.start..row * self.cols + columns.end);
        }
        let first = rows.start * self.cols + columns.start;
        // SAFETY: the tile lies inside the borrowed values (asserted above), and its values are taken only once.
        unsafe { OutTile::from_raw(self.start.add(first), self.cols, rows.len(), columns.len()) }
    }
}

/// In debug builds, remembers which values were taken.
struct ClaimCheck {
    #[cfg(debug_assertions)]
    taken: Vec<std::sync::atomic::AtomicBool>,
}

#[cfg(debug_assertions)]
thread_local! {
    /// Memory of checks that are over, so that debug builds too stop allocating.
    static CHECKED: std::cell::RefCell<Vec<Vec<std::sync::atomic::AtomicBool>>> =
        const { std::cell::RefCell::new(Vec::new()) };
}

impl ClaimCheck {
    #[cfg(debug_assertions)]
    fn new(values: usize) -> ClaimCheck {
        let mut taken = CHECKED.with_borrow_mut(Vec::pop).unwrap_or_default();
        taken.clear();
        taken.resize_with(values, Default::default);
        ClaimCheck { taken }
    }

    #[cfg(not(debug_assertions))]
    fn new(_values: usize) -> ClaimCheck {
        ClaimCheck {}
    }

    #[cfg(debug_assertions)]
    fn claim(&self, range: Range<usize>) {
        for taken in &self.taken[range.clone()] {
            let before = taken.swap(true, std::sync::atomic::Ordering::Relaxed);
            assert!(!before, "values {range:?} are written twice");
        }
    }

    #[cfg(not(debug_assertions))]
    fn claim(&self, _range: Range<usize>) {}
}

#[cfg(debug_assertions)]
impl Drop for ClaimCheck {
    fn drop(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        CHECKED.with_borrow_mut(|checked| checked.push(taken));
    }
}
