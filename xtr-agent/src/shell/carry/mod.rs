//! How do the connections of a client get from one proxy to another that has the same public address?
//!
//! | question | module |
//! |---|---|
//! | how do they travel? | `wire` |
//! | who may have them, who knows which, which are taken? | `books` |
//! | what is there? | `table` |
//! | who answers? | `sources` |
//! | who gets them? | `give` |
//! | how are they got? | `take` |
//! | what is remembered of all that? | `ledger` |
//!
//! The conversation goes through the overlay: WireGuard vouches for the EIDs of both proxies, and the map
//! server has named them. A proxy listens at its own EIDs only, through its data interface, while it has
//! something to offer.

mod books;
mod give;
mod ledger;
mod limits;
mod sources;
mod table;
mod take;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};

use ipnet::IpNet;
use lisp_proto::{Connections, Timestamp};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{Instrument, Span, debug, info, warn};
use wg_device::NetNs;

use super::clock::Clock;
use crate::agent::Carry;
use crate::config::{Instance, Translation};
use give::Giving;
use ledger::{Ledger, Outcome};
use limits::JUST_TAKEN;
use sources::Sources;
use table::{Table, delete_each};
use take::{Taking, Way};

/// What the agent is told.
#[derive(Debug)]
pub(super) enum Carried {
    /// The connections of this client are here, or cannot be had.
    Fetched(IpNet),
    /// Those of this client are gone; with what became of them, if that is known.
    Released(IpNet, Option<Connections>),
}

/// One that has the connections of a client come here.
struct Conversation {
    from: IpAddr,
    task: AbortHandle,
    /// When all was said.
    ended: Arc<OnceLock<Timestamp>>,
}

impl Conversation {
    /// Whether what it was about is on its way, or has just come.
    fn counts(&self, now: Timestamp) -> bool {
        match self.ended.get() {
            Some(at) => now < *at + JUST_TAKEN,
            None => !self.task.is_finished(),
        }
    }
}

/// Carries the connections of the clients of one instance.
pub(super) struct Carrier {
    clock: Clock,
    netns: Option<NetNs>,
    device: String,
    table: Arc<Table>,
    giving: Arc<Giving>,
    sources: Arc<Mutex<Sources>>,
    taking: BTreeMap<IpNet, Conversation>,
    ledger: Ledger,
    tasks: JoinSet<()>,
    tell: mpsc::UnboundedSender<Carried>,
    told: mpsc::UnboundedReceiver<Carried>,
}

impl Carrier {
    pub(super) fn new(clock: Clock, netns: Option<&NetNs>, instance: &Instance) -> Self {
        let table = Table::new(netns.cloned(), &instance.overlay, clock);
        let table = Arc::new(table);
        let (tell, told) = mpsc::unbounded_channel();
        Self {
            clock,
            netns: netns.cloned(),
            device: instance.interfaces.data.clone(),
            giving: Arc::new(Giving::new(clock, Arc::clone(&table))),
            table,
            sources: Arc::default(),
            taking: BTreeMap::new(),
            ledger: Ledger::default(),
            tasks: JoinSet::new(),
            tell,
            told,
        }
    }

    /// What became of the connections of those who have moved, the latest one first.
    pub(super) fn report(&self, instance: &Instance) -> Value {
        let nat = match &instance.nat.translation {
            Translation::None => None,
            Translation::Masquerade => Some(vec!["an address of the uplink".to_owned()]),
            Translation::To(public) => Some(public.iter().map(ToString::to_string).collect()),
        };
        json!({ "nat": nat, "moves": self.ledger.report(self.clock.now()) })
    }

    /// Waits for something that the agent is to be told.
    pub(super) fn poll_told(&mut self, context: &mut Context<'_>) -> Poll<Carried> {
        match self.told.poll_recv(context) {
            Poll::Ready(Some(told)) => Poll::Ready(told),
            // We have the other end ourselves.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Carries out what the agent wants.
    pub(super) fn perform(&mut self, instance: &Instance, carry: Carry, span: &Span) {
        while self.tasks.try_join_next().is_some() {}
        let now = self.clock.now();
        self.taking.retain(|_, taking| taking.counts(now));
        self.table.follow(&instance.overlay);
        match carry {
            Carry::Fetch { client, from } => self.begin(instance, (client, from), span),
            Carry::Offer { client, to } => {
                if self.giving.offer(client, to) {
                    let (netns, device) = (self.netns.clone(), self.device.clone());
                    let eids = hosts(&instance.eid_prefixes).collect();
                    let listening = Arc::clone(&self.giving).listen(netns, device, eids);
                    self.tasks.spawn(listening.instrument(span.clone()));
                }
            }
            Carry::Release { client } => {
                self.stop_taking(&client);
                let task = self.release(client);
                self.tasks.spawn(task.instrument(span.clone()));
            }
        }
    }

    fn stop_taking(&mut self, client: &IpNet) {
        if let Some(taking) = self.taking.remove(client) {
            taking.task.abort();
        }
    }

    /// Gets the connections of `client` from `from`, unless that goes on already or is of no use.
    fn begin(&mut self, instance: &Instance, (client, from): (IpNet, IpAddr), span: &Span) {
        let taking = self.taking.get(&client);
        let is_known = taking.is_some_and(|taking| taking.from == from);
        if is_known || !books_of(&self.sources).may_answer(self.clock.now(), from) {
            let _stopped = self.tell.send(Carried::Fetched(client));
            return;
        }
        self.stop_taking(&client);
        let ended = Arc::default();
        let task = self.fetch(instance, client, from, Arc::clone(&ended));
        let task = self.tasks.spawn(task.instrument(span.clone()));
        self.taking
            .insert(client, Conversation { from, task, ended });
    }

    /// Gets the connections of `client`, and what changes in them until it has come.
    fn fetch(
        &self,
        instance: &Instance,
        client: IpNet,
        from: IpAddr,
        done: Arc<OnceLock<Timestamp>>,
    ) -> impl Future<Output = ()> + use<> {
        let public = match &instance.nat.translation {
            Translation::To(public) => public.clone(),
            Translation::None | Translation::Masquerade => Vec::new(),
        };
        let own = hosts(&instance.eid_prefixes);
        let way = Way {
            netns: self.netns.clone(),
            device: self.device.clone(),
            sources: own.filter(|eid| eid.is_ipv4() == from.is_ipv4()).collect(),
            to: from,
        };
        let (clock, table, tell) = (self.clock, Arc::clone(&self.table), self.tell.clone());
        let (sources, ledger) = (Arc::clone(&self.sources), self.ledger.clone());
        async move {
            let begun = Taking::begin(clock, &way, (client, &public), &table).await;
            let is_news = match &begun {
                Ok(_) => {
                    books_of(&sources).answered(from);
                    true
                }
                Err(_) => books_of(&sources).failed(clock.now(), from),
            };
            let _stopped = tell.send(Carried::Fetched(client));
            let ended = match begun {
                Ok(mut taking) => {
                    let ended = taking.go_on().await;
                    let (taken, refused) = taking.taken.counts();
                    info!(event = "connections_taken", %client, %from, taken, refused);
                    let outcome = Outcome::Taken {
                        moved: taken,
                        refused,
                    };
                    ledger.note(clock.now(), client, outcome);
                    ended
                }
                Err(error) => {
                    let why = error.to_string();
                    ledger.note(clock.now(), client, Outcome::NotTaken { why });
                    Err(error)
                }
            };
            match ended {
                Ok(()) => drop(done.set(clock.now())),
                Err(error) => not_taken(client, from, &error, is_news),
            }
        }
    }

    /// Ends the connections of `client` here.
    fn release(&self, client: IpNet) -> impl Future<Output = ()> + use<> {
        let (giving, table) = (Arc::clone(&self.giving), Arc::clone(&self.table));
        let (clock, tell, ledger) = (self.clock, self.tell.clone(), self.ledger.clone());
        async move {
            let moved = giving.end(client).await;
            let connections = match delete_all(&table, client).await {
                Ok(alive) => {
                    let moved = moved.min(alive);
                    let reset = alive - moved;
                    info!(event = "connections_left", %client, moved, reset);
                    ledger.note(clock.now(), client, Outcome::Left { moved, reset });
                    Some(Connections { moved, reset })
                }
                Err(error) => {
                    warn!(event = "connections_unknown", %client, %error);
                    let why = error.to_string();
                    ledger.note(clock.now(), client, Outcome::Unknown { why });
                    None
                }
            };
            let _stopped = tell.send(Carried::Released(client, connections));
        }
    }
}

/// Tells the operator of connections that are lost; what is no news is a detail.
fn not_taken(client: IpNet, from: IpAddr, error: &io::Error, is_news: bool) {
    if !is_news {
        debug!(%client, %from, %error, "connections not taken");
        return;
    }
    let remedy = "the proxy that it came from says how many connections have ended; give both the same \
                  `nat` address, and let them reach each other's `eid_prefixes` through the overlay";
    warn!(event = "connections_not_taken", %client, %from, %error, remedy);
}

fn books_of(sources: &Mutex<Sources>) -> MutexGuard<'_, Sources> {
    sources.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deletes the connections of `client`; returns in how many something might still be said.
async fn delete_all(table: &Table, client: IpNet) -> io::Result<u32> {
    let flows = table.of(client).await?;
    let alive = flows.iter().filter(|flow| flow.is_alive()).count();
    if !flows.is_empty() {
        let deleted = table.change(move |conntrack| delete_each(conntrack, &flows));
        deleted.await?;
    }
    Ok(u32::try_from(alive).unwrap_or(u32::MAX))
}

/// The addresses of this host among `prefixes`.
fn hosts(prefixes: &[IpNet]) -> impl Iterator<Item = IpAddr> {
    let hosts = prefixes.iter();
    let hosts = hosts.filter(|net| net.prefix_len() == net.max_prefix_len());
    hosts.map(IpNet::addr)
}
