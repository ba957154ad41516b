//! What is the answer to a Map-Request?
//!
//! Positive and negative Map-Replies on behalf of the owners (RFC 9301 §8.3).

use lisp_proto::{
    Action as NegativeAction, EidPrefix, Record, ReplyParams, Rloc, Timestamp, Ttl,
    encode_map_reply,
};

use super::actions::{Actions, Event};
use super::counters::DropReason;
use super::held::{Answer, PendingReply};
use super::mappings::Found;
use super::sites::XtrIndex;
use super::{MapServer, limits};

impl MapServer {
    /// Answers a Map-Request with what is known now.
    pub(super) fn send_reply(
        &mut self,
        now: Timestamp,
        reply: &PendingReply,
        actions: &mut Actions,
    ) {
        match reply.answer {
            Answer::Told => self.send_map_reply(now, reply, actions),
            Answer::Subscribed | Answer::Unsubscribed => {
                self.send_subscribed(now, reply, actions);
            }
        }
        self.accompany(now, reply, actions);
    }

    fn send_map_reply(&mut self, now: Timestamp, reply: &PendingReply, actions: &mut Actions) {
        match self.records_for(now, reply) {
            Ok(records) => self.send_records(reply, records, actions),
            Err(reason) => actions.count(reason),
        }
    }

    /// Returns what a Map-Reply says.
    ///
    /// # Errors
    /// It is too early to say that nobody has registered something.
    pub(super) fn records_for(
        &self,
        now: Timestamp,
        reply: &PendingReply,
    ) -> Result<Vec<Record>, DropReason> {
        let most = limits::RECORDS_PER_REPLY / reply.eids.len().max(1);
        let mut records: Vec<Record> = Vec::new();
        for eid in &reply.eids {
            for record in self.describe_around(eid, most.saturating_sub(1), reply.requester) {
                if !records.contains(&record) {
                    records.push(record);
                }
            }
        }
        if now < self.quiet_until && records.iter().any(|record| self.is_unregistered(record)) {
            return Err(DropReason::TooEarly);
        }
        Ok(records)
    }

    /// Writes and sends a Map-Reply.
    pub(super) fn send_records(
        &mut self,
        reply: &PendingReply,
        mut records: Vec<Record>,
        actions: &mut Actions,
    ) {
        self.scratch.clear();
        match write_reply(reply, &mut records, &mut self.scratch) {
            Ok(()) => {
                actions.send(reply.dst, reply.via, &self.scratch);
                self.tell_of_answer(reply.requester, &records, actions);
            }
            Err(reason) => actions.count(reason),
        }
    }

    /// Tells the operator what was answered.
    pub(super) fn tell_of_answer(
        &self,
        requester: Option<XtrIndex>,
        records: &[Record],
        actions: &mut Actions,
    ) {
        for record in records {
            let eid = record.eid;
            if record.locators.is_empty() {
                actions.event(Event::NegativeReply { eid });
            } else {
                let xtr = requester.map(|xtr| self.sites.site(xtr).name.clone());
                actions.event(Event::Reply { xtr, eid });
            }
        }
    }

    /// Whether `record` denies a configured prefix because nobody has registered it.
    fn is_unregistered(&self, record: &Record) -> bool {
        let found = self.state.mappings.find(&record.eid);
        record.locators.is_empty() && matches!(found, Found::Unregistered(_))
    }

    /// Returns the record that answers for `asked`, then those of the prefixes inside it, which
    /// are `most` at most. All have the same TTL (RFC 9301 §5.5).
    ///
    /// Where more lies inside than may be listed, the answer speaks of a smaller prefix around
    /// `asked`: a longer list would be cut, and what is cut off would be taken for a part of the
    /// surrounding mapping.
    fn describe_around(
        &self,
        asked: &EidPrefix,
        most: usize,
        requester: Option<XtrIndex>,
    ) -> Vec<Record> {
        let Some(region) = self.answered_region(asked, most) else {
            // Whoever asks for this much must ask for less, address by address.
            return vec![negative(
                *asked,
                NegativeAction::SendMapRequest,
                limits::TTL_UNREGISTERED,
            )];
        };
        let found = self.state.mappings.find(asked);
        let mut records = vec![self.describe(found, region, requester)];
        for found in self.state.mappings.strictly_inside(region) {
            let eid = match found {
                Found::Registered(mapping) => mapping.eid(),
                Found::Unregistered(eid) => eid,
                Found::Unknown => continue,
            };
            records.push(self.describe(found, eid, requester));
        }
        let ttl = records.iter().map(|record| record.ttl).min();
        for record in &mut records {
            record.ttl = ttl.unwrap_or(record.ttl);
        }
        records
    }

    /// Returns the prefix around `asked` that one answer speaks of, with at most `most` exceptions
    /// inside. A negative answer has no exceptions unless `asked` itself contains some.
    pub(super) fn answered_region(&self, asked: &EidPrefix, most: usize) -> Option<EidPrefix> {
        let mappings = &self.state.mappings;
        let negative_region = |shortest: u8| {
            let hole = mappings.region(asked, shortest, 0);
            hole.or_else(|| mappings.region(asked, asked.net().prefix_len(), most))
        };
        match mappings.find(asked) {
            Found::Registered(mapping) => {
                mappings.region(asked, mapping.eid().net().prefix_len(), most)
            }
            Found::Unregistered(eid) => negative_region(eid.net().prefix_len()),
            Found::Unknown => negative_region(0),
        }
    }

    /// Returns what was found as a record about `eid` for `requester`.
    pub(super) fn describe(
        &self,
        found: Found<'_>,
        eid: EidPrefix,
        requester: Option<XtrIndex>,
    ) -> Record {
        let action = self.options.negative_action;
        match found {
            Found::Registered(mapping) if mapping.leads_nowhere() => {
                negative(eid, action, mapping.ttl())
            }
            Found::Registered(mapping) => Record {
                eid,
                ..self.record_for(mapping, requester)
            },
            Found::Unregistered(_) => negative(eid, action, limits::TTL_UNREGISTERED),
            Found::Unknown => negative(eid, action, limits::TTL_UNKNOWN),
        }
    }
}

/// Appends a Map-Reply with `records` to `out`.
///
/// # Errors
/// It is larger than the format, or the receiver, allows.
pub(super) fn write_reply(
    reply: &PendingReply,
    records: &mut [Record],
    out: &mut Vec<u8>,
) -> Result<(), DropReason> {
    if !reply.keys {
        records.iter_mut().for_each(without_keys);
    }
    let params = ReplyParams {
        probe: false,
        echo_nonce: false,
        nonce: reply.nonce,
        records,
    };
    let before = out.len();
    encode_map_reply(&params, out).map_err(|_| DropReason::TooLarge)?;
    if out.len() - before > reply.max_len {
        out.truncate(before);
        return Err(DropReason::WouldAmplify);
    }
    Ok(())
}

pub(super) const fn negative(eid: EidPrefix, action: NegativeAction, ttl: Ttl) -> Record {
    Record {
        eid,
        ttl,
        action,
        authoritative: false,
        locators: Vec::new(),
    }
}

/// Leaves in `record` only what all LISP gear can read: locators without keys, and the actions of
/// RFC 9301 §5.4 up to Drop. A mapping that nothing is left of looks unregistered.
pub(super) fn without_keys(record: &mut Record) {
    let before = record.locators.len();
    record
        .locators
        .retain(|locator| matches!(locator.rloc, Rloc::Plain(_)));
    if record.locators.is_empty() && before > 0 {
        *record = negative(record.eid, NegativeAction::Drop, limits::TTL_UNREGISTERED);
    }
    if matches!(
        record.action,
        NegativeAction::PolicyDenied | NegativeAction::AuthFailure
    ) {
        record.action = NegativeAction::Drop;
    }
}

#[cfg(test)]
mod tests;
