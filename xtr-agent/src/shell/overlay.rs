//! One instance: its agent, its data plane, and what passes between the two.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result};
use lisp_proto::{InstanceId, Nonce, Timestamp};
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::time::timeout;
use tracing::{Span, info, info_span, warn};
use wg_device::{Backend, PrivateKey};

use super::data_plane::DataPlane;
use super::narrate::{self, Drops};
use super::{CLOSING, DATAGRAM_MAX, Shared, setup};
use crate::agent::{self, Action, Actions, Agent, Change, Input, PeerStats};
use crate::config::{Config, Instance};

/// Packets that the kernel keeps for a TUN (`TUN_READQ_SIZE`): so many may have
/// been captured before a route was set.
const TUN_QUEUE: usize = 500;

/// One instance.
pub(super) struct Overlay {
    pub(super) iid: InstanceId,
    agent: Agent,
    plane: DataPlane,
    drops: Drops,
    actions: Actions,
    /// What actions led to and the agent has not heard of yet.
    inbox: VecDeque<Report>,
    /// Around what is logged; it says the instance-id where there is more than one.
    span: Span,
}

/// The outcome of an action.
enum Report {
    Applied(agent::ChangeId, bool),
    Stats(Vec<PeerStats>),
    /// A route was set: packets that were on their way into the TUN when it
    /// appeared go out before those that it takes.
    RouteSet(agent::ChangeId, bool),
}

impl Overlay {
    /// Makes the interfaces of `instance` and an agent that has done nothing yet.
    pub(super) async fn create(
        config: &Config,
        instance: &Instance,
        (control_key, data_key): (&PrivateKey, &PrivateKey),
        (control_address, rlocs): (IpAddr, &[IpAddr]),
        first_nonce: Nonce,
    ) -> Result<Self> {
        let keys = (control_key, data_key);
        let addresses = (control_address, rlocs);
        let core = setup::core(config, instance, keys, addresses, first_nonce);
        let mut seed = [0; 32];
        OsRng
            .try_fill_bytes(&mut seed)
            .context("no randomness from the operating system")?;
        let plane = DataPlane::create(instance, config.data_plane, data_key.clone()).await?;
        let span = if config.instances.len() > 1 {
            info_span!("instance", iid = instance.iid.0)
        } else {
            Span::none()
        };
        Ok(Self {
            iid: instance.iid,
            agent: Agent::new(core, seed),
            plane,
            drops: Drops::default(),
            actions: Actions::default(),
            inbox: VecDeque::new(),
            span,
        })
    }

    /// What carries the data.
    pub(super) fn backend(&self) -> Backend {
        self.plane.backend()
    }

    /// When the agent wants to be woken next.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.agent.next_deadline()
    }

    /// Whether a stopping agent has nothing more to wait for.
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
        while let Some(report) = self.inbox.pop_front() {
            match report {
                Report::Applied(id, ok) => self.feed(shared, Input::Applied { id, ok }).await?,
                Report::Stats(stats) => self.feed(shared, Input::PeerStats(&stats)).await?,
                Report::RouteSet(id, ok) => {
                    self.feed(shared, Input::Applied { id, ok }).await?;
                    self.drain_miss(shared).await?;
                    self.plane.data.resume();
                }
            }
        }
        Ok(())
    }

    async fn feed(&mut self, shared: &mut Shared, input: Input<'_>) -> Result<()> {
        let now = shared.clock.now();
        self.agent.handle(now, input, &mut self.actions);
        // Before anything is sent: a nonce must not be used again after a crash.
        shared
            .nonces
            .reserve(self.agent.register_nonce())
            .context("writing register.nonce")?;
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain() {
            self.perform(shared, action).await;
        }
        self.actions = actions;
        Ok(())
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
            Action::Apply { id, change } => self.apply(id, change).await,
            Action::Kick(key) => self.plane.kick(&key).await,
            Action::RenewControlTunnel(index) => {
                let now = shared.clock.now();
                shared.control.renew(now, index).await;
            }
            Action::ReadPeerStats(keys) => {
                let stats = self.plane.stats(&keys).await;
                self.inbox.push_back(Report::Stats(stats));
            }
            Action::Reinject(packet) => self.plane.inject(&packet),
            Action::Deliver(packet) => self.plane.deliver(&packet).await,
            Action::Count(reason) => self.drops.count(reason),
            Action::Event(event) => self.span.in_scope(|| narrate::event(&event)),
        }
    }

    async fn apply(&mut self, id: agent::ChangeId, change: Change) {
        let is_route = matches!(change, Change::AddRoute(_));
        if is_route {
            self.plane.data.pause();
        }
        let done = self.plane.apply(&change).await;
        if let Err(error) = &done {
            let log = || warn!(?change, %error, "the data plane refused a change");
            self.span.in_scope(log);
        }
        self.inbox.push_back(if is_route {
            Report::RouteSet(id, done.is_ok())
        } else {
            Report::Applied(id, done.is_ok())
        });
    }

    /// Logs the peers that the data plane has.
    pub(super) async fn report_peers(&mut self) {
        let (count, peers) = self.plane.describe_peers(&self.agent).await;
        let drops = self.drops.summary();
        let log = || info!(event = "peers", count, peers, drops);
        self.span.in_scope(log);
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
