//! What WireGuard sends, as far as its behaviour depends on it: no ciphers, but what they prove.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use lisp_proto::PublicKey;

/// A packet inside a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::sim) struct Inner {
    /// Inner source address.
    pub(in crate::sim) src: IpAddr,
    /// Inner destination address.
    pub(in crate::sim) dst: IpAddr,
    /// For data an IP packet, for control the UDP payload.
    pub(in crate::sim) body: Bytes,
}

/// A WireGuard message. Ephemeral keys are numbers that nobody else can guess.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::sim) enum Wire {
    /// Handshake initiation.
    Init {
        to: PublicKey,
        from: PublicKey,
        sender: u32,
        ephemeral: u64,
        /// What the initiator's clock says: must grow.
        stamp: u64,
    },
    /// Handshake response.
    Response {
        sender: u32,
        receiver: u32,
        /// The ephemeral key of the initiation.
        answers: u64,
        ephemeral: u64,
    },
    /// Transport data; without a packet it is a keepalive.
    Data {
        receiver: u32,
        /// Stands for the session's keys.
        session: u64,
        counter: u64,
        inner: Option<Inner>,
    },
}

impl Wire {
    /// What the sender does to the receiver.
    pub(in crate::sim) const fn verb(&self) -> &'static str {
        match self {
            Self::Init { .. } => "initiates to",
            Self::Response { .. } => "responds to",
            Self::Data { .. } => "sends to",
        }
    }

    /// Length of the UDP payload in bytes.
    pub(in crate::sim) fn len(&self) -> usize {
        match self {
            Self::Init { .. } => 148,
            Self::Response { .. } => 92,
            Self::Data { inner, .. } => {
                32 + inner
                    .as_ref()
                    .map_or(0, |inner| inner.body.len().next_multiple_of(16))
            }
        }
    }
}

/// What an interface does about an input.
#[derive(Debug)]
pub(in crate::sim) enum Out {
    /// Sends a UDP datagram.
    Transmit { dst: SocketAddr, wire: Wire },
    /// A packet came out of the tunnel.
    Receive { inner: Inner },
    /// A packet that will never arrive.
    Lost { inner: Inner, why: Lost },
}

/// Why the interface gave a packet up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::sim) enum Lost {
    /// No peer has the destination among its AllowedIPs.
    NoPeer,
    /// Pushed out by newer ones while there was no session.
    QueueFull,
    /// No handshake succeeded in time.
    NoHandshake,
    /// The peer was removed.
    PeerRemoved,
    /// It had just left when the peer was removed, and may arrive after all.
    JustSent,
    /// The source is not among the AllowedIPs of the key that sent it.
    WrongSource,
}
