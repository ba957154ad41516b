//! The agent's paths as timelines: what comes in, what goes out, in order.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the one variant that it wants"
)]

use lisp_proto::{
    Action as MapAction, Algorithm, Locator, MapRequest, Message, NotifyParams, Record,
    ReplyParams, RequestFlags, RequestParams, RequestedEid, Rloc, decode, encode_map_notify,
    encode_map_reply, encode_map_request, verify,
};

use super::ip_header::tests::packet;
use super::*;

const OWN: PublicKey = PublicKey([5; 32]);
const BIGGER: PublicKey = PublicKey([9; 32]);
const SMALLER: PublicKey = PublicKey([1; 32]);
const SERVER: &str = "[fd4c:1::1]:4342";

fn key() -> AuthKey {
    AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"secret")
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// An agent with a clock, and what it did last.
struct Bench {
    agent: Agent,
    now: Timestamp,
}

impl Bench {
    fn new() -> Self {
        let config = Config {
            map_servers: vec![MapServer {
                address: SERVER.parse().unwrap(),
                key: key(),
            }],
            iid: InstanceId(0),
            eid_prefixes: vec![net("10.0.0.1/32"), net("fd00:1::1/128")],
            overlay: vec![net("10.0.0.0/8"), net("fd00:1::/48")],
            control_address: addr("fd4c:1::a"),
            public_key: OWN,
            listen_port: 51820,
            rlocs: vec![addr("192.0.2.1")],
            ids: Some((XtrId([7; 16]), SiteId([0; 8]))),
            keyless: false,
            encapsulate_requests: false,
            ttl: Ttl::from_minutes(15),
            register_interval: Duration::from_secs(60),
            first_nonce: Nonce(1000),
            hold: Duration::from_secs(3),
        };
        Self {
            agent: Agent::new(config, [3; 32]),
            now: Timestamp::ZERO,
        }
    }

    fn input(&mut self, input: Input<'_>) -> Vec<Action> {
        let mut actions = Actions::default();
        self.agent.handle(self.now, input, &mut actions);
        actions.drain().collect()
    }

    fn heard(&mut self, bytes: &[u8]) -> Vec<Action> {
        self.input(Input::Datagram {
            src: SERVER.parse().unwrap(),
            bytes,
        })
    }

    fn after(&mut self, wait: Duration) -> Vec<Action> {
        self.now = self.now + wait;
        self.input(Input::Tick)
    }

    fn reply(&mut self, nonce: Nonce, record: &Record) -> Vec<Action> {
        let mut bytes = Vec::new();
        let records = std::slice::from_ref(record);
        let params = ReplyParams {
            probe: false,
            echo_nonce: false,
            nonce,
            records,
        };
        encode_map_reply(&params, &mut bytes).unwrap();
        self.heard(&bytes)
    }

    fn notify(&mut self, nonce: u64, record: &Record) -> Vec<Action> {
        let mut bytes = Vec::new();
        let records = std::slice::from_ref(record);
        encode_map_notify(
            &NotifyParams {
                nonce: Nonce(nonce),
                records,
            },
            &key(),
            &mut bytes,
        )
        .unwrap();
        self.heard(&bytes)
    }

    /// Reports every change in `actions` as done.
    fn done(&mut self, actions: &[Action]) -> Vec<Action> {
        let mut out = Vec::new();
        for action in actions {
            if let Action::Apply { id, .. } = action {
                out.extend(self.input(Input::Applied { id: *id, ok: true }));
            }
        }
        out
    }

    fn handshake(&mut self, key: PublicKey, bytes: u64) -> Vec<Action> {
        self.input(Input::PeerStats(&[PeerStats {
            key,
            handshake_seen: true,
            rx_bytes: bytes,
            tx_bytes: 0,
        }]))
    }

    /// Everything in sight, for "nothing changed".
    fn fingerprint(&self) -> String {
        let Agent {
            cache,
            resolver,
            peers,
            windows,
            acks,
            changes,
            ..
        } = &self.agent;
        format!("{cache:?}{resolver:?}{peers:?}{windows:?}{acks:?}{changes:?}")
    }
}

fn record(eid: &str, key: PublicKey, ttl: Ttl) -> Record {
    Record {
        eid: EidPrefix::new(InstanceId(0), net(eid)),
        ttl,
        action: MapAction::NoAction,
        authoritative: false,
        locators: vec![Locator {
            priority: 1,
            weight: 100,
            local: false,
            probed: false,
            reachable: true,
            rloc: Rloc::WireGuard {
                endpoint: "192.0.2.2:51820".parse().unwrap(),
                key,
            },
        }],
    }
}

fn far_end(key: PublicKey) -> Record {
    record("10.0.0.2/32", key, Ttl::from_minutes(15))
}

fn to_far_end(payload: &[u8]) -> Vec<u8> {
    packet("10.0.0.1", "10.0.0.2", payload)
}

fn sent(actions: &[Action]) -> Vec<&Bytes> {
    let sent = actions.iter().filter_map(|action| match action {
        Action::Send { bytes, .. } => Some(bytes),
        _ => None,
    });
    sent.collect()
}

fn requests(actions: &[Action]) -> Vec<MapRequest<'_>> {
    let messages = sent(actions)
        .into_iter()
        .map(|bytes| decode(bytes).unwrap());
    let requests = messages.filter_map(|message| match message {
        Message::MapRequest(request) => Some(request),
        _ => None,
    });
    requests.collect()
}

/// One word per action that matters to the data plane or the sender.
fn story(actions: &[Action]) -> Vec<String> {
    let words = actions.iter().filter_map(|action| {
        Some(match action {
            Action::Send { bytes, .. } => match decode(bytes).unwrap() {
                Message::MapRequest(_) => "request".to_owned(),
                Message::MapRegister(_) => "register".to_owned(),
                Message::MapNotifyAck(_) => "ack".to_owned(),
                other => panic!("sent {other:?}"),
            },
            Action::Apply { change, .. } => match change {
                Change::SetPeer(spec) => format!("peer {:?}", spec.allowed_ips),
                Change::RemovePeer(_) => "no peer".to_owned(),
                Change::AddRoute(prefix) => format!("route {prefix}"),
                Change::RemoveRoute(prefix) => format!("no route {prefix}"),
            },
            Action::Kick(_) => "kick".to_owned(),
            Action::RenewControlTunnel => "new control tunnel".to_owned(),
            Action::Reinject(packet) => format!("sent on {}", packet.last()?),
            Action::Deliver(_) => "icmp".to_owned(),
            Action::Count(reason) => format!("{reason:?}"),
            Action::ReadPeerStats(_) | Action::Event(_) => return None,
        })
    });
    words.collect()
}

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
        ["sent on 1", "sent on 2", "sent on 3", "route 10.0.0.2/32"]
    );
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
    assert_eq!(story(&kicked), ["kick", "route 10.0.0.2/32"]);
}

#[test]
fn of_two_ends_that_start_at_once_only_the_smaller_key_fires() {
    for (other, expected) in [
        (BIGGER, vec!["sent on 1", "route 10.0.0.2/32"]),
        (SMALLER, vec![]),
    ] {
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
fn a_mapping_goes_with_its_ttl_route_first() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &record("10.0.0.2/32", SMALLER, Ttl::from_minutes(1)));
    bench.done(&installing);
    let fired = bench.handshake(SMALLER, 0);
    bench.done(&fired);
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
    let installing = bench.notify(1, &record("10.0.0.2/32", SMALLER, Ttl::from_minutes(1)));
    bench.done(&installing);
    let fired = bench.handshake(SMALLER, 0);
    bench.done(&fired);
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
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    let fired = bench.handshake(SMALLER, 0);
    bench.done(&fired);
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
    let before = bench.fingerprint();
    let mut good = Vec::new();
    let record = far_end(SMALLER);
    let records = std::slice::from_ref(&record);
    encode_map_notify(
        &NotifyParams {
            nonce: Nonce(7),
            records,
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

fn question(flags: RequestFlags, eid: &str, pad: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let itr_rlocs = vec![addr("198.51.100.1"); 1 + pad];
    let params = RequestParams {
        flags,
        nonce: Nonce(77),
        source_eid: None,
        itr_rlocs: &itr_rlocs,
        eids: &[RequestedEid {
            subscribe: false,
            eid: eid.parse().unwrap(),
        }],
        source_record: None,
        ids: None,
    };
    encode_map_request(&params, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_probe_is_answered_without_amplification() {
    let mut bench = Bench::new();
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
fn a_solicited_refresh_goes_through_the_map_server_and_only_for_what_is_cached() {
    let mut bench = Bench::new();
    let smr = RequestFlags {
        smr: true,
        ..RequestFlags::default()
    };
    let src = "198.51.100.1:4342".parse().unwrap();
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
    assert_eq!(story(&installing), ["peer [0.0.0.0/0]"]);
    assert_eq!(
        story(&bench.done(&installing)),
        ["sent on 1", "route 10.0.0.0/8"]
    );
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
        locator(2, 100, "192.0.2.3:1", PublicKey([21; 32])),
        locator(2, 200, "192.0.2.4:1", PublicKey([22; 32])),
        locator(255, 1, "192.0.2.5:1", PublicKey([23; 32])),
    ];
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    bench.reply(nonce, &answer);
    let peers: Vec<_> = bench.agent.peers().map(|peer| peer.key).collect();
    assert_eq!(peers, [PublicKey([22; 32])]);
}
