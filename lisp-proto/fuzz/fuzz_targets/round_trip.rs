//! What is read is written so that it is read again the same.
#![no_main]

#[allow(dead_code, reason = "each target uses its part")]
#[path = "../../tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::round_trip(bytes));
