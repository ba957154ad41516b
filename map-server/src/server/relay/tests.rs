//! Who gets a relay, who hears of it and in which order, and when it ends.

use lisp_proto::{
    Nonce, RequestFlags, RequestParams, RequestedEid, encode_info_request, encode_map_request,
};

use super::*;
use crate::config::Options;
use crate::server::bench::{Bench, Sent, control, control_key, empty, key, own_records, socket};
use crate::server::proxies::{
    acknowledge_all, clients_and_proxies, default_routes, locators, name_of, share, told,
};
use crate::server::{Input, Via};

/// Where the NATs are.
const NATS: [(&str, &str); 3] = [
    ("a", "198.51.100.1:7000"),
    ("b", "198.51.100.2:7000"),
    ("c", "198.51.100.3:7000"),
];

/// Agents a, b and c, of which those in `hidden` are behind NATs, and d, which may be their relay.
fn network(hidden: &[&str], relays: &[&str]) -> Bench {
    let options = Options {
        notify_floor: Nonce(1_000_000),
        relays: relays.iter().map(|name| (*name).into()).collect(),
        ..Options::default()
    };
    let mut bench = Bench::of(options, clients_and_proxies());
    for name in ["a", "b", "c"] {
        bench.register(name, &own(name));
    }
    share(&mut bench, "d", &default_routes("d", 7, 100));
    for (name, at) in NATS {
        if hidden.contains(&name) {
            hide(&mut bench, name, at);
        }
    }
    acknowledge_all(&mut bench);
    bench
}

fn own(name: &str) -> [Record; 2] {
    own_records(name).map(|mut record| {
        record.locators.iter_mut().for_each(|it| it.local = true);
        record
    })
}

/// A look at the peers finds `name` behind a NAT.
fn hide(bench: &mut Bench, name: &str, at: &str) {
    let mut bytes = Vec::new();
    let about = own_records(name)[0].eid;
    encode_info_request(Nonce(1), about, &key(name), &mut bytes);
    bench.datagram(control(name), Via::Tunnel, &bytes);
    let (began, peers) = (bench.now, &[(control_key(name), socket(at))]);
    bench.input(Input::Seen { began, peers });
}

/// Lets `from` ask for `to`, which it cannot reach at `lost`.
fn complain(bench: &mut Bench, from: &str, to: &str, lost: &[Locator]) -> Vec<Sent> {
    let target = own_records(to)[0].eid;
    let record = Record {
        eid: target,
        locators: lost.to_vec(),
        ..empty("10.0.0.0/8", 1)
    };
    let params = RequestParams {
        flags: RequestFlags::default(),
        nonce: Nonce(bench.nonce()),
        source_eid: Some((InstanceId(0), own_records(from)[0].eid.net().addr())),
        itr_rlocs: &[control(from).ip()],
        eids: &[RequestedEid {
            subscribe: false,
            eid: target,
        }],
        source_record: Some(&record),
        ids: None,
    };
    let mut bytes = Vec::new();
    encode_map_request(&params, &mut bytes).unwrap();
    bench.datagram(control(from), Via::Tunnel, &bytes)
}

/// The locators of `name`, as one that cannot be reached.
fn lost(name: &str) -> Vec<Locator> {
    let mut locators = own_records(name)[0].locators.clone();
    locators.iter_mut().for_each(|it| it.reachable = false);
    locators
}

/// What a tells of b, and the others, when it complains: who hears what, and where it leads.
fn outcome(bench: &mut Bench, lost: &[Locator]) -> Vec<String> {
    let before = bench.sent.len();
    complain(bench, "a", "b", lost);
    acknowledge_all(bench);
    told(&bench.sent[before..])
}

/// Where a is told that b is, when it asks as ever.
fn answer(bench: &mut Bench) -> Vec<(String, u8)> {
    let before = bench.sent.len();
    bench.ask("a", "10.0.0.2");
    acknowledge_all(bench);
    let mut answers = bench.sent[before..].iter();
    let answer = answers.find(|sent| !sent.is_notify() && name_of(sent) == "a");
    locators(&answer.unwrap().reply_records()[0])
}

#[test]
fn the_relay_hears_of_both_ends_then_the_far_end_and_then_the_near_one() {
    let mut bench = network(&["a", "b"], &["d"]);
    let first = complain(&mut bench, "a", "b", &lost("b"));
    let of_both = [
        "d: 10.0.0.1/32 at 192.0.2.1",
        "d: fd00:1::1/128 at 192.0.2.1",
        "d: 10.0.0.2/32 at 192.0.2.2",
        "d: fd00:1::2/128 at 192.0.2.2",
    ];
    assert_eq!(told(&first), of_both);
    let second = bench.ack("d", &first[0]);
    let of_near = [
        "b: 10.0.0.1/32 at 192.0.2.4",
        "b: fd00:1::1/128 at 192.0.2.4",
    ];
    assert_eq!(told(&second), of_near);
    let third = bench.ack("b", &second[0]);
    assert_eq!(told(&third)[0], "a: 10.0.0.2/32 at 192.0.2.4");
    let locators = locators(&third[0].reply_records()[0]);
    assert_eq!(locators, [("192.0.2.4".into(), limits::PRIORITY_RELAY)]);
    let relayed = bench.events.iter().filter(|event| {
        let Event::Relayed { one, other, via } = event else {
            return false;
        };
        [one, other, via].map(|name| &**name) == ["a", "b", "d"]
    });
    assert_eq!(relayed.count(), 1);
    assert_eq!(bench.server.sizes().relayed, 1);
}

#[test]
fn it_stays_so_for_both_until_it_is_time_to_try_without() {
    let mut bench = network(&["a", "b"], &["d"]);
    outcome(&mut bench, &lost("b"));
    let over = [("192.0.2.4".into(), limits::PRIORITY_RELAY)];
    assert_eq!(answer(&mut bench), over);
    // What b registers anew is told a over the relay, and the relay as it is.
    let before = bench.sent.len();
    let mut moved = own("b");
    for record in &mut moved {
        let Rloc::WireGuard { key, .. } = record.locators[0].rloc else {
            panic!("no key");
        };
        let endpoint = socket("192.0.2.77:51820");
        record.locators[0].rloc = Rloc::WireGuard { endpoint, key };
    }
    bench.register("b", &moved);
    acknowledge_all(&mut bench);
    let news = told(&bench.sent[before..]);
    assert!(
        news.contains(&"d: 10.0.0.2/32 at 192.0.2.77".to_owned()),
        "{news:?}"
    );
    assert!(
        !news.contains(&"a: 10.0.0.2/32 at 192.0.2.77".to_owned()),
        "{news:?}"
    );
    for _ in 0..20 {
        bench.wait(limits::RELAY_LIFETIME / 19);
        bench.register("a", &own("a"));
        bench.register("b", &moved);
        share(&mut bench, "d", &default_routes("d", 7, 100));
    }
    assert_eq!(bench.server.sizes().relayed, 0);
    assert_eq!(answer(&mut bench), [("192.0.2.77".into(), 1)]);
}

#[test]
fn nobody_gets_a_relay_who_can_do_without_or_has_none() {
    let direct = "a: 10.0.0.2/32 at 192.0.2.2".to_owned();
    let with = |hidden: &[&str], relays: &[&str], lost: &[Locator]| {
        let mut bench = network(hidden, relays);
        let told = outcome(&mut bench, lost);
        (told.contains(&direct), bench.server.sizes().relayed)
    };
    assert_eq!(with(&["a", "b"], &["d"], &lost("b")), (false, 1));
    assert_eq!(with(&["a"], &["d"], &lost("b")), (true, 0));
    assert_eq!(with(&["b"], &["d"], &lost("b")), (true, 0));
    assert_eq!(with(&["a", "b"], &[], &lost("b")), (true, 0));
    assert_eq!(
        with(&["a", "b"], &["e"], &lost("b")),
        (true, 0),
        "e is not there"
    );
    assert_eq!(
        with(&["a", "b"], &["c"], &lost("b")),
        (true, 0),
        "c serves neither"
    );
    assert_eq!(with(&["a", "b"], &["d"], &lost("c")), (true, 0));
    assert_eq!(
        with(&["a", "b"], &["d"], &own_records("b")[0].locators),
        (true, 0)
    );
    assert_eq!(with(&["a", "b"], &["d"], &[]), (true, 0));
}

#[test]
fn a_relay_that_cannot_be_reached_either_gives_way_to_another_one() {
    let mut bench = network(&["a", "b"], &["d", "e"]);
    let at = |name: &str| default_routes(name, 7, 100)[0].locators.clone();
    share(&mut bench, "e", &default_routes("e", 7, 100));
    acknowledge_all(&mut bench);
    outcome(&mut bench, &lost("b"));
    let told = answer(&mut bench);
    let [(first, _)] = &told[..] else {
        panic!("one relay");
    };
    let (it, other) = match &**first {
        "192.0.2.4" => ("d", "192.0.2.5"),
        _ => ("e", "192.0.2.4"),
    };
    let mut locators = at(it);
    locators.iter_mut().for_each(|it| it.reachable = false);
    outcome(&mut bench, &locators);
    let told = answer(&mut bench);
    let [(second, _)] = &told[..] else {
        panic!("one relay");
    };
    assert_eq!(second, other);
    assert_eq!(bench.server.sizes().relayed, 1);
    let relays = &bench.server.state.relays;
    let index = |name: &str| bench.server.sites.by_name(&name.into()).unwrap();
    let carried = ["d", "e"].map(|via| relays.carries(index(via), index("a"), InstanceId(0)));
    assert_eq!(carried, [it == "e", it == "d"]);
}

#[test]
fn without_their_relay_both_hear_of_each_other_as_they_are() {
    let mut bench = network(&["a", "b"], &["d"]);
    outcome(&mut bench, &lost("b"));
    let before = bench.sent.len();
    share(&mut bench, "d", &[empty("0.0.0.0/0", 0), empty("::/0", 0)]);
    acknowledge_all(&mut bench);
    let news = told(&bench.sent[before..]);
    for line in ["a: 10.0.0.2/32 at 192.0.2.2", "b: 10.0.0.1/32 at 192.0.2.1"] {
        assert!(news.contains(&line.to_owned()), "{news:?}");
    }
    assert_eq!(bench.server.sizes().relayed, 0);
}

#[test]
fn there_are_no_more_pairs_than_one_may_be_part_of() {
    let mut relays = Relays::default();
    let until = Timestamp::ZERO + limits::RELAY_LIFETIME;
    let (near, via) = (XtrIndex::nth(0), XtrIndex::nth(1));
    let pair = |other| pair(near, XtrIndex::nth(other), InstanceId(0));
    let most = limits::RELAYED_PAIRS_PER_XTR;
    for other in 2..most + 2 {
        assert!(relays.set(pair(other), via, until));
    }
    assert!(!relays.set(pair(most + 2), via, until));
    assert!(relays.set(pair(2), via, until), "it is there");
    relays.remove(&pair(2));
    assert!(relays.set(pair(most + 2), via, until));
    assert_eq!(relays.len(), most);
}
