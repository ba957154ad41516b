//! What a caller says about an interface and its peers, and what it reads back.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::PublicKey;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::embedded::Sources;
use crate::key::PrivateKey;

/// Which data plane the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// The kernel's WireGuard where it exists, else the embedded one.
    #[default]
    Auto,
    /// The kernel's WireGuard or an error.
    Kernel,
    /// WireGuard in this process, over a TUN device.
    Embedded,
}

/// Which data plane an interface runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's WireGuard.
    Kernel,
    /// WireGuard in this process, over a TUN device.
    Embedded,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Embedded => "embedded",
        })
    }
}

/// A WireGuard interface to create.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Interface name, 1 to 15 bytes.
    pub name: String,
    /// The static key of this side.
    pub private_key: PrivateKey,
    /// UDP port; 0 takes a free one.
    pub listen_port: u16,
    /// MTU of the interface in bytes.
    pub mtu: u16,
    /// The mark of the packets that carry the tunnels, for routing rules; 0: none.
    pub mark: u32,
    /// From which of our addresses far ends are answered; `None`: routes decide. The kernel's data plane
    /// answers from where they reach us in any case.
    pub sources: Option<Sources>,
    /// Inner addresses; host prefixes bring no subnet route with them.
    pub addresses: Vec<IpNet>,
    /// Whether a kernel interface that an earlier run left in place is taken over, with its
    /// sessions; without, it is replaced.
    pub adopt: bool,
}

/// One row of the cryptokey routing table, exactly as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSpec {
    /// The static public key of the peer.
    pub key: PublicKey,
    /// Where to send; `None` keeps what is there, including a roamed endpoint.
    pub endpoint: Option<SocketAddr>,
    /// Replaces the AllowedIPs of the peer; a prefix another peer holds moves here.
    pub allowed_ips: Vec<IpNet>,
    /// Persistent keepalive in seconds.
    pub keepalive: Option<u16>,
}

/// What the data plane knows about a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// The static public key of the peer.
    pub key: PublicKey,
    /// Where packets go at present.
    pub endpoint: Option<SocketAddr>,
    /// Time since the last completed handshake.
    pub since_handshake: Option<Duration>,
    /// Bytes received from the peer.
    pub rx_bytes: u64,
    /// Bytes sent to the peer.
    pub tx_bytes: u64,
    /// When all this was so: not before the counters were read.
    pub read_at: Instant,
}
