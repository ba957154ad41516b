//! Settings that change while the agent runs, and tunnels that do not notice.

use super::*;

fn changed(bench: &mut Bench, change: impl FnOnce(&mut Adjustable)) -> Vec<Action> {
    let mut wanted = bench.agent.adjustable();
    change(&mut wanted);
    let mut actions = Actions::default();
    bench.agent.reconfigure(bench.now, wanted, &mut actions);
    actions.drain().collect()
}

fn registered_ttls(actions: &[Action]) -> Vec<Ttl> {
    let messages = sent(actions)
        .into_iter()
        .map(|bytes| decode(bytes).unwrap());
    let registers = messages.filter_map(|message| match message {
        Message::MapRegister(register) => Some(register.records().next().unwrap().ttl()),
        _ => None,
    });
    registers.collect()
}

#[test]
fn nothing_new_is_nothing_to_do() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    assert_eq!(changed(&mut bench, |_| ()), []);
}

#[test]
fn a_new_ttl_is_registered_at_once() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let ttl = Ttl::from_minutes(3);
    let actions = changed(&mut bench, |wanted| wanted.ttl = ttl);
    assert_eq!(registered_ttls(&actions), [ttl]);
    assert_eq!(story(&actions), ["register"], "and nothing else happens");
}

#[test]
fn a_subscription_that_is_added_is_asked_for_and_one_that_is_removed_ends() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let own = record("10.0.0.1/32", OWN, Ttl::from_minutes(15));
    bench.notify(1000, &own);
    let to = net("10.0.0.7/32");
    let actions = changed(&mut bench, |wanted| wanted.subscriptions = vec![to]);
    assert_eq!(story(&actions), ["register"]);
    let actions = bench.notify(1001, &own);
    let nonce = requests(&actions)[0].nonce.0;
    let there = record("10.0.0.7/32", SMALLER, Ttl::from_minutes(15));
    let answered = bench.notify(nonce, &there);
    bench.done(&answered);

    let actions = changed(&mut bench, |wanted| wanted.subscriptions.clear());
    assert_eq!(story(&actions), ["request", "register"], "its peer stays");
    let requests = requests(&actions);
    let to: Vec<_> = requests[0].itr_rlocs().map(|rloc| rloc.ip()).collect();
    assert_eq!(to, [None], "no more (RFC 9437 6)");
    let ended = bench.notify(requests[0].nonce.0, &there);
    assert!(!story(&ended).contains(&"request".to_owned()));
    for _ in 0..40 {
        let later = bench.after(Duration::from_secs(5));
        let asks = sent(&later).iter().any(|bytes| {
            matches!(decode(bytes).unwrap(), Message::MapRequest(request)
                if request.eids().any(|eid| eid.subscribe))
        });
        assert!(!asks, "it is over");
    }
}

/// Each record of the Map-Registers in `actions`, with its TTL.
pub(super) fn registered(actions: &[Action]) -> Vec<(String, Ttl)> {
    let messages = sent(actions)
        .into_iter()
        .map(|bytes| decode(bytes).unwrap());
    let records = messages.flat_map(|message| match message {
        Message::MapRegister(register) => {
            let records = register.records();
            let records = records.map(|record| (record.eid().unwrap().to_string(), record.ttl()));
            records.collect::<Vec<_>>()
        }
        _ => Vec::new(),
    });
    records.collect()
}

#[test]
fn what_lives_here_no_more_is_withdrawn_until_that_is_acknowledged_and_what_is_new_registered() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let ttl = Ttl::from_minutes(15);
    bench.notify(1000, &record("10.0.0.1/32", OWN, ttl));
    let actions = changed(&mut bench, |wanted| {
        wanted.eid_prefixes = vec![net("10.0.0.7/32"), net("fd00:1::1/128")];
    });
    let told = [
        ("10.0.0.7/32".to_owned(), ttl),
        ("fd00:1::1/128".to_owned(), ttl),
        ("10.0.0.1/32".to_owned(), Ttl::WITHDRAW),
    ];
    assert_eq!(registered(&actions), told);
    let again = bench.after(limits::REGISTER_RETRY);
    assert_eq!(registered(&again), told, "nobody has acknowledged it");
    let gone = record("10.0.0.1/32", OWN, Ttl::WITHDRAW);
    let acknowledged = bench.notify(1002, &gone);
    assert_eq!(story(&acknowledged), [""; 0], "it is no push");
    let later = bench.after(Duration::from_secs(100));
    assert_eq!(registered(&later), told[..2]);
    let from = packet("10.0.0.1", "10.0.0.2", &[1]);
    assert_eq!(
        story(&bench.input(Input::TunPacket(&from)))[0],
        "SourceNotOurs"
    );
}

#[test]
fn another_overlay_takes_what_it_has_no_room_for_and_touches_nothing_else() {
    let mut bench = Bench::new();
    let kept = far_end(SMALLER);
    bench.connect(1, &kept, 92);
    let lost = record("10.9.0.0/16", BIGGER, Ttl::from_minutes(15));
    let installing = bench.notify(2, &lost);
    bench.done(&installing);
    let fired = bench.handshake(BIGGER, 92);
    bench.done(&fired);
    bench.input(Input::TunPacket(&packet("10.0.0.1", "10.9.9.9", &[1])));
    bench.input(Input::TunPacket(&packet("10.0.0.1", "10.200.0.1", &[2])));
    let smaller = |wanted: &mut Adjustable| wanted.overlay = vec![net("10.0.0.0/16")];
    let actions = changed(&mut bench, smaller);
    let told = [
        "no route 10.9.0.0/16",
        "no peer",
        "NoAnswer",
        "icmp",
        "register",
    ];
    assert_eq!(story(&actions), told);
    let through = bench.input(Input::TunPacket(&to_far_end(&[3])));
    assert_eq!(story(&through), ["sent on 3"]);
    let outside = bench.input(Input::TunPacket(&packet("10.0.0.1", "10.9.9.9", &[4])));
    assert_eq!(story(&outside), ["NotOverlay"]);
}

#[test]
fn an_address_that_comes_to_live_here_is_no_destination_any_more() {
    let mut bench = Bench::new();
    bench.connect(1, &far_end(SMALLER), 92);
    let actions = changed(&mut bench, |wanted| {
        wanted.eid_prefixes.push(net("10.0.0.2/32"));
    });
    assert_eq!(
        story(&actions),
        ["no route 10.0.0.2/32", "no peer", "register"]
    );
}

#[test]
fn fewer_peers_are_left_when_there_may_be_fewer() {
    let mut bench = Bench::new();
    for n in 1..60u8 {
        let eid = format!("10.0.1.{n}/32");
        let far_end = record(&eid, PublicKey([n + 100; 32]), Ttl::from_minutes(15));
        let pushed = bench.notify(u64::from(n), &far_end);
        bench.done(&pushed);
    }
    bench.after(limits::LIVENESS_POLL);
    changed(&mut bench, |wanted| wanted.max_peers = 20);
    let in_use = PublicKey([101; 32]);
    for n in 1..5 {
        for action in bench.after(limits::LIVENESS_POLL) {
            let Action::ReadPeerStats(keys) = action else {
                continue;
            };
            let counted = keys.iter().map(|key| PeerStats {
                key: *key,
                endpoint: None,
                handshake_seen: true,
                rx_bytes: if *key == in_use { n } else { 0 },
                tx_bytes: 0,
                read_at: bench.now,
            });
            let counted: Vec<_> = counted.collect();
            let gone = bench.input(Input::PeerStats(&counted));
            bench.done(&gone);
        }
    }
    let left: Vec<_> = bench.agent.peers().map(|peer| peer.key).collect();
    assert!(left.len() <= 20 && left.contains(&in_use), "{left:?}");
}

#[test]
fn another_idle_time_is_that_of_the_next_look() {
    let mut bench = Bench::new();
    bench.connect(1, &far_end(SMALLER), 92);
    let look = |bench: &mut Bench| {
        bench.after(Duration::from_secs(310));
        let looked = bench.handshake(SMALLER, 92);
        story(&looked).contains(&"no peer".to_owned())
    };
    changed(&mut bench, |wanted| wanted.idle = Duration::from_secs(600));
    assert!(!look(&mut bench));
    changed(&mut bench, |wanted| wanted.idle = Duration::from_secs(300));
    assert!(look(&mut bench));
}
