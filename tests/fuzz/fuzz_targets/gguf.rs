//! `cargo +nightly fuzz run gguf`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millpond_tests::fuzz::gguf(data));
