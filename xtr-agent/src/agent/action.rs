//! What the agent asks of its shell.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use ipnet::IpNet;
use lisp_proto::PublicKey;

use super::carry::Carry;
use super::event::{DropReason, Event};
use super::peers::PeerSpec;

/// Names a change until it is reported back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeId(pub u64);

/// A change to the data plane. All are idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes the peer exactly so.
    SetPeer(PeerSpec),
    /// Removes the peer.
    RemovePeer(PublicKey),
    /// Sends packets to the prefix to the data interface, past the agent.
    AddRoute(IpNet),
    /// Sends packets to the prefix to the agent again.
    RemoveRoute(IpNet),
}

/// Everything the agent can ask of its shell, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sends a datagram from the control socket.
    Send {
        /// Where to.
        dst: SocketAddr,
        /// Its payload.
        bytes: Bytes,
    },
    /// Carries out a change and reports back with [`Input::Applied`](super::Input::Applied).
    Apply {
        /// Name for the report.
        id: ChangeId,
        /// What to do.
        change: Change,
    },
    /// Starts a handshake with the peer now.
    Kick(PublicKey),
    /// The same, unless there is a session; reports back with
    /// [`Input::Handshake`](super::Input::Handshake) once there is one. Only where the data plane
    /// [tells](super::Config::tells_handshakes).
    AwaitHandshake(PublicKey),
    /// Sets the control tunnel to the map server with this index up anew: it may
    /// have restarted and lost its half of the session.
    RenewControlTunnel(usize),
    /// Reports back with [`Input::PeerStats`](super::Input::PeerStats) of these peers.
    ReadPeerStats(Vec<PublicKey>),
    /// The same, and no older than it must be: packets wait for what the counters say.
    ReadPeerStatsAnew(Vec<PublicKey>),
    /// Sends an ICMP echo request with this sequence number through the data interface, and reports
    /// back with [`Input::EchoAnswered`](super::Input::EchoAnswered) if it is answered, and with
    /// [`Input::EchoNotSent`](super::Input::EchoNotSent) if it could not be sent.
    Echo {
        /// Whom to.
        to: IpAddr,
        /// Which.
        number: u16,
    },
    /// Has the packets of tunnels to this address leave from this one of our own, by the uplink that
    /// has it; `None`: as all others do.
    LeaveFrom {
        /// Where they go.
        to: IpAddr,
        /// An [`Uplink`](super::Uplink) that steers.
        from: Option<IpAddr>,
    },
    /// Begins to listen to where packets go through the data interface.
    Listen,
    /// Ends that, and reports back with [`Input::Heard`](super::Input::Heard).
    Hear,
    /// Does something about the connections of a client that moves.
    Carry(Carry),
    /// Sends a held packet out through the data interface.
    Reinject(Bytes),
    /// Hands a packet to the local IP stack.
    Deliver(Bytes),
    /// Counts something refused.
    Count(DropReason),
    /// Tells the operator.
    Event(Event),
}

/// Actions in the order they are to be carried out. Kept and reused by the shell.
#[derive(Debug, Default)]
pub struct Actions(Vec<Action>);

impl Actions {
    /// Takes all actions out, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = Action> + '_ {
        self.0.drain(..)
    }

    /// The actions, oldest first.
    #[must_use]
    pub fn as_slice(&self) -> &[Action] {
        &self.0
    }

    pub(super) fn push(&mut self, action: Action) {
        self.0.push(action);
    }

    pub(super) fn count(&mut self, reason: DropReason) {
        self.push(Action::Count(reason));
    }

    pub(super) fn event(&mut self, event: Event) {
        self.push(Action::Event(event));
    }
}
