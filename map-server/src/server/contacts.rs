//! From where do the xTRs register?

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lisp_proto::{Deadlines, Timestamp};

use super::actions::Via;
use super::limits;
use super::sites::XtrIndex;

/// How to talk to an xTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contact {
    /// Where its last Map-Register came from.
    pub(crate) source: SocketAddr,
    /// Whether it does not truncate its authentication data, and expects the same of us.
    pub(crate) full_tag: bool,
}

/// Where the xTRs registered from, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contacts {
    by_xtr: BTreeMap<XtrIndex, Contact>,
    /// Plain sources with a registration, and how long it lasts.
    sources: BTreeMap<IpAddr, Timestamp>,
    expiry: Deadlines<IpAddr>,
}

impl Contacts {
    /// Takes note of a registration that lasts until `until`; returns whether `contact` is new.
    pub(crate) fn learn(
        &mut self,
        xtr: XtrIndex,
        contact: Contact,
        via: Via,
        until: Timestamp,
    ) -> bool {
        if via == Via::Plain {
            self.learn_source(contact.source.ip(), until);
        }
        self.by_xtr.insert(xtr, contact) != Some(contact)
    }

    fn learn_source(&mut self, source: IpAddr, until: Timestamp) {
        if self.sources.get(&source).is_none_or(|known| *known < until) {
            self.sources.insert(source, until);
            self.expiry.set(source, until);
        }
        if self.sources.len() > limits::REGISTERED_SOURCES {
            self.forget(Timestamp(u64::MAX));
        }
    }

    /// Returns how to talk to `xtr`.
    pub(crate) fn of(&self, xtr: XtrIndex) -> Option<Contact> {
        self.by_xtr.get(&xtr).copied()
    }

    /// Whether a registration that still lasts came from `source`, outside the control tunnel.
    /// One that came through the tunnel says nothing about who uses that address outside.
    pub(crate) fn is_registered(&self, source: IpAddr) -> bool {
        self.sources.contains_key(&source)
    }

    /// Forgets the sources whose registrations are over.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        while self.forget(now) {}
    }

    /// Returns when the next source is forgotten.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.expiry.next()
    }

    fn forget(&mut self, now: Timestamp) -> bool {
        let source = self.expiry.pop_due(now);
        source.is_some_and(|source| self.sources.remove(&source).is_some())
    }
}
