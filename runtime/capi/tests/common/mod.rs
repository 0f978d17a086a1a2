//! Loading, starting and asking through the C interface, as a host does.

#![allow(dead_code)] // each test file uses its part

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::{null, null_mut};

use millpond_capi::engine::*;
use millpond_capi::failure::{Error, MESSAGE_BYTES};
use millpond_capi::generation::*;
use millpond_capi::handles::{EngineHandle, GenerationHandle, ModelHandle};
use millpond_capi::model::*;
use millpond_capi::request::*;
use millpond_capi::text::*;
use millpond_capi::types::*;

pub(crate) const MODEL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../server/assets/delta-48m-Q4_K_M.gguf");
pub(crate) const KING: &str = "The king looked at the dragon and said";
/// More tokens than the engine generates ahead of a host that does not read them: such a request cannot end by itself
/// before the test has done what it wants to do meanwhile.
pub(crate) const LONG: i64 = 1500;

pub(crate) fn no_error() -> Error {
    Error { status: -1, message: [0; MESSAGE_BYTES] }
}

pub(crate) fn message(error: &Error) -> &str {
    // SAFETY: a message is closed by a zero.
    unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_str().unwrap()
}

/// Loads a model; `Err` with what the library said.
pub(crate) fn load(path: &Path) -> Result<*mut ModelHandle, (i32, String)> {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let (mut model, mut error) = (null_mut(), no_error());
    // SAFETY: everything lives during the call.
    let status = unsafe { millpond_model_load(path.as_ptr(), null(), &raw mut model, &raw mut error) };
    assert_eq!(status, error.status);
    if status == 0 {
        assert!(!model.is_null());
        Ok(model)
    } else {
        assert!(model.is_null());
        Err((status, message(&error).to_owned()))
    }
}

pub(crate) fn start(model: *mut ModelHandle) -> *mut EngineHandle {
    start_in(model, null())
}

/// An engine whose sessions lie in `folder`.
pub(crate) fn start_in(model: *mut ModelHandle, folder: *const c_char) -> *mut EngineHandle {
    let mut engine = null_mut();
    // SAFETY: everything lives during the calls, and the options are initialised.
    unsafe {
        let mut options = std::mem::zeroed::<EngineOptions>();
        assert_eq!(millpond_engine_options_init(&raw mut options), 0);
        (options.context, options.threads, options.session_dir) = (2048, 1, folder);
        let mut error = no_error();
        let status = millpond_engine_start(model, &raw const options, &raw mut engine, &raw mut error);
        assert_eq!(status, 0, "{}", message(&error));
    }
    engine
}

pub(crate) fn free_all(model: *mut ModelHandle, engine: *mut EngineHandle) {
    // SAFETY: no message is asked for.
    unsafe {
        assert_eq!(millpond_engine_free(engine, null_mut()), 0);
        assert_eq!(millpond_model_free(model, null_mut()), 0);
    }
}

pub(crate) fn tokens(model: *mut ModelHandle, text: &str) -> Vec<u32> {
    let mut ids = vec![0; text.len() + 1];
    let mut count = 0;
    // SAFETY: everything lives during the call and has the size given.
    let status = unsafe {
        let (text, bytes) = (text.as_ptr().cast(), text.len());
        millpond_tokenize(model, text, bytes, 0, ids.as_mut_ptr(), ids.len(), &raw mut count, null_mut())
    };
    assert_eq!(status, 0);
    ids.truncate(count);
    ids
}

pub(crate) fn request(prompt: &[u32], max_tokens: i64) -> Request {
    // SAFETY: zeros are a value of every field, and `init` writes them all.
    let mut request = unsafe { std::mem::zeroed::<Request>() };
    // SAFETY: the request lives during the call.
    assert_eq!(unsafe { millpond_request_init(&raw mut request) }, 0);
    request.prompt = prompt.as_ptr();
    request.prompt_count = prompt.len();
    request.max_tokens = max_tokens;
    request.temperature = 0.0;
    request.ignore_eos = 1;
    request
}

pub(crate) fn submit(engine: *mut EngineHandle, request: &Request) -> *mut GenerationHandle {
    let (mut generation, mut error) = (null_mut(), no_error());
    // SAFETY: everything lives during the call.
    let status = unsafe { millpond_generation_start(engine, request, &raw mut generation, &raw mut error) };
    assert_eq!(status, 0, "{}", message(&error));
    generation
}

/// Adds text to the `String` that is the user data.
pub(crate) unsafe extern "C" fn collect(text: *const c_char, bytes: usize, user_data: *mut c_void) -> i32 {
    // SAFETY: the library passes text of that size, and the tests a `String`.
    unsafe {
        let piece = std::slice::from_raw_parts(text.cast::<u8>(), bytes);
        (*user_data.cast::<String>()).push_str(std::str::from_utf8(piece).unwrap());
    }
    0
}

/// The text and the result of a request.
pub(crate) fn answer(engine: *mut EngineHandle, request: &Request) -> (String, Outcome) {
    let generation = submit(engine, request);
    let (mut text, mut result, mut error) = (String::new(), Outcome::default(), no_error());
    // SAFETY: everything lives during the calls.
    unsafe {
        let user_data = (&raw mut text).cast();
        let (result, error_place) = (&raw mut result, &raw mut error);
        let status = millpond_generation_wait(generation, Some(collect), user_data, result, error_place);
        assert_eq!(status, 0, "{}", message(&error));
        assert_eq!(millpond_generation_free(generation, null_mut()), 0);
    }
    (text, result)
}

/// The C compiler, if there is one.
pub(crate) fn compiler() -> Option<&'static str> {
    let found = Command::new("cc").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: no C compiler (cc)");
    }
    found.then_some("cc")
}

/// The shared library that was built with this test, in the same folder; the newest, if others are left over.
pub(crate) fn library() -> PathBuf {
    let start = format!("{}millpond_capi", std::env::consts::DLL_PREFIX);
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let built = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap()).filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with(&start) && name.ends_with(std::env::consts::DLL_SUFFIX)
    });
    let newest = built.max_by_key(|entry| entry.metadata().unwrap().modified().unwrap());
    newest.unwrap_or_else(|| panic!("no {start}* in {}", folder.display())).path()
}
