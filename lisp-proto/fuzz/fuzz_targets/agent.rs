//! An agent under sequences of packets, datagrams and times.
#![no_main]

#[allow(dead_code, reason = "each target uses its part")]
#[path = "../sequences/mod.rs"]
mod sequences;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sequences::agent::run(bytes));
