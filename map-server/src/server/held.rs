//! Which Map-Replies wait until the owner knows the requester?

use std::collections::BTreeMap;
use std::net::SocketAddr;

use arrayvec::ArrayVec;
use lisp_proto::{Deadlines, EidPrefix, Nonce, Timestamp};

use super::actions::Via;
use super::limits;
use super::sites::XtrIndex;

/// Names a Map-Request: a repeated one has the same key.
pub(crate) type HeldKey = (SocketAddr, Nonce);

/// How a Map-Request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// By a Map-Reply.
    Told,
    /// By a Map-Notify, since it subscribes (RFC 9437 §5).
    Subscribed,
    /// By a Map-Notify, since it unsubscribes.
    Unsubscribed,
}

/// Whom to answer, about what. The answer itself is written when it leaves, so that it is fresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PendingReply {
    pub(crate) dst: SocketAddr,
    pub(crate) via: Via,
    pub(crate) nonce: Nonce,
    pub(crate) answer: Answer,
    pub(crate) requester: Option<XtrIndex>,
    pub(crate) eids: ArrayVec<EidPrefix, { limits::EIDS_PER_REQUEST }>,
    /// Owners of what is asked for that were told of the requester.
    pub(crate) owners: Vec<XtrIndex>,
    /// Whether the requester can read keys: other LISP gear crashes on them.
    pub(crate) keys: bool,
    /// Largest Map-Reply this requester may get, in bytes.
    pub(crate) max_len: usize,
}

/// The Map-Replies on hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldReplies {
    replies: BTreeMap<HeldKey, Held>,
    timers: Deadlines<HeldKey>,
}

#[derive(Clone, Debug)]
struct Held {
    reply: PendingReply,
    /// Acknowledgements still to come.
    missing: usize,
}

impl HeldReplies {
    /// Whether no more replies can wait.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= limits::HELD_REPLIES
    }

    /// Returns how many replies wait.
    pub(crate) fn len(&self) -> usize {
        self.replies.len()
    }

    /// Whether the answer to this very request is waiting.
    pub(crate) fn contains(&self, key: &HeldKey) -> bool {
        self.replies.contains_key(key)
    }

    /// Keeps `reply` until `missing` acknowledgements have come, at most until `until`.
    pub(crate) fn hold(&mut self, reply: PendingReply, missing: usize, until: Timestamp) {
        let key = (reply.dst, reply.nonce);
        self.timers.set(key, until);
        self.replies.insert(key, Held { reply, missing });
    }

    /// Makes the reply wait for one acknowledgement more, if it still waits.
    pub(crate) fn expect_more(&mut self, key: &HeldKey) {
        if let Some(held) = self.replies.get_mut(key) {
            held.missing += 1;
        }
    }

    /// Counts one acknowledgement; returns the reply if it was the last one missing.
    pub(crate) fn acknowledge(&mut self, key: &HeldKey) -> Option<PendingReply> {
        let held = self.replies.get_mut(key)?;
        held.missing = held.missing.saturating_sub(1);
        if held.missing > 0 {
            return None;
        }
        self.timers.cancel(key);
        self.replies.remove(key).map(|held| held.reply)
    }

    /// Takes one reply out that has waited long enough.
    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<PendingReply> {
        let key = self.timers.pop_due(now)?;
        self.replies.remove(&key).map(|held| held.reply)
    }

    /// Returns when the next reply has waited long enough.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.timers.next()
    }
}
