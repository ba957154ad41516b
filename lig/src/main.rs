//! lig.

fn main() {}
