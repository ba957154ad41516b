//! testbed.

fn main() {}
