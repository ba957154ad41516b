//! Whole networks in namespaces, with real daemons in them.
pub mod cleanup;
mod clock;
mod error;
mod link;
mod namespace;
mod netlink;
mod snapshot;
mod spawner;
mod sys;
mod testbed;
pub use clock::{monotonic_ns, sleep, sleep_until, wall_ns};
pub use error::TestbedError;
pub use link::{DirectionCounters, Link, LinkEnd, LinkKind, LinkParams, Share};
pub use namespace::Namespace;
pub use netlink::InterfaceCounters;
pub use snapshot::Snapshot;
pub use testbed::Testbed;
