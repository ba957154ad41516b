//! Whole networks in namespaces, with real daemons in them.
mod binaries;
pub mod cleanup;
mod clock;
mod crowd;
mod daemon;
pub mod demo;
mod error;
pub mod hosts;
mod link;
mod namespace;
mod netlink;
mod network;
mod probe;
mod settle;
pub mod sim;
mod snapshot;
mod spawner;
mod stats;
mod sys;
mod testbed;
mod topology;
pub mod vm;
pub use binaries::Binaries;
pub use clock::{monotonic_ns, sleep, sleep_until, wall_ns};
pub use crowd::{Arrival, Crowd, CrowdStream, Datagram, Identity, Outbox, Tunnel};
pub use daemon::{Daemon, DaemonSpec, EventLog, LogEvent, LogPosition};
pub use error::TestbedError;
pub use link::{DirectionCounters, Link, LinkEnd, LinkKind, LinkParams, Share};
pub use namespace::Namespace;
pub use netlink::InterfaceCounters;
pub use network::{
    CONTROL_INTERFACE, ColdStart, DataPlane, Endpoint, Failure, Network, NetworkOptions, Node,
    PeerReport, Router, SERVER_CONTROL_INTERFACE, SecondUplink, Tenant, TwoProxies, UplinkFailure,
};
pub use probe::{EchoReply, Ping, PingReport, TcpProbe, TcpReport, UdpProbe, UdpReport};
pub use snapshot::Snapshot;
pub use stats::Distribution;
pub use testbed::Testbed;
pub use topology::{HOST_INTERFACE, Host, Topology, Underlay};
