//! xtr-agent.

fn main() {}
