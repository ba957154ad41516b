//! Who is told what, in which order, and how often.

use std::time::Duration;

use super::*;
use crate::server::bench::{
    Bench, Sent, ack, control, eid, empty, ip, own_records, plain_record, record, request, socket,
};
use crate::server::{Event, Via};

#[test]
fn a_repeated_request_does_not_repeat_an_outstanding_push() {
    let mut bench = registered();
    assert_eq!(bench.ask_again("a", "10.0.0.2", 50).len(), 1);
    assert_eq!(bench.ask_again("a", "10.0.0.2", 50), [], "the same request");
    assert_eq!(
        bench.ask_again("a", "10.0.0.2", 51),
        [],
        "another request, the same push"
    );
    let push = bench.sent.last().unwrap().clone();
    let answers = bench.ack("b", &push);
    assert_eq!(answers.len(), 3, "the other prefix of b is told once");
    let replies = answers.iter().filter(|sent| !sent.is_notify());
    let nonces: Vec<_> = replies.map(|sent| sent.reply().nonce.0).collect();
    assert_eq!(nonces, [50, 51], "one acknowledgement answers both");
}

#[test]
fn a_request_after_the_acknowledgement_pushes_again() {
    let mut bench = registered();
    let push = bench.ask("a", "10.0.0.2");
    bench.ack("b", &push[0]);
    let again = bench.ask("a", "10.0.0.2");
    assert!(
        again[0].notify("b").0 > push[0].notify("b").0,
        "it heals an owner that has restarted"
    );
}

#[test]
fn who_asks_for_its_own_prefix_is_just_answered() {
    let mut bench = registered();
    assert_eq!(
        bench.ask("a", "10.0.0.1")[0].reply_records()[0].eid,
        eid("10.0.0.1")
    );
}

#[test]
fn owners_without_a_control_tunnel_get_no_push() {
    let mut bench = registered();
    register_gear(&mut bench);
    assert_eq!(
        bench.ask("a", "192.168.1.1")[0].reply_records()[0].eid,
        eid("192.168.0.0/16")
    );
}

#[test]
fn a_requester_without_a_registration_gets_an_answer_and_no_push() {
    let mut bench = Bench::new();
    bench.register("b", &own_records("b"));
    assert_eq!(
        bench.ask("a", "10.0.0.2")[0].reply_records()[0].eid,
        eid("10.0.0.2")
    );
}

#[test]
fn a_source_eid_of_somebody_else_is_not_pushed() {
    let mut bench = registered();
    let bytes = request(Some(ip("10.0.0.3")), &[control("a").ip()], &["10.0.0.2"], 1);
    let sent = bench.datagram(control("a"), Via::Tunnel, &bytes);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].reply_records()[0].eid, eid("10.0.0.2"));
}

#[test]
fn the_owner_of_every_eid_asked_for_is_told_before_the_reply() {
    let mut bench = registered();
    let eids = ["10.0.0.2", "fd00:1::2", "10.0.0.3"];
    let bytes = request(Some(ip("10.0.0.1")), &[control("a").ip()], &eids, 9);
    let pushes = bench.datagram(control("a"), Via::Tunnel, &bytes);
    assert_eq!(
        pushes.iter().map(|sent| sent.dst).collect::<Vec<_>>(),
        [control("b"), control("c")]
    );
    assert_eq!(bench.ack("b", &pushes[0]), [], "one is still missing");
    let reply = bench.ack("c", &pushes[1]);
    assert_eq!(reply[0].reply_records().len(), 3);
}

#[test]
fn a_push_goes_where_the_owner_registered_from() {
    let mut bench = registered();
    let register = bench.register_of("b", &own_records("b"));
    let elsewhere = socket("[fd4c:1::b]:40000");
    bench.datagram(elsewhere, Via::Tunnel, &register.bytes());
    assert_eq!(bench.ask("a", "10.0.0.2")[0].dst, elsewhere);
}

#[test]
fn an_acknowledgement_counts_only_from_its_receiver_and_with_its_key() {
    let mut bench = registered();
    let push = bench.ask("a", "10.0.0.2");
    let mut bytes = ack("b", &push[0]);
    let before = bench.server.fingerprint();
    assert_eq!(bench.datagram(control("c"), Via::Tunnel, &bytes), []);
    assert_eq!(bench.count(DropReason::UnexpectedAck), 1);
    assert_eq!(bench.datagram(control("b"), Via::Plain, &bytes), []);
    assert_eq!(bench.count(DropReason::UnknownSource), 1);
    let tag = 16;
    bytes[tag] ^= 1;
    assert_eq!(bench.datagram(control("b"), Via::Tunnel, &bytes), []);
    assert_eq!(bench.count(DropReason::BadAuthentication), 1);
    assert_eq!(bench.server.fingerprint(), before);
}

#[test]
fn a_push_is_repeated_with_growing_pauses_while_its_receiver_is_registered() {
    let mut bench = registered();
    bench.ask("a", "10.0.0.2");
    let mut times = Vec::new();
    while bench.count(DropReason::NotifyGivenUp) == 0 {
        let next = bench.server.next_deadline().unwrap();
        let sent = bench.wait(next - bench.now);
        if sent.iter().any(|sent| sent.dst == control("b")) {
            times.push(bench.now.0 / 1_000_000);
        }
    }
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (pause, expected) in pauses.iter().zip([400, 800, 1_600, 3_200, 5_000, 5_000]) {
        assert!(pause.abs_diff(expected) <= expected / 10, "{pauses:?}");
    }
    assert!(times.first().unwrap().abs_diff(200) <= 20);
    assert!(*times.last().unwrap() >= 170_000, "{times:?}");
    assert_eq!(bench.now.0 / 1_000_000_000, 180);
    let b = bench.server.sites.by_name(&"b".into()).unwrap();
    assert_eq!(bench.server.state.notifier.of_xtr(b), []);
}

#[test]
fn a_receiver_that_registers_again_is_told_at_once_what_it_missed() {
    let mut bench = registered();
    let first = bench.ask("a", "10.0.0.2");
    bench.wait(Duration::from_secs(100));
    let sent = bench.register("b", &own_records("b"));
    assert_eq!(sent.len(), 2, "the confirmation and the push");
    assert_eq!(sent[1].notify("b").1, first[0].notify("b").1);
    let soon = bench.wait(Duration::from_millis(250));
    let soon = soon.iter().filter(|sent| sent.dst == control("b"));
    assert_eq!(soon.count(), 1, "the pauses are short again");
    bench.ack("b", &sent[1]);
    assert_eq!(bench.register("b", &own_records("b")).len(), 1);
}

#[test]
fn a_push_that_has_just_left_is_not_repeated_for_a_registration() {
    let mut bench = registered();
    bench.ask("a", "10.0.0.2");
    assert_eq!(bench.register("b", &own_records("b")).len(), 1);
}

#[test]
fn any_transmission_may_be_acknowledged() {
    let mut bench = registered();
    let first = bench.ask("a", "10.0.0.2");
    let again = bench.wait(Duration::from_millis(250));
    assert_eq!(first[0].notify("b").1, again[0].notify("b").1);
    assert!(again[0].notify("b").0 > first[0].notify("b").0);
    assert_eq!(bench.ack("b", &first[0]).len(), 2, "the answer");
    assert_eq!(bench.ack("b", &again[0]), []);
    assert_eq!(bench.count(DropReason::UnexpectedAck), 1);
}

#[test]
fn an_owner_that_withdraws_while_a_reply_waits_makes_it_negative() {
    let mut bench = registered();
    bench.ask("a", "10.0.0.2");
    let sent = bench.register("b", &[empty("10.0.0.2", 0), empty("fd00:1::2", 0)]);
    let lines: Vec<_> = sent.iter().map(Sent::line).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[1].contains("fd4c:1::a") && lines[1].contains("Map-Notify"),
        "{lines:?}"
    );
    assert!(sent[2].reply_records()[0].locators.is_empty());
}

#[test]
fn news_takes_the_place_of_older_news() {
    let mut bench = registered();
    let first = bench.ask("a", "10.0.0.2");
    let moved = bench.register("a", &[record("10.0.0.1", "198.51.100.1:51820")]);
    let late = bench.wait(Duration::from_millis(250));
    let mut told: Vec<_> = late.iter().map(|sent| sent.notify("b").1).collect();
    told.sort();
    let news = record("10.0.0.1", "198.51.100.1:51820");
    assert_eq!(
        told,
        [vec![news], own_records("a")[1..].to_vec()],
        "what is no longer true is not repeated"
    );
    assert_eq!(
        bench.ack("b", &first[0]),
        [],
        "the reply waits for the newer push"
    );
    assert_eq!(bench.ack("b", &moved[1]).len(), 2);
}

#[test]
fn both_ends_hear_of_all_prefixes_of_the_other() {
    let mut bench = registered();
    let push = ask_v6(&mut bench);
    let [own, own_v6] = own_records("a");
    assert_eq!(
        push[0].notify("b").1,
        [own_v6, own],
        "the one that asks comes first"
    );
    let answer = bench.ack("b", &push[0]);
    assert_eq!(answer[0].reply_records(), own_records("b")[1..]);
    assert_eq!(
        answer[1].notify("a").1,
        own_records("b"),
        "the reply may be lost, this is repeated"
    );
    bench.ack("a", &answer[1]);
    for (mover, told, endpoint) in [("a", "b", "198.51.100.1:1"), ("b", "a", "198.51.100.2:1")] {
        let eids = own_records(mover).map(|record| record.eid.net().addr().to_string());
        let moved = eids.each_ref().map(|eid| record(eid, endpoint));
        let sent = bench.register(mover, &moved);
        assert_eq!(sent.len(), 2, "the confirmation, and one message of news");
        assert_eq!(sent[1].notify(told).1, moved);
    }
}

#[test]
fn another_prefix_of_a_pair_that_is_being_told_leads_to_no_other_push() {
    let mut bench = registered();
    let push = bench.ask("a", "10.0.0.2");
    assert_eq!(ask_v6(&mut bench), []);
    let answers = bench.ack("b", &push[0]);
    let replies = answers.iter().filter(|sent| !sent.is_notify());
    assert_eq!(replies.count(), 2);
}

#[test]
fn a_reply_waits_for_all_that_its_push_has_become() {
    let mut bench = registered();
    let first = bench.ask("a", "10.0.0.2");
    let moved = bench.register("a", &[record("10.0.0.1", "198.51.100.1:51820")]);
    assert_eq!(bench.ack("b", &moved[1]), [], "the IPv6 prefix is missing");
    assert_eq!(bench.ack("b", &first[0]).len(), 2);
}

#[test]
fn changes_that_a_silent_owner_is_not_told_of_do_not_pile_up() {
    let mut bench = registered();
    bench.ask("a", "10.0.0.2");
    let waiting = |bench: &Bench| {
        let b = bench.server.sites.by_name(&"b".into()).unwrap();
        let notifier = &bench.server.state.notifier;
        let told = notifier.of_xtr(b).into_iter();
        told.map(|key| notifier.get(&key).unwrap().waiting.len())
            .sum::<usize>()
    };
    assert_eq!(waiting(&bench), 1);
    for n in 1..=100 {
        let endpoint = format!("198.51.100.{n}:51820");
        let own = ["10.0.0.1", "fd00:1::1"].map(|eid| record(eid, &endpoint));
        bench.register("a", &own);
        assert_eq!(waiting(&bench), 1, "after {n} changes");
    }
    bench.wait(Duration::from_secs(1));
    assert_eq!(waiting(&bench), 0, "it was answered without");
    let again = bench.ask("a", "10.0.0.2");
    assert_eq!((again.len(), waiting(&bench)), (0, 1));
    let last = bench.sent.iter().rfind(|sent| sent.dst == control("b"));
    let last = last.unwrap().clone();
    let answer = bench.ack("b", &last);
    assert!(!answer[0].is_notify(), "the Map-Reply has waited for it");
}

#[test]
fn events_tell_the_story_in_order() {
    let mut bench = registered();
    bench.events.clear();
    bench.pair("a", "b", "10.0.0.2");
    let (a, b) = (|| "a".into(), || "b".into());
    let (own, wanted) = (eid("10.0.0.1"), eid("10.0.0.2"));
    let (own_v6, other) = (eid("fd00:1::1"), eid("fd00:1::2"));
    let story = [
        Event::Request {
            xtr: Some(a()),
            eid: wanted,
        },
        Event::Push { to: b(), eid: own },
        Event::Push {
            to: b(),
            eid: own_v6,
        },
        Event::PushAcked {
            from: b(),
            eid: own,
        },
        Event::PushAcked {
            from: b(),
            eid: own_v6,
        },
        Event::Reply {
            xtr: Some(a()),
            eid: wanted,
        },
        Event::Push {
            to: a(),
            eid: wanted,
        },
        Event::Push {
            to: a(),
            eid: other,
        },
        Event::PushAcked {
            from: a(),
            eid: wanted,
        },
        Event::PushAcked {
            from: a(),
            eid: other,
        },
    ];
    assert_eq!(bench.events, story);
}

fn registered() -> Bench {
    let mut bench = Bench::new();
    bench.register_all();
    bench
}

/// Lets a ask for the IPv6 EID of b, from its own.
fn ask_v6(bench: &mut Bench) -> Vec<Sent> {
    let nonce = bench.nonce();
    let itr = [control("a").ip()];
    let bytes = request(Some(ip("fd00:1::1")), &itr, &["fd00:1::2"], nonce);
    bench.datagram(control("a"), Via::Tunnel, &bytes)
}

fn register_gear(bench: &mut Bench) {
    let register = bench.register_of("gear", &[plain_record("192.168.0.0/16", "192.0.2.200")]);
    bench.datagram(socket("192.0.2.200:4342"), Via::Plain, &register.bytes());
}
