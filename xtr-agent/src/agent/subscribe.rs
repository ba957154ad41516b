//! Subscriptions: destinations that are kept ready before a packet goes there (RFC 9437 4 and 6).
//!
//! Once registered, the agent subscribes at every map server, asks again until somebody answers,
//! renews what it has, and unsubscribes when it stops. What the answers and publications say goes
//! the way of every other Map-Notify.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{
    Action as MapAction, Nonce, Record, RequestFlags, RequestParams, RequestedEid, Timestamp,
};

use super::event::Event;
use super::limits::{
    FAREWELL_RETRY, SUBSCRIBE_OUTSTANDING, SUBSCRIBE_RETRY, SUBSCRIBE_RETRY_MAX,
    SUBSCRIPTION_RENEWAL, UNSPECIFIED_TTL,
};
use super::map_cache::Purpose;
use super::{Actions, Agent, Timer};

/// Set in every nonce of a subscription. The map server goes on counting from there when it
/// publishes: a publication must never carry the nonce of a Map-Register of ours, or it would be
/// taken for its acknowledgement.
const NONCES: u64 = 1 << 62;

/// What was asked of the map servers, by their index and the prefix.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(BTreeMap<(usize, IpNet), Subscription>);

#[derive(Debug, Default)]
struct Subscription {
    /// The latest requests that nobody has answered, oldest first. Each try needs a nonce of its
    /// own: the map server drops one that is not greater than all before.
    requests: VecDeque<Nonce>,
    tries: u32,
}

impl Subscriptions {
    /// Notes a request and says how many were sent before it in vain.
    fn asked(&mut self, index: usize, prefix: IpNet, nonce: Nonce) -> u32 {
        let subscription = self.0.entry((index, prefix)).or_default();
        if subscription.requests.len() >= SUBSCRIBE_OUTSTANDING {
            subscription.requests.pop_front();
        }
        subscription.requests.push_back(nonce);
        let before = subscription.tries;
        subscription.tries = before.saturating_add(1);
        before
    }

    /// Which subscription a message with `nonce` from the map server answers; it is then done.
    ///
    /// News may have the nonce of a request that the map server has not got yet: what is about
    /// something else too is no answer.
    pub(super) fn answered(
        &mut self,
        index: usize,
        nonce: Nonce,
        records: &[Record],
    ) -> Option<IpNet> {
        let mut waiting = self.0.iter_mut();
        let ((_, prefix), subscription) = waiting.find(|((server, prefix), subscription)| {
            let asked = *server == index && subscription.requests.contains(&nonce);
            asked && is_answer_for(prefix, records)
        })?;
        *subscription = Subscription::default();
        Some(*prefix)
    }

    /// Forgets all of them, and says which there were.
    pub(super) fn forget_all(&mut self) -> Vec<(usize, IpNet)> {
        std::mem::take(&mut self.0).into_keys().collect()
    }

    /// Whether no answer is awaited.
    pub(super) fn all_answered(&self) -> bool {
        self.0.values().all(|asked| asked.requests.is_empty())
    }
}

/// Whether `records` are a mapping around `asked` and parts of it.
fn is_answer_for(asked: &IpNet, records: &[Record]) -> bool {
    let mut told = records.iter().map(|record| record.eid.net());
    let around = told.clone().find(|told| told.contains(asked));
    around.is_some_and(|whole| told.all(|told| whole.contains(&told) || told.contains(asked)))
}

impl Agent {
    /// Registered: subscribes to what was not subscribed to at this map server.
    pub(super) fn subscribe_first(&mut self, now: Timestamp, index: usize, actions: &mut Actions) {
        for prefix in self.config.subscriptions.clone() {
            if !self.subscriptions.0.contains_key(&(index, prefix)) {
                self.subscribe(now, index, prefix, actions);
            }
        }
    }

    /// Subscribes, for the first time or once more; an agent that leaves unsubscribes.
    pub(super) fn subscribe(
        &mut self,
        now: Timestamp,
        index: usize,
        prefix: IpNet,
        actions: &mut Actions,
    ) {
        let (Some(ids), Some(source)) = (self.config.ids, self.own_source(&prefix)) else {
            return;
        };
        let nonce = self.subscription_nonce(index);
        let before = self.subscriptions.asked(index, prefix, nonce);
        if before > 0 {
            self.unanswered(now, index, before, actions);
        }
        let control = [self.config.control_address];
        let params = RequestParams {
            flags: RequestFlags::default(),
            nonce,
            source_eid: Some((self.config.iid, source)),
            // Nowhere to answer to means: no more (RFC 9437 6).
            itr_rlocs: if self.is_unwanted(&prefix) {
                &[]
            } else {
                &control
            },
            eids: &[RequestedEid {
                subscribe: true,
                eid: self.eid(prefix),
            }],
            source_record: None,
            gap: None,
            ids: Some(ids),
        };
        self.send_map_request(index, source, &params, actions);
        let wait = if self.is_leaving() {
            FAREWELL_RETRY
        } else {
            let wait = SUBSCRIBE_RETRY.saturating_mul(1 << before.min(10));
            self.jitter(wait.min(SUBSCRIBE_RETRY_MAX))
        };
        let again = now + wait;
        self.deadlines.set(Timer::Subscribe(index, prefix), again);
    }

    /// The map server counts from below what it has said before: it has lost its state, and nothing
    /// that it says would be believed. It counts on from the nonce of a subscription, so one is
    /// renewed.
    ///
    /// That is certain when it once counted from a subscription, and does so no more.
    pub(super) fn count_on(&mut self, now: Timestamp, index: usize, nonce: Nonce) {
        let ours = self.subscriptions.0.keys();
        let Some(key) = ours.copied().find(|(server, _)| *server == index) else {
            return;
        };
        let server = self.servers.get_mut(index);
        let certain = |highest: Nonce| nonce.0 < NONCES && highest.0 >= NONCES;
        let due = server.is_some_and(|server| {
            let certain = server.notifies.highest().is_some_and(certain);
            server.is_to_be_corrected(now, certain)
        });
        if due {
            self.deadlines.set(Timer::Subscribe(key.0, key.1), now);
        }
    }

    /// Ends the subscriptions that the configuration does not name any more.
    pub(super) fn unsubscribe_unwanted(&mut self, now: Timestamp, actions: &mut Actions) {
        let asked = self.subscriptions.0.keys().copied();
        let unwanted = asked.filter(|(_, prefix)| self.is_unwanted(prefix));
        for (index, prefix) in unwanted.collect::<Vec<_>>() {
            self.subscriptions.0.remove(&(index, prefix));
            self.subscribe(now, index, prefix, actions);
        }
    }

    fn is_unwanted(&self, prefix: &IpNet) -> bool {
        self.is_leaving() || !self.config.subscriptions.contains(prefix)
    }

    /// A map server has answered that a subscription is over.
    fn unsubscribed(&mut self, index: usize, prefix: IpNet) {
        self.subscriptions.0.remove(&(index, prefix));
        self.deadlines.cancel(&Timer::Subscribe(index, prefix));
    }

    pub(super) fn unsubscribe_all(&mut self, now: Timestamp, actions: &mut Actions) {
        for (index, prefix) in self.subscriptions.forget_all() {
            self.subscribe(now, index, prefix, actions);
        }
    }

    /// A nonce above all that this agent subscribed with, also before a restart, and above what
    /// the map server counts from.
    fn subscription_nonce(&mut self, index: usize) -> Nonce {
        let heard = self.servers.get(index).and_then(|s| s.notifies.highest());
        let heard = heard.and_then(|nonce| nonce.0.checked_sub(NONCES));
        // A map server that has left that space cannot be followed.
        let beyond = heard.filter(|nonce| *nonce < NONCES).map_or(0, |n| n + 1);
        let next = self.register_nonce.0.max(beyond);
        self.register_nonce = Nonce(next.wrapping_add(1));
        Nonce(NONCES.saturating_add(next))
    }

    /// The map server has subscribed us to `prefix`, with `records` as the answer.
    pub(super) fn subscribed(
        &mut self,
        now: Timestamp,
        index: usize,
        prefix: IpNet,
        records: &[Record],
        actions: &mut Actions,
    ) {
        if self.is_unwanted(&prefix) {
            return self.unsubscribed(index, prefix);
        }
        let eid = self.eid(prefix);
        actions.event(Event::Subscribed { eid });
        let ttls = records.iter().map(|record| record.ttl);
        let ttls = ttls.map(|ttl| ttl.duration().unwrap_or(UNSPECIFIED_TTL));
        let shortest = ttls.min().unwrap_or(SUBSCRIPTION_RENEWAL);
        let renewal = if shortest.is_zero() {
            SUBSCRIBE_RETRY_MAX
        } else {
            (shortest / 2).min(SUBSCRIPTION_RENEWAL)
        };
        self.subscribe_within(now, index, prefix, renewal);
    }

    /// The map server answered as if nobody had subscribed, or refuses to subscribe us.
    pub(super) fn not_subscribed(
        &mut self,
        now: Timestamp,
        index: usize,
        prefix: IpNet,
        records: &[Record],
        actions: &mut Actions,
    ) {
        if self.is_unwanted(&prefix) {
            return self.unsubscribed(index, prefix);
        }
        let refusal = records.iter().find(|record| record.locators.is_empty());
        let action = refusal.map_or(MapAction::NoAction, |record| record.action);
        let eid = self.eid(prefix);
        actions.event(Event::SubscriptionRefused { eid, action });
        self.subscribe_within(now, index, prefix, SUBSCRIBE_RETRY_MAX);
        // A refusal to subscribe us says nothing about the mapping.
        if refusal.is_none() {
            self.answered(now, Purpose::Refresh(prefix), records, actions);
        }
    }

    /// A mapping or a subscription to it is gone: asks soon who serves the prefix now.
    pub(super) fn subscribe_soon(&mut self, now: Timestamp, index: usize, prefix: &IpNet) {
        let concerned = |to: &&IpNet| to.contains(prefix) || prefix.contains(*to);
        let concerned = self.config.subscriptions.iter().filter(concerned);
        for to in concerned.copied().collect::<Vec<_>>() {
            if self.subscriptions.0.contains_key(&(index, to)) {
                self.subscribe_within(now, index, to, SUBSCRIBE_RETRY);
            }
        }
    }

    /// Whether `prefix` is kept although nothing goes there.
    pub(super) fn is_subscribed(&self, prefix: &IpNet) -> bool {
        let subscriptions = &self.config.subscriptions;
        let concerned = |to: &IpNet| to.contains(prefix) || prefix.contains(to);
        subscriptions.iter().any(concerned)
    }

    /// Asks again before `most` has passed, but not much before half of it.
    fn subscribe_within(&mut self, now: Timestamp, index: usize, prefix: IpNet, most: Duration) {
        let wait = self.jitter(most * 3 / 5).min(most);
        self.deadlines
            .set(Timer::Subscribe(index, prefix), now + wait);
    }
}
