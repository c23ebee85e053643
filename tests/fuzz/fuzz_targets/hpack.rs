//! `cargo fuzz run hpack`: see `tracewire_fuzz::hpack`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracewire_fuzz::hpack(data));
