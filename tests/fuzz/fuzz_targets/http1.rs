//! `cargo fuzz run http1`: see `tracewire_fuzz::http1`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracewire_fuzz::http1(data));
