//! Status codes, messages, and the guard around every function.

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use crate::handles::{self, Held};
use crate::pointers;

/// How a function ended. The numbers never change their meaning; new ones may come.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// As it should.
    Ok = 0,
    /// A pointer that must not be NULL is.
    NullPointer = 1,
    /// A value out of its range, text that is no UTF-8, options that were not initialised.
    InvalidArgument = 2,
    /// The handle was never given out, has been freed, or is of another kind.
    InvalidHandle = 3,
    /// The result does not fit; the size that is needed has been written.
    BufferTooSmall = 4,
    /// The model cannot be loaded.
    LoadFailed = 5,
    /// The model or the engine lacks what is asked for: a tokenizer, a chat template, a folder for sessions.
    Unsupported = 6,
    /// Text or messages that the tokenizer or the chat template refuses.
    BadText = 7,
    /// The engine cannot be started.
    StartFailed = 8,
    /// Too many requests wait already: try again later.
    QueueFull = 9,
    /// The request exceeds the context or the memory budget.
    TooLong = 10,
    /// The engine has been stopped.
    Stopped = 11,
    /// The generation has been waited for already, or is being waited for.
    WrongOrder = 12,
    /// An accepted request failed; others go on.
    RequestFailed = 13,
    /// A defect of this library.
    Internal = 14,
    /// A callback of the host gave up.
    Cancelled = 15,
    /// There is no session of that name.
    NotFound = 16,
    /// A session cannot be saved or loaded: damaged, of another model, or the system refuses.
    SessionFailed = 17,
}

impl Status {
    /// Every status.
    pub const ALL: [Status; 18] = [
        Status::Ok,
        Status::NullPointer,
        Status::InvalidArgument,
        Status::InvalidHandle,
        Status::BufferTooSmall,
        Status::LoadFailed,
        Status::Unsupported,
        Status::BadText,
        Status::StartFailed,
        Status::QueueFull,
        Status::TooLong,
        Status::Stopped,
        Status::WrongOrder,
        Status::RequestFailed,
        Status::Internal,
        Status::Cancelled,
        Status::NotFound,
        Status::SessionFailed,
    ];

    /// Its name in the header.
    #[must_use]
    pub fn name(self) -> &'static CStr {
        match self {
            Status::Ok => c"MILLPOND_STATUS_OK",
            Status::NullPointer => c"MILLPOND_STATUS_NULL_POINTER",
            Status::InvalidArgument => c"MILLPOND_STATUS_INVALID_ARGUMENT",
            Status::InvalidHandle => c"MILLPOND_STATUS_INVALID_HANDLE",
            Status::BufferTooSmall => c"MILLPOND_STATUS_BUFFER_TOO_SMALL",
            Status::LoadFailed => c"MILLPOND_STATUS_LOAD_FAILED",
            Status::Unsupported => c"MILLPOND_STATUS_UNSUPPORTED",
            Status::BadText => c"MILLPOND_STATUS_BAD_TEXT",
            Status::StartFailed => c"MILLPOND_STATUS_START_FAILED",
            Status::QueueFull => c"MILLPOND_STATUS_QUEUE_FULL",
            Status::TooLong => c"MILLPOND_STATUS_TOO_LONG",
            Status::Stopped => c"MILLPOND_STATUS_STOPPED",
            Status::WrongOrder => c"MILLPOND_STATUS_WRONG_ORDER",
            Status::RequestFailed => c"MILLPOND_STATUS_REQUEST_FAILED",
            Status::Internal => c"MILLPOND_STATUS_INTERNAL",
            Status::Cancelled => c"MILLPOND_STATUS_CANCELLED",
            Status::NotFound => c"MILLPOND_STATUS_NOT_FOUND",
            Status::SessionFailed => c"MILLPOND_STATUS_SESSION_FAILED",
        }
    }
}

/// Bytes of a message, the closing zero included.
pub const MESSAGE_BYTES: usize = 512;

/// A status and what there is to say about it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Error {
    /// A `millpond_status`.
    pub status: i32,
    /// UTF-8, closed by a zero; cut between characters if too long. Empty after success.
    pub message: [c_char; MESSAGE_BYTES],
}

impl Error {
    fn new(status: Status, message: &str) -> Error {
        // A zero inside would end the message for the host.
        let message = message.replace('\0', "\u{fffd}");
        Error { status: status as i32, message: pointers::closed(&message) }
    }
}

/// A function's error before it is written where the host wants it.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its kind.
    pub status: Status,
    /// What happened.
    pub message: String,
}

impl Failure {
    /// An error of a kind.
    pub fn new(status: Status, message: impl ToString) -> Failure {
        Failure { status, message: message.to_string() }
    }
}

/// Runs the body of a function: writes its error, if the host wants it, and stops panics.
pub unsafe fn guard(error: *mut Error, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    // Nothing a body leaves half done is used after a panic: handles are looked up anew by every call.
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let failure = Failure::new(Status::Internal, format!("internal error: {said}"));
        // What a panic carries may panic when dropped.
        std::mem::forget(panic);
        Err(failure)
    });
    let report = match outcome {
        Ok(()) => Error::new(Status::Ok, ""),
        Err(failure) => Error::new(failure.status, &failure.message),
    };
    // SAFETY: the caller vouches for `error`.
    let written = unsafe { pointers::write_optional("error", error, report) };
    match written {
        Ok(()) => report.status,
        Err(failure) => failure.status as i32,
    }
}

/// Runs a body with the object that a handle stands for.
pub(crate) unsafe fn with<T: Held>(
    handle: *const T::Opaque,
    error: *mut Error,
    body: impl FnOnce(Arc<T>) -> Result<(), Failure>,
) -> i32 {
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, || body(handles::get::<T>(handle)?)) }
}

/// Writes the defaults of a structure.
pub(crate) unsafe fn initialise<T>(structure: *mut T, defaults: impl FnOnce() -> T) -> i32 {
    // SAFETY: null takes no error, and the caller vouches for the structure.
    unsafe { guard(ptr::null_mut(), || pointers::write("the structure", structure, defaults())) }
}

/// The name of a status, such as "MILLPOND_STATUS_OK"; NULL for a number that is none. It lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn millpond_status_name(status: i32) -> *const c_char {
    match Status::ALL.iter().find(|known| **known as i32 == status) {
        Some(status) => status.name().as_ptr(),
        None => std::ptr::null(),
    }
}

/// The version of the library, such as "0.1.0". It lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn millpond_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(error: &Error) -> &str {
        // SAFETY: a message is closed by a zero.
        unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_str().unwrap()
    }

    #[test]
    fn panics_become_a_status() {
        let mut error = Error::new(Status::Ok, "");
        // SAFETY: `error` lives.
        let status = unsafe { guard(&raw mut error, || panic!("of {}", "all things")) };
        assert_eq!((status, text(&error)), (Status::Internal as i32, "internal error: of all things"));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let error = Error::new(Status::BadText, &"é".repeat(MESSAGE_BYTES));
        assert_eq!(text(&error), "é".repeat((MESSAGE_BYTES - 1) / 2));
        assert_eq!(text(&Error::new(Status::BadText, "a\0b")), "a\u{fffd}b");
    }

    #[test]
    fn every_status_has_a_name_and_nothing_else_has() {
        for (number, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, number);
            // SAFETY: a name is a static string.
            let name = unsafe { CStr::from_ptr(millpond_status_name(status as i32)) };
            assert_eq!(name, status.name());
        }
        assert!(millpond_status_name(-1).is_null() && millpond_status_name(18).is_null());
    }
}
