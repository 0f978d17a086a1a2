//! A growable buffer on cache-line boundaries.

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Numbers for which every bit pattern is a value.
pub(crate) trait Number: Copy + 'static {}
impl Number for i8 {}
impl Number for u8 {}
impl Number for i16 {}
impl Number for i32 {}
impl Number for f32 {}

/// `len` numbers starting at a cache line, and a line more, so that vectors may read past the end. Growing keeps the capacity, so that a reused buffer stops allocating.
pub(crate) struct AlignedBuffer<T> {
    lines: Vec<Line>,
    len: usize,
    number: std::marker::PhantomData<T>,
}

impl<T: Number> Default for AlignedBuffer<T> {
    fn default() -> Self {
        AlignedBuffer::new()
    }
}

impl<T: Number> AlignedBuffer<T> {
    pub(crate) const fn new() -> Self {
        AlignedBuffer { lines: Vec::new(), len: 0, number: std::marker::PhantomData }
    }

    /// Sets the length. Old contents stay as they are, in part or whole; new memory is zero.
    pub(crate) fn resize(&mut self, len: usize) {
        let lines = len.div_ceil(64 / size_of::<T>()) + 1;
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0; 64]));
        }
        self.len = len;
    }

    /// The first number; the pointer may read the line past the end, whose contents are unspecified numbers.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.lines.as_ptr().cast()
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: the lines hold at least `len` numbers, initialised, aligned to 64; any bytes are a valid `T`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`, and the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
