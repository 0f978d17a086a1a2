//! What the interface offers besides plain text: sessions, probabilities, embeddings, figures, progress, chats.

mod common;

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr::null_mut;

use common::*;
use millpond_capi::Status;
use millpond_capi::embedding::*;
use millpond_capi::engine::*;
use millpond_capi::failure::Error;
use millpond_capi::generation::*;
use millpond_capi::handles::{GenerationHandle, ModelHandle};
use millpond_capi::listener::*;
use millpond_capi::model::*;
use millpond_capi::sessions::*;
use millpond_capi::text::*;
use millpond_capi::types::*;

/// A token, its probability, and the likeliest ones with theirs.
type HeardToken = (u32, f32, Vec<(u32, f32)>);

/// What a listener heard.
#[derive(Default)]
struct Heard {
    text: String,
    token_text: String,
    tokens: Vec<HeardToken>,
    prompt: Vec<(u32, f32)>,
    progress: Vec<(usize, usize)>,
}

/// What the tests pass as user data.
unsafe fn heard<'a>(user_data: *mut c_void) -> &'a mut Heard {
    // SAFETY: the caller passes what the tests passed, and nothing else refers to it during a call.
    unsafe { &mut *user_data.cast::<Heard>() }
}

unsafe extern "C" fn on_text(text: *const c_char, bytes: usize, user_data: *mut c_void) -> i32 {
    // SAFETY: the library passes text of that size.
    unsafe { collect(text, bytes, (&raw mut heard(user_data).text).cast()) }
}

unsafe extern "C" fn on_token(token: *const Token, user_data: *mut c_void) -> i32 {
    // SAFETY: the library passes a token whose pointers have the sizes beside them.
    unsafe {
        let (token, heard) = (&*token, heard(user_data));
        assert_eq!(token.has_logprob, 1);
        let top = std::slice::from_raw_parts(token.top, token.top_count);
        let top = top.iter().map(|other| (other.id, other.logprob)).collect();
        heard.tokens.push((token.id, token.logprob, top));
        collect(token.text, token.text_bytes, (&raw mut heard.token_text).cast())
    }
}

unsafe extern "C" fn on_prompt_token(token: *const Token, user_data: *mut c_void) -> i32 {
    // SAFETY: the library passes a token.
    unsafe { heard(user_data).prompt.push(((*token).id, (*token).logprob)) };
    0
}

unsafe extern "C" fn on_prompt(done: usize, total: usize, cached: usize, user_data: *mut c_void) -> i32 {
    assert!(cached <= done && done <= total);
    // SAFETY: the tests passed it.
    unsafe { heard(user_data).progress.push((done, total)) };
    0
}

#[test]
fn a_listener_hears_tokens_probabilities_and_progress() {
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let prompt = tokens(model, KING);
    let asked = Request { logprobs: 3, echo: 1, ..request(&prompt, 6) };
    let generation = submit(engine, &asked);
    let (mut heard, mut result) = (Heard::default(), Outcome::default());
    // SAFETY: everything lives during the calls.
    unsafe {
        let mut listener = std::mem::zeroed::<Listener>();
        let status = millpond_generation_listen(generation, &raw const listener, null_mut(), null_mut());
        assert_eq!(status, Status::InvalidArgument as i32, "it was not initialised");
        assert_eq!(millpond_listener_init(&raw mut listener), 0);
        listener.user_data = (&raw mut heard).cast();
        listener.on_text = Some(on_text);
        listener.on_token = Some(on_token);
        listener.on_prompt_token = Some(on_prompt_token);
        listener.on_prompt = Some(on_prompt);
        let status = millpond_generation_listen(generation, &raw const listener, &raw mut result, null_mut());
        assert_eq!(status, 0);
        let again = millpond_generation_listen(generation, &raw const listener, null_mut(), null_mut());
        assert_eq!(again, Status::WrongOrder as i32);
        assert_eq!(millpond_generation_free(generation, null_mut()), 0);
    }
    assert_eq!(heard.text, answer(engine, &request(&prompt, 6)).0);
    assert!(heard.text.starts_with(&heard.token_text), "the last of the text comes with the end");
    assert_eq!((heard.tokens.len(), result.completion_tokens), (6, 6));
    for (id, logprob, top) in &heard.tokens {
        assert_eq!(top.len(), 3);
        assert_eq!((top[0].0, top[0].1), (*id, *logprob), "greedy takes the likeliest");
        assert!(top.is_sorted_by(|a, b| a.1 >= b.1) && top[0].1 <= 0.0);
        assert!(top.iter().map(|(_, logprob)| logprob.exp()).sum::<f32>() <= 1.0001);
    }
    let ids: Vec<u32> = heard.prompt.iter().map(|&(id, _)| id).collect();
    assert_eq!(ids, prompt[1..]);
    assert!(heard.prompt.iter().all(|&(_, logprob)| logprob <= 0.0));
    assert_eq!(heard.progress.last(), Some(&(prompt.len(), prompt.len())));
    free_all(model, engine);
}

unsafe extern "C" fn note_bytes(done: u64, total: u64, user_data: *mut c_void) -> i32 {
    assert!(done <= total);
    // SAFETY: the tests pass such a list.
    unsafe { (*user_data.cast::<Vec<u64>>()).push(done) };
    0
}

unsafe extern "C" fn give_up(_done: u64, _total: u64, _user_data: *mut c_void) -> i32 {
    1
}

#[test]
fn loading_is_watched_and_given_up() {
    let path = CString::new(MODEL).unwrap();
    let mut seen: Vec<u64> = Vec::new();
    // SAFETY: everything lives during the calls.
    unsafe {
        let mut options = std::mem::zeroed::<LoadOptions>();
        assert_eq!(millpond_load_options_init(&raw mut options), 0);
        options.preload = 1;
        options.progress = Some(note_bytes);
        options.progress_data = (&raw mut seen).cast();
        let (mut model, mut error) = (null_mut(), no_error());
        let status = millpond_model_load(path.as_ptr(), &raw const options, &raw mut model, &raw mut error);
        assert_eq!(status, 0, "{}", message(&error));
        assert_eq!(millpond_model_free(model, null_mut()), 0);
        assert_eq!(seen.last(), Some(&std::fs::metadata(MODEL).unwrap().len()));

        options.progress = Some(give_up);
        let status = millpond_model_load(path.as_ptr(), &raw const options, &raw mut model, &raw mut error);
        assert_eq!(status, Status::Cancelled as i32);
        assert!(model.is_null() && message(&error).contains("cancelled"), "{}", message(&error));
    }
}

fn name(info: &SessionInfo) -> &str {
    // SAFETY: a name is closed by a zero.
    unsafe { CStr::from_ptr(info.name.as_ptr()) }.to_str().unwrap()
}

#[test]
fn sessions_are_saved_listed_loaded_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let path = CString::new(folder.path().to_str().unwrap()).unwrap();
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start_in(model, path.as_ptr());
    let prompt = tokens(model, KING);
    let asked = Request { session: c"tale".as_ptr(), ..request(&prompt, 8) };
    let (first, _) = answer(engine, &asked);
    // SAFETY: everything lives during the calls.
    unsafe {
        let mut info = std::mem::zeroed::<SessionInfo>();
        let (tale, file) = (c"tale".as_ptr(), c"evening".as_ptr());
        assert_eq!(millpond_session_save(engine, tale, file, &raw mut info, null_mut()), 0);
        assert_eq!((name(&info), info.tokens), ("evening", prompt.len() + 7));
        assert_eq!(millpond_session_save(engine, tale, c"noon".as_ptr(), null_mut(), null_mut()), 0);
        let mut error = no_error();
        let escape = c"../evening".as_ptr();
        let status = millpond_session_save(engine, tale, escape, null_mut(), &raw mut error);
        assert_eq!(status, Status::InvalidArgument as i32, "{}", message(&error));
        let unknown = millpond_session_save(engine, c"other".as_ptr(), file, null_mut(), null_mut());
        assert_eq!(unknown, Status::NotFound as i32);
        assert_eq!(millpond_engine_free(engine, null_mut()), 0);

        let engine = start_in(model, path.as_ptr());
        let mut count = 0;
        let status = millpond_session_list(engine, null_mut(), 0, &raw mut count, null_mut());
        assert_eq!((status, count), (Status::BufferTooSmall as i32, 2));
        let mut list = [std::mem::zeroed::<SessionInfo>(); 2];
        assert_eq!(millpond_session_list(engine, list.as_mut_ptr(), 2, &raw mut count, null_mut()), 0);
        assert_eq!([name(&list[0]), name(&list[1])], ["evening", "noon"]);
        assert_eq!(list[0].fingerprint, info.fingerprint);
        assert!(list[0].saved_at > 1_700_000_000);
        assert_eq!(millpond_session_describe(engine, file, &raw mut info, null_mut()), 0);
        assert_eq!(info.tokens, prompt.len() + 7);

        let status = millpond_session_load(engine, file, tale, null_mut(), 0, &raw mut count, null_mut());
        assert_eq!((status, count), (Status::BufferTooSmall as i32, prompt.len() + 7));
        let unloaded = millpond_session_forget(engine, tale, null_mut());
        assert_eq!(unloaded, Status::NotFound as i32, "asking for the number loads nothing");
        let mut longer = vec![0; count];
        let place = longer.as_mut_ptr();
        assert_eq!(millpond_session_load(engine, file, tale, place, count, &raw mut count, null_mut()), 0);
        assert_eq!(longer[..prompt.len()], prompt);
        // The last token of the answer had no state yet: it comes again.
        let (rest, result) = answer(engine, &request(&longer, 1));
        assert!(first.ends_with(&rest) && !rest.is_empty(), "{first:?} {rest:?}");
        assert_eq!(result.cached_tokens + 1, longer.len());
        assert_eq!(millpond_session_forget(engine, tale, null_mut()), 0);
        assert_eq!(millpond_session_delete(engine, file, null_mut()), 0);
        assert_eq!(millpond_session_delete(engine, file, null_mut()), Status::NotFound as i32);
        std::fs::write(folder.path().join("noon.session"), b"MILLPOND").unwrap();
        let noon = c"noon".as_ptr();
        let status = millpond_session_load(engine, noon, tale, place, 1, &raw mut count, null_mut());
        assert_eq!(status, Status::SessionFailed as i32);
        assert_eq!(millpond_engine_free(engine, null_mut()), 0);

        let engine = start(model);
        let status = millpond_session_list(engine, null_mut(), 0, &raw mut count, null_mut());
        assert_eq!(status, Status::Unsupported as i32, "it has no folder");
        free_all(model, engine);
    }
}

fn describe(model: *mut ModelHandle) -> ModelInfo {
    // SAFETY: zeros are a value of every field; the structure lives during the call.
    unsafe {
        let mut info = std::mem::zeroed::<ModelInfo>();
        assert_eq!(millpond_model_describe(model, &raw mut info, null_mut()), 0);
        info
    }
}

#[test]
fn embeddings_are_vectors_that_tell_texts_apart() {
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let width = describe(model).embedding;
    let embed = |text: &str, pooling: Pooling| {
        let ids = tokens(model, text);
        let (mut values, mut length, mut error) = (vec![0.0_f32; width], 0, no_error());
        let place = values.as_mut_ptr();
        // SAFETY: everything lives during the call and has the size given.
        let status = unsafe {
            let (ids, count, pooling) = (ids.as_ptr(), ids.len(), pooling as i32);
            millpond_embed(engine, ids, count, pooling, place, width, &raw mut length, &raw mut error)
        };
        assert_eq!((status, length), (0, width), "{}", message(&error));
        values
    };
    let cosine = |a: &[f32], b: &[f32]| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    for pooling in [Pooling::Mean, Pooling::Last] {
        let king = embed(KING, pooling);
        assert!(king.iter().all(|value| value.is_finite()) && king.iter().any(|&value| value != 0.0));
        assert_eq!(king, embed(KING, pooling));
        assert!(cosine(&king, &embed("It rained on the mill for three days", pooling)) < 0.9999);
    }
    // SAFETY: lengths are asked for before anything is read.
    unsafe {
        let mut length = 0;
        let ids = [1_u32];
        let call = |pooling, length: *mut usize| {
            millpond_embed(engine, ids.as_ptr(), 1, pooling, null_mut(), 0, length, null_mut())
        };
        assert_eq!((call(0, &raw mut length), length), (Status::BufferTooSmall as i32, width));
        assert_eq!(call(2, &raw mut length), Status::InvalidArgument as i32);
        assert_eq!(call(0, null_mut()), Status::NullPointer as i32);
    }
    free_all(model, engine);
}

#[test]
fn an_embedding_can_be_cancelled_and_waited_for_once() {
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let width = describe(model).embedding;
    let ids = tokens(model, &KING.repeat(150));
    let begin = || {
        let (mut generation, mut error) = (null_mut(), no_error());
        // SAFETY: everything lives during the call and has the size given.
        let status = unsafe {
            let (place, error) = (&raw mut generation, &raw mut error);
            millpond_embedding_start(engine, ids.as_ptr(), ids.len(), Pooling::Last as i32, place, error)
        };
        assert_eq!(status, 0, "{}", message(&error));
        generation
    };
    let wait = |generation, values: &mut [f32]| {
        let mut length = 0;
        // SAFETY: as above.
        let status = unsafe {
            let (place, capacity) = (values.as_mut_ptr(), values.len());
            millpond_embedding_wait(generation, place, capacity, &raw mut length, null_mut())
        };
        (status, length)
    };
    let mut values = vec![0.0; width];
    let cancelled = begin();
    // SAFETY: no message is asked for.
    assert_eq!(unsafe { millpond_generation_cancel(cancelled, null_mut()) }, 0);
    assert_eq!(wait(cancelled, &mut values).0, Status::Cancelled as i32);

    let whole = begin();
    assert_eq!(wait(whole, &mut []), (Status::BufferTooSmall as i32, width));
    assert_eq!(wait(whole, &mut values), (0, width));
    assert!(values.iter().any(|&value| value != 0.0));
    assert_eq!(wait(whole, &mut values).0, Status::WrongOrder as i32);
    let text = submit(engine, &request(&ids[..3], 1));
    assert_eq!(wait(text, &mut values).0, Status::WrongOrder as i32);
    for generation in [cancelled, whole, text] {
        // SAFETY: no message is asked for.
        assert_eq!(unsafe { millpond_generation_free(generation, null_mut()) }, 0);
    }
    free_all(model, engine);
}

/// What `millpond_generation_read` gives: the status, the text and whether that was the end.
fn read(
    generation: *mut GenerationHandle,
    timeout: i64,
    room: usize,
    result: &mut Outcome,
) -> (i32, String, i32) {
    let (mut text, mut length, mut ended) = (vec![0_u8; room], 0, 0);
    // SAFETY: everything lives during the call and has the size given.
    let status = unsafe {
        let (place, length, ended) = (text.as_mut_ptr().cast(), &raw mut length, &raw mut ended);
        millpond_generation_read(generation, timeout, place, room, length, ended, result, null_mut())
    };
    text.truncate(if status == 0 { length } else { 0 });
    (status, String::from_utf8(text).expect("whole characters"), ended)
}

#[test]
fn text_can_be_taken_without_callbacks() {
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let prompt = tokens(model, KING);
    let (whole, cost) = answer(engine, &request(&prompt, 40));
    for room in [4, 7, 4096] {
        let generation = submit(engine, &request(&prompt, 40));
        let (mut text, mut result, mut calls) = (String::new(), Outcome::default(), 0);
        loop {
            // Polls first and waits then.
            let timeout = if calls < 3 { 0 } else { -1 };
            let (status, piece, ended) = read(generation, timeout, room, &mut result);
            assert_eq!(status, 0);
            text.push_str(&piece);
            calls += 1;
            if ended == 1 {
                break;
            }
            assert!(timeout == 0 || !piece.is_empty(), "a wait gives text or the end");
        }
        assert_eq!((text.as_str(), result.completion_tokens), (whole.as_str(), cost.completion_tokens));
        // The end stays the end, and there is nothing to wait for.
        assert_eq!(read(generation, 0, room, &mut result), (0, String::new(), 1));
        // SAFETY: no message is asked for.
        unsafe {
            let waited = millpond_generation_wait(generation, None, null_mut(), null_mut(), null_mut());
            assert_eq!(waited, Status::WrongOrder as i32);
            assert_eq!(millpond_generation_free(generation, null_mut()), 0);
        }
    }
    free_all(model, engine);
}

#[test]
fn a_reader_learns_of_cancelling_and_of_too_little_room() {
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let prompt = tokens(model, KING);
    let generation = submit(engine, &request(&prompt, LONG));
    let mut result = Outcome::default();
    assert_eq!(read(generation, -2, 8, &mut result).0, Status::InvalidArgument as i32);
    assert_eq!(read(generation, -1, 0, &mut result).0, Status::BufferTooSmall as i32);
    assert_eq!(read(generation, i64::MAX, 8, &mut result).0, 0);
    // SAFETY: no message is asked for.
    assert_eq!(unsafe { millpond_generation_cancel(generation, null_mut()) }, 0);
    while read(generation, -1, 64, &mut result).2 == 0 {}
    assert_eq!(result.finish, Finish::Cancelled as i32);
    // SAFETY: as above.
    assert_eq!(unsafe { millpond_generation_free(generation, null_mut()) }, 0);
    free_all(model, engine);
}

#[test]
fn a_draft_model_changes_no_token() {
    let model = load(Path::new(MODEL)).unwrap();
    let plain = start(model);
    let prompt = tokens(model, KING);
    let (expected, _) = answer(plain, &request(&prompt, 24));
    let mut engine = null_mut();
    // SAFETY: everything lives during the calls, and the options are initialised.
    unsafe {
        let mut options = std::mem::zeroed::<EngineOptions>();
        assert_eq!(millpond_engine_options_init(&raw mut options), 0);
        (options.context, options.threads, options.prefill_threads) = (2048, 1, 2);
        options.speculation = Speculation::Draft as i32;
        let refused = millpond_engine_start(model, &raw const options, &raw mut engine, null_mut());
        assert_eq!(refused, Status::StartFailed as i32, "there is no draft model");
        options.draft_model = model;
        assert_eq!(millpond_engine_start(model, &raw const options, &raw mut engine, null_mut()), 0);
    }
    let (text, result) = answer(engine, &request(&prompt, 24));
    assert_eq!(text, expected);
    assert!(result.accepted_tokens > 0, "a model drafts well for itself");
    let mut undrafted = request(&prompt, 24);
    undrafted.speculation = Speculation::Off as i32;
    let (text, result) = answer(engine, &undrafted);
    assert_eq!((text, result.drafted_tokens), (expected, 0));
    // SAFETY: no message is asked for.
    assert_eq!(unsafe { millpond_engine_free(plain, null_mut()) }, 0);
    free_all(model, engine);
}

#[test]
fn tokens_can_be_made_likelier_or_forbidden() {
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let prompt = tokens(model, KING);
    let wanted = tokens(model, " mill")[0];
    let biases = [Bias { id: wanted, bias: 1000.0 }];
    let mut biased = request(&prompt, 3);
    (biased.bias, biased.bias_count) = (biases.as_ptr(), biases.len());
    let (text, _) = answer(engine, &biased);
    assert_eq!(text, " mill mill mill");
    free_all(model, engine);
}

#[test]
fn figures_count_what_was_done() {
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let prompt = tokens(model, KING);
    answer(engine, &request(&prompt, 5));
    answer(engine, &request(&prompt, 5));
    let mut stats = Stats::default();
    // SAFETY: it lives during the call.
    assert_eq!(unsafe { millpond_engine_stats(engine, &raw mut stats, null_mut()) }, 0);
    assert_eq!((stats.accepted, stats.completed, stats.failed), (2, 2, 0));
    assert_eq!((stats.prompt_tokens, stats.generated_tokens), (2 * prompt.len() as u64, 10));
    assert!(stats.cached_tokens > 0 && stats.cache_bytes > 0 && stats.cache_bytes <= stats.cache_budget);
    assert_eq!((stats.running, stats.waiting, stats.reserved_bytes, stats.context), (0, 0, 0, 2048));
    // SAFETY: null is an error.
    let status = unsafe { millpond_engine_stats(engine, null_mut(), null_mut()) };
    assert_eq!(status, Status::NullPointer as i32);
    free_all(model, engine);
}

#[test]
fn budgets_bound_what_an_engine_takes() {
    let model = load(Path::new(MODEL)).unwrap();
    let mut engine = null_mut();
    let prompt = tokens(model, KING);
    // SAFETY: everything lives during the calls.
    unsafe {
        let mut options = std::mem::zeroed::<EngineOptions>();
        assert_eq!(millpond_engine_options_init(&raw mut options), 0);
        (options.threads, options.context, options.memory_budget, options.cache_budget) = (1, 512, 4096, 0);
        assert_eq!(millpond_engine_start(model, &raw const options, &raw mut engine, null_mut()), 0);
        let (mut generation, asked) = (null_mut(), request(&prompt, 5));
        let status = millpond_generation_start(engine, &raw const asked, &raw mut generation, null_mut());
        assert_eq!(status, Status::TooLong as i32, "4 KiB are not enough for anything");
        assert_eq!(millpond_engine_free(engine, null_mut()), 0);
        for bad in
            [EngineOptions { memory_budget: -2, ..options }, EngineOptions { draft_max: 65, ..options }]
        {
            let status = millpond_engine_start(model, &raw const bad, &raw mut engine, null_mut());
            assert_eq!(status, Status::InvalidArgument as i32);
        }
        options.max_running = 0;
        let status = millpond_engine_start(model, &raw const options, &raw mut engine, null_mut());
        assert_eq!(status, Status::StartFailed as i32);
        assert_eq!(millpond_model_free(model, null_mut()), 0);
    }
}

/// Calls a function that fills a buffer with text: first for the length, then for the text.
fn text_of(
    call: impl Fn(*mut c_char, usize, *mut usize, *mut Error) -> i32,
) -> Result<String, (i32, String)> {
    let (mut length, mut error) = (0, no_error());
    let status = call(null_mut(), 0, &raw mut length, &raw mut error);
    if status != Status::BufferTooSmall as i32 {
        return Err((status, message(&error).to_owned()));
    }
    let mut buffer = vec![0_u8; length];
    assert_eq!(call(buffer.as_mut_ptr().cast(), length, &raw mut length, &raw mut error), 0);
    Ok(String::from_utf8(buffer).unwrap())
}

#[test]
fn chats_are_rendered_and_answers_parsed() {
    let model = load(Path::new(MODEL)).unwrap();
    let messages = c"[{\"role\": \"user\", \"content\": \"Weather in Ghent?\"}]".as_ptr();
    let tools =
        c"[{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"parameters\": {}}}]".as_ptr();
    // SAFETY: everything lives during the calls.
    unsafe {
        let mut options = std::mem::zeroed::<ChatOptions>();
        assert_eq!(millpond_chat_options_init(&raw mut options), 0);
        let render = |options: &ChatOptions| {
            let options: *const ChatOptions = options;
            text_of(|buffer, capacity, length, error| {
                millpond_chat_render(model, messages, options, buffer, capacity, length, error)
            })
        };
        let open = render(&options).unwrap();
        let closed = render(&ChatOptions { add_generation_prompt: 0, ..options }).unwrap();
        assert!(open.contains("Weather in Ghent?") && open.len() > closed.len() && open.starts_with(&closed));
        let broken = ChatOptions { tools_json: c"{}".as_ptr(), ..options };
        assert_eq!(render(&broken).unwrap_err().0, Status::BadText as i32);
        assert_eq!(
            render(&ChatOptions { size: 0, ..options }).unwrap_err().0,
            Status::InvalidArgument as i32
        );

        options.tools_json = tools;
        let said = "Let me see.</think>\nOne moment.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": \
                    {\"city\": \"Ghent\"}}\n</tool_call>";
        let parsed = text_of(|buffer, capacity, length, error| {
            let (answer, bytes, options) = (said.as_ptr().cast(), said.len(), &raw const options);
            millpond_chat_parse(model, answer, bytes, options, 1, buffer, capacity, length, error)
        });
        let parsed: serde_json::Value = serde_json::from_str(&parsed.unwrap()).unwrap();
        assert_eq!(parsed["reasoning_content"], "Let me see.");
        assert_eq!(parsed["content"].as_str().unwrap().trim(), "One moment.");
        assert_eq!(parsed["tool_calls"][0]["function"]["arguments"]["city"], "Ghent");

        let id = tokens(model, "mill")[0];
        let bytes = text_of(|buffer, capacity, length, error| {
            millpond_token_bytes(model, id, buffer, capacity, length, error)
        });
        assert!("mill".starts_with(&bytes.unwrap()));
        assert_eq!(millpond_model_free(model, null_mut()), 0);
    }
}

#[test]
fn answers_are_held_to_schemas_and_grammars() {
    let model = load(Path::new(MODEL)).unwrap();
    let engine = start(model);
    let prompt = tokens(model, "Somebody who lives in the pond: ");
    let base = Request { ignore_eos: 0, ..request(&prompt, 40) };
    let schema = c"{\"enum\": [\"frog\", \"duck\"]}".as_ptr();
    let animal = answer(engine, &Request { json_schema: schema, ..base }).0;
    assert!(["\"frog\"", "\"duck\""].contains(&animal.trim()), "{animal}");
    let gbnf = answer(engine, &Request { grammar: c"root ::= \"frog\" | \"duck\"".as_ptr(), ..base }).0;
    let lark = answer(engine, &Request { lark: c"start: \"frog\" | \"duck\"".as_ptr(), ..base }).0;
    let regex = answer(engine, &Request { regex: c"frog|duck".as_ptr(), ..base }).0;
    for animal in [gbnf, lark, regex] {
        assert!(["frog", "duck"].contains(&animal.as_str()), "{animal}");
    }
    free_all(model, engine);
}
