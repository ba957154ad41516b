//! How is a mapping stored?
//!
//! Mostly there is one registration with one WireGuard locator, which takes little room; everything else
//! is stored at length.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lisp_proto::{Action, EidPrefix, Locator, PublicKey, Record, Rloc, Ttl};

use super::super::limits;
use super::super::prefix_table::SlotId;
use super::super::sites::Registrant;
use super::expiry::{Millis, Timer};
use super::terms::Terms;
use super::view::told;
use super::{Change, Full, Registration, Said, Stored};

/// A prefix with a meaning of its own.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) form: Form,
    pub(super) timer: Timer,
    pub(super) is_boundary: bool,
}

impl Slot {
    pub(super) fn boundary() -> Self {
        Self {
            is_boundary: true,
            ..Self::vacant()
        }
    }

    pub(super) fn vacant() -> Self {
        Self {
            form: Form::Vacant,
            timer: Timer::default(),
            is_boundary: false,
        }
    }

    /// Returns the next mapping in the list of the owner.
    pub(super) const fn next(&self) -> Option<SlotId> {
        match &self.form {
            Form::Lean(lean) => lean.next,
            Form::Vacant | Form::Many(_) => None,
        }
    }
}

/// What is stored of a mapping.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// Nobody has registered it.
    Vacant,
    /// One registrant has, with one WireGuard locator.
    Lean(Lean),
    /// It is stored at length, at this place.
    Many(SlotId),
}

/// A mapping as it is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held<'a> {
    Lean(&'a Lean, &'a Terms),
    Many(&'a Many),
}

/// One registration with one WireGuard locator.
#[derive(Clone, Debug)]
pub(super) struct Lean {
    key: PublicKey,
    address: IpAddr,
    /// In the order of bytes on the wire: so the parts of this need no gaps.
    port: [u8; 2],
    priority: u8,
    weight: u8,
    flags: u8,
    pub(super) terms: SlotId,
    ttl: Ttl,
    /// When it expires.
    expires: [u8; 6],
    prev: Option<SlotId>,
    next: Option<SlotId>,
}

const LOCAL: u8 = 1;
const PROBED: u8 = 2;
const REACHABLE: u8 = 4;

impl Lean {
    /// Stores one registration, if it has one WireGuard locator with an ordinary address.
    pub(super) fn of(said: Said<'_>, terms: SlotId, expires: Millis) -> Option<Self> {
        let [locator] = said.locators else {
            return None;
        };
        let Rloc::WireGuard { endpoint, key } = locator.rloc else {
            return None;
        };
        let lean = Self {
            key,
            address: endpoint.ip(),
            port: endpoint.port().to_be_bytes(),
            priority: locator.priority,
            weight: locator.weight,
            flags: flag(locator.local, LOCAL)
                | flag(locator.probed, PROBED)
                | flag(locator.reachable, REACHABLE),
            terms,
            ttl: said.ttl,
            expires: expires.pack(),
            prev: None,
            next: None,
        };
        (lean.locator() == *locator).then_some(lean)
    }

    pub(super) const fn locator(&self) -> Locator {
        Locator {
            priority: self.priority,
            weight: self.weight,
            local: self.flags & LOCAL != 0,
            probed: self.flags & PROBED != 0,
            reachable: self.flags & REACHABLE != 0,
            rloc: Rloc::WireGuard {
                endpoint: SocketAddr::new(self.address, u16::from_be_bytes(self.port)),
                key: self.key,
            },
        }
    }

    /// Whether this is what a registration says of its locators.
    pub(super) fn is_of(&self, said: Said<'_>) -> bool {
        said.ttl == self.ttl && *said.locators == [self.locator()]
    }

    pub(super) const fn set_expires(&mut self, expires: Millis) {
        self.expires = expires.pack();
    }

    pub(super) fn registration(&self, terms: &Terms) -> Registration {
        Registration {
            ttl: self.ttl,
            locators: vec![self.locator()],
            merge: terms.merge,
            want_notify: terms.want_notify,
            contact: terms.contact,
            lifetime: terms.lifetime,
        }
    }

    pub(super) const fn ttl(&self) -> Ttl {
        self.ttl
    }

    /// Returns when it expires.
    pub(super) const fn expires(&self) -> Millis {
        Millis::unpack(self.expires)
    }

    /// Takes over what a later registration says; returns what that did to the record.
    pub(super) fn become_like(&mut self, later: &Self) -> Change {
        let before = (told(self.locator()), self.ttl);
        let (prev, next) = self.links();
        self.clone_from(later);
        self.set_links(prev, next);
        if before == (told(self.locator()), self.ttl) {
            Change::None
        } else {
            Change::Updated
        }
    }

    pub(super) const fn links(&self) -> (Option<SlotId>, Option<SlotId>) {
        (self.prev, self.next)
    }

    pub(super) const fn set_links(&mut self, prev: Option<SlotId>, next: Option<SlotId>) {
        (self.prev, self.next) = (prev, next);
    }

    pub(super) const fn set_prev(&mut self, prev: Option<SlotId>) {
        self.prev = prev;
    }

    pub(super) const fn set_next(&mut self, next: Option<SlotId>) {
        self.next = next;
    }
}

const fn flag(is_set: bool, bit: u8) -> u8 {
    if is_set { bit } else { 0 }
}

/// A mapping at length.
#[derive(Clone, Debug)]
pub(super) struct Many {
    record: Record,
    registrations: BTreeMap<Registrant, (Registration, Millis)>,
}

impl Many {
    pub(super) const fn new(eid: EidPrefix) -> Self {
        Self {
            record: empty_record(eid),
            registrations: BTreeMap::new(),
        }
    }

    pub(super) const fn record(&self) -> &Record {
        &self.record
    }

    pub(super) fn registrations(&self) -> impl Iterator<Item = (&Registrant, &Registration)> {
        let all = self.registrations.iter();
        all.map(|(registrant, (registration, _))| (registrant, registration))
    }

    /// Returns the only registration there is, with when it expires.
    pub(super) fn single(&self) -> Option<(Registrant, &Registration, Millis)> {
        let mut all = self.registrations.iter();
        match (all.next(), all.next()) {
            (Some((registrant, (registration, at))), None) => {
                Some((*registrant, registration, *at))
            }
            _ => None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.registrations.is_empty()
    }

    /// Takes in what was stored before.
    pub(super) fn add(
        &mut self,
        registrant: Registrant,
        registration: Registration,
        expires: Millis,
    ) {
        self.registrations
            .insert(registrant, (registration, expires));
        self.summarise();
    }

    /// Returns the registration that expires first, with when that is.
    pub(super) fn first_to_expire(&self) -> Option<(Registrant, Millis)> {
        let all = self.registrations.iter();
        let all = all.map(|(registrant, (_, at))| (*registrant, *at));
        all.min_by_key(|(_, at)| *at)
    }

    /// Lists when registrations expire.
    pub(super) fn expiries(&self) -> impl Iterator<Item = Millis> {
        self.registrations.values().map(|(_, at)| *at)
    }

    /// Stores a registration beside the others, or in their place.
    ///
    /// # Errors
    /// There are too many; nothing is changed.
    pub(super) fn store(
        &mut self,
        registrant: Registrant,
        registration: Registration,
        expires: Millis,
    ) -> Result<Stored, Full> {
        let gives_way = |(other, old): (&Registrant, &Registration)| {
            let stays = *other == registrant || (registration.merge && old.merge);
            (!stays).then_some(*other)
        };
        let replaced: Vec<_> = self.registrations().filter_map(gives_way).collect();
        let known = self.registrations.contains_key(&registrant);
        if !known && self.registrations.len() - replaced.len() >= limits::REGISTRATIONS_PER_MAPPING
        {
            return Err(Full);
        }
        for other in &replaced {
            self.registrations.remove(other);
        }
        self.registrations
            .insert(registrant, (registration, expires));
        let change = self.summarise();
        Ok(Stored { change, replaced })
    }

    /// Ends a registration.
    pub(super) fn withdraw(&mut self, registrant: &Registrant) -> Change {
        self.registrations.remove(registrant);
        if self.registrations.is_empty() {
            return Change::Removed;
        }
        self.summarise()
    }

    /// Brings the record up to date with the registrations.
    fn summarise(&mut self) -> Change {
        let mut by_rloc: BTreeMap<Rloc, Locator> = BTreeMap::new();
        for locator in self.registrations().flat_map(|(_, it)| &it.locators) {
            by_rloc
                .entry(locator.rloc)
                .or_insert_with(|| told(*locator));
        }
        let mut locators: Vec<_> = by_rloc.into_values().collect();
        if locators.len() > limits::LOCATORS_PER_RECORD {
            locators.sort_by_key(|locator| (locator.priority, locator.rloc));
            locators.truncate(limits::LOCATORS_PER_RECORD);
            locators.sort_by_key(|locator| locator.rloc);
        }
        let ttl = self.registrations().map(|(_, it)| it.ttl).min();
        let record = Record {
            ttl: ttl.unwrap_or(Ttl::WITHDRAW),
            locators,
            ..empty_record(self.record.eid)
        };
        if record == self.record {
            return Change::None;
        }
        self.record = record;
        Change::Updated
    }
}

/// Returns a record that says nothing yet.
pub(super) const fn empty_record(eid: EidPrefix) -> Record {
    Record {
        eid,
        ttl: Ttl::WITHDRAW,
        action: Action::NoAction,
        authoritative: false,
        locators: Vec::new(),
    }
}
