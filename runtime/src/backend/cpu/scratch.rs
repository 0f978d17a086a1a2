//! Buffers that grow to what a pass needs and stay.

use crate::state::memory::Aligned;

/// A reusable buffer.
pub(super) struct Buffer<T = f32>(Aligned<T>);

impl<T> Default for Buffer<T> {
    fn default() -> Buffer<T> {
        Buffer(Aligned::new(64))
    }
}

impl<T> std::ops::Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> std::ops::DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

/// The first `len` values of the buffer, grown to hold them. What they hold is left from earlier passes.
pub(super) fn grown<T: Clone + Default>(buffer: &mut Buffer<T>, len: usize) -> &mut [T] {
    if buffer.0.len() < len {
        buffer.0.resize(len, T::default());
    }
    &mut buffer.0[..len]
}
