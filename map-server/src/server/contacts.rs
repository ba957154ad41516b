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
        if let Some(known) = self.sources.get_mut(&source) {
            // The timer is set anew when it fires.
            *known = until.max(*known);
            return;
        }
        self.sources.insert(source, until);
        self.expiry.set(source, until);
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

    /// Returns when the next source may be forgotten.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.expiry.next()
    }

    /// Forgets the source whose registration ends first, if that is over at `now`.
    fn forget(&mut self, now: Timestamp) -> bool {
        while let Some(at) = self.expiry.next()
            && let Some(source) = self.expiry.pop_due(now)
        {
            match self.sources.get(&source) {
                // Refreshed since the timer was set.
                Some(until) if *until > at => self.expiry.set(source, *until),
                Some(_) | None => {
                    self.sources.remove(&source);
                    return true;
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_source_is_registered_for_as_long_as_the_latest_of_its_registrations() {
        let mut contacts = Contacts::default();
        let [one, other] = [1, 2].map(|n| IpAddr::from(Ipv4Addr::from(n)));
        contacts.learn_source(one, Timestamp(5));
        contacts.learn_source(other, Timestamp(6));
        contacts.learn_source(one, Timestamp(9));
        contacts.learn_source(one, Timestamp(7));
        for (now, left) in [(4, [true, true]), (6, [true, false]), (9, [false, false])] {
            contacts.expire(Timestamp(now));
            let registered = [one, other].map(|source| contacts.is_registered(source));
            assert_eq!(registered, left, "at {now}");
        }
        assert_eq!(contacts.next_deadline(), None);
    }

    #[test]
    fn the_source_that_would_be_over_first_gives_way() {
        let mut contacts = Contacts::default();
        let source = |n| IpAddr::from(Ipv4Addr::from(n));
        let most = u32::try_from(limits::REGISTERED_SOURCES).unwrap();
        for n in 0..most {
            contacts.learn_source(source(n), Timestamp(100 + u64::from(n)));
        }
        contacts.learn_source(source(0), Timestamp(u64::MAX));
        contacts.learn_source(source(most), Timestamp(u64::MAX));
        let left = [0, 1, 2, most].map(|n| contacts.is_registered(source(n)));
        assert_eq!(left, [true, false, true, true]);
    }
}
