//! From where do the xTRs register?

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp_proto::{Deadlines, Timestamp};

use super::actions::Via;
use super::limits;
use super::sites::XtrIndex;

/// How to talk to an xTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Contact {
    /// Where its last Map-Register came from.
    pub(crate) source: SocketAddr,
    /// Whether it does not truncate its authentication data, and expects the same of us.
    pub(crate) full_tag: bool,
}

/// Where the xTRs registered from, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contacts {
    /// With the lifetime of the last registration.
    by_xtr: BTreeMap<XtrIndex, (Contact, Duration)>,
    /// Plain sources with a registration, and how long it lasts.
    sources: BTreeMap<IpAddr, Timestamp>,
    expiry: Deadlines<IpAddr>,
}

impl Contacts {
    /// Takes note of a registration that lasts for `lifetime` from `now` on.
    pub(crate) fn learn(
        &mut self,
        xtr: XtrIndex,
        contact: Contact,
        via: Via,
        now: Timestamp,
        lifetime: Duration,
    ) {
        if via == Via::Plain {
            self.learn_source(contact.source.ip(), now + lifetime);
        }
        self.by_xtr.insert(xtr, (contact, lifetime));
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
        self.by_xtr.get(&xtr).map(|(contact, _)| *contact)
    }

    /// Returns how long what `xtr` registers lasts.
    pub(crate) fn lifetime(&self, xtr: XtrIndex) -> Duration {
        let known = self.by_xtr.get(&xtr);
        known.map_or(limits::REGISTRATION_LIFETIME, |(_, lifetime)| *lifetime)
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
