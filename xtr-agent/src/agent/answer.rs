//! Map-Replies: answers to what we asked.

use ipnet::IpNet;
use lisp_proto::{EidPrefix, MapReply, Record, Timestamp};

use super::control::DEFAULT_PORT;
use super::event::{Cause, DropReason, Event};
use super::limits::{RECORDS_PER_MESSAGE, REFRESH_RETRY_MAX, REQUEST_RETRY};
use super::map_cache::{Chosen, Purpose};
use super::{Actions, Agent, Timer};

impl Agent {
    pub(super) fn map_reply(
        &mut self,
        now: Timestamp,
        index: usize,
        reply: &MapReply<'_>,
        actions: &mut Actions,
    ) {
        if reply.probe || reply.security {
            // We probe nobody, and do not speak LISP-SEC.
            actions.count(DropReason::UnexpectedMessage);
            return;
        }
        let records: Vec<Record> = reply
            .records()
            .take(RECORDS_PER_MESSAGE)
            .filter_map(|record| record.to_record(DEFAULT_PORT))
            .collect();
        self.resolver.expire(now);
        let purpose = self.resolver.answered(reply.nonce);
        let refused = self.subscriptions.answered(index, reply.nonce, &records);
        if let Some(server) = self.servers.get_mut(index)
            && (purpose.is_some() || refused.is_some())
        {
            server.heard(now);
        }
        match (purpose, refused) {
            (Some(purpose), _) => self.answered(now, purpose, &records, actions),
            (None, Some(prefix)) => self.not_subscribed(now, index, prefix, &records, actions),
            (None, None) => actions.count(DropReason::UnknownNonce),
        }
    }

    /// Takes in the answer to a Map-Request that was sent for `purpose`.
    pub(super) fn answered(
        &mut self,
        now: Timestamp,
        purpose: Purpose,
        records: &[Record],
        actions: &mut Actions,
    ) {
        let asked = match purpose {
            Purpose::Resolve(dst) => IpNet::from(dst),
            Purpose::Refresh(prefix) => prefix,
        };
        let asked = self.eid(asked);
        let covering = records.iter().filter(|record| record.eid.covers(&asked));
        let Some(record) = covering.max_by_key(|record| record.eid.net().prefix_len()) else {
            return self.beside_the_point(now, purpose, actions);
        };
        let region = record.eid.net();
        let record = Record {
            eid: around(&asked, record.eid, records),
            ..record.clone()
        };
        let chosen = self.choose(&record);
        if !record.locators.is_empty() && chosen.is_none() {
            actions.count(DropReason::NoUsableLocator);
        }
        let Some(chosen) = chosen.filter(|_| !record.ttl.is_withdrawal()) else {
            return self.negative(now, &record, purpose, actions);
        };
        let Chosen { key, endpoint } = chosen;
        let eid = record.eid;
        actions.event(Event::MapReply { eid, key, endpoint });
        if matches!(purpose, Purpose::Resolve(_)) {
            self.ration.earn(now);
        }
        for dst in self.resolver.within(&eid.net()) {
            self.traces.answered(now, dst);
        }
        let taken = self.positive(now, &record, region, chosen, Cause::Reply, actions);
        self.no_longer_refused(asked.net().addr(), &eid, actions);
        self.note_round_trip(now, purpose, eid.net());
        self.release_resolved(now, eid.net(), actions);
        match purpose {
            Purpose::Refresh(before) if before != eid.net() => {
                self.superseded(now, before, taken, actions);
            }
            Purpose::Refresh(_) | Purpose::Resolve(_) => {}
        }
    }

    /// Notes how long the answer took: nothing else tells how far away the far end is.
    fn note_round_trip(&mut self, now: Timestamp, purpose: Purpose, prefix: IpNet) {
        let pending = match purpose {
            Purpose::Resolve(dst) => self.resolver.pending_mut(&dst),
            Purpose::Refresh(_) => None,
        };
        if let Some(pending) = pending
            && let Some(entry) = self.cache.get_mut(&prefix)
        {
            // Which of several requests is answered is not known.
            entry.answer_took = match pending.tries {
                1 => now - pending.since,
                _ => REQUEST_RETRY,
            };
        }
    }

    /// An answer without a word about what was asked.
    fn beside_the_point(&mut self, now: Timestamp, purpose: Purpose, actions: &mut Actions) {
        actions.count(DropReason::UnexpectedMessage);
        match purpose {
            Purpose::Resolve(dst) => self.give_up(now, dst, actions),
            Purpose::Refresh(prefix) => {
                let again = now + REFRESH_RETRY_MAX;
                self.deadlines.set(Timer::Refresh(prefix), again);
            }
        }
    }

    /// The mapping of another prefix has taken the place of that of `before`.
    fn superseded(&mut self, now: Timestamp, before: IpNet, taken: bool, actions: &mut Actions) {
        if taken {
            self.forget_and_ask_again(now, before, actions);
        } else {
            // No room for the new one: the old one serves until its time is over.
            self.deadlines.cancel(&Timer::Refresh(before));
        }
    }
}

/// The largest part of `covering` around `asked` in which no other of
/// `records` lies: those belong to somebody else, and are asked for when a
/// packet needs them (RFC 9301 5.5).
pub(super) fn around(asked: &EidPrefix, covering: EidPrefix, records: &[Record]) -> EidPrefix {
    let others = records
        .iter()
        .map(|record| record.eid)
        .filter(|eid| *eid != covering);
    let taken = |prefix: &EidPrefix| others.clone().any(|other| prefix.covers(&other));
    let address = asked.net().addr();
    (covering.net().prefix_len()..=asked.net().prefix_len())
        .filter_map(|length| IpNet::new(address, length).ok())
        .map(|net| EidPrefix::new(asked.iid(), net))
        .find(|prefix| !taken(prefix))
        .unwrap_or(*asked)
}
