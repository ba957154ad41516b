//! What goes into the state machine, and what comes out?

use std::net::SocketAddr;

use bytes::Bytes;
use lisp_proto::{EidPrefix, PublicKey, Timestamp};

use super::counters::DropReason;
use super::operator::{Command, MigrationState};
use crate::config::XtrName;
use crate::store_event::StoreEvent;

/// How a datagram travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// Through the control tunnel: cryptokey routing vouches for the source address.
    Tunnel,
    /// Through the bare network: nobody vouches for the source address.
    Plain,
}

/// Everything that can happen to the server.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// A datagram arrived at the control port.
    Datagram {
        /// Where it says it comes from.
        src: SocketAddr,
        /// How it came.
        via: Via,
        /// The UDP payload.
        bytes: &'a [u8],
    },
    /// A fact that an earlier run had asked to keep.
    Restore(StoreEvent),
    /// An operator wants something done.
    Operator(Command),
    /// WireGuard was asked where its peers are: enrolled agents, and those that an [`Action::Watch`] names.
    Seen {
        /// When: whoever has moved since may be somewhere else.
        began: Timestamp,
        /// Those that are at other places than before, as far as a handshake vouches for it.
        peers: &'a [(PublicKey, SocketAddr)],
    },
    /// The time of [`next_deadline`](super::MapServer::next_deadline) has come.
    Tick,
}

/// Something the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a datagram from the control port.
    Send {
        /// Where to.
        dst: SocketAddr,
        /// Which way.
        via: Via,
        /// The UDP payload.
        bytes: Bytes,
    },
    /// Keep a fact, before any later action is done.
    Persist(StoreEvent),
    /// Have this key as a peer of the control interface, without AllowedIPs: nothing that its holder sends gets in,
    /// and [`Input::Seen`] tells where it is.
    Watch(PublicKey),
    /// Have it no longer.
    Unwatch(PublicKey),
    /// Find out where the peers are, soon: an [`Input::Seen`] is awaited, even if it names nobody.
    Look,
    /// Count a datagram, or a part of it, that was not acted upon.
    Count(DropReason),
    /// Tell the operator.
    Event(Event),
}

/// What an operator may want to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A registration is new or has changed.
    Registered {
        /// Who registered.
        xtr: XtrName,
        /// What was registered.
        eid: EidPrefix,
    },
    /// A registration was withdrawn or has expired.
    Withdrawn {
        /// Who had registered.
        xtr: XtrName,
        /// What had been registered.
        eid: EidPrefix,
    },
    /// A Map-Request came in.
    Request {
        /// Who asks, if enrolled.
        xtr: Option<XtrName>,
        /// What is asked for.
        eid: EidPrefix,
    },
    /// An xTR will be told about changes of a prefix (RFC 9437).
    Subscribed {
        /// Who subscribed.
        xtr: XtrName,
        /// What to.
        eid: EidPrefix,
    },
    /// An xTR wants to be told no longer.
    Unsubscribed {
        /// Who had subscribed.
        xtr: XtrName,
        /// What to.
        eid: EidPrefix,
    },
    /// An unsolicited Map-Notify was sent, for the first time.
    Push {
        /// Who is told.
        to: XtrName,
        /// What about.
        eid: EidPrefix,
    },
    /// An unsolicited Map-Notify was acknowledged.
    PushAcked {
        /// Who was told.
        from: XtrName,
        /// What about.
        eid: EidPrefix,
    },
    /// A Map-Reply with a mapping was sent.
    Reply {
        /// Who asked, if enrolled.
        xtr: Option<XtrName>,
        /// The prefix of the answer.
        eid: EidPrefix,
    },
    /// A client is moving from one owner of a shared prefix to another, and has come this far.
    Migration {
        /// Who moves.
        client: XtrName,
        /// The prefix; absent if the client does not use any.
        eid: Option<EidPrefix>,
        /// Whom it used.
        from: XtrName,
        /// Whom it shall use, if there is somebody.
        to: Option<XtrName>,
        /// How far it has come.
        state: MigrationState,
    },
    /// A client could not use its owner of a shared prefix any more, and has got another one.
    FailedOver {
        /// Who moves.
        client: XtrName,
        /// The prefix.
        eid: EidPrefix,
        /// Whom it could not use.
        from: XtrName,
        /// Whom it shall use.
        to: XtrName,
    },
    /// An xTR is to get no new clients, or may get them again.
    Draining {
        /// Which xTR.
        xtr: XtrName,
        /// Whether it is to get none.
        draining: bool,
        /// Pairs whose packets it relays: no other relay can, or it may have them again.
        relaying: usize,
    },
    /// NATs keep two xTRs apart: a third carries their packets.
    Relayed {
        /// Who has said so.
        one: XtrName,
        /// Whom it cannot reach.
        other: XtrName,
        /// The relay.
        via: XtrName,
    },
    /// An xTR behind a NAT was told where its data interface is seen.
    Seen {
        /// Which xTR.
        xtr: XtrName,
        /// What it has asked for.
        eid: EidPrefix,
        /// Where it is seen.
        at: SocketAddr,
    },
    /// A negative Map-Reply was sent.
    NegativeReply {
        /// The prefix of the answer.
        eid: EidPrefix,
    },
}

/// What the shell must do, in this order.
#[derive(Clone, Debug, Default)]
pub struct Actions {
    list: Vec<Action>,
    is_quiet: bool,
}

impl Actions {
    /// Builds an empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            list: Vec::new(),
            is_quiet: false,
        }
    }

    /// Builds an empty list that takes no [`Action::Event`]: nobody would read them.
    #[must_use]
    pub const fn quiet() -> Self {
        Self {
            list: Vec::new(),
            is_quiet: true,
        }
    }

    /// Whether it takes no events.
    pub(crate) const fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Lists the actions without taking them out.
    pub fn iter(&self) -> std::slice::Iter<'_, Action> {
        self.list.iter()
    }

    /// Takes all actions out; the memory stays for the next ones.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Action> {
        self.list.drain(..)
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn send(&mut self, dst: SocketAddr, via: Via, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        self.list.push(Action::Send { dst, via, bytes });
    }

    pub(crate) fn persist(&mut self, event: StoreEvent) {
        self.list.push(Action::Persist(event));
    }

    pub(crate) fn watch(&mut self, key: PublicKey) {
        self.list.push(Action::Watch(key));
    }

    pub(crate) fn unwatch(&mut self, key: PublicKey) {
        self.list.push(Action::Unwatch(key));
    }

    pub(crate) fn look(&mut self) {
        self.list.push(Action::Look);
    }

    pub(crate) fn count(&mut self, reason: DropReason) {
        self.list.push(Action::Count(reason));
    }

    pub(crate) fn event(&mut self, event: Event) {
        if !self.is_quiet {
            self.list.push(Action::Event(event));
        }
    }
}

impl<'a> IntoIterator for &'a Actions {
    type Item = &'a Action;
    type IntoIter = std::slice::Iter<'a, Action>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
