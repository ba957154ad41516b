//! Which Map-Requests can be answered without changing anything?
//!
//! Those that come in the plain and do not subscribe: nobody is paired, nobody is told anything but the
//! answer. So any number of threads may answer them at the same time, as long as none changes the state,
//! and it takes no memory but what was used for the answer before.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use arrayvec::ArrayVec;
use lisp_proto::{
    Action as NegativeAction, EidPrefix, InstanceId, MapRequest, Message, Record, Timestamp, Ttl,
    decode,
};

use super::actions::{Actions, Via};
use super::counters::DropReason;
use super::held::PendingReply;
use super::mappings::Found;
use super::rate::SharedRates;
use super::resolve::{negative, write_reply};
use super::{MapServer, Origin, limits, opened, unreadable};

/// Questions whose lookups go on at the same time.
const AT_ONCE: usize = 64;

/// What one thread that answers needs for itself.
#[derive(Debug)]
pub struct Desk {
    requests: SharedRates,
    draft: Record,
}

/// A Map-Request that changes nothing, and is not answered yet.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    origin: Origin,
    request: MapRequest<'a>,
}

/// What has become of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Its answer was written, and is to be sent there.
    To(SocketAddr),
    /// There is no answer.
    Silently,
    /// It may change something: only [`MapServer::handle`] can take it.
    Not,
}

impl MapServer {
    /// Returns a desk at which [`Self::answer`] works. All count the rates of sources together.
    #[must_use]
    pub fn desk(&self) -> Desk {
        Desk {
            requests: self.questions.clone(),
            draft: blank(),
        }
    }

    /// Reads a datagram that came in the plain, if it is a question that changes nothing; only counts are
    /// appended to `actions`.
    ///
    /// # Errors
    /// It is something else ([`Answered::Not`]), or there is no answer to it.
    pub fn read_question<'a>(
        &self,
        now: Timestamp,
        (src, bytes): (SocketAddr, &'a [u8]),
        desk: &Desk,
        actions: &mut Actions,
    ) -> Result<Question<'a>, Answered> {
        if !matches!(bytes.first().map(|byte| byte >> 4), Some(0x1 | 0x8)) {
            return Err(Answered::Not);
        }
        let mut silently = |reason| {
            actions.count(reason);
            Answered::Silently
        };
        if !desk.requests.allow(now, src.ip()) {
            return Err(silently(DropReason::RateLimited));
        }
        let (via, len) = (Via::Plain, bytes.len());
        match read(Origin { src, via, len }, bytes).map_err(silently)? {
            Some((origin, request)) if is_question(origin, &request) => {
                Ok(Question { origin, request })
            }
            Some(_) | None => Err(Answered::Not),
        }
    }

    /// Brings what the answers to some questions are made of into the processor's caches: for all of them at the
    /// same time, while one answer after the other would wait for each.
    pub fn expect_questions(&self, questions: &[Question<'_>]) {
        for some in questions.chunks(AT_ONCE) {
            let eids = some
                .iter()
                .filter_map(|question| question.request.eids().next());
            let eids: ArrayVec<_, AT_ONCE> = eids.map(|requested| requested.eid).collect();
            self.state.mappings.expect(&eids);
        }
    }

    /// Answers a question as [`Self::handle`] would; the answer is appended to `out`, and nothing else than
    /// counts and events to `actions`.
    pub fn answer(
        &self,
        now: Timestamp,
        question: &Question<'_>,
        desk: &mut Desk,
        out: &mut Vec<u8>,
        actions: &mut Actions,
    ) -> Answered {
        let Question { origin, request } = question;
        match self.write_answer(now, *origin, request, &mut desk.draft, out, actions) {
            Ok(true) => Answered::To(origin.src),
            Ok(false) => Answered::Silently,
            Err(reason) => {
                actions.count(reason);
                Answered::Silently
            }
        }
    }

    /// Answers a Map-Request for which [`is_question`] is true.
    pub(super) fn reply_at_once(
        &mut self,
        now: Timestamp,
        origin: Origin,
        request: &MapRequest<'_>,
        actions: &mut Actions,
    ) {
        let mut draft = std::mem::replace(&mut self.draft, blank());
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        match self.write_answer(now, origin, request, &mut draft, &mut out, actions) {
            Ok(true) => actions.send(origin.src, origin.via, &out),
            Ok(false) => {}
            Err(reason) => actions.count(reason),
        }
        (self.draft, self.scratch) = (draft, out);
    }

    /// Appends the answer to `out`; returns whether there is one.
    fn write_answer(
        &self,
        now: Timestamp,
        origin: Origin,
        request: &MapRequest<'_>,
        draft: &mut Record,
        out: &mut Vec<u8>,
        actions: &mut Actions,
    ) -> Result<bool, DropReason> {
        let reply = self.admit(origin, request, actions)?;
        if request.flags.no_reply {
            return Ok(false);
        }
        if self.draft_single(now, &reply, draft) {
            let records = std::slice::from_mut(draft);
            write_reply(&reply, records, out)?;
            self.tell_of_answer(None, records, actions);
            return Ok(true);
        }
        let mut records = self.records_for(now, &reply)?;
        write_reply(&reply, &mut records, out)?;
        self.tell_of_answer(None, &records, actions);
        Ok(true)
    }

    /// Writes the answer into `draft`, if it has one record only and that is registered.
    fn draft_single(&self, now: Timestamp, reply: &PendingReply, draft: &mut Record) -> bool {
        let [asked] = reply.eids.as_slice() else {
            return false;
        };
        if now < self.quiet_until {
            return false;
        }
        let mappings = &self.state.mappings;
        let (Found::Registered(mapping), is_whole) = mappings.find_whole(asked) else {
            return false;
        };
        if is_whole && !mapping.leads_nowhere() {
            mapping.write_to(draft);
            return true;
        }
        let Some(region) = self.answered_region(asked, limits::RECORDS_PER_REPLY - 1) else {
            return false;
        };
        if !mappings.is_whole(&region) {
            return false;
        }
        if mapping.leads_nowhere() {
            *draft = negative(region, self.options.negative_action, mapping.ttl());
            return true;
        }
        mapping.write_to(draft);
        draft.eid = region;
        true
    }
}

/// Whether a Map-Request changes nothing, whatever the answer is.
pub(super) const fn is_question(origin: Origin, request: &MapRequest<'_>) -> bool {
    matches!(origin.via, Via::Plain) && !request.subscribes()
}

/// Reads a Map-Request, also inside an ECM; `None` if it is something else.
fn read(origin: Origin, bytes: &[u8]) -> Result<Option<(Origin, MapRequest<'_>)>, DropReason> {
    match decode(bytes) {
        Ok(Message::MapRequest(request)) => Ok(Some((origin, request))),
        Ok(Message::Ecm(ecm)) => opened(origin, &ecm).map(Some),
        Ok(_) => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}

/// Returns a record to be written over.
pub(super) fn blank() -> Record {
    let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    negative(
        EidPrefix::host(InstanceId(0), unspecified),
        NegativeAction::NoAction,
        Ttl::WITHDRAW,
    )
}

#[cfg(test)]
mod tests;
