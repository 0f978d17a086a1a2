//! The interface as a host meets it, careless hosts included.

mod common;

use std::ffi::{c_char, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

use common::*;
use millpond_capi::Status;
use millpond_capi::engine::*;
use millpond_capi::generation::*;
use millpond_capi::handles::GenerationHandle;
use millpond_capi::model::*;
use millpond_capi::request::*;
use millpond_capi::text::*;
use millpond_capi::types::*;

unsafe extern "C" fn refuse(_text: *const c_char, _bytes: usize, calls: *mut c_void) -> i32 {
    // SAFETY: the tests pass a counter.
    unsafe { *calls.cast::<u32>() += 1 };
    1
}

unsafe extern "C" fn free_itself(_text: *const c_char, _bytes: usize, handle: *mut c_void) -> i32 {
    // SAFETY: no message is asked for. The second call frees what has been freed: that is the test.
    unsafe { millpond_generation_free(handle.cast(), null_mut()) };
    0
}

#[test]
fn text_is_streamed_as_the_library_streams_it() {
    use millpond::engine::{Engine, EngineOptions, Event, Request};
    use millpond::model::{LoadOptions, Model};
    use millpond::sample::SamplingParams;

    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let prompt = tokens(model, KING);
    let (text, result) = answer(engine, &request(&prompt, 8));
    free_all(model, engine);
    assert_eq!((result.finish, result.completion_tokens), (Finish::Length as i32, 8));
    assert_eq!(result.prompt_tokens, prompt.len());

    let model = Model::load(MODEL.as_ref(), &LoadOptions::default()).unwrap();
    let options = EngineOptions { context: 256, threads: 1, ..EngineOptions::default() };
    let engine = Engine::start(model, options).unwrap();
    let request = Request {
        sampling: SamplingParams::greedy(),
        max_tokens: Some(8),
        ignore_eos: true,
        ..Request::new(prompt)
    };
    let mut expected = String::new();
    for event in engine.handle().submit(request).unwrap() {
        if let Event::Token { text, .. } | Event::Done { text, .. } = event {
            expected.push_str(&text);
        }
    }
    assert!(!text.is_empty());
    assert_eq!(text, expected);
}

#[test]
fn generations_are_cancelled_from_callbacks_and_from_anywhere() {
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let prompt = tokens(model, KING);
    // SAFETY: everything lives during the calls.
    unsafe {
        let generation = submit(engine, &request(&prompt, LONG));
        let (mut calls, mut result) = (0_u32, Outcome::default());
        let user_data = (&raw mut calls).cast();
        assert_eq!(
            millpond_generation_wait(generation, Some(refuse), user_data, &raw mut result, null_mut()),
            0
        );
        assert_eq!((result.finish, calls), (Finish::Cancelled as i32, 1));
        assert_eq!(millpond_generation_cancel(generation, null_mut()), 0, "too late is no mistake");
        assert_eq!(millpond_generation_free(generation, null_mut()), 0);

        let generation = submit(engine, &request(&prompt, LONG));
        assert_eq!(millpond_generation_cancel(generation, null_mut()), 0);
        assert_eq!(millpond_generation_wait(generation, None, null_mut(), &raw mut result, null_mut()), 0);
        assert_eq!(result.finish, Finish::Cancelled as i32);
        assert_eq!(millpond_generation_free(generation, null_mut()), 0);

        let generation = submit(engine, &request(&prompt, LONG));
        let itself = generation.cast();
        assert_eq!(
            millpond_generation_wait(generation, Some(free_itself), itself, &raw mut result, null_mut()),
            0
        );
        assert_eq!(result.finish, Finish::Cancelled as i32);
        assert_eq!(millpond_generation_cancel(generation, null_mut()), Status::InvalidHandle as i32);
    }
    free_all(model, engine);
}

#[test]
fn what_is_used_in_the_wrong_order_is_an_error() {
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let prompt = tokens(model, KING);
    let invalid = Status::InvalidHandle as i32;
    // SAFETY: what is passed lives during the calls; handles are checked by the library, which is the test.
    unsafe {
        // Freed while in use: the engine keeps the model.
        assert_eq!(millpond_model_free(model, null_mut()), 0);
        let mut error = no_error();
        assert_eq!(millpond_model_free(model, &raw mut error), invalid);
        assert_eq!(message(&error), "this is no model, or it has been freed");
        let mut info = std::mem::zeroed::<ModelInfo>();
        assert_eq!(millpond_model_describe(model, &raw mut info, null_mut()), invalid);
        let mut second = null_mut();
        assert_eq!(millpond_engine_start(model, null(), &raw mut second, null_mut()), invalid);

        let generation = submit(engine, &request(&prompt, 2));
        assert_eq!(millpond_generation_wait(generation, None, null_mut(), null_mut(), null_mut()), 0);
        let again = millpond_generation_wait(generation, None, null_mut(), null_mut(), null_mut());
        assert_eq!(again, Status::WrongOrder as i32);
        // Kinds are told apart.
        assert_eq!(millpond_engine_free(generation.cast(), null_mut()), invalid);
        assert_eq!(millpond_model_free(engine.cast(), null_mut()), invalid);
        assert_eq!(millpond_generation_free(generation, null_mut()), 0);
        assert_eq!(millpond_generation_free(generation, null_mut()), invalid);

        // The engine goes while a request runs.
        let generation = submit(engine, &request(&prompt, LONG));
        assert_eq!(millpond_engine_free(engine, null_mut()), 0);
        assert_eq!(millpond_engine_free(engine, null_mut()), invalid);
        let status = millpond_generation_wait(generation, None, null_mut(), null_mut(), null_mut());
        assert_eq!(status, Status::Stopped as i32);
        assert_eq!(millpond_generation_free(generation, null_mut()), 0);

        // Numbers that were never handles.
        for made_up in [1_usize, 8, 0xdead_beef, usize::MAX] {
            let made_up = std::ptr::without_provenance_mut::<GenerationHandle>(made_up);
            assert_eq!(millpond_generation_free(made_up, null_mut()), invalid);
        }
    }
}

#[test]
fn null_is_an_error_or_nothing() {
    let null_pointer = Status::NullPointer as i32;
    let model = load(Path::new(MODEL)).unwrap();
    let (mut count, mut error) = (0_usize, no_error());
    // SAFETY: pointers are null or live during the calls.
    unsafe {
        assert_eq!(millpond_model_free(null_mut(), null_mut()), 0);
        assert_eq!(millpond_engine_free(null_mut(), null_mut()), 0);
        assert_eq!(millpond_generation_free(null_mut(), null_mut()), 0);
        assert_eq!(millpond_load_options_init(null_mut()), null_pointer);
        assert_eq!(millpond_engine_options_init(null_mut()), null_pointer);
        assert_eq!(millpond_request_init(null_mut()), null_pointer);
        let (mut out, mut engine, mut generation) = (null_mut(), null_mut(), null_mut());
        assert_eq!(millpond_model_load(null(), null(), &raw mut out, &raw mut error), null_pointer);
        assert_eq!(message(&error), "path is null");
        assert_eq!(millpond_model_load(c"x".as_ptr(), null(), null_mut(), null_mut()), null_pointer);
        assert_eq!(millpond_model_describe(model, null_mut(), null_mut()), null_pointer);
        assert_eq!(millpond_model_name(null(), null_mut(), 0, &raw mut count, null_mut()), null_pointer);
        assert_eq!(millpond_model_name(model, null_mut(), 99, &raw mut count, null_mut()), null_pointer);
        assert_eq!(millpond_engine_start(null(), null(), &raw mut engine, null_mut()), null_pointer);
        assert_eq!(millpond_engine_start(model, null(), null_mut(), null_mut()), null_pointer);
        assert_eq!(millpond_generation_start(null(), null(), &raw mut generation, null_mut()), null_pointer);
        let empty = request(&[], 1);
        assert_eq!(
            millpond_generation_start(null(), &raw const empty, &raw mut generation, null_mut()),
            null_pointer
        );
        assert_eq!(millpond_generation_cancel(null(), null_mut()), null_pointer);
        assert_eq!(millpond_generation_wait(null(), None, null_mut(), null_mut(), null_mut()), null_pointer);
        assert_eq!(
            millpond_tokenize(model, null(), 3, 0, null_mut(), 0, &raw mut count, null_mut()),
            null_pointer
        );
        assert_eq!(
            millpond_tokenize(model, c"abc".as_ptr(), 3, 0, null_mut(), 0, null_mut(), null_mut()),
            null_pointer
        );
        assert_eq!(
            millpond_chat_render(model, null(), null(), null_mut(), 0, &raw mut count, null_mut()),
            null_pointer
        );
        assert_eq!(millpond_model_free(model, null_mut()), 0);
    }
}

#[test]
fn nonsense_in_arguments_is_an_error() {
    let invalid = Status::InvalidArgument as i32;
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let prompt = tokens(model, KING);
    // SAFETY: everything lives during the calls; sizes that are wrong are rejected before anything is read.
    unsafe {
        let mut other = null_mut();
        let zeros = std::mem::zeroed::<EngineOptions>();
        assert_eq!(millpond_engine_start(model, &raw const zeros, &raw mut other, null_mut()), invalid);
        let mut count = 0;
        let not_utf8 = b"\xff\xfe";
        let text = not_utf8.as_ptr().cast();
        assert_eq!(millpond_tokenize(model, text, 2, 0, null_mut(), 0, &raw mut count, null_mut()), invalid);
        assert_eq!(
            millpond_tokenize(model, text, usize::MAX, 0, null_mut(), 0, &raw mut count, null_mut()),
            invalid
        );

        let base = request(&prompt, 4);
        let bad = [
            (Request { size: 3, ..base }, invalid),
            (Request { max_tokens: -2, ..base }, invalid),
            (Request { seed: i64::MIN, ..base }, invalid),
            (Request { temperature: f32::NAN, ..base }, invalid),
            (Request { top_p: 7.0, ..base }, invalid),
            (Request { prompt_count: 0, ..base }, invalid),
            (Request { json_schema: c"{".as_ptr(), ..base }, invalid),
            (Request { grammar: c"root ::= ".as_ptr(), json_schema: c"{}".as_ptr(), ..base }, invalid),
            (Request { lark: c"start: \"a\"".as_ptr(), regex: c"a".as_ptr(), ..base }, invalid),
            (Request { regex: c"(".as_ptr(), ..base }, invalid),
            (Request { logprobs: 65, ..base }, invalid),
            (Request { logprobs: -2, ..base }, invalid),
            (Request { session: c"\xff".as_ptr(), ..base }, invalid),
            (Request { stop: null(), stop_count: 2, ..base }, Status::NullPointer as i32),
            (Request { max_tokens: 100_000, ..base }, Status::TooLong as i32),
        ];
        for (number, (request, expected)) in bad.iter().enumerate() {
            let (mut generation, mut error) = (null_mut(), no_error());
            let status = millpond_generation_start(engine, request, &raw mut generation, &raw mut error);
            assert_eq!(status, *expected, "request {number}: {}", message(&error));
            assert!(generation.is_null() && !message(&error).is_empty());
        }
    }
    free_all(model, engine);
}

#[test]
fn a_host_survives_models_that_are_damaged_or_missing() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(MODEL).unwrap();
    let path = folder.path().join("damaged.gguf");
    for length in [0, 3, 24, 1000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let (status, message) = load(&path).unwrap_err();
        assert_eq!(status, Status::LoadFailed as i32, "{message}");
        assert!(!message.is_empty());
    }
    let mut broken = whole.clone();
    broken[8..24].fill(0xff); // the numbers of tensors and keys
    std::fs::write(&path, &broken).unwrap();
    assert_eq!(load(&path).unwrap_err().0, Status::LoadFailed as i32);
    assert_eq!(load(&folder.path().join("none.gguf")).unwrap_err().0, Status::LoadFailed as i32);
    // And goes on with one that is whole.
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    free_all(model, engine);
}

#[test]
fn text_goes_to_tokens_and_back_in_buffers_of_any_size() {
    let model = load(Path::new(MODEL)).unwrap();
    let ids = tokens(model, KING);
    let small = Status::BufferTooSmall as i32;
    // SAFETY: everything lives during the calls and has the size given.
    unsafe {
        let (mut length, mut error) = (0, no_error());
        let status = millpond_detokenize(
            model,
            ids.as_ptr(),
            ids.len(),
            1,
            null_mut(),
            0,
            &raw mut length,
            &raw mut error,
        );
        assert_eq!((status, length), (small, KING.len()), "{}", message(&error));
        let mut buffer = vec![b'#'; length + 1];
        let capacity = length;
        let status = millpond_detokenize(
            model,
            ids.as_ptr(),
            ids.len(),
            1,
            buffer.as_mut_ptr().cast(),
            capacity,
            &raw mut length,
            null_mut(),
        );
        assert_eq!(status, 0);
        assert_eq!(buffer, format!("{KING}#").as_bytes(), "nothing beyond the text is written");

        let mut info = std::mem::zeroed::<ModelInfo>();
        assert_eq!(millpond_model_describe(model, &raw mut info, null_mut()), 0);
        assert_eq!(info.has_tokenizer, 1);
        assert!(ids.iter().all(|&id| (id as usize) < info.vocabulary));
        assert_eq!(millpond_model_name(model, null_mut(), 0, &raw mut length, null_mut()), small);

        let messages = c"[{\"role\": \"user\", \"content\": \"Hello\"}]".as_ptr();
        let (no, options) = (null_mut(), null());
        let rendered = millpond_chat_render(model, messages, options, no, 0, &raw mut length, null_mut());
        let no = null_mut();
        let tokenised = millpond_chat_tokenize(model, messages, options, no, 0, &raw mut length, null_mut());
        let expected = if info.has_chat_template == 1 { small } else { Status::Unsupported as i32 };
        assert_eq!((rendered, tokenised), (expected, expected));
        for bad in [c"", c"{}", c"[1", c"null"] {
            let (no, bad_messages) = (null_mut(), bad.as_ptr());
            let status =
                millpond_chat_render(model, bad_messages, null(), no, 0, &raw mut length, null_mut());
            assert_eq!(status, Status::BadText as i32, "{bad:?}");
        }
        assert_eq!(millpond_model_free(model, null_mut()), 0);
    }
}
