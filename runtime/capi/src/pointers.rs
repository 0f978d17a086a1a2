//! Reading and writing what hosts point to. The contract of the crate holds here too: what is not null points to what its
//! type says.

use std::ffi::{CStr, c_char};
use std::path::PathBuf;

use crate::failure::{Failure, Status};

fn null(name: &str) -> Failure {
    Failure::new(Status::NullPointer, format!("{name} is null"))
}

fn check<T>(name: &str, pointer: *const T) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    if !pointer.is_aligned() {
        return Err(Failure::new(Status::InvalidArgument, format!("{name} is not aligned")));
    }
    Ok(())
}

/// Writes `value`.
pub(crate) unsafe fn write<T>(name: &str, pointer: *mut T, value: T) -> Result<(), Failure> {
    check(name, pointer)?;
    // SAFETY: not null, aligned, and the caller vouches for the memory.
    unsafe { pointer.write(value) };
    Ok(())
}

/// Writes `value` unless `pointer` is null.
pub(crate) unsafe fn write_optional<T>(name: &str, pointer: *mut T, value: T) -> Result<(), Failure> {
    if pointer.is_null() {
        return Ok(());
    }
    // SAFETY: the caller vouches for the memory.
    unsafe { write(name, pointer, value) }
}

/// Text as an array that is closed by a zero, cut between characters if too long.
pub(crate) fn closed<const N: usize>(text: &str) -> [c_char; N] {
    let mut bytes = [0; N];
    let end = text.floor_char_boundary(N - 1);
    for (place, &byte) in bytes.iter_mut().zip(&text.as_bytes()[..end]) {
        *place = byte as c_char;
    }
    bytes
}

/// A slice; null stands for an empty one.
pub(crate) unsafe fn slice<'a, T>(name: &str, pointer: *const T, count: usize) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    check(name, pointer)?;
    if count.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX.unsigned_abs()) {
        return Err(Failure::new(
            Status::InvalidArgument,
            format!("{name} has an impossible size of {count}"),
        ));
    }
    // SAFETY: not null, aligned, of a size that is possible, and the caller vouches for what is there.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// Text of a known length.
pub(crate) unsafe fn text<'a>(name: &str, pointer: *const c_char, bytes: usize) -> Result<&'a str, Failure> {
    // SAFETY: the caller vouches for the memory.
    let bytes = unsafe { slice(name, pointer.cast::<u8>(), bytes) }?;
    utf8(name, bytes)
}

fn utf8<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, Failure> {
    std::str::from_utf8(bytes)
        .map_err(|error| Failure::new(Status::InvalidArgument, format!("{name} is no UTF-8 text: {error}")))
}

/// Text closed by a zero.
pub(crate) unsafe fn string<'a>(name: &str, pointer: *const c_char) -> Result<&'a str, Failure> {
    check(name, pointer)?;
    // SAFETY: not null, and the caller vouches for the closing zero.
    utf8(name, unsafe { CStr::from_ptr(pointer) }.to_bytes())
}

/// Text closed by a zero; `None` for null.
pub(crate) unsafe fn optional_string<'a>(
    name: &str,
    pointer: *const c_char,
) -> Result<Option<&'a str>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller vouches for the memory.
    unsafe { string(name, pointer) }.map(Some)
}

/// A path closed by a zero: UTF-8.
pub(crate) unsafe fn path(name: &str, pointer: *const c_char) -> Result<PathBuf, Failure> {
    // SAFETY: the caller vouches for the memory.
    unsafe { string(name, pointer) }.map(PathBuf::from)
}

/// A structure whose first field tells its size, as its `init` function wrote it.
pub(crate) unsafe fn sized<T: Copy>(name: &str, pointer: *const T) -> Result<T, Failure> {
    check(name, pointer)?;
    // SAFETY: not null, aligned, and the first field is a size.
    let size = unsafe { pointer.cast::<usize>().read() };
    if size != size_of::<T>() {
        let message = format!("{name} says it has {size} bytes, not {}: was it initialised?", size_of::<T>());
        return Err(Failure::new(Status::InvalidArgument, message));
    }
    // SAFETY: not null, aligned, and it has the size it must have.
    Ok(unsafe { pointer.read() })
}

/// Writes the length of a result to come, and checks that the host has room for it.
pub(crate) unsafe fn room<T>(
    needed: usize,
    buffer: *mut T,
    capacity: usize,
    length: *mut usize,
) -> Result<(), Failure> {
    // SAFETY: the caller vouches for the memory.
    unsafe { write("length", length, needed) }?;
    if needed > capacity {
        let message = format!("the result needs room for {needed}, there is room for {capacity}");
        return Err(Failure::new(Status::BufferTooSmall, message));
    }
    match needed {
        0 => Ok(()),
        _ => check("buffer", buffer),
    }
}

/// Copies a result to where the host wants it, and its length in any case, so that a host can ask for the length first
/// with a capacity of 0.
pub(crate) unsafe fn fill<T: Copy>(
    values: &[T],
    buffer: *mut T,
    capacity: usize,
    length: *mut usize,
) -> Result<(), Failure> {
    // SAFETY: the caller vouches for the memory.
    unsafe { room(values.len(), buffer, capacity, length) }?;
    if !values.is_empty() {
        // SAFETY: not null, aligned, and with room for `capacity` values, which is enough; what is new cannot overlap.
        unsafe { buffer.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    }
    Ok(())
}
