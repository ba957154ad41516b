//! Traffic to measure a path with: echo requests, numbered UDP packets, and TCP transfers.

mod ping;
mod tcp;
mod udp;

pub use ping::{EchoReply, Ping, PingReport};
pub use tcp::{TcpProbe, TcpReport};
pub(crate) use udp::Arrival;
pub use udp::{UdpProbe, UdpReport};
