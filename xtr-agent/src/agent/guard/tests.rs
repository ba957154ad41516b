//! When is a proxy, or another far end, lost, and what is asked for that?

use lisp_proto::PublicKey;

use super::*;

/// A guard with a clock, and a proxy with counters.
struct Bench {
    guard: Guard,
    now: Timestamp,
    rx: u64,
    tx: u64,
    round_trip: Duration,
    /// How many witnesses there are, which are asked in turn, and how often they were.
    witnesses: usize,
    asked: usize,
    /// How many in a row were not answered.
    missed: u32,
}

impl Bench {
    /// A proxy that a witness has answered through, with packets on their way to it.
    fn proven() -> Self {
        let guard = Guard {
            is_proxy: true,
            ..Guard::default()
        };
        let mut bench = Self {
            guard,
            now: Timestamp::ZERO,
            rx: 0,
            tx: 0,
            round_trip: Duration::from_millis(20),
            witnesses: 1,
            asked: 0,
            missed: 0,
        };
        for _ in 0..20 {
            bench.step(1_000, true);
        }
        assert!(bench.guard.is_proven);
        bench
    }

    /// Time until the next look, with so many bytes sent meanwhile; says whether the proxy is
    /// found lost.
    fn step(&mut self, sent: u64, answers: bool) -> bool {
        self.look_after(PROBE_EVERY, sent, answers)
    }

    fn look_after(&mut self, span: Duration, sent: u64, answers: bool) -> bool {
        self.now = self.now + span;
        self.tx += sent;
        let peer = PeerStats {
            key: PublicKey([1; 32]),
            endpoint: None,
            handshake_seen: true,
            rx_bytes: self.rx,
            tx_bytes: self.tx,
            read_at: self.now,
        };
        assert!(self.guard.look(self.now, &peer));
        let lost = self.guard.is_lost(self.now);
        if self.guard.wants_echo(self.now, true) {
            self.asked += 1;
            let number = u8::try_from(self.asked % self.witnesses).unwrap();
            let witness = [192, 0, 2, number].into();
            self.guard.asks(self.now, Some(witness));
            self.tx += ECHO_BYTES;
            if answers {
                let at = self.now + self.round_trip;
                let missed = std::mem::take(&mut self.missed);
                self.guard.is_answered(at, self.now, witness, missed);
                self.rx += ECHO_BYTES;
            } else {
                self.missed += 1;
            }
        }
        lost
    }

    /// How long it takes to be found lost while so many bytes are sent between two looks.
    fn lost_after(&mut self, sent: u64) -> Option<Duration> {
        let start = self.now;
        let found = (0..100).find(|_| self.step(sent, false));
        found.map(|_| self.now - start)
    }
}

#[test]
fn a_proxy_that_answers_is_never_lost_and_one_that_does_not_soon_is() {
    let mut bench = Bench::proven();
    assert!((0..1_000).all(|_| !bench.step(1_000, true)));
    let took = bench.lost_after(1_000).unwrap();
    let least = PATIENCE + bench.round_trip * 2;
    assert!((least..least + PROBE_EVERY * 3).contains(&took), "{took:?}");
}

#[test]
fn echoes_that_are_lost_by_chance_say_nothing() {
    let mut bench = Bench::proven();
    for _ in 0..100 {
        for _ in 1..bench.guard.too_many() {
            assert!(!bench.step(1_000, false));
        }
        assert!(!bench.step(1_000, true));
    }
}

/// A network that loses one packet in ten, or in five, is not one that a proxy is missing in; and a proxy that
/// is lost there is found out within a second all the same.
#[test]
fn where_more_is_lost_by_chance_more_is_needed() {
    let mut random = 1u64;
    for (loss, most) in [(2, 4), (10, 8), (20, 12), (35, PROBES_LOST_MAX)] {
        let mut bench = Bench::proven();
        let mut chance = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % 100 < loss
        };
        let learning = 200;
        for _ in 0..learning {
            bench.step(1_000, !chance());
        }
        let found = (0..100_000).filter(|_| bench.step(1_000, !chance()));
        assert_eq!(found.count(), 0, "{loss} % are lost");
        bench.step(1_000, true);
        let took = bench.lost_after(1_000).unwrap();
        assert!(took <= PROBE_EVERY * (most + 2), "{loss} %: {took:?}");
    }
}

#[test]
fn nothing_is_sent_or_said_where_no_packets_flow() {
    let mut bench = Bench::proven();
    let idle = u32::try_from(QUIET.as_millis() / PROBE_EVERY.as_millis()).unwrap() + 1;
    for _ in 0..idle {
        bench.step(0, true);
    }
    let before = bench.tx;
    assert_eq!(bench.lost_after(0), None);
    assert_eq!(bench.tx, before, "no echo");
    for own in HANDSHAKE_BYTES.into_iter().chain([KEEPALIVE]) {
        // A handshake that was answered.
        bench.rx += 92;
        assert!(!bench.step(own, false));
        assert_eq!(bench.tx, before + own, "that was WireGuard itself");
        bench.tx = before;
        bench.guard.counted = Some((bench.now, bench.rx, before));
    }
    assert!(bench.lost_after(1_000).is_some(), "they flow again");
}

/// Without a session packets wait in the data plane, which counts its initiations only.
#[test]
fn packets_that_wait_for_a_session_flow_as_well() {
    let mut bench = Bench::proven();
    let idle = u32::try_from(QUIET.as_millis() / PROBE_EVERY.as_millis()).unwrap() + 1;
    for _ in 0..idle {
        bench.step(0, true);
    }
    let start = bench.now;
    let found = (0..100).any(|n| bench.step(if n % 80 == 0 { 148 } else { 0 }, false));
    assert!(found);
    let took = bench.now - start;
    assert!(took < PATIENCE * 2 + PROBE_EVERY * 6, "{took:?}");
    let mut bench = Bench::proven();
    for _ in 0..idle {
        bench.step(0, true);
    }
    bench.step(148, true);
    bench.rx += 92;
    assert_eq!(bench.lost_after(0), None, "it was answered");
}

#[test]
fn whoever_answers_others_at_length_is_not_lost_though_no_witness_answers() {
    let mut bench = Bench::proven();
    for _ in 0..100 {
        bench.rx += EVIDENCE + 500;
        assert!(!bench.step(1_000, false));
    }
    assert!(bench.lost_after(1_000).is_some(), "it answers nobody now");
}

#[test]
fn several_silent_witnesses_count_more_than_what_comes_back() {
    let mut bench = Bench::proven();
    bench.witnesses = 2;
    let start = bench.now;
    let found = (0..100).any(|_| {
        bench.rx += EVIDENCE * 10;
        bench.step(1_000, false)
    });
    assert!(found);
    let took = bench.now - start;
    assert!(took < PROBE_CALM * 2 + PATIENCE * 2, "{took:?}");
    let mut bench = Bench::proven();
    bench.witnesses = 2;
    for _ in 0..1_000 {
        bench.rx += EVIDENCE * 10;
        assert!(!bench.step(1_000, true));
    }
}

#[test]
fn echoes_are_no_more_frequent_when_others_want_the_counters_as_well() {
    let mut bench = Bench::proven();
    bench.asked = 0;
    for _ in 0..100 {
        bench.look_after(PROBE_EVERY / 2, 1_000, true);
    }
    assert!(bench.asked <= 50, "{}", bench.asked);
}

#[test]
fn an_echo_that_was_not_sent_is_none() {
    let mut bench = Bench::proven();
    let witness = [192, 0, 2, 0].into();
    for _ in 0..100 {
        assert!(!bench.step(1_000, true));
        bench.guard.asks(bench.now, Some(witness));
        bench.guard.has_not_asked(&witness);
    }
    assert_eq!((bench.guard.silence, bench.guard.asked), (None, 1));
}

#[test]
fn a_far_end_that_is_asked_itself_and_does_not_answer_is_lost_whatever_comes_from_it() {
    let mut bench = Bench::proven();
    (bench.guard.is_proxy, bench.guard.asks_itself) = (false, true);
    let start = bench.now;
    let found = (0..100).any(|_| {
        bench.rx += EVIDENCE * 10;
        bench.step(1_000, false)
    });
    assert!(found);
    let took = bench.now - start;
    assert!(took < PROBE_WAY * (bench.guard.too_many() + 2), "{took:?}");
}

#[test]
fn a_single_host_behind_a_far_end_that_is_off_says_nothing_while_others_send() {
    let mut bench = Bench::proven();
    bench.guard.is_proxy = false;
    for _ in 0..1_000 {
        bench.rx += EVIDENCE / 3;
        assert!(!bench.step(1_000, false));
    }
    assert!(bench.lost_after(1_000).is_some(), "nothing at all comes");
    let mut bench = Bench::proven();
    bench.guard.is_proxy = false;
    let took = bench.lost_after(1_000).unwrap();
    assert!(took < PATIENCE * 2, "{took:?}");
}

#[test]
fn several_silent_hosts_behind_a_far_end_count_whatever_comes() {
    let mut bench = Bench::proven();
    (bench.guard.is_proxy, bench.witnesses) = (false, 2);
    let found = (0..10).any(|_| {
        bench.rx += EVIDENCE / 3;
        bench.step(1_000, false)
    });
    assert!(found);
}

#[test]
fn one_that_was_asked_in_vain_and_sends_is_left_alone_ever_longer() {
    let mut bench = Bench::proven();
    let mut pauses = Vec::new();
    for _ in 0..6 {
        bench.guard.was_asked_in_vain(bench.now);
        let start = bench.now;
        while !bench.step(1_000, false) {}
        pauses.push(bench.now - start);
    }
    assert!(
        pauses[0] >= VERDICTS && pauses[1] >= VERDICTS * 2,
        "{pauses:?}"
    );
    let most = VERDICTS_MAX..VERDICTS_MAX + PROBE_EVERY * 2;
    assert!(most.contains(&pauses[5]), "{pauses:?}");
    for _ in 0..10_000 {
        bench.step(1_000, true);
    }
    bench.guard.was_asked_in_vain(bench.now);
    let again = bench.lost_after(1_000).unwrap();
    assert!(again < VERDICTS * 2, "that is long ago: {again:?}");
}

#[test]
fn two_that_watch_each_other_do_not_keep_each_other_at_it() {
    let mut bench = Bench::proven();
    (bench.guard.is_proxy, bench.guard.asks_itself) = (false, true);
    let flows = |bench: &mut Bench| {
        let asked = bench.asked;
        for _ in 0..100 {
            // An echo of the far end, and our answer.
            bench.rx += ECHO_BYTES;
            bench.step(ECHO_BYTES, true);
        }
        bench.asked - asked
    };
    assert!(
        flows(&mut bench) < 50,
        "until packets count as flowing no more"
    );
    assert_eq!(flows(&mut bench), 0);
    bench.step(1_000, true);
    assert!(bench.guard.is_used(bench.now));
    flows(&mut bench);
    // As long as an answer, and to nothing.
    bench.step(ECHO_BYTES, true);
    bench.step(ECHO_BYTES, true);
    assert!(bench.guard.is_used(bench.now));
}

#[test]
fn one_that_is_reached_another_way_has_its_time_again() {
    let mut bench = Bench::proven();
    bench.lost_after(1_000).unwrap();
    bench.guard.begins_anew();
    let again = bench.lost_after(1_000).unwrap();
    assert!(again >= PATIENCE && again < VERDICTS / 5, "{again:?}");
}

#[test]
fn who_is_far_away_gets_more_time() {
    let mut bench = Bench::proven();
    bench.round_trip = Duration::from_millis(400);
    bench.step(1_000, true);
    let took = bench.lost_after(1_000).unwrap();
    assert!(took >= PATIENCE + Duration::from_millis(800), "{took:?}");
}

#[test]
fn what_was_found_is_not_found_again_at_once() {
    let mut bench = Bench::proven();
    bench.lost_after(1_000).unwrap();
    let again = bench.lost_after(1_000).unwrap();
    assert!((VERDICTS..VERDICTS + PROBE_EVERY * 2).contains(&again));
}
