//! Large zeroed buffers of numbers, on huge pages where the system offers them.

use std::marker::PhantomData;

use memmap2::MmapMut;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A page-aligned buffer that starts as zeros. Pages are given by the system when they are first written.
pub struct Arena<T = f32> {
    map: MmapMut,
    len: usize,
    values: PhantomData<T>,
}

/// Memory the system would not give.
#[derive(Debug, thiserror::Error)]
#[error("cannot allocate {bytes} bytes of {what}: {reason}")]
pub struct AllocationError {
    /// Bytes asked for.
    pub bytes: usize,
    /// What they were for.
    pub what: &'static str,
    /// What the system said.
    pub reason: String,
}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Arena<T> {
    /// A zeroed buffer of `len` values for `what`.
    ///
    /// # Errors
    /// [`AllocationError`] when the system refuses or the size overflows.
    pub fn zeroed(len: usize, what: &'static str) -> Result<Arena<T>, AllocationError> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| AllocationError {
            bytes: usize::MAX,
            what,
            reason: "the size overflows".to_owned(),
        })?;
        let map = MmapMut::map_anon(bytes.max(4)).map_err(|error| AllocationError {
            bytes,
            what,
            reason: error.to_string(),
        })?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, what, "huge pages are not available");
        }
        Ok(Arena { map, len, values: PhantomData })
    }

    /// A copy.
    ///
    /// # Errors
    /// [`AllocationError`] as for [`Arena::zeroed`].
    pub fn duplicate(&self, what: &'static str) -> Result<Arena<T>, AllocationError> {
        let mut copy = Arena::zeroed(self.len, what)?;
        copy.values_mut().copy_from_slice(self.values());
        Ok(copy)
    }

    /// The values.
    pub fn values(&self) -> &[T] {
        // A map is page-aligned, so the cast cannot fail; an empty slice would be caught by the length checks.
        <[T]>::ref_from_bytes(&self.map[..self.len * size_of::<T>()]).unwrap_or(&[])
    }

    /// The values, writable.
    pub fn values_mut(&mut self) -> &mut [T] {
        <[T]>::mut_from_bytes(&mut self.map[..self.len * size_of::<T>()]).unwrap_or(&mut [])
    }

    /// Bytes of the buffer.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T> std::fmt::Debug for Arena<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arena({} {})", self.len, std::any::type_name::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_start_as_zeros_and_copies_are_independent() {
        let mut arena = Arena::<f32>::zeroed(1000, "test").unwrap();
        assert!(arena.values().iter().all(|&x| x == 0.0));
        arena.values_mut()[999] = 3.0;
        let copy = arena.duplicate("test").unwrap();
        arena.values_mut()[999] = 4.0;
        assert_eq!(copy.values()[999], 3.0);
        assert_eq!(Arena::<f32>::zeroed(0, "test").unwrap().values().len(), 0);
        assert!(Arena::<half::bf16>::zeroed(usize::MAX, "test").is_err());
    }
}
