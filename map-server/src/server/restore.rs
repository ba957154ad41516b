//! What did an earlier run know?
//!
//! Facts from the store are believed as far as the configuration still allows them.

use lisp_proto::{Action, EidPrefix, Record, Timestamp};

use super::actions::Actions;
use super::contacts::Contact;
use super::counters::DropReason;
use super::mappings::Registration;
use super::sites::{Registrant, XtrIndex};
use super::{MapServer, limits};
use crate::config::XtrName;
use crate::store_event::{StoreEvent, XtrIds};

/// How far a snapshot has come; at first nothing is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMark(Stage);

/// What is in it, besides what comes earlier here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Nothing,
    /// The numbers, and what is registered for prefixes up to this one, if any.
    Registrations(Option<EidPrefix>),
    /// Where clients are, up to this one of this prefix.
    Assignments(Option<(EidPrefix, XtrIndex)>),
    /// What owners are to forget, up to this prefix for this one.
    Dismissals(Option<(XtrIndex, EidPrefix)>),
    All,
}

impl MapServer {
    /// Returns the facts that together say all that must survive a restart: they can take the
    /// place of every [`StoreEvent`] emitted so far.
    pub fn snapshot(&self, now: Timestamp) -> impl Iterator<Item = StoreEvent> {
        let registrations = self.registered_after(None);
        let rest = registrations.chain(self.assignment_facts());
        let rest = rest.chain(self.draining_facts());
        let rest = rest.chain(self.dismissal_facts(now));
        let rest = rest.chain(self.leaving_facts());
        self.numbers().chain(rest)
    }

    /// Returns the next of the facts of [`Self::snapshot`], beginning with those after `after`, and where
    /// they end; `None` at the end of all.
    ///
    /// Facts that change between two calls may be those of before or of after the change.
    pub fn snapshot_part(
        &self,
        now: Timestamp,
        after: SnapshotMark,
    ) -> Option<(Vec<StoreEvent>, SnapshotMark)> {
        let (part, stage) = match after.0 {
            Stage::Nothing => (self.numbers().collect(), Stage::Registrations(None)),
            Stage::Registrations(last) => self.registrations_part(last),
            Stage::Assignments(last) => self.assignments_part(last),
            Stage::Dismissals(last) => match self.dismissal_after(now, last) {
                Some((fact, last)) => (vec![fact], Stage::Dismissals(Some(last))),
                None => (self.leaving_facts().collect(), Stage::All),
            },
            Stage::All => return None,
        };
        Some((part, SnapshotMark(stage)))
    }

    fn registrations_part(&self, last: Option<EidPrefix>) -> (Vec<StoreEvent>, Stage) {
        let mut part: Vec<_> = Vec::new();
        let mut stage = Stage::Registrations(last);
        for event in self.registered_after(last) {
            let StoreEvent::Registered { record, .. } = &event else {
                continue;
            };
            let next = Stage::Registrations(Some(record.eid));
            // All registrations of one prefix are in the same part.
            if part.len() >= limits::SNAPSHOT_PART && stage != next {
                return (part, stage);
            }
            stage = next;
            part.push(event);
        }
        (part, Stage::Assignments(None))
    }

    fn assignments_part(&self, last: Option<(EidPrefix, XtrIndex)>) -> (Vec<StoreEvent>, Stage) {
        let assignments = self.state.assignments.iter_after(last);
        let some = assignments.take(limits::SNAPSHOT_PART);
        let (mut part, mut last) = (Vec::new(), None);
        for (eid, client, at) in some {
            part.push(self.assigned(eid, client, at.owner));
            last = Some((eid, client));
        }
        if last.is_some() {
            return (part, Stage::Assignments(last));
        }
        (self.draining_facts().collect(), Stage::Dismissals(None))
    }

    /// Returns the numbers that only grow.
    fn numbers(&self) -> impl Iterator<Item = StoreEvent> {
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
        let subscriptions = state
            .replay
            .subscriptions()
            .map(move |(registrant, nonce)| StoreEvent::SubscribeNonce {
                xtr: name(registrant.xtr),
                ids: registrant.ids,
                nonce,
            });
        nonces.chain(floors).chain(subscriptions)
    }

    /// Returns what is registered for prefixes after `last`.
    fn registered_after(&self, last: Option<EidPrefix>) -> impl Iterator<Item = StoreEvent> {
        let name = |xtr: XtrIndex| self.sites.site(xtr).name.clone();
        let registrations = self.state.mappings.registrations_after(last);
        registrations.map(
            move |(eid, registrant, registration)| StoreEvent::Registered {
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
                want_notify: registration.want_notify,
                lifetime: registration.lifetime,
                source: registration.contact.source,
                full_tag: registration.contact.full_tag,
            },
        )
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
                want_notify,
                lifetime,
                source,
                full_tag,
            } => {
                let registrant = self.registrant(&xtr, ids)?;
                let registration = Registration {
                    ttl: record.ttl,
                    locators: record.locators,
                    merge,
                    want_notify,
                    contact: Contact { source, full_tag },
                    lifetime,
                };
                self.restore_registration(now, registrant, record.eid, registration)
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
            StoreEvent::Assigned {
                eid,
                client,
                owner,
                parts,
            } => self.restore_assignment(now, eid, &client, &owner, &parts),
            StoreEvent::Unassigned { eid, client } => {
                let client = self.sites.by_name(&client)?;
                self.state.assignments.remove(&eid, client);
                self.state.subscribers.leave_inside(&eid, client);
                Some(())
            }
            StoreEvent::Draining { xtr, draining } => self.restore_draining(&xtr, draining),
            StoreEvent::Dismissed { xtr, eids, left_s } => {
                self.restore_dismissed(now, &xtr, &eids, &left_s)
            }
            StoreEvent::Forgotten { xtr, eids } => self.restore_forgotten(&xtr, &eids),
            StoreEvent::Leaving { client, owner, iid } => {
                self.restore_leaving(&client, &owner, iid)
            }
            StoreEvent::Left { client, owner, iid } => self.restore_left(&client, &owner, iid),
            StoreEvent::NotifyFloor { xtr, nonce } => {
                let receiver = self.sites.by_name(&xtr)?;
                self.state.notifier.restore_floor(receiver, nonce);
                Some(())
            }
            StoreEvent::SubscribeNonce { xtr, ids, nonce } => {
                let registrant = self.registrant(&xtr, ids)?;
                self.state.replay.advance_subscription(registrant, nonce);
                Some(())
            }
        }
    }

    fn restore_draining(&mut self, xtr: &XtrName, draining: bool) -> Option<()> {
        let xtr = self.sites.by_name(xtr)?;
        self.state.assignments.drain(xtr, draining);
        Some(())
    }

    fn registrant(&self, xtr: &XtrName, ids: Option<XtrIds>) -> Option<Registrant> {
        let xtr = self.sites.by_name(xtr)?;
        Some(Registrant { xtr, ids })
    }

    /// Puts a client where it was, and goes on telling it what it has been told of.
    fn restore_assignment(
        &mut self,
        now: Timestamp,
        eid: EidPrefix,
        client: &XtrName,
        owner: &XtrName,
        parts: &[EidPrefix],
    ) -> Option<()> {
        let client = self.sites.by_name(client)?;
        let owner = self.sites.by_name(owner)?;
        if !self.sites.is_in(client, eid.iid()) || !self.sites.may_register(owner, &eid) {
            return None;
        }
        let own = parts.iter().copied();
        self.state.assignments.set(eid, client, owner, own).ok()?;
        for part in parts {
            let until = now + limits::SUBSCRIPTION_LIFETIME;
            self.state.subscribers.join(*part, client, until);
        }
        Some(())
    }

    fn restore_registration(
        &mut self,
        now: Timestamp,
        registrant: Registrant,
        eid: EidPrefix,
        registration: Registration,
    ) -> Option<()> {
        let site = self.sites.site(registrant.xtr);
        let contact = registration.contact;
        let moved = site
            .control_address
            .is_some_and(|address| address != contact.source.ip());
        if moved || !self.sites.may_register(registrant.xtr, &eid) {
            return None;
        }
        let via = self.sites.via(registrant.xtr);
        let lifetime = registration.lifetime;
        self.state
            .mappings
            .store(eid, registrant, registration, now)
            .ok()?;
        self.state
            .contacts
            .learn(registrant.xtr, contact, via, now, lifetime);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::server::bench::{
        Bench, control, eid, empty, own_records, plain_record, record, socket,
    };
    use crate::server::sites::tests::xtr;
    use crate::server::{Input, Via};

    #[test]
    fn registrations_survive_a_restart_until_their_lifetime_is_over() {
        let mut bench = Bench::new();
        bench.register_all();
        bench.register("b", &[empty("10.0.0.2", 0)]);
        let mut bench = bench.restart();
        assert_eq!(
            bench.ask("c", "10.0.0.2")[0].reply_records()[0].locators,
            [],
            "withdrawn before"
        );
        let sent = bench.ask("c", "10.0.0.1");
        assert_eq!(
            sent[0].notify("a").1[0].eid,
            own_records("c")[0].eid,
            "the push finds its way"
        );
        assert_eq!(
            bench.ack("a", &sent[0])[0].reply_records()[0].locators,
            own_records("a")[0].locators
        );
        bench.wait(Duration::from_secs(180));
        assert_eq!(
            bench.ask("c", "10.0.0.1")[0].reply_records()[0].locators,
            []
        );
    }

    #[test]
    fn a_map_register_recorded_before_a_restart_is_a_replay_after_it() {
        let mut bench = Bench::new();
        let register = bench.register_of("gear", &[plain_record("192.168.0.0/16", "192.0.2.200")]);
        let source = socket("192.0.2.200:4342");
        bench.datagram(source, Via::Plain, &register.bytes());
        let mut refresh = register.clone();
        refresh.nonce = 50;
        bench.datagram(source, Via::Plain, &refresh.bytes());
        let mut bench = bench.restart();
        assert_eq!(bench.datagram(source, Via::Plain, &register.bytes()), []);
        assert_eq!(
            bench.datagram(source, Via::Plain, &refresh.bytes()),
            [],
            "also that of a mere refresh"
        );
        assert_eq!(bench.count(DropReason::ReplayedNonce), 2);
    }

    #[test]
    fn nonces_of_pushes_grow_across_a_restart() {
        let mut bench = Bench::new();
        bench.register_all();
        let before = bench.ask("a", "10.0.0.2")[0].notify("b").0;
        let mut bench = bench.restart();
        let after = bench.ask("a", "10.0.0.2")[0].notify("b").0;
        assert!(after > before);
        let once_more = bench.restart().ask("a", "10.0.0.2")[0].notify("b").0;
        assert!(once_more > after);
    }

    #[test]
    fn a_snapshot_says_the_same_as_the_history() {
        let mut bench = Bench::new();
        bench.register_all();
        let push = bench.ask("a", "10.0.0.2");
        bench.ack("b", &push[0]);
        bench.register("a", &[record("10.0.0.1", "198.51.100.1:51820")]);
        bench.register("c", &[empty("10.0.0.3", 0)]);
        let snapshot: Vec<_> = bench.server.snapshot(bench.now).collect();
        assert!(snapshot.len() < bench.stored.len());
        let history = bench.restart();
        let of_history = history.server.snapshot(history.now);
        assert_eq!(of_history.collect::<Vec<_>>(), snapshot);
        bench.stored.clone_from(&snapshot);
        assert_eq!(
            bench.restart().server.fingerprint(),
            history.server.fingerprint()
        );
    }

    #[test]
    fn the_parts_of_a_snapshot_are_the_whole() {
        let mut bench = Bench::new();
        bench.register_all();
        let many = (0..2 * limits::SNAPSHOT_PART)
            .map(|n| plain_record(&format!("192.168.{}.{}", n / 256, n % 256), "192.0.2.200"));
        for records in many.collect::<Vec<_>>().chunks(200) {
            let register = bench.register_of("gear", records);
            bench.datagram(socket("192.0.2.200:4342"), Via::Plain, &register.bytes());
        }
        let prefixes =
            |count: usize| (0..count).map(|n| eid(&format!("10.9.{}.{}", n / 256, n % 256)));
        let (state, later) = (&mut bench.server.state, Timestamp(u64::MAX));
        for eid in prefixes(limits::SNAPSHOT_PART) {
            for client in [0, 1, 2].map(xtr) {
                state.assignments.set(eid, client, xtr(3), []).unwrap();
            }
        }
        state.assignments.drain(xtr(3), true);
        for eid in prefixes(limits::DISMISSALS_PER_FACT + 1) {
            for owner in [1, 2].map(xtr) {
                state.dismissals.add(owner, eid, later).unwrap();
            }
        }
        let (mut all, mut mark) = (Vec::new(), SnapshotMark::default());
        while let Some((part, next)) = bench.server.snapshot_part(bench.now, mark) {
            assert!(part.len() <= limits::SNAPSHOT_PART + 1);
            all.extend(part);
            mark = next;
        }
        let whole = bench.server.snapshot(bench.now);
        assert_eq!(all, whole.collect::<Vec<_>>());
    }

    #[test]
    fn the_first_refresh_after_a_restart_is_stored_with_its_whole_lifetime() {
        let mut bench = Bench::new();
        bench.register_all();
        for event in &mut bench.stored {
            if let StoreEvent::Registered { lifetime, .. } = event {
                *lifetime = Duration::from_secs(30);
            }
        }
        let mut bench = bench.restart();
        let before = bench.stored.len();
        bench.register("a", &own_records("a"));
        assert_eq!(bench.stored.len(), before + 3, "two records and the nonce");
        bench.register("a", &own_records("a"));
        assert_eq!(bench.stored.len(), before + 3);
    }

    #[test]
    fn what_the_configuration_no_longer_allows_is_not_believed() {
        let mut bench = Bench::new();
        let registered = |xtr: &str, prefix: &str, source| StoreEvent::Registered {
            xtr: xtr.into(),
            ids: None,
            record: record(prefix, "192.0.2.1:51820"),
            merge: false,
            want_notify: true,
            lifetime: Duration::from_secs(180),
            source,
            full_tag: false,
        };
        let before = bench.server.fingerprint();
        bench.input(Input::Restore(registered(
            "nobody",
            "10.0.0.1",
            control("a"),
        )));
        bench.input(Input::Restore(registered("a", "10.0.0.9", control("a"))));
        bench.input(Input::Restore(registered("a", "10.0.0.1", control("b"))));
        assert_eq!(bench.count(DropReason::StaleStore), 3);
        assert_eq!(bench.server.fingerprint(), before);
    }
}
