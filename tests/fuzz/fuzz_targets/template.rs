//! `cargo +nightly fuzz run template`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| millpond_tests::fuzz::template(data));
