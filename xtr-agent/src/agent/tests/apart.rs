//! Far ends that NATs keep from us, and relays.

use super::nat::behind;
use super::*;
use crate::agent::limits::{APART, RELAY_PRIORITY};

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
    let (mut bench, _) = behind();
    let installing = bench.notify(1, &over_relay());
    bench.done(&installing);
    let fired = bench.handshake(RELAY, 92);
    bench.done(&fired);
    assert!(is_relayed(&bench));
    let arming = bench.notify(2, &far_end(BIGGER));
    bench.done(&arming);
    let asking = bench.after(limits::HANDOVER_DOUBT);
    assert_eq!(lost(&requests(&asking)[0]), [BIGGER]);
    assert!(is_relayed(&bench), "it carries the packets meanwhile");
}

#[test]
fn who_is_behind_a_nat_of_its_own_and_may_just_have_found_us_is_not_taken_out() {
    let started_anew = |inner: &str| {
        let mut bench = Bench::new();
        let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
        let nonce = requests(&asked)[0].nonce;
        let mut record = far_end(BIGGER);
        let mut beside = record.locators[0];
        beside.priority = 2;
        beside.rloc = Rloc::WireGuard {
            endpoint: inner.parse().unwrap(),
            key: BIGGER,
        };
        record.locators.push(beside);
        let installing = bench.reply(nonce, &record);
        assert_eq!(story(&bench.done(&installing)), ["sent on 1"]);
        bench.after(limits::REKINDLE);
        let not_seen = PeerStats {
            key: BIGGER,
            handshake_seen: false,
            rx_bytes: 0,
            tx_bytes: 148,
            read_at: bench.now,
        };
        story(&bench.input(Input::PeerStats(&[not_seen])))
    };
    assert_eq!(started_anew("192.168.1.2:51820"), ["kick"]);
    let elsewhere = started_anew("198.51.100.2:51820");
    assert_eq!(elsewhere, ["no peer", "peer [10.0.0.2/32]"]);
}
