//! Traffic to measure a path with: echo requests, and numbered UDP packets.

mod ping;
mod udp;

pub use ping::{EchoReply, Ping, PingReport};
pub use udp::{UdpProbe, UdpReport};
