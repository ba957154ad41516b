//! What becomes of the connections of a client that moves, where a proxy translates addresses?
//!
//! The far ends of these connections know an address and a port of the proxy, and which ones those are
//! is known there alone. Where two proxies have the same address, that is carried over: the map
//! server tells both of each other, in the Map-Notifies that announce the client to the one and the
//! move to the other. The destination asks the source, through the overlay, and acknowledges the
//! client when it has its connections, or cannot get them. The source hands over what has changed
//! meanwhile when it is told to forget the client, and says in its acknowledgement what became of them.
//! The destination ends what it has got when it is told to forget the client soon after, since the move has
//! failed then. Clients that go away otherwise, and may come back, keep their connections.
//!
//! Nobody waits for this for long: the client moves with its connections or without them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use lisp_proto::{Connections, Handoff, Nonce, Record, Timestamp};

use super::limits::{CARRIED, FETCHING, MOVING, RELEASING};
use super::{Action, Actions, Agent, Timer};

/// Which connections outlive it that a client moves to another proxy?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Translates {
    /// Addresses stay, and so do connections.
    #[default]
    Nothing,
    /// The far ends see an address of this host: no connection does.
    ToOwn,
    /// They see an address that other proxies may have as well: those do that these learn of.
    ToShared,
}

/// What the shell does about connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// Gets those of `client` from the proxy with the EID `from`, and reports back with
    /// [`Input::Fetched`](super::Input::Fetched) when they are here, or cannot be had. What changes there
    /// later follows.
    Fetch {
        /// Whose.
        client: IpNet,
        /// Who has them.
        from: IpAddr,
    },
    /// Lets the proxy with the EID `to` have those of `client`.
    Offer {
        /// Whose.
        client: IpNet,
        /// Who may ask for them.
        to: IpAddr,
    },
    /// Ends those of `client` here, after whoever asked for them has got the last changes, and reports
    /// back with [`Input::Released`](super::Input::Released).
    Release {
        /// Whose.
        client: IpNet,
    },
}

/// Acknowledgements that wait for something.
#[derive(Debug)]
struct Waiting {
    acks: Vec<(usize, Nonce)>,
    /// But no longer than this.
    until: Timestamp,
}

/// Clients whose connections come or go.
#[derive(Debug, Default)]
pub(super) struct Carrying {
    fetching: BTreeMap<IpNet, Waiting>,
    releasing: BTreeMap<IpNet, Waiting>,
    /// Those who are about to leave us.
    offered: Recent,
    /// Those whose connections were asked for; they leave us again if their move fails.
    asked_for: Recent,
    /// What became of those that are gone: a map server that has not heard it asks again.
    released: BTreeMap<IpNet, Connections>,
}

/// Clients of whom something was said not long ago, and when.
#[derive(Debug, Default)]
pub(super) struct Recent(BTreeMap<IpNet, Timestamp>);

impl Recent {
    /// It is said of `client`; of whom it was said first gives way when there is no room.
    pub(super) fn note(&mut self, now: Timestamp, client: IpNet) {
        let Self(said) = self;
        if said.len() >= CARRIED && !said.contains_key(&client) {
            said.retain(|_, at| now < *at + MOVING);
            let oldest = said.iter().min_by_key(|(_, at)| **at);
            if let Some(oldest) = oldest.map(|(client, _)| *client)
                && said.len() >= CARRIED
            {
                said.remove(&oldest);
            }
        }
        said.insert(client, now);
    }

    /// Says whether it was said of `client` not long ago, and forgets it.
    pub(super) fn take(&mut self, now: Timestamp, client: &IpNet) -> bool {
        let at = self.0.remove(client);
        at.is_some_and(|at| now < at + MOVING)
    }
}

impl Carrying {
    /// The acknowledgement `ack` is not sent.
    pub(super) fn forget_ack(&mut self, ack: (usize, Nonce)) {
        let waiting = self.fetching.values_mut();
        for waiting in waiting.chain(self.releasing.values_mut()) {
            waiting.acks.retain(|it| *it != ack);
        }
    }

    /// What the acknowledgement of `records` says.
    pub(super) fn said_of(&self, records: &[Record]) -> Option<Handoff> {
        let gone = records.iter().filter(|record| record.ttl.is_withdrawal());
        let mut said = gone
            .filter_map(|record| self.released.get(&record.eid.net()))
            .peekable();
        said.peek()?;
        let sum = said.fold(Connections::default(), |sum, one| Connections {
            moved: sum.moved.saturating_add(one.moved),
            reset: sum.reset.saturating_add(one.reset),
        });
        Some(Handoff::Left(sum))
    }
}

impl Agent {
    /// Acts on what `record`, which is about to be taken in, and what is said with it mean for
    /// connections.
    pub(super) fn carry(
        &mut self,
        now: Timestamp,
        record: &Record,
        handoff: Option<Handoff>,
        actions: &mut Actions,
    ) {
        let client = record.eid.net();
        if self.config.translates == Translates::Nothing {
            return;
        }
        if record.ttl.is_withdrawal() {
            return self.release_connections(now, client, actions);
        }
        self.carrying.released.remove(&client);
        let is_shared = self.config.translates == Translates::ToShared;
        match handoff {
            Some(Handoff::From(from)) if is_shared && self.may_talk_to(from) => {
                self.fetch(now, client, from, actions);
            }
            Some(Handoff::To(to)) => {
                self.carrying.offered.note(now, client);
                if is_shared && self.may_talk_to(to) {
                    actions.push(Action::Carry(Carry::Offer { client, to }));
                }
            }
            Some(Handoff::From(_) | Handoff::Left(_)) | None => {}
        }
    }

    /// Whether packets to `other` take the overlay, and nothing else.
    fn may_talk_to(&self, other: IpAddr) -> bool {
        let net = IpNet::from(other);
        !other.is_unspecified() && self.in_overlay(&net) && !self.config.lives_here(&net)
    }

    /// Gets the connections of a client that comes to us; what it does until then is no use of them.
    fn fetch(&mut self, now: Timestamp, client: IpNet, from: IpAddr, actions: &mut Actions) {
        let fetching = &mut self.carrying.fetching;
        if fetching.contains_key(&client) || fetching.len() >= CARRIED {
            return;
        }
        let until = now + FETCHING;
        let acks = Vec::new();
        fetching.insert(client, Waiting { acks, until });
        self.carrying.offered.take(now, &client);
        self.carrying.asked_for.note(now, client);
        self.deadlines.bring_forward(Timer::Carry, until);
        actions.push(Action::Carry(Carry::Fetch { client, from }));
    }

    /// Ends the connections of a client that is told to be gone, if that is the end of a move.
    fn release_connections(&mut self, now: Timestamp, client: IpNet, actions: &mut Actions) {
        let carrying = &mut self.carrying;
        let was_offered = carrying.offered.take(now, &client);
        let was_asked_for = carrying.asked_for.take(now, &client);
        if !(was_offered || was_asked_for)
            || carrying.releasing.contains_key(&client)
            || carrying.releasing.len() >= CARRIED
        {
            return;
        }
        let until = now + RELEASING;
        let acks = Vec::new();
        carrying.releasing.insert(client, Waiting { acks, until });
        self.deadlines.bring_forward(Timer::Carry, until);
        actions.push(Action::Carry(Carry::Release { client }));
    }

    /// Makes the acknowledgement `ack` wait for the connections of `client`, if they come or go. Says
    /// for how many things it waits.
    pub(super) fn await_carrying(&mut self, client: &IpNet, ack: (usize, Nonce)) -> usize {
        let Carrying {
            fetching,
            releasing,
            ..
        } = &mut self.carrying;
        let mut count = 0;
        for waiting in [fetching.get_mut(client), releasing.get_mut(client)] {
            if let Some(waiting) = waiting.filter(|waiting| !waiting.acks.contains(&ack)) {
                waiting.acks.push(ack);
                count += 1;
            }
        }
        count
    }

    /// The connections of `client` are here, or cannot be had.
    pub(super) fn fetched(&mut self, client: &IpNet, actions: &mut Actions) {
        let waiting = self.carrying.fetching.remove(client);
        self.no_longer_waiting(waiting, actions);
    }

    /// The connections of `client` are gone.
    pub(super) fn released(
        &mut self,
        client: IpNet,
        connections: Option<Connections>,
        actions: &mut Actions,
    ) {
        let Some(waiting) = self.carrying.releasing.remove(&client) else {
            // The map server was told that it takes too long.
            return;
        };
        let released = &mut self.carrying.released;
        if let Some(connections) = connections {
            if released.len() >= CARRIED {
                released.pop_first();
            }
            released.insert(client, connections);
        }
        self.no_longer_waiting(Some(waiting), actions);
    }

    /// Waits no longer for what takes too long.
    pub(super) fn carry_due(&mut self, now: Timestamp, actions: &mut Actions) {
        let Carrying {
            fetching,
            releasing,
            ..
        } = &mut self.carrying;
        let late = |_: &IpNet, waiting: &mut Waiting| waiting.until <= now;
        let mut over: Vec<_> = fetching.extract_if(.., late).collect();
        over.extend(releasing.extract_if(.., late));
        let rest = fetching.values().chain(releasing.values());
        if let Some(next) = rest.map(|waiting| waiting.until).min() {
            self.deadlines.set(Timer::Carry, next);
        }
        for (_, waiting) in over {
            self.no_longer_waiting(Some(waiting), actions);
        }
    }

    fn no_longer_waiting(&mut self, waiting: Option<Waiting>, actions: &mut Actions) {
        for ack in waiting.into_iter().flat_map(|waiting| waiting.acks) {
            self.change_done(ack, true, actions);
        }
    }
}
