use super::*;
use crate::agent::limits::PASSIVE_WAIT;

fn peer(rx_bytes: u64, tx_bytes: u64) -> PeerStats {
    PeerStats {
        key: PublicKey([1; 32]),
        endpoint: None,
        handshake_seen: true,
        rx_bytes,
        tx_bytes,
        read_at: Timestamp::ZERO,
    }
}

#[test]
fn a_far_end_asks_in_vain_when_it_asks_again_within_the_time_of_a_session_and_is_not_heard() {
    let key = PublicKey([1; 32]);
    let asks = |moments: &[u64]| {
        let mut liveness = Liveness::default();
        liveness.touch(Timestamp::ZERO, key);
        let mut ask = |second| {
            let now = Timestamp::ZERO + Duration::from_secs(second);
            liveness.asks_in_vain(now, &key)
        };
        moments
            .iter()
            .map(|second| ask(*second))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        asks(&[0, 11, 12, 13, 25]),
        [false, false, true, false, true]
    );
    assert_eq!(asks(&[0, 180, 192]), [false, false, true]);
    assert_eq!(asks(&[0, 5, 7]), [false, false, true], "it insists");
    assert_eq!(asks(&[0, 1, 2, 3]), [false; 4]);
    assert_eq!(
        asks(&[0, 0, 1, 7]),
        [false; 4],
        "twice, in several messages"
    );
    let mut liveness = Liveness::default();
    liveness.touch(Timestamp::ZERO, key);
    assert!(!liveness.asks_in_vain(Timestamp::ZERO, &key));
    let later = Timestamp::ZERO + SILENCE;
    liveness.answered(later, &key);
    for _ in 0..2 {
        assert!(!liveness.asks_in_vain(later, &key), "we have asked");
    }
    assert!(liveness.asks_in_vain(later + PASSIVE_WAIT, &key));
    liveness.answered(later, &key);
    assert!(!liveness.asks_in_vain(later + ANSWER_IN_PARTS, &key));
    assert!(liveness.asks_in_vain(later + ANSWER_IN_PARTS + SILENCE, &key));
}

#[test]
fn silence_is_bytes_out_and_none_in_for_long_enough() {
    let mut liveness = Liveness::default();
    liveness.touch(Timestamp::ZERO, PublicKey([1; 32]));
    let mut now = Timestamp::ZERO;
    let mut look = |rx, tx| {
        now = now + LIVENESS_POLL;
        liveness.silent(now, &peer(rx, tx), false)
    };
    for n in 0..20 {
        assert!(!look(n, n), "both ways is fine");
    }
    for _ in 0..20 {
        assert!(!look(19, 19), "neither way is fine");
    }
    let asked: Vec<bool> = (20..40).map(|n| look(19, n * 100)).collect();
    let first = asked.iter().position(|asked| *asked).unwrap();
    assert_eq!(first, 3, "twelve seconds after the first unanswered byte");
    let count = asked.iter().filter(|asked| **asked).count();
    assert!(
        (2..=3).contains(&count),
        "then ever less often, not {count} times"
    );
}

#[test]
fn who_has_asked_for_us_is_not_waited_for_as_long_as_one_of_whom_nothing_is_known() {
    let key = PublicKey([1; 32]);
    let mut liveness = Liveness::default();
    liveness.touch(Timestamp::ZERO, key);
    let mut now = Timestamp::ZERO;
    for n in 0..40 {
        now = now + LIVENESS_POLL;
        liveness.silent(now, &peer(19, n * 100), false);
    }
    assert!(liveness.vain(&key).patience > SILENCE * 2);
    liveness.asks_in_vain(now, &key);
    assert_eq!(liveness.vain(&key).patience, SILENCE * 2);
}

#[test]
fn a_keepalive_of_ours_wants_no_answer() {
    let mut liveness = Liveness::default();
    liveness.touch(Timestamp::ZERO, PublicKey([1; 32]));
    for n in 0..40 {
        let now = Timestamp::ZERO + LIVENESS_POLL * n;
        assert!(!liveness.silent(now, &peer(92, u64::from(n / 15) * KEEPALIVE), false));
    }
}

#[test]
fn what_keeps_a_way_open_is_no_use_of_it() {
    let key = PublicKey([1; 32]);
    let mut liveness = Liveness::default();
    liveness.touch(Timestamp::ZERO, key);
    let (mut now, mut tx) = (Timestamp::ZERO, 0);
    for n in 0..100 {
        now = now + LIVENESS_POLL;
        tx += if n % 6 == 0 { KEEPALIVE } else { 0 };
        liveness.silent(now, &peer(0, tx), true);
    }
    assert_eq!(liveness.idle(now, &key), Some(now - Timestamp::ZERO));
    // The far end is behind a NAT as well, and keeps its own way open.
    now = now + LIVENESS_POLL;
    liveness.silent(now, &peer(KEEPALIVE, tx), true);
    assert_eq!(liveness.idle(now, &key), Some(now - Timestamp::ZERO));
    now = now + LIVENESS_POLL;
    liveness.silent(now, &peer(KEEPALIVE + 128, tx), true);
    assert_eq!(liveness.idle(now, &key), Some(Duration::ZERO));
    now = now + LIVENESS_POLL;
    liveness.silent(now, &peer(KEEPALIVE + 128, tx), true);
    assert_eq!(liveness.idle(now, &key), Some(LIVENESS_POLL));
    liveness.silent(now, &peer(KEEPALIVE + 128, tx + 128), true);
    assert_eq!(liveness.idle(now, &key), Some(Duration::ZERO));
}

#[test]
fn who_is_said_hello_to_once_a_minute_takes_nobody_for_idle() {
    let key = PublicKey([1; 32]);
    let longest = |hello: u64| {
        let mut liveness = Liveness::default();
        liveness.touch(Timestamp::ZERO, key);
        let (mut now, mut rx, mut longest) = (Timestamp::ZERO, 0, Duration::ZERO);
        for n in 1..=150 {
            now = now + LIVENESS_POLL;
            rx += if n % 7 == 0 { KEEPALIVE } else { 0 };
            rx += if n % 15 == 0 { hello } else { 0 };
            // A new session every two minutes.
            rx += if n % 30 == 0 { 148 + 2 * KEEPALIVE } else { 0 };
            liveness.silent(now, &peer(rx, 0), true);
            longest = longest.max(liveness.idle(now, &key).unwrap_or_default());
        }
        longest
    };
    assert!(longest(80) <= WARM);
    assert!(longest(0) > SESSION);
}
