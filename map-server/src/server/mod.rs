//! What does the server do about a datagram, a restored fact, or the time?
//!
//! [`MapServer`] decodes, authenticates, decides, and only then changes: in that order. It does no
//! IO; what must be done is appended to [`Actions`].

mod actions;
mod answer;
mod assignments;
#[cfg(test)]
mod bench;
mod contacts;
mod counters;
mod delivery;
mod dismissals;
mod failover;
mod held;
mod inspect;
#[cfg(test)]
mod instances;
mod leaving;
pub(crate) mod limits;
mod mappings;
mod migrate;
mod moves;
mod nat;
mod notify;
mod operator;
mod pairing;
mod plan;
mod preference;
mod prefix_table;
#[cfg(test)]
mod proxies;
mod publish;
mod pubsub;
mod rate;
mod register;
mod rehome;
mod relay;
mod replay;
mod request;
mod resolve;
mod restore;
mod sightings;
mod sites;
mod subscribers;
#[cfg(test)]
mod timelines;

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};
use std::net::SocketAddr;

use lisp_proto::{DecodeError, Ecm, MapRequest, Message, Record, Timestamp, decode};
use rand::SeedableRng;
use rand::rngs::StdRng;

pub use actions::{Action, Actions, Event, Input, Via};
pub use answer::{Answered, Desk, Question};
pub use counters::{Counters, DropReason};
pub use inspect::Sizes;
pub use operator::{Clients, Command, Migration, MigrationState, Refused, Step, Why};
pub use prefix_table::PrefixTable;
pub use restore::SnapshotMark;

use crate::config::{Config, Options};
use assignments::Assignments;
use contacts::Contacts;
use dismissals::Dismissals;
use failover::Claims;
use held::HeldReplies;
use leaving::Leavings;
use mappings::Mappings;
use moves::Moves;
use notify::Notifier;
use rate::{RateLimiter, SharedRates};
use register::Drafts;
use relay::Relays;
use replay::Replay;
use sightings::Sightings;
use sites::Sites;
use subscribers::Subscribers;

/// The Map-Server and Map-Resolver as a state machine: time and input in, actions out.
#[derive(Debug)]
pub struct MapServer {
    options: Options,
    sites: Sites,
    state: State,
    /// Until then the absence of a registration means nothing.
    quiet_until: Timestamp,
    /// Of what is answered at desks.
    questions: SharedRates,
    requests: RateLimiter,
    registers: RateLimiter,
    rng: StdRng,
    /// Messages are written here before they are sent.
    scratch: Vec<u8>,
    /// Records likewise.
    draft: Record,
    /// And what Map-Registers say.
    drafts: Drafts,
}

/// Everything that authenticated messages and operators, and nothing else, may change.
#[derive(Clone, Debug)]
struct State {
    mappings: Mappings,
    replay: Replay,
    contacts: Contacts,
    subscribers: Subscribers,
    notifier: Notifier,
    held: HeldReplies,
    assignments: Assignments,
    dismissals: Dismissals,
    leavings: Leavings,
    claims: Claims,
    moves: Moves,
    /// WireGuard has a say in it as well, which has authenticated what it sees.
    sightings: Sightings,
    relays: Relays,
}

/// Where a message came from.
#[derive(Clone, Copy, Debug)]
struct Origin {
    src: SocketAddr,
    via: Via,
    /// Length of the whole datagram in bytes.
    len: usize,
}

impl MapServer {
    /// Builds a server that knows no registrations. `seed` feeds all its randomness.
    #[must_use]
    pub fn new(config: Config, seed: [u8; 32]) -> Self {
        let sites = Sites::new(&config);
        let options = config.options().clone();
        Self {
            state: State {
                mappings: Mappings::new(sites.boundaries()),
                replay: Replay::default(),
                contacts: Contacts::default(),
                subscribers: Subscribers::new(),
                notifier: Notifier::new(options.notify_floor),
                held: HeldReplies::default(),
                assignments: Assignments::default(),
                dismissals: Dismissals::new(),
                leavings: Leavings::new(),
                claims: Claims::default(),
                moves: Moves::default(),
                sightings: Sightings::default(),
                relays: Relays::default(),
            },
            quiet_until: Timestamp::ZERO + options.quiet_period,
            questions: SharedRates::new(options.request_rate),
            requests: RateLimiter::new(options.request_rate),
            registers: RateLimiter::new(options.register_rate),
            options,
            sites,
            rng: StdRng::from_seed(seed),
            scratch: Vec::new(),
            draft: answer::blank(),
            drafts: Drafts::default(),
        }
    }

    /// Takes one input in at time `now`, which never decreases, and appends what must be done.
    pub fn handle(&mut self, now: Timestamp, input: Input<'_>, actions: &mut Actions) {
        match input {
            Input::Datagram { src, via, bytes } => {
                let len = bytes.len();
                self.datagram(now, Origin { src, via, len }, bytes, actions);
            }
            Input::Restore(event) => self.restore(now, event, actions),
            Input::Operator(command) => self.operate(now, &command, actions),
            Input::Seen { began, peers } => self.seen(began, peers, actions),
            Input::Tick => self.tick(now, actions),
        }
        self.start_moves(now, actions);
    }

    /// Returns when [`Input::Tick`] is due next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let state = &self.state;
        let deadlines = [
            state.mappings.next_deadline(),
            state.contacts.next_deadline(),
            state.subscribers.next_deadline(),
            state.notifier.next_deadline(),
            state.held.next_deadline(),
            state.dismissals.next_deadline(),
            state.leavings.next_deadline(),
            state.moves.next_deadline(),
            state.sightings.next_deadline(),
            state.relays.next_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Returns a digest of everything that only authenticated messages and operators may change: equal digests
    /// before and after a message mean that it changed nothing. Reads the whole state.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut digest = Digest(DefaultHasher::new());
        // Writing into a hasher cannot fail.
        write!(digest, "{:?}", self.state).map_or(0, |()| digest.0.finish())
    }

    fn datagram(&mut self, now: Timestamp, origin: Origin, bytes: &[u8], actions: &mut Actions) {
        // The type nibble is enough to tell the two kinds of work apart before any is done.
        let is_request = matches!(bytes.first().map(|byte| byte >> 4), Some(0x1 | 0x8));
        let limiter = if is_request {
            &mut self.requests
        } else {
            &mut self.registers
        };
        if !limiter.allow(now, origin.src.ip()) {
            return actions.count(DropReason::RateLimited);
        }
        match decode(bytes) {
            Ok(Message::MapRequest(request)) => self.request(now, origin, &request, actions),
            Ok(Message::MapRegister(register)) => {
                self.register(now, origin, bytes, &register, actions)
            }
            Ok(Message::MapNotifyAck(ack)) => self.acknowledged(now, origin, bytes, &ack, actions),
            Ok(Message::Ecm(ecm)) => match opened(origin, &ecm) {
                Ok((origin, request)) => self.request(now, origin, &request, actions),
                Err(reason) => actions.count(reason),
            },
            Ok(Message::InfoRequest(info)) => self.info_request(now, origin, bytes, &info, actions),
            Ok(Message::MapReply(_) | Message::MapNotify(_) | Message::MapReferral(_)) => {
                actions.count(DropReason::UnexpectedMessage)
            }
            Err(error) => actions.count(unreadable(error)),
        }
    }

    fn tick(&mut self, now: Timestamp, actions: &mut Actions) {
        self.state.contacts.expire(now);
        self.state.subscribers.expire(now);
        self.expire_registrations(now, actions);
        self.retransmit(now, actions);
        self.release_overdue(now, actions);
        self.move_on_overdue(now, actions);
        self.leave_overdue(now, actions);
        self.expire_dismissals(now, actions);
        self.expire_sightings(now, actions);
        self.expire_relays(now);
    }
}

/// Reads the Map-Request inside an ECM. The answer goes to the inner source port (RFC 9301 §4), and to
/// the address that the ECM came from.
fn opened<'a>(origin: Origin, ecm: &Ecm<'a>) -> Result<(Origin, MapRequest<'a>), DropReason> {
    if !ecm.intact {
        return Err(DropReason::Malformed);
    }
    match decode(ecm.message) {
        Ok(Message::MapRequest(request)) => {
            let src = SocketAddr::new(origin.src.ip(), ecm.source.port());
            Ok((Origin { src, ..origin }, request))
        }
        Ok(_) => Err(DropReason::UnexpectedMessage),
        Err(error) => Err(unreadable(error)),
    }
}

const fn unreadable(error: DecodeError) -> DropReason {
    if matches!(error, DecodeError::SecurityUnsupported) {
        return DropReason::SecurityUnsupported;
    }
    DropReason::Malformed
}

struct Digest(DefaultHasher);

impl std::fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
