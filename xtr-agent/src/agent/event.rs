//! What the agent tells its operator: events of its life, and why datagrams and packets were dropped.

use std::net::{IpAddr, SocketAddr};

use lisp_proto::{Action as MapAction, EidPrefix, Nonce, PublicKey};
use serde::Serialize;

/// Something an operator may want to see, in the order it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The map server acknowledged the registration of `eid`.
    Registered {
        /// The registered prefix.
        eid: EidPrefix,
    },
    /// The first packet to an unknown destination was caught.
    Caught {
        /// Where it was going.
        dst: IpAddr,
    },
    /// A Map-Request went out.
    MapRequest {
        /// What was asked for.
        eid: IpAddr,
        /// The nonce that the reply must carry.
        nonce: Nonce,
    },
    /// A positive Map-Reply came in.
    MapReply {
        /// The prefix it maps.
        eid: EidPrefix,
        /// Key of the peer that serves the prefix.
        key: PublicKey,
        /// Where that peer lives.
        endpoint: SocketAddr,
    },
    /// A negative Map-Reply came in.
    Negative {
        /// The prefix nobody serves.
        eid: EidPrefix,
        /// What the map server says to do with packets.
        action: MapAction,
    },
    /// The map server told us of a mapping we did not ask for.
    Push {
        /// The prefix it maps.
        eid: EidPrefix,
        /// Key of the peer that serves the prefix.
        key: PublicKey,
        /// Where that peer lives.
        endpoint: SocketAddr,
    },
    /// The data plane has the peer.
    PeerInstalled {
        /// The prefix that led to it.
        eid: EidPrefix,
        /// The peer.
        key: PublicKey,
        /// Where it lives.
        endpoint: SocketAddr,
        /// What led to it.
        cause: Cause,
    },
    /// Held packets were sent on.
    Reinjected {
        /// Their mapping.
        eid: EidPrefix,
        /// How many.
        packets: usize,
    },
    /// Packets to `eid` now bypass the agent.
    RouteInstalled {
        /// The prefix of the route.
        eid: EidPrefix,
    },
    /// The first handshake with a peer was seen.
    Handshake {
        /// The peer.
        key: PublicKey,
    },
    /// A first handshake was not seen in time and is started once more.
    HandshakeRestarted {
        /// The peer.
        key: PublicKey,
    },
    /// A mapping in use is to move: its new peer is installed, and shakes hands while the old one
    /// carries the traffic.
    HandoverArmed {
        /// The prefix that moves.
        eid: EidPrefix,
        /// The peer that serves it.
        from: PublicKey,
        /// The peer that shall serve it.
        to: PublicKey,
    },
    /// The mapping moves to its new peer.
    HandoverSwitched {
        /// The prefix that moves.
        eid: EidPrefix,
        /// The peer that served it.
        from: PublicKey,
        /// The peer that serves it.
        to: PublicKey,
    },
    /// The mapping does not move there: the new peer does not answer, or the map server has said
    /// something else since.
    HandoverFailed {
        /// The prefix that stays.
        eid: EidPrefix,
        /// The peer that served it.
        from: PublicKey,
        /// The peer that was to serve it.
        to: PublicKey,
    },
    /// A proxy in use leads nowhere any more, or one that was to take its place does not answer:
    /// another one is asked for.
    ProxyLost {
        /// The proxy.
        key: PublicKey,
    },
    /// A lost proxy has answered after all.
    ProxyFound {
        /// The proxy.
        key: PublicKey,
    },
    /// A peer is silent, and reached another way from now on.
    LocatorMoved {
        /// The peer.
        key: PublicKey,
        /// Where it was reached.
        from: SocketAddr,
        /// Where it is reached now.
        to: SocketAddr,
        /// Our uplink that packets leave by, if it was chosen.
        uplink: Option<IpAddr>,
    },
    /// A peer answers where it was moved to.
    LocatorAnswers {
        /// The peer.
        key: PublicKey,
        /// Where it is.
        at: SocketAddr,
    },
    /// A peer was heard from another one of its locators, and is reached there from now on.
    LocatorRoamed {
        /// The peer.
        key: PublicKey,
        /// Where it is.
        to: SocketAddr,
    },
    /// A peer is gone from the data plane.
    PeerRemoved {
        /// The peer.
        key: PublicKey,
    },
    /// A map server took a subscription, for the first time or once more.
    Subscribed {
        /// What was subscribed to.
        eid: EidPrefix,
    },
    /// A map server refused a subscription; it will be asked again.
    SubscriptionRefused {
        /// What was to be subscribed to.
        eid: EidPrefix,
        /// What the map server says.
        action: MapAction,
    },
    /// There is a NAT between us and the map server.
    BehindNat {
        /// Its address.
        address: IpAddr,
    },
    /// That NAT lets our data interface appear there, where we register it.
    SeenAt {
        /// Address and port.
        endpoint: SocketAddr,
    },
    /// There is no NAT any more.
    NotBehindNat,
    /// The data plane refused a change.
    ChangeFailed {
        /// What was refused.
        what: &'static str,
    },
}

/// Why a peer was installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// We asked for it.
    Reply,
    /// The map server told us.
    Push,
    /// It was known before the agent started.
    Restored,
}

/// Why a datagram or a packet was not acted upon. One counter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// A control datagram that does not decode.
    Malformed,
    /// A control datagram from somebody who is not a map server of ours.
    NotAMapServer,
    /// A message that a map server does not send to an xTR.
    UnexpectedMessage,
    /// Authentication data that does not fit.
    BadAuthentication,
    /// A Map-Reply to nothing we asked.
    UnknownNonce,
    /// A Map-Notify older than what we were told since, or repeated while in work.
    StaleNotify,
    /// More records in a message than we read.
    TooManyRecords,
    /// A mapping that gives us no locator we can use.
    NoUsableLocator,
    /// An answer that would be larger than the question of an unknown sender.
    WouldAmplify,
    /// More questions of others than we heed.
    TooManyQuestions,
    /// A captured packet that is not IP, or cut short.
    NotIp,
    /// A captured packet to an address outside the overlay.
    NotOverlay,
    /// A captured packet from a source that is no EID of ours.
    SourceNotOurs,
    /// A captured packet to one of our own EIDs.
    ToOurselves,
    /// Held packet pushed out by a newer one to the same destination.
    HoldOverflow,
    /// An ICMP error that was one too many; its packet is counted as well.
    IcmpLimited,
    /// Too many packets held in all.
    HoldFull,
    /// A packet to a new destination, when too many wait already: its sender is not told.
    TooManyDestinations,
    /// A packet waited for its destination to be asked for, and others took its place.
    TooManyRequests,
    /// Too many peers, all of them in use.
    TooManyPeers,
    /// Too many mappings cached.
    MapCacheFull,
    /// The data plane did not take the packet.
    NotTaken,
    /// There is no mapping for the destination.
    NegativeMapping,
    /// No map server answered.
    NoAnswer,
    /// The far end did not shake hands while the packet waited.
    NoHandshake,
    /// The mapping went away, or could not be installed, while the packet waited.
    MappingLost,
}
