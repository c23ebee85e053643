//! `cargo fuzz run recording`: see `tracewire_fuzz::recording`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tracewire_fuzz::recording(data));
