//! map-server.

fn main() {}
