//! Far ends that NATs keep from us, and relays.

use super::nat::behind;
use super::*;
use crate::agent::limits::{APART, RELAY_PRIORITY, STAGED};
use crate::agent::map_cache::Chosen;

mod several;
mod silence;

const RELAY: PublicKey = PublicKey([8; 32]);

/// Fires at `BIGGER` with packet 1.
fn fire(bench: &mut Bench) {
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.reply(nonce, &far_end(BIGGER));
    assert_eq!(story(&bench.done(&installing)), ["sent on 1"]);
}

/// The far end, as it is reached over the relay.
fn over_relay() -> Record {
    let mut record = far_end(RELAY);
    record.locators[0].priority = RELAY_PRIORITY;
    record.locators[0].rloc = Rloc::WireGuard {
        endpoint: "192.0.2.8:51820".parse().unwrap(),
        key: RELAY,
    };
    record
}

/// An agent behind a NAT that reaches the far end over the relay.
fn relayed() -> Bench {
    let (mut bench, _) = behind();
    let installing = bench.notify(1, &over_relay());
    bench.done(&installing);
    let fired = bench.handshake(RELAY, 92);
    bench.done(&fired);
    bench
}

/// The keys that a question says cannot be reached.
fn lost(request: &MapRequest<'_>) -> Vec<PublicKey> {
    let record = request.source_record().and_then(|it| it.to_record(0));
    let locators = record.into_iter().flat_map(|record| record.locators);
    let lost = locators.filter(|locator| !locator.reachable);
    let keys = lost.filter_map(|locator| match locator.rloc {
        Rloc::WireGuard { key, .. } => Some(key),
        Rloc::Plain(_) => None,
    });
    keys.collect()
}

fn is_relayed(bench: &Bench) -> bool {
    let status = bench.agent.status(bench.now);
    let mut mappings = status.mappings.iter();
    mappings.any(|mapping| mapping.relayed && mapping.key == Some(RELAY))
}

#[test]
fn who_is_not_heard_is_named_and_what_waits_for_it_takes_the_relay() {
    let (mut bench, _) = behind();
    fire(&mut bench);
    let asking = bench.after(APART);
    let questions = requests(&asking);
    assert_eq!(lost(&questions[0]), [BIGGER]);
    assert!(!is_relayed(&bench));
    let moving = bench.reply(questions[0].nonce, &over_relay());
    assert_eq!(story(&moving), ["peer [10.0.0.2/32]", "no peer"]);
    assert_eq!(story(&bench.done(&moving)), ["sent on 1"]);
    assert!(is_relayed(&bench));
    let fired = bench.handshake(RELAY, 92);
    assert_eq!(story(&fired), ["route 10.0.0.2/32"]);
    bench.done(&fired);
    let later = bench.after(APART);
    assert!(requests(&later).is_empty(), "all is well");
}

#[test]
fn a_far_end_is_named_until_that_is_answered() {
    let (mut bench, _) = behind();
    fire(&mut bench);
    bench.after(APART);
    let again = bench.after(Duration::from_secs(1));
    let questions = requests(&again);
    assert_eq!(lost(&questions[0]), [BIGGER]);
    let answered = bench.reply(questions[0].nonce, &far_end(BIGGER));
    assert_eq!(story(&answered), [""; 0]);
    assert!(bench.agent.apart_record(&net("10.0.0.2/32")).is_none());
}

#[test]
fn nobody_is_named_who_is_heard_or_from_whom_no_nat_of_ours_keeps_us() {
    let (mut bench, _) = behind();
    fire(&mut bench);
    let fired = bench.handshake(BIGGER, 92);
    bench.done(&fired);
    assert!(requests(&bench.after(APART)).is_empty());
    let mut bench = Bench::new();
    fire(&mut bench);
    assert!(requests(&bench.after(APART)).is_empty());
}

#[test]
fn a_direct_way_that_is_tried_in_vain_is_named_as_well() {
    let mut bench = relayed();
    assert!(is_relayed(&bench));
    let arming = bench.notify(2, &far_end(BIGGER));
    bench.done(&arming);
    // The first question makes sure that the other end knows of us: it may still try it over the relay.
    let asking = bench.after(limits::HANDOVER_DOUBT);
    let question = &requests(&asking)[0];
    assert_eq!(lost(question), []);
    bench.reply(question.nonce, &far_end(BIGGER));
    let asking = bench.after(APART);
    assert_eq!(lost(&requests(&asking)[0]), [BIGGER]);
    assert!(is_relayed(&bench), "it carries the packets meanwhile");
}

/// The far end, which is at another address as well, it says: behind a NAT (R is clear), or by a further
/// uplink.
fn also_at(address: &str, is_behind: bool) -> Record {
    let mut record = far_end(BIGGER);
    let mut beside = record.locators[0];
    beside.priority = 2;
    beside.reachable = !is_behind;
    beside.rloc = Rloc::WireGuard {
        endpoint: address.parse().unwrap(),
        key: BIGGER,
    };
    record.locators.push(beside);
    record
}

/// Its keepalives are no use of the way here, as they are none there: it has forgotten us after a while.
#[test]
fn a_far_end_that_its_own_nat_is_kept_open_to_dozes_like_any_other() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &also_at("192.168.1.2:51820", true));
    bench.done(&installing);
    let fired = bench.handshake(BIGGER, 92);
    bench.done(&fired);
    let snapshot = bench.agent.snapshot(bench.now);
    assert!(snapshot.mappings[0].hidden);
    let mut told = Vec::new();
    for look in 1..=50 {
        bench.after(limits::LIVENESS_POLL);
        let stats = PeerStats {
            key: BIGGER,
            endpoint: None,
            handshake_seen: true,
            rx_bytes: 92 + look / 7 * limits::KEEPALIVE,
            tx_bytes: 0,
            read_at: bench.now,
        };
        let looked = bench.input(Input::PeerStats(&[stats]));
        told.extend(story(&looked));
        bench.done(&looked);
    }
    assert_eq!(told, ["no route 10.0.0.2/32"]);
    // It is about to use it, perhaps in the session that there is.
    let woken = bench.notify(2, &also_at("192.168.1.2:51820", true));
    assert_eq!(story(&woken), ["route 10.0.0.2/32", "ack"]);
}

/// Where the data plane repeats itself, the far end may just have answered it, and sent what waits there right behind
/// that: nobody could read it if the session were thrown away.
#[test]
fn an_end_with_nothing_to_send_starts_anew_only_where_nothing_else_does() {
    for tells_handshakes in [false, true] {
        let (mut bench, _) = behind();
        bench.agent.config.tells_handshakes = tells_handshakes;
        let installing = bench.notify(1, &far_end(BIGGER));
        bench.done(&installing);
        bench.after(limits::PASSIVE_WAIT);
        bench.after(limits::REKINDLE * 2);
        let not_seen = PeerStats {
            key: BIGGER,
            endpoint: None,
            handshake_seen: false,
            rx_bytes: 0,
            tx_bytes: 148,
            read_at: bench.now,
        };
        let looked = story(&bench.input(Input::PeerStats(&[not_seen])));
        let is_out = looked.contains(&"no peer".to_owned());
        assert_eq!(is_out, !tells_handshakes, "{looked:?}");
    }
}

#[test]
fn who_is_behind_a_nat_of_its_own_and_may_just_have_found_us_is_not_taken_out() {
    let started_anew = |inner: &str, is_behind| {
        let mut bench = Bench::new();
        let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
        let nonce = requests(&asked)[0].nonce;
        let installing = bench.reply(nonce, &also_at(inner, is_behind));
        assert_eq!(story(&bench.done(&installing)), ["sent on 1"]);
        bench.after(limits::REKINDLE);
        let not_seen = PeerStats {
            key: BIGGER,
            endpoint: None,
            handshake_seen: false,
            rx_bytes: 0,
            tx_bytes: 148,
            read_at: bench.now,
        };
        story(&bench.input(Input::PeerStats(&[not_seen])))
    };
    assert_eq!(started_anew("192.168.1.2:51820", true), ["kick"]);
    assert_eq!(started_anew("198.51.100.2:51820", true), ["kick"]);
    for uplink in ["198.51.100.2:51820", "192.168.1.2:51820"] {
        let anew = started_anew(uplink, false);
        assert_eq!(anew, ["no peer", "peer [10.0.0.2/32]"], "{uplink}");
    }
}

#[test]
fn who_was_told_of_unasked_is_not_named_any_more() {
    let (mut bench, _) = behind();
    fire(&mut bench);
    let asking = bench.after(APART);
    let nonce = requests(&asking)[0].nonce;
    assert_eq!(lost(&requests(&asking)[0]), [BIGGER]);
    bench.notify(7, &far_end(BIGGER));
    let late = bench.reply(nonce, &far_end(BIGGER));
    assert_eq!(story(&late), ["UnknownNonce"]);
    let fired = bench.handshake(BIGGER, 92);
    bench.done(&fired);
    let asking = bench.after(limits::refresh_after(Duration::from_secs(900)));
    let refreshing = requests(&asking);
    assert!(refreshing.iter().all(|it| lost(it).is_empty()));
    assert!(bench.agent.apart_record(&net("10.0.0.2/32")).is_none());
}

#[test]
fn who_is_heard_after_all_is_not_named_any_more() {
    let (mut bench, _) = behind();
    fire(&mut bench);
    bench.after(APART);
    assert!(bench.agent.apart_record(&net("10.0.0.2/32")).is_some());
    let fired = bench.handshake(BIGGER, 92);
    bench.done(&fired);
    assert!(bench.agent.apart_record(&net("10.0.0.2/32")).is_none());
    // The same when there was a session before.
    let at = bench.agent.cache.get(&net("10.0.0.2/32")).unwrap().chosen;
    bench.agent.is_apart(net("10.0.0.2/32"), at.unwrap());
    bench.handshake(BIGGER, 92);
    assert!(bench.agent.apart_record(&net("10.0.0.2/32")).is_some());
    bench.handshake(BIGGER, 124);
    assert!(bench.agent.apart_record(&net("10.0.0.2/32")).is_none());
}

#[test]
fn one_that_we_have_left_is_not_named() {
    let (mut bench, _) = behind();
    fire(&mut bench);
    let elsewhere = Chosen {
        key: SMALLER,
        endpoint: "192.0.2.9:51820".parse().unwrap(),
    };
    bench.agent.is_apart(net("10.0.0.2/32"), elsewhere);
    assert!(bench.agent.apart_record(&net("10.0.0.2/32")).is_none());
}

#[test]
fn what_waits_takes_the_relay_also_when_the_far_end_has_other_prefixes() {
    let (mut bench, _) = behind();
    fire(&mut bench);
    let beside = record("fd00:1::2/128", BIGGER, Ttl::from_minutes(15));
    let installing = bench.notify(3, &beside);
    bench.done(&installing);
    let asking = bench.after(APART);
    let question = requests(&asking)
        .into_iter()
        .find(|it| !lost(it).is_empty());
    let moving = bench.reply(question.unwrap().nonce, &over_relay());
    let first = bench.done(&moving);
    assert!(
        !story(&first).contains(&"sent on 1".to_owned()),
        "not twice"
    );
    let fired = bench.handshake(RELAY, 92);
    bench.done(&fired);
    // The rest of the answer: now the peer goes, and what it kept with it.
    let mut rest = over_relay();
    rest.eid = beside.eid;
    let moving = bench.notify(4, &rest);
    let done = bench.done(&moving);
    let told = [story(&moving), story(&done)].concat();
    assert!(told.contains(&"no peer".to_owned()), "{told:?}");
    assert!(told.contains(&"sent on 1".to_owned()), "{told:?}");
    assert!(is_relayed(&bench));
}

#[test]
fn who_may_have_nothing_to_say_is_asked_for_an_echo_before_anybody_hears_of_it() {
    let (mut bench, _) = behind();
    fire(&mut bench);
    let fired = bench.handshake(BIGGER, 92);
    bench.done(&fired);
    bench.agent.config.tells_handshakes = true;
    let mut tx_bytes = 1_000;
    let mut look = |bench: &mut Bench, rx_bytes| {
        tx_bytes += 1_000;
        let mut told = bench.after(limits::LIVENESS_POLL);
        told.extend(bench.input(Input::PeerStats(&[PeerStats {
            key: BIGGER,
            endpoint: None,
            handshake_seen: true,
            rx_bytes,
            tx_bytes,
            read_at: bench.now,
        }])));
        let echoes = told.iter().filter(|it| matches!(it, Action::Reinject(_)));
        let asked = !requests(&told).is_empty();
        (echoes.count(), asked)
    };
    let silent = [92; 4].map(|rx| look(&mut bench, rx));
    assert_eq!(silent, [(0, false), (0, false), (0, false), (1, false)]);
    // It answers.
    let silent = [192; 4].map(|rx| look(&mut bench, rx));
    assert_eq!(silent, [(0, false); 4]);
    assert_eq!(look(&mut bench, 192), (1, false));
    assert_eq!(look(&mut bench, 192), (0, true), "now it does not");
}

#[test]
fn what_waits_in_the_data_plane_goes_before_what_came_later() {
    let (mut bench, _) = behind();
    fire(&mut bench);
    let beside = record("fd00:1::2/128", BIGGER, Ttl::from_minutes(15));
    let installing = bench.notify(3, &beside);
    bench.done(&installing);
    for number in 2..=STAGED + 1 {
        let number = u8::try_from(number).unwrap();
        bench.input(Input::TunPacket(&to_far_end(&[number])));
    }
    let asking = bench.after(APART);
    let mut questions = requests(&asking).into_iter();
    let question = questions.find(|it| !lost(it).is_empty()).unwrap();
    let mut rest = over_relay();
    rest.eid = beside.eid;
    let mut sent = bench.reply(question.nonce, &over_relay());
    // The data plane has yet to do that when the rest of the answer is there.
    sent.extend(bench.notify(4, &rest));
    let done = bench.done(&sent);
    let told = story(&done);
    let order: Vec<_> = told.iter().filter(|it| it.starts_with("sent on")).collect();
    let expected: Vec<_> = (1..=STAGED).map(|it| format!("sent on {it}")).collect();
    assert_eq!(order, expected.iter().collect::<Vec<_>>());
}

#[test]
fn what_has_gone_to_another_peer_is_not_sent_by_the_one_before_once_more() {
    let mut bench = Bench::new();
    let beside = record("fd00:1::2/128", BIGGER, Ttl::from_minutes(15));
    let installing = bench.notify(3, &beside);
    bench.done(&installing);
    fire(&mut bench);
    let moving = bench.notify(4, &far_end(SMALLER));
    bench.done(&moving);
    let mut sent = Vec::new();
    for _ in 0..8 {
        bench.after(limits::REKINDLE);
        let not_seen = PeerStats {
            key: BIGGER,
            endpoint: None,
            handshake_seen: false,
            rx_bytes: 0,
            tx_bytes: 148,
            read_at: bench.now,
        };
        let anew = bench.input(Input::PeerStats(&[not_seen]));
        let done = bench.done(&anew);
        sent.extend(story(&done).into_iter().filter(|it| it == "sent on 1"));
    }
    assert!(sent.len() <= 1, "{sent:?}");
}

#[test]
fn a_mapping_that_is_set_up_anew_lasts_no_longer() {
    let mut bench = Bench::new();
    let installing = bench.notify(1, &far_end(BIGGER));
    bench.done(&installing);
    let expires = |bench: &Bench| {
        let entry = bench.agent.cache.get(&net("10.0.0.2/32"));
        entry.unwrap().expires
    };
    let before = expires(&bench);
    for _ in 0..3 {
        bench.after(Duration::from_secs(7));
        let mut actions = Actions::default();
        bench.agent.set_up_anew(bench.now, &BIGGER, &mut actions);
        assert_eq!(expires(&bench), before);
    }
}

#[test]
fn a_far_end_that_asks_over_a_relay_says_nothing_of_the_relay() {
    let (mut bench, _) = behind();
    let own = record("10.0.0.8/32", RELAY, Ttl::from_minutes(15));
    let mut looks = 0;
    for nonce in 1..6 {
        bench.after(limits::SILENCE);
        let mut told = bench.notify(2 * nonce, &over_relay());
        told.extend(bench.notify(2 * nonce + 1, &own));
        bench.done(&told);
        let read = |it: &&Action| matches!(it, Action::ReadPeerStatsAnew(_));
        looks += told.iter().filter(read).count();
        let fired = bench.handshake(RELAY, 92);
        bench.done(&fired);
    }
    assert_eq!(looks, 0);
}

#[test]
fn who_is_behind_a_nat_of_its_own_and_asks_again_keeps_its_session() {
    let looks = |is_behind| {
        let mut bench = Bench::new();
        let record = also_at("192.168.1.2:51820", is_behind);
        let mut looks = 0;
        for nonce in 1..6 {
            bench.after(limits::SILENCE);
            let told = bench.notify(nonce, &record);
            let read = |it: &&Action| matches!(it, Action::ReadPeerStatsAnew(_));
            looks += told.iter().filter(read).count();
            bench.done(&told);
            let fired = bench.handshake(BIGGER, 92);
            bench.done(&fired);
        }
        looks
    };
    assert_eq!(looks(true), 0);
    assert!(looks(false) > 0, "it has two uplinks");
}

#[test]
fn one_far_end_that_wakes_up_behind_a_relay_is_not_all_of_them() {
    let (mut bench, _) = behind();
    let mut beside = over_relay();
    beside.eid = record("10.0.0.3/32", RELAY, Ttl::from_minutes(15)).eid;
    for (nonce, record) in [(1, over_relay()), (2, beside)] {
        let installing = bench.notify(nonce, &record);
        bench.done(&installing);
    }
    let fired = bench.handshake(RELAY, 92);
    bench.done(&fired);
    let mut told = Vec::new();
    for _ in 0..50 {
        bench.after(limits::LIVENESS_POLL);
        let looked = bench.handshake(RELAY, 92);
        told.extend(story(&looked));
        bench.done(&looked);
    }
    assert!(
        told.contains(&"no route 10.0.0.3/32".to_owned()),
        "{told:?}"
    );
    let woken = bench.notify(3, &over_relay());
    bench.done(&woken);
    assert!(!story(&woken).contains(&"no peer".to_owned()));
    let kept = bench.agent.cache.get(&net("10.0.0.3/32"));
    assert!(kept.is_some_and(|entry| entry.chosen.is_some()));
}

#[test]
fn a_relay_is_known_as_such_after_a_restart_and_when_it_is_set_up_anew() {
    let mut bench = relayed();
    let snapshot = bench.agent.snapshot(bench.now);
    let mut actions = Actions::default();
    let mut next = Bench::with(bench.agent.config.clone());
    next.agent
        .restore(next.now, &snapshot, Duration::ZERO, &[RELAY], &mut actions);
    assert!(is_relayed(&next));
    bench.agent.set_up_anew(bench.now, &RELAY, &mut actions);
    assert!(is_relayed(&bench));
    // The same key may serve the prefix itself later.
    let mut owner = over_relay();
    owner.locators[0].priority = 1;
    bench.notify(2, &owner);
    assert!(!is_relayed(&bench));
}
