//! When pairs change their relay, which one they get, and what it is told.

use super::*;
use crate::server::Command;
use crate::server::bench::{eid, record};

fn drain(bench: &mut Bench, name: &str) -> Vec<Sent> {
    bench.input(Input::Operator(Command::Drain {
        from: name.into(),
        dry_run: false,
    }))
}

/// How many pairs the xTR that was drained last relayed after that.
fn relaying(bench: &Bench) -> usize {
    let mut drained = bench.events.iter().rev().filter_map(|event| {
        let Event::Draining { relaying, .. } = event else {
            return None;
        };
        Some(*relaying)
    });
    drained.next().unwrap()
}

fn withdrawn() -> [Record; 2] {
    [empty("0.0.0.0/0", 0), empty("::/0", 0)]
}

/// D shares what it serves as ever, with locators that must not be used.
fn withhold(bench: &mut Bench) {
    share(bench, "d", &default_routes("d", u8::MAX, 0));
    acknowledge_all(bench);
}

#[test]
fn the_pairs_of_a_relay_that_is_drained_go_to_another_one_which_hears_of_them_first() {
    let (mut bench, first, other) = with_two_relays();
    let sent = drain(&mut bench, first);
    let lines = told(&sent);
    assert!(!lines.is_empty());
    let to_it = format!("{other}: ");
    assert!(
        lines.iter().all(|line| line.starts_with(&to_it)),
        "{lines:?}"
    );
    let later = told(&acknowledge_all(&mut bench));
    let at = if other == "d" {
        "192.0.2.4"
    } else {
        "192.0.2.5"
    };
    for line in [
        format!("a: 10.0.0.2/32 at {at}"),
        format!("b: 10.0.0.1/32 at {at}"),
    ] {
        assert!(later.contains(&line), "{later:?}");
    }
    assert_eq!(relay_of_a(&mut bench), other);
    assert!(!carries(&bench, first, "a") && carries(&bench, other, "b"));
    assert_eq!(relaying(&bench), 0);
}

#[test]
fn a_relay_that_is_drained_goes_on_where_there_is_no_other_one() {
    let mut bench = network(&["a", "b"], &["d"]);
    outcome(&mut bench, &lost("b"));
    drain(&mut bench, "d");
    acknowledge_all(&mut bench);
    assert_eq!((relaying(&bench), relay_of_a(&mut bench)), (1, "d"));
    bench.wait(limits::RELAY_LIFETIME_FIRST);
    for name in ["a", "b"] {
        bench.register(name, &own(name));
    }
    share(&mut bench, "d", &default_routes("d", 7, 100));
    for (name, at) in &NATS[..2] {
        hide(&mut bench, name, at);
    }
    assert_eq!(relay_of(&mut bench), Some(1), "they try without");
    outcome(&mut bench, &lost("b"));
    assert_eq!(relay_of_a(&mut bench), "d");
    // Somebody else can.
    share(&mut bench, "e", &default_routes("e", 7, 100));
    acknowledge_all(&mut bench);
    assert_eq!(relay_of_a(&mut bench), "d");
}

#[test]
fn a_relay_that_is_drained_is_the_last_that_a_pair_gets() {
    for drained in ["d", "e"] {
        let mut bench = network(&["a", "b"], &["d", "e"]);
        share(&mut bench, "e", &default_routes("e", 7, 100));
        drain(&mut bench, drained);
        acknowledge_all(&mut bench);
        outcome(&mut bench, &lost("b"));
        let used = relay_of_a(&mut bench);
        assert_ne!(used, drained);
        outcome(&mut bench, &lost_relays(&[used]));
        assert_eq!(relay_of_a(&mut bench), drained, "the other one is lost");
    }
}

#[test]
fn a_relay_that_withholds_its_locators_or_serves_something_else_only_carries_nothing() {
    let apart = ["a: 10.0.0.2/32 at 192.0.2.2", "b: 10.0.0.1/32 at 192.0.2.1"];
    for withholds in [true, false] {
        let mut bench = network(&["a", "b"], &["d"]);
        bench.register("d", &[record("10.0.1.4", "192.0.2.4:51820")]);
        outcome(&mut bench, &lost("b"));
        assert!(carries(&bench, "d", "a"));
        let before = bench.sent.len();
        match withholds {
            true => withhold(&mut bench),
            false => {
                share(&mut bench, "d", &withdrawn());
            }
        }
        acknowledge_all(&mut bench);
        assert!(!carries(&bench, "d", "a") && !carries(&bench, "d", "b"));
        let news = told(&bench.sent[before..]);
        for line in apart {
            assert!(news.contains(&line.to_owned()), "{news:?}");
        }
        assert_eq!(bench.server.sizes().relayed, 0);
    }
}

#[test]
fn another_relay_takes_the_place_of_one_that_serves_both_ends_no_longer() {
    let (mut bench, first, other) = with_two_relays();
    let before = bench.sent.len();
    share(&mut bench, first, &withdrawn());
    acknowledge_all(&mut bench);
    assert_eq!(relay_of_a(&mut bench), other);
    assert_eq!(bench.server.sizes().relayed, 1);
    let news = told(&bench.sent[before..]);
    let of_b = |line: &String| line.starts_with(&format!("{other}: 10.0.0.2/32"));
    let of_relay = |line: &String| line.starts_with("a: 10.0.0.2/32");
    let at = |wanted: &dyn Fn(&String) -> bool| news.iter().position(wanted);
    assert!(at(&of_b) < at(&of_relay), "{news:?}");
    assert!(at(&of_b).is_some());
    assert!(!news.contains(&"a: 10.0.0.2/32 at 192.0.2.2".to_owned()));
}

#[test]
fn nobody_changes_his_relay_as_fast_as_he_may_ask() {
    let (mut bench, mut used, mut other) = with_two_relays();
    let mut changes = 0;
    for _ in 0..4 * limits::FAILOVERS {
        outcome(&mut bench, &lost_relays(&[used]));
        if relay_of_a(&mut bench) == other {
            (used, other) = (other, used);
            changes += 1;
        }
    }
    assert!((1..=limits::FAILOVERS).contains(&changes), "{changes}");
    assert!(bench.count(DropReason::FailoverLimited) > 0);
    bench.wait(limits::FAILOVER_PAUSE);
    outcome(&mut bench, &lost_relays(&[used]));
    assert_eq!(relay_of_a(&mut bench), other);
}

/// Lets a complain about one family, with the far end or a relay; returns where it is told that b is in both.
fn places_of_b(bench: &mut Bench, family: usize, lost: &[Locator]) -> [Vec<(String, u8)>; 2] {
    let own = own_records("a")[family].eid;
    let target = own_records("b")[family].eid;
    ask_with(
        bench,
        "a",
        (InstanceId(0), own.net().addr()),
        &[target],
        lost,
    );
    acknowledge_all(bench);
    let a = index(bench, "a");
    own_records("b").map(|record| {
        let mapping = bench.server.state.mappings.exact(&record.eid).unwrap();
        locators(&bench.server.record_for(mapping, Some(a)))
    })
}

#[test]
fn where_no_relay_serves_both_families_each_has_its_own() {
    let mut bench = network(&["a", "b"], &["d", "e"]);
    let [v4, v6] = default_routes("d", 7, 100);
    share(
        &mut bench,
        "d",
        &[
            v4,
            Record {
                ttl: Ttl::WITHDRAW,
                locators: Vec::new(),
                ..v6
            },
        ],
    );
    share(&mut bench, "e", &default_routes("e", 7, 100)[1..]);
    acknowledge_all(&mut bench);
    let [direct, d, e] = [("192.0.2.2", 1), ("192.0.2.4", 254), ("192.0.2.5", 254)]
        .map(|(at, priority)| vec![(at.to_owned(), priority)]);
    assert_eq!(places_of_b(&mut bench, 0, &lost("b")), [d.clone(), direct]);
    for family in [1, 0, 1, 0] {
        let places = places_of_b(&mut bench, family, &lost("b"));
        assert_eq!(places, [d.clone(), e.clone()]);
    }
    assert_eq!(bench.server.sizes().relayed, 1);
}

#[test]
fn a_relay_that_serves_both_families_is_better_than_one_that_serves_one() {
    for whole in ["d", "e"] {
        let mut bench = network(&["a", "b"], &["d", "e"]);
        for relay in ["d", "e"] {
            share(&mut bench, relay, &withdrawn());
            let served = if relay == whole { 2 } else { 1 };
            share(&mut bench, relay, &default_routes(relay, 7, 100)[..served]);
        }
        acknowledge_all(&mut bench);
        let [v4, v6] = places_of_b(&mut bench, 0, &lost("b"));
        assert_eq!(v4, v6);
        assert_eq!(relay_of_a(&mut bench), whole);
    }
}

#[test]
fn a_relay_is_told_of_what_an_end_shares_as_anybody_else_is() {
    let mut xtrs = clients_and_proxies();
    for xtr in xtrs
        .iter_mut()
        .filter(|xtr| ["b", "c"].contains(&&*xtr.name))
    {
        xtr.eid_prefixes.push(eid("10.9.0.0/24"));
    }
    let mut bench = network_of(xtrs, &["a", "b"], &["d"]);
    for (name, at) in [("b", "192.0.2.2:51820"), ("c", "192.0.2.3:51820")] {
        share(&mut bench, name, &[record("10.9.0.0/24", at)]);
    }
    acknowledge_all(&mut bench);
    let first = complain(&mut bench, "a", "b", &lost("b"));
    let records = first.iter().flat_map(|sent| sent.notify("d").1);
    let mut shared = records.filter(|record| record.eid == eid("10.9.0.0/24"));
    let told = locators(&shared.next().unwrap());
    let behind = 1 + limits::PRIORITY_BEHIND;
    let both = [
        ("192.0.2.2".to_owned(), 1),
        ("192.0.2.3".to_owned(), behind),
    ];
    assert_eq!(told, both);
}

#[test]
fn a_server_that_has_restarted_knows_of_no_relay_until_somebody_complains() {
    let mut bench = network(&["a", "b"], &["d"]);
    outcome(&mut bench, &lost("b"));
    let mut next = Bench::of(options(&["d"]), clients_and_proxies());
    for event in bench.stored {
        next.input(Input::Restore(event));
    }
    assert_eq!(next.server.sizes().relayed, 0);
    assert_eq!(answer(&mut next), [("192.0.2.2".into(), 1)]);
    for (name, at) in &NATS[..2] {
        hide(&mut next, name, at);
    }
    outcome(&mut next, &lost("b"));
    let over = [("192.0.2.4".into(), limits::PRIORITY_RELAY)];
    assert_eq!(answer(&mut next), over);
}
