//! Which mapping answers for an EID, who registered it, and until when?
//!
//! The mapping database. Configured prefixes are entries too: they bound what surrounds them,
//! registered or not.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{Action, Deadlines, EidPrefix, InstanceId, Locator, Record, Rloc, Timestamp, Ttl};

use super::contacts::Contact;
use super::limits;
use super::prefix_table::PrefixTable;
use super::sites::{Registrant, XtrIndex};
use crate::store_event::XtrIds;

/// What one registrant said about a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) ttl: Ttl,
    pub(crate) locators: Vec<Locator>,
    /// Whether it stands beside those of other registrants (the `a` bit, RFC 9301 §5.6).
    pub(crate) merge: bool,
    /// Whether its registrant wants to be told how it was understood (the M bit).
    pub(crate) want_notify: bool,
    /// Where it came from.
    pub(crate) contact: Contact,
    /// How long it lasts without a refresh.
    pub(crate) lifetime: Duration,
}

/// A prefix that at least one xTR has registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    record: Record,
    registrations: BTreeMap<Registrant, Registration>,
}

impl Mapping {
    /// Returns the mapping as a proxy may hand it out: neither authoritative nor local.
    pub(crate) const fn record(&self) -> &Record {
        &self.record
    }

    /// Lists the xTRs that registered it; one may be listed more than once.
    pub(crate) fn owners(&self) -> impl Iterator<Item = XtrIndex> {
        self.registrations.keys().map(|registrant| registrant.xtr)
    }

    /// Whether others may register it as well, by the merge bit.
    pub(crate) fn is_merged(&self) -> bool {
        self.registrations.values().all(|it| it.merge)
    }

    /// Lists what its owners have registered; one may be listed more than once.
    pub(crate) fn offers(&self) -> impl Iterator<Item = (XtrIndex, &Registration)> {
        let offers = self.registrations.iter();
        offers.map(|(registrant, registration)| (registrant.xtr, registration))
    }

    /// Lists those who share it with others by the merge bit, and want to be told about it.
    pub(crate) fn sharers(&self) -> impl Iterator<Item = (Registrant, Contact)> {
        let registrations = self.registrations.iter();
        let sharers = registrations.filter(|(_, it)| it.merge && it.want_notify);
        sharers.map(|(registrant, registration)| (*registrant, registration.contact))
    }

    /// Whether `xtr` is among those who registered it.
    pub(crate) fn is_registered_by(&self, xtr: XtrIndex) -> bool {
        self.owners().any(|owner| owner == xtr)
    }
}

/// What the database knows about an EID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// A mapping covers it.
    Registered(&'a Mapping),
    /// This configured prefix covers it, and nobody has registered it.
    Unregistered(EidPrefix),
    /// No configured prefix covers it.
    Unknown,
}

/// What a registration or its end did to the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The record reads as before.
    None,
    /// The record is new or reads differently.
    Updated,
    /// There is no mapping of this prefix any more.
    Removed,
}

/// There is no room for the registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// A prefix with a meaning of its own.
#[derive(Clone, Debug, Default)]
struct Slot {
    boundary: bool,
    mapping: Option<Mapping>,
}

/// What a registration did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) change: Change,
    /// Those whose registration of the same prefix gave way.
    pub(crate) replaced: Vec<Registrant>,
}

/// The mapping database.
#[derive(Clone, Debug)]
pub(crate) struct Mappings {
    table: PrefixTable<Slot>,
    ledger: Ledger,
}

/// Every registration once more: by time, and by xTR.
#[derive(Clone, Debug)]
struct Ledger {
    expiry: Deadlines<(EidPrefix, Registrant)>,
    by_xtr: BTreeMap<XtrIndex, Holdings>,
}

/// What one xTR has registered, by prefix and by xTR-ID, with the number of registrations.
#[derive(Clone, Debug, Default)]
struct Holdings {
    prefixes: BTreeMap<EidPrefix, usize>,
    ids: BTreeMap<Option<XtrIds>, usize>,
}

/// Takes one off the count of `key`.
fn uncount<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Ledger {
    fn add(&mut self, eid: EidPrefix, registrant: Registrant, expires: Timestamp) {
        self.expiry.set((eid, registrant), expires);
        let held = self.by_xtr.entry(registrant.xtr).or_default();
        *held.prefixes.entry(eid).or_default() += 1;
        *held.ids.entry(registrant.ids).or_default() += 1;
    }

    fn remove(&mut self, eid: EidPrefix, registrant: Registrant) {
        self.expiry.cancel(&(eid, registrant));
        let Some(held) = self.by_xtr.get_mut(&registrant.xtr) else {
            return;
        };
        uncount(&mut held.prefixes, &eid);
        uncount(&mut held.ids, &registrant.ids);
        if held.prefixes.is_empty() {
            self.by_xtr.remove(&registrant.xtr);
        }
    }
}

impl Mappings {
    /// Builds a database without mappings, with the configured prefixes `boundaries`.
    pub(crate) fn new(boundaries: impl Iterator<Item = EidPrefix>) -> Self {
        let mut table = PrefixTable::new();
        for eid in boundaries {
            let slot = Slot {
                boundary: true,
                mapping: None,
            };
            table.insert(eid, slot);
        }
        Self {
            table,
            ledger: Ledger {
                expiry: Deadlines::new(),
                by_xtr: BTreeMap::new(),
            },
        }
    }

    /// Returns how many prefixes are registered or configured.
    pub(crate) const fn len(&self) -> usize {
        self.table.len()
    }

    /// Finds what answers for `asked`.
    pub(crate) fn find(&self, asked: &EidPrefix) -> Found<'_> {
        match self.table.longest_match(asked) {
            Some((eid, slot)) => slot
                .mapping
                .as_ref()
                .map_or(Found::Unregistered(eid), Found::Registered),
            None => Found::Unknown,
        }
    }

    /// Returns the mapping of exactly `eid`.
    pub(crate) fn exact(&self, eid: &EidPrefix) -> Option<&Mapping> {
        self.table.exact(eid)?.mapping.as_ref()
    }

    /// Returns the shortest prefix that covers `asked`, is at least `shortest` bits long and has
    /// at most `most` mappings or configured prefixes strictly inside.
    pub(crate) fn region(&self, asked: &EidPrefix, shortest: u8, most: usize) -> Option<EidPrefix> {
        self.table.region(asked, shortest, most)
    }

    /// Lists what is strictly inside `region`: mappings, and configured prefixes without one.
    pub(crate) fn strictly_inside(&self, region: EidPrefix) -> impl Iterator<Item = Found<'_>> {
        let inside = self.table.inside(&region);
        inside
            .filter(move |(eid, _)| *eid != region)
            .map(|(eid, slot)| {
                slot.mapping
                    .as_ref()
                    .map_or(Found::Unregistered(eid), Found::Registered)
            })
    }

    /// Returns what `registrant` has registered as exactly `eid`.
    pub(crate) fn registration(
        &self,
        eid: &EidPrefix,
        registrant: &Registrant,
    ) -> Option<&Registration> {
        self.exact(eid)?.registrations.get(registrant)
    }

    /// Lists everything registered.
    pub(crate) fn registrations(
        &self,
    ) -> impl Iterator<Item = (EidPrefix, &Registrant, &Registration)> {
        let mappings = self
            .table
            .iter()
            .filter_map(|(eid, slot)| Some((eid, slot.mapping.as_ref()?)));
        mappings.flat_map(|(eid, mapping)| {
            let registrations = mapping.registrations.iter();
            registrations.map(move |(registrant, registration)| (eid, registrant, registration))
        })
    }

    /// Whether `xtr` has registered anything of this instance-id.
    pub(crate) fn has_registered(&self, xtr: XtrIndex, iid: InstanceId) -> bool {
        self.registered_by(xtr, iid).next().is_some()
    }

    /// Whether `ids` are among those with which `xtr` has registered; so are any if it registers
    /// without.
    pub(crate) fn registers_as(&self, xtr: XtrIndex, ids: XtrIds) -> bool {
        let held = self.ledger.by_xtr.get(&xtr);
        held.is_none_or(|held| {
            held.ids.contains_key(&Some(ids)) || held.ids.keys().all(Option::is_none)
        })
    }

    /// Lists the prefixes of one instance-id that `xtr` has registered.
    pub(crate) fn registered_by(
        &self,
        xtr: XtrIndex,
        iid: InstanceId,
    ) -> impl Iterator<Item = EidPrefix> {
        let first = EidPrefix::new(iid, IpNet::default());
        let prefixes = self.ledger.by_xtr.get(&xtr).into_iter();
        let prefixes = prefixes.flat_map(move |held| held.prefixes.range(first..));
        prefixes
            .map(|(eid, _)| *eid)
            .take_while(move |eid| eid.iid() == iid)
    }

    /// Lists the prefixes of all instances that `xtr` has registered.
    pub(crate) fn all_registered_by(&self, xtr: XtrIndex) -> impl Iterator<Item = EidPrefix> {
        let held = self.ledger.by_xtr.get(&xtr).into_iter();
        held.flat_map(|held| held.prefixes.keys().copied())
    }

    /// Stores a registration for its lifetime. Without the merge bit it takes the place of all
    /// others, and those without the merge bit give way to it.
    ///
    /// # Errors
    /// There are too many mappings, or too many registrations of this one; nothing is changed.
    pub(crate) fn store(
        &mut self,
        eid: EidPrefix,
        registrant: Registrant,
        registration: Registration,
        now: Timestamp,
    ) -> Result<Stored, Full> {
        let expires = now + registration.lifetime;
        let len = self.table.len();
        if let Some(mapping) = self
            .table
            .exact_mut(&eid)
            .and_then(|slot| slot.mapping.as_mut())
        {
            return store_again(mapping, &mut self.ledger, registrant, registration, expires);
        }
        let mut mapping = Mapping {
            record: empty_record(eid),
            registrations: BTreeMap::from([(registrant, registration)]),
        };
        mapping.summarise();
        match self.table.exact_mut(&eid) {
            Some(slot) => slot.mapping = Some(mapping),
            None if len >= limits::MAPPINGS => return Err(Full),
            None => {
                let slot = Slot {
                    boundary: false,
                    mapping: Some(mapping),
                };
                self.table.insert(eid, slot);
            }
        }
        self.ledger.add(eid, registrant, expires);
        Ok(Stored {
            change: Change::Updated,
            replaced: Vec::new(),
        })
    }

    /// Ends a registration; nothing happens if there is none.
    pub(crate) fn withdraw(&mut self, eid: &EidPrefix, registrant: &Registrant) -> Change {
        let Some(slot) = self.table.exact_mut(eid) else {
            return Change::None;
        };
        let Some(mapping) = slot.mapping.as_mut() else {
            return Change::None;
        };
        if mapping.registrations.remove(registrant).is_none() {
            return Change::None;
        }
        self.ledger.remove(*eid, *registrant);
        if !mapping.registrations.is_empty() {
            return mapping.summarise();
        }
        slot.mapping = None;
        if !slot.boundary {
            self.table.remove(eid);
        }
        Change::Removed
    }

    /// Takes one registration out whose time is over.
    pub(crate) fn expire(&mut self, now: Timestamp) -> Option<(EidPrefix, Registrant, Change)> {
        let (eid, registrant) = self.ledger.expiry.pop_due(now)?;
        let change = self.withdraw(&eid, &registrant);
        Some((eid, registrant, change))
    }

    /// Returns when the next registration expires.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.ledger.expiry.next()
    }
}

/// Stores a registration of a prefix that has one already.
fn store_again(
    mapping: &mut Mapping,
    ledger: &mut Ledger,
    registrant: Registrant,
    registration: Registration,
    expires: Timestamp,
) -> Result<Stored, Full> {
    let eid = mapping.record.eid;
    let mut replaced = Vec::new();
    for (other, old) in &mapping.registrations {
        if *other != registrant && !(registration.merge && old.merge) {
            replaced.push(*other);
        }
    }
    let known = mapping.registrations.contains_key(&registrant);
    if !known && mapping.registrations.len() - replaced.len() >= limits::REGISTRATIONS_PER_MAPPING {
        return Err(Full);
    }
    for other in &replaced {
        mapping.registrations.remove(other);
        ledger.remove(eid, *other);
    }
    if known {
        ledger.expiry.set((eid, registrant), expires);
    } else {
        ledger.add(eid, registrant, expires);
    }
    let old = mapping.registrations.insert(registrant, registration);
    let unchanged = replaced.is_empty() && old.as_ref() == mapping.registrations.get(&registrant);
    let change = if unchanged {
        Change::None
    } else {
        mapping.summarise()
    };
    Ok(Stored { change, replaced })
}

impl Mapping {
    /// Brings the record up to date with the registrations.
    fn summarise(&mut self) -> Change {
        let mut by_rloc: BTreeMap<Rloc, Locator> = BTreeMap::new();
        for locator in self
            .registrations
            .values()
            .flat_map(|registration| &registration.locators)
        {
            let locator = Locator {
                local: false,
                probed: false,
                ..*locator
            };
            by_rloc.entry(locator.rloc).or_insert(locator);
        }
        let mut locators: Vec<_> = by_rloc.into_values().collect();
        if locators.len() > limits::LOCATORS_PER_RECORD {
            locators.sort_by_key(|locator| (locator.priority, locator.rloc));
            locators.truncate(limits::LOCATORS_PER_RECORD);
            locators.sort_by_key(|locator| locator.rloc);
        }
        let ttl = self
            .registrations
            .values()
            .map(|registration| registration.ttl)
            .min();
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

const fn empty_record(eid: EidPrefix) -> Record {
    Record {
        eid,
        ttl: Ttl::WITHDRAW,
        action: Action::NoAction,
        authoritative: false,
        locators: Vec::new(),
    }
}
