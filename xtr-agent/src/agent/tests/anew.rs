//! Far ends that ask for us although we have a session with them: they may have lost it.

use super::*;
use crate::agent::limits::{LIVENESS_POLL, SILENCE};

/// A far end was heard, has asked for us, and was not heard since for as long as it takes to say that
/// it asks in vain if it does so again.
fn asked_once() -> Bench {
    let mut bench = Bench::new();
    bench.connect(1, &far_end(SMALLER), 1);
    bench.after(LIVENESS_POLL);
    bench.handshake(SMALLER, 1);
    assert_eq!(story(&bench.notify(2, &far_end(SMALLER))), ["ack"]);
    bench.now = bench.now + SILENCE;
    bench
}

fn looks(actions: &[Action]) -> bool {
    let look = |action: &Action| matches!(action, Action::ReadPeerStatsAnew(_));
    actions.iter().any(look)
}

fn is_set_up_anew(actions: &[Action]) -> bool {
    story(actions).contains(&"no peer".to_owned())
}

#[test]
fn a_far_end_that_asks_for_us_twice_and_is_not_heard_is_set_up_anew() {
    let mut bench = asked_once();
    assert_eq!(story(&bench.notify(3, &far_end(SMALLER))), ["ack"]);
    let anew = bench.handshake(SMALLER, 1);
    assert_eq!(
        story(&anew),
        ["no route 10.0.0.2/32", "no peer", "peer [10.0.0.2/32]"]
    );
}

#[test]
fn a_far_end_that_is_heard_at_the_moment_it_asks_in_vain_keeps_its_session() {
    let mut bench = asked_once();
    assert!(
        looks(&bench.notify(3, &far_end(SMALLER))),
        "it may be in use by now"
    );
    assert!(!is_set_up_anew(&bench.handshake(SMALLER, 1_000)));
    bench.now = bench.now + LIVENESS_POLL;
    assert!(!is_set_up_anew(&bench.handshake(SMALLER, 1_000)));
}

#[test]
fn counters_from_before_the_question_say_nothing_and_are_read_again() {
    let mut bench = asked_once();
    let before = bench.now;
    bench.now = bench.now + Duration::from_millis(50);
    bench.notify(3, &far_end(SMALLER));
    let old = |bench: &mut Bench, read_at| {
        bench.input(Input::PeerStats(&[PeerStats {
            key: SMALLER,
            endpoint: None,
            handshake_seen: true,
            rx_bytes: 1,
            tx_bytes: 0,
            read_at,
        }]))
    };
    assert!(!is_set_up_anew(&old(&mut bench, before)), "from before");
    assert!(looks(&bench.after(limits::PASSIVE_WAIT)));
    let read_at = bench.now;
    bench.now = bench.now + limits::PASSIVE_WAIT * 2;
    assert!(
        !is_set_up_anew(&old(&mut bench, read_at)),
        "much can have happened since"
    );
    assert!(looks(&bench.after(limits::PASSIVE_WAIT)));
    assert!(is_set_up_anew(&bench.handshake(SMALLER, 1)));
    assert!(
        !looks(&bench.after(limits::PASSIVE_WAIT)),
        "that is settled"
    );
}

#[test]
fn what_the_data_plane_got_for_a_far_end_that_is_set_up_anew_is_sent_on_after_all() {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let installing = bench.reply(nonce, &far_end(BIGGER));
    assert!(story(&bench.done(&installing)).contains(&"sent on 1".to_owned()));
    bench.agent.config.hold = Duration::from_secs(60);
    bench
        .agent
        .watch(bench.now, BIGGER, Duration::from_secs(60));
    bench.notify(2, &far_end(BIGGER));
    bench.now = bench.now + SILENCE;
    bench.notify(3, &far_end(BIGGER));
    let anew = bench.input(Input::PeerStats(&[PeerStats {
        key: BIGGER,
        endpoint: None,
        handshake_seen: false,
        rx_bytes: 0,
        tx_bytes: 0,
        read_at: bench.now,
    }]));
    assert!(is_set_up_anew(&anew), "{:?}", story(&anew));
    assert_eq!(bench.agent.sizes().held, 1, "it waits once more");
}

#[test]
fn a_far_end_that_is_heard_keeps_its_session_however_often_it_asks() {
    let mut bench = Bench::new();
    bench.connect(1, &far_end(SMALLER), 1);
    for n in 0..5 {
        bench.after(LIVENESS_POLL);
        assert!(!is_set_up_anew(&bench.handshake(SMALLER, n)));
        assert_eq!(story(&bench.notify(2 + n, &far_end(SMALLER))), ["ack"]);
        assert!(!is_set_up_anew(&bench.handshake(SMALLER, n)));
        bench.now = bench.now + SILENCE;
    }
}

#[test]
fn a_far_end_behind_a_nat_of_its_own_is_left_where_it_was_last_seen() {
    let mut bench = Bench::new();
    let mut record = far_end(SMALLER);
    for locator in &mut record.locators {
        locator.rloc = Rloc::WireGuard {
            endpoint: "192.168.0.2:51820".parse().unwrap(),
            key: SMALLER,
        };
    }
    bench.connect(1, &record, 1);
    bench.after(LIVENESS_POLL);
    bench.handshake(SMALLER, 1);
    for n in 2..5 {
        assert_eq!(story(&bench.notify(n, &record)), ["ack"]);
        assert!(!is_set_up_anew(&bench.handshake(SMALLER, 1)));
        bench.now = bench.now + SILENCE;
    }
}

#[test]
fn a_far_end_that_is_set_up_anew_keeps_what_the_push_does_not_speak_of() {
    let mut bench = Bench::new();
    let other = record("10.0.0.3/32", SMALLER, Ttl::from_minutes(15));
    let installing = bench.notify(1, &far_end(SMALLER));
    bench.done(&installing);
    bench.handshake(SMALLER, 100);
    let installing = bench.notify(2, &other);
    bench.done(&installing);
    bench.after(LIVENESS_POLL);
    bench.handshake(SMALLER, 100);
    bench.notify(3, &far_end(SMALLER));
    bench.after(SILENCE);
    bench.notify(4, &far_end(SMALLER));
    let anew = bench.handshake(SMALLER, 100);
    assert!(is_set_up_anew(&anew), "{anew:?}");
    let peers: Vec<_> = bench.agent.peers().map(|peer| peer.allowed_ips).collect();
    assert_eq!(peers, [vec![net("10.0.0.2/32"), net("10.0.0.3/32")]]);
}
