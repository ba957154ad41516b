//! Does one proxy that we use still lead anywhere?
//!
//! While packets flow to it, echoes are sent through it to witnesses: addresses beyond it that have
//! answered before. Whatever is wrong, a dead process, a cut link, or a proxy that forwards nothing,
//! looks the same: none of the latest echoes has come back.
//!
//! Much that comes back through the tunnel speaks for the proxy, and against a witness that is silent.
//! But nobody can tell whether it has come from beyond the proxy: against several witnesses it counts
//! for nothing.
//!
//! A far end that is no proxy, but can be reached in several ways, is asked itself. Then it is the way
//! there that is watched, and the way back: what comes back says nothing about the former.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use lisp_proto::Timestamp;

use super::PeerStats;
use super::limits::{
    ECHO_BYTES, EVIDENCE, HANDSHAKE_BYTES, INITIATION_PAUSE, KEEPALIVE, LOSS_LEAST, LOSS_SHARE,
    LOST_BY_CHANCE, PATIENCE, PATIENCE_MAX, PROBE_CALM, PROBE_EVERY, PROBE_SEEKING, PROBE_WAY,
    PROBES_LOST_MAX, QUIET, SEVERAL_WITNESSES, VERDICTS,
};

/// What is known of one proxy in use, or another far end that is watched.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// Whether it is a proxy: what is beyond matters.
    pub(super) is_proxy: bool,
    /// Whether it is itself that is asked, and no proxy.
    pub(super) asks_itself: bool,
    /// Who has answered last.
    pub(super) answerer: Option<IpAddr>,
    /// When its counters were looked at, and what it had received and sent by then.
    counted: Option<(Timestamp, u64, u64)>,
    /// When packets were last sent to it, other than echoes and those of WireGuard itself.
    used: Option<Timestamp>,
    /// When handshakes were started that nobody has answered: the first, and the latest.
    initiated: Option<(Timestamp, Timestamp)>,
    /// Whether more comes back than anything but packets of others can be.
    answers_others: bool,
    /// Echoes sent, and answered, since the last look.
    asked: u64,
    answered: u64,
    /// When the first echo was sent that a witness has not answered, nor any after it; and how many
    /// those are.
    silence: Option<(Timestamp, u32)>,
    /// The witnesses that were asked since one has answered.
    silent: BTreeSet<IpAddr>,
    /// How long answers took lately.
    pub(super) round_trip: Duration,
    /// The share of echoes that are lost on the way, as long as others are answered.
    loss: f64,
    /// When the latest echo was sent.
    asked_at: Option<Timestamp>,
    /// How many were, to whoever it was.
    turn: usize,
    /// Whether a witness has answered through this proxy.
    pub(super) is_proven: bool,
    /// Until when nothing is concluded: it was just found silent.
    settled_until: Option<Timestamp>,
}

impl Guard {
    /// Takes in its counters, unless others have wanted them just now; says whether it did.
    pub(super) fn look(&mut self, now: Timestamp, peer: &PeerStats) -> bool {
        let before = self.counted;
        if before.is_some_and(|(at, ..)| now - at < PROBE_EVERY / 2) {
            return false;
        }
        self.counted = Some((now, peer.rx_bytes, peer.tx_bytes));
        let asked = std::mem::take(&mut self.asked) * ECHO_BYTES;
        let answered = std::mem::take(&mut self.answered) * ECHO_BYTES;
        let Some((looked, received, sent)) = before else {
            return true;
        };
        let sent = peer.tx_bytes.saturating_sub(sent).saturating_sub(asked);
        let received = peer.rx_bytes.saturating_sub(received);
        let others = received.saturating_sub(answered);
        let answers = !self.is_proxy && is_echoes(sent, others, now - looked);
        let is_own = HANDSHAKE_BYTES.contains(&sent);
        self.initiated = match self.initiated {
            _ if received > 0 => None,
            Some((first, _)) if is_own => Some((first, now)),
            Some((_, latest)) if now - latest > INITIATION_PAUSE => None,
            None if is_own => Some((now, now)),
            before => before,
        };
        if (sent > KEEPALIVE && !is_own && !answers) || self.awaits_session(now) {
            self.used = Some(now);
        }
        self.answers_others = others > EVIDENCE;
        if !self.is_used(now) {
            self.forget_silence();
        } else if self.is_vouched_for() {
            self.silence = None;
        }
        true
    }

    /// What had come from it at the latest look, in bytes.
    pub(super) fn received(&self) -> u64 {
        self.counted.map_or(0, |(_, received, _)| received)
    }

    /// Whether packets wait for a handshake that nobody answers: they are not counted as sent.
    fn awaits_session(&self, now: Timestamp) -> bool {
        let first = self.initiated.map(|(first, _)| first);
        first.is_some_and(|first| now - first >= PROBE_EVERY * 2)
    }

    /// Whether the next look decides if a handshake is answered.
    pub(super) const fn has_initiated(&self) -> bool {
        self.initiated.is_some()
    }

    /// Whether what comes back speaks for it more than the silence of witnesses against it.
    fn is_vouched_for(&self) -> bool {
        self.answers_others && !self.asks_itself && self.silent.len() < SEVERAL_WITNESSES
    }

    fn forget_silence(&mut self) {
        self.silence = None;
        self.silent.clear();
    }

    /// Whether packets flow to it.
    pub(super) fn is_used(&self, now: Timestamp) -> bool {
        self.used.is_some_and(|used| now - used < QUIET)
    }

    /// Whether it is time for an echo; there may be a witness to send it to. Where there is none, silence
    /// says nothing.
    pub(super) fn wants_echo(&mut self, now: Timestamp, has_witness: bool) -> bool {
        if !has_witness {
            self.forget_silence();
        }
        let pause = match (has_witness, self.is_vouched_for()) {
            (false, _) => PROBE_SEEKING,
            (true, true) => PROBE_CALM,
            (true, false) if self.asks_itself && self.answers_others => PROBE_WAY,
            // Looks come that often, or more often when others want the counters; none comes to the
            // microsecond.
            (true, false) => PROBE_EVERY * 3 / 4,
        };
        self.is_used(now) && self.asked_at.is_none_or(|at| now - at >= pause)
    }

    /// The next echo need not wait.
    pub(super) const fn hurries(&mut self) {
        self.asked_at = None;
    }

    /// It is reached another way from now on: what was not answered says nothing about that.
    pub(super) fn begins_anew(&mut self) {
        self.forget_silence();
        self.settled_until = None;
        self.hurries();
    }

    /// Whose turn it is to be asked.
    pub(super) const fn next_turn(&mut self) -> usize {
        self.turn = self.turn.wrapping_add(1);
        self.turn
    }

    /// An echo goes out, to a witness or to somebody who may become one.
    pub(super) fn asks(&mut self, now: Timestamp, witness: Option<IpAddr>) {
        self.asked += 1;
        self.asked_at = Some(now);
        if let Some(witness) = witness {
            self.silent.insert(witness);
            let (_, unanswered) = self.silence.get_or_insert((now, 0));
            *unanswered = unanswered.saturating_add(1);
        }
    }

    /// The latest echo, to `to`, has not gone out after all.
    pub(super) fn has_not_asked(&mut self, to: &IpAddr) {
        self.asked = self.asked.saturating_sub(1);
        if self.silent.remove(to) {
            let before = self.silence.take();
            let others = before.map(|(since, unanswered)| (since, unanswered.saturating_sub(1)));
            self.silence = others.filter(|(_, unanswered)| *unanswered > 0);
        }
    }

    /// An echo that was sent at `sent` has come back from `by`, and so many before it to the same witness have not.
    pub(super) fn is_answered(&mut self, now: Timestamp, sent: Timestamp, by: IpAddr, missed: u32) {
        self.answerer = Some(by);
        // More than that is no chance.
        if missed < PROBES_LOST_MAX {
            for _ in 0..missed {
                self.loss += (1.0 - self.loss) * LOSS_SHARE;
            }
            self.loss -= self.loss * LOSS_SHARE;
        }
        let took = now - sent;
        self.round_trip = took.max((self.round_trip * 7 + took) / 8);
        self.answered += 1;
        self.forget_silence();
        self.is_proven = true;
    }

    /// So many echoes in a row are not lost by chance.
    fn too_many(&self) -> u32 {
        let loss = self.loss.max(LOSS_LEAST);
        let mut chance = loss;
        let mut number = 1;
        while chance > LOST_BY_CHANCE && number < PROBES_LOST_MAX {
            chance *= loss;
            number += 1;
        }
        number
    }

    /// Whether it is lost, as far as anybody can tell. The same is not said again soon.
    pub(super) fn is_lost(&mut self, now: Timestamp) -> bool {
        if self.settled_until.is_some_and(|until| now < until) {
            return false;
        }
        let patience = (PATIENCE + self.round_trip * 2).min(PATIENCE_MAX);
        // How far away others are is not known before they have answered.
        let patience = if self.is_proven {
            patience
        } else {
            patience * 2
        };
        let too_many = self.too_many();
        let lost = self
            .silence
            .is_some_and(|(since, unanswered)| unanswered >= too_many && now - since >= patience);
        if lost {
            self.settled_until = Some(now + VERDICTS);
        }
        lost
    }
}

/// Whether bytes sent and received within `span` are echoes of the far end and our answers to them: it
/// watches us, as we do it, and neither shall keep the other at that.
fn is_echoes(sent: u64, received: u64, span: Duration) -> bool {
    let most = 1 + span.as_millis() / PROBE_EVERY.as_millis();
    let count = sent / ECHO_BYTES;
    let is_whole = [sent, received]
        .iter()
        .all(|it| it.is_multiple_of(ECHO_BYTES));
    is_whole && u128::from(count) <= most && count.abs_diff(received / ECHO_BYTES) <= 2
}

#[cfg(test)]
mod tests {
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
}
