//! `cargo +nightly fuzz run tokenizer_json`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millpond_tests::fuzz::tokenizer_json(data));
