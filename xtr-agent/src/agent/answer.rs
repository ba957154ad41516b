//! Map-Replies: answers to what we asked.

use ipnet::IpNet;
use lisp_proto::{EidPrefix, MapReply, Record, Timestamp};

use super::control::DEFAULT_PORT;
use super::event::{Cause, DropReason, Event};
use super::limits::{NOBODY_BEHIND, PARTS, RECORDS_PER_MESSAGE, REFRESH_RETRY_MAX, REQUEST_RETRY};
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
            .filter_map(|record| record.to_record(DEFAULT_PORT))
            .take(RECORDS_PER_MESSAGE + 1)
            .collect();
        if records.len() > RECORDS_PER_MESSAGE {
            // Nobody could tell which parts belong to others.
            actions.count(DropReason::TooManyRecords);
            return;
        }
        self.resolver.expire(now);
        if self.gaps.is_heard(reply.nonce) {
            // We have asked to be heard, and know what it says.
            if let Some(server) = self.servers.get_mut(index) {
                server.heard(now);
            }
            return;
        }
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
            Purpose::Refresh(prefix) => {
                self.apart.told(&prefix);
                prefix
            }
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
        if self.serves_as_well(&asked.net(), &region) {
            let ttl = NOBODY_BEHIND;
            let nobody = Record { ttl, ..record };
            return self.negative(now, &nobody, purpose, actions);
        }
        let used = match purpose {
            Purpose::Resolve(_) => record.eid.net(),
            Purpose::Refresh(prefix) => prefix,
        };
        let chosen = self.choose(&record, &used);
        if !record.locators.is_empty() && chosen.is_none() {
            actions.count(DropReason::NoUsableLocator);
        }
        let Some(chosen) = chosen.filter(|_| !record.ttl.is_withdrawal()) else {
            return self.negative(now, &record, purpose, actions);
        };
        if let Purpose::Refresh(before) = purpose
            && self.narrowed(now, before, &record, records, chosen, actions)
        {
            return;
        }
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
        if let Purpose::Resolve(dst) = purpose {
            self.learn_witness(dst, &eid.net());
        }
        self.no_longer_refused(asked.net().addr(), &eid, actions);
        self.note_round_trip(now, purpose, eid.net());
        self.release_resolved(now, eid.net(), actions);
        if !self.ration.is_empty() {
            // What was earned is for those who wait.
            self.ask_next(now, actions);
        }
        match purpose {
            Purpose::Refresh(before) if before != eid.net() => {
                self.superseded(now, before, taken, actions);
            }
            Purpose::Refresh(_) | Purpose::Resolve(_) => {}
        }
    }

    /// Others have registered parts of `prefix`, which is in use and was asked for again: keeps what
    /// is left of it, so that packets to those parts are caught and ask for themselves. Says whether
    /// that was so.
    fn narrowed(
        &mut self,
        now: Timestamp,
        prefix: IpNet,
        record: &Record,
        records: &[Record],
        chosen: Chosen,
        actions: &mut Actions,
    ) -> bool {
        let is_held = self.cache.get(&prefix);
        let is_held = is_held.is_some_and(|entry| entry.chosen.is_some());
        let covering = records.iter().map(|record| record.eid.net());
        let holes = covering.filter(|net| *net != prefix && prefix.contains(net));
        let holes: Vec<IpNet> = holes.collect();
        // What is kept ready without packets is told by its map server.
        if !is_held || holes.is_empty() || self.is_subscribed(&prefix) {
            return false;
        }
        let region = records.iter().map(|record| record.eid.net());
        let region = region.filter(|net| net.contains(&prefix));
        let region = region.max_by_key(IpNet::prefix_len).unwrap_or(prefix);
        for part in left_of(prefix, &holes) {
            let eid = self.eid(part);
            let Chosen { key, endpoint } = chosen;
            actions.event(Event::MapReply { eid, key, endpoint });
            let part = Record {
                eid,
                ..record.clone()
            };
            self.positive(now, &part, region, chosen, Cause::Reply, actions);
        }
        self.forget_and_ask_again(now, prefix, actions);
        true
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
                let again = now + self.retry_in(REFRESH_RETRY_MAX);
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

/// What is left of `whole` without `holes`, in as few prefixes as possible; nothing if those are too
/// many: then every destination is asked for by itself.
fn left_of(whole: IpNet, holes: &[IpNet]) -> Vec<IpNet> {
    let mut left = Vec::new();
    let mut parts = vec![whole];
    while let Some(part) = parts.pop() {
        if holes.iter().any(|hole| hole.contains(&part)) {
            continue;
        }
        if !holes.iter().any(|hole| part.contains(hole)) {
            left.push(part);
            if left.len() > PARTS {
                return Vec::new();
            }
        } else if let Ok(halves) = part.subnets(part.prefix_len() + 1) {
            parts.extend(halves);
        }
    }
    left
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

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_others_have_is_cut_out_in_as_few_parts_as_possible() {
        let [whole] = nets(&["10.0.0.0/24"])[..] else {
            panic!("one");
        };
        let mut left = left_of(whole, &nets(&["10.0.0.64/26", "10.0.0.128/26"]));
        left.sort();
        assert_eq!(left, nets(&["10.0.0.0/26", "10.0.0.192/26"]));
        assert_eq!(left_of(whole, &[whole]), []);
        let every_other = (0..128).map(|n| format!("10.0.0.{}/32", n * 2));
        let every_other: Vec<IpNet> = every_other.map(|net| net.parse().unwrap()).collect();
        assert_eq!(left_of(whole, &every_other), [], "too many");
    }
}
