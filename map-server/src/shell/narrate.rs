//! What does the operator read?

use std::fmt::Write as _;

use tracing::{info, warn};

use super::settings::Weakness;
use crate::server::{Counters, Event, MigrationState};

/// How a source that is not enrolled is called.
const ANONYMOUS: &str = "-";

/// Writes one line about `event`.
pub(super) fn narrate(event: &Event) {
    match event {
        Event::Registered { xtr, eid } => info!(event = "registered", %xtr, %eid),
        Event::Withdrawn { xtr, eid } => info!(event = "withdrawn", %xtr, %eid),
        Event::Request { xtr, eid } => {
            info!(event = "request", xtr = xtr.as_deref().unwrap_or(ANONYMOUS), %eid);
        }
        Event::Subscribed { xtr, eid } => info!(event = "subscribed", %xtr, %eid),
        Event::Unsubscribed { xtr, eid } => info!(event = "unsubscribed", %xtr, %eid),
        Event::Push { to, eid } => info!(event = "push", %to, %eid),
        Event::PushAcked { from, eid } => info!(event = "push_acked", %from, %eid),
        Event::Reply { xtr, eid } => {
            info!(event = "reply", xtr = xtr.as_deref().unwrap_or(ANONYMOUS), %eid);
        }
        Event::Migration {
            client,
            eid,
            from,
            to,
            state,
        } => {
            let eid = eid.map(tracing::field::display);
            let (state, to) = (state_of(state), to.as_deref().unwrap_or(ANONYMOUS));
            info!(event = "migration", %client, eid, %from, to, state);
        }
        Event::Draining { xtr, draining } => info!(event = "draining", %xtr, draining),
        Event::NegativeReply { eid } => info!(event = "negative_reply", %eid),
    }
}

/// Says how far a migration has come, and why no further.
fn state_of(state: &MigrationState) -> String {
    let name = state.name();
    match state {
        MigrationState::Failed { step, why } => format!("{name} to {}: {why}", step.name()),
        MigrationState::Queued
        | MigrationState::Armed
        | MigrationState::Switched
        | MigrationState::Confirmed => name.to_owned(),
    }
}

/// Says what is weak about `xtr`, and what it leads to.
pub(super) fn warn_of(xtr: &str, weakness: Weakness) {
    match weakness {
        Weakness::NoReplayCheck => {
            warn!(%xtr, "replay_check is off: recorded Map-Registers of this xTR can be replayed");
        }
        Weakness::Sha1 => {
            warn!(%xtr, algorithm = "sha1", "Map-Registers of this xTR are authenticated with HMAC-SHA-1 only");
        }
        Weakness::Plain => {
            warn!(%xtr, "registers in the plain: whoever is on the path reads and delays its Map-Registers; it gets no WireGuard keys and no pushes, and nobody waits for its Map-Notify-Acks");
        }
    }
}

/// Returns the counters that are not zero, as one line.
pub(super) fn summary(counters: &Counters) -> String {
    let mut line = String::new();
    for (reason, total) in counters.nonzero() {
        let gap = if line.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        write!(line, "{gap}{reason}={total}").unwrap_or_default();
    }
    line
}
