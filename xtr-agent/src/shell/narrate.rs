//! Turns the agent's events into log lines with fixed field names.

use std::collections::BTreeMap;

use lisp_proto::InstanceId;
use tracing::{Span, info, info_span, warn};

use crate::agent::{Cause, DropReason, Event};

/// What is logged says the instance-id where there is more than one.
pub(super) fn span(iid: InstanceId, instances: usize) -> Span {
    if instances > 1 {
        info_span!("instance", iid = iid.0)
    } else {
        Span::none()
    }
}

/// Writes one event as one line.
pub(super) fn event(event: &Event) {
    match event {
        Event::Registered { eid } => info!(event = "registered", %eid),
        Event::Caught { dst } => info!(event = "caught", %dst),
        Event::MapRequest { eid, nonce } => info!(event = "map_request", %eid, %nonce),
        Event::MapReply { eid, key, endpoint } => {
            info!(event = "map_reply", %eid, key = %key.short(), %endpoint);
        }
        Event::Negative { eid, action } => info!(event = "negative", %eid, ?action),
        Event::Push { eid, key, endpoint } => {
            info!(event = "push", %eid, key = %key.short(), %endpoint);
        }
        Event::PeerInstalled {
            eid,
            key,
            endpoint,
            cause,
        } => {
            let cause = match cause {
                Cause::Reply => "reply",
                Cause::Push => "push",
                Cause::Restored => "restored",
            };
            info!(event = "peer_installed", %eid, key = %key.short(), %endpoint, cause);
        }
        Event::Reinjected { eid, packets } => info!(event = "reinjected", %eid, packets),
        Event::RouteInstalled { eid } => info!(event = "route_installed", %eid),
        Event::Handshake { key } => info!(event = "handshake", key = %key.short()),
        Event::HandshakeRestarted { key } => {
            warn!(event = "handshake_restarted", key = %key.short());
        }
        Event::HandoverArmed { eid, from, to } => {
            info!(event = "handover_armed", %eid, from = %from.short(), to = %to.short());
        }
        Event::HandoverSwitched { eid, from, to } => {
            info!(event = "handover_switched", %eid, from = %from.short(), to = %to.short());
        }
        Event::HandoverFailed { eid, from, to } => {
            warn!(event = "handover_failed", %eid, from = %from.short(), to = %to.short());
        }
        Event::ProxyLost { key } => warn!(event = "proxy_lost", key = %key.short()),
        Event::ProxyFound { key } => info!(event = "proxy_found", key = %key.short()),
        Event::LocatorMoved {
            key,
            from,
            to,
            uplink,
        } => {
            let uplink = uplink.map(tracing::field::display);
            warn!(event = "locator_moved", key = %key.short(), %from, %to, uplink);
        }
        Event::LocatorAnswers { key, at } => {
            info!(event = "locator_answers", key = %key.short(), %at);
        }
        Event::LocatorRoamed { key, to } => {
            info!(event = "locator_roamed", key = %key.short(), %to);
        }
        Event::PeerRemoved { key } => info!(event = "peer_removed", key = %key.short()),
        Event::Subscribed { eid } => info!(event = "subscribed", %eid),
        Event::SubscriptionRefused { eid, action } => {
            warn!(event = "subscription_refused", %eid, ?action);
        }
        Event::BehindNat { address } => info!(event = "behind_nat", %address),
        Event::SeenAt { endpoint } => info!(event = "seen_at", %endpoint),
        Event::NotBehindNat => info!(event = "not_behind_nat"),
        Event::ChangeFailed { what } => warn!(event = "change_failed", what),
    }
}

/// Counters of refused datagrams and packets, by reason.
#[derive(Debug, Default)]
pub(super) struct Drops(BTreeMap<DropReason, u64>);

impl Drops {
    /// Counts one.
    pub(super) fn count(&mut self, reason: DropReason) {
        *self.0.entry(reason).or_insert(0) += 1;
        tracing::debug!(drop = ?reason);
    }

    /// All counters that are not zero.
    pub(super) const fn counters(&self) -> &BTreeMap<DropReason, u64> {
        &self.0
    }

    /// All counters that are not zero, as `Reason=count`.
    pub(super) fn summary(&self) -> String {
        let parts = self
            .0
            .iter()
            .map(|(reason, count)| format!("{reason:?}={count}"));
        parts.collect::<Vec<_>>().join(" ")
    }
}
