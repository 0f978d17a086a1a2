//! A host that calls anything with anything, in any order, from two threads.

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use millpond_capi::Status;
use millpond_capi::embedding::*;
use millpond_capi::engine::*;
use millpond_capi::generation::*;
use millpond_capi::handles::{EngineHandle, GenerationHandle, ModelHandle};
use millpond_capi::listener::*;
use millpond_capi::model::*;
use millpond_capi::request::*;
use millpond_capi::sessions::*;
use millpond_capi::text::*;
use millpond_capi::types::*;

const MODEL: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../server/assets/delta-48m-Q4_K_M.gguf\0").as_bytes(),
) {
    Ok(path) => path,
    Err(_) => panic!("a path is closed by one zero"),
};

/// Marsaglia's xorshift, 64 bits.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// Handles of all kinds, live and freed, as numbers: any may be passed for any.
struct Host {
    random: Random,
    handles: Vec<usize>,
    /// Of sessions, shared by all hosts.
    folder: CString,
}

impl Host {
    fn any<T>(&mut self) -> *mut T {
        match self.random.below(12) {
            0 => null_mut(),
            1 => std::ptr::without_provenance_mut(self.random.below(1 << 20)),
            _ if self.handles.is_empty() => null_mut(),
            _ => {
                let index = self.random.below(self.handles.len());
                std::ptr::without_provenance_mut(self.handles[index])
            }
        }
    }

    /// A name of a session, good or bad.
    fn name(&mut self) -> *const c_char {
        let names = [c"a", c"b", c"c", c"", c"../a", c"\xff"];
        match self.random.below(names.len() + 1) {
            0 => null(),
            index => names[index - 1].as_ptr(),
        }
    }

    fn session(&mut self) -> i32 {
        let mut count = 0;
        let mut infos = [const { MaybeUninit::<SessionInfo>::uninit() }; 2];
        let mut tokens = [0_u32; 64];
        let (infos, tokens) = (infos.as_mut_ptr().cast(), tokens.as_mut_ptr());
        let (capacity, count) = (self.random.below(65), &raw mut count);
        // SAFETY: handles and names may be anything; buffers live and have the size given.
        unsafe {
            match self.random.below(6) {
                0 => millpond_session_save(self.any(), self.name(), self.name(), null_mut(), null_mut()),
                1 => {
                    let (engine, file, session) = (self.any(), self.name(), self.name());
                    millpond_session_load(engine, file, session, tokens, capacity, count, null_mut())
                }
                2 => millpond_session_list(self.any(), infos, capacity % 3, count, null_mut()),
                3 => millpond_session_describe(self.any(), self.name(), infos, null_mut()),
                4 => millpond_session_delete(self.any(), self.name(), null_mut()),
                _ => millpond_session_forget(self.any(), self.name(), null_mut()),
            }
        }
    }

    fn listen(&mut self) -> i32 {
        // SAFETY: a listener that was not initialised is an error; functions are null.
        unsafe {
            let mut listener = std::mem::zeroed::<Listener>();
            if self.random.below(4) > 0 {
                assert_eq!(millpond_listener_init(&raw mut listener), 0);
            }
            millpond_generation_listen(self.any(), &raw const listener, null_mut(), null_mut())
        }
    }

    fn embed(&mut self) -> i32 {
        let (mut length, mut values) = (0, [0.0_f32; 2048]);
        let tokens = [1_u32, 2, u32::MAX];
        let (count, pooling) = (self.random.below(4), self.random.below(4) as i32 - 1);
        let (capacity, values) = (self.random.below(2) * values.len(), values.as_mut_ptr());
        // SAFETY: everything lives during the call and has the size given.
        unsafe {
            let (engine, tokens) = (self.any(), tokens.as_ptr());
            millpond_embed(engine, tokens, count, pooling, values, capacity, &raw mut length, null_mut())
        }
    }

    fn read(&mut self) -> i32 {
        let (mut length, mut ended, mut text) = (0, 0, [0; 8]);
        let (timeout, capacity) = (self.random.below(5) as i64 - 2, self.random.below(9));
        let (place, length, ended) = (text.as_mut_ptr(), &raw mut length, &raw mut ended);
        // Nobody waits here for ever: what runs is short, and what does not is an error.
        // SAFETY: everything lives during the call and has the size given.
        unsafe {
            millpond_generation_read(
                self.any(),
                timeout,
                place,
                capacity,
                length,
                ended,
                null_mut(),
                null_mut(),
            )
        }
    }

    fn embed_later(&mut self) -> i32 {
        let (mut length, mut values) = (0, [0.0_f32; 2048]);
        let tokens = [1_u32, 2];
        let mut generation: *mut GenerationHandle = null_mut();
        let (count, pooling) = (self.random.below(3), self.random.below(4) as i32 - 1);
        // SAFETY: everything lives during the calls and has the size given.
        unsafe {
            if self.random.below(2) == 0 {
                let (engine, tokens) = (self.any(), tokens.as_ptr());
                let status =
                    millpond_embedding_start(engine, tokens, count, pooling, &raw mut generation, null_mut());
                return self.keep(status, generation);
            }
            let (capacity, values) = (self.random.below(2) * values.len(), values.as_mut_ptr());
            millpond_embedding_wait(self.any(), values, capacity, &raw mut length, null_mut())
        }
    }

    fn keep<T>(&mut self, status: i32, handle: *mut T) -> i32 {
        assert_eq!(status == 0, !handle.is_null(), "a handle comes with success and only with it");
        if status == 0 {
            self.handles.push(handle.addr());
        }
        status
    }

    fn load(&mut self) -> i32 {
        let mut model: *mut ModelHandle = null_mut();
        // SAFETY: the path is closed by a zero, and `model` lives.
        let status = unsafe { millpond_model_load(MODEL.as_ptr(), null(), &raw mut model, null_mut()) };
        self.keep(status, model)
    }

    fn start(&mut self) -> i32 {
        let mut engine: *mut EngineHandle = null_mut();
        // SAFETY: zeros are a value of every field; everything lives during the calls.
        let status = unsafe {
            let mut options = std::mem::zeroed::<EngineOptions>();
            assert_eq!(millpond_engine_options_init(&raw mut options), 0);
            (options.threads, options.context) = (1, 64);
            options.session_dir = self.folder.as_ptr();
            millpond_engine_start(self.any(), &raw const options, &raw mut engine, null_mut())
        };
        self.keep(status, engine)
    }

    fn submit(&mut self) -> i32 {
        let prompt = [1_u32, 2, 3];
        let mut generation: *mut GenerationHandle = null_mut();
        // SAFETY: as above.
        let status = unsafe {
            let mut request = std::mem::zeroed::<Request>();
            assert_eq!(millpond_request_init(&raw mut request), 0);
            (request.prompt, request.prompt_count) = (prompt.as_ptr(), self.random.below(4));
            request.max_tokens = self.random.below(6) as i64 - 1;
            request.logprobs = self.random.below(4) as i32 - 2;
            request.echo = self.random.below(2) as i32;
            request.session = self.name();
            millpond_generation_start(self.any(), &raw const request, &raw mut generation, null_mut())
        };
        self.keep(status, generation)
    }

    fn call(&mut self) -> i32 {
        let mut length = 0;
        // SAFETY: handles may be anything; all else is null or lives during the call.
        unsafe {
            match self.random.below(24) {
                0 | 1 => self.load(),
                2 | 3 => self.start(),
                4..=6 => self.submit(),
                7 | 8 => millpond_generation_wait(self.any(), None, null_mut(), null_mut(), null_mut()),
                9 => millpond_generation_cancel(self.any(), null_mut()),
                10 => millpond_generation_free(self.any(), null_mut()),
                11 => millpond_engine_free(self.any(), null_mut()),
                12 => millpond_model_free(self.any(), null_mut()),
                13 => millpond_model_name(self.any(), null_mut(), 0, &raw mut length, null_mut()),
                14 => {
                    let text = c"a\xc3".as_ptr();
                    let bytes = self.random.below(3);
                    millpond_tokenize(self.any(), text, bytes, 1, null_mut(), 0, &raw mut length, null_mut())
                }
                15 => self.listen(),
                16 => self.embed(),
                17 => millpond_engine_stats(self.any(), null_mut(), null_mut()),
                18 => {
                    let messages = c"[{}]".as_ptr();
                    let (model, no) = (self.any(), null_mut());
                    millpond_chat_render(model, messages, null(), no, 0, &raw mut length, null_mut())
                }
                19..=20 => self.session(),
                21 => self.read(),
                22 => self.embed_later(),
                _ => millpond_model_describe(self.any(), null_mut(), null_mut()),
            }
        }
    }
}

/// Calls a number of times and returns how often each status came.
fn run(seed: u64, folder: CString) -> [usize; Status::ALL.len()] {
    let mut host = Host { random: Random(seed), handles: Vec::new(), folder };
    let mut seen = [0; Status::ALL.len()];
    for _ in 0..600 {
        let status = host.call();
        assert_ne!(status, Status::Internal as i32);
        seen[usize::try_from(status).expect("a status")] += 1;
    }
    for handle in host.handles {
        // SAFETY: no message is asked for.
        unsafe {
            millpond_generation_free(std::ptr::without_provenance_mut(handle), null_mut());
            millpond_engine_free(std::ptr::without_provenance_mut(handle), null_mut());
            millpond_model_free(std::ptr::without_provenance_mut(handle), null_mut());
        }
    }
    seen
}

#[test]
fn no_order_of_calls_hurts() {
    let folder = tempfile::tempdir().unwrap();
    let path = CString::new(folder.path().to_str().unwrap()).unwrap();
    let runs: Vec<_> = [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03]
        .into_iter()
        .map(|seed| (seed, path.clone()))
        .map(|(seed, path)| std::thread::spawn(move || run(seed, path)))
        .collect();
    for run in runs {
        let seen = run.join().expect("no panic");
        for status in [Status::Ok, Status::NullPointer, Status::InvalidArgument, Status::InvalidHandle] {
            assert!(seen[status as usize] > 0, "{status:?} never came: {seen:?}");
        }
    }
}
