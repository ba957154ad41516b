//! Who asks what, and may the answer go there?
//!
//! Map-Requests (RFC 9301 §5.2), bare or inside an ECM, up to the decision whether to answer.

use lisp_proto::{EidPrefix, MapRequest, Timestamp};

use super::actions::{Actions, Event, Via};
use super::counters::DropReason;
use super::held::PendingReply;
use super::sites::XtrIndex;
use super::{MapServer, Origin, limits};
use crate::config::ReplyAfter;

impl MapServer {
    /// Handles a Map-Request; `origin.src` carries the port that the answer goes to.
    pub(super) fn request(
        &mut self,
        now: Timestamp,
        origin: Origin,
        request: &MapRequest<'_>,
        actions: &mut Actions,
    ) {
        let reply = match self.admit(origin, request, actions) {
            Ok(reply) => reply,
            Err(reason) => return actions.count(reason),
        };
        let awaited = match (reply.requester, request.source_eid()) {
            (Some(requester), Some((iid, address))) => {
                let source = EidPrefix::host(iid, address);
                self.pair(now, requester, source, &reply.eids, actions)
            }
            (None, _) | (_, None) => Vec::new(),
        };
        if request.flags.no_reply {
            return;
        }
        if awaited.is_empty() || self.options.reply_after == ReplyAfter::Send {
            return self.send_reply(&reply, actions);
        }
        let key = (reply.dst, reply.nonce);
        if self.state.held.contains(&key) {
            return;
        }
        if self.state.held.is_full() {
            actions.count(DropReason::HoldOverflow);
            return self.send_reply(&reply, actions);
        }
        let until = now + self.options.reply_hold;
        self.state.held.hold(reply, awaited.len(), until);
        for notify in awaited {
            self.state.notifier.hold(&notify, key);
        }
    }

    /// Decides whether, whereto and about what a Map-Request is answered.
    fn admit(
        &self,
        origin: Origin,
        request: &MapRequest<'_>,
        actions: &mut Actions,
    ) -> Result<PendingReply, DropReason> {
        if request.flags.probe {
            return Err(DropReason::Probe);
        }
        if request.flags.smr {
            return Err(DropReason::Smr);
        }
        let source = origin.src.ip();
        let requester = self.sites.enrolled(origin.via, source);
        if requester.is_none() && origin.via == Via::Tunnel {
            return Err(DropReason::UnknownSource);
        }
        // Whoever could name another address here could have answers sent to a victim.
        if !request.itr_rlocs().any(|rloc| rloc.ip() == Some(source)) {
            return Err(DropReason::ForeignItrRloc);
        }
        let mut eids: Vec<EidPrefix> = Vec::new();
        for requested in request.eids() {
            if eids.len() >= limits::EIDS_PER_REQUEST {
                actions.count(DropReason::TooManyEids);
                break;
            }
            if !eids.contains(&requested.eid) {
                eids.push(requested.eid);
            }
        }
        if eids.is_empty() {
            return Err(DropReason::NoEid);
        }
        let xtr = requester.map(|xtr| self.sites.site(xtr).name.clone());
        for eid in &eids {
            actions.event(Event::Request {
                xtr: xtr.clone(),
                eid: *eid,
            });
        }
        Ok(PendingReply {
            dst: origin.src,
            via: origin.via,
            nonce: request.nonce,
            requester,
            eids,
            max_len: self.reply_limit(origin, requester),
        })
    }

    /// Returns how large an answer may be, in bytes: sources that nobody vouches for get no more
    /// than they sent, since they may be forged.
    fn reply_limit(&self, origin: Origin, requester: Option<XtrIndex>) -> usize {
        let source = origin.src.ip();
        let known = requester.is_some()
            || self.state.contacts.is_registered(source)
            || self
                .options
                .requests_from
                .iter()
                .any(|net| net.contains(&source));
        if known { usize::MAX } else { origin.len }
    }
}
