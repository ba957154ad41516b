//! An xTR (ITR and ETR in one) that pulls WireGuard peers on demand.
//!
//! | question | file |
//! |---|---|
//! | What can happen to an agent, and what can it ask for? | `agent/mod.rs` |
//! | What becomes of a packet to an unknown destination? | `agent/miss.rs` |
//! | What do the map servers say, and what are they told? | `agent/control.rs` |
//! | How does a mapping get into the data plane, and out? | `agent/install.rs` |
//! | What does the configuration file mean? | `config.rs` |
//! | Where is the IO? | `shell/` |
//!
//! Without the default feature `shell` the crate is the pure state machine.

pub mod agent;
#[cfg(feature = "shell")]
pub mod config;
#[cfg(feature = "shell")]
pub mod shell;
