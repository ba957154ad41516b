//! Who is told what after asking to be told (RFC 9437).

mod refusals;
mod schedules;

use std::time::Duration;

use lisp_proto::{RequestFlags, RequestParams, RequestedEid, SiteId, XtrId, encode_map_request};

use super::*;
use crate::config::Options;
use crate::server::Via;
use crate::server::bench::{
    Bench, Sent, control, eid, empty, own_records, plain_record, record, socket,
};
use crate::server::publish::parcels as parcels_of;

const IDS: XtrIds = (XtrId([7; 16]), SiteId([1; 8]));

/// A Map-Request of a test.
#[derive(Clone, Debug)]
struct Ask {
    eids: Vec<&'static str>,
    nonce: u64,
    ids: Option<XtrIds>,
    ends: bool,
}

#[test]
fn a_subscription_is_answered_by_a_map_notify_once_the_owner_knows_the_subscriber() {
    let mut bench = registered();
    let push = subscribe(&mut bench, &["10.0.0.2"], 500);
    assert_eq!(push.len(), 1);
    assert_eq!(push[0].notify("b").1, own_records("a"));
    let answer = bench.ack("b", &push[0]);
    assert_eq!(answer[0].dst, control("a"));
    assert_eq!(answer[0].notify("a").0, Nonce(500), "that of the request");
    assert_eq!(answer[0].notify("a").1, own_records("b")[..1]);
    assert_eq!(answer[1].notify("a").1, own_records("b")[1..]);
    assert!(answer[1].notify("a").0 > Nonce(500));
}

#[test]
fn the_answer_is_repeated_with_the_nonce_of_the_request_until_acknowledged() {
    let mut bench = registered();
    let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 500);
    let again = told("a", &bench.wait(Duration::from_millis(700)));
    assert_eq!(again, [(500, names(&answer)), (500, names(&answer))]);
    bench.ack("a", &answer);
    assert_eq!(told("a", &bench.wait(Duration::from_secs(60))), []);
}

#[test]
fn what_is_published_has_growing_nonces_above_that_of_the_subscription() {
    let mut bench = registered();
    let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 1 << 40);
    bench.ack("a", &answer);
    let mut last = Nonce(1 << 40);
    for port in 1..5 {
        let moved = record("10.0.0.2", &format!("198.51.100.1:{port}"));
        let sent = bench.register("b", std::slice::from_ref(&moved));
        let (nonce, records) = sent[1].notify("a");
        assert_eq!(records, [moved]);
        assert!(nonce > last);
        last = nonce;
    }
}

#[test]
fn an_answer_that_could_be_overtaken_is_followed_by_the_same_with_a_fresh_nonce() {
    let mut bench = registered();
    bench.pair("a", "b", "10.0.0.2");
    let push = subscribe(&mut bench, &["10.0.0.2"], 1);
    let sent = bench.ack("b", &push[0]);
    assert_eq!(sent[0].notify("a").0, Nonce(1));
    assert!(sent[1].notify("a").0 > Nonce(1));
    assert_eq!(sent[0].notify("a").1, sent[1].notify("a").1);
}

#[test]
fn a_publication_that_is_lost_is_repeated_with_a_new_nonce_until_acknowledged() {
    let mut bench = registered();
    let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 500);
    bench.ack("a", &answer);
    let sent = bench.register("b", &[record("10.0.0.2", "198.51.100.1:1")]);
    let again = bench.wait(Duration::from_millis(250));
    assert_eq!(again[0].notify("a").1, sent[1].notify("a").1);
    assert!(again[0].notify("a").0 > sent[1].notify("a").0);
    bench.ack("a", &sent[1]);
    assert_eq!(told("a", &bench.wait(Duration::from_secs(60))), []);
}

#[test]
fn what_a_subscriber_could_not_tell_from_something_old_it_hears_when_it_subscribes_again() {
    let mut bench = registered();
    let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 500);
    bench.ack("a", &answer);
    let moved = record("10.0.0.2", "198.51.100.1:1");
    bench.register("b", std::slice::from_ref(&moved));
    bench.wait(Duration::from_millis(250));
    let renewed = told("a", &subscribe(&mut bench, &["10.0.0.2"], 1 << 40));
    assert_eq!(renewed, [((1 << 40) + 1, vec![moved])]);
}

#[test]
fn a_withdrawal_and_an_expiry_are_published_with_ttl_0() {
    for expires in [false, true] {
        let mut bench = registered();
        let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 500);
        bench.ack("a", &answer);
        let sent = match expires {
            true => pass(&mut bench, Duration::from_secs(200)),
            false => bench.register("b", &[empty("10.0.0.2", 0)]),
        };
        let news = told("a", &sent);
        assert_eq!(news[0].1[0], empty("10.0.0.2", 0));
    }
}

#[test]
fn more_specific_prefixes_are_published_when_they_come_and_go() {
    let mut bench = registered();
    register_gear(&mut bench, &[plain_record("192.168.0.0/16", "192.0.2.9")]);
    let answer = subscribed(&mut bench, "a", &["192.168.0.0/16"], 500);
    assert_eq!(
        answer.notify("a").1,
        [plain_record("192.168.0.0/16", "192.0.2.9")]
    );
    bench.ack("a", &answer);
    let inside = plain_record("192.168.1.0/24", "192.0.2.8");
    let sent = register_gear(&mut bench, std::slice::from_ref(&inside));
    assert_eq!(sent[1].notify("a").1, [inside]);
    bench.ack("a", &sent[1]);
    let sent = register_gear(&mut bench, &[empty("192.168.1.0/24", 0)]);
    assert_eq!(sent[1].notify("a").1, [empty("192.168.1.0/24", 0)]);
}

#[test]
fn the_answer_is_cut_to_what_was_asked_for_and_follows_what_covers_it() {
    let mut bench = registered();
    register_gear(&mut bench, &[plain_record("192.168.0.0/16", "192.0.2.9")]);
    let answer = subscribed(&mut bench, "a", &["192.168.1.0/24"], 500);
    assert_eq!(
        answer.notify("a").1,
        [plain_record("192.168.1.0/24", "192.0.2.9")]
    );
    bench.ack("a", &answer);
    let sent = register_gear(&mut bench, &[plain_record("192.168.0.0/16", "192.0.2.8")]);
    assert_eq!(
        sent[1].notify("a").1,
        [plain_record("192.168.1.0/24", "192.0.2.8")]
    );
}

#[test]
fn a_wide_subscription_is_answered_with_all_that_is_inside_and_all_owners_are_told() {
    let mut bench = registered();
    let pushes = subscribe(&mut bench, &["fd00:1::/64"], 500);
    let to: Vec<_> = pushes.iter().map(|sent| sent.dst).collect();
    assert_eq!(to, [control("b"), control("c")]);
    assert_eq!(bench.ack("b", &pushes[0]), []);
    let answer = bench.ack("c", &pushes[1]);
    let records = answer[0].notify("a").1;
    assert_eq!(
        (records[0].eid, records[0].locators.len()),
        (eid("fd00:1::/64"), 0)
    );
    let inside = ["a", "b", "c"].map(|name| own_records(name)[1].clone());
    assert_eq!(records[1..], inside);
    let others = ["b", "c"].map(|name| own_records(name)[0].clone());
    assert_eq!(answer[1].notify("a").1, others, "what else they have");
}

#[test]
fn what_nobody_has_registered_is_told_as_a_hole_and_published_when_it_is() {
    let mut bench = Bench::new();
    bench.register("a", &own_records("a"));
    let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 500);
    let line = answer.line();
    assert!(
        line.ends_with("Map-Notify, 10.0.0.2/32 for 1 min drop"),
        "{line}"
    );
    bench.ack("a", &answer);
    let sent = bench.register("b", &own_records("b"));
    assert_eq!(sent[1].notify("b").1, own_records("a"), "the far end first");
    assert_eq!(bench.ack("b", &sent[1])[0].notify("a").1, own_records("b"));
}

#[test]
fn an_unknown_prefix_is_told_as_the_hole_around_it() {
    let mut bench = registered();
    let answer = subscribed(&mut bench, "a", &["172.16.0.1"], 500);
    let line = answer.line();
    assert!(
        line.ends_with("Map-Notify, 128.0.0.0/2 for 15 min drop"),
        "{line}"
    );
}

#[test]
fn a_subscription_to_nothing_lasts_for_a_quarter_of_an_hour_unless_renewed() {
    for renewed in [false, true] {
        let mut bench = Bench::new();
        bench.register("a", &own_records("a"));
        let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 500);
        bench.ack("a", &answer);
        pass(&mut bench, Duration::from_secs(600));
        if renewed {
            let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 501);
            bench.ack("a", &answer);
        }
        pass(&mut bench, Duration::from_secs(400));
        bench.register("b", &own_records("b"));
        let sent = bench.wait(Duration::from_secs(1));
        assert_eq!(told("a", &sent).is_empty(), !renewed);
    }
}

#[test]
fn a_subscription_to_a_mapping_outlasts_its_ttl() {
    let mut bench = registered();
    let short = Record {
        ttl: lisp_proto::Ttl::from_minutes(1),
        ..own_records("b")[0].clone()
    };
    bench.register("b", std::slice::from_ref(&short));
    let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 500);
    bench.ack("a", &answer);
    for _ in 0..40 {
        bench.register("a", &own_records("a"));
        bench.register("b", std::slice::from_ref(&short));
        bench.wait(Duration::from_secs(60));
    }
    let sent = bench.register("b", &[empty("10.0.0.2", 0)]);
    assert_eq!(told("a", &sent).len(), 1);
}

#[test]
fn who_unsubscribes_is_answered_and_told_nothing_more() {
    let mut bench = registered();
    register_gear(&mut bench, &[plain_record("192.168.0.0/16", "192.0.2.9")]);
    let answer = subscribed(&mut bench, "a", &["192.168.0.0/16"], 500);
    bench.ack("a", &answer);
    for nonce in [501, 502] {
        let sent = unsubscribe(&mut bench, &["192.168.0.0/16"], nonce);
        assert_eq!(sent.len(), 1, "also when there is nothing to end");
        assert_eq!(
            told("a", &sent),
            [(nonce, vec![empty("192.168.0.0/16", 0)])]
        );
        bench.ack("a", &sent[0]);
    }
    let sent = register_gear(&mut bench, &[plain_record("192.168.0.0/16", "192.0.2.8")]);
    assert_eq!(told("a", &sent), []);
}

#[test]
fn what_was_published_before_the_end_of_a_subscription_is_not_repeated_after_it() {
    let mut bench = registered();
    register_gear(&mut bench, &[plain_record("192.168.0.0/16", "192.0.2.9")]);
    let answer = subscribed(&mut bench, "a", &["192.168.0.0/16"], 500);
    bench.ack("a", &answer);
    register_gear(&mut bench, &[plain_record("192.168.0.0/16", "192.0.2.8")]);
    let sent = unsubscribe(&mut bench, &["192.168.0.0/16"], 501);
    bench.ack("a", &sent[0]);
    assert_eq!(told("a", &bench.wait(Duration::from_secs(60))), []);
}

#[test]
fn who_unsubscribes_while_its_answer_waits_gets_the_last_answer_only() {
    let mut bench = registered();
    let push = subscribe(&mut bench, &["10.0.0.2"], 500);
    let sent = unsubscribe(&mut bench, &["10.0.0.2"], 501);
    assert_eq!(told("a", &sent), [(501, vec![empty("10.0.0.2", 0)])]);
    bench.ack("a", &sent[0]);
    let later = told("a", &bench.ack("b", &push[0]));
    assert!(later.iter().all(|(nonce, _)| *nonce != 500), "{later:?}");
}

#[test]
fn who_has_withdrawn_everything_may_still_unsubscribe() {
    let mut bench = registered();
    bench.register("a", &[empty("10.0.0.1", 0), empty("fd00:1::1", 0)]);
    assert_eq!(unsubscribe(&mut bench, &["10.0.0.2"], 500).len(), 1);
    let again = told("a", &bench.wait(Duration::from_secs(60)));
    assert_eq!(again, [], "it may be gone");
}

#[test]
fn subscriptions_end_with_the_registration_of_the_subscriber() {
    let mut bench = registered();
    register_gear(&mut bench, &[plain_record("192.168.0.0/16", "192.0.2.9")]);
    let answer = subscribed(&mut bench, "a", &["192.168.0.0/16"], 500);
    bench.ack("a", &answer);
    bench.register("a", &[empty("10.0.0.1", 0), empty("fd00:1::1", 0)]);
    bench.register("a", &own_records("a"));
    let sent = register_gear(&mut bench, &[plain_record("192.168.0.0/16", "192.0.2.8")]);
    assert_eq!(told("a", &sent), []);
}

#[test]
fn a_subscriber_that_acknowledges_nothing_is_told_so_and_dropped() {
    let mut bench = registered();
    let answer = subscribed(&mut bench, "a", &["10.0.0.2"], 500);
    bench.ack("a", &answer);
    let [_, v6] = own_records("b");
    let mut sent = Vec::new();
    for _ in 0..4 {
        let moved = record("10.0.0.2", "198.51.100.1:1");
        sent.extend(bench.register("b", &[moved, v6.clone()]));
        sent.extend(pass(&mut bench, Duration::from_secs(50)));
    }
    let told_before = told("a", &sent);
    let (nonce, records) = told_before.last().unwrap();
    assert_eq!(records[0].eid, eid("10.0.0.2"));
    assert_eq!(records[0].action, NegativeAction::AuthFailure);
    let with_nonce = told_before.iter().filter(|(other, _)| other == nonce);
    assert_eq!(with_nonce.count(), 2, "it has the nonce of the one before");
    assert_eq!(bench.count(DropReason::NotifyGivenUp), 1);
    let sent = bench.register("b", &[record("10.0.0.2", "198.51.100.1:2"), v6]);
    assert_eq!(told("a", &sent), []);
}

#[test]
fn a_long_answer_comes_in_several_map_notifies_of_which_the_first_has_the_nonce() {
    let mut bench = registered();
    let many = (0..40).map(|n| plain_record(&format!("192.168.{n}.0/24"), "192.0.2.9"));
    let many: Vec<_> = many.collect();
    for some in many.chunks(20) {
        register_gear(&mut bench, some);
    }
    let sent = subscribe(&mut bench, &["192.168.0.0/16"], 500);
    let told = told("a", &sent);
    assert!(told.len() > 1 && told.iter().skip(1).all(|(nonce, _)| *nonce > 500));
    assert_eq!(told[0].0, 500);
    let records: Vec<_> = told.into_iter().flat_map(|(_, records)| records).collect();
    assert_eq!(records[1..], many);
    assert_eq!(parcels_of(records).len(), sent.len());
}

fn registered() -> Bench {
    let mut bench = Bench::new();
    bench.register_all();
    bench
}

fn asking(eids: &[&'static str], nonce: u64) -> Ask {
    Ask {
        eids: eids.to_vec(),
        nonce,
        ids: Some(IDS),
        ends: false,
    }
}

impl Ask {
    /// As the agent called `name` sends it.
    fn bytes(&self, name: &str) -> Vec<u8> {
        self.bytes_from(control(name).ip())
    }

    fn bytes_from(&self, itr_rloc: std::net::IpAddr) -> Vec<u8> {
        let requested = |text: &&str| RequestedEid {
            subscribe: true,
            eid: eid(text),
        };
        let params = RequestParams {
            flags: RequestFlags::default(),
            nonce: Nonce(self.nonce),
            source_eid: Some((Default::default(), own_records("a")[0].eid.net().addr())),
            itr_rlocs: if self.ends { &[] } else { &[itr_rloc] },
            eids: &self.eids.iter().map(requested).collect::<Vec<_>>(),
            source_record: None,
            gap: None,
            ids: self.ids,
        };
        let mut bytes = Vec::new();
        encode_map_request(&params, &mut bytes).unwrap();
        bytes
    }
}

/// Sends a subscription of a.
fn subscribe(bench: &mut Bench, eids: &[&'static str], nonce: u64) -> Vec<Sent> {
    let bytes = asking(eids, nonce).bytes("a");
    bench.datagram(control("a"), Via::Tunnel, &bytes)
}

/// Sends the end of a subscription of a.
fn unsubscribe(bench: &mut Bench, eids: &[&'static str], nonce: u64) -> Vec<Sent> {
    let ask = Ask {
        ends: true,
        ..asking(eids, nonce)
    };
    bench.datagram(control("a"), Via::Tunnel, &ask.bytes("a"))
}

/// Subscribes `name`, which is a, lets the owners acknowledge, and returns the answer.
fn subscribed(bench: &mut Bench, name: &str, eids: &[&'static str], nonce: u64) -> Sent {
    let mut sent = subscribe(bench, eids, nonce);
    for owner in ["b", "c"] {
        let pushes: Vec<_> = sent
            .iter()
            .filter(|sent| sent.dst == control(owner))
            .cloned()
            .collect();
        for push in pushes {
            sent.extend(bench.ack(owner, &push));
        }
    }
    let to_subscriber: Vec<_> = sent
        .into_iter()
        .filter(|sent| sent.dst == control(name))
        .collect();
    for rest in to_subscriber.iter().skip(1) {
        bench.ack(name, rest);
    }
    to_subscriber.into_iter().next().expect("an answer")
}

/// Lets time pass in which a stays registered, and acknowledges nothing.
fn pass(bench: &mut Bench, span: Duration) -> Vec<Sent> {
    let mut sent = Vec::new();
    let end = bench.now + span;
    while bench.now < end {
        let news = bench.register("a", &own_records("a"));
        sent.extend(news.into_iter().skip(1));
        sent.extend(bench.wait(Duration::from_secs(50).min(end - bench.now)));
    }
    sent
}

/// Returns nonces and records of the Map-Notifies to `name`.
fn told(name: &str, sent: &[Sent]) -> Vec<(u64, Vec<Record>)> {
    let sent = sent
        .iter()
        .filter(|sent| sent.dst == control(name) && sent.is_notify());
    let told = sent.map(|sent| sent.notify(name));
    told.map(|(nonce, records)| (nonce.0, records)).collect()
}

fn names(sent: &Sent) -> Vec<Record> {
    sent.notify("a").1
}

fn register_gear(bench: &mut Bench, records: &[Record]) -> Vec<Sent> {
    let register = bench.register_of("gear", records);
    bench.datagram(socket("192.0.2.200:4342"), Via::Plain, &register.bytes())
}
