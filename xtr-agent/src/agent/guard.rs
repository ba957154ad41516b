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
//! there that is watched, and the way back: what comes back says nothing about the former. Where it has
//! no address of its own, those behind it are asked. One of them alone may be off while the tunnel works:
//! it counts only when nothing at all comes back, or when another one is silent too.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use lisp_proto::Timestamp;

use super::PeerStats;
use super::limits::{
    ECHO_BYTES, EVIDENCE, HANDSHAKE_BYTES, INITIATION_PAUSE, KEEPALIVE, LOSS_LEAST, LOSS_SHARE,
    LOST_BY_CHANCE, PATIENCE, PATIENCE_MAX, PROBE_CALM, PROBE_EVERY, PROBE_SEEKING, PROBE_WAY,
    PROBES_LOST_MAX, QUIET, SEVERAL_WITNESSES, VERDICTS, VERDICTS_MAX,
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
    /// Echoes of the far end that we have not answered yet, as far as counters tell.
    owed: u64,
    /// When its counters were looked at, and what it had received and sent by then.
    counted: Option<(Timestamp, u64, u64)>,
    /// When packets were last sent to it, other than echoes and those of WireGuard itself.
    used: Option<Timestamp>,
    /// When handshakes were started that nobody has answered: the first, and the latest.
    initiated: Option<(Timestamp, Timestamp)>,
    /// Whether more comes back than anything but packets of others can be.
    answers_others: bool,
    /// When anything came from it, besides answers to echoes and what WireGuard sends by itself.
    heard: Option<Timestamp>,
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
    /// When it was last found silent whichever way it was asked, though it sends; and the pause after that.
    in_vain: Option<(Timestamp, Duration)>,
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
        let answers = !self.is_proxy && self.only_answers(sent, others, now - looked);
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
        if others > KEEPALIVE && !HANDSHAKE_BYTES.contains(&others) {
            self.heard = Some(now);
        }
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

    /// Whether what was sent within `span` are answers to echoes, which are what was received: the far end
    /// watches us, as we do it, and neither shall keep the other at that.
    fn only_answers(&mut self, sent: u64, received: u64, span: Duration) -> bool {
        if !received.is_multiple_of(ECHO_BYTES) {
            self.owed = 0;
            return false;
        }
        // Echoes do not come more often, and one may not have been answered by the last look.
        let most = 1 + span.as_millis() / PROBE_EVERY.as_millis();
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        self.owed = self.owed.min(1) + (received / ECHO_BYTES).min(most);
        let answers = sent / ECHO_BYTES;
        let are_answers = sent.is_multiple_of(ECHO_BYTES) && answers <= self.owed;
        if are_answers {
            self.owed -= answers;
        }
        are_answers
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

    /// When something has come from it last that was not under way when witnesses fell silent.
    fn sends_though_silent(&self) -> Option<Timestamp> {
        let (since, _) = self.silence?;
        let heard = self.heard?;
        (heard >= since + PATIENCE + self.round_trip).then_some(heard)
    }

    /// Whether something has come from it at the latest look, though witnesses are silent.
    pub(super) fn sends_meanwhile(&self) -> bool {
        let looked = self.counted.map(|(at, ..)| at);
        let heard = self.sends_though_silent();
        heard.is_some() && heard == looked
    }

    /// Those that were asked since one has answered.
    pub(super) const fn silent(&self) -> &BTreeSet<IpAddr> {
        &self.silent
    }

    /// Nobody has answered whichever way it was asked, though something has come from it: nothing is concluded
    /// for a while, which is longer each time.
    pub(super) fn was_asked_in_vain(&mut self, now: Timestamp) {
        self.forget_silence();
        let lately = self.in_vain.filter(|(at, pause)| now - *at < *pause * 4);
        let pause = lately.map_or(VERDICTS, |(_, pause)| (pause * 2).min(VERDICTS_MAX));
        self.in_vain = Some((now, pause));
        self.settled_until = Some(now + pause);
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

    /// Whether a single silent witness behind a far end says nothing, because something comes from there.
    fn is_one_of_many(&self, now: Timestamp) -> bool {
        let asks_behind = !self.is_proxy && !self.asks_itself;
        let heard = self.sends_though_silent();
        let sends = heard.is_some_and(|at| now - at < QUIET);
        asks_behind && sends && self.silent.len() < SEVERAL_WITNESSES
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
        if self.is_one_of_many(now) {
            return false;
        }
        let lost = self
            .silence
            .is_some_and(|(since, unanswered)| unanswered >= too_many && now - since >= patience);
        if lost {
            self.settled_until = Some(now + VERDICTS);
        }
        lost
    }
}

#[cfg(test)]
mod tests;
