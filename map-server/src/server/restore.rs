//! What did an earlier run know?
//!
//! Facts from the store are believed as far as the configuration still allows them.

use std::time::Duration;

use lisp_proto::{Action, Record, Timestamp};

use super::MapServer;
use super::actions::Actions;
use super::contacts::Contact;
use super::counters::DropReason;
use super::mappings::Registration;
use super::sites::{Registrant, XtrIndex};
use crate::config::XtrName;
use crate::store_event::{StoreEvent, XtrIds};

impl MapServer {
    /// Returns the facts that together say all that must survive a restart: they can take the
    /// place of every [`StoreEvent`] emitted so far.
    pub fn snapshot(&self) -> impl Iterator<Item = StoreEvent> {
        let state = &self.state;
        let name = |xtr: XtrIndex| self.sites.site(xtr).name.clone();
        let nonces =
            state
                .replay
                .iter()
                .map(move |(registrant, key_id, nonce)| StoreEvent::Nonce {
                    xtr: name(registrant.xtr),
                    ids: registrant.ids,
                    key_id,
                    nonce,
                });
        let floors = state
            .notifier
            .floors()
            .map(move |(xtr, nonce)| StoreEvent::NotifyFloor {
                xtr: name(xtr),
                nonce,
            });
        let registrations = state.mappings.registrations();
        let registrations = registrations.filter_map(move |(eid, registrant, registration)| {
            let contact = state.contacts.of(registrant.xtr)?;
            Some(StoreEvent::Registered {
                xtr: name(registrant.xtr),
                ids: registrant.ids,
                record: Record {
                    eid,
                    ttl: registration.ttl,
                    action: Action::NoAction,
                    authoritative: false,
                    locators: registration.locators.clone(),
                },
                merge: registration.merge,
                lifetime: registration.lifetime,
                source: contact.source,
                full_tag: contact.full_tag,
            })
        });
        nonces.chain(floors).chain(registrations)
    }

    /// Takes a fact of an earlier run over, or counts it if it has become meaningless.
    pub(super) fn restore(&mut self, now: Timestamp, event: StoreEvent, actions: &mut Actions) {
        if self.believe(now, event).is_none() {
            actions.count(DropReason::StaleStore);
        }
    }

    fn believe(&mut self, now: Timestamp, event: StoreEvent) -> Option<()> {
        match event {
            StoreEvent::Registered {
                xtr,
                ids,
                record,
                merge,
                lifetime,
                source,
                full_tag,
            } => {
                let registrant = self.registrant(&xtr, ids)?;
                let contact = Contact { source, full_tag };
                self.restore_registration(now, registrant, record, merge, lifetime, contact)
            }
            StoreEvent::Withdrawn { xtr, ids, eid } => {
                let registrant = self.registrant(&xtr, ids)?;
                self.state.mappings.withdraw(&eid, &registrant);
                Some(())
            }
            StoreEvent::Nonce {
                xtr,
                ids,
                key_id,
                nonce,
            } => {
                let registrant = self.registrant(&xtr, ids)?;
                self.state.replay.advance(&registrant, key_id, nonce);
                Some(())
            }
            StoreEvent::NotifyFloor { xtr, nonce } => {
                let receiver = self.sites.by_name(&xtr)?;
                self.state.notifier.restore_floor(receiver, nonce);
                Some(())
            }
        }
    }

    fn registrant(&self, xtr: &XtrName, ids: Option<XtrIds>) -> Option<Registrant> {
        let xtr = self.sites.by_name(xtr)?;
        Some(Registrant { xtr, ids })
    }

    fn restore_registration(
        &mut self,
        now: Timestamp,
        registrant: Registrant,
        record: Record,
        merge: bool,
        lifetime: Duration,
        contact: Contact,
    ) -> Option<()> {
        let site = self.sites.site(registrant.xtr);
        let moved = site
            .control_address
            .is_some_and(|address| address != contact.source.ip());
        if moved || !self.sites.may_register(registrant.xtr, &record.eid) {
            return None;
        }
        let registration = Registration {
            ttl: record.ttl,
            locators: record.locators,
            merge,
            lifetime,
        };
        self.state
            .mappings
            .store(record.eid, registrant, registration, now)
            .ok()?;
        self.state
            .contacts
            .learn(registrant.xtr, contact, now + lifetime);
        Some(())
    }
}
