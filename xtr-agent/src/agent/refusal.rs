//! Packets that are not delivered: counted, and their senders told, but not more often than bearable.

use lisp_proto::Timestamp;

use super::bucket::Bucket;
use super::event::DropReason;
use super::hold::Refused;
use super::ip_header::{Unreachable, unreachable};
use super::limits::ICMP_ERRORS_PER_SECOND;
use super::{Action, Actions};

/// Says "unreachable" to senders of packets (RFC 1812 4.3.2.8 and RFC 4443 2.4 f limit how often).
#[derive(Debug)]
pub(super) struct Refusals {
    errors: Bucket,
    now: Timestamp,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            errors: Bucket::per_second(ICMP_ERRORS_PER_SECOND),
            now: Timestamp::ZERO,
        }
    }
}

impl Refusals {
    /// Notes the time of all that is refused from now on.
    pub(super) fn at(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// Drops a packet, counts it, and tells its sender.
    pub(super) fn refuse(
        &mut self,
        packet: &[u8],
        why: Unreachable,
        reason: DropReason,
        actions: &mut Actions,
    ) {
        actions.count(reason);
        if !self.errors.take(self.now) {
            actions.count(DropReason::IcmpLimited);
        } else if let Some(error) = unreachable(packet, why) {
            actions.push(Action::Deliver(error));
        }
    }

    /// Deals with a packet that a hold had no room for.
    pub(super) fn overflowed(
        &mut self,
        result: Result<(), Refused>,
        packet: &[u8],
        actions: &mut Actions,
    ) {
        if let Err((reason, oldest)) = result {
            let refused = oldest.as_deref().unwrap_or(packet);
            self.refuse(refused, Unreachable::Host, reason, actions);
        }
    }
}
