//! Peers that nobody uses.

use super::*;

/// What the data plane counts, by key.
type Counters = BTreeMap<PublicKey, u64>;

/// Lets `time` pass, with a data plane that does everything and counts what `counters` says.
fn pass(bench: &mut Bench, time: Duration, counters: &Counters) -> Vec<String> {
    let until = bench.now + time;
    let mut told = Vec::new();
    while bench.now < until {
        let next = bench
            .agent
            .next_deadline()
            .map_or(time, |next| next - bench.now);
        let actions = bench.after(next.min(until - bench.now));
        told.extend(settle(bench, actions, counters));
    }
    told.retain(|word| word != "register" && word != "new control tunnel");
    told
}

/// Carries out `actions` and all that follows.
fn settle(bench: &mut Bench, mut actions: Vec<Action>, counters: &Counters) -> Vec<String> {
    let mut told = Vec::new();
    while !actions.is_empty() {
        told.extend(story(&actions));
        let mut next = bench.done(&actions);
        for action in &actions {
            let Action::ReadPeerStats(keys) = action else {
                continue;
            };
            assert!(keys.len() <= 2 * limits::LOOK_SLICE);
            let stats = keys.iter().filter_map(|key| {
                let bytes = *counters.get(key)?;
                Some(PeerStats {
                    key: *key,
                    endpoint: None,
                    handshake_seen: true,
                    rx_bytes: bytes,
                    tx_bytes: bytes,
                    read_at: bench.now,
                })
            });
            let stats: Vec<_> = stats.collect();
            next.extend(bench.input(Input::PeerStats(&stats)));
        }
        actions = next;
    }
    told
}

/// An agent that was told of a far end, which has had a handshake.
fn connected() -> (Bench, Counters) {
    let mut bench = Bench::new();
    let counters = Counters::from([(SMALLER, 1)]);
    let pushed = bench.notify(1, &far_end(SMALLER));
    settle(&mut bench, pushed, &counters);
    pass(&mut bench, Duration::from_secs(1), &counters);
    (bench, counters)
}

const A_LOOK: Duration = Duration::from_secs(5);

#[test]
fn an_idle_peer_loses_its_route_first_and_then_goes() {
    let (mut bench, counters) = connected();
    let told = pass(&mut bench, limits::DOZE - A_LOOK, &counters);
    assert_eq!(told, [""; 0]);
    let told = pass(&mut bench, 2 * A_LOOK, &counters);
    assert_eq!(told, ["no route 10.0.0.2/32"]);
    let told = pass(&mut bench, Duration::from_secs(120), &counters);
    assert_eq!(told, ["no peer"]);
    assert_eq!(bench.agent.sizes().map_cache, 0);
    assert_eq!(
        pass(&mut bench, Duration::from_secs(600), &counters),
        [""; 0]
    );
}

#[test]
fn a_peer_in_use_stays() {
    let (mut bench, mut counters) = connected();
    for n in 2..20 {
        counters.insert(SMALLER, n);
        let told = pass(&mut bench, Duration::from_secs(40), &counters);
        assert!(told.iter().all(|word| word == "request"), "{told:?}");
    }
}

#[test]
fn a_packet_to_an_idle_peer_is_asked_for_so_that_the_far_end_hears_of_us() {
    let (mut bench, counters) = connected();
    pass(&mut bench, limits::DOZE + A_LOOK, &counters);
    let caught = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let asked = bench.handshake(SMALLER, 1);
    assert_eq!(story(&caught), [""; 0]);
    assert_eq!(
        requests(&asked).len(),
        0,
        "the counters must be those of before"
    );
    let (mut bench, counters) = connected();
    pass(&mut bench, limits::DOZE + A_LOOK, &counters);
    let caught = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let told = settle(&mut bench, caught, &counters);
    assert_eq!(told, ["no peer", "request"], "as for the first time");
    assert_eq!(bench.agent.sizes().held, 1);
}

#[test]
fn a_packet_to_an_idle_peer_does_not_wait_for_counters_that_nobody_reads() {
    let (mut bench, counters) = connected();
    pass(&mut bench, limits::DOZE + A_LOOK, &counters);
    bench.input(Input::TunPacket(&to_far_end(&[1])));
    let told = pass(&mut bench, limits::DOZE_LOOK, &Counters::new());
    assert_eq!(told, ["no peer", "request"]);
}

#[test]
fn an_idle_peer_that_is_used_by_the_far_end_gets_its_route_back() {
    let (mut bench, mut counters) = connected();
    pass(&mut bench, limits::DOZE + A_LOOK, &counters);
    counters.insert(SMALLER, 2);
    let answer = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let told = settle(&mut bench, answer, &counters);
    assert_eq!(told, ["sent on 1", "route 10.0.0.2/32"]);
}

#[test]
fn an_idle_peer_that_asks_for_us_starts_from_nothing() {
    let (mut bench, counters) = connected();
    pass(&mut bench, limits::DOZE + A_LOOK, &counters);
    let pushed = bench.notify(2, &far_end(SMALLER));
    assert_eq!(story(&pushed), ["no peer", "peer [10.0.0.2/32]"]);
    let told = settle(&mut bench, pushed, &counters);
    assert_eq!(told, ["no peer", "peer [10.0.0.2/32]", "ack"]);
}

#[test]
fn packets_for_another_prefix_of_an_idle_peer_that_asks_for_us_are_asked_for() {
    let (mut bench, counters) = connected();
    let more = bench.notify(2, &record("10.3.0.0/16", SMALLER, Ttl::from_minutes(15)));
    settle(&mut bench, more, &counters);
    pass(&mut bench, limits::DOZE + A_LOOK, &counters);
    let other = packet("10.0.0.1", "10.3.0.9", &[7]);
    bench.input(Input::TunPacket(&other));
    let pushed = bench.notify(3, &far_end(SMALLER));
    let told = story(&pushed);
    assert!(told.contains(&"request".to_owned()), "{told:?}");
    assert!(!told.contains(&"MappingLost".to_owned()), "{told:?}");
    assert_eq!(bench.agent.sizes().held, 1);
}

#[test]
fn what_is_subscribed_to_is_said_hello_to_and_stays() {
    let mut bench = Bench::with(Config {
        subscriptions: vec![net("10.0.0.2/32")],
        ..Bench::config()
    });
    let counters = Counters::from([(SMALLER, 1)]);
    let pushed = bench.notify(1, &far_end(SMALLER));
    settle(&mut bench, pushed, &counters);
    let told = pass(&mut bench, Duration::from_secs(400), &counters);
    assert!(told.iter().any(|word| word == "kick"));
    assert!(!told.iter().any(|word| word.starts_with("no ")));
}

fn numbered(n: u16) -> (PublicKey, Record) {
    let mut key = [7; 32];
    key[..2].copy_from_slice(&n.to_be_bytes());
    let [high, low] = n.to_be_bytes();
    let eid = format!("10.1.{high}.{low}/32");
    (
        PublicKey(key),
        record(&eid, PublicKey(key), Ttl::from_minutes(15)),
    )
}

#[test]
fn near_the_limit_those_that_were_used_longest_ago_make_room() {
    let mut bench = Bench::with(Config {
        max_peers: 160,
        ..Bench::config()
    });
    let mut counters = Counters::new();
    for n in 0..400u16 {
        let (key, record) = numbered(n);
        counters.insert(key, 1);
        // The first peer is in use all the time.
        *counters.get_mut(&numbered(0).0).unwrap() += 1;
        let pushed = bench.notify(u64::from(n) + 1, &record);
        settle(&mut bench, pushed, &counters);
        pass(&mut bench, Duration::from_millis(500), &counters);
        assert!(bench.agent.peers().count() <= 160);
    }
    let left: BTreeSet<PublicKey> = bench.agent.peers().map(|peer| peer.key).collect();
    assert!(left.contains(&numbered(0).0) && left.contains(&numbered(399).0));
    assert!(!left.contains(&numbered(1).0));
}

/// The counters of everybody in `keys`, as they were when nothing had come from them.
fn unmoved(bench: &Bench, keys: &[PublicKey]) -> Vec<PeerStats> {
    let rows = keys.iter().map(|key| PeerStats {
        key: *key,
        endpoint: None,
        handshake_seen: true,
        rx_bytes: 1,
        tx_bytes: 1,
        read_at: bench.now,
    });
    rows.collect()
}

#[test]
fn who_is_wanted_while_the_counters_are_read_does_not_make_room() {
    let mut bench = Bench::with(Config {
        max_peers: 16,
        ..Bench::config()
    });
    let counters: Counters = (0..16).map(|n| (numbered(n).0, 1)).collect();
    for n in 0..15u16 {
        let pushed = bench.notify(u64::from(n) + 1, &numbered(n).1);
        settle(&mut bench, pushed, &counters);
    }
    pass(&mut bench, limits::LIVENESS_POLL * 3, &counters);
    let pushed = bench.notify(16, &numbered(15).1);
    let chosen = pushed.iter().find_map(|action| match action {
        Action::ReadPeerStats(keys) => Some(keys.clone()),
        _ => None,
    });
    let chosen = chosen.expect("somebody is to make room");
    let (wanted, other) = (numbered(0), numbered(1));
    assert!(chosen.contains(&wanted.0) && chosen.contains(&other.0));
    let stats = unmoved(&bench, &chosen);
    // Another mapping of the one that was used longest ago comes while counters are read.
    let more = record("10.2.0.1/32", wanted.0, Ttl::from_minutes(15));
    let pushed = bench.notify(17, &more);
    bench.done(&pushed);
    bench.now = bench.now + Duration::from_millis(50);
    bench.input(Input::PeerStats(&stats));
    let left: BTreeSet<PublicKey> = bench.agent.peers().map(|peer| peer.key).collect();
    assert!(left.contains(&wanted.0) && !left.contains(&other.0));
}

#[test]
fn a_peer_too_many_is_refused_when_all_are_in_use() {
    let mut bench = Bench::with(Config {
        max_peers: 16,
        ..Bench::config()
    });
    let mut refused = 0;
    for n in 0..32u16 {
        let pushed = bench.notify(u64::from(n) + 1, &numbered(n).1);
        refused += story(&pushed)
            .iter()
            .filter(|word| *word == "TooManyPeers")
            .count();
        bench.done(&pushed);
    }
    assert_eq!((refused, bench.agent.peers().count()), (16, 16));
}

#[test]
fn all_of_many_peers_are_looked_at_in_turn() {
    let mut bench = Bench::new();
    for n in 0..3_000u16 {
        let pushed = bench.notify(u64::from(n) + 1, &numbered(n).1);
        bench.done(&pushed);
    }
    bench.after(Duration::from_millis(500));
    let mut looked = BTreeSet::new();
    for _ in 0..3 {
        for action in bench.after(limits::LIVENESS_POLL) {
            if let Action::ReadPeerStats(keys) = action {
                assert!(keys.len() <= limits::LOOK_SLICE);
                looked.extend(keys);
            }
        }
    }
    assert_eq!(looked.len(), 3_000);
}
