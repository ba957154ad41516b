//! What others ask of this xTR: whether a locator is alive, and to refresh a mapping.

use std::net::SocketAddr;

use lisp_proto::{
    EidPrefix, InstanceId, MapRequest, Record, ReplyParams, RequestFlags, Rloc, Timestamp,
    encode_map_reply,
};

use super::event::DropReason;
use super::limits::SMR_INTERVAL;
use super::{Action, Actions, Agent};

impl Agent {
    /// Answers an RLOC-probe (RFC 9301 7.1) or heeds an SMR (RFC 9301 6.1).
    /// No more than so many are heeded. `length` is that of the whole datagram: without a control
    /// tunnel nobody vouches for its sender, who gets no more bytes back.
    pub(super) fn map_request(
        &mut self,
        now: Timestamp,
        src: SocketAddr,
        request: &MapRequest<'_>,
        length: usize,
        actions: &mut Actions,
    ) {
        if !self.questions.take(now) {
            actions.count(DropReason::TooManyQuestions);
        } else if request.flags.smr {
            self.solicited(now, request, actions);
        } else if request.flags.probe {
            self.probed(src, request, length, actions);
        } else {
            actions.count(DropReason::UnexpectedMessage);
        }
    }

    /// Asks the mapping system again for what the sender says has changed,
    /// never the sender itself, and only for what is in use here.
    fn solicited(&mut self, now: Timestamp, request: &MapRequest<'_>, actions: &mut Actions) {
        let source = request
            .source_eid()
            .map(|(iid, addr)| EidPrefix::host(iid, addr));
        let asked = request.eids().map(|asked| asked.eid).next();
        for eid in [source, asked].into_iter().flatten() {
            if eid.iid() != self.config.iid {
                continue;
            }
            let Some((prefix, entry)) = self.cache.lookup(eid.net().addr()) else {
                continue;
            };
            let recently = entry
                .solicited
                .is_some_and(|last| now - last < SMR_INTERVAL);
            if entry.chosen.is_none() || recently {
                continue;
            }
            entry.solicited = Some(now);
            let flags = RequestFlags {
                smr_invoked: true,
                ..RequestFlags::default()
            };
            self.ask_again(now, prefix, flags, actions);
        }
    }

    fn probed(
        &mut self,
        src: SocketAddr,
        request: &MapRequest<'_>,
        length: usize,
        actions: &mut Actions,
    ) {
        if request.flags.no_reply {
            return;
        }
        let reachable = request.itr_rlocs().any(|rloc| rloc.ip() == Some(src.ip()));
        let own = request.eids().find_map(|asked| self.own_answer(asked.eid));
        let (true, Some(mut record)) = (reachable, own) else {
            actions.count(DropReason::UnexpectedMessage);
            return;
        };
        // Through a control tunnel no locator is probed more than another.
        let probed = Rloc::Plain(self.config.control_address);
        let one = record.locators.iter().any(|locator| locator.rloc == probed);
        for locator in &mut record.locators {
            locator.probed = !one || locator.rloc == probed;
        }
        let params = ReplyParams {
            probe: true,
            echo_nonce: false,
            nonce: request.nonce,
            records: &[record],
        };
        let mut bytes = Vec::new();
        let most = if self.config.keyless {
            length
        } else {
            usize::MAX
        };
        if encode_map_reply(&params, &mut bytes).is_err() || bytes.len() > most {
            actions.count(DropReason::WouldAmplify);
            return;
        }
        actions.push(Action::Send {
            dst: src,
            bytes: bytes.into(),
        });
    }

    fn own_answer(&self, eid: EidPrefix) -> Option<Record> {
        let InstanceId(iid) = eid.iid();
        let ours = |prefix: &&ipnet::IpNet| iid == self.config.iid.0 && prefix.contains(&eid.net());
        let prefix = self.config.registered().find(ours)?;
        Some(self.own_record(*prefix))
    }
}
