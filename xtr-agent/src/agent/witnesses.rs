//! Who may tell whether a proxy leads anywhere? Those that packets go to, if they answer echoes.
//!
//! Of a mapping that the data plane has, the agent has seen the first packet and no other. So where it
//! knows too few who answer beyond a proxy, it listens for a moment to where packets go.
//!
//! If they answer through no proxy, it may be they who are lost. Then they count for nothing for a while, and if they
//! did so for good, a proxy that answers itself and leads nowhere would be kept for good.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{EidPrefix, PublicKey, Timestamp};

use super::limits::{
    LEARNT, LISTEN_EVERY, LISTEN_EVERY_MAX, SEVERAL_WITNESSES, UNPROVEN_IN_ROW, WITNESSES_ASIDE,
    WITNESSES_ASIDE_MAX, WITNESSES_KNOWN, WITNESSES_ROUNDS,
};
use super::{Action, Actions, Agent};

/// Those of all that may be asked that have answered.
#[derive(Debug, Default)]
pub(super) struct Witnesses {
    known: BTreeSet<IpAddr>,
    /// Those that count for nothing at present.
    aside: BTreeSet<IpAddr>,
    /// For how long they do, and how often in a row they have done so.
    until: Timestamp,
    rounds: u32,
    /// How many proxies were lost in a row through which none of them had answered.
    unproven: u32,
}

impl Witnesses {
    /// Whether the silence of `address` says something.
    pub(super) fn contains(&self, address: &IpAddr) -> bool {
        self.known.contains(address)
    }

    /// Whether `address` has ever answered.
    fn has_answered(&self, address: &IpAddr) -> bool {
        self.known.contains(address) || self.aside.contains(address)
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len() + self.aside.len()
    }

    pub(super) fn forget(&mut self, address: &IpAddr) {
        self.known.remove(address);
        self.aside.remove(address);
    }

    /// Remembers that `witness` has answered, which lies beyond a proxy or is one; if there are very many, only those
    /// that `may_be_asked` whatever proxies there are.
    pub(super) fn believe(
        &mut self,
        witness: IpAddr,
        is_beyond: bool,
        may_be_asked: impl Fn(&IpAddr) -> bool,
    ) {
        if self.known.len() + self.aside.len() >= WITNESSES_KNOWN {
            self.known.retain(&may_be_asked);
            self.aside.retain(&may_be_asked);
        }
        self.aside.remove(&witness);
        self.known.insert(witness);
        if is_beyond {
            self.unproven = 0;
            self.rounds = 0;
        }
    }

    /// A proxy was lost before any of them had answered through it. If that says more against them, because it was one
    /// of many or the last one, they count for nothing for a while.
    pub(super) fn have_not_answered(&mut self, now: Timestamp, is_last: bool) {
        self.unproven = self.unproven.saturating_add(1);
        if !is_last && self.unproven < UNPROVEN_IN_ROW {
            return;
        }
        self.unproven = 0;
        self.aside.append(&mut self.known);
        let doubled = self.rounds.saturating_sub(WITNESSES_ROUNDS - 1).min(10);
        self.rounds = self.rounds.saturating_add(1);
        self.until = now + (WITNESSES_ASIDE * (1 << doubled)).min(WITNESSES_ASIDE_MAX);
    }

    /// Those who were to count for nothing for a while count again after that.
    pub(super) fn count_again(&mut self, now: Timestamp) {
        if now >= self.until {
            self.known.append(&mut self.aside);
        }
    }
}

/// Whether we listen, and when to do so next.
#[derive(Debug, Default)]
pub(super) struct Listening {
    is_on: bool,
    next: Timestamp,
    pause: Duration,
}

impl Agent {
    /// Packets go to `dst`, which lies in `prefix`: it may answer echoes.
    pub(super) fn learn_witness(&mut self, dst: IpAddr, prefix: &IpNet) {
        // One that is a far end itself is asked anyhow.
        let is_network = prefix.prefix_len() < prefix.max_prefix_len();
        let chosen = self.cache.get(prefix).and_then(|entry| entry.chosen);
        let is_watched = chosen.is_some_and(|chosen| self.locators.is_known(&chosen.key));
        let failover = &mut self.failover;
        let is_wanted = failover.has_alternatives(prefix) || is_network && is_watched;
        if !is_wanted || failover.learnt.contains(&dst) {
            return;
        }
        failover.learnt.push_front(dst);
        if failover.learnt.len() <= LEARNT {
            return;
        }
        // One that has never answered goes first.
        let witnesses = &failover.witnesses;
        let mut learnt = failover.learnt.iter();
        let silent = learnt.rposition(|it| !witnesses.has_answered(it));
        let place = silent.filter(|place| *place > 0).unwrap_or(LEARNT);
        if let Some(gone) = failover.learnt.remove(place)
            && !self.config.witnesses.contains(&gone)
        {
            failover.witnesses.forget(&gone);
        }
    }

    /// Listens, if beyond one of these proxies, which packets flow to, too few are known who answer.
    pub(super) fn listen(&mut self, now: Timestamp, flowing: &[PublicKey], actions: &mut Actions) {
        if self.stop_listening(actions) {
            return;
        }
        let mut flowing = flowing.iter();
        let knows_few = flowing.any(|key| {
            if self
                .failover
                .guard(key)
                .is_some_and(|guard| guard.asks_itself)
            {
                return false;
            }
            let beyond = self.beyond(key).into_iter();
            let known = beyond.filter(|it| self.failover.witnesses.contains(it));
            known.count() < SEVERAL_WITNESSES
        });
        let listening = &mut self.failover.listening;
        if !knows_few {
            listening.pause = Duration::ZERO;
        } else if now >= listening.next {
            listening.is_on = true;
            listening.pause = (listening.pause * 2).clamp(LISTEN_EVERY, LISTEN_EVERY_MAX);
            listening.next = now + listening.pause;
            actions.push(Action::Listen);
        }
    }

    /// Ends listening; says whether we did.
    pub(super) fn stop_listening(&mut self, actions: &mut Actions) -> bool {
        let was_on = std::mem::take(&mut self.failover.listening.is_on);
        if was_on {
            actions.push(Action::Hear);
        }
        was_on
    }

    /// Takes in where packets went.
    pub(super) fn heard(&mut self, went: &[IpAddr]) {
        for dst in went {
            let is_own = self.is_own(&EidPrefix::host(self.config.iid, *dst));
            if is_own || dst.is_multicast() {
                continue;
            }
            if let Some((prefix, _)) = self.cache.lookup(*dst) {
                self.learn_witness(*dst, &prefix);
            }
        }
    }
}
