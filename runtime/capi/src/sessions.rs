//! Sessions: states that requests left under a name, saved in files and read again.

use std::ffi::c_char;
use std::time::UNIX_EPOCH;

use millpond::engine::{self, Engine, SessionError};

use crate::failure::{Error, Failure, Status, with};
use crate::handles::EngineHandle;
use crate::pointers;
use crate::types::SessionInfo;

fn failure(error: SessionError) -> Failure {
    let status = match &error {
        SessionError::NoFolder => Status::Unsupported,
        SessionError::Name(_) => Status::InvalidArgument,
        SessionError::Unknown(_) => Status::NotFound,
        SessionError::Stopped => Status::Stopped,
        _ => Status::SessionFailed,
    };
    Failure::new(status, error)
}

fn description(info: &engine::SessionInfo) -> SessionInfo {
    let age = info.modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    SessionInfo {
        name: pointers::closed(&info.name),
        tokens: info.tokens,
        bytes: info.bytes,
        fingerprint: info.fingerprint,
        saved_at: age.and_then(|age| i64::try_from(age.as_secs()).ok()).unwrap_or_default(),
    }
}

/// Saves the state that a request has left under `session` as `file`, a name in the engine's folder of sessions. `info`
/// may be NULL. A file that was there before stays as it was on failure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_session_save(
    engine: *const EngineHandle,
    session: *const c_char,
    file: *const c_char,
    info: *mut SessionInfo,
    error: *mut Error,
) -> i32 {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        with::<Engine>(engine, error, |engine| {
            let (session, file) = (pointers::string("session", session)?, pointers::string("file", file)?);
            let saved = engine.handle().save_session(session, file).map_err(failure)?;
            pointers::write_optional("info", info, description(&saved))
        })
    }
}

/// Loads `file` and keeps its state under `session`, for requests whose prompts begin with its tokens. Writes these; a
/// capacity of 0 asks for their number and loads nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_session_load(
    engine: *const EngineHandle,
    file: *const c_char,
    session: *const c_char,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
    error: *mut Error,
) -> i32 {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        with::<Engine>(engine, error, |engine| {
            let (session, file) = (pointers::string("session", session)?, pointers::string("file", file)?);
            let handle = engine.handle();
            let held = handle.session_info(file).map_err(failure)?.tokens;
            pointers::room(held, tokens, capacity, count)?;
            let read = handle.load_session(file, session).map_err(failure)?;
            pointers::fill(&read, tokens, capacity, count)
        })
    }
}

/// What the header of a saved session says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_session_describe(
    engine: *const EngineHandle,
    file: *const c_char,
    info: *mut SessionInfo,
    error: *mut Error,
) -> i32 {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        with::<Engine>(engine, error, |engine| {
            let found = engine.handle().session_info(pointers::string("file", file)?).map_err(failure)?;
            pointers::write("info", info, description(&found))
        })
    }
}

/// The saved sessions whose files are whole, by name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_session_list(
    engine: *const EngineHandle,
    sessions: *mut SessionInfo,
    capacity: usize,
    count: *mut usize,
    error: *mut Error,
) -> i32 {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        with::<Engine>(engine, error, |engine| {
            let found = engine.handle().list_sessions().map_err(failure)?;
            let found: Vec<SessionInfo> = found.iter().map(description).collect();
            pointers::fill(&found, sessions, capacity, count)
        })
    }
}

/// Deletes a saved session. States in memory stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_session_delete(
    engine: *const EngineHandle,
    file: *const c_char,
    error: *mut Error,
) -> i32 {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        with::<Engine>(engine, error, |engine| {
            engine.handle().delete_session(pointers::string("file", file)?).map_err(failure)
        })
    }
}

/// Forgets the state kept in memory under `session`. Files stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_session_forget(
    engine: *const EngineHandle,
    session: *const c_char,
    error: *mut Error,
) -> i32 {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        with::<Engine>(engine, error, |engine| {
            let session = pointers::string("session", session)?;
            match engine.handle().erase_session(session).map_err(failure)? {
                true => Ok(()),
                false => Err(failure(SessionError::Unknown(session.to_owned()))),
            }
        })
    }
}
