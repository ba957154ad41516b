//! Which Map-Requests can be answered without changing anything?
//!
//! Those that come in the plain and do not subscribe: nobody is paired, nobody is told anything but the
//! answer. So any number of threads may answer them at the same time, as long as none changes the state,
//! and it takes no memory but what was used for the answer before.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

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

/// What one thread that answers needs for itself.
#[derive(Debug)]
pub struct Desk {
    requests: SharedRates,
    draft: Record,
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

    /// Answers a datagram that came in the plain, if that changes nothing, as [`Self::handle`] would;
    /// the answer is appended to `out`, and nothing else than counts and events to `actions`.
    pub fn answer(
        &self,
        now: Timestamp,
        (src, bytes): (SocketAddr, &[u8]),
        desk: &mut Desk,
        out: &mut Vec<u8>,
        actions: &mut Actions,
    ) -> Answered {
        if !matches!(bytes.first().map(|byte| byte >> 4), Some(0x1 | 0x8)) {
            return Answered::Not;
        }
        if !desk.requests.allow(now, src.ip()) {
            actions.count(DropReason::RateLimited);
            return Answered::Silently;
        }
        let (via, len) = (Via::Plain, bytes.len());
        let (origin, request) = match read(Origin { src, via, len }, bytes) {
            Ok(Some((origin, request))) if is_question(origin, &request) => (origin, request),
            Ok(_) => return Answered::Not,
            Err(reason) => {
                actions.count(reason);
                return Answered::Silently;
            }
        };
        match self.write_answer(now, origin, &request, &mut desk.draft, out, actions) {
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
