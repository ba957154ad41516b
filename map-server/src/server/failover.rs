//! What if a client cannot use its owner any more, and says so?
//!
//! It asks as ever, with a record in its Map-Request (M, RFC 9301 §5.2) that lists the locators it
//! cannot reach (R is clear, §5.4). If these are all that its owner has, it goes to the next best of
//! those who share the prefix, with everything it uses that owner for. From then on all is as for any
//! other question: the new owner is told first, and the answer names it. Nobody else's clients move:
//! whether the way or the owner has failed, only a client can tell, and each for itself.

use std::collections::{BTreeMap, BTreeSet};

use lisp_proto::{EidPrefix, MapRequest, PublicKey, RecordView, Rloc, Timestamp};

use super::actions::{Actions, Event};
use super::counters::DropReason;
use super::mappings::{Found, Mapping};
use super::pairing::Paired;
use super::publish::parcels;
use super::rehome::{Rehomed, Ties};
use super::sites::XtrIndex;
use super::{MapServer, limits};
use crate::config::ReplyAfter;

/// How often clients say that they cannot use their owners.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    /// When each may say so as often as ever again.
    until: BTreeMap<XtrIndex, Timestamp>,
}

impl Claims {
    /// Whether `client` is heeded once more.
    pub(super) fn allow(&mut self, now: Timestamp, client: XtrIndex) -> bool {
        let until = self.until.entry(client).or_insert(now);
        let before = now.max(*until);
        let burst = limits::FAILOVER_PAUSE * (limits::FAILOVERS - 1);
        let is_allowed = before - now <= burst;
        if is_allowed {
            *until = before + limits::FAILOVER_PAUSE;
        }
        is_allowed
    }
}

impl MapServer {
    /// Takes note of what `client` says that it cannot reach. What that leads to hangs on whose it is: an owner of what
    /// several share is replaced by another one, and anybody else is reached over a relay. One message does not do both.
    pub(super) fn heed_lost(
        &mut self,
        now: Timestamp,
        client: XtrIndex,
        request: &MapRequest<'_>,
        actions: &mut Actions,
    ) -> Vec<Rehomed> {
        if request.source_record().is_none() {
            return Vec::new();
        }
        let is_shared = |eid: &EidPrefix| match self.state.mappings.find(eid) {
            Found::Registered(mapping) => self.is_shared(mapping),
            Found::Unregistered(_) | Found::Unknown => false,
        };
        if request.eids().any(|asked| is_shared(&asked.eid)) {
            return self.heed_unreachable(now, client, request, actions);
        }
        self.heed_apart(now, client, request, actions);
        Vec::new()
    }

    /// Puts `client` on another owner of what it asks for if it says that it cannot reach its own
    /// one. Returns what has moved.
    fn heed_unreachable(
        &mut self,
        now: Timestamp,
        client: XtrIndex,
        request: &MapRequest<'_>,
        actions: &mut Actions,
    ) -> Vec<Rehomed> {
        let unreachable = request.source_record().map(unreachable);
        let Some(unreachable) = unreachable.filter(|keys| !keys.is_empty()) else {
            return Vec::new();
        };
        let Some(from) = request.eids().find_map(|it| self.used_for(&it.eid, client)) else {
            return Vec::new();
        };
        let iid = request.eids().next().map(|it| it.eid.iid());
        let used = iid.map_or_else(Vec::new, |iid| self.state.assignments.of(client, iid));
        let ways = used.into_iter().filter_map(|eid| {
            let to = self.next_reachable(eid, client, from, &unreachable)?;
            Some((eid, to))
        });
        let ways: Vec<_> = ways.collect();
        if ways.is_empty() {
            return Vec::new();
        }
        if !self.state.claims.allow(now, client) {
            actions.count(DropReason::FailoverLimited);
            return Vec::new();
        }
        let mut moved = Vec::new();
        for (eid, to) in ways {
            self.place(eid, client, to, None, actions);
            actions.event(Event::FailedOver {
                client: self.sites.site(client).name.clone(),
                eid,
                from: self.sites.site(from).name.clone(),
                to: self.sites.site(to).name.clone(),
            });
            let to = Some(to);
            moved.push(Rehomed {
                client,
                eid,
                from,
                to,
            });
        }
        self.check_moves(now, actions);
        moved
    }

    /// Returns whom `client` uses for `eid`.
    fn used_for(&self, eid: &EidPrefix, client: XtrIndex) -> Option<XtrIndex> {
        let Found::Registered(mapping) = self.state.mappings.find(eid) else {
            return None;
        };
        let at = self.state.assignments.get(&mapping.eid(), client)?;
        Some(at.owner)
    }

    /// Returns who takes `client` over if it uses `from` for `eid`, and cannot reach that.
    fn next_reachable(
        &self,
        eid: EidPrefix,
        client: XtrIndex,
        from: XtrIndex,
        unreachable: &BTreeSet<PublicKey>,
    ) -> Option<XtrIndex> {
        let mapping = self.state.mappings.exact(&eid)?;
        let at = self.state.assignments.get(&eid, client)?;
        let is_lost = |owner| is_lost(mapping, owner, unreachable);
        if at.owner != from || !self.is_shared(mapping) || !is_lost(from) {
            return None;
        }
        let is_of_use = |owner| leads_somewhere(mapping, owner) && !is_lost(owner);
        self.best_owner(mapping, client, |owner| !is_of_use(owner))
    }

    /// Tells a client what has moved, when its new owner has acknowledged it, and lets the old one forget
    /// it when it has acknowledged that.
    pub(super) fn follow_failover(
        &mut self,
        now: Timestamp,
        moved: &[Rehomed],
        paired: &Paired,
        actions: &mut Actions,
    ) {
        let waits = self.options.reply_after == ReplyAfter::Ack;
        let first = paired.awaited.first().copied();
        let mut awaited = BTreeMap::new();
        for to in moved
            .iter()
            .filter_map(|one| one.to)
            .collect::<BTreeSet<_>>()
        {
            let told = match paired.owners.contains(&to) {
                true => first,
                // It has nothing that was asked for: only we can tell it of the client.
                false => {
                    let its = moved.iter().filter(|one| one.to == Some(to));
                    let its: Vec<_> = its.copied().collect();
                    self.hand_over(now, &its, actions).into_values().next()
                }
            };
            awaited.extend(told.filter(|_| waits).map(|told| (to, told)));
        }
        let mut left: BTreeMap<Ties, Vec<EidPrefix>> = BTreeMap::new();
        for one in moved {
            let first = one.to.and_then(|to| awaited.get(&to).copied());
            let at = first.map_or(now, |_| now + self.options.reply_hold);
            for parcel in parcels(self.news_for(one.eid, one.client)) {
                let next = self.tell(now, at, one.client, parcel, actions);
                if let Some(first) = &first {
                    self.state.notifier.follow(first, next);
                }
            }
            left.entry(one.ties()).or_default().push(one.eid);
        }
        for (ties, eids) in left {
            self.leave_when_moved(now, ties, &eids, actions);
        }
    }
}

/// Returns the keys of the locators that `record` says cannot be reached.
pub(super) fn unreachable(record: RecordView<'_>) -> BTreeSet<PublicKey> {
    // Ports do not matter here: whoever has a key has it everywhere.
    let record = record.to_record(0);
    let locators = record.into_iter().flat_map(|record| record.locators);
    let lost = locators.filter(|locator| !locator.reachable);
    let keys = lost.filter_map(|locator| match locator.rloc {
        Rloc::WireGuard { key, .. } => Some(key),
        Rloc::Plain(_) => None,
    });
    keys.collect()
}

/// Whether `owner` has any locator.
fn leads_somewhere(mapping: Mapping<'_>, owner: XtrIndex) -> bool {
    let mut offers = mapping.offers().filter(|(xtr, _)| *xtr == owner);
    offers.any(|(_, locators)| !locators.is_empty())
}

/// Whether `owner` has no locator but those with `unreachable` keys.
fn is_lost(mapping: Mapping<'_>, owner: XtrIndex, unreachable: &BTreeSet<PublicKey>) -> bool {
    let offers = mapping.offers().filter(|(xtr, _)| *xtr == owner);
    let mut locators = offers.flat_map(|(_, locators)| locators);
    leads_somewhere(mapping, owner)
        && locators.all(|locator| match locator.rloc {
            Rloc::WireGuard { key, .. } => unreachable.contains(&key),
            Rloc::Plain(_) => false,
        })
}

#[cfg(test)]
mod tests;
