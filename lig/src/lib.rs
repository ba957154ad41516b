//! Asks a LISP mapping system, as `dig` asks the DNS (RFC 6835).
//!
//! `query` is the exchange without IO, `print` what a person or a program
//! reads; the binary joins them to a socket.

pub mod print;
pub mod query;
