//! Echoes through tunnels: who is asked, and what is made of answers.

use std::net::IpAddr;

use lisp_proto::{PublicKey, Timestamp};

use super::failover::Echo;
use super::limits::{SEEKING, WITNESSES};
use super::{Action, Actions, Agent};

impl Agent {
    /// Sends an echo through the tunnel to `key`, if it is time for one and there is somebody to ask.
    pub(super) fn send_echo(&mut self, now: Timestamp, key: PublicKey, actions: &mut Actions) {
        let beyond = self.beyond(&key);
        let own = self.addresses_of(&key);
        let Some(guard) = self.failover.guards.get_mut(&key) else {
            return;
        };
        let witnesses = &self.failover.witnesses;
        let answerer = guard.answerer.filter(|_| !guard.is_proxy);
        let has_answered = |it: &IpAddr| witnesses.contains(it) || answerer == Some(*it);
        let known = |among: &[IpAddr]| -> Vec<IpAddr> {
            let known = among.iter().filter(|it| has_answered(it));
            known.copied().collect()
        };
        let (far, near) = (known(&beyond), known(&own));
        let (is_proxy, asks_itself) = (guard.is_proxy, !guard.is_proxy && !near.is_empty());
        // What is behind a proxy matters, if somebody there answers; the way to another far end is all
        // that does.
        let known = if far.is_empty() || asks_itself {
            near
        } else {
            far.clone()
        };
        guard.asks_itself = asks_itself;
        let has_witness = !known.is_empty();
        if !guard.wants_echo(now, has_witness) {
            return;
        }
        // Now and then others are asked, who may become witnesses.
        let turn = guard.next_turn();
        let others = match (is_proxy, far.is_empty()) {
            (true, true) => beyond.into_iter().chain(own).collect(),
            (true, false) => beyond,
            (false, _) if asks_itself => Vec::new(),
            (false, _) => own.into_iter().chain(beyond).collect(),
        };
        let witnesses = &self.failover.witnesses;
        let is_new = |it: &IpAddr| !witnesses.contains(it) && answerer != Some(*it);
        let others: Vec<IpAddr> = others.into_iter().filter(is_new).collect();
        let seeks = turn % SEEKING == 0 && !others.is_empty();
        let (among, nth) = match (has_witness, seeks) {
            (true, false) => (known, turn),
            (true, true) => (others, turn / SEEKING),
            (false, _) => (others, turn),
        };
        let Some(to) = among.get(nth % among.len().max(1)).copied() else {
            return;
        };
        let is_witness = !is_new(&to);
        guard.asks(now, is_witness.then_some(to));
        self.gaps.asks(&key);
        let number = self.failover.asks(now, to, key);
        actions.push(Action::Echo { to, number });
    }

    /// Who may be asked that is reached through the proxy `key`, and lies beyond it.
    pub(super) fn beyond(&mut self, key: &PublicKey) -> Vec<IpAddr> {
        let configured = self.config.witnesses.iter();
        let learnt = self.failover.learnt.iter();
        let mut all: Vec<IpAddr> = configured.chain(learnt).copied().collect();
        let Self {
            failover,
            cache,
            locators,
            ..
        } = self;
        let is_known = locators.is_known(key);
        all.retain(|address| {
            let found = cache.lookup(*address);
            found.is_some_and(|(prefix, entry)| {
                let chosen = entry.chosen.map(|chosen| chosen.key);
                chosen == Some(*key) && (is_known || failover.has_alternatives(&prefix))
            })
        });
        all.truncate(WITNESSES);
        all
    }

    /// Addresses of the proxy `key` itself.
    pub(super) fn addresses_of(&self, key: &PublicKey) -> Vec<IpAddr> {
        let prefixes = self.peers.prefixes(key).into_iter();
        let own = prefixes.filter(|prefix| {
            let is_host = prefix.prefix_len() == prefix.max_prefix_len();
            is_host && !self.failover.has_alternatives(prefix)
        });
        own.map(|prefix| prefix.addr()).take(WITNESSES).collect()
    }

    /// The echo with this number has come back from `from`.
    pub(super) fn echo_answered(
        &mut self,
        now: Timestamp,
        from: IpAddr,
        number: u16,
        actions: &mut Actions,
    ) {
        let failover = &mut self.failover;
        let ours = |echo: &Echo| echo.number == number && echo.to == from;
        let Some(echo) = failover.take_echo(ours) else {
            return;
        };
        let missed = failover.give_up_before(&echo);
        failover.believe(from, &self.config.witnesses);
        let Some(guard) = failover.guards.get_mut(&echo.through) else {
            return;
        };
        guard.is_answered(now, echo.at, from, missed);
        self.way_answers(now, &echo.through, echo.at, actions);
        let failover = &mut self.failover;
        if failover.lost.remove(&echo.through).is_some() {
            self.proxy_found(now, &echo.through, actions);
        }
    }

    /// The echo with this number could not be sent, which says nothing about any proxy.
    pub(super) fn echo_not_sent(&mut self, number: u16) {
        let failover = &mut self.failover;
        if let Some(echo) = failover.take_echo(|echo| echo.number == number)
            && let Some(guard) = failover.guards.get_mut(&echo.through)
        {
            guard.has_not_asked(&echo.to);
        }
    }
}
