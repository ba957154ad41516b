//! WireGuard interfaces, TUN interfaces and routes, as the daemons of this workspace need them.
//!
//! | question | module |
//! |---|---|
//! | how is an interface made, and its peers set? | `device` |
//! | what does a caller say, and read back? | `types` |
//! | where does the private key live? | `key` |
//! | how does WireGuard run in this process? | `embedded` |
//! | how is the kernel's WireGuard programmed? | `kernel` |
//! | which change of a peer is the smallest? | `table` |
//! | who reads counters, and how often? | `counters`, `paced_stats` |
//! | what outlives a killed process? | `leftover` |
//! | what catches packets to unknown destinations? | `miss_tun` |
//! | how do packets get into an interface? | `routes` |
//! | when has this host another address? | `address_watch` |
//! | how far away is somebody behind an interface? | `echo` |
//! | does somebody answer, and who may be asked? | `pinger`, `listener` |
//! | how large may packets be? | `path_mtu` |
//! | what becomes of packets that are forwarded? | `forward_rules` |
//! | which connections are translated? | `conntrack` |
//! | how do tunnels stay out of an overlay that is everything? | `rules` |
//! | which uplink does a packet leave by? | `uplinks` |
//! | which sockets belong to a tunnel? | `sockets` |
//! | how do many datagrams come and go at a time? | `batch` |
//! | what becomes of memory that was freed? | `heap` |
//! | how does the kernel make interfaces? | `netlink` |
//! | how are they made in another network namespace? | `netns` |
//!
//! Everything happens in the network namespace of the calling thread unless another one is named.
//! Linux only.

mod address_watch;
mod batch;
mod clock;
mod conntrack;
mod counters;
mod device;
mod echo;
mod embedded;
mod error;
mod forward_rules;
mod heap;
mod kernel;
mod key;
mod leftover;
mod link_guard;
mod listener;
mod miss_tun;
mod netlink;
mod netns;
mod paced_stats;
mod path_mtu;
mod pinger;
mod priority;
mod routes;
mod rules;
mod sockets;
mod table;
mod tun;
mod types;
mod uplinks;

pub use address_watch::AddressWatch;
pub use batch::{BATCH, Inbox, Outbox, wait_for_any};
pub use conntrack::{Conntrack, Entered, Flow, FlowKey, FlowState, TcpState};
pub use counters::Counters;
pub use device::Device;
pub use echo::{SMALL_ECHO, round_trips};
pub use embedded::Sources;
pub use error::DeviceError;
pub use forward_rules::{ForwardRules, Forwarded, SourceNat, Translation};
pub use heap::give_memory_back;
pub use key::{KeyError, PrivateKey};
pub use leftover::remove_leftover;
pub use listener::Listener;
pub use miss_tun::MissTun;
pub use netns::NetNs;
pub use path_mtu::{path_mtu, wireguard_overhead};
pub use pinger::Pinger;
pub use priority::stand_back;
pub use routes::{MAIN_TABLE, RouteSpec, Routes};
pub use rules::{OVERLAY_TABLE, OverlayRules, UNDERLAY_MARK};
pub use sockets::{
    bind_control_socket, bind_shared_sockets, connect_through, listen_through,
    local_address_towards, set_receive_room,
};
pub use types::{Backend, BackendChoice, DeviceConfig, PeerSpec, PeerStats};
pub use uplinks::{UplinkSpec, Uplinks};
