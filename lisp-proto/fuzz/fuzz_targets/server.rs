//! A map server under sequences of datagrams and times.
#![no_main]

#[allow(dead_code, reason = "each target uses its part")]
#[path = "../sequences/mod.rs"]
mod sequences;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sequences::server::run(bytes));
