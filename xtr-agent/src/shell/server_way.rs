//! By which uplink is the map server reached?
//!
//! A map server that is silent may be down, or the uplink may lead nowhere. Where far ends have been
//! left by that uplink as well, it is the uplink, and the next one is used at once. Otherwise the
//! others are tried only when the silence lasts, each for a moment, and the best one for longer and
//! longer: there a map server that comes back finds us. While another one works, the best one is tried
//! again from time to time; only an answer to what was sent there since counts for it.

use std::net::IpAddr;
use std::time::Duration;

use lisp_proto::Timestamp;

/// How long a silent map server is waited for at the best uplink before others are tried; doubles with
/// every round in which it answers nowhere. Most restart within that.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Longest such time.
const PATIENCE_MAX: Duration = Duration::from_secs(64);
/// How long each of the others is tried: WireGuard repeats a handshake after 5 s.
const TRIED: Duration = Duration::from_secs(6);
/// When the best uplink is tried again while another one works; doubles each time that it fails.
const AGAIN: Duration = Duration::from_secs(60);
/// Longest such pause, and how long the best one must have worked before its failures are forgotten.
const AGAIN_MAX: Duration = Duration::from_secs(600);
/// What is found unanswered so soon after the best one is tried was sent before.
const JUST_BEGUN: Duration = Duration::from_millis(500);

/// Where we stand with the map server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing speaks against the best uplink.
    Calm,
    /// Nothing is heard along the uplink in use, since then.
    Silent(Timestamp),
    /// Another uplink than the best one works; that is tried again then.
    Elsewhere(Timestamp),
    /// The best one is tried since `since`, while `works` works.
    Trial { works: IpAddr, since: Timestamp },
}

/// By which uplink the map server is reached, and what is known of others.
#[derive(Debug)]
pub(super) struct ServerWay {
    /// Our addresses that packets to it can leave from, the best one first.
    usable: Vec<IpAddr>,
    used: Option<IpAddr>,
    state: State,
    /// How long the best one is given.
    patience: Duration,
    /// How long another one is used before the best one is tried again.
    again: Duration,
    /// When the best one was found to work again.
    returned: Option<Timestamp>,
    /// When the best one was to be tried again, while another one that worked until now is silent.
    pending: Option<Timestamp>,
}

impl Default for ServerWay {
    fn default() -> Self {
        Self {
            usable: Vec::new(),
            used: None,
            state: State::Calm,
            patience: PATIENCE,
            again: AGAIN,
            returned: None,
            pending: None,
        }
    }
}

impl ServerWay {
    /// Our address that packets to the map server leave from.
    pub(super) const fn used(&self) -> Option<IpAddr> {
        self.used
    }

    /// The same, if it has to be said because it is not that of the best uplink.
    pub(super) fn chosen(&self) -> Option<IpAddr> {
        self.used.filter(|used| Some(used) != self.usable.first())
    }

    /// From now on packets can leave from `usable`, the best one first.
    pub(super) fn set_usable(&mut self, now: Timestamp, usable: Vec<IpAddr>) {
        self.usable = usable;
        let best = self.usable.first().copied();
        let is_usable = |it: IpAddr| self.usable.contains(&it);
        if !self.used.is_some_and(is_usable) {
            (self.used, self.state) = (best, State::Calm);
            return;
        }
        let is_best = self.used == best;
        let is_over = match self.state {
            State::Calm | State::Silent(_) => false,
            State::Elsewhere(_) => is_best,
            State::Trial { works, .. } => !is_best || !is_usable(works),
        };
        if is_over {
            self.state = State::Calm;
        }
        if !is_best && self.state == State::Calm {
            // A better one has come.
            self.state = State::Elsewhere(now + self.again);
        }
    }

    /// The map server is not silent: it has answered something.
    pub(super) fn heard(&mut self, now: Timestamp) {
        if let State::Silent(_) = self.state {
            self.patience = PATIENCE;
            // A moment's silence of the other one does not put off the next trial.
            let pending = self.pending.take();
            self.state = match self.chosen() {
                Some(_) => State::Elsewhere(pending.unwrap_or(now + self.again)),
                None => State::Calm,
            };
        }
    }

    /// The map server has answered what was sent along the uplink in use.
    pub(super) fn answered(&mut self, now: Timestamp) {
        self.heard(now);
        if let State::Trial { .. } = self.state {
            self.state = State::Calm;
            self.returned = Some(now);
        }
    }

    /// The map server has not answered for a second. `is_avoided` is whether far ends were left by the
    /// uplink in use, and are reached by another one. Says whether another one is used from now on.
    pub(super) fn silent(&mut self, now: Timestamp, is_avoided: bool) -> bool {
        match self.state {
            State::Trial { works, since } => now - since >= JUST_BEGUN && self.in_vain(now, works),
            State::Silent(since) => {
                let is_over = now - since >= self.given();
                let is_first_round = self.patience == PATIENCE && self.chosen().is_none();
                (is_over || is_avoided && is_first_round) && self.turn(now)
            }
            State::Calm | State::Elsewhere(_) if is_avoided => self.turn(now),
            State::Calm => {
                self.state = State::Silent(now);
                false
            }
            State::Elsewhere(again) => {
                (self.state, self.pending) = (State::Silent(now), Some(again));
                false
            }
        }
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(super) fn due(&self) -> Option<Timestamp> {
        match self.state {
            State::Calm => None,
            // At the best one nothing happens unless somebody asks.
            State::Silent(since) => self.chosen().map(|_| since + TRIED),
            State::Elsewhere(again) => Some(again),
            State::Trial { since, .. } => Some(since + TRIED),
        }
    }

    /// Goes on to the next uplink if it is time for that; says whether it does.
    pub(super) fn tick(&mut self, now: Timestamp) -> bool {
        if self.due().is_none_or(|due| now < due) {
            return false;
        }
        match (self.state, self.used, self.usable.first()) {
            (State::Elsewhere(_), Some(works), Some(best)) => {
                self.used = Some(*best);
                self.state = State::Trial { works, since: now };
                true
            }
            (State::Trial { works, .. }, ..) => self.in_vain(now, works),
            _ => self.turn(now),
        }
    }

    /// Whether the best uplink is being tried: something has to be sent, and answered.
    pub(super) const fn is_on_trial(&self) -> bool {
        matches!(self.state, State::Trial { .. })
    }

    /// How long the uplink in use is given to show that it works.
    fn given(&self) -> Duration {
        match self.chosen() {
            Some(_) => TRIED,
            None => self.patience,
        }
    }

    /// The best uplink was tried in vain.
    fn in_vain(&mut self, now: Timestamp, works: IpAddr) -> bool {
        self.again = (self.again * 2).min(AGAIN_MAX);
        self.used = Some(works);
        self.state = State::Elsewhere(now + self.again);
        true
    }

    /// The next one is used from now on, after the last one the best one; says whether there is any.
    fn turn(&mut self, now: Timestamp) -> bool {
        self.pending = None;
        let before = self.used;
        let leaves_best = self.chosen().is_none();
        let mut place = self.usable.iter().position(|it| Some(*it) == before);
        place = place.map(|place| (place + 1) % self.usable.len());
        self.used = place.and_then(|place| self.usable.get(place).copied());
        self.state = State::Silent(now);
        if self.chosen().is_none() {
            self.patience = (self.patience * 2).min(PATIENCE_MAX);
        } else if leaves_best && self.patience == PATIENCE {
            // One that does not work for long is not tried as often.
            let lately = |at: Timestamp| now - at < AGAIN_MAX;
            self.again = match self.returned.take().is_some_and(lately) {
                true => (self.again * 2).min(AGAIN_MAX),
                false => AGAIN,
            };
        }
        self.used != before
    }
}

#[cfg(test)]
mod tests;
