//! What does the operator read?

use std::fmt::Write as _;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::settings::Weakness;
use crate::server::{Counters, Event, MigrationState};

/// How a source that is not enrolled is called.
const ANONYMOUS: &str = "-";

/// Lines of one kind per second: more of them would cost more than what they are about.
const LINES_PER_S: u32 = 1_000;

/// Bounds how much is written about what happens often: about registrations, and about questions and who is told of
/// them.
#[derive(Debug, Default)]
pub(super) struct Pace {
    second: u64,
    registrations: Lines,
    questions: Lines,
    /// Questions of those who are not enrolled: they must not use up the lines of those who are.
    strangers: Lines,
}

/// Lines of one kind.
#[derive(Debug, Default)]
struct Lines {
    in_second: u32,
    left_out: u64,
}

impl Pace {
    /// Whether to write a line about `event`, so long after 1970.
    pub(super) fn allows(&mut self, event: &Event, since_1970: Duration) -> bool {
        let second = since_1970.as_secs();
        if second != self.second {
            self.second = second;
            self.registrations.in_second = 0;
            self.questions.in_second = 0;
            self.strangers.in_second = 0;
        }
        match event {
            Event::Registered { .. } | Event::Withdrawn { .. } => self.registrations.allow(),
            Event::Request { xtr: None, .. }
            | Event::Reply { xtr: None, .. }
            | Event::NegativeReply { .. } => self.strangers.allow(),
            Event::Request { .. }
            | Event::Push { .. }
            | Event::PushAcked { .. }
            | Event::Reply { .. } => self.questions.allow(),
            Event::Subscribed { .. }
            | Event::Unsubscribed { .. }
            | Event::Migration { .. }
            | Event::FailedOver { .. }
            | Event::Draining { .. }
            | Event::Relayed { .. }
            | Event::Seen { .. } => true,
        }
    }

    /// Says what was left out since the last time.
    pub(super) fn tell(&mut self) {
        let left_out = |lines: &mut Lines| std::mem::take(&mut lines.left_out);
        let registrations = left_out(&mut self.registrations);
        let questions = left_out(&mut self.questions) + left_out(&mut self.strangers);
        if registrations + questions > 0 {
            info!(event = "not_logged", registrations, questions);
        }
    }
}

impl Lines {
    /// Whether there may be one more.
    fn allow(&mut self) -> bool {
        self.in_second = self.in_second.saturating_add(1);
        let allows = self.in_second <= LINES_PER_S;
        self.left_out += u64::from(!allows);
        allows
    }
}

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
        Event::FailedOver {
            client,
            eid,
            from,
            to,
        } => info!(event = "failed_over", %client, %eid, %from, %to),
        Event::Draining {
            xtr,
            draining,
            relaying,
        } => info!(event = "draining", %xtr, draining, relaying),
        Event::Relayed { one, other, via } => info!(event = "relayed", %one, %other, %via),
        Event::Seen { xtr, eid, at } => info!(event = "seen", %xtr, %eid, %at),
        Event::NegativeReply { eid } => info!(event = "negative_reply", %eid),
    }
}

/// Writes one line about a question in the plain or its answer: there may be so many of them that lines
/// would cost more than the answers.
pub(super) fn narrate_question(event: &Event) {
    if let Event::Request { eid, .. } = event {
        debug!(event = "request", xtr = ANONYMOUS, %eid);
    } else if let Event::Reply { eid, .. } = event {
        debug!(event = "reply", xtr = ANONYMOUS, %eid);
    } else if let Event::NegativeReply { eid } = event {
        debug!(event = "negative_reply", %eid);
    } else {
        narrate(event);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_told_in_so_many_lines_a_second() {
        let (name, eid) = (
            crate::config::XtrName::from("a"),
            "10.0.0.1".parse().unwrap(),
        );
        let registered = Event::Registered {
            xtr: name.clone(),
            eid,
        };
        let pushed = Event::Push {
            to: name.clone(),
            eid,
        };
        let strange = Event::Request { xtr: None, eid };
        let subscribed = Event::Subscribed { xtr: name, eid };
        let mut pace = Pace::default();
        for second in [5, 6] {
            let at = Duration::from_secs(second);
            for event in [&registered, &strange, &pushed] {
                let lines = (0..5_000).filter(|_| pace.allows(event, at)).count();
                assert_eq!(lines, LINES_PER_S as usize);
            }
            assert!((0..5_000).all(|_| pace.allows(&subscribed, at)));
        }
        let left_out = 2 * (5_000 - u64::from(LINES_PER_S));
        assert_eq!(pace.registrations.left_out, left_out);
        assert_eq!(pace.questions.left_out, left_out);
        assert_eq!(pace.strangers.left_out, left_out);
    }
}
