//! `cargo fuzz run framer`: see `tracewire_fuzz::framer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracewire_fuzz::framer(data));
