//! What many packets, many peers and late messages may not do.

use super::*;

#[test]
fn a_late_acknowledgement_of_a_registration_is_no_push() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let own = record("10.0.0.1/32", OWN, Ttl::from_minutes(15));
    bench.after(Duration::from_secs(1));
    assert_eq!(story(&bench.notify(1000, &own)), ["StaleNotify"]);
    bench.notify(1001, &own);
    assert_eq!(story(&bench.notify(1001, &own)), ["StaleNotify"]);
    assert_eq!(
        story(&bench.notify(1, &far_end(SMALLER))),
        ["peer [10.0.0.2/32]"],
        "pushes have nonces of their own"
    );
}

#[test]
fn a_push_with_the_nonce_of_a_registration_is_a_push() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let first = bench.notify(1000, &far_end(SMALLER));
    assert_eq!(story(&first), ["peer [10.0.0.2/32]"]);
    bench.notify(1000, &record("10.0.0.1/32", OWN, Ttl::from_minutes(15)));
    assert!(bench.agent.acknowledged(0).is_some());
    let later = record("10.0.0.9/32", BIGGER, Ttl::from_minutes(15));
    assert_eq!(story(&bench.notify(1001, &later)), ["peer [10.0.0.9/32]"]);
}

#[test]
fn peers_that_keep_coming_do_not_put_off_the_look_for_handshakes() {
    let mut bench = Bench::new();
    let mut looks = 0;
    for n in 1..=20u8 {
        let eid = format!("10.0.1.{n}/32");
        let far = record(&eid, PublicKey([n + 20; 32]), Ttl::from_minutes(15));
        let installing = bench.notify(u64::from(n), &far);
        bench.done(&installing);
        let later = bench.after(limits::HANDSHAKE_POLL / 2);
        looks += later
            .iter()
            .filter(|action| matches!(action, Action::ReadPeerStats(_)))
            .count();
    }
    assert!(looks >= 9, "{looks} looks in ten intervals");
}

#[test]
fn of_many_packets_that_await_a_handshake_the_first_looks_for_it() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    let looks = (0..50).flat_map(|n| bench.input(Input::TunPacket(&to_far_end(&[n]))));
    let looks = looks.filter(|action| matches!(action, Action::ReadPeerStats(_)));
    assert_eq!(looks.count(), 1);
}

#[test]
fn negative_mappings_leave_room_for_positive_ones() {
    let mut bench = Bench::new();
    for n in 0..u32::try_from(limits::MAP_CACHE_ENTRIES).unwrap() {
        let dst = std::net::Ipv4Addr::from(0x0a01_0000 + n).to_string();
        let asked = bench.input(Input::TunPacket(&packet("10.0.0.1", &dst, &[1])));
        let nonce = requests(&asked)[0].nonce;
        let mut none = record(&format!("{dst}/32"), OWN, Ttl::from_minutes(15));
        none.locators.clear();
        bench.reply(nonce, &none);
    }
    let installing = bench.notify(1, &far_end(SMALLER));
    assert_eq!(story(&installing), ["peer [10.0.0.2/32]"]);
    assert!(bench.agent.sizes().map_cache <= limits::MAP_CACHE_ENTRIES);
}

#[test]
fn a_map_server_that_answers_others_keeps_its_tunnel() {
    let mut bench = Bench::new();
    bench.now = Timestamp::ZERO + Duration::from_secs(100);
    bench.input(Input::TunPacket(&to_far_end(&[1])));
    let mut later = Vec::new();
    for n in 1..60 {
        later.extend(bench.after(Duration::from_millis(50)));
        bench.notify(n, &record("10.0.0.9/32", SMALLER, Ttl::WITHDRAW));
    }
    assert!(!story(&later).contains(&"new control tunnel".to_owned()));
}

#[test]
fn senders_are_told_only_so_often_that_their_packets_are_dropped() {
    let mut bench = Bench::new();
    bench.now = Timestamp::ZERO + Duration::from_secs(100);
    let stray = packet("10.9.9.9", "10.0.0.2", b"");
    let told = |bench: &mut Bench| {
        let actions = (0..15_000).flat_map(|_| bench.input(Input::TunPacket(&stray)));
        let errors = actions.filter(|action| matches!(action, Action::Deliver(_)));
        errors.count()
    };
    let most = usize::try_from(limits::ICMP_ERRORS_PER_SECOND).unwrap();
    assert_eq!(told(&mut bench), most);
    bench.after(Duration::from_millis(500));
    assert_eq!(told(&mut bench), most / 2);
}

#[test]
fn counters_of_one_peer_do_not_touch_the_mappings_of_others() {
    let mut bench = Bench::new();
    for n in 1..=200u8 {
        let eid = format!("10.0.1.{n}/32");
        let far = record(&eid, PublicKey([n; 32]), Ttl::from_minutes(15));
        let installing = bench.notify(u64::from(n), &far);
        bench.done(&installing);
    }
    let fired = bench.handshake(PublicKey([7; 32]), 1);
    assert_eq!(story(&fired), ["route 10.0.1.7/32"]);
}

#[test]
fn all_packets_for_one_prefix_go_out_in_order_however_many_destinations_waited() {
    let mut bench = Bench::new();
    let mut asked = Vec::new();
    for round in 0..3u8 {
        for n in 0..250u8 {
            let dst = format!("10.0.1.{n}");
            let packet = packet("10.0.0.1", &dst, &[n, round]);
            asked.extend(bench.input(Input::TunPacket(&packet)));
        }
    }
    let nonce = requests(&asked)[0].nonce;
    let answered = bench.reply(
        nonce,
        &record("10.0.1.0/24", SMALLER, Ttl::from_minutes(15)),
    );
    let late = packet("10.0.0.1", "10.0.1.0", &[0, 3]);
    bench.input(Input::TunPacket(&late));
    let mut fired = bench.done(&answered);
    fired.extend(bench.handshake(SMALLER, 92));
    let mut last = BTreeMap::new();
    let mut count = 0;
    for action in &fired {
        if let Action::Reinject(packet) = action {
            let [.., n, round] = packet[..] else { panic!() };
            assert!(last.insert(n, round).is_none_or(|before| before < round));
            count += 1;
        }
    }
    assert_eq!((count, last[&0]), (751, 3));
}
