//! Who asks what, and may the answer go there?
//!
//! Map-Requests (RFC 9301 §5.2), bare or inside an ECM, up to the decision whether to answer.

use std::net::IpAddr;

use arrayvec::ArrayVec;
use lisp_proto::{Address, EidPrefix, MapRequest, Timestamp};

use super::actions::{Actions, Event, Via};
use super::answer::is_question;
use super::counters::DropReason;
use super::held::{Answer, PendingReply};
use super::pairing::Paired;
use super::{MapServer, Origin};
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
        if is_question(origin, request) {
            return self.reply_at_once(now, origin, request, actions);
        }
        let reply = match self.admit(origin, request, actions) {
            Ok(reply) => reply,
            Err(reason) => return actions.count(reason),
        };
        if let (Answer::Subscribed | Answer::Unsubscribed, Some(ids)) = (reply.answer, request.ids)
        {
            return self.pubsub(now, request, ids, reply, actions);
        }
        if let Some(xtr) = reply.requester
            && self.is_dismissed(xtr, &reply.eids)
        {
            return actions.count(DropReason::Dismissed);
        }
        if let (Some(client), Some(gap)) = (reply.requester, request.gap()) {
            self.state.moves.note_gap(now, client, &reply.eids, gap);
        }
        let moved = reply.requester.map_or_else(Vec::new, |client| {
            self.heed_lost(now, client, request, actions)
        });
        let paired = match (reply.requester, request.source_eid()) {
            // It asks to be heard, and knows what it gets: nobody has to be told of it again.
            _ if only_tells_of_gap(request) => Paired::default(),
            (Some(requester), Some((iid, address))) => {
                let source = EidPrefix::host(iid, address);
                self.pair(now, requester, source, &reply.eids, actions)
            }
            (None, _) | (_, None) => Paired::default(),
        };
        self.follow_failover(now, &moved, &paired, actions);
        if !request.flags.no_reply {
            self.answer_when_told(now, reply, paired, actions);
        }
    }

    /// Answers as soon as those who were told of the requester have acknowledged it.
    pub(super) fn answer_when_told(
        &mut self,
        now: Timestamp,
        mut reply: PendingReply,
        paired: Paired,
        actions: &mut Actions,
    ) {
        reply.owners = paired.owners;
        if paired.awaited.is_empty() || self.options.reply_after == ReplyAfter::Send {
            return self.send_reply(now, &reply, actions);
        }
        let key = (reply.dst, reply.nonce);
        if self.state.held.contains(&key) {
            return;
        }
        if self.state.held.is_full() {
            actions.count(DropReason::HoldOverflow);
            return self.send_reply(now, &reply, actions);
        }
        let until = now + self.options.reply_hold;
        self.state.held.hold(reply, paired.awaited.len(), until);
        for notify in paired.awaited {
            self.state.notifier.hold(&notify, key);
        }
    }

    /// Decides whether, whereto and about what a Map-Request is answered.
    pub(super) fn admit(
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
        let agent = self.sites.enrolled(Via::Tunnel, source);
        let requester = match (origin.via, agent) {
            (Via::Tunnel, Some(agent)) => Some(agent),
            (Via::Plain, None) => None,
            // Addresses of the control tunnel exist nowhere else, and nobody else is inside.
            (Via::Tunnel, None) | (Via::Plain, Some(_)) => return Err(DropReason::UnknownSource),
        };
        let answer = wanted_answer(request, actions);
        // Whoever could name another address here could have answers sent to a victim.
        let unnamed = answer == Answer::Unsubscribed && requester.is_some();
        if !unnamed && !request.itr_rlocs().any(|rloc| rloc.ip() == Some(source)) {
            return Err(DropReason::ForeignItrRloc);
        }
        let mut eids = ArrayVec::new();
        for requested in request.eids() {
            if eids.is_full() {
                actions.count(DropReason::TooManyEids);
                break;
            }
            let iid = requested.eid.iid();
            if requester.is_some_and(|xtr| !self.sites.is_in(xtr, iid)) {
                // Tenants learn nothing about each other.
                return Err(DropReason::ForeignInstance);
            }
            if !eids.contains(&requested.eid) {
                eids.push(requested.eid);
            }
        }
        if eids.is_empty() {
            return Err(DropReason::NoEid);
        }
        if !actions.is_quiet() {
            let xtr = requester.map(|xtr| self.sites.site(xtr).name.clone());
            for eid in &eids {
                let xtr = xtr.clone();
                actions.event(Event::Request { xtr, eid: *eid });
            }
        }
        Ok(PendingReply {
            dst: origin.src,
            via: origin.via,
            nonce: request.nonce,
            answer,
            requester,
            eids,
            owners: Vec::new(),
            keys: self.reads_keys(origin),
            max_len: self.reply_limit(origin),
        })
    }

    /// Returns how large an answer may be, in bytes: sources that nobody vouches for get no more
    /// than they sent, since they may be forged.
    fn reply_limit(&self, origin: Origin) -> usize {
        let source = origin.src.ip();
        let known = origin.via == Via::Tunnel
            || self.may_ask(source)
            || self.state.contacts.is_registered(source);
        if known { usize::MAX } else { origin.len }
    }

    /// Whether messages to `origin` may carry keys: to agents, and to those who only ask. Other
    /// LISP gear registers in the plain; what it cannot read makes it crash.
    pub(super) fn reads_keys(&self, origin: Origin) -> bool {
        let source = origin.src.ip();
        let gear = || self.state.contacts.is_registered(source);
        origin.via == Via::Tunnel || (self.may_ask(source) && !gear())
    }

    /// Whether the operator lets `source` ask in the plain without being registered.
    fn may_ask(&self, source: IpAddr) -> bool {
        let nets = &self.options.requests_from;
        nets.iter().any(|net| net.contains(&source))
    }
}

/// Whether the record of a Map-Request says nothing but how long nothing came when a mapping moved.
fn only_tells_of_gap(request: &MapRequest<'_>) -> bool {
    let record = request.source_record();
    let record = record.filter(|_| request.gap().is_some());
    // The name that says so is a locator as well.
    record.is_some_and(|record| record.locators().count() == 1)
}

/// Returns what a Map-Request asks for: the N bit subscribes, but only an xTR that says who it is
/// (RFC 9437 §4), and naming no ITR-RLOC ends that.
fn wanted_answer(request: &MapRequest<'_>, actions: &mut Actions) -> Answer {
    if !request.subscribes() {
        return Answer::Told;
    }
    if request.ids.is_none() {
        actions.count(DropReason::SubscriberUnnamed);
        return Answer::Told;
    }
    let mut rlocs = request.itr_rlocs();
    match (rlocs.next(), rlocs.next()) {
        (Some(Address::None), None) => Answer::Unsubscribed,
        _ => Answer::Subscribed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Options, Rate};
    use crate::server::bench::{
        Bench, Sent, control, ecm, eid, ip, plain_record, request, request_with, socket,
    };
    use crate::server::limits;
    use lisp_proto::RequestFlags;

    const STRANGER: &str = "198.51.100.66:1234";

    #[test]
    fn probes_and_solicitations_are_not_for_a_map_server() {
        let probe = RequestFlags {
            probe: true,
            ..RequestFlags::default()
        };
        dropped(DropReason::Probe, Via::Plain, |itr| {
            request_with(probe, None, itr, &["10.0.0.1"], 1)
        });
        let smr = RequestFlags {
            smr: true,
            ..RequestFlags::default()
        };
        dropped(DropReason::Smr, Via::Plain, |itr| {
            request_with(smr, None, itr, &["10.0.0.1"], 1)
        });
    }

    #[test]
    fn an_answer_never_goes_to_an_address_the_request_did_not_come_from() {
        let victim = ip("203.0.113.9");
        dropped(DropReason::ForeignItrRloc, Via::Plain, |_| {
            request(None, &[victim], &["10.0.0.1"], 1)
        });
        dropped(DropReason::ForeignItrRloc, Via::Plain, |_| {
            request(None, &[], &["10.0.0.1"], 1)
        });
        dropped(DropReason::ForeignItrRloc, Via::Plain, |_| {
            ecm(
                "203.0.113.9",
                5000,
                "10.0.0.1",
                &request(None, &[victim], &["10.0.0.1"], 1),
            )
        });
    }

    #[test]
    fn only_enrolled_agents_ask_through_the_tunnel() {
        dropped(DropReason::UnknownSource, Via::Tunnel, |itr| {
            request(None, itr, &["10.0.0.1"], 1)
        });
    }

    #[test]
    fn outside_the_tunnel_nobody_asks_in_the_name_of_an_agent() {
        let mut bench = Bench::new();
        bench.register_all();
        let before = bench.server.fingerprint();
        let forged = request(None, &[control("a").ip()], &["172.16.0.1"], 1);
        assert_eq!(bench.datagram(control("a"), Via::Plain, &forged), []);
        assert_eq!(bench.count(DropReason::UnknownSource), 1);
        assert_eq!(bench.server.fingerprint(), before);
    }

    #[test]
    fn a_registration_through_the_tunnel_vouches_for_no_plain_source() {
        let mut bench = Bench::new();
        bench.register_all();
        let contacts = &bench.server.state.contacts;
        assert!(!contacts.is_registered(control("a").ip()));
    }

    #[test]
    fn a_request_without_eids_is_dropped() {
        dropped(DropReason::NoEid, Via::Plain, |itr| {
            request(None, itr, &[], 1)
        });
    }

    #[test]
    fn the_answer_to_an_ecm_goes_to_the_inner_port_of_the_outer_address() {
        let mut bench = open_bench();
        let inner = request(
            None,
            &[ip("192.0.2.1"), ip("198.51.100.66")],
            &["10.0.0.1"],
            5,
        );
        let sent = bench.datagram(
            socket(STRANGER),
            Via::Plain,
            &ecm("192.0.2.1", 60_000, "10.0.0.1", &inner),
        );
        assert_eq!(sent[0].dst, socket("198.51.100.66:60000"));
        assert_eq!(sent[0].reply().nonce.0, 5);
        let sent = bench.datagram(socket(STRANGER), Via::Plain, &inner);
        assert_eq!(sent[0].dst, socket(STRANGER), "bare: the port it came from");
    }

    #[test]
    fn an_ecm_carries_nothing_but_a_map_request() {
        let mut bench = open_bench();
        let register = bench
            .register_of("gear", &[plain_record("192.168.0.0/16", "192.0.2.200")])
            .bytes();
        let before = bench.server.fingerprint();
        let inner = ecm("192.0.2.1", 4342, "10.0.0.1", &register);
        assert_eq!(bench.datagram(socket(STRANGER), Via::Plain, &inner), []);
        let nested = ecm(
            "192.0.2.1",
            4342,
            "10.0.0.1",
            &ecm("192.0.2.1", 4342, "10.0.0.1", &register),
        );
        assert_eq!(bench.datagram(socket(STRANGER), Via::Plain, &nested), []);
        assert_eq!(
            bench.count(DropReason::UnexpectedMessage) + bench.count(DropReason::Malformed),
            2
        );
        assert_eq!(bench.server.fingerprint(), before);
    }

    #[test]
    fn a_request_that_was_damaged_inside_its_ecm_is_dropped() {
        let mut bench = open_bench();
        let inner = request(None, &[socket(STRANGER).ip()], &["10.0.0.1"], 5);
        let mut damaged = ecm("198.51.100.66", 4342, "10.0.0.1", &inner);
        assert_eq!(
            bench.datagram(socket(STRANGER), Via::Plain, &damaged).len(),
            1
        );
        // The inner UDP checksum: 4 bytes of ECM and 20 of IPv4 before it, 6 of UDP.
        damaged[30] ^= 1;
        assert_eq!(bench.datagram(socket(STRANGER), Via::Plain, &damaged), []);
        assert_eq!(bench.count(DropReason::Malformed), 1);
    }

    #[test]
    fn a_request_that_wants_no_reply_gets_none() {
        let mut bench = open_bench();
        let flags = RequestFlags {
            no_reply: true,
            ..RequestFlags::default()
        };
        let bytes = request_with(flags, None, &[socket(STRANGER).ip()], &["10.0.0.1"], 1);
        assert_eq!(bench.datagram(socket(STRANGER), Via::Plain, &bytes), []);
    }

    #[test]
    fn strangers_get_no_more_than_they_sent() {
        let mut bench = Bench::new();
        register_gear(&mut bench, "192.0.2.200:4342");
        let ask = |bench: &mut Bench, eid: &str| {
            let bytes = request(None, &[socket(STRANGER).ip()], &[eid], 1);
            let sent = bench.datagram(socket(STRANGER), Via::Plain, &bytes);
            assert!(sent.iter().all(|sent| sent.bytes.len() <= bytes.len()));
            sent.len()
        };
        assert_eq!(
            ask(&mut bench, "192.168.0.1"),
            0,
            "a mapping is larger than the question"
        );
        assert_eq!(bench.count(DropReason::WouldAmplify), 1);
        assert_eq!(ask(&mut bench, "172.16.0.1"), 1, "a negative answer is not");
    }

    #[test]
    fn a_plain_source_that_registers_gets_whole_answers() {
        let mut bench = Bench::new();
        register_gear(&mut bench, STRANGER);
        let bytes = request(None, &[socket(STRANGER).ip()], &["192.168.0.1"], 1);
        assert_eq!(
            bench.datagram(socket(STRANGER), Via::Plain, &bytes).len(),
            1
        );
        bench.wait(limits::REGISTRATION_LIFETIME);
        register_gear(&mut bench, "192.0.2.200:4342");
        assert_eq!(
            bench.datagram(socket(STRANGER), Via::Plain, &bytes).len(),
            0,
            "it no longer registers"
        );
    }

    #[test]
    fn several_eids_are_answered_in_one_reply() {
        let mut bench = open_bench();
        bench.register_all();
        let eids = ["10.0.0.1", "10.0.0.2", "10.0.0.1", "172.16.0.1"];
        let bytes = request(None, &[socket(STRANGER).ip()], &eids, 1);
        let sent = bench.datagram(socket(STRANGER), Via::Plain, &bytes);
        let eids: Vec<_> = sent[0]
            .reply_records()
            .iter()
            .map(|record| record.eid)
            .collect();
        assert_eq!(eids, [eid("10.0.0.1"), eid("10.0.0.2"), eid("128.0.0.0/2")]);
    }

    #[test]
    fn more_eids_than_are_answered_are_counted() {
        let mut bench = open_bench();
        let eids: Vec<_> = (0..20).map(|n| format!("172.16.{n}.1")).collect();
        let eids: Vec<_> = eids.iter().map(String::as_str).collect();
        let bytes = request(None, &[socket(STRANGER).ip()], &eids, 1);
        let sent = bench.datagram(socket(STRANGER), Via::Plain, &bytes);
        assert!(sent[0].reply_records().len() <= limits::RECORDS_PER_REPLY);
        assert_eq!(bench.count(DropReason::TooManyEids), 1);
    }

    #[test]
    fn a_source_that_asks_too_fast_is_slowed_down() {
        let rate = Rate {
            per_second: 10,
            burst: 2,
        };
        let mut bench = Bench::with(Options {
            request_rate: rate,
            ..open()
        });
        let answered = (0..5)
            .filter(|_| !bench.ask("a", "172.16.0.1").is_empty())
            .count();
        assert_eq!((answered, bench.count(DropReason::RateLimited)), (2, 3));
        assert_eq!(bench.ask("b", "172.16.0.1").len(), 1, "others are not");
        bench.register_all();
    }

    fn register_gear(bench: &mut Bench, source: &str) {
        let register = bench.register_of("gear", &[plain_record("192.168.0.0/16", "192.0.2.200")]);
        bench.datagram(socket(source), Via::Plain, &register.bytes());
    }

    #[track_caller]
    fn dropped(reason: DropReason, via: Via, bytes: impl Fn(&[IpAddr]) -> Vec<u8>) {
        let mut bench = open_bench();
        let before = bench.server.fingerprint();
        let sent: Vec<Sent> =
            bench.datagram(socket(STRANGER), via, &bytes(&[socket(STRANGER).ip()]));
        assert_eq!((sent, bench.count(reason)), (vec![], 1));
        assert_eq!(bench.server.fingerprint(), before);
    }

    /// Everybody may ask.
    fn open() -> Options {
        Options {
            requests_from: vec!["0.0.0.0/0".parse().unwrap()],
            ..Options::default()
        }
    }

    fn open_bench() -> Bench {
        Bench::with(open())
    }
}
