//! `cargo fuzz run records`: see `tracewire_fuzz::records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracewire_fuzz::records(data));
