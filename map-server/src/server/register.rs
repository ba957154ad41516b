//! May this xTR register that, and what follows from it?
//!
//! Map-Registers (RFC 9301 §5.6): authenticate, then check, then store, then tell.

use std::time::Duration;

use lisp_proto::{
    AuthKey, AuthView, EidPrefix, MapRegister, NotifyParams, Record, Timestamp, VerifiedTag,
    encode_map_notify, verify,
};

use super::actions::{Actions, Event, Via};
use super::contacts::Contact;
use super::counters::DropReason;
use super::mappings::{Change, Registration};
use super::sites::{Registrant, XtrIndex};
use super::{MapServer, Origin, limits};
use crate::store_event::StoreEvent;

/// What holds for all records of a Map-Register.
#[derive(Clone, Copy, Debug)]
struct Terms {
    registrant: Registrant,
    contact: Contact,
    /// Whether the store has the contact already.
    contact_known: bool,
    merge: bool,
    use_ttl: bool,
}

/// What a record has led to.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    eid: EidPrefix,
    change: Change,
    /// Whether the store was told.
    persisted: bool,
}

impl MapServer {
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
        let mut terms = match self.authenticate_register(origin, datagram, register) {
            Ok(terms) => terms,
            Err(reason) => return actions.count(reason),
        };
        let mut records = self.acceptable(terms.registrant.xtr, register, actions);
        let lifetime = records.iter().map(|record| terms.lifetime(record)).max();
        let Some(lifetime) = lifetime else {
            return;
        };
        let xtr = terms.registrant.xtr;
        terms.contact_known = !self
            .state
            .contacts
            .learn(xtr, terms.contact, now + lifetime);

        let mut outcomes = Vec::with_capacity(records.len());
        records.retain(|record| {
            let outcome = self.apply(now, terms, record, actions);
            outcomes.extend(outcome);
            outcome.is_some()
        });
        let persisted = outcomes.iter().any(|outcome| outcome.persisted);
        self.note_nonce(terms.registrant, register, persisted, actions);
        if register.flags.want_notify && !records.is_empty() {
            self.confirm(origin, terms, register, records, actions);
        }
        for outcome in outcomes {
            self.publish(now, outcome.eid, outcome.change, actions);
        }
        self.tidy(xtr, actions);
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
                let first = register.records().next().and_then(|record| record.eid());
                self.sites
                    .plain_by_prefix(&first.ok_or(DropReason::UnusableRecord)?)?
            }
        };
        let site = self.sites.site(xtr);
        let tag = authenticate(&site.auth, &register.auth, datagram)?;
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
            contact_known: false,
            merge: register.flags.merge,
            use_ttl: register.flags.use_ttl,
        })
    }

    /// Returns the records that `xtr` may register; the others are counted.
    fn acceptable(
        &self,
        xtr: XtrIndex,
        register: &MapRegister<'_>,
        actions: &mut Actions,
    ) -> Vec<Record> {
        let mut records = Vec::new();
        for view in register.records() {
            let record = view.to_record(limits::WIREGUARD_PORT);
            match record {
                Some(record) if !self.sites.may_register(xtr, &record.eid) => {
                    actions.count(DropReason::ForeignPrefix)
                }
                Some(record) if record.locators.len() <= limits::LOCATORS_PER_RECORD => {
                    records.push(record)
                }
                Some(_) | None => actions.count(DropReason::UnusableRecord),
            }
        }
        records
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
        let lifetime = terms.lifetime(record);
        let registration = Registration {
            ttl: record.ttl,
            locators: record.locators.clone(),
            merge: terms.merge,
            lifetime,
        };
        let known = self
            .state
            .mappings
            .registration(&record.eid, &terms.registrant)
            == Some(&registration);
        let Ok(stored) = self
            .state
            .mappings
            .store(record.eid, terms.registrant, registration, now)
        else {
            actions.count(DropReason::TableFull);
            return None;
        };
        let xtr = self.sites.site(terms.registrant.xtr).name.clone();
        for replaced in &stored.replaced {
            actions.persist(self.withdrawn(replaced, record.eid));
        }
        let persisted = !known || !terms.contact_known;
        if persisted {
            actions.persist(StoreEvent::Registered {
                xtr: xtr.clone(),
                ids: terms.registrant.ids,
                record: record.clone(),
                merge: terms.merge,
                lifetime,
                source: terms.contact.source,
                full_tag: terms.contact.full_tag,
            });
        }
        let eid = record.eid;
        if !known {
            actions.event(Event::Registered { xtr, eid });
        }
        let change = stored.change;
        Some(Outcome {
            eid,
            change,
            persisted,
        })
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
            eid,
            change,
            persisted,
        }
    }

    /// Ends the registrations whose time is over.
    pub(super) fn expire_registrations(&mut self, now: Timestamp, actions: &mut Actions) {
        while let Some((eid, registrant, change)) = self.state.mappings.expire(now) {
            self.note_withdrawal(&registrant, eid, actions);
            self.publish(now, eid, change, actions);
            self.tidy(registrant.xtr, actions);
        }
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
        mut records: Vec<Record>,
        actions: &mut Actions,
    ) {
        if terms.merge {
            for record in &mut records {
                if let Some(mapping) = self.state.mappings.exact(&record.eid) {
                    record.clone_from(mapping.record());
                }
            }
        }
        let auth = self
            .sites
            .site(terms.registrant.xtr)
            .notify_auth(terms.contact.full_tag);
        let params = NotifyParams {
            nonce: register.nonce,
            records: &records,
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::server::bench::{
        Bench, Register, control, eid, empty, key, own_records, plain_record, record, socket,
    };
    use lisp_proto::{Algorithm, Message, SiteId, XtrId, decode};

    const GEAR: &str = "192.0.2.200:4342";

    #[test]
    fn a_wrong_mac_changes_nothing() {
        refused(DropReason::BadAuthentication, |register| {
            register.key = AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"not the key of a");
        });
    }

    #[test]
    fn a_replayed_nonce_changes_nothing() {
        refused(DropReason::ReplayedNonce, |register| register.nonce = 1);
    }

    #[test]
    fn a_foreign_prefix_changes_nothing() {
        refused(DropReason::ForeignPrefix, |register| {
            register.records = own_records("b")[..1].to_vec()
        });
    }

    #[test]
    fn a_withdrawal_of_a_foreign_prefix_changes_nothing() {
        refused(DropReason::ForeignPrefix, |register| {
            register.records = vec![empty("10.0.0.2", 0)]
        });
    }

    #[test]
    fn another_instance_id_changes_nothing() {
        refused(DropReason::ForeignPrefix, |register| {
            register.records = vec![empty("[1]10.0.0.1", 5)]
        });
    }

    #[test]
    fn a_weaker_algorithm_than_configured_changes_nothing() {
        refused(DropReason::WrongKey, |register| {
            register.key = AuthKey::new(1, Algorithm::Sha1_96, b"a");
        });
        refused(DropReason::WrongKey, |register| {
            register.key = AuthKey::new(1, Algorithm::None, b"");
        });
    }

    #[test]
    fn another_key_id_than_configured_changes_nothing() {
        refused(DropReason::WrongKey, |register| {
            register.key = AuthKey::new(2, Algorithm::Sha256_128Hkdf, b"a");
        });
    }

    #[test]
    fn an_enrolled_agent_outside_its_tunnel_changes_nothing() {
        let mut bench = registered();
        let register = bench.register_of("a", &[record("10.0.0.1", "198.51.100.9:1")]);
        let before = bench.server.fingerprint();
        assert_eq!(
            bench.datagram(control("a"), Via::Plain, &register.bytes()),
            []
        );
        assert_eq!(
            bench.datagram(control("b"), Via::Tunnel, &register.bytes()),
            [],
            "the key of another agent"
        );
        assert_eq!(
            bench.datagram(socket("[fd4c:1::99]:4342"), Via::Tunnel, &register.bytes()),
            []
        );
        assert_eq!(bench.server.fingerprint(), before);
        assert_eq!(bench.count(DropReason::UnknownSource), 2);
    }

    #[test]
    fn too_many_locators_change_nothing() {
        refused(DropReason::UnusableRecord, |register| {
            let more = (0..=limits::LOCATORS_PER_RECORD)
                .map(|n| record("10.0.0.1", &format!("192.0.2.{n}:51820")));
            let locators = more.flat_map(|record| record.locators).collect();
            register.records = vec![Record {
                locators,
                ..empty("10.0.0.1", 5)
            }];
        });
    }

    proptest! {
        #[test]
        fn no_flipped_bit_of_a_map_register_is_overlooked(position in any::<prop::sample::Index>(), bit in 0..8) {
            let mut bench = registered();
            let mut bytes = bench.register_of("a", &[record("10.0.0.1", "198.51.100.9:1")]).bytes();
            let position = position.index(bytes.len());
            bytes[position] ^= 1u8 << bit;
            let before = bench.server.fingerprint();
            prop_assert_eq!(bench.datagram(control("a"), Via::Tunnel, &bytes), []);
            prop_assert_eq!(bench.server.fingerprint(), before);
        }

        #[test]
        fn noise_changes_nothing(bytes in prop::collection::vec(any::<u8>(), 0..120), via in prop::bool::ANY) {
            let mut bench = registered();
            let before = bench.server.fingerprint();
            let via = if via { Via::Tunnel } else { Via::Plain };
            bench.datagram(control("a"), via, &bytes);
            prop_assert_eq!(bench.server.fingerprint(), before);
        }
    }

    #[test]
    fn only_accepted_records_are_confirmed() {
        let mut bench = Bench::new();
        let [own, own_v6] = own_records("a");
        let sent = bench.register(
            "a",
            &[own.clone(), own_records("b")[0].clone(), own_v6.clone()],
        );
        assert_eq!(sent[0].notify("a").1, [own, own_v6]);
        assert_eq!(bench.count(DropReason::ForeignPrefix), 1);
    }

    #[test]
    fn a_register_that_wants_no_notify_gets_none() {
        let mut bench = Bench::new();
        let mut register = bench.register_of("a", &own_records("a"));
        register.want_notify = false;
        assert_eq!(
            bench.datagram(control("a"), Via::Tunnel, &register.bytes()),
            []
        );
        assert_eq!(
            bench.ask("b", "10.0.0.1")[0].reply_records()[0]
                .locators
                .len(),
            1
        );
    }

    #[test]
    fn a_notify_has_the_nonce_of_the_register_and_a_tag_as_long() {
        let mut bench = Bench::new();
        let sent = register_gear(&mut bench, None, |register| register.nonce = 77);
        let Ok(Message::MapNotify(notify)) = decode(&sent[0].bytes) else {
            panic!("not a Map-Notify");
        };
        assert_eq!((notify.nonce.0, notify.auth.tag.len()), (77, 20));
        assert_eq!((sent[0].dst, sent[0].via), (socket(GEAR), Via::Plain));
        let sent = register_gear(&mut bench, None, |register| {
            register.key = key("gear").with_tag_len(false)
        });
        let Ok(Message::MapNotify(notify)) = decode(&sent[0].bytes) else {
            panic!("not a Map-Notify");
        };
        assert_eq!(notify.auth.tag.len(), 12);
    }

    #[test]
    fn withdrawing_what_is_not_registered_is_confirmed() {
        let mut bench = Bench::new();
        let sent = bench.register("a", &[empty("10.0.0.1", 0)]);
        assert_eq!(sent[0].notify("a").1, [empty("10.0.0.1", 0)]);
    }

    #[test]
    fn with_the_t_bit_a_registration_lasts_as_long_as_its_ttl() {
        let mut bench = Bench::new();
        let mut register = bench.register_of("a", &[empty("10.0.0.1", 10)]);
        register.use_ttl = true;
        bench.datagram(control("a"), Via::Tunnel, &register.bytes());
        bench.wait(Duration::from_secs(599));
        assert_eq!(bench.events.len(), 1);
        bench.wait(Duration::from_secs(1));
        let (xtr, eid) = ("a".into(), eid("10.0.0.1"));
        assert_eq!(bench.events.last(), Some(&Event::Withdrawn { xtr, eid }));
    }

    #[test]
    fn each_xtr_id_has_its_own_nonces() {
        let mut bench = Bench::new();
        assert_eq!(
            register_gear(&mut bench, ids(1), |register| register.nonce = 9).len(),
            1
        );
        assert_eq!(
            register_gear(&mut bench, ids(2), |register| register.nonce = 5).len(),
            1
        );
        assert_eq!(
            register_gear(&mut bench, None, |register| register.nonce = 5).len(),
            1
        );
        assert_eq!(
            register_gear(&mut bench, ids(1), |register| register.nonce = 9).len(),
            0
        );
        assert_eq!(bench.count(DropReason::ReplayedNonce), 1);
    }

    #[test]
    fn registrations_with_the_merge_bit_stand_side_by_side() {
        let mut bench = Bench::new();
        let at = |address: &str| vec![plain_record("192.168.1.0/24", address)];
        register_gear(&mut bench, ids(1), |register| {
            (register.records, register.merge) = (at("192.0.2.1"), true)
        });
        let sent = register_gear(&mut bench, ids(2), |register| {
            (register.records, register.merge) = (at("192.0.2.2"), true);
        });
        assert_eq!(
            sent[0].notify("gear").1[0].locators.len(),
            2,
            "the notify shows the merged set"
        );
        assert_eq!(
            bench.ask("a", "192.168.1.1")[0].reply_records()[0]
                .locators
                .len(),
            2
        );
        register_gear(&mut bench, ids(1), |register| {
            (register.records, register.merge) = (vec![empty("192.168.1.0/24", 0)], true);
        });
        let left = bench.ask("a", "192.168.1.1")[0].reply_records();
        assert_eq!(left[0].locators, at("192.0.2.2")[0].locators);
        register_gear(&mut bench, ids(3), |register| {
            register.records = at("192.0.2.3")
        });
        let left = bench.ask("a", "192.168.1.1")[0].reply_records();
        assert_eq!(
            left[0].locators,
            at("192.0.2.3")[0].locators,
            "without the bit it replaces them"
        );
    }

    /// Registers a, then checks that a Map-Register changed by `change` is dropped without effect.
    #[track_caller]
    fn refused(reason: DropReason, change: impl FnOnce(&mut Register)) {
        let mut bench = registered();
        let mut register = bench.register_of("a", &[record("10.0.0.1", "198.51.100.9:1")]);
        change(&mut register);
        let (before, stored) = (bench.server.fingerprint(), bench.stored.len());
        assert_eq!(
            bench.datagram(control("a"), Via::Tunnel, &register.bytes()),
            []
        );
        assert_eq!(bench.server.fingerprint(), before);
        assert_eq!(bench.stored.len(), stored);
        assert_eq!(bench.count(reason), 1);
    }

    fn registered() -> Bench {
        let mut bench = Bench::new();
        bench.register_all();
        bench
    }

    fn register_gear(
        bench: &mut Bench,
        ids: Option<(XtrId, SiteId)>,
        change: impl FnOnce(&mut Register),
    ) -> Vec<crate::server::bench::Sent> {
        let mut register =
            bench.register_of("gear", &[plain_record("192.168.1.0/24", "192.0.2.200")]);
        // Above the nonces that tests choose.
        register.nonce += 1_000;
        register.ids = ids;
        change(&mut register);
        bench.datagram(socket(GEAR), Via::Plain, &register.bytes())
    }

    fn ids(number: u8) -> Option<(XtrId, SiteId)> {
        Some((XtrId([number; 16]), SiteId([0; 8])))
    }
}
