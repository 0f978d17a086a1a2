//! Models: load, describe, free.

use std::ffi::c_char;

use millpond::model::{self, Model};

use crate::failure::{Error, Failure, Status, guard};
use crate::handles::{self, ModelHandle};
use crate::pointers;
use crate::types::{LoadOptions, ModelInfo};

/// Writes the defaults.
///
/// # Safety
/// `options` is null (an error) or points to memory for the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_load_options_init(options: *mut LoadOptions) -> i32 {
    let defaults = LoadOptions { size: size_of::<LoadOptions>(), mtp_path: std::ptr::null(), no_mmap: 0 };
    let body = || {
        // SAFETY: the caller vouches for the memory.
        unsafe { pointers::write("options", options, defaults) }
    };
    // SAFETY: null takes no error.
    unsafe { guard(std::ptr::null_mut(), body) }
}

/// Loads a GGUF file or a Hugging Face folder.
///
/// # Safety
/// Pointers are null or point to what the header says; only `options` and `error` may be null without an error.
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
            pointers::write("model", model, std::ptr::null_mut())?;
            (pointers::path("path", path)?, load_options(options)?)
        };
        let loaded = Model::load(&path, &options).map_err(|error| Failure::new(Status::LoadFailed, error))?;
        let handle = handles::give(loaded)?;
        // SAFETY: as above.
        unsafe { pointers::write("model", model, handle) }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}

/// # Safety
/// `options` is null or points to the structure, and that to what the header says.
unsafe fn load_options(options: *const LoadOptions) -> Result<model::LoadOptions, Failure> {
    if options.is_null() {
        return Ok(model::LoadOptions::default());
    }
    // SAFETY: the caller vouches for the memory.
    unsafe {
        let options = pointers::sized("options", options)?;
        let mtp = pointers::optional_string("mtp_path", options.mtp_path)?.map(Into::into);
        Ok(model::LoadOptions { no_mmap: options.no_mmap != 0, mtp, ..Default::default() })
    }
}

/// Gives a model back. Engines that use it keep it alive. Null does nothing.
///
/// # Safety
/// `error` is null or points to memory for the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_model_free(model: *mut ModelHandle, error: *mut Error) -> i32 {
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, || handles::take::<Model>(model).map(drop)) }
}

/// Describes a model.
///
/// # Safety
/// `info` and `error` are null or point to memory for their structures.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_model_describe(
    model: *const ModelHandle,
    info: *mut ModelInfo,
    error: *mut Error,
) -> i32 {
    let body = || {
        let model = handles::get::<Model>(model)?;
        let described = ModelInfo {
            vocabulary: model.spec.vocab,
            context: model.spec.context,
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
    unsafe { guard(error, body) }
}

/// The name of a model, UTF-8, not closed by a zero.
///
/// # Safety
/// `buffer` is null or has room for `capacity` bytes; the others are null or point to what the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn millpond_model_name(
    model: *const ModelHandle,
    buffer: *mut c_char,
    capacity: usize,
    length: *mut usize,
    error: *mut Error,
) -> i32 {
    let body = || {
        let model = handles::get::<Model>(model)?;
        // SAFETY: the caller vouches for the memory.
        unsafe { pointers::fill(model.info.name.as_bytes(), buffer.cast(), capacity, length) }
    };
    // SAFETY: the caller vouches for `error`.
    unsafe { guard(error, body) }
}
