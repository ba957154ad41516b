//! The agent's paths as timelines: what comes in, what goes out, in order.

use super::*;

#[test]
fn a_miss_becomes_a_tunnel() {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let request = &requests(&asked)[0];
    assert_eq!(
        request.eids().next().unwrap().eid.to_string(),
        "10.0.0.2/32"
    );
    assert_eq!(
        request.source_eid(),
        Some((InstanceId(0), addr("10.0.0.1")))
    );
    let nonce = request.nonce;

    assert_eq!(
        story(&bench.input(Input::TunPacket(&to_far_end(&[2])))),
        [""; 0]
    );
    let installing = bench.reply(nonce, &far_end(SMALLER));
    assert_eq!(story(&installing), ["peer [10.0.0.2/32]"]);
    assert_eq!(
        story(&bench.input(Input::TunPacket(&to_far_end(&[3])))),
        [""; 0]
    );

    let fired = bench.done(&installing);
    assert_eq!(
        story(&fired),
        ["sent on 1", "sent on 2", "sent on 3"],
        "which starts the handshake"
    );
    let early = bench.input(Input::TunPacket(&to_far_end(&[9])));
    assert_eq!(story(&early), ["sent on 9"]);
    let fired = bench.handshake(SMALLER, 92);
    assert_eq!(story(&fired), ["route 10.0.0.2/32"]);
    let late = bench.input(Input::TunPacket(&to_far_end(&[4])));
    assert_eq!(
        story(&late),
        ["sent on 4"],
        "until the route is there the agent forwards"
    );
    assert!(matches!(
        bench.done(&fired)[..],
        [Action::Event(Event::RouteInstalled { .. })]
    ));
}

#[test]
fn a_push_installs_the_far_end_and_is_acknowledged_afterwards() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(SMALLER));
    assert_eq!(
        story(&installing),
        ["peer [10.0.0.2/32]"],
        "no ack before the peer is there"
    );
    let installed = bench.done(&installing);
    assert_eq!(story(&installed), ["ack"]);
    verify(&key(), sent(&installed)[0]).unwrap();

    // Our own packets wait for the handshake that the other side is about to start.
    let held = bench.input(Input::TunPacket(&to_far_end(&[1])));
    assert!(matches!(held[..], [Action::ReadPeerStats(_)]));
    assert_eq!(
        story(&bench.handshake(SMALLER, 1)),
        ["sent on 1", "route 10.0.0.2/32"]
    );

    assert_eq!(
        story(&bench.notify(1, &far_end(SMALLER))),
        ["ack"],
        "a lost ack is repeated"
    );
}

#[test]
fn a_repeated_push_is_not_acknowledged_before_the_peer_is_there() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(SMALLER));
    assert_eq!(story(&bench.notify(1, &far_end(SMALLER))), ["StaleNotify"]);
    assert_eq!(story(&bench.notify(2, &far_end(SMALLER))), [""; 0]);
    assert_eq!(
        story(&bench.done(&installing)),
        ["ack", "ack"],
        "one for each notify"
    );
}

#[test]
fn a_far_end_that_hears_nothing_starts_the_handshake_itself() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    let kicked = bench.after(limits::PASSIVE_WAIT);
    assert_eq!(story(&kicked), ["kick"]);
    let shaken = bench.handshake(SMALLER, 92);
    assert_eq!(story(&shaken), ["route 10.0.0.2/32"]);
}

#[test]
fn of_two_ends_that_start_at_once_only_the_smaller_key_fires() {
    for (other, expected) in [(BIGGER, vec!["sent on 1"]), (SMALLER, vec![])] {
        let mut bench = Bench::new();
        let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
        let nonce = requests(&asked)[0].nonce;
        let installing = bench.notify(1, &far_end(other));
        assert_eq!(
            story(&bench.done(&installing)),
            ["ack"],
            "the far end may not be ready yet"
        );
        assert_eq!(story(&bench.reply(nonce, &far_end(other))), expected);
        if other == SMALLER {
            let fired = bench.handshake(other, 1);
            assert_eq!(story(&fired), ["sent on 1", "route 10.0.0.2/32"]);
        }
    }
}

#[test]
fn a_mapping_goes_with_its_ttl_route_first() {
    let mut bench = Bench::new();
    bench.connect(1, &record("10.0.0.2/32", SMALLER, Ttl::from_minutes(1)), 0);
    assert_eq!(story(&bench.after(Duration::from_secs(50))), [""; 0]);
    assert_eq!(
        story(&bench.handshake(SMALLER, 0)),
        [""; 0],
        "an idle mapping is not refreshed"
    );
    let gone = bench.after(Duration::from_secs(11));
    assert_eq!(story(&gone), ["no route 10.0.0.2/32", "no peer"]);
}

#[test]
fn a_mapping_in_use_is_asked_for_again_before_it_ends() {
    let mut bench = Bench::new();
    bench.connect(1, &record("10.0.0.2/32", SMALLER, Ttl::from_minutes(1)), 0);
    bench.after(Duration::from_secs(48));
    let asked = bench.handshake(SMALLER, 1000);
    assert_eq!(story(&asked), ["request"]);
    let nonce = requests(&asked)[0].nonce;
    assert_eq!(
        story(&bench.reply(nonce, &record("10.0.0.2/32", SMALLER, Ttl::from_minutes(1)))),
        [""; 0]
    );
    assert_eq!(story(&bench.after(Duration::from_secs(13))), [""; 0]);
    assert_eq!(
        story(&bench.after(Duration::from_secs(60))),
        ["no route 10.0.0.2/32", "no peer"]
    );
}

#[test]
fn a_withdrawal_removes_and_a_new_key_replaces() {
    let mut bench = Bench::new();
    bench.connect(1, &far_end(SMALLER), 0);
    let replaced = bench.notify(2, &far_end(BIGGER));
    assert_eq!(story(&replaced), ["peer [10.0.0.2/32]", "no peer"]);
    assert_eq!(story(&bench.done(&replaced)), ["ack"]);
    let mut gone = far_end(BIGGER);
    gone.ttl = Ttl::WITHDRAW;
    let removed = bench.notify(3, &gone);
    assert_eq!(story(&removed), ["no route 10.0.0.2/32", "no peer"]);
    assert_eq!(story(&bench.done(&removed)), ["ack"]);
}

#[test]
fn registrations_are_repeated_with_growing_nonces_and_withdrawn_at_the_end() {
    let mut bench = Bench::new();
    let nonce_of = |actions: &[Action]| match decode(sent(actions)[0]).unwrap() {
        Message::MapRegister(register) => (
            register.nonce,
            register.records().next().unwrap().ttl().minutes(),
        ),
        other => panic!("{other:?}"),
    };
    let first = bench.input(Input::Start);
    assert_eq!(nonce_of(&first), (Nonce(1000), 15));
    verify(&key(), sent(&first)[0]).unwrap();
    let second = bench.after(Duration::from_secs(1));
    assert_eq!(nonce_of(&second).0, Nonce(1001));
    let ack = record("10.0.0.1/32", OWN, Ttl::from_minutes(15));
    let heard = bench.notify(1001, &ack);
    assert!(matches!(
        heard[..],
        [Action::Event(Event::Registered { .. })]
    ));
    assert_eq!(story(&bench.after(Duration::from_secs(40))), [""; 0]);
    assert_eq!(story(&bench.after(Duration::from_secs(40))), ["register"]);
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    let goodbye = bench.input(Input::Shutdown);
    assert_eq!(story(&goodbye), ["register", "no peer"]);
    assert_eq!(nonce_of(&goodbye).1, 0);
    let withdrawn = bench.notify(nonce_of(&goodbye).0.0, &ack);
    assert_eq!(withdrawn, []);
    assert_eq!(story(&bench.after(Duration::from_secs(300))), [""; 0]);
}

#[test]
fn prefixes_that_others_register_too_have_the_merge_bit() {
    for shared in [false, true] {
        let mut bench = Bench::with(Config {
            shared,
            ..Bench::config()
        });
        let started = bench.input(Input::Start);
        let Message::MapRegister(register) = decode(sent(&started)[0]).unwrap() else {
            panic!("not registered");
        };
        assert_eq!(register.flags.merge, shared);
    }
}

#[test]
fn a_mapping_in_use_outlives_its_map_servers() {
    let mut bench = Bench::new();
    bench.connect(1, &record("10.0.0.2/32", SMALLER, Ttl::from_minutes(1)), 0);
    bench.after(Duration::from_secs(48));
    let asked = bench.handshake(SMALLER, 1000);
    let nonce = requests(&asked)[0].nonce;
    let mut later = Vec::new();
    for _ in 0..100 {
        later.extend(bench.after(Duration::from_secs(3)));
    }
    let again = requests(&later);
    assert!(again.len() > 20 && again.iter().all(|request| request.nonce == nonce));
    assert_eq!(bench.agent.peers().count(), 1, "five minutes past its time");
    let mut gone = far_end(SMALLER);
    gone.locators.clear();
    assert_eq!(
        story(&bench.reply(nonce, &gone)),
        ["no route 10.0.0.2/32", "no peer"]
    );
}

#[test]
fn a_session_is_no_proof_that_the_far_end_knows_a_second_eid() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &record("10.0.0.9/32", SMALLER, Ttl::from_minutes(15)));
    bench.done(&installing);
    bench.handshake(SMALLER, 1);
    // Both ends ask for each other's second EID at the same time.
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.notify(2, &far_end(SMALLER));
    assert_eq!(
        story(&bench.done(&installing)),
        ["ack"],
        "the far end was not told of us yet"
    );
    assert_eq!(story(&bench.handshake(SMALLER, 2)), [""; 0]);
    let fired = bench.reply(nonce, &far_end(SMALLER));
    assert_eq!(story(&fired), ["sent on 1", "route 10.0.0.2/32"]);
}

#[test]
fn a_mapping_kept_beyond_its_time_serves_the_packet_that_comes_just_then() {
    let mut bench = Bench::new();
    bench.connect(1, &record("10.0.0.2/32", SMALLER, Ttl::from_minutes(1)), 0);
    bench.after(Duration::from_secs(48));
    bench.handshake(SMALLER, 1000);
    // Its time is over, and the timer has not been looked at.
    bench.now = Timestamp::ZERO + Duration::from_secs(61);
    let sent = bench.input(Input::TunPacket(&to_far_end(&[1])));
    assert_eq!(story(&sent)[0], "sent on 1");
    assert_eq!(bench.agent.peers().count(), 1);
}

#[test]
fn a_lost_withdrawal_is_repeated_until_it_is_acknowledged() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let own = record("10.0.0.1/32", OWN, Ttl::from_minutes(15));
    bench.notify(1000, &own);
    assert_eq!(story(&bench.input(Input::Shutdown)), ["register"]);
    assert!(!bench.agent.has_left());
    for _ in 0..3 {
        assert_eq!(story(&bench.after(limits::FAREWELL_RETRY)), ["register"]);
    }
    bench.notify(1004, &own);
    assert!(bench.agent.has_left());
    assert_eq!(story(&bench.after(Duration::from_secs(300))), [""; 0]);
}

#[test]
fn a_host_whose_address_changes_registers_at_once() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let own = record("10.0.0.1/32", OWN, Ttl::from_minutes(15));
    bench.notify(1000, &own);
    bench.after(Duration::from_secs(10));
    assert_eq!(
        story(&bench.input(Input::LocalRlocs(&[addr("192.0.2.1").into()]))),
        [""; 0]
    );
    let moved = bench.input(Input::LocalRlocs(&[addr("198.51.100.1").into()]));
    let Message::MapRegister(register) = decode(sent(&moved)[0]).unwrap() else {
        panic!("not registered");
    };
    let record = register.records().next().unwrap();
    let rloc = record.locators().next().unwrap().rloc(1);
    let endpoint = "198.51.100.1:51820".parse().unwrap();
    assert_eq!(rloc, Some(Rloc::WireGuard { endpoint, key: OWN }));
    let again = story(&bench.after(limits::REGISTER_RETRY));
    assert!(again.contains(&"register".to_owned()), "and again soon");
}

#[test]
fn who_is_drained_says_at_once_that_its_locators_must_not_be_used() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let priorities = |actions: &[Action]| -> Vec<u8> {
        let sent = sent(actions);
        let Some(Ok(Message::MapRegister(register))) = sent.first().map(|bytes| decode(bytes))
        else {
            return Vec::new();
        };
        let record = register.records().next().unwrap();
        record.locators().map(|locator| locator.priority).collect()
    };
    assert_eq!(priorities(&bench.input(Input::Drain(true))), [255]);
    assert_eq!(priorities(&bench.input(Input::Drain(true))), [0_u8; 0]);
    let again = bench.after(limits::REGISTER_RETRY);
    assert_eq!(priorities(&again), [255], "until it is heard");
    assert_eq!(priorities(&bench.input(Input::Drain(false))), [1]);
}

#[test]
fn without_a_control_tunnel_answers_follow_the_host_to_its_new_address() {
    let mut config = Bench::config();
    config.control_address = addr("192.0.2.1");
    let mut bench = Bench::with(config);
    bench.input(Input::LocalRlocs(&[
        addr("2001:db8::1").into(),
        addr("198.51.100.1").into(),
    ]));
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let to: Vec<_> = requests(&asked)[0]
        .itr_rlocs()
        .map(|rloc| rloc.ip())
        .collect();
    assert_eq!(to, [Some(addr("198.51.100.1"))]);
}
