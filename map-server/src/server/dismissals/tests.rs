//! An owner that was away forgets the clients that have left it, whatever it believes.

use std::time::Duration;

use crate::server::bench::{Bench, Sent, control, ip, request};
use crate::server::proxies::{
    acknowledge, acknowledge_all, all_registered, clients_and_proxies, connect, default_routes,
    owner, share, told,
};
use crate::server::{DropReason, Via, limits};

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
    for notify in sent.iter().filter(|sent| sent.is_notify()) {
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
    assert_eq!(bench.server.state.dismissals.len(), 0);
    let mut news = told(&bench.sent[before..]);
    news.retain(|line| line.starts_with("d: 10.0.0.1/32"));
    assert_eq!(news.last().unwrap(), "d: 10.0.0.1/32 at 192.0.2.1");
}

#[test]
fn who_has_withdrawn_everything_has_nothing_to_forget() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    withdraw(&mut bench, "d");
    acknowledge_all(&mut bench);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
    assert_eq!(bench.server.state.dismissals.len(), 0);
    assert_eq!(to_forget(&back(&mut bench, "d")), [""; 0]);
}

#[test]
fn what_there_is_no_room_for_is_counted() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let d = bench.server.sites.by_name(&"d".into()).unwrap();
    let dismissals = &mut bench.server.state.dismissals;
    for number in 0..limits::DISMISSALS {
        let [_, high, middle, low] = u32::try_from(number).unwrap().to_be_bytes();
        let address = std::net::IpAddr::from([11, high, middle, low]);
        let eid = lisp_proto::EidPrefix::host(Default::default(), address);
        assert_eq!(dismissals.add(d, eid), Ok(true));
    }
    withdraw_all_but_say_nothing(&mut bench);
    assert_eq!(bench.count(DropReason::DismissalOverflow), 2);
    assert_eq!(bench.server.state.dismissals.len(), limits::DISMISSALS);
    let told = to_forget(&back(&mut bench, "d")).len();
    assert_eq!(told, limits::DISMISSED_AT_ONCE, "a part at a time");
}

/// Client a was with d when that died, and is with e now.
fn left_by_a_while_dead() -> Bench {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
    withdraw_all_but_say_nothing(&mut bench);
    bench
}

/// The registration of d runs out; the others stay.
fn withdraw_all_but_say_nothing(bench: &mut Bench) {
    for _ in 0..4 {
        bench.wait(Duration::from_secs(60));
        bench.register_all();
        for (name, priority) in [("e", 2), ("f", 3)] {
            share(bench, name, &default_routes(name, priority, 100));
        }
        acknowledge(bench, |name| name != "d");
    }
}

/// A proxy registers what it shares. It has no address of its own, which clients would hear of
/// because it lies within what they use: then the two need each other.
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
