//! One instance: its agent, its data plane, and what passes between the two.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use lisp_proto::{InstanceId, Nonce, PublicKey, Timestamp};
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::time::timeout;
use tracing::{Instrument, Span, info, warn};
use wg_device::{Backend, DeviceError, PrivateKey, Sources};

use super::cache_file::Known;
use super::carry::Carrier;
use super::clock::Clock;
use super::control::Renewals;
use super::counting::{self, Counting, Found};
use super::data_plane::DataPlane;
use super::echoes::BlackHoles;
use super::heard::SharedHeard;
use super::narrate::{self, Drops};
use super::path_sizes::PathSizes;
use super::scout::Scout;
use super::{CLOSING, DATAGRAM_MAX, Shared, report, setup};
use crate::agent::{
    self, Action, Actions, Agent, Change, Event, Input, PeerStats, Snapshot, Trace,
};
use crate::config::{Config, Instance};

/// Packets that the kernel keeps for a TUN (`TUN_READQ_SIZE`): so many may have
/// been captured before a route was set.
const TUN_QUEUE: usize = 500;

/// Peers that are set in one go. No packet waits longer than for these.
const SET_TOGETHER: usize = 64;

/// How often the sizes of paths are looked at while there are peers.
const LOOK_AT_PATHS: Duration = Duration::from_secs(60);

/// One instance.
pub(super) struct Overlay {
    pub(super) iid: InstanceId,
    pub(super) agent: Agent,
    pub(super) plane: DataPlane,
    pub(super) drops: Drops,
    pub(super) actions: Actions,
    /// What actions led to and the agent has not heard of yet.
    inbox: VecDeque<Report>,
    /// Whether interfaces of an earlier run may hold what nobody wants any more.
    strays: bool,
    /// Whether a map server has acknowledged a registration by now.
    registered: bool,
    pub(super) heard: SharedHeard,
    pub(super) counting: Counting,
    pub(super) renewals: Renewals,
    pub(super) paths: PathSizes,
    pub(super) holes: BlackHoles,
    /// What tells whether proxies lead anywhere.
    pub(super) scout: Scout,
    /// What carries the connections of clients that come and go.
    pub(super) carrier: Carrier,
    /// When to look at the sizes of paths next.
    next_look: Timestamp,
    /// What `status` says of the interfaces, as they were made.
    pub(super) instance: Instance,
    /// Where the map server is on the underlay.
    pub(super) server: IpAddr,
    /// The interfaces are about to go, and with them all peers and routes.
    closing: bool,
    /// Around what is logged; it says the instance-id where there is more than one.
    pub(super) span: Span,
}

/// The outcome of an action.
pub(super) enum Report {
    Applied(agent::ChangeId, bool),
    /// A route was set: packets that were on their way into the TUN when it
    /// appeared go out before those that it takes.
    RouteSet(agent::ChangeId, bool),
    NotSent(Bytes),
    EchoNotSent(u16),
    Heard(Vec<IpAddr>),
    AnswersTo(IpAddr),
}

impl Overlay {
    /// Makes the interfaces of `instance` and an agent that has done nothing yet.
    pub(super) async fn create(
        config: &Config,
        instance: &Instance,
        (control_key, data_key): (&PrivateKey, &PrivateKey),
        (control_address, rlocs): (IpAddr, &[agent::Uplink]),
        (first_nonce, clock): (Nonce, Clock),
        answers_from: Option<Sources>,
    ) -> Result<Self> {
        let keys = (control_key, data_key);
        let addresses = (control_address, rlocs);
        let mut seed = [0; 32];
        OsRng
            .try_fill_bytes(&mut seed)
            .context("no randomness from the operating system")?;
        let key = data_key.clone();
        let plane = DataPlane::create(config, instance, key, answers_from).await?;
        let backend = plane.backend();
        let core = setup::core(config, instance, keys, addresses, first_nonce, backend);
        Ok(Self {
            iid: instance.iid,
            strays: true,
            registered: false,
            heard: SharedHeard::default(),
            counting: Counting::default(),
            renewals: Renewals::default(),
            paths: PathSizes::marked(config.mark()),
            holes: BlackHoles::default(),
            scout: Scout::new(instance),
            carrier: Carrier::new(clock, plane.netns(), instance),
            next_look: Timestamp::ZERO,
            instance: instance.clone(),
            server: config.map_server.underlay(),
            agent: Agent::new(core, seed),
            closing: false,
            plane,
            drops: Drops::default(),
            actions: Actions::default(),
            inbox: VecDeque::new(),
            span: narrate::span(instance.iid, config.instances.len()),
        })
    }

    /// What carries the data.
    pub(super) fn backend(&self) -> Backend {
        self.plane.backend()
    }

    /// Takes back in what the agent knew when an earlier run ended. Peers and routes that are
    /// there already are left as they are.
    pub(super) async fn restore(&mut self, shared: &mut Shared, known: &Known) -> Result<()> {
        let snapshot = known.snapshots.iter().find(|saved| saved.iid == self.iid);
        if let Some(snapshot) = snapshot {
            let adopted = self.plane.data.peers().await;
            let now = shared.clock.now();
            self.agent
                .restore(now, snapshot, known.age, &adopted, &mut self.actions);
            let (mappings, peers) = (self.agent.sizes().map_cache, adopted.len());
            let log = || info!(event = "restored", mappings, adopted = peers);
            self.span.in_scope(log);
            self.act(shared).await;
        }
        self.settle(shared).await
    }

    /// From now on the data plane is left in place for the next run.
    pub(super) fn stay(&self) {
        self.plane.stay();
    }

    /// What the agent knows, for the next run.
    pub(super) fn snapshot(&self, now: Timestamp) -> Snapshot {
        self.agent.snapshot(now)
    }

    /// When the agent wants to be woken next.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.agent.next_deadline()
    }

    /// Whether the agent withdraws what it has registered.
    pub(super) fn is_leaving(&self) -> bool {
        self.agent.is_leaving()
    }

    /// From now on peers and routes are left to [`Self::close`]: one by one, thousands take long.
    pub(super) const fn begin_closing(&mut self) {
        self.closing = true;
    }

    /// Whether an agent that is leaving has nothing more to wait for.
    pub(super) fn has_left(&self) -> bool {
        self.agent.has_left()
    }

    /// Waits for a captured packet.
    pub(super) fn poll_captured(
        &mut self,
        context: &mut TaskContext<'_>,
        packet: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.plane.miss.poll_recv(context, packet)
    }

    /// Hands packets that are waiting in the TUN to the agent, at most so many.
    pub(super) async fn captured(
        &mut self,
        shared: &mut Shared,
        packet: &mut [u8],
        most: usize,
    ) -> Result<()> {
        for _ in 0..most {
            let Some(length) = self.plane.miss.try_recv(packet) else {
                break;
            };
            let packet = packet.get(..length).unwrap_or_default();
            self.step(shared, Input::TunPacket(packet)).await?;
        }
        Ok(())
    }

    /// One input, and everything that follows from it.
    pub(super) async fn step(&mut self, shared: &mut Shared, input: Input<'_>) -> Result<()> {
        self.feed(shared, input).await?;
        self.settle(shared).await?;
        if self.strays && self.registered {
            self.strays = false;
            let wanted = self.agent.peers().map(|peer| peer.key);
            let wanted = wanted.chain(self.agent.lookout()).collect();
            self.plane.remove_strays(&wanted).await;
        }
        Ok(())
    }

    /// Tells the agent what became of its actions, until there is nothing left to tell.
    async fn settle(&mut self, shared: &mut Shared) -> Result<()> {
        while let Some(report) = self.inbox.pop_front() {
            match report {
                Report::Applied(id, ok) => self.feed(shared, Input::Applied { id, ok }).await?,
                Report::RouteSet(id, ok) => {
                    self.feed(shared, Input::Applied { id, ok }).await?;
                    self.drain_miss(shared).await?;
                    self.plane.data.resume();
                }
                Report::NotSent(packet) => self.feed(shared, Input::NotSent(&packet)).await?,
                Report::EchoNotSent(number) => {
                    self.feed(shared, Input::EchoNotSent(number)).await?
                }
                Report::Heard(went) => self.feed(shared, Input::Heard(&went)).await?,
                Report::AnswersTo(own) => self.feed(shared, Input::AnswersTo(own)).await?,
            }
        }
        Ok(())
    }

    async fn feed(&mut self, shared: &mut Shared, input: Input<'_>) -> Result<()> {
        let now = shared.clock.now();
        self.agent.handle(now, input, &mut self.actions);
        self.carry_out(shared).await
    }

    /// Carries out what the agent wants.
    async fn carry_out(&mut self, shared: &mut Shared) -> Result<()> {
        // Before anything is sent: a nonce must not be used again after a crash.
        shared
            .nonces
            .reserve(self.agent.register_nonce())
            .context("writing register.nonce")?;
        self.act(shared).await;
        Ok(())
    }

    /// Carries out what the agent wants after it was told something, and all that follows.
    pub(super) async fn follow(&mut self, shared: &mut Shared) -> Result<()> {
        self.carry_out(shared).await?;
        self.settle(shared).await
    }

    async fn act(&mut self, shared: &mut Shared) {
        let mut actions = std::mem::take(&mut self.actions);
        let mut peers = Vec::new();
        for action in actions.drain() {
            if let Action::Apply {
                id,
                change: Change::SetPeer(spec),
            } = action
            {
                peers.push((id, spec));
                if peers.len() < SET_TOGETHER {
                    continue;
                }
                self.set_peers(shared, &mut peers).await;
            } else {
                self.set_peers(shared, &mut peers).await;
                self.perform(shared, action).await;
            }
        }
        self.set_peers(shared, &mut peers).await;
        self.actions = actions;
    }

    /// Sets peers that are to be set one after the other.
    async fn set_peers(
        &mut self,
        shared: &mut Shared,
        peers: &mut Vec<(agent::ChangeId, agent::PeerSpec)>,
    ) {
        if peers.is_empty() {
            return;
        }
        shared.cache.touch();
        let specs = peers.iter().map(|(_, spec)| spec);
        let results = self.plane.set_peers(specs).await;
        for ((id, spec), done) in peers.drain(..).zip(results) {
            self.applied(
                Report::Applied(id, done.is_ok()),
                &Change::SetPeer(spec),
                done,
            );
        }
    }

    /// Empties the TUN of what it had when a route was set, so that nothing
    /// captured before is overtaken by what takes the route.
    async fn drain_miss(&mut self, shared: &mut Shared) -> Result<()> {
        let mut packet = vec![0; DATAGRAM_MAX];
        for _ in 0..TUN_QUEUE {
            let Some(length) = self.plane.miss.try_recv(&mut packet) else {
                break;
            };
            let packet = packet.get(..length).unwrap_or_default();
            self.feed(shared, Input::TunPacket(packet)).await?;
        }
        Ok(())
    }

    async fn perform(&mut self, shared: &mut Shared, action: Action) {
        match action {
            Action::Send { dst, bytes } => shared.control.send(dst, &bytes).await,
            Action::Apply { id, change } => {
                shared.cache.touch();
                if let Change::RemovePeer(key) = &change {
                    self.heard.lock().forget(key);
                    self.counting.forget(key);
                    shared.handshakes.forget(self.iid, *key);
                }
                self.apply(id, change).await;
            }
            Action::Kick(key) => self.plane.kick(&key).await,
            Action::AwaitHandshake(key) => {
                if let Some(handshake) = self.plane.data.handshake(&key) {
                    shared.handshakes.wait(self.iid, key, handshake);
                }
            }
            Action::RenewControlTunnel(index) => {
                let answers_to = shared.renew(index, &mut self.renewals).await;
                self.inbox.extend(answers_to.map(Report::AnswersTo));
            }
            Action::ReadPeerStats(keys) => self.count(shared, keys, false),
            Action::ReadPeerStatsAnew(keys) => self.count(shared, keys, true),
            Action::Echo { .. } | Action::Listen | Action::Hear => {
                let scouted = self.span.in_scope(|| self.scout.perform(action));
                self.inbox.extend(scouted);
            }
            Action::LeaveFrom { to, from } => {
                self.span.in_scope(|| shared.steer(self.iid, to, from));
            }
            Action::Carry(carry) => self.carrier.perform(&self.instance, carry, &self.span),
            Action::Reinject(packet) => {
                if !self.plane.inject(&packet).await {
                    self.inbox.push_back(Report::NotSent(packet));
                }
            }
            Action::Deliver(packet) => self.plane.deliver(&packet).await,
            Action::Count(reason) => self.drops.count(reason),
            Action::Event(event) => {
                if matches!(event, Event::Registered { .. }) {
                    self.registered = true;
                    shared.server_has_answered();
                }
                if matches!(event, Event::MapReply { .. }) {
                    shared.server_has_replied();
                }
                // Lifetimes are kept too.
                if matches!(event, Event::MapReply { .. } | Event::Push { .. }) {
                    shared.cache.touch();
                }
                self.span.in_scope(|| narrate::event(&event));
            }
        }
    }

    /// Wants the counters of `keys`; packets may wait for them.
    fn count(&mut self, shared: &mut Shared, keys: Vec<PublicKey>, hasty: bool) {
        self.counting.want(keys, hasty);
        self.begin_reading(shared);
    }

    fn begin_reading(&mut self, shared: &mut Shared) {
        let counters = self.plane.data.counters();
        let read = |keys: Vec<PublicKey>, hasty: bool| async move {
            if hasty {
                counters.recent_of(&keys).await
            } else {
                counters.of(&keys).await
            }
        };
        self.counting.begin(&mut shared.readings, read);
    }

    /// Counters were read: passes on what they say.
    pub(super) async fn counted(&mut self, shared: &mut Shared, found: Found) -> Result<()> {
        let found = self.counting.ended(found);
        self.begin_reading(shared);
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.span.in_scope(|| warn!(%error, "counters not read"));
                return Ok(());
            }
        };
        let stats = counting::told(&found, shared.clock);
        self.look(shared.clock.now(), &stats);
        self.step(shared, Input::PeerStats(&stats)).await
    }

    /// Keeps what the counters say for `status`, and looks at paths now and then.
    fn look(&mut self, now: Timestamp, stats: &[PeerStats]) {
        for peer in stats {
            self.heard.lock().note(now, peer.key, peer.rx_bytes);
        }
        if now >= self.next_look {
            self.next_look = now + LOOK_AT_PATHS;
            self.look_at_paths();
        }
    }

    /// Looks whether packets fit the paths to the peers, and the link towards the map server.
    pub(super) fn look_at_paths(&mut self) {
        let peers = self.agent.peers();
        let endpoints = peers.filter_map(|peer| Some(peer.endpoint?.ip()));
        let endpoints = endpoints.chain([self.server]);
        let log = || self.paths.look(self.instance.mtu, endpoints);
        self.span.in_scope(log);
    }

    /// How far the first packet to `eid` has come.
    pub(super) fn trace(&self, now: Timestamp, eid: IpAddr) -> Option<Trace> {
        self.agent.trace(now, eid)
    }

    async fn apply(&mut self, id: agent::ChangeId, change: Change) {
        // One that an earlier run left changes nothing: no packet waits for thousands of those.
        let is_route = match &change {
            Change::AddRoute(prefix) => !self.plane.has_route(prefix),
            Change::SetPeer(_) | Change::RemovePeer(_) | Change::RemoveRoute(_) => false,
        };
        if is_route {
            self.plane.data.pause();
        }
        let goes_anyhow =
            self.closing && matches!(change, Change::RemovePeer(_) | Change::RemoveRoute(_));
        let done = if goes_anyhow {
            Ok(())
        } else {
            self.plane.apply(&change).await
        };
        let report = if is_route {
            Report::RouteSet(id, done.is_ok())
        } else {
            Report::Applied(id, done.is_ok())
        };
        self.applied(report, &change, done);
    }

    /// A change was carried out, or not: the agent hears of it.
    fn applied(&mut self, report: Report, change: &Change, done: Result<(), DeviceError>) {
        if let Err(error) = done {
            let log = || warn!(?change, %error, "the data plane refused a change");
            self.span.in_scope(log);
        }
        self.inbox.push_back(report);
    }

    /// Logs the peers that the data plane has, once it has told.
    pub(super) fn report_peers(&self) {
        let wanted = self.agent.peers();
        let wanted = wanted.map(|peer| (peer.key, peer.allowed_ips)).collect();
        let (counters, drops) = (self.plane.data.counters(), self.drops.summary());
        let told = report::log_peers(counters, wanted, drops);
        tokio::spawn(told.instrument(self.span.clone()));
    }

    /// There are so many instances from now on.
    pub(super) fn beside(&mut self, instances: usize) {
        self.span = narrate::span(self.iid, instances);
    }

    /// Removes the interfaces, and with them the routes.
    ///
    /// # Errors
    /// They do not close in time.
    pub(super) async fn close(self) -> Result<()> {
        let drops = self.drops.summary();
        let closed = timeout(CLOSING, self.plane.close()).await;
        self.span.in_scope(|| info!(event = "stopped", drops));
        closed.context("interfaces did not close in time")
    }
}
