//! What the agent refuses, and what it does not believe.

use super::*;

#[test]
fn one_request_per_destination_and_then_a_refusal() {
    let mut bench = Bench::new();
    let mut asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    for n in 0..20 {
        asked.extend(bench.input(Input::TunPacket(&to_far_end(&[n]))));
    }
    assert_eq!(requests(&asked).len(), 1);
    let mut later = Vec::new();
    for _ in 0..60 {
        later.extend(bench.after(Duration::from_millis(100)));
    }
    assert_eq!(requests(&later).len(), 3, "retries back off");
    let icmp = later
        .iter()
        .filter(|action| matches!(action, Action::Deliver(_)));
    assert_eq!(icmp.count(), 21);
}

#[test]
fn a_packet_that_the_data_plane_does_not_take_is_counted_and_its_sender_told() {
    let mut bench = Bench::new();
    let refused = bench.input(Input::NotSent(&to_far_end(&[1])));
    let [Action::Count(DropReason::NotTaken), Action::Deliver(error)] = refused.as_slice() else {
        panic!("{refused:?}");
    };
    let told = ip_header::addresses(error);
    let sender = ip_header::addresses(&to_far_end(&[1]));
    assert_eq!(told, sender.map(|(from, to)| (to, from)));
}

#[test]
fn a_map_server_that_lost_the_control_tunnel_is_reached_through_a_new_one() {
    let mut bench = Bench::new();
    bench.now = Timestamp::ZERO + Duration::from_secs(100);
    bench.input(Input::TunPacket(&to_far_end(&[1])));
    let retried = bench.after(limits::REQUEST_RETRY);
    assert_eq!(story(&retried), ["new control tunnel", "request"]);
    let retried = bench.after(limits::REQUEST_RETRY * 2);
    assert_eq!(story(&retried), ["request"], "not more than once a second");

    let mut bench = Bench::new();
    bench.now = Timestamp::ZERO + Duration::from_secs(100);
    bench.notify(1, &record("10.0.0.9/32", SMALLER, Ttl::WITHDRAW));
    bench.input(Input::TunPacket(&to_far_end(&[1])));
    let retried = bench.after(limits::REQUEST_RETRY);
    assert_eq!(
        story(&retried),
        ["request"],
        "one lost datagram is no reason"
    );
}

#[test]
fn of_several_map_servers_the_lost_one_is_asked_once_more_through_its_new_tunnel() {
    let mut config = Bench::config();
    let address = "[fd4c:1::2]:4342".parse().unwrap();
    config.map_servers.push(MapServer {
        address,
        key: key(),
        outer: None,
    });
    let mut bench = Bench::with(config);
    bench.now = Timestamp::ZERO + Duration::from_secs(100);
    bench.input(Input::TunPacket(&to_far_end(&[1])));
    let retried = bench.after(limits::REQUEST_RETRY);
    assert_eq!(
        story(&retried),
        ["new control tunnel", "request", "request"]
    );
    let receivers: Vec<_> = retried.iter().filter_map(receiver).collect();
    assert_eq!(receivers, [SERVER.parse().unwrap(), address]);
}

fn receiver(action: &Action) -> Option<SocketAddr> {
    match action {
        Action::Send { dst, .. } => Some(*dst),
        _ => None,
    }
}

#[test]
fn a_negative_reply_refuses_the_prefix_for_its_ttl() {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let mut none = record("10.0.0.2/31", OWN, Ttl::from_minutes(1));
    none.locators.clear();
    none.action = MapAction::NativelyForward;
    assert_eq!(
        story(&bench.reply(nonce, &none)),
        ["NegativeMapping", "icmp"]
    );
    let other = packet("10.0.0.1", "10.0.0.3", &[1]);
    assert_eq!(
        story(&bench.input(Input::TunPacket(&other))),
        ["NegativeMapping", "icmp"]
    );
    bench.after(Duration::from_secs(61));
    assert_eq!(story(&bench.input(Input::TunPacket(&other))), ["request"]);
}

#[test]
fn an_older_notify_does_not_undo_a_newer_one() {
    let mut bench = Bench::new();
    let installing = bench.notify(5, &far_end(BIGGER));
    bench.done(&installing);
    let late = bench.notify(4, &far_end(SMALLER));
    assert_eq!(story(&late), ["StaleNotify", "ack"]);
    let peers: Vec<_> = bench.agent.peers().map(|peer| peer.key).collect();
    assert_eq!(peers, [BIGGER]);
}

#[test]
fn strangers_and_forgers_change_nothing() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    bench.after(Duration::from_millis(10));
    let before = bench.fingerprint();
    let mut good = Vec::new();
    let record = far_end(SMALLER);
    let records = std::slice::from_ref(&record);
    encode_map_notify(
        &NotifyParams {
            nonce: Nonce(7),
            records,
            handoff: None,
        },
        &key(),
        &mut good,
    )
    .unwrap();
    for at in 0..good.len() {
        let mut forged = good.clone();
        forged[at] ^= 0x20;
        assert!(sent(&bench.heard(&forged)).is_empty());
    }
    let mut reply = Vec::new();
    let wrong = Nonce(nonce.0 ^ 1);
    let params = ReplyParams {
        probe: false,
        echo_nonce: false,
        nonce: wrong,
        records,
    };
    encode_map_reply(&params, &mut reply).unwrap();
    assert_eq!(story(&bench.heard(&reply)), ["UnknownNonce"]);
    let stranger = "[fd4c:1::99]:4342".parse().unwrap();
    let heard = bench.input(Input::Datagram {
        src: stranger,
        bytes: &good,
    });
    assert_eq!(story(&heard), ["NotAMapServer"]);
    assert_eq!(bench.fingerprint(), before);
}

#[test]
fn a_probe_is_answered_without_amplification() {
    let mut bench = Bench::with(Config {
        keyless: true,
        ..Bench::config()
    });
    let probe = RequestFlags {
        probe: true,
        ..RequestFlags::default()
    };
    let src = "198.51.100.1:4342".parse().unwrap();
    let bytes = question(probe, "10.0.0.1", 20);
    let answered = bench.input(Input::Datagram { src, bytes: &bytes });
    let Message::MapReply(reply) = decode(sent(&answered)[0]).unwrap() else {
        panic!("no reply");
    };
    assert!(reply.probe && reply.nonce == Nonce(77));
    let record = reply.records().next().unwrap();
    assert!(record.authoritative() && record.locators().all(|locator| locator.probed));

    let bytes = question(probe, "10.0.0.1", 0);
    assert_eq!(
        story(&bench.input(Input::Datagram { src, bytes: &bytes })),
        ["WouldAmplify"]
    );
    let bytes = question(probe, "10.0.0.2", 20);
    let foreign = bench.input(Input::Datagram { src, bytes: &bytes });
    assert_eq!(story(&foreign), ["UnexpectedMessage"]);
    let elsewhere = "198.51.100.2:4342".parse().unwrap();
    let bytes = question(probe, "10.0.0.1", 20);
    let spoofed = bench.input(Input::Datagram {
        src: elsewhere,
        bytes: &bytes,
    });
    assert_eq!(story(&spoofed), ["UnexpectedMessage"]);
}

#[test]
fn without_a_control_tunnel_map_requests_are_a_second_apart_and_pause_for_ten() {
    let mut bench = Bench::with(Config {
        keyless: true,
        ..Bench::config()
    });
    let mut asked = vec![];
    for tenth in 0u32..200 {
        let mut actions = bench.after(Duration::from_millis(100));
        actions.extend(bench.input(Input::TunPacket(&to_far_end(&[1]))));
        asked.extend(requests(&actions).iter().map(|_| tenth));
    }
    let pauses: Vec<u32> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|tenths| *tenths >= 10), "{pauses:?}");
    assert!(pauses.iter().any(|tenths| *tenths >= 100), "{pauses:?}");
}

#[test]
fn a_probe_through_the_control_tunnel_is_answered_whatever_its_length() {
    let mut bench = Bench::new();
    let probe = RequestFlags {
        probe: true,
        ..RequestFlags::default()
    };
    let src: SocketAddr = SERVER.parse().unwrap();
    let bytes = question_by(&src.ip().to_string(), probe, "10.0.0.1", 0);
    let answered = bench.input(Input::Datagram { src, bytes: &bytes });
    let Message::MapReply(reply) = decode(sent(&answered)[0]).unwrap() else {
        panic!("no reply");
    };
    assert!(reply.probe && reply.nonce == Nonce(77));
    assert!(sent(&answered)[0].len() > bytes.len());
}

#[test]
fn a_solicited_refresh_goes_through_the_map_server_and_only_for_what_is_cached() {
    let mut bench = Bench::new();
    let smr = RequestFlags {
        smr: true,
        ..RequestFlags::default()
    };
    let src = SERVER.parse().unwrap();
    let bytes = question(smr, "10.0.0.2", 0);
    assert_eq!(
        story(&bench.input(Input::Datagram { src, bytes: &bytes })),
        [""; 0]
    );
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    let asked = bench.input(Input::Datagram { src, bytes: &bytes });
    assert!(matches!(&asked[..], [Action::Send { dst, .. }] if *dst == SERVER.parse().unwrap()));
    assert_eq!(
        story(&bench.input(Input::Datagram { src, bytes: &bytes })),
        [""; 0]
    );
    bench.after(limits::SMR_INTERVAL);
    assert_eq!(
        story(&bench.input(Input::Datagram { src, bytes: &bytes })),
        ["request"]
    );
}

#[test]
fn where_there_is_a_control_tunnel_questions_of_strangers_are_not_heeded() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    let before = bench.fingerprint();
    let smr = RequestFlags {
        smr: true,
        ..RequestFlags::default()
    };
    let probe = RequestFlags {
        probe: true,
        ..RequestFlags::default()
    };
    let src = "198.51.100.1:4342".parse().unwrap();
    for bytes in [
        question(smr, "10.0.0.2", 0),
        question(probe, "10.0.0.1", 20),
    ] {
        let heard = bench.input(Input::Datagram { src, bytes: &bytes });
        assert_eq!(story(&heard), ["NotAMapServer"]);
    }
    assert_eq!(bench.fingerprint(), before);
}

#[test]
fn packets_that_are_none_of_our_business_are_refused() {
    let mut bench = Bench::new();
    for (src, dst, expected) in [
        ("10.0.0.1", "192.0.2.77", vec!["NotOverlay"]),
        ("10.0.0.1", "10.0.0.1", vec!["ToOurselves"]),
        ("10.9.9.9", "10.0.0.2", vec!["SourceNotOurs", "icmp"]),
        ("fd00:1::2", "fd00:1::3", vec!["SourceNotOurs", "icmp"]),
    ] {
        assert_eq!(
            story(&bench.input(Input::TunPacket(&packet(src, dst, b"")))),
            expected
        );
    }
    assert_eq!(
        story(&bench.input(Input::TunPacket(&[0x45; 10]))),
        ["NotIp"]
    );
}

#[test]
fn a_mapping_wider_than_the_overlay_gets_routes_for_the_overlay_only() {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.reply(nonce, &record("0.0.0.0/0", SMALLER, Ttl::from_minutes(15)));
    assert_eq!(story(&installing), ["peer [10.0.0.0/8]"]);
    assert_eq!(story(&bench.done(&installing)), ["sent on 1"]);
    assert_eq!(story(&bench.handshake(SMALLER, 92)), ["route 10.0.0.0/8"]);
}

#[test]
fn the_locator_is_chosen_by_priority_weight_and_family() {
    let mut bench = Bench::new();
    let locator = |priority, weight, endpoint: &str, key| Locator {
        priority,
        weight,
        local: false,
        probed: false,
        reachable: true,
        rloc: Rloc::WireGuard {
            endpoint: endpoint.parse().unwrap(),
            key,
        },
    };
    let mut answer = far_end(SMALLER);
    answer.locators = vec![
        locator(1, 1, "[2001:db8::2]:1", PublicKey([20; 32])),
        locator(2, 0, "192.0.2.3:1", PublicKey([21; 32])),
        locator(2, 1, "192.0.2.4:1", PublicKey([22; 32])),
        locator(3, 200, "192.0.2.6:1", PublicKey([24; 32])),
        locator(255, 1, "192.0.2.5:1", PublicKey([23; 32])),
    ];
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    bench.reply(nonce, &answer);
    let peers: Vec<_> = bench.agent.peers().map(|peer| peer.key).collect();
    assert_eq!(peers, [PublicKey([22; 32])]);
}

#[test]
fn an_answer_with_more_specifics_is_used_only_around_the_address_asked_for() {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let ttl = Ttl::from_minutes(15);
    let records = [
        record("10.0.0.0/24", SMALLER, ttl),
        record("10.0.0.128/25", BIGGER, ttl),
        record("10.0.0.16/28", BIGGER, ttl),
    ];
    let mut bytes = Vec::new();
    let params = ReplyParams {
        probe: false,
        echo_nonce: false,
        nonce,
        records: &records,
    };
    encode_map_reply(&params, &mut bytes).unwrap();
    assert_eq!(story(&bench.heard(&bytes)), ["peer [10.0.0.0/28]"]);
}

#[test]
fn packets_wait_for_an_answer_no_longer_than_the_hold_time() {
    for hold in [100, 700, 3_000, 30_000] {
        let mut config = Bench::config();
        config.hold = Duration::from_millis(hold);
        let mut bench = Bench::with(config);
        bench.input(Input::TunPacket(&to_far_end(&[1])));
        let mut asked = 1;
        loop {
            let next = bench.agent.next_deadline().unwrap();
            let actions = bench.after(next - bench.now);
            asked += requests(&actions).len();
            if story(&actions).contains(&"NoAnswer".to_owned()) {
                break;
            }
        }
        assert_eq!(bench.now, Timestamp::ZERO + Duration::from_millis(hold));
        assert!(asked <= 8, "{asked} requests in {hold} ms");
    }
}

#[test]
fn an_answer_that_comes_after_packets_were_given_up_is_taken_in() {
    for (late, expected) in [
        (Duration::from_secs(1), vec!["peer [10.0.0.2/32]"]),
        (limits::LATE_ANSWER, vec!["UnknownNonce"]),
    ] {
        let mut bench = Bench::new();
        let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
        let nonce = requests(&asked)[0].nonce;
        let given_up = bench.after(Duration::from_secs(3));
        assert!(story(&given_up).contains(&"NoAnswer".to_owned()));
        bench.after(late);
        assert_eq!(story(&bench.reply(nonce, &far_end(SMALLER))), expected);
    }
}

#[test]
fn requests_that_were_given_up_are_forgotten_in_the_end() {
    let mut bench = Bench::new();
    for n in 0..3_000u32 {
        let dst = std::net::Ipv4Addr::from(0x0a01_0000 + n).to_string();
        bench.input(Input::TunPacket(&packet("10.0.0.1", &dst, &[1])));
        bench.after(Duration::from_millis(10));
    }
    bench.after(Duration::from_secs(3));
    bench.after(limits::LATE_ANSWER);
    let before = format!("{:?}", bench.agent.resolver).len();
    bench.reply(Nonce(0), &far_end(SMALLER));
    let after = format!("{:?}", bench.agent.resolver).len();
    assert!(after < 200 && before > 1_000, "{before} {after}");
}
