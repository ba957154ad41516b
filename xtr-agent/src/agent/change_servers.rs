//! Other map servers take the place of those that there were, while tunnels go on.
//!
//! What the old ones said stays true for as long as it said so. What is asked, registered and
//! subscribed to is asked of, registered with and subscribed to at the new ones from then on.

use std::net::IpAddr;

use lisp_proto::Timestamp;

use super::limits::RESTORED_REFRESH;
use super::server::Server;
use super::{Actions, Agent, MapServer, Timer};

impl Agent {
    /// The map servers are about to be left for others: withdraws what is registered with them, and
    /// ends the subscriptions, until that is acknowledged ([`Self::has_left`]) or
    /// [`Self::join`] ends it. Nobody is asked meanwhile: the answer would be that of a map server
    /// that tells the far end nothing of us.
    pub fn leave(&mut self, now: Timestamp, actions: &mut Actions) {
        if self.is_leaving() {
            return;
        }
        self.leaving = true;
        self.unsubscribe_all(now, actions);
        self.register_all(now, actions);
    }

    /// From now on `map_servers` are those that there are, and they answer to `control_address`. A
    /// map server that shares a secret with us already is the one that we know, reached in another
    /// way. Everything that waits for an answer is asked for once more.
    pub fn join(
        &mut self,
        now: Timestamp,
        map_servers: Vec<MapServer>,
        control_address: IpAddr,
        actions: &mut Actions,
    ) {
        self.leaving = false;
        for index in 0..self.config.map_servers.len() {
            self.deadlines.cancel(&Timer::Register(index));
        }
        for (index, prefix) in self.subscriptions.forget_all() {
            self.deadlines.cancel(&Timer::Subscribe(index, prefix));
        }
        // The map server that is known repeats them, and the others do not know of them.
        for ack in self.acks.keys().copied().collect::<Vec<_>>() {
            self.leave_unacknowledged(ack);
        }
        let before = std::mem::replace(&mut self.config.map_servers, map_servers);
        let mut known: Vec<_> = before.into_iter().zip(self.servers.drain(..)).collect();
        for wanted in &self.config.map_servers {
            let same = |(it, _): &(MapServer, Server)| it.key == wanted.key;
            let mut server = match known.iter().position(same) {
                Some(index) => known.swap_remove(index).1,
                None => Server::new(now),
            };
            server.registration.afresh();
            self.servers.push(server);
        }
        self.config.control_address = control_address;
        self.ask_others_where_we_are(now, actions);
        if self.stopping {
            return;
        }
        self.register_all(now, actions);
        self.ask_anew(now);
    }

    /// Everything that was asked and not answered is asked once more, no faster than usual.
    fn ask_anew(&mut self, now: Timestamp) {
        for dst in self.resolver.destinations() {
            let pending = self.resolver.pending_mut(&dst);
            if let Some(pending) = pending.filter(|pending| pending.tries > 0) {
                pending.tries = 1;
                pending.until = now + self.config.hold;
                self.deadlines.set(Timer::Request(dst), now);
            }
        }
        let mut at = now;
        for prefix in self.resolver.refreshing() {
            self.deadlines.set(Timer::Refresh(prefix), at);
            at = at + RESTORED_REFRESH;
        }
    }

    /// Whether what is registered is being withdrawn.
    #[must_use]
    pub const fn is_leaving(&self) -> bool {
        self.stopping || self.leaving
    }
}
