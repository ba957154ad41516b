//! Where the agent stands with one map server: registered or not, what it said, and whether it is there at all.

use lisp_proto::Timestamp;

use super::limits;
use super::registration::Registration;
use super::replay::Notifies;

/// What the agent keeps about one map server.
#[derive(Debug, Default)]
pub(super) struct Server {
    pub(super) registration: Registration,
    /// What it told us by Map-Notifies.
    pub(super) notifies: Notifies,
    /// When it was last heard of.
    heard: Timestamp,
    /// When the control tunnel to it was last set up anew.
    renewed: Timestamp,
    /// When it was first heard of through a control tunnel that was set up anew.
    found: Timestamp,
    /// Since when nothing that it says is new.
    behind: Option<Timestamp>,
    /// When it was last told where to count on from.
    corrected: Option<Timestamp>,
}

impl Server {
    /// A map server that nothing is known of before `now`: others may have said what it does not know.
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            heard: now,
            found: now,
            ..Self::default()
        }
    }

    /// Notes that it is there; only it can have said what was heard.
    pub(super) fn heard(&mut self, now: Timestamp) {
        if self.heard < self.renewed {
            self.found = now;
        }
        self.heard = now;
    }

    /// When it was found again: it may have restarted before, and know less than we were told.
    pub(super) const fn found(&self) -> Timestamp {
        self.found
    }

    /// It said something new.
    pub(super) const fn counts_on(&mut self) {
        self.behind = None;
    }

    /// It said something too old to be new. Whether it is `certain` that it is not just late, or it
    /// has said nothing else for a while, and it is time to tell it where to count on from; if so,
    /// that counts as done.
    pub(super) fn is_to_be_corrected(&mut self, now: Timestamp, certain: bool) -> bool {
        let since = *self.behind.get_or_insert(now);
        let corrected = self.corrected;
        let due = (certain || now - since >= limits::NONCES_BEHIND)
            && corrected.is_none_or(|at| now - at >= limits::NONCE_CORRECTION);
        if due {
            self.corrected = Some(now);
        }
        due
    }

    /// Whether the control tunnel should be set up anew, after it did not answer in time for the
    /// `unanswered`th time; if so, it counts as done.
    pub(super) fn has_lost_us(&mut self, now: Timestamp, unanswered: u32) -> bool {
        // One that answers others is there, and only slow or overloaded.
        let silence = if unanswered > 1 {
            limits::CONTROL_SILENCE_SHORT
        } else {
            limits::CONTROL_SILENCE
        };
        let lost = now - self.heard >= silence && now - self.renewed >= limits::CONTROL_RENEWAL;
        if lost {
            self.renewed = now;
        }
        lost
    }
}
