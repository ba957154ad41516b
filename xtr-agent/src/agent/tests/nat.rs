//! Where do we appear, and what follows from it?

use lisp_proto::encode_info_reply;

use super::*;
use crate::agent::limits::{INFO_TRIES, LOCATORS, LOOKOUT_PATIENCE};

const OUTER: PublicKey = PublicKey([0xee; 32]);
const HOLE: &str = "198.51.100.7:1024";
const OTHER_HOLE: &str = "198.51.100.7:1025";
/// The NAT, whose port is not known yet.
const NAT: &str = "198.51.100.7:0";

/// An agent with a control tunnel whose registration was just acknowledged, and what it does.
fn registered() -> (Bench, Vec<Action>) {
    let mut config = Bench::config();
    config.map_servers[0].outer = Some((OUTER, "203.0.113.1:51820".parse().unwrap()));
    let mut bench = Bench::with(config);
    let start = bench.input(Input::Start);
    let actions = bench.acknowledged(&start);
    (bench, actions)
}

impl Bench {
    /// Has the Map-Register in `actions` acknowledged.
    fn acknowledged(&mut self, actions: &[Action]) -> Vec<Action> {
        let (nonce, records) = registered_in(actions);
        self.notify_all(nonce.0, &records)
    }

    fn told_where(&mut self, nonce: Nonce, seen: &str) -> Vec<Action> {
        let mut bytes = Vec::new();
        let eid = "10.0.0.1".parse().unwrap();
        encode_info_reply(nonce, eid, seen.parse().unwrap(), &key(), &mut bytes);
        self.heard(&bytes)
    }

    /// The map server sees a change and repeats its answer to `nonce`: it is asked, and says so once more.
    fn told_again(&mut self, nonce: Nonce, seen: &str) -> Vec<Action> {
        let asking = self.told_where(nonce, seen);
        assert_eq!(story(&asking), ["info"]);
        self.told_where(asked(&asking), seen)
    }
}

/// The Map-Register in `actions`.
fn registered_in(actions: &[Action]) -> (Nonce, Vec<Record>) {
    let registers = sent(actions)
        .into_iter()
        .filter_map(|bytes| match decode(bytes) {
            Ok(Message::MapRegister(register)) => Some((
                register.nonce,
                register
                    .records()
                    .filter_map(|it| it.to_record(0))
                    .collect(),
            )),
            _ => None,
        });
    registers.last().unwrap()
}

/// The locators that are registered: priority, whether it is our own address, and where.
fn locators(actions: &[Action]) -> Vec<(u8, bool, String)> {
    let (_, records) = registered_in(actions);
    let locators = records[0].locators.iter();
    let locators = locators.map(|it| match it.rloc {
        Rloc::WireGuard { endpoint, .. } => (it.priority, it.local, endpoint.to_string()),
        Rloc::Plain(address) => (it.priority, it.local, address.to_string()),
    });
    locators.collect()
}

/// The nonce of the Info-Request in `actions`.
fn asked(actions: &[Action]) -> Nonce {
    let infos = sent(actions)
        .into_iter()
        .filter_map(|bytes| match decode(bytes) {
            Ok(Message::InfoRequest(info)) if !info.reply => Some(info.nonce),
            _ => None,
        });
    infos.last().unwrap()
}

fn peer_set(actions: &[Action]) -> Option<&PeerSpec> {
    let specs = actions.iter().filter_map(|action| match action {
        Action::Apply {
            change: Change::SetPeer(spec),
            ..
        } => Some(spec),
        _ => None,
    });
    specs.last()
}

/// An agent that is behind a NAT and knows where it appears, and the nonce of its question.
pub(super) fn behind() -> (Bench, Nonce) {
    let (mut bench, actions) = registered();
    let nonce = asked(&actions);
    let posted = bench.told_where(nonce, NAT);
    bench.done(&posted);
    let registering = bench.told_again(nonce, HOLE);
    let again = bench.acknowledged(&registering);
    let nonce = asked(&again);
    assert_eq!(story(&bench.told_where(nonce, HOLE)), [""; 0]);
    (bench, nonce)
}

#[test]
fn our_own_addresses_behind_a_nat_come_after_it_and_are_out_of_reach_for_others() {
    let both = [(0, 2, 1), (1, 2, 1), (10, 11, 10), (253, 253, 252)];
    for (own, inner, outer) in both.into_iter().chain([(255, 255, 255)]) {
        let told = |mut bench: Bench| {
            bench.agent.config.rlocs[0].priority = own;
            let locators = bench.agent.own_locators().into_iter();
            let told = locators.map(|it| (it.priority, it.local, it.reachable));
            told.collect::<Vec<_>>()
        };
        assert_eq!(told(Bench::new()), [(own, true, true)]);
        let (behind, _) = behind();
        assert_eq!(told(behind), [(inner, true, false), (outer, false, true)]);
    }
}

#[test]
fn where_a_nat_lets_us_appear_is_as_good_as_our_best_uplink_and_the_worst_are_left_out() {
    let (mut bench, _) = behind();
    let template = bench.agent.config.rlocs[0];
    let uplinks = (1..=LOCATORS).rev().map(|number| Uplink {
        address: [10, 0, 0, u8::try_from(number).unwrap()].into(),
        priority: u8::try_from(number).unwrap() * 10,
        weight: u8::try_from(number).unwrap(),
        ..template
    });
    bench.agent.config.rlocs = uplinks.collect();
    let told = bench.agent.own_locators();
    assert_eq!(told.len(), LOCATORS);
    let priorities: Vec<_> = told.iter().map(|it| it.priority).collect();
    assert_eq!(priorities, [11, 21, 31, 41, 51, 61, 71, 10]);
    assert_eq!(
        told.last().map(|it| (it.local, it.weight)),
        Some((false, 1))
    );
}

#[test]
fn without_a_nat_one_question_is_all() {
    let (mut bench, actions) = registered();
    assert_eq!(story(&actions), ["info"]);
    assert_eq!(bench.agent.status(bench.now).nat.behind, None);
    assert_eq!(
        story(&bench.told_where(asked(&actions), "192.0.2.1:0")),
        [""; 0]
    );
    assert_eq!(bench.agent.status(bench.now).nat.behind, Some(false));
    assert_eq!(story(&bench.after(Duration::from_secs(30))), [""; 0]);
    let installing = bench.notify(1, &far_end(BIGGER));
    assert!(!peer_set(&installing).unwrap().keep_open);
}

#[test]
fn behind_a_nat_the_map_server_becomes_a_peer_and_the_hole_is_registered() {
    let (mut bench, actions) = registered();
    let nonce = asked(&actions);
    let posted = bench.told_where(nonce, NAT);
    assert_eq!(story(&posted), ["peer []", "kick"]);
    let spec = peer_set(&posted).unwrap();
    assert_eq!((spec.key, spec.keep_open), (OUTER, true));
    assert_eq!(spec.endpoint, Some("203.0.113.1:51820".parse().unwrap()));
    assert_eq!(bench.agent.lookout(), Some(OUTER));
    assert_eq!(bench.agent.peers().count(), 0, "it is no peer like others");
    bench.done(&posted);
    let registering = bench.told_again(nonce, HOLE);
    assert_eq!(story(&registering), ["register"]);
    let own = (2, true, "192.0.2.1:51820".to_owned());
    let hole = |at: &str| (1, false, at.to_owned());
    assert_eq!(locators(&registering), [own.clone(), hole(HOLE)]);
    let nat = bench.agent.status(bench.now).nat;
    assert_eq!((nat.behind, nat.seen_at), (Some(true), HOLE.parse().ok()));
    let again = bench.acknowledged(&registering);
    assert_eq!(story(&again), ["info"]);
    let nonce = asked(&again);
    assert_eq!(
        story(&bench.told_where(nonce, HOLE)),
        [""; 0],
        "nothing new"
    );
    let moved = bench.told_again(nonce, OTHER_HOLE);
    assert_eq!(locators(&moved), [own, hole(OTHER_HOLE)]);
}

#[test]
fn peers_that_are_set_behind_a_nat_are_kept_open_and_greeted_at_once() {
    let (mut bench, _) = behind();
    let installing = bench.notify(1, &far_end(BIGGER));
    assert!(peer_set(&installing).unwrap().keep_open);
    assert_eq!(story(&bench.done(&installing)), ["kick", "ack"]);
}

#[test]
fn when_the_nat_is_gone_so_is_all_that_was_done_about_it() {
    let (mut bench, nonce) = behind();
    let gone = bench.told_again(nonce, "192.0.2.1:0");
    assert_eq!(story(&gone), ["no peer", "register"]);
    let own = (1, true, "192.0.2.1:51820".to_owned());
    assert_eq!(locators(&gone), [own]);
    assert_eq!(bench.agent.lookout(), None);
    let installing = bench.notify(1, &far_end(BIGGER));
    assert!(!peer_set(&installing).unwrap().keep_open);
}

#[test]
fn a_map_server_that_does_not_answer_is_asked_a_few_times() {
    let (mut bench, actions) = registered();
    let mut questions = vec![asked(&actions)];
    for _ in 0..50 {
        let actions = bench.after(Duration::from_secs(1));
        if story(&actions).iter().any(|word| word == "info") {
            questions.push(asked(&actions));
        }
    }
    assert_eq!(questions.len(), INFO_TRIES as usize);
    let late = bench.told_where(questions[0], HOLE);
    assert_eq!(story(&late), ["UnknownNonce"]);
}

#[test]
fn while_the_port_is_not_known_it_is_asked_for_ever_more_rarely() {
    let (mut bench, actions) = registered();
    let mut nonce = asked(&actions);
    let mut questions = 0;
    bench.told_where(nonce, NAT);
    for _ in 0..50 {
        let actions = bench.after(Duration::from_secs(1));
        if story(&actions).iter().any(|word| word == "info") {
            questions += 1;
            nonce = asked(&actions);
            bench.told_where(nonce, NAT);
        }
    }
    assert!((4..8).contains(&questions), "{questions}");
    assert_eq!(story(&bench.told_again(nonce, HOLE)), ["register"]);
}

#[test]
fn a_map_server_that_has_forgotten_us_gets_another_handshake_and_we_stay_where_we_are() {
    let (mut bench, nonce) = behind();
    bench.now = bench.now + LOOKOUT_PATIENCE;
    let anew = bench.told_again(nonce, NAT);
    assert_eq!(story(&anew), ["no peer", "peer []", "kick"]);
    assert_eq!(bench.agent.status(bench.now).nat.seen_at, HOLE.parse().ok());
}

#[test]
fn with_another_address_the_nat_is_looked_at_anew() {
    let (mut bench, _) = behind();
    let moved = bench.input(Input::LocalRlocs(&[addr("192.0.2.77").into()]));
    assert_eq!(story(&moved), ["no peer", "peer []", "kick", "register"]);
    let own = |address: &str| (1, true, format!("{address}:51820"));
    assert_eq!(locators(&moved), [own("192.0.2.77")], "the hole is gone");
    let asking = bench.acknowledged(&moved);
    let direct = bench.told_where(asked(&asking), "192.0.2.77:0");
    assert_eq!(story(&direct), ["no peer"]);
}

#[test]
fn with_one_more_address_we_are_still_where_we_were_seen() {
    let (mut bench, _) = behind();
    let more = [addr("192.0.2.1").into(), addr("192.0.2.77").into()];
    let registering = bench.input(Input::LocalRlocs(&more));
    assert_eq!(locators(&registering).last().unwrap().2, HOLE);
    let snapshot = bench.agent.snapshot(bench.now);
    let behind = snapshot.seen_at.unwrap().behind;
    assert_eq!(Vec::from_iter(behind), [addr("192.0.2.1")]);
}

#[test]
fn a_map_server_is_nobodys_far_end() {
    let (mut bench, _) = behind();
    let server = record("10.0.0.2/32", OUTER, Ttl::from_minutes(15));
    let told = bench.notify(1, &server);
    assert!(peer_set(&told).is_none(), "{:?}", story(&told));
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let answered = bench.reply(requests(&asked)[0].nonce, &server);
    assert!(peer_set(&answered).is_none(), "{:?}", story(&answered));
    // Another key beside it is used, and what an earlier run has kept is not.
    let mut both = far_end(BIGGER);
    both.locators.extend(server.locators.clone());
    both.locators[0].priority = 2;
    let installing = bench.notify(2, &both);
    assert_eq!(peer_set(&installing).unwrap().key, BIGGER);
    bench.done(&installing);
    let mut snapshot = bench.agent.snapshot(bench.now);
    snapshot.mappings[0].key = OUTER;
    let mut next = Bench::with(bench.agent.config.clone());
    let mut actions = Actions::default();
    next.agent
        .restore(next.now, &snapshot, Duration::ZERO, &[], &mut actions);
    assert_eq!(next.agent.peers().count(), 0);
}

#[test]
fn an_endpoint_that_was_refused_is_named_again_with_the_keepalives() {
    let (mut bench, actions) = registered();
    let installing = bench.notify(1, &far_end(BIGGER));
    let spec = peer_set(&installing).unwrap().clone();
    bench.done(&installing);
    let mut elsewhere = far_end(BIGGER);
    elsewhere.locators[0].rloc = Rloc::WireGuard {
        endpoint: "192.0.2.22:51820".parse().unwrap(),
        key: BIGGER,
    };
    let moving = bench.notify(2, &elsewhere);
    bench.agent.peers.endpoint_told(&BIGGER, false);
    let found = bench.told_where(asked(&actions), NAT);
    let specs = found.iter().filter_map(|action| match action {
        Action::Apply {
            change: Change::SetPeer(it),
            ..
        } => Some(it),
        _ => None,
    });
    let its: Vec<_> = specs.filter(|it| it.key == spec.key).collect();
    assert_eq!(its[0].endpoint, peer_set(&moving).unwrap().endpoint);
    assert!(its[0].endpoint.is_some());
}

/// A neighbour behind the same NAT is told of, and reached at its inner address.
fn is_met_inside(bench: &mut Bench) {
    let mut neighbour = far_end(BIGGER);
    let mut hole = neighbour.locators[0];
    hole.rloc = Rloc::WireGuard {
        endpoint: "198.51.100.7:2000".parse().unwrap(),
        key: BIGGER,
    };
    (
        neighbour.locators[0].priority,
        neighbour.locators[0].reachable,
    ) = (2, false);
    neighbour.locators.push(hole);
    let installing = bench.notify(1, &neighbour);
    let endpoint = peer_set(&installing).unwrap().endpoint;
    assert_eq!(endpoint, "192.0.2.2:51820".parse().ok());
}

#[test]
fn those_behind_the_same_nat_are_met_inside_it_before_our_port_is_known() {
    let (mut bench, actions) = registered();
    bench.told_where(asked(&actions), NAT);
    is_met_inside(&mut bench);
}

#[test]
fn what_is_kept_ready_is_said_hello_to_so_that_the_far_end_counts_it() {
    let (mut bench, _) = behind();
    bench.agent.config.subscriptions = vec![net("10.0.0.2/32")];
    let installing = bench.notify(1, &far_end(BIGGER));
    bench.done(&installing);
    let fired = bench.handshake(BIGGER, 92);
    bench.done(&fired);
    let mut hellos = Vec::new();
    let mut bytes = 92;
    // Keepalives of both ends, and nothing else, are what the counters show.
    for second in (4..=400u64).step_by(4) {
        let looked = bench.after(Duration::from_secs(4));
        bench.done(&looked);
        bytes += if second % 24 == 0 { 32 } else { 0 };
        let stats = PeerStats {
            key: BIGGER,
            endpoint: None,
            handshake_seen: true,
            rx_bytes: bytes,
            tx_bytes: bytes,
            read_at: bench.now,
        };
        let told = bench.input(Input::PeerStats(&[stats]));
        bench.done(&told);
        let words = story(&told);
        assert!(!words.iter().any(|it| it.starts_with("no ")), "{words:?}");
        hellos.extend(told.into_iter().filter_map(|action| match action {
            Action::Reinject(packet) => Some(packet),
            _ => None,
        }));
    }
    assert!((5..=6).contains(&hellos.len()), "{}", hellos.len());
    let ends = Some((addr("10.0.0.1"), addr("10.0.0.2")));
    assert_eq!(ip_header::addresses(&hellos[0]), ends);
}

#[test]
fn what_is_not_authentic_or_not_asked_for_changes_nothing() {
    let (mut bench, nonce) = behind();
    let before = bench.agent.fingerprint();
    let mut forged = Vec::new();
    let secret = AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"another");
    let (eid, foreign) = ("10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap());
    let seen = OTHER_HOLE.parse().unwrap();
    encode_info_reply(nonce, eid, seen, &secret, &mut forged);
    assert_eq!(story(&bench.heard(&forged)), ["BadAuthentication"]);
    let mut beside = Vec::new();
    encode_info_reply(nonce, foreign, seen, &key(), &mut beside);
    assert_eq!(story(&bench.heard(&beside)), ["UnexpectedMessage"]);
    let other = Nonce(nonce.0 ^ 1);
    assert_eq!(
        story(&bench.told_where(other, OTHER_HOLE)),
        ["UnknownNonce"]
    );
    assert_eq!(bench.agent.fingerprint(), before);
}

#[test]
fn a_restarted_agent_goes_on_where_it_was() {
    let (mut bench, _) = behind();
    let installing = bench.notify(1, &far_end(BIGGER));
    bench.done(&installing);
    let snapshot = bench.agent.snapshot(bench.now);
    let mut next = Bench::with(bench.agent.config.clone());
    let mut actions = Actions::default();
    next.agent
        .restore(next.now, &snapshot, Duration::ZERO, &[BIGGER], &mut actions);
    let actions: Vec<_> = actions.drain().collect();
    assert!(peer_set(&actions).unwrap().keep_open);
    let hole = (1, false, HOLE.to_owned());
    assert!(locators(&next.input(Input::Start)).contains(&hole));
}

#[test]
fn one_that_is_somewhere_else_by_now_does_not() {
    let (bench, _) = behind();
    let snapshot = bench.agent.snapshot(bench.now);
    let mut config = bench.agent.config;
    config.rlocs = vec![addr("192.0.2.77").into()];
    let mut next = Bench::with(config);
    let mut actions = Actions::default();
    next.agent
        .restore(next.now, &snapshot, Duration::ZERO, &[], &mut actions);
    let own = (1, true, "192.0.2.77:51820".to_owned());
    assert_eq!(locators(&next.input(Input::Start)), [own]);
}

#[test]
fn an_answer_that_comes_late_moves_nothing() {
    let (mut bench, nonce) = behind();
    // Of two answers to one question, the later one may be the older one.
    let asking = bench.told_where(nonce, OTHER_HOLE);
    assert_eq!(story(&asking), ["info"]);
    assert_eq!(
        story(&bench.told_where(nonce, OTHER_HOLE)),
        ["UnknownNonce"]
    );
    assert_eq!(story(&bench.told_where(asked(&asking), HOLE)), [""; 0]);
}

#[test]
fn peers_that_there_are_get_keepalives_with_the_nat_and_lose_them_with_it() {
    let (mut bench, actions) = registered();
    let nonce = asked(&actions);
    let installing = bench.notify(1, &far_end(BIGGER));
    let spec = peer_set(&installing).unwrap().clone();
    bench.done(&installing);
    let of_peer = |actions: &[Action]| {
        let mut specs = actions.iter().filter_map(|action| match action {
            Action::Apply {
                change: Change::SetPeer(spec),
                ..
            } => Some(spec.clone()),
            _ => None,
        });
        specs.find(|spec| spec.key == BIGGER)
    };
    let wanted = |keep_open| PeerSpec {
        endpoint: None,
        keep_open,
        ..spec.clone()
    };
    let found = bench.told_where(nonce, NAT);
    assert_eq!(of_peer(&found), Some(wanted(true)));
    let gone = bench.told_again(nonce, "192.0.2.1:0");
    assert_eq!(of_peer(&gone), Some(wanted(false)));
}

#[test]
fn drained_it_is_not_to_be_used_either_way() {
    let (mut bench, _) = behind();
    let priorities = locators(&bench.input(Input::Drain(true)));
    let priorities: Vec<_> = priorities.iter().map(|it| it.0).collect();
    assert_eq!(priorities, [255, 255]);
}

#[test]
fn those_behind_the_same_nat_are_met_inside_it() {
    let (mut bench, _) = behind();
    is_met_inside(&mut bench);
}
