//! An owner that was away forgets the clients that have left it, whatever it believes.

use std::time::Duration;

use crate::server::bench::{Bench, Sent, control, ip, record, request};
use crate::server::proxies::{
    acknowledge, acknowledge_all, all_registered, clients_and_proxies, connect, default_routes,
    endpoint, name_of, own_address, owner, share, told,
};
use crate::server::{DropReason, Via, limits};
use crate::store_event::StoreEvent;

const DEFAULT: &str = "0.0.0.0/0";
const FORGOTTEN: [&str; 2] = ["d: 10.0.0.1/32 at nowhere", "d: fd00:1::1/128 at nowhere"];

#[test]
fn an_owner_whose_registration_has_run_out_is_told_when_it_is_back() {
    let mut bench = left_by_a_while_dead();
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
    assert_eq!(bench.server.state.dismissals.len(), 2);
    let sent = back(&mut bench, "d");
    assert_eq!(to_forget(&sent), FORGOTTEN);
    acknowledge_all(&mut bench);
    assert_eq!(bench.server.state.dismissals.len(), 0);
    assert_eq!(to_forget(&back(&mut bench, "d")), [""; 0], "told once");
}

#[test]
fn a_map_server_that_has_restarted_still_knows_whom_to_tell() {
    let bench = left_by_a_while_dead();
    let mut bench = bench.restart_as(clients_and_proxies());
    assert_eq!(to_forget(&back(&mut bench, "d")), FORGOTTEN);
    acknowledge_all(&mut bench);
    let mut bench = bench.restart_as(clients_and_proxies());
    assert_eq!(
        to_forget(&back(&mut bench, "d")),
        [""; 0],
        "it has forgotten"
    );
}

#[test]
fn it_gets_no_answer_about_a_client_that_has_left_it_before_it_has_acknowledged_that() {
    let mut bench = left_by_a_while_dead();
    let sent = back(&mut bench, "d");
    assert_eq!(told(&ask_for_a(&mut bench)), [""; 0]);
    assert_eq!(bench.count(DropReason::Dismissed), 1);
    let to_d = |sent: &&Sent| sent.is_notify() && name_of(sent) == "d";
    for notify in sent.iter().filter(to_d) {
        bench.ack("d", notify);
    }
    let before = bench.sent.len();
    ask_for_a(&mut bench);
    acknowledge_all(&mut bench);
    let news = told(&bench.sent[before..]);
    let answer = "d: 10.0.0.1/32 at 192.0.2.1".to_owned();
    assert!(news.contains(&answer), "it needs the client: {news:?}");
}

#[test]
fn an_owner_that_gets_its_client_back_is_not_told_to_forget_it() {
    let mut bench = left_by_a_while_dead();
    for name in ["e", "f"] {
        withdraw(&mut bench, name);
    }
    assert_eq!(owner(&bench, DEFAULT, "a"), None);
    let before = bench.sent.len();
    back(&mut bench, "d");
    connect(&mut bench, "a");
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
    assert_eq!(dismissed(&bench, "d"), 0);
    let mut news = told(&bench.sent[before..]);
    news.retain(|line| line.starts_with("d: 10.0.0.1/32"));
    assert_eq!(news.last().unwrap(), "d: 10.0.0.1/32 at 192.0.2.1");
}

#[test]
fn an_owner_that_was_the_only_one_is_told_as_well_when_it_is_back_too_late() {
    let mut bench = all_registered();
    for name in ["e", "f"] {
        withdraw(&mut bench, name);
    }
    connect(&mut bench, "a");
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
    pass_without(&mut bench, &["d", "e", "f"]);
    assert_eq!(owner(&bench, DEFAULT, "a"), None);
    assert_eq!(dismissed(&bench, "d"), 2);
    back(&mut bench, "e");
    connect(&mut bench, "a");
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
    assert_eq!(to_forget(&back(&mut bench, "d")), FORGOTTEN);
}

#[test]
fn an_owner_that_has_said_goodbye_may_still_know_its_clients_and_is_told() {
    let mut bench = left_by_a_while_dead();
    back(&mut bench, "d");
    withdraw(&mut bench, "d");
    assert_eq!(dismissed(&bench, "d"), 2, "nothing was acknowledged");
    assert_eq!(to_forget(&back(&mut bench, "d")), FORGOTTEN);
    acknowledge_all(&mut bench);
    assert_eq!(dismissed(&bench, "d"), 0);
}

#[test]
fn an_owner_that_is_back_with_an_address_of_its_own_is_a_far_end_and_no_more() {
    let mut bench = left_by_a_while_dead();
    let mut records = default_routes("d", 1, 100).to_vec();
    records.push(record(own_address("d"), endpoint("d")));
    let before = bench.sent.len();
    share(&mut bench, "d", &records);
    acknowledge_all(&mut bench);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
    let mut news = told(&bench.sent[before..]);
    news.retain(|line| line.starts_with("a: ") && line.ends_with("192.0.2.4"));
    news.dedup();
    assert_eq!(
        news,
        [format!("a: {}/32 at 192.0.2.4", own_address("d"))],
        "what a uses e for stays there"
    );
    assert_eq!(dismissed(&bench, "d"), 0, "it has to know a");
}

#[test]
fn after_two_days_nobody_has_to_be_told() {
    let mut bench = left_by_a_while_dead();
    bench.wait(limits::DISMISSAL_LIFETIME);
    assert_eq!(dismissed(&bench, "d"), 0);
    let bench = bench.restart_as(clients_and_proxies());
    assert_eq!(dismissed(&bench, "d"), 0, "nor after a restart");
}

#[test]
fn a_map_server_that_restarts_now_and_then_does_not_remember_it_for_longer() {
    let mut bench = left_by_a_while_dead();
    for left in [2, 0] {
        bench.wait(limits::DISMISSAL_LIFETIME * 2 / 3);
        bench.stored = bench.server.snapshot(bench.now).collect();
        bench = bench.restart_as(clients_and_proxies());
        assert_eq!(dismissed(&bench, "d"), left);
    }
}

#[test]
fn what_there_is_no_room_for_is_counted_and_one_that_is_dead_leaves_room_for_others() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let d = bench.server.sites.by_name(&"d".into()).unwrap();
    let until = bench.now + limits::DISMISSAL_LIFETIME;
    let dismissals = &mut bench.server.state.dismissals;
    for number in 0..limits::DISMISSALS_PER_OWNER {
        let [_, high, middle, low] = u32::try_from(number).unwrap().to_be_bytes();
        let address = std::net::IpAddr::from([11, high, middle, low]);
        let eid = lisp_proto::EidPrefix::host(Default::default(), address);
        assert_eq!(dismissals.add(d, eid, until), Ok(()));
    }
    pass_without(&mut bench, &["d"]);
    assert_eq!(bench.count(DropReason::DismissalOverflow), 2);
    pass_without(&mut bench, &["d", "e"]);
    assert_eq!(dismissed(&bench, "e"), 2);
    let facts = bench.server.dismissal_facts(bench.now);
    let largest = facts.map(|fact| {
        let StoreEvent::Dismissed { eids, .. } = &fact else {
            panic!("{fact:?}");
        };
        eids.len()
    });
    assert_eq!(largest.max(), Some(limits::DISMISSALS_PER_FACT));
    back(&mut bench, "d");
    bench.wait(Duration::from_millis(50));
    let told: std::collections::BTreeSet<_> = to_forget(&bench.sent).into_iter().collect();
    assert_eq!(told.len(), limits::DISMISSED_AT_ONCE, "a part at a time");
}

/// Client a was with d when that died, and is with e now.
fn left_by_a_while_dead() -> Bench {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
    pass_without(&mut bench, &["d"]);
    bench
}

/// The registrations of these run out; the others stay.
fn pass_without(bench: &mut Bench, dead: &[&str]) {
    for _ in 0..4 {
        bench.wait(Duration::from_secs(60));
        bench.register_all();
        for (name, priority) in [("d", 1), ("e", 2), ("f", 3)] {
            if !dead.contains(&name) {
                share(bench, name, &default_routes(name, priority, 100));
            }
        }
        acknowledge(bench, |name| !dead.contains(&name));
    }
}

/// How many prefixes a proxy is to forget.
fn dismissed(bench: &Bench, name: &str) -> usize {
    let xtr = bench.server.sites.by_name(&name.into()).unwrap();
    bench.server.state.dismissals.of(xtr).count()
}

/// A proxy registers what it shares. It has no address of its own, of which clients would hear because
/// it lies within what they use.
fn back(bench: &mut Bench, name: &str) -> Vec<Sent> {
    share(bench, name, &default_routes(name, 1, 100))
}

/// A proxy withdraws all that it has registered.
fn withdraw(bench: &mut Bench, name: &str) {
    let mut records = default_routes(name, 1, 100);
    for record in &mut records {
        record.ttl = lisp_proto::Ttl::WITHDRAW;
        record.locators.clear();
    }
    share(bench, name, &records);
}

/// d has a packet for a, or believes so.
fn ask_for_a(bench: &mut Bench) -> Vec<Sent> {
    let source = Some(ip("9.9.9.9"));
    let nonce = 20_000 + bench.sent.len() as u64;
    let bytes = request(source, &[control("d").ip()], &["10.0.0.1"], nonce);
    bench.datagram(control("d"), Via::Tunnel, &bytes)
}

/// What d is told to forget.
fn to_forget(sent: &[Sent]) -> Vec<String> {
    let mut lines = told(sent);
    lines.retain(|line| line.starts_with("d: ") && line.ends_with(" at nowhere"));
    lines
}
