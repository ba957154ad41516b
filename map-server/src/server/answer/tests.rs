use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_utils::sync::ShardedLock;
use lisp_proto::{RequestFlags, Rloc};
use proptest::prelude::*;

use super::*;
use crate::config::{Options, Rate};
use crate::server::bench::{Bench, control, ecm, ip, plain_record, record, request_with, socket};
use crate::server::{Action, Input};

const STRANGER: &str = "198.51.100.66:1234";

/// A server whose answers are asked for at a desk and by the door.
fn bench() -> Bench {
    let mut bench = Bench::with(Options {
        requests_from: vec!["198.51.100.0/24".parse().unwrap()],
        ..Options::default()
    });
    bench.register_all();
    let gear = [
        plain_record("192.168.0.0/16", "192.0.2.200"),
        record("192.168.1.0/24", "192.0.2.201:7"),
        record("192.168.1.7", "192.0.2.202:7"),
        super::super::bench::empty("192.168.2.0/24", 5),
    ];
    let register = bench.register_of("gear", &gear);
    bench.datagram(socket("192.0.2.200:4342"), Via::Plain, &register.bytes());
    bench
}

/// What is sent, and all that is to be done besides, at a desk and by the door.
type Both = [(Vec<(SocketAddr, Vec<u8>)>, Vec<Action>); 2];

/// What becomes of a datagram at a desk.
fn ask(
    (server, now): (&MapServer, Timestamp),
    datagram: (SocketAddr, &[u8]),
    desk: &mut Desk,
    out: &mut Vec<u8>,
    actions: &mut Actions,
) -> Answered {
    match server.read_question(now, datagram, desk, actions) {
        Ok(question) => {
            server.expect_questions(&[question]);
            server.answer(now, &question, desk, out, actions)
        }
        Err(answered) => answered,
    }
}

fn both_ways(bench: &mut Bench, src: SocketAddr, bytes: &[u8]) -> Option<Both> {
    let (mut out, mut actions) = (Vec::new(), Actions::new());
    let mut desk = bench.server.desk();
    let at = (&bench.server, bench.now);
    let answered = ask(at, (src, bytes), &mut desk, &mut out, &mut actions);
    let sent = match answered {
        Answered::To(dst) => vec![(dst, out)],
        Answered::Silently => vec![],
        Answered::Not => return None,
    };
    let desk = (sent, actions.drain().collect());
    let input = Input::Datagram {
        src,
        via: Via::Plain,
        bytes,
    };
    let before = bench.server.fingerprint();
    bench.server.handle(bench.now, input, &mut actions);
    assert_eq!(bench.server.fingerprint(), before, "it changes nothing");
    let (mut sent, mut rest) = (Vec::new(), Vec::new());
    for action in actions.drain() {
        match action {
            Action::Send { dst, bytes, .. } => sent.push((dst, bytes.to_vec())),
            other @ (Action::Persist(_)
            | Action::Watch(_)
            | Action::Unwatch(_)
            | Action::Look
            | Action::Count(_)
            | Action::Event(_)) => rest.push(other),
        }
    }
    Some([desk, (sent, rest)])
}

fn eids() -> impl Strategy<Value = Vec<&'static str>> {
    let eid = prop::sample::select(vec![
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.0/24",
        "192.168.0.0/16",
        "192.168.1.7",
        "192.168.1.8",
        "192.168.2.1",
        "192.168.77.1",
        "172.16.0.1",
        "0.0.0.0/0",
        "fd00:1::1",
        "[7]10.0.0.1",
    ]);
    prop::collection::vec(eid, 0..10)
}

proptest! {
    #[test]
    fn a_desk_answers_as_the_server_itself_does(
        eids in eids(),
        source in prop::sample::select(vec![STRANGER, "203.0.113.1:4342", "192.0.2.200:4342"]),
        own_rloc in any::<bool>(),
        in_ecm in any::<bool>(),
        flags in any::<[bool; 3]>(),
        damage in prop::option::of((any::<prop::sample::Index>(), 1u8..)),
    ) {
        let mut bench = bench();
        let src = socket(source);
        let [probe, smr, no_reply] = flags.map(|flag| flag && damage.is_none());
        let flags = RequestFlags { probe, smr, no_reply, ..RequestFlags::default() };
        let itr = if own_rloc { src.ip() } else { ip("203.0.113.99") };
        let mut bytes = request_with(flags, None, &[itr], &eids, 77);
        if in_ecm {
            bytes = ecm("198.51.100.66", 5000, "10.0.0.1", &bytes);
        }
        if let Some((position, change)) = damage {
            let position = position.index(bytes.len());
            bytes[position] ^= change;
        }
        if let Some([desk, server]) = both_ways(&mut bench, src, &bytes) {
            prop_assert_eq!(desk, server);
        }
    }
}

#[test]
fn answers_are_given_at_a_desk() {
    let mut bench = bench();
    let src = socket(STRANGER);
    for (eid, len) in [("10.0.0.1", 1), ("192.168.1.8", 2), ("172.16.0.1", 1)] {
        let bytes = request_with(RequestFlags::default(), None, &[src.ip()], &[eid], 1);
        let [desk, server] = both_ways(&mut bench, src, &bytes).unwrap();
        assert_eq!(desk, server);
        let [(dst, reply)] = desk.0.try_into().unwrap();
        let Ok(Message::MapReply(reply)) = decode(&reply) else {
            panic!("no Map-Reply");
        };
        assert_eq!((dst, reply.records().count()), (src, len), "{eid}");
    }
}

#[test]
fn what_may_change_something_is_not_answered_at_a_desk() {
    let mut bench = bench();
    let register = bench.register_of("gear", &[plain_record("192.168.0.0/16", "192.0.2.200")]);
    let from = socket("192.0.2.200:4342");
    assert!(both_ways(&mut bench, from, &register.bytes()).is_none());
    let nobody = request_with(
        RequestFlags::default(),
        None,
        &[control("a").ip()],
        &["10.0.0.2"],
        1,
    );
    let [desk, server] = both_ways(&mut bench, control("a"), &nobody).unwrap();
    assert_eq!(desk, server, "an agent outside its tunnel");
    assert_eq!(desk.1, [Action::Count(DropReason::UnknownSource)]);
}

#[test]
fn sources_are_slowed_down_at_desks() {
    let request_rate = Rate {
        per_second: 10,
        burst: 2,
    };
    let bench = Bench::with(Options {
        request_rate,
        ..Options::default()
    });
    let src = socket(STRANGER);
    let bytes = request_with(
        RequestFlags::default(),
        None,
        &[src.ip()],
        &["172.16.0.1"],
        1,
    );
    let (mut out, mut actions, mut desk) = (Vec::new(), Actions::quiet(), bench.server.desk());
    let at = (&bench.server, bench.now);
    let mut again = || ask(at, (src, &bytes), &mut desk, &mut out, &mut actions);
    let answered = [again(), again(), again()];
    assert_eq!(
        answered,
        [Answered::To(src), Answered::To(src), Answered::Silently]
    );
    let left: Vec<_> = actions.drain().collect();
    assert_eq!(left, [Action::Count(DropReason::RateLimited)]);
}

/// Prefixes that are registered together are told as they were registered together, whoever asks while
/// that changes.
#[test]
fn no_answer_is_made_of_half_a_registration() {
    let mut bench = bench();
    let both = ["192.168.1.7", "192.168.3.7"];
    let registers = (1..400).map(|port| {
        let records = both.map(|eid| record(eid, &format!("192.0.2.202:{port}")));
        bench.register_of("gear", &records).bytes()
    });
    let mut registers = registers.collect::<Vec<_>>().into_iter();
    let from = socket("192.0.2.200:4342");
    bench.datagram(from, Via::Plain, &registers.next().unwrap());

    let src = socket(STRANGER);
    let question = request_with(RequestFlags::default(), None, &[src.ip()], &both, 1);
    let (now, server, is_over) = (
        bench.now,
        ShardedLock::new(bench.server),
        AtomicBool::new(false),
    );
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (mut desk, mut actions) = (server.read().unwrap().desk(), Actions::quiet());
                while !is_over.load(Ordering::Relaxed) {
                    let mut out = Vec::new();
                    let asked = (src, question.as_slice());
                    let reader = server.read().unwrap();
                    let answered = ask((&reader, now), asked, &mut desk, &mut out, &mut actions);
                    drop(reader);
                    let limited = actions.drain().count() > 0;
                    assert_eq!(answered == Answered::Silently, limited);
                    if !limited {
                        assert_eq!(endpoints(&out).len(), 2);
                        assert_eq!(endpoints(&out)[0], endpoints(&out)[1]);
                    }
                }
            });
        }
        let mut actions = Actions::quiet();
        for bytes in registers {
            let input = Input::Datagram {
                src: from,
                via: Via::Plain,
                bytes: &bytes,
            };
            server.write().unwrap().handle(now, input, &mut actions);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let after = server.read().unwrap();
    let (mut out, mut desk, mut actions) = (Vec::new(), after.desk(), Actions::quiet());
    // By then there are tokens again.
    let at = (&*after, now + Duration::from_secs(10));
    ask(at, (src, &question), &mut desk, &mut out, &mut actions);
    assert_eq!(
        endpoints(&out),
        [socket("192.0.2.202:399"); 2],
        "the last one counts"
    );
}

/// The endpoints that a Map-Reply tells.
fn endpoints(reply: &[u8]) -> Vec<SocketAddr> {
    let Ok(Message::MapReply(reply)) = decode(reply) else {
        panic!("no Map-Reply");
    };
    let records = reply.records().map(|record| record.to_record(0).unwrap());
    let locators = records.flat_map(|record| record.locators);
    let endpoints = locators.filter_map(|locator| match locator.rloc {
        Rloc::WireGuard { endpoint, .. } => Some(endpoint),
        Rloc::Plain(_) => None,
    });
    endpoints.collect()
}
