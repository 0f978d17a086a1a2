//! `cargo +nightly fuzz run packed`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millpond_tests::fuzz::packed(data));
