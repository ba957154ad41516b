//! Who gets a relay, who hears of it and in which order, and when it ends.

use lisp_proto::{
    Nonce, RequestFlags, RequestParams, RequestedEid, encode_info_request, encode_map_request,
};

use super::*;
use crate::config::{Options, XtrConfig};
use crate::server::bench::{
    Bench, Sent, control, control_key, empty, key, own_records, record, socket,
};
use crate::server::proxies::{
    acknowledge_all, clients_and_proxies, default_routes, endpoint, locators, name_of, own_address,
    share, told,
};
use crate::server::{Input, Via};

mod reminding;
mod rerouting;

/// Where the NATs are.
const NATS: [(&str, &str); 3] = [
    ("a", "198.51.100.1:7000"),
    ("b", "198.51.100.2:7000"),
    ("c", "198.51.100.3:7000"),
];

/// Agents a, b and c, of which those in `hidden` are behind NATs, and d, which may be their relay.
fn network(hidden: &[&str], relays: &[&str]) -> Bench {
    network_of(clients_and_proxies(), hidden, relays)
}

/// The same with these xTRs enrolled.
fn network_of(xtrs: Vec<XtrConfig>, hidden: &[&str], relays: &[&str]) -> Bench {
    let mut bench = Bench::of(options(relays), xtrs);
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

fn options(relays: &[&str]) -> Options {
    Options {
        notify_floor: Nonce(1_000_000),
        relays: relays.iter().map(|name| (*name).into()).collect(),
        ..Options::default()
    }
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

/// For which source somebody asks, and in which instance is what he asks for.
struct Claim {
    source: (InstanceId, std::net::IpAddr),
    iid: InstanceId,
}

/// Lets `from` ask for `to`, which it cannot reach at `lost`.
fn complain(bench: &mut Bench, from: &str, to: &str, lost: &[Locator]) -> Vec<Sent> {
    let claim = Claim {
        source: (InstanceId(0), own_records(from)[0].eid.net().addr()),
        iid: InstanceId(0),
    };
    claimed(bench, from, to, &claim, lost)
}

fn claimed(bench: &mut Bench, from: &str, to: &str, claim: &Claim, lost: &[Locator]) -> Vec<Sent> {
    let target = EidPrefix::new(claim.iid, own_records(to)[0].eid.net());
    ask_with(bench, from, claim.source, &[target], lost)
}

/// Lets `from` ask for several addresses at once.
fn claim_about(bench: &mut Bench, from: &str, eids: &[&str], lost: &[Locator]) -> Vec<Sent> {
    let source = (InstanceId(0), own_records(from)[0].eid.net().addr());
    let hosts = eids
        .iter()
        .map(|eid| EidPrefix::host(InstanceId(0), eid.parse().unwrap()));
    ask_with(bench, from, source, &hosts.collect::<Vec<_>>(), lost)
}

fn ask_with(
    bench: &mut Bench,
    from: &str,
    source: (InstanceId, std::net::IpAddr),
    targets: &[EidPrefix],
    lost: &[Locator],
) -> Vec<Sent> {
    let record = Record {
        eid: targets[0],
        locators: lost.to_vec(),
        ..empty("10.0.0.0/8", 1)
    };
    let eids = targets.iter().map(|eid| RequestedEid {
        subscribe: false,
        eid: *eid,
    });
    let params = RequestParams {
        flags: RequestFlags::default(),
        nonce: Nonce(bench.nonce()),
        source_eid: Some(source),
        itr_rlocs: &[control(from).ip()],
        eids: &eids.collect::<Vec<_>>(),
        source_record: Some(&record),
        gap: None,
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
fn both_ends_hear_what_the_relay_has_for_itself() {
    let mut bench = network(&["a", "b"], &["d"]);
    let own = record(own_address("d"), endpoint("d"));
    bench.register("d", &[own]);
    acknowledge_all(&mut bench);
    let news = outcome(&mut bench, &lost("b"));
    for end in ["a", "b"] {
        let expected = format!("{end}: 10.0.1.4/32 at 192.0.2.4");
        assert!(news.contains(&expected), "{expected} is not in {news:?}");
    }
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

/// The locators of `relays`, as ones that cannot be reached.
fn lost_relays(relays: &[&str]) -> Vec<Locator> {
    let mut locators = Vec::new();
    for name in relays {
        locators.extend(default_routes(name, 7, 100)[0].locators.clone());
    }
    locators.iter_mut().for_each(|it| it.reachable = false);
    locators
}

/// Which of d and e a is told to reach b through.
fn relay_of_a(bench: &mut Bench) -> &'static str {
    let told = answer(bench);
    let [(at, limits::PRIORITY_RELAY)] = &told[..] else {
        panic!("one relay: {told:?}");
    };
    match &**at {
        "192.0.2.4" => "d",
        "192.0.2.5" => "e",
        other => panic!("{other}"),
    }
}

/// A and b, with two relays.
fn with_two_relays() -> (Bench, &'static str, &'static str) {
    let mut bench = network(&["a", "b"], &["d", "e"]);
    share(&mut bench, "e", &default_routes("e", 7, 100));
    acknowledge_all(&mut bench);
    outcome(&mut bench, &lost("b"));
    let first = relay_of_a(&mut bench);
    let other = if first == "d" { "e" } else { "d" };
    (bench, first, other)
}

fn index(bench: &Bench, name: &str) -> XtrIndex {
    bench.server.sites.by_name(&name.into()).unwrap()
}

/// Whether `via` carries packets of `end`.
fn carries(bench: &Bench, via: &str, end: &str) -> bool {
    let relays = &bench.server.state.relays;
    relays.carries(index(bench, via), index(bench, end), InstanceId(0))
}

#[test]
fn a_relay_that_cannot_be_reached_either_gives_way_to_another_one() {
    let (mut bench, first, other) = with_two_relays();
    outcome(&mut bench, &lost_relays(&[first]));
    assert_eq!(relay_of_a(&mut bench), other);
    assert_eq!(bench.server.sizes().relayed, 1);
    let carries = |via, end| carries(&bench, via, end);
    assert!(carries(other, "a") && carries(other, "b"));
    assert!(!carries(first, "a") && !carries(other, "c"));
    let one = |via| bench.server.relayed_over(index(&bench, via));
    assert_eq!([one(first), one(other)], [0, 1]);
    // It is remembered: the other end may still speak of the far end itself.
    outcome(&mut bench, &lost("b"));
    assert_eq!(relay_of_a(&mut bench), other);
    // When that is lost as well, the first one may be back.
    outcome(&mut bench, &lost_relays(&[other]));
    assert_eq!(relay_of_a(&mut bench), first);
}

#[test]
fn who_complains_does_not_choose_the_relay() {
    for named in [&["d"], &["e"]] {
        let mut bench = network(&["a", "b"], &["d", "e"]);
        share(&mut bench, "e", &default_routes("e", 7, 100));
        acknowledge_all(&mut bench);
        let lost = [lost("b"), lost_relays(named)].concat();
        outcome(&mut bench, &lost);
        let (_, first, _) = with_two_relays();
        assert_eq!(relay_of_a(&mut bench), first);
    }
    let (mut bench, first, other) = with_two_relays();
    outcome(&mut bench, &lost_relays(&[other]));
    assert_eq!(relay_of_a(&mut bench), first, "it is not the one in use");
}

#[test]
fn both_may_complain_and_get_one_relay() {
    let (mut bench, first, _) = with_two_relays();
    complain(&mut bench, "b", "a", &lost("a"));
    complain(&mut bench, "a", "b", &lost("b"));
    acknowledge_all(&mut bench);
    assert_eq!(relay_of_a(&mut bench), first);
    assert_eq!(bench.server.sizes().relayed, 1);
}

#[test]
fn a_relay_that_says_nothing_keeps_nobody_waiting_for_long() {
    let mut bench = network(&["a", "b"], &["d"]);
    let first = complain(&mut bench, "a", "b", &lost("b"));
    assert!(told(&first).iter().all(|line| line.starts_with("d: ")));
    let later = bench.wait(bench.server.options.reply_hold);
    let later = told(&later);
    for line in ["b: 10.0.0.1/32 at 192.0.2.4", "a: 10.0.0.2/32 at 192.0.2.4"] {
        assert!(later.contains(&line.to_owned()), "{later:?}");
    }
}

#[test]
fn who_has_no_such_source_or_asks_about_another_instance_gets_no_relay() {
    let relayed = |source: &str, iids: [u32; 2]| {
        let mut bench = network(&["a", "b"], &["d"]);
        let claim = Claim {
            source: (InstanceId(iids[0]), source.parse().unwrap()),
            iid: InstanceId(iids[1]),
        };
        claimed(&mut bench, "a", "b", &claim, &lost("b"));
        bench.server.sizes().relayed
    };
    assert_eq!(relayed("10.0.0.1", [0, 0]), 1);
    assert_eq!(relayed("10.0.0.3", [0, 0]), 0, "that is c");
    assert_eq!(relayed("10.0.0.9", [0, 0]), 0, "that is nobody");
    assert_eq!(relayed("10.0.0.1", [7, 0]), 0, "in another instance");
}

#[test]
fn the_first_relay_ends_soon_and_the_next_ones_last_longer() {
    let mut bench = network(&["a", "b"], &["d"]);
    let first = limits::RELAY_LIFETIME_FIRST;
    let refresh = |bench: &mut Bench| {
        bench.register("a", &own("a"));
        bench.register("b", &own("b"));
        share(bench, "d", &default_routes("d", 7, 100));
        for (name, at) in &NATS[..2] {
            hide(bench, name, at);
        }
        acknowledge_all(bench);
    };
    let mut lifetime = first;
    for _ in 0..6 {
        let told = complain(&mut bench, "a", "b", &lost("b"));
        acknowledge_all(&mut bench);
        assert!(!told.is_empty());
        let minutes = told_for(&mut bench);
        assert_eq!(u64::from(minutes), lifetime.as_secs() / 60);
        assert_eq!(relay_of(&mut bench), Some(limits::PRIORITY_RELAY));
        let mut left = lifetime;
        while left > first {
            bench.wait(first);
            refresh(&mut bench);
            left -= first;
        }
        bench.wait(left);
        refresh(&mut bench);
        assert_eq!(relay_of(&mut bench), Some(1), "they try without");
        lifetime = (lifetime * 2).min(limits::RELAY_LIFETIME);
    }
    assert_eq!(lifetime, limits::RELAY_LIFETIME);
}

/// The priority under which a is told that b is.
fn relay_of(bench: &mut Bench) -> Option<u8> {
    answer(bench).first().map(|(_, priority)| *priority)
}

/// How long a is told that this is good, in minutes.
fn told_for(bench: &mut Bench) -> u32 {
    let before = bench.sent.len();
    bench.ask("a", "10.0.0.2");
    acknowledge_all(bench);
    let mut answers = bench.sent[before..].iter();
    let answer = answers.find(|sent| !sent.is_notify() && name_of(sent) == "a");
    answer.unwrap().reply_records()[0].ttl.minutes()
}

#[test]
fn an_owner_whom_others_can_replace_is_replaced_and_gets_no_relay() {
    let failed_over = |bench: &Bench| {
        let events = bench.events.iter();
        let moved = events.filter(|event| matches!(event, Event::FailedOver { .. }));
        (moved.count(), bench.server.sizes().relayed)
    };
    let mut bench = network(&["a", "b", "c"], &["d"]);
    share(&mut bench, "e", &default_routes("e", 7, 100));
    acknowledge_all(&mut bench);
    bench.ask("a", "8.8.8.8");
    acknowledge_all(&mut bench);
    let client = bench.server.sites.by_name(&"a".into()).unwrap();
    let shared = bench.server.state.assignments.of(client, InstanceId(0));
    let named = [lost("b"), lost_relays(&["d", "e"])].concat();
    outcome(&mut bench, &named);
    assert_eq!(
        failed_over(&bench),
        (0, 1),
        "only the far end was asked for"
    );
    let at = bench.server.state.assignments.get(&shared[0], client);
    let used = bench.server.sites.site(at.unwrap().owner).name.clone();
    let named = [lost("b"), lost_relays(&[&used])].concat();
    claim_about(&mut bench, "a", &["8.8.8.8", "10.0.0.2"], &named);
    acknowledge_all(&mut bench);
    let (moved, relayed) = failed_over(&bench);
    assert!(moved > 0);
    assert_eq!(relayed, 1, "as before");
    claim_about(&mut bench, "a", &["8.8.8.8", "10.0.0.3"], &lost("c"));
    acknowledge_all(&mut bench);
    assert_eq!(
        failed_over(&bench),
        (moved, 1),
        "one message says one thing"
    );
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
