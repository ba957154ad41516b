//! May this xTR register that, and what follows from it?
//!
//! Map-Registers (RFC 9301 §5.6): authenticate, then check, then store, then tell.

use std::collections::BTreeSet;
use std::time::Duration;

use arrayvec::ArrayVec;
use lisp_proto::{
    AuthKey, AuthView, EidPrefix, Locator, MapRegister, NotifyParams, Record, Rloc, Timestamp,
    VerifiedTag, encode_map_notify, first_registered, verify,
};

use super::actions::{Actions, Event, Via};
use super::contacts::Contact;
use super::counters::DropReason;
use super::mappings::{Change, Renewed, Said};
use super::preference::withholds;
use super::publish::Changed;
use super::resolve::without_keys;
use super::sites::{Registrant, XtrIndex};
use super::{MapServer, Origin, limits};
use crate::store_event::StoreEvent;

/// Records of a Map-Register whose memory is kept for the next one.
const RECORDS_KEPT: usize = 64;
/// Map-Registers whose lookups go on at the same time.
const AT_ONCE: usize = 64;

/// What holds for all records of a Map-Register.
#[derive(Clone, Copy, Debug)]
struct Terms {
    registrant: Registrant,
    contact: Contact,
    merge: bool,
    use_ttl: bool,
    want_notify: bool,
}

/// Memory for what a Map-Register says and leads to, used again for the next one.
#[derive(Debug, Default)]
pub(super) struct Drafts {
    records: Vec<Record>,
    changes: Vec<Changed>,
    /// For locators; empty.
    spare: Vec<Vec<Locator>>,
}

impl Drafts {
    /// Forgets everything, and keeps as much memory as an ordinary Map-Register needs.
    fn recycle(&mut self) {
        self.changes.clear();
        self.changes.shrink_to(RECORDS_KEPT);
        for record in self.records.drain(..) {
            let mut locators = record.locators;
            if self.spare.len() < RECORDS_KEPT && locators.capacity() <= limits::LOCATORS_PER_RECORD
            {
                locators.clear();
                self.spare.push(locators);
            }
        }
        self.records.shrink_to(RECORDS_KEPT);
    }
}

/// What a record has led to.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    changed: Changed,
    /// Whether the store was told.
    persisted: bool,
    /// Whether its owner shares it, and would have no clients from now on.
    withheld: bool,
}

impl MapServer {
    /// Brings what Map-Registers among `datagrams` may change into the processor's caches: for all of them at the same
    /// time, while one after the other would wait for each.
    pub fn expect_registers<'a>(&self, datagrams: impl Iterator<Item = &'a [u8]>) {
        let mut eids = datagrams.filter_map(first_registered).peekable();
        while eids.peek().is_some() {
            let some: ArrayVec<_, AT_ONCE> = eids.by_ref().take(AT_ONCE).collect();
            self.state.mappings.expect_exact(&some);
        }
    }

    /// Handles a Map-Register. Nothing changes unless it is authentic, fresh, and at least one of
    /// its records is for a prefix that its sender may register.
    pub(super) fn register(
        &mut self,
        now: Timestamp,
        origin: Origin,
        datagram: &[u8],
        register: &MapRegister<'_>,
        actions: &mut Actions,
    ) {
        let terms = match self.authenticate_register(origin, datagram, register) {
            Ok(terms) => terms,
            Err(reason) => return actions.count(reason),
        };
        let mut drafts = std::mem::take(&mut self.drafts);
        self.read_acceptable(terms.registrant.xtr, register, &mut drafts, actions);
        self.register_all(now, origin, terms, register, &mut drafts, actions);
        drafts.recycle();
        self.drafts = drafts;
    }

    /// Does what the records ask for, and tells everybody.
    fn register_all(
        &mut self,
        now: Timestamp,
        origin: Origin,
        terms: Terms,
        register: &MapRegister<'_>,
        Drafts {
            records, changes, ..
        }: &mut Drafts,
        actions: &mut Actions,
    ) {
        let lifetime = records.iter().map(|record| terms.lifetime(record)).max();
        let Some(lifetime) = lifetime else {
            return;
        };
        let xtr = terms.registrant.xtr;
        let contacts = &mut self.state.contacts;
        contacts.learn(xtr, terms.contact, origin.via, now, lifetime);

        let (mut persisted, mut withheld) = (false, false);
        records.retain(|record| {
            let Some(outcome) = self.apply(now, terms, record, actions) else {
                return false;
            };
            persisted |= outcome.persisted;
            withheld |= outcome.withheld;
            changes.push(outcome.changed);
            true
        });
        self.note_nonce(terms.registrant, register, persisted, actions);
        if terms.want_notify && !records.is_empty() {
            self.confirm(origin, terms, register, records, actions);
        }
        self.publish(now, Some(terms.registrant), changes, actions);
        if withheld {
            self.drain_itself(now, xtr, actions);
        }
        self.part(xtr, changes);
        for (position, Changed { eid, .. }) in changes.iter().enumerate() {
            let iid = eid.iid();
            let mut earlier = changes.iter().take(position);
            if earlier.any(|earlier| earlier.eid.iid() == iid) {
                continue;
            }
            self.tidy(now, xtr, iid, actions);
            if !self.state.mappings.has_registered(xtr, iid) {
                self.forget_client(xtr, iid, actions);
            }
        }
        self.dismiss_again(now, xtr, actions);
        self.hurry(now, terms.registrant, actions);
        if changes.iter().any(|changed| changed.change != Change::None) {
            self.look_again(now, xtr, actions);
        }
    }

    /// Finds out who sent a Map-Register, and that it is authentic and fresh.
    fn authenticate_register(
        &self,
        origin: Origin,
        datagram: &[u8],
        register: &MapRegister<'_>,
    ) -> Result<Terms, DropReason> {
        let xtr = match origin.via {
            Via::Tunnel => self
                .sites
                .enrolled(origin.via, origin.src.ip())
                .ok_or(DropReason::UnknownSource)?,
            Via::Plain => {
                let first = register.first_eid();
                self.sites
                    .plain_by_prefix(&first.ok_or(DropReason::UnusableRecord)?)?
            }
        };
        let site = self.sites.site(xtr);
        let tag = authenticate(&site.auth, &register.auth, datagram)?;
        if register.ids.is_some_and(|ids| !site.may_be(ids)) {
            return Err(DropReason::WrongXtrId);
        }
        let registrant = Registrant {
            xtr,
            ids: register.ids,
        };
        if site.replay_check {
            self.state
                .replay
                .check(&registrant, site.auth.key_id(), register.nonce)?;
        }
        Ok(Terms {
            registrant,
            contact: Contact {
                source: origin.src,
                full_tag: tag.full,
            },
            merge: register.flags.merge,
            use_ttl: register.flags.use_ttl,
            want_notify: register.flags.want_notify,
        })
    }

    /// Reads the records that `xtr` may register; the others are counted.
    fn read_acceptable(
        &self,
        xtr: XtrIndex,
        register: &MapRegister<'_>,
        drafts: &mut Drafts,
        actions: &mut Actions,
    ) {
        for view in register.records() {
            let memory = drafts.spare.pop().unwrap_or_default();
            let record = view.to_record_in(limits::WIREGUARD_PORT, memory);
            match record {
                Some(record) if !self.sites.may_register(xtr, &record.eid) => {
                    actions.count(DropReason::ForeignPrefix)
                }
                // Whoever believed it would take the peer of its control tunnel, or ours, for that of a mapping.
                Some(record) if self.names_key_of_the_tunnel(&record) => {
                    actions.count(DropReason::ForeignKey)
                }
                Some(record) if record.locators.len() <= limits::LOCATORS_PER_RECORD => {
                    drafts.records.push(record)
                }
                Some(_) | None => actions.count(DropReason::UnusableRecord),
            }
        }
    }

    /// Whether a record leads to the key of somebody in the control tunnel.
    fn names_key_of_the_tunnel(&self, record: &Record) -> bool {
        let mut locators = record.locators.iter();
        locators.any(|locator| match locator.rloc {
            Rloc::WireGuard { key, .. } => self.sites.is_of_the_tunnel(&key),
            Rloc::Plain(_) => false,
        })
    }

    /// Does what one record asks for; `None` if there is no room.
    fn apply(
        &mut self,
        now: Timestamp,
        terms: Terms,
        record: &Record,
        actions: &mut Actions,
    ) -> Option<Outcome> {
        if record.ttl.is_withdrawal() {
            return Some(self.withdraw(terms.registrant, record.eid, actions));
        }
        let said = Said {
            ttl: record.ttl,
            locators: &record.locators,
            merge: terms.merge,
            want_notify: terms.want_notify,
            contact: terms.contact,
            lifetime: terms.lifetime(record),
        };
        let (eid, registrant) = (record.eid, terms.registrant);
        let mappings = &mut self.state.mappings;
        let Some(Renewed { change, is_known }) = mappings.renew(&eid, registrant, said, now) else {
            return self.store(now, terms, record, said, actions);
        };
        if !is_known {
            self.note_registration(terms, record, said, actions);
        }
        Some(Outcome {
            changed: Changed {
                eid,
                change,
                newcomer: None,
            },
            persisted: !is_known,
            withheld: false,
        })
    }

    /// Stores a registration that is more than a renewal; `None` if there is no room.
    fn store(
        &mut self,
        now: Timestamp,
        terms: Terms,
        record: &Record,
        said: Said<'_>,
        actions: &mut Actions,
    ) -> Option<Outcome> {
        let (eid, registrant) = (record.eid, terms.registrant);
        let registration = said.registration();
        let mappings = &mut self.state.mappings;
        let before = mappings.registration(&eid, &registrant);
        let before = before.as_ref();
        let begins_to_share = terms.merge && before.is_some_and(|before| !before.merge);
        let withheld_before = before.is_some_and(|before| withholds(&before.locators));
        let withheld = terms.merge && withholds(&record.locators) && !withheld_before;
        let known = before == Some(&registration);
        let newcomer = before.is_none().then_some(registrant.xtr);
        let Ok(stored) = mappings.store(eid, registrant, registration, now) else {
            actions.count(DropReason::TableFull);
            return None;
        };
        for replaced in &stored.replaced {
            actions.persist(self.withdrawn(replaced, eid));
        }
        if !known {
            self.note_registration(terms, record, said, actions);
        }
        if begins_to_share {
            self.note_clients(eid, actions);
        }
        Some(Outcome {
            changed: Changed {
                eid,
                change: stored.change,
                newcomer,
            },
            persisted: !known,
            withheld,
        })
    }

    /// Has a registration stored that is new or has changed, and tells the operator.
    fn note_registration(
        &self,
        terms: Terms,
        record: &Record,
        said: Said<'_>,
        actions: &mut Actions,
    ) {
        let (xtr, eid) = (&self.sites.site(terms.registrant.xtr).name, record.eid);
        actions.persist(StoreEvent::Registered {
            xtr: xtr.clone(),
            ids: terms.registrant.ids,
            record: record.clone(),
            merge: said.merge,
            want_notify: said.want_notify,
            lifetime: said.lifetime,
            source: said.contact.source,
            full_tag: said.contact.full_tag,
        });
        let xtr = xtr.clone();
        actions.event(Event::Registered { xtr, eid });
    }

    /// Ends one registration, if there is one.
    fn withdraw(
        &mut self,
        registrant: Registrant,
        eid: EidPrefix,
        actions: &mut Actions,
    ) -> Outcome {
        let persisted = self
            .state
            .mappings
            .registration(&eid, &registrant)
            .is_some();
        let change = self.state.mappings.withdraw(&eid, &registrant);
        if persisted {
            self.note_withdrawal(&registrant, eid, actions);
        }
        Outcome {
            changed: Changed {
                eid,
                change,
                newcomer: None,
            },
            persisted,
            withheld: false,
        }
    }

    /// Ends the registrations whose time is over.
    pub(super) fn expire_registrations(&mut self, now: Timestamp, actions: &mut Actions) {
        let mut changes = Vec::new();
        let mut gone = BTreeSet::new();
        while let Some((eid, registrant, change)) = self.state.mappings.expire(now) {
            self.note_withdrawal(&registrant, eid, actions);
            gone.insert((registrant.xtr, eid.iid()));
            changes.push(Changed {
                eid,
                change,
                newcomer: None,
            });
        }
        for (xtr, iid) in gone {
            self.tidy(now, xtr, iid, actions);
            self.look_again(now, xtr, actions);
        }
        self.publish(now, None, &changes, actions);
    }

    fn note_withdrawal(&self, registrant: &Registrant, eid: EidPrefix, actions: &mut Actions) {
        actions.persist(self.withdrawn(registrant, eid));
        let xtr = self.sites.site(registrant.xtr).name.clone();
        actions.event(Event::Withdrawn { xtr, eid });
    }

    fn withdrawn(&self, registrant: &Registrant, eid: EidPrefix) -> StoreEvent {
        StoreEvent::Withdrawn {
            xtr: self.sites.site(registrant.xtr).name.clone(),
            ids: registrant.ids,
            eid,
        }
    }

    /// Remembers the nonce. Inside the control tunnel nobody can replay an old datagram, not even
    /// after a restart, so there the store is not told for every mere refresh.
    fn note_nonce(
        &mut self,
        registrant: Registrant,
        register: &MapRegister<'_>,
        persisted: bool,
        actions: &mut Actions,
    ) {
        let site = self.sites.site(registrant.xtr);
        if !site.replay_check {
            return;
        }
        let key_id = site.auth.key_id();
        self.state
            .replay
            .advance(&registrant, key_id, register.nonce);
        if persisted || site.control_address.is_none() {
            actions.persist(StoreEvent::Nonce {
                xtr: site.name.clone(),
                ids: registrant.ids,
                key_id,
                nonce: register.nonce,
            });
        }
    }

    /// Answers with a Map-Notify of what was accepted; merged records as they are now.
    fn confirm(
        &mut self,
        origin: Origin,
        terms: Terms,
        register: &MapRegister<'_>,
        records: &mut [Record],
        actions: &mut Actions,
    ) {
        if terms.merge {
            for record in &mut *records {
                if let Some(mapping) = self.state.mappings.exact(&record.eid) {
                    mapping.write_to(record);
                }
            }
        }
        if !self.reads_keys(origin) {
            records.iter_mut().for_each(without_keys);
        }
        let auth = self
            .sites
            .site(terms.registrant.xtr)
            .notify_auth(terms.contact.full_tag);
        let params = NotifyParams {
            nonce: register.nonce,
            records,
            handoff: None,
        };
        self.scratch.clear();
        match encode_map_notify(&params, auth, &mut self.scratch) {
            Ok(()) => actions.send(origin.src, origin.via, &self.scratch),
            Err(_) => actions.count(DropReason::TooLarge),
        }
    }
}

impl Terms {
    /// Returns how long a registration of `record` lasts without a refresh (RFC 9301 §5.6, T bit).
    fn lifetime(&self, record: &Record) -> Duration {
        let ttl = self.use_ttl.then(|| record.ttl.duration()).flatten();
        ttl.map_or(limits::REGISTRATION_LIFETIME, |ttl| {
            ttl.min(limits::REGISTRATION_LIFETIME_MAX)
        })
    }
}

/// Checks key id, algorithm and authentication data of a message from the holder of `key`.
pub(super) fn authenticate(
    key: &AuthKey,
    claimed: &AuthView<'_>,
    datagram: &[u8],
) -> Result<VerifiedTag, DropReason> {
    if claimed.key_id != key.key_id() || claimed.algorithm_id != key.algorithm().id() {
        return Err(DropReason::WrongKey);
    }
    verify(key, datagram).map_err(|_| DropReason::BadAuthentication)
}

#[cfg(test)]
mod tests;
