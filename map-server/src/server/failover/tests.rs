//! A client that cannot use its owner gets another one, and nobody else does.

use std::time::Duration;

use lisp_proto::{
    Gap, Locator, Nonce, Record, RequestParams, RequestedEid, Ttl, encode_map_request,
};

use crate::server::bench::{Bench, Sent, control, eid, empty, ip, own_records};
use crate::server::proxies::{
    acknowledge, acknowledge_all, all_registered, clients_and_proxies, connect, default_routes,
    locators, owner, share, told,
};
use crate::server::{DropReason, Event, Via, limits};

const DEFAULT: &str = "0.0.0.0/0";

#[test]
fn a_client_that_cannot_reach_its_owner_gets_the_next_one_which_hears_of_it_first() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let sent = cannot_reach(&mut bench, "a", &["d"]);
    let first = [
        "e: 10.0.0.1/32 at 192.0.2.1",
        "e: fd00:1::1/128 at 192.0.2.1",
    ];
    assert_eq!(told(&sent), first);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
    let answer = bench.ack("e", &sent[0]);
    let mut lines = told(&answer);
    lines.retain(|line| line.starts_with("a: 0.0.0.0/0"));
    assert_eq!(
        lines, ["a: 0.0.0.0/0 at 192.0.2.5"; 2],
        "the answer, and the news that it must acknowledge"
    );
    let reply = answer.iter().find(|sent| !sent.is_notify()).unwrap();
    let places = ["192.0.2.5", "192.0.2.4", "192.0.2.6"];
    let told: Vec<_> = locators(&reply.reply_records()[0]);
    let told: Vec<_> = told.into_iter().map(|(place, _)| place).collect();
    assert_eq!(told, places, "it learns of all of them");
    let moved = bench.events.iter().filter(|event| {
        matches!(event, Event::FailedOver { client, from, to, .. }
            if &**client == "a" && &**from == "d" && &**to == "e")
    });
    assert_eq!(moved.count(), 1);
}

#[test]
fn everything_that_it_used_that_owner_for_moves_with_it() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    bench.ask("a", "2001:db8::8");
    acknowledge_all(&mut bench);
    let start = bench.sent.len();
    cannot_reach(&mut bench, "a", &["d"]);
    acknowledge(&mut bench, |name| name == "e");
    for prefix in [DEFAULT, "::/0"] {
        assert_eq!(owner(&bench, prefix, "a").unwrap(), "e");
        let news = told(&bench.sent[start..]);
        assert!(
            news.contains(&format!("a: {prefix} at 192.0.2.5")),
            "{news:?}"
        );
    }
}

/// Where one takes over what it has asked for, and another one the rest.
#[test]
fn each_new_owner_hears_of_the_client_before_the_client_hears_of_it() {
    let mut bench = all_registered();
    for (name, priority, family) in [("f", 3, 0), ("e", 2, 1)] {
        let gone = Record {
            ttl: Ttl::WITHDRAW,
            locators: Vec::new(),
            ..default_routes(name, priority, 100)[family].clone()
        };
        share(&mut bench, name, &[gone]);
    }
    acknowledge_all(&mut bench);
    connect(&mut bench, "a");
    bench.ask("a", "2001:db8::8");
    acknowledge_all(&mut bench);
    let start = bench.sent.len();
    cannot_reach(&mut bench, "a", &["d"]);
    let lines = told(&bench.sent[start..]);
    for owner in ["e", "f"] {
        let line = format!("{owner}: 10.0.0.1/32 at 192.0.2.1");
        assert!(lines.contains(&line), "{lines:?}");
    }
    let is_told = |bench: &Bench| {
        let lines = told(&bench.sent[start..]);
        lines
            .iter()
            .any(|line| line.starts_with("a: ::/0 at 192.0.2.6"))
    };
    acknowledge(&mut bench, |name| name == "e");
    assert!(!is_told(&bench), "f does not know it yet");
    acknowledge(&mut bench, |name| name == "f");
    assert!(is_told(&bench));
}

#[test]
fn those_who_say_nothing_stay_and_new_clients_get_whom_they_would_have_got() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    connect(&mut bench, "b");
    cannot_reach(&mut bench, "a", &["d"]);
    acknowledge_all(&mut bench);
    assert_eq!(owner(&bench, DEFAULT, "b").unwrap(), "d");
    connect(&mut bench, "c");
    assert_eq!(owner(&bench, DEFAULT, "c").unwrap(), "d");
}

#[test]
fn it_does_not_go_back_by_itself() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    cannot_reach(&mut bench, "a", &["d"]);
    acknowledge_all(&mut bench);
    for _ in 0..3 {
        bench.wait(Duration::from_secs(60));
        bench.register_all();
        all_share(&mut bench);
        assert_eq!(connect(&mut bench, "a")[0].0, "192.0.2.5");
    }
    cannot_reach(&mut bench, "a", &["d"]);
    acknowledge_all(&mut bench);
    assert_eq!(
        owner(&bench, DEFAULT, "a").unwrap(),
        "e",
        "d is not its own"
    );
}

#[test]
fn who_can_reach_nobody_stays_where_it_is() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let before = bench.server.state.assignments.len();
    cannot_reach(&mut bench, "a", &["d", "e"]);
    acknowledge_all(&mut bench);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "f");
    cannot_reach(&mut bench, "a", &["d", "e", "f"]);
    acknowledge_all(&mut bench);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "f");
    assert_eq!(bench.server.state.assignments.len(), before);
}

#[test]
fn a_record_of_what_can_be_reached_and_one_of_strangers_move_nobody() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let reached = lost(&["d"], true);
    say(&mut bench, "a", &reached);
    let nobody = Record {
        locators: lost(&["d"], false).locators,
        ..empty("10.0.0.2", 1)
    };
    let bytes = question("a", "10.0.0.2", &nobody, 900);
    bench.datagram(control("a"), Via::Tunnel, &bytes);
    acknowledge_all(&mut bench);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
}

#[test]
fn the_old_owner_forgets_the_client_when_that_has_moved_and_not_before() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let before = bench.sent.len();
    cannot_reach(&mut bench, "a", &["d"]);
    acknowledge(&mut bench, |name| name != "a");
    bench.wait(Duration::from_secs(20));
    assert_eq!(to_d(&bench.sent[before..]), [""; 0], "a may still use d");
    acknowledge_all(&mut bench);
    assert_eq!(
        to_d(&bench.sent[before..]),
        [""; 0],
        "packets may be on their way"
    );
    let later = bench.wait(limits::MIGRATION_LINGER);
    assert_eq!(to_d(&later), ["d: 10.0.0.1/32 at nowhere"]);
    assert_eq!(bench.server.state.leavings.len(), 0);
}

#[test]
fn a_map_server_that_has_restarted_meanwhile_tells_the_client_again_and_then_the_owner() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    cannot_reach(&mut bench, "a", &["d"]);
    acknowledge(&mut bench, |name| name != "a");
    let mut bench = bench.restart_as(clients_and_proxies());
    let news = bench.wait(Duration::from_millis(1));
    assert_eq!(told(&news), ["a: 0.0.0.0/0 at 192.0.2.5"]);
    acknowledge_all(&mut bench);
    let later = bench.wait(limits::MIGRATION_LINGER);
    assert_eq!(to_d(&later), ["d: 10.0.0.1/32 at nowhere"]);
    let mut bench = bench.restart_as(clients_and_proxies());
    assert_eq!(
        told(&bench.wait(Duration::from_millis(1))),
        [""; 0],
        "that is over"
    );
}

#[test]
fn a_client_that_never_says_that_it_has_moved_is_forgotten_in_the_end() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let before = bench.sent.len();
    cannot_reach(&mut bench, "a", &["d"]);
    for minute in 1..=3 {
        acknowledge(&mut bench, |name| name != "a");
        assert_eq!(to_d(&bench.sent[before..]), [""; 0], "{minute}");
        bench.wait(Duration::from_secs(60));
        for name in ["a", "b", "c"] {
            bench.register(name, &own_records(name));
        }
        all_share(&mut bench);
    }
    assert_eq!(to_d(&bench.sent[before..])[0], "d: 10.0.0.1/32 at nowhere");
}

#[test]
fn a_client_that_is_back_before_it_has_moved_is_not_forgotten() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let before = bench.sent.len();
    cannot_reach(&mut bench, "a", &["d"]);
    acknowledge(&mut bench, |name| name != "a");
    cannot_reach(&mut bench, "a", &["e"]);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
    acknowledge_all(&mut bench);
    bench.wait(limits::MIGRATION_LINGER);
    assert_eq!(
        to_d(&bench.sent[before..]).last().unwrap(),
        "d: 10.0.0.1/32 at 192.0.2.1"
    );
    let news = told(&bench.sent[before..]);
    assert!(
        news.contains(&"e: 10.0.0.1/32 at nowhere".to_owned()),
        "{news:?}"
    );
}

#[test]
fn a_client_that_says_so_all_the_time_is_not_heeded() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let flaps = |bench: &mut Bench, times: u32| {
        let mut moved = 0;
        for _ in 0..times {
            let at = owner(bench, DEFAULT, "a").unwrap();
            cannot_reach(bench, "a", &[at.as_str()]);
            acknowledge_all(bench);
            moved += u32::from(owner(bench, DEFAULT, "a").unwrap() != at);
        }
        moved
    };
    assert_eq!(flaps(&mut bench, 20), limits::FAILOVERS);
    assert_eq!(bench.count(DropReason::FailoverLimited), 16);
    bench.wait(limits::FAILOVER_PAUSE);
    assert_eq!(flaps(&mut bench, 20), 1);
    connect(&mut bench, "b");
    cannot_reach(&mut bench, "b", &["d"]);
    assert_eq!(
        owner(&bench, DEFAULT, "b").unwrap(),
        "e",
        "others are heeded"
    );
}

#[test]
fn an_owner_that_leads_nowhere_takes_nobody_over() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let nowhere = default_routes("e", 2, 100).map(|record| Record {
        locators: Vec::new(),
        ..record
    });
    share(&mut bench, "e", &nowhere);
    acknowledge_all(&mut bench);
    cannot_reach(&mut bench, "a", &["d", "f"]);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "d");
    cannot_reach(&mut bench, "a", &["d"]);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "f");
}

#[test]
fn who_can_reach_nobody_is_told_to_its_owner_once_more_whatever_else_it_says() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let record = lost(&["d", "e", "f"], false);
    let nonce = 10_000 + bench.sent.len() as u64;
    let bytes = asked("a", DEFAULT, &record, nonce, Some(Gap::Unknown));
    let sent = bench.datagram(control("a"), Via::Tunnel, &bytes);
    assert_eq!(to_d(&sent), ["d: 10.0.0.1/32 at 192.0.2.1"]);
}

#[test]
fn outside_the_tunnel_nobody_says_so_for_a_client() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let before = bench.server.fingerprint();
    let bytes = question("a", "8.8.8.8", &lost(&["d"], false), 900);
    bench.datagram(control("a"), Via::Plain, &bytes);
    assert_eq!(bench.server.fingerprint(), before);
}

/// Lets `client` say that it cannot reach these proxies.
fn cannot_reach(bench: &mut Bench, client: &str, proxies: &[&str]) -> Vec<Sent> {
    say(bench, client, &lost(proxies, false))
}

fn say(bench: &mut Bench, client: &str, record: &Record) -> Vec<Sent> {
    let nonce = 10_000 + bench.sent.len() as u64;
    let bytes = question(client, DEFAULT, record, nonce);
    bench.datagram(control(client), Via::Tunnel, &bytes)
}

/// A record about the default route with the locators of these proxies.
fn lost(proxies: &[&str], reachable: bool) -> Record {
    let locators = proxies.iter().map(|name| Locator {
        reachable,
        ..default_routes(name, 1, 100)[0].locators[0]
    });
    Record {
        ttl: Ttl::from_minutes(1),
        locators: locators.collect(),
        ..empty(DEFAULT, 1)
    }
}

/// What d is told of a.
fn to_d(sent: &[Sent]) -> Vec<String> {
    let mut lines = told(sent);
    lines.retain(|line| line.starts_with("d: 10.0.0.1/32"));
    lines
}

fn all_share(bench: &mut Bench) {
    for (name, priority) in [("d", 1), ("e", 2), ("f", 3)] {
        share(bench, name, &default_routes(name, priority, 100));
    }
}

fn question(client: &str, eid: &str, record: &Record, nonce: u64) -> Vec<u8> {
    asked(client, eid, record, nonce, None)
}

fn asked(client: &str, asked: &str, record: &Record, nonce: u64, gap: Option<Gap>) -> Vec<u8> {
    let number = match client {
        "a" => "10.0.0.1",
        "b" => "10.0.0.2",
        _ => "10.0.0.3",
    };
    let params = RequestParams {
        nonce: Nonce(nonce),
        source_eid: Some((Default::default(), ip(number))),
        itr_rlocs: &[control(client).ip()],
        eids: &[RequestedEid {
            subscribe: false,
            eid: eid(asked),
        }],
        source_record: Some(record),
        gap,
        ..RequestParams::default()
    };
    let mut bytes = Vec::new();
    encode_map_request(&params, &mut bytes).unwrap();
    bytes
}
