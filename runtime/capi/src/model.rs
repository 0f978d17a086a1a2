//! Models: load, describe, free.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::ptr::null_mut;

use millpond::model::{self, LoadError, Model, ModelError, Progress};

use crate::failure::{Error, Failure, Status, guard, initialise, with};
use crate::handles::{self, ModelHandle};
use crate::pointers;
use crate::text::fill_with;
use crate::types::{LoadOptions, ModelInfo, ProgressCallback};

/// Writes the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_load_options_init(options: *mut LoadOptions) -> i32 {
    let defaults = || LoadOptions {
        size: size_of::<LoadOptions>(),
        mtp_path: std::ptr::null(),
        no_mmap: 0,
        mlock: 0,
        preload: 0,
        progress: None,
        progress_data: null_mut(),
    };
    // SAFETY: the caller vouches for the memory.
    unsafe { initialise(options, defaults) }
}

/// Loads a GGUF file or a Hugging Face folder. `options` may be NULL. On failure *model is NULL. A mapped file must not
/// be shortened while the model lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_model_load(
    path: *const c_char,
    options: *const LoadOptions,
    model: *mut *mut ModelHandle,
    error: *mut Error,
) -> i32 {
    let body = || {
        // SAFETY: the caller vouches for the memory.
        let (path, options) = unsafe {
            pointers::write("model", model, null_mut())?;
            (pointers::path("path", path)?, load_options(options)?)
        };
        let loaded = Model::load(&path, &options).map_err(|error| load_failure(&error))?;
        let handle = handles::give(loaded)?;
        // SAFETY: as above.
        unsafe { pointers::write("model", model, handle) }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

unsafe fn load_options(options: *const LoadOptions) -> Result<model::LoadOptions, Failure> {
    if options.is_null() {
        return Ok(model::LoadOptions::default());
    }
    // SAFETY: the caller vouches for the memory.
    let (options, mtp) = unsafe {
        let options = pointers::sized("options", options)?;
        (options, pointers::optional_string("mtp_path", options.mtp_path)?)
    };
    Ok(model::LoadOptions {
        no_mmap: options.no_mmap != 0,
        mlock: options.mlock != 0,
        mtp: mtp.map(Into::into),
        preload: options.preload != 0,
        progress: progress(options.progress, options.progress_data),
    })
}

/// What a host wants back in its callback.
struct UserData(*mut c_void);

// SAFETY: nothing is done with the pointer but to hand it to the host, on the thread that the host called from.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

fn progress(call: ProgressCallback, user_data: *mut c_void) -> Option<Progress> {
    let (call, user_data) = (call?, UserData(user_data));
    Some(Progress::new(move |loaded| {
        let UserData(user_data) = &user_data;
        // SAFETY: the caller vouches for the function; loading happens on the thread that it called from.
        match unsafe { call(loaded.done, loaded.total, *user_data) } {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }))
}

fn load_failure(error: &ModelError) -> Failure {
    let status = match error {
        ModelError::Load(LoadError::Cancelled) => Status::Cancelled,
        _ => Status::LoadFailed,
    };
    Failure::new(status, error)
}

/// Gives a model back. Engines that use it keep it alive. NULL does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_model_free(model: *mut ModelHandle, error: *mut Error) -> i32 {
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, || handles::take::<Model>(model).map(drop)) }
}

/// Describes a model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_model_describe(
    model: *const ModelHandle,
    info: *mut ModelInfo,
    error: *mut Error,
) -> i32 {
    let body = |model: std::sync::Arc<Model>| {
        let described = ModelInfo {
            vocabulary: model.spec.vocab,
            context: model.spec.context,
            embedding: model.spec.hidden,
            parameters: model.info.parameters,
            bytes: model.info.bytes,
            fingerprint: model.info.fingerprint,
            has_tokenizer: model.tokenizer.is_some().into(),
            has_chat_template: model.template.is_some().into(),
        };
        // SAFETY: the caller vouches for the memory.
        unsafe { pointers::write("info", info, described) }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { with(model, error, body) }
}

/// The name of a model: UTF-8, not closed by a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_model_name(
    model: *const ModelHandle,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut Error,
) -> i32 {
    let name = |model: &Model| Ok(model.info.name.clone().into_bytes());
    // SAFETY: the caller vouches for the memory.
    unsafe { fill_with(model, buffer.cast(), capacity, length, error, name) }
}
