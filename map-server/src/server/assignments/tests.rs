//! Who uses whom, who is told of whom, and what survives.

use std::time::Duration;

use lisp_proto::{Algorithm, AuthKey};

use super::*;
use crate::config::{Options, XtrConfig};
use crate::server::bench::{Bench, control, empty, ip, own_records, record, request, socket, xtrs};
use crate::server::proxies::{
    acknowledge, acknowledge_all, all_registered, bench, clients_and_proxies, connect,
    default_routes, locators, name_of, own_address, owner, share, told,
};
use crate::server::{Input, Via};
use crate::store_event::StoreEvent;

const DEFAULT: &str = "0.0.0.0/0";

#[test]
fn a_prefix_is_shared_by_those_that_register_it_with_the_merge_bit_and_by_nobody_else() {
    let mut bench = bench();
    share(&mut bench, "d", &default_routes("d", 1, 100));
    let sent = share(&mut bench, "e", &default_routes("e", 1, 100));
    assert_eq!(
        sent[0].notify("e").1[0].locators.len(),
        2,
        "what both have registered"
    );
    let sent = bench.register("f", &default_routes("f", 1, 100));
    assert_eq!(sent[0].notify("f").1[0].locators.len(), 1);
    bench.register("a", &own_records("a"));
    assert_eq!(connect(&mut bench, "a"), [("192.0.2.6".into(), 1)]);
    assert_eq!(owner(&bench, DEFAULT, "a"), None, "nothing is shared");
}

#[test]
fn only_the_owner_that_a_client_uses_is_told_of_it_and_comes_first() {
    let mut bench = all_registered();
    let push = bench.ask("a", "8.8.8.8");
    assert_eq!(
        told(&push),
        [
            "d: 10.0.0.1/32 at 192.0.2.1",
            "d: fd00:1::1/128 at 192.0.2.1"
        ]
    );
    let answer = bench.ack("d", &push[0]);
    assert_eq!(
        locators(&answer[0].reply_records()[0]),
        [
            ("192.0.2.4".into(), 1),
            ("192.0.2.5".into(), 130),
            ("192.0.2.6".into(), 131)
        ]
    );
    assert_eq!(answer.len(), 1, "nobody else is told anything");
}

#[test]
fn both_address_families_of_a_client_are_with_the_same_owner() {
    let mut bench = bench();
    bench.register_all();
    for name in ["d", "e", "f"] {
        share(&mut bench, name, &default_routes(name, 1, 100));
    }
    for client in ["a", "b", "c"] {
        bench.ask(client, "8.8.8.8");
        bench.ask(client, "2001:db8::8");
        acknowledge_all(&mut bench);
        let both = [DEFAULT, "::/0"].map(|eid| owner(&bench, eid, client));
        assert!(both[0].is_some() && both[0] == both[1], "{both:?}");
    }
}

#[test]
fn weights_share_the_clients_out_and_a_change_of_owners_moves_only_theirs() {
    let weights = [("d", 100), ("e", 50), ("f", 50), ("g", 0)];
    let best = |client: &str, among: &[(&'static str, u32)]| {
        let best = among
            .iter()
            .max_by_key(|(owner, weight)| score(client, owner, *weight));
        best.unwrap().0
    };
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for client in 0..4_000 {
        let client = format!("client-{client}");
        let with = best(&client, &weights);
        *counts.entry(with).or_default() += 1;
        if with != "e" {
            let without = [weights[0], weights[2], weights[3]];
            assert_eq!(best(&client, &without), with);
        }
    }
    assert_eq!(counts.get("g"), None, "its weight is 0");
    for (owner, expected) in [("d", 2_000), ("e", 1_000), ("f", 1_000)] {
        assert!(counts[owner].abs_diff(expected) < 150, "{counts:?}");
    }
}

#[test]
fn who_is_no_agent_gets_the_merged_record() {
    let options = Options {
        requests_from: vec!["0.0.0.0/0".parse().unwrap()],
        ..Options::default()
    };
    let mut bench = Bench::of(options, clients_and_proxies());
    for name in ["d", "e"] {
        share(&mut bench, name, &default_routes(name, 2, 100));
    }
    let source = socket("198.51.100.66:1234");
    let bytes = request(None, &[source.ip()], &["8.8.8.8"], 1);
    let sent = bench.datagram(source, Via::Plain, &bytes);
    let answer = locators(&sent[0].reply_records()[0]);
    assert_eq!(answer, [("192.0.2.4".into(), 2), ("192.0.2.5".into(), 2)]);
    assert_eq!(bench.server.sizes().assignments, 0);
}

#[test]
fn a_prefix_with_one_owner_is_told_as_ever() {
    let mut lines = Vec::new();
    for merge in [false, true] {
        let mut bench = bench();
        bench.register_all();
        let records = default_routes("d", 7, 100);
        match merge {
            true => share(&mut bench, "d", &records),
            false => bench.register("d", &records),
        };
        let push = bench.ask("a", "8.8.8.8");
        bench.ack("d", &push[0]);
        let told: Vec<_> = bench.sent.iter().map(|sent| sent.bytes.len()).collect();
        lines.push((told, connect(&mut bench, "a")));
    }
    assert_eq!(lines[0], lines[1]);
}

#[test]
fn a_second_proxy_takes_no_client_away_and_hears_of_none() {
    let mut bench = bench();
    bench.register_all();
    share(&mut bench, "e", &default_routes("e", 2, 100));
    connect(&mut bench, "a");
    let mut sent = share(&mut bench, "d", &default_routes("d", 1, 100));
    sent.extend(acknowledge_all(&mut bench));
    sent.extend(bench.wait(Duration::from_secs(1)));
    let to_d: Vec<_> = sent.iter().filter(|sent| name_of(sent) == "d").collect();
    assert_eq!(to_d.len(), 1, "its registration is confirmed: {to_d:?}");
    let news = sent.iter().rfind(|sent| name_of(sent) == "a").unwrap();
    assert_eq!(
        locators(&news.notify("a").1[0]),
        [("192.0.2.5".into(), 2), ("192.0.2.4".into(), 129)]
    );
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
}

#[test]
fn clients_of_an_owner_that_begins_to_share_stay_with_it() {
    let mut bench = bench();
    bench.register_all();
    bench.register("e", &default_routes("e", 9, 100));
    connect(&mut bench, "a");
    share(&mut bench, "e", &default_routes("e", 9, 100));
    share(&mut bench, "d", &default_routes("d", 1, 100));
    acknowledge_all(&mut bench);
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
    assert_eq!(connect(&mut bench, "a")[0], ("192.0.2.5".into(), 9));
}

#[test]
fn when_the_owner_is_gone_the_next_one_hears_of_the_client_before_the_client_of_it() {
    for acknowledged in [true, false] {
        let mut bench = all_registered();
        connect(&mut bench, "a");
        let sent = share(&mut bench, "d", &[empty(DEFAULT, 0), empty("::/0", 0)]);
        let to_clients = |sent: &[crate::server::bench::Sent]| {
            let mut told = told(sent);
            told.retain(|line| line.starts_with("a:"));
            told
        };
        assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
        let to_e = sent
            .iter()
            .find(|sent| name_of(sent) == "e" && sent.notify("e").1.len() == 2);
        let first = told(&sent);
        assert!(
            first.contains(&"e: 10.0.0.1/32 at 192.0.2.1".to_owned()),
            "{first:?}"
        );
        assert_eq!(to_clients(&sent), Vec::<String>::new());
        let news = match acknowledged {
            true => acknowledge(&mut bench, |name| name == "e"),
            false => bench.wait(Duration::from_secs(1)),
        };
        assert!(to_e.is_some());
        assert_eq!(to_clients(&news), ["a: 0.0.0.0/0 at 192.0.2.5"]);
    }
}

#[test]
fn an_owner_that_stays_for_something_else_forgets_the_clients_it_has_lost() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    share(
        &mut bench,
        "d",
        &[record(own_address("d"), "192.0.2.4:51820")],
    );
    acknowledge_all(&mut bench);
    let sent = share(&mut bench, "d", &[empty(DEFAULT, 0), empty("::/0", 0)]);
    assert!(
        told(&sent).contains(&"d: 10.0.0.1/32 at nowhere".to_owned()),
        "{:?}",
        told(&sent)
    );
    acknowledge_all(&mut bench);
    let moved = record("10.0.0.1", "198.51.100.1:51820");
    let sent = bench.register("a", &[moved]);
    assert!(sent.iter().all(|sent| name_of(sent) != "d"));
}

#[test]
fn who_is_drained_gets_no_new_clients_unless_there_is_nobody_else() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let d = bench.server.sites.by_name(&"d".into()).unwrap();
    bench.server.state.assignments.drain(d, true);
    let told = connect(&mut bench, "b");
    assert_eq!(told[0], ("192.0.2.5".into(), 2));
    assert_eq!(told[2], ("192.0.2.4".into(), 255), "not to be used");
    assert_eq!(
        connect(&mut bench, "a")[0],
        ("192.0.2.4".into(), 1),
        "who has it keeps it"
    );
    for name in ["e", "f"] {
        share(&mut bench, name, &[empty(DEFAULT, 0), empty("::/0", 0)]);
    }
    assert_eq!(connect(&mut bench, "c"), [("192.0.2.4".into(), 1)]);
}

#[test]
fn assignments_survive_a_restart_with_what_was_told() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let a = bench.server.sites.by_name(&"a".into()).unwrap();
    let [d, f] = ["d", "f"].map(|name| bench.server.sites.by_name(&name.into()).unwrap());
    let mut actions = Actions::new();
    bench.server.place(eid(DEFAULT), a, f, None, &mut actions);
    for action in actions.drain() {
        if let crate::server::Action::Persist(event) = action {
            bench.stored.push(event);
        }
    }
    let drained = StoreEvent::Draining {
        xtr: "d".into(),
        draining: true,
    };
    bench.stored.push(drained.clone());
    bench.input(Input::Restore(drained));
    let snapshot: Vec<_> = bench.server.snapshot(bench.now).collect();
    let mut bench = bench.restart_as(clients_and_proxies());
    assert_eq!(
        bench.server.snapshot(bench.now).collect::<Vec<_>>(),
        snapshot
    );
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "f");
    assert!(bench.server.state.assignments.is_draining(d));
    let sent = share(&mut bench, "f", &[empty(DEFAULT, 0), empty("::/0", 0)]);
    assert!(told(&sent).contains(&"e: 10.0.0.1/32 at 192.0.2.1".to_owned()));
    let news = acknowledge(&mut bench, |name| name == "e");
    assert_eq!(told(&news), ["a: 0.0.0.0/0 at 192.0.2.5"]);
}

#[test]
fn what_the_configuration_no_longer_allows_is_not_believed() {
    let mut bench = Bench::new();
    let before = bench.server.fingerprint();
    let assigned = |client: &str, owner: &str| StoreEvent::Assigned {
        eid: eid(DEFAULT),
        client: client.into(),
        owner: owner.into(),
        parts: vec![eid(DEFAULT)],
    };
    bench.input(Input::Restore(assigned("a", "b")));
    bench.input(Input::Restore(assigned("a", "nobody")));
    bench.input(Input::Restore(assigned("nobody", "b")));
    assert_eq!(bench.count(DropReason::StaleStore), 3);
    assert_eq!(bench.server.fingerprint(), before);
}

#[test]
fn a_client_that_leaves_is_forgotten_and_one_whose_registration_runs_out_is_not() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    connect(&mut bench, "b");
    bench.register("a", &[empty("10.0.0.1", 0), empty("fd00:1::1", 0)]);
    assert_eq!(owner(&bench, DEFAULT, "a"), None);
    bench.wait(Duration::from_secs(100));
    for (name, priority) in [("d", 1), ("e", 2), ("f", 3)] {
        share(&mut bench, name, &default_routes(name, priority, 100));
    }
    bench.wait(Duration::from_secs(90));
    assert_eq!(owner(&bench, DEFAULT, "b").unwrap(), "d");
    let stored = bench.restart_as(clients_and_proxies());
    assert_eq!(stored.server.sizes().assignments, 1);
}

#[test]
fn nobody_is_a_client_when_there_is_no_owner_and_all_are_when_one_comes() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    for name in ["d", "e", "f"] {
        share(&mut bench, name, &[empty(DEFAULT, 0), empty("::/0", 0)]);
        acknowledge_all(&mut bench);
    }
    assert_eq!(owner(&bench, DEFAULT, "a"), None);
    share(&mut bench, "e", &default_routes("e", 2, 100));
    acknowledge_all(&mut bench);
    connect(&mut bench, "a");
    assert_eq!(owner(&bench, DEFAULT, "a").unwrap(), "e");
}

#[test]
fn a_proxy_that_asks_for_the_client_of_another_is_not_introduced_to_it() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    let bytes = request(Some(ip("8.8.8.8")), &[control("e").ip()], &["10.0.0.1"], 1);
    let sent = bench.datagram(control("e"), Via::Tunnel, &bytes);
    assert!(sent.iter().all(|sent| name_of(sent) == "e"));
    let bytes = request(Some(ip("8.8.8.8")), &[control("e").ip()], &["10.0.0.2"], 2);
    let sent = bench.datagram(control("e"), Via::Tunnel, &bytes);
    assert_eq!(told(&sent), ["b: 8.0.0.0/7 at 192.0.2.5"]);
    assert_eq!(
        owner(&bench, DEFAULT, "b").unwrap(),
        "e",
        "who is unassigned goes to the one that wants it"
    );
}

#[test]
fn other_owners_are_behind_the_own_one_whatever_they_register() {
    for (own, other, expected) in [
        (1, 1, [1, 129]),
        (200, 1, [200, 201]),
        (1, 200, [1, 254]),
        (254, 1, [253, 254]),
        (1, 255, [1, 255]),
    ] {
        let mut bench = bench();
        bench.register_all();
        share(&mut bench, "d", &default_routes("d", own, 100));
        share(&mut bench, "e", &default_routes("e", other, 100));
        let server = &mut bench.server;
        let [a, d] = ["a", "d"].map(|name| server.sites.by_name(&name.into()).unwrap());
        server.place(eid(DEFAULT), a, d, None, &mut Actions::new());
        let mapping = server.state.mappings.exact(&eid(DEFAULT)).unwrap();
        let told = server.record_for(mapping, Some(a)).locators;
        assert_eq!([told[0].priority, told[1].priority], expected);
        assert_eq!(told[0].rloc.ip(), ip("192.0.2.4"));
    }
}

#[test]
fn an_owner_that_may_not_be_used_is_first_for_the_clients_that_it_has_and_behind_for_others() {
    let mut bench = all_registered();
    connect(&mut bench, "a");
    share(&mut bench, "d", &default_routes("d", u8::MAX, 100));
    let server = &bench.server;
    let mapping = server.state.mappings.exact(&eid(DEFAULT)).unwrap();
    let told = |client: &str| {
        let client = server.sites.by_name(&client.into());
        locators(&server.record_for(mapping, client))
    };
    let places =
        |places: [(&str, u8); 3]| places.map(|(place, priority)| (place.to_owned(), priority));
    assert_eq!(
        told("a"),
        places([("192.0.2.4", 253), ("192.0.2.5", 254), ("192.0.2.6", 254)])
    );
    assert_eq!(
        told("b"),
        places([("192.0.2.5", 2), ("192.0.2.6", 131), ("192.0.2.4", 255)])
    );
}

#[test]
fn the_own_owner_is_in_a_record_that_has_no_room_for_all() {
    let mut proxies: Vec<_> = xtrs().into_iter().take(1).collect();
    for number in 0..4 {
        let name = format!("{}", 4 + number);
        proxies.push(XtrConfig {
            name: name.as_str().into(),
            control_address: Some(control(&name).ip()),
            auth: AuthKey::new(1, Algorithm::Sha256_128Hkdf, name.as_bytes()),
            eid_prefixes: vec![eid(DEFAULT)],
            ..proxies[0].clone()
        });
    }
    let mut bench = Bench::of(Options::default(), proxies);
    bench.register("a", &own_records("a"));
    for number in 0..4_u8 {
        let mut shared = record(DEFAULT, "192.0.2.1:1");
        shared.locators = (0..4)
            .flat_map(|port| {
                let at = format!("192.0.2.{}:{}", 9 - number, 1_000 + port);
                let mut locators = record(DEFAULT, &at).locators;
                locators[0].priority = 1 + number;
                locators
            })
            .collect();
        share(&mut bench, &format!("{}", 4 + number), &[shared]);
    }
    let server = &mut bench.server;
    let [a, last] = ["a", "7"].map(|name| server.sites.by_name(&name.into()).unwrap());
    server.place(eid(DEFAULT), a, last, None, &mut Actions::new());
    let mapping = server.state.mappings.exact(&eid(DEFAULT)).unwrap();
    let told = locators(&server.record_for(mapping, Some(a)));
    assert_eq!(told.len(), limits::LOCATORS_PER_RECORD);
    assert!(
        told[..4].iter().all(|it| *it == ("192.0.2.6".into(), 4)),
        "{told:?}"
    );
    assert_eq!(told[4], ("192.0.2.9".into(), 129));
}

#[test]
fn the_table_and_what_is_remembered_of_one_client_are_bounded() {
    let mut assignments = Assignments::default();
    let xtr = crate::server::sites::tests::xtr;
    let parts = (0..=255).map(|n| format!("10.0.0.{n}").parse().unwrap());
    assignments
        .set(eid(DEFAULT), xtr(0), xtr(1), parts)
        .unwrap();
    let at = assignments.get(&eid(DEFAULT), xtr(0)).unwrap();
    assert_eq!(at.parts.len(), limits::PARTS_PER_ASSIGNMENT);
    assignments.len = limits::ASSIGNMENTS;
    assert_eq!(assignments.set(eid(DEFAULT), xtr(2), xtr(1), None), Err(()));
    assert_eq!(
        assignments.set(eid(DEFAULT), xtr(0), xtr(3), None),
        Ok(true)
    );
}

fn eid(text: &str) -> EidPrefix {
    text.parse().unwrap()
}
