//! Any bytes are read or refused: no panic, no hang, no inconsistency.
#![no_main]

#[allow(dead_code, reason = "each target uses its part")]
#[path = "../../tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::read_everything(bytes));
