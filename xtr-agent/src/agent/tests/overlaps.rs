//! Mappings inside mappings: shared routes, parts of a registration, and a prefix that takes over from another.

use super::*;

/// Lets a push be installed, and its route set.
fn installed(bench: &mut Bench, nonce: u64, record: &Record) {
    let installing = bench.notify(nonce, record);
    bench.done(&installing);
    let Rloc::WireGuard { key, .. } = record.locators[0].rloc else {
        panic!("no key");
    };
    let fired = bench.handshake(key, 0);
    bench.done(&fired);
}

fn ttl() -> Ttl {
    Ttl::from_minutes(15)
}

fn records_reply(bench: &mut Bench, nonce: Nonce, records: &[Record]) -> Vec<Action> {
    let mut bytes = Vec::new();
    let params = ReplyParams {
        probe: false,
        echo_nonce: false,
        nonce,
        records,
    };
    encode_map_reply(&params, &mut bytes).unwrap();
    bench.heard(&bytes)
}

#[test]
fn a_route_stays_while_another_mapping_needs_it() {
    for (first, second) in [(1, 2), (2, 1)] {
        let mut bench = Bench::new();
        let wide = record("0.0.0.0/0", SMALLER, ttl());
        let exact = record("10.0.0.0/8", BIGGER, ttl());
        installed(&mut bench, 1, &wide);
        installed(&mut bench, 2, &exact);
        let gone = |n| Record {
            ttl: Ttl::WITHDRAW,
            ..if n == 1 { wide.clone() } else { exact.clone() }
        };
        let told = story(&bench.notify(3, &gone(first)));
        let to_the_wider = ["no peer", "peer [10.0.0.0/8]"];
        assert_eq!(told, to_the_wider[..first]);
        assert_eq!(
            story(&bench.notify(4, &gone(second))),
            ["no route 10.0.0.0/8", "no peer"]
        );
    }
}

#[test]
fn a_peer_is_believed_only_what_is_looked_up_and_not_what_is_excluded() {
    // 10.64.0.0/10 is excluded.
    let mut bench = Bench::with(Config {
        overlay: vec![net("10.0.0.0/10"), net("10.128.0.0/9"), net("fd00:1::/48")],
        ..Bench::config()
    });
    let all = record("10.0.0.0/8", SMALLER, ttl());
    let told = story(&bench.notify(1, &all));
    assert_eq!(told, ["peer [10.0.0.0/10, 10.128.0.0/9]"]);
    // As long as a part of the other one: AllowedIPs have one owner.
    let half = record("10.128.0.0/9", BIGGER, ttl());
    assert_eq!(story(&bench.notify(2, &half)), ["peer [10.128.0.0/9]"]);
    let more = record("fd00:1::/64", SMALLER, ttl());
    let told = story(&bench.notify(3, &more));
    assert_eq!(told, ["peer [10.0.0.0/10, fd00:1::/64]"]);
    let part = record("10.200.0.0/16", PublicKey([8; 32]), ttl());
    assert_eq!(story(&bench.notify(4, &part)), ["peer [10.200.0.0/16]"]);
    let gone = Record {
        ttl: Ttl::WITHDRAW,
        ..half
    };
    let told = story(&bench.notify(5, &gone));
    let given_back = "peer [10.0.0.0/10, 10.128.0.0/9, fd00:1::/64]";
    assert_eq!(told, ["no peer", given_back]);
}

#[test]
fn a_more_specific_mapping_takes_over_and_gives_back_when_it_goes() {
    let mut bench = Bench::new();
    installed(&mut bench, 1, &record("10.0.0.0/24", SMALLER, ttl()));
    let part = record("10.0.0.0/28", BIGGER, ttl());
    let taken = bench.notify(2, &part);
    assert_eq!(story(&taken), ["peer [10.0.0.0/28]"]);
    bench.done(&taken);
    let waits = bench.input(Input::TunPacket(&to_far_end(&[1])));
    assert_eq!(story(&waits), [""; 0], "for the handshake with the new one");
    let fired = bench.handshake(BIGGER, 0);
    assert_eq!(story(&fired), ["sent on 1", "route 10.0.0.0/28"]);
    bench.done(&fired);
    let gone = bench.notify(
        3,
        &Record {
            ttl: Ttl::WITHDRAW,
            ..part
        },
    );
    assert_eq!(story(&gone), ["no route 10.0.0.0/28", "no peer"]);
    bench.done(&gone);
    let back = bench.input(Input::TunPacket(&to_far_end(&[2])));
    assert_eq!(story(&back), ["sent on 2"], "to the one around it");
    let left: Vec<_> = bench.agent.peers().map(|peer| peer.key).collect();
    assert_eq!(left, [SMALLER]);
}

#[test]
fn a_refresh_answered_with_another_prefix_hands_over_to_it_and_is_done() {
    let mut bench = Bench::new();
    installed(&mut bench, 1, &record("10.0.0.16/28", SMALLER, ttl()));
    bench.after(Duration::from_secs(720));
    let asked = bench.handshake(SMALLER, 1000);
    let nonce = requests(&asked)[0].nonce;
    let answered = bench.reply(nonce, &record("10.0.0.0/24", SMALLER, ttl()));
    assert_eq!(
        story(&answered),
        [
            "peer [10.0.0.0/24, 10.0.0.16/28]",
            "no route 10.0.0.16/28",
            "peer [10.0.0.0/24]"
        ]
    );
    bench.done(&answered);
    let mut later = Vec::new();
    for n in 0..20 {
        later.extend(bench.after(limits::REQUEST_RETRY));
        later.extend(bench.handshake(SMALLER, 2000 + n));
    }
    assert_eq!(requests(&later).len(), 0);
}

#[test]
fn packets_that_wait_for_a_mapping_that_is_taken_over_go_with_the_new_one() {
    let mut bench = Bench::new();
    let first = bench.notify(1, &record("10.0.0.0/28", SMALLER, ttl()));
    bench.input(Input::TunPacket(&to_far_end(&[1])));
    let src = "[fd4c:1::1]:4342".parse().unwrap();
    let smr = RequestFlags {
        smr: true,
        ..RequestFlags::default()
    };
    let bytes = question(smr, "10.0.0.2", 0);
    let asked = bench.input(Input::Datagram { src, bytes: &bytes });
    let nonce = requests(&asked)[0].nonce;
    let answered = bench.reply(nonce, &record("10.0.0.0/24", SMALLER, ttl()));
    bench.done(&first);
    assert_eq!(story(&bench.done(&answered)), ["sent on 1"]);
}

#[test]
fn an_answer_beside_the_point_does_not_make_a_refresh_hasty() {
    let mut bench = Bench::new();
    installed(&mut bench, 1, &far_end(SMALLER));
    bench.after(Duration::from_secs(720));
    let asked = bench.handshake(SMALLER, 1000);
    let nonce = requests(&asked)[0].nonce;
    let answered = bench.reply(nonce, &record("10.7.7.7/32", SMALLER, ttl()));
    assert_eq!(story(&answered), ["UnexpectedMessage"]);
    let mut later = Vec::new();
    for n in 0..20 {
        later.extend(bench.after(limits::REQUEST_RETRY));
        later.extend(bench.handshake(SMALLER, 2000 + n));
    }
    assert_eq!(requests(&later).len(), 0, "six seconds are too soon");
}

/// An agent that holds 10.0.0.0/28 of the registration of 10.0.0.0/24.
fn narrowed() -> Bench {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let records = [
        record("10.0.0.0/24", SMALLER, ttl()),
        record("10.0.0.16/28", BIGGER, ttl()),
    ];
    let installing = records_reply(&mut bench, nonce, &records);
    assert_eq!(story(&installing), ["peer [10.0.0.0/28]"]);
    bench.done(&installing);
    let fired = bench.handshake(SMALLER, 92);
    bench.done(&fired);
    bench
}

fn to(dst: &str, n: u8) -> Vec<u8> {
    packet("10.0.0.1", dst, &[n])
}

/// Has the owner's answer to a packet to 10.0.0.17 installed; says what that took.
fn asks_for_itself(bench: &mut Bench, n: u8, owner: PublicKey, records: &[Record]) -> Vec<String> {
    let asked = bench.input(Input::TunPacket(&to("10.0.0.17", n)));
    assert_eq!(story(&asked), ["request"], "no mapping covers it");
    let nonce = requests(&asked)[0].nonce;
    let installing = records_reply(bench, nonce, records);
    let mut told = story(&installing);
    let fired = bench.done(&installing);
    told.extend(story(&fired));
    let routed = bench.done(&fired);
    told.extend(story(&routed));
    let shaken = bench.handshake(owner, 184);
    told.extend(story(&shaken));
    bench.done(&shaken);
    told
}

#[test]
fn of_an_answer_with_more_specifics_only_what_a_packet_needs_is_installed() {
    let bench = narrowed();
    let peers: Vec<_> = bench.agent.peers().collect();
    let [peer] = peers.as_slice() else {
        panic!("no packet went to the other one: {peers:?}");
    };
    assert_eq!(
        (peer.key, peer.allowed_ips.as_slice()),
        (SMALLER, [net("10.0.0.0/28")].as_slice())
    );
}

#[test]
fn a_packet_to_a_more_specific_asks_for_itself_and_when_that_goes_the_shorter_one_is_asked_for() {
    let mut bench = narrowed();
    let part = record("10.0.0.16/28", BIGGER, ttl());
    let told = asks_for_itself(&mut bench, 1, BIGGER, std::slice::from_ref(&part));
    let with_its_own = ["peer [10.0.0.16/28]", "sent on 1", "route 10.0.0.16/28"];
    assert_eq!(told, with_its_own);
    let gone = bench.notify(
        7,
        &Record {
            ttl: Ttl::WITHDRAW,
            ..part
        },
    );
    assert_eq!(story(&gone), ["no route 10.0.0.16/28", "no peer"]);
    bench.done(&gone);
    let told = asks_for_itself(
        &mut bench,
        2,
        SMALLER,
        &[record("10.0.0.0/24", SMALLER, ttl())],
    );
    let with_the_shorter = [
        "peer [10.0.0.0/24, 10.0.0.0/28]",
        "sent on 2",
        "route 10.0.0.0/24",
    ];
    assert_eq!(told, with_the_shorter);
}

#[test]
fn a_refresh_that_tells_of_more_specifics_keeps_the_rest_and_lets_go_of_those() {
    let mut bench = Bench::new();
    installed(&mut bench, 1, &record("10.0.0.0/27", SMALLER, ttl()));
    let through = bench.input(Input::TunPacket(&to("10.0.0.17", 1)));
    assert_eq!(story(&through), ["sent on 1"]);
    bench.after(Duration::from_secs(720));
    let asked = bench.handshake(SMALLER, 1_000);
    let nonce = requests(&asked)[0].nonce;
    let records = [
        record("10.0.0.0/27", SMALLER, ttl()),
        record("10.0.0.16/28", BIGGER, ttl()),
    ];
    let narrowed = records_reply(&mut bench, nonce, &records);
    let kept = [
        "peer [10.0.0.0/27, 10.0.0.0/28]",
        "no route 10.0.0.0/27",
        "peer [10.0.0.0/28]",
    ];
    assert_eq!(story(&narrowed), kept);
    assert_eq!(
        story(&bench.done(&narrowed)),
        ["route 10.0.0.0/28"],
        "with the session there is"
    );
    let told = asks_for_itself(&mut bench, 2, BIGGER, &records[1..]);
    assert_eq!(told[0], "peer [10.0.0.16/28]");
}

#[test]
fn an_answer_with_more_records_than_are_read_is_refused() {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let parts = (0..limits::RECORDS_PER_MESSAGE).map(|n| format!("10.0.1.{n}/32"));
    let mut records = vec![record("10.0.0.0/8", SMALLER, ttl())];
    records.extend(parts.map(|part| record(&part, BIGGER, ttl())));
    let refused = records_reply(&mut bench, nonce, &records);
    assert_eq!(story(&refused), ["TooManyRecords"]);
}

#[test]
fn a_withdrawal_of_a_registration_removes_the_part_of_it_that_is_held() {
    let mut bench = narrowed();
    let gone = bench.notify(1, &record("10.0.0.0/24", SMALLER, Ttl::WITHDRAW));
    assert_eq!(story(&gone), ["no route 10.0.0.0/28", "no peer"]);
    assert_eq!(story(&bench.done(&gone)), ["ack"]);
}

#[test]
fn a_registration_that_moves_takes_the_part_of_it_that_is_held_along() {
    let mut bench = narrowed();
    let moved = bench.notify(1, &record("10.0.0.0/24", BIGGER, ttl()));
    let specs: Vec<_> = bench.agent.peers().collect();
    assert_eq!(specs.len(), 1);
    assert_eq!(specs[0].key, BIGGER);
    assert!(specs[0].allowed_ips.contains(&net("10.0.0.0/28")));
    assert_eq!(story(&bench.done(&moved)), ["ack"]);
}

#[test]
fn packets_for_a_mapping_without_room_are_counted_and_their_senders_told() {
    let mut bench = Bench::new();
    for n in 0..u32::try_from(limits::MAP_CACHE_ENTRIES).unwrap() {
        let eid = format!("{}/32", std::net::Ipv4Addr::from(0x0a01_0000 + n));
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let installing = bench.notify(u64::from(n) + 1, &record(&eid, PublicKey(key), ttl()));
        bench.done(&installing);
        bench.agent.deadlines = Deadlines::default();
    }
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    assert_eq!(
        story(&bench.reply(nonce, &far_end(BIGGER))),
        ["MapCacheFull", "MapCacheFull", "icmp"]
    );
    assert_eq!(bench.agent.sizes().held, 0);
}
