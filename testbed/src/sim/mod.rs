//! A whole network in one process and one thread, in virtual time.
//!
//! The state machines of the daemons run as they are; the network, the disks, the clocks, the
//! routes and WireGuard are models. A scenario decides everything: the same one gives the same
//! trace, byte for byte.
//!
//! | question | file |
//! |---|---|
//! | What happens in a run? | `scenario.rs`, made from a seed by `generate.rs`, `generate_faults.rs`, `pauses.rs` |
//! | What must be true? | `invariant.rs`, checked in `checks.rs`, `app.rs`, `ledger.rs`, `attack.rs`, `authority.rs` |
//! | Who gets which input when? | `world.rs`, `agent_host.rs`, `agent_io.rs`, `server_host.rs`, `server_disk.rs`, `lookout.rs` |
//! | Who leads clients to the world, and what must be true then? | `proxies.rs`, `proxied.rs` |
//! | Who is behind a NAT and finds out, and what must be true then? | `routers.rs`, `hidden.rs` |
//! | What do relays pass on? | `carried.rs` |
//! | Who is enrolled where? | `enrolment.rs` |
//! | Does a datagram arrive? | `net.rs`, `nat.rs` |
//! | How does WireGuard behave? | `wireguard/` |
//! | How does a data plane behave? | `data_plane.rs` |
//! | What goes wrong? | `faults.rs`, `former.rs`, `attack.rs`, and on purpose `sabotage.rs` |
//! | What is left of a failure that matters? | `shrink.rs`, `failure.rs` |

mod addresses;
mod agent_host;
mod agent_io;
mod app;
mod attack;
mod authority;
mod carried;
mod checks;
pub mod cli;
mod clock;
mod data_plane;
mod enrolment;
mod failure;
mod faults;
mod former;
mod generate;
mod generate_faults;
mod hidden;
mod invariant;
mod ledger;
mod lookout;
mod nat;
mod net;
mod options;
mod packet;
mod pauses;
mod proxied;
mod proxies;
mod report;
mod routers;
mod run;
mod sabotage;
mod saboteur;
mod saboteur_nat;
mod scenario;
mod seeds;
mod server_disk;
mod server_host;
mod shrink;
mod stats;
mod subscribed;
mod trace;
mod traffic;
mod uplinks;
mod wireguard;
mod words;
mod world;

pub use failure::Failure;
pub use generate::generate;
pub use invariant::{Invariant, Violation};
pub use nat::Ports;
pub use net::Host;
pub use options::{FaultClass, FaultClasses, Options, Setting};
pub use proxies::{Moving, Proxies};
pub use report::{Percentiles, Report};
pub use routers::Router;
pub use run::{Outcome, Progress, run, run_twice};
pub use sabotage::Sabotage;
pub use scenario::{Disk, Fault, FaultKind, Flow, Scenario, Subscription, Target};
pub use shrink::shrink;
