//! The loop around the agent: receive, handle, act. One task, no locks.

mod addresses;
mod clock;
mod interfaces;
mod narrate;
mod nonce_file;
mod setup;

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result};
use lisp_proto::Timestamp;
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::agent::{self, Action, Actions, Agent, Change, Input, PeerStats};
use crate::config::Config;
use addresses::Addresses;
use clock::Clock;
use interfaces::Interfaces;
use narrate::Drops;
use nonce_file::NonceFile;

pub use setup::Keys;

/// Largest control datagram (RFC 9301 fits in one UDP datagram).
const DATAGRAM_MAX: usize = 65_535;
/// Packets read from the TUN in one go before other inputs get their turn.
const TUN_BATCH: usize = 64;
/// Packets that the kernel keeps for a TUN (`TUN_READQ_SIZE`): so many may have
/// been captured before a route was set.
const TUN_QUEUE: usize = 500;
/// How long changes of addresses and routes are left to settle.
const SETTLING: Duration = Duration::from_millis(50);
/// How long a stopping agent waits for its withdrawals to be acknowledged.
const GOODBYE: Duration = Duration::from_millis(900);
/// How long its interfaces may take to close.
const CLOSING: Duration = Duration::from_secs(2);

/// Runs the agent until it is told to stop.
///
/// # Errors
/// When interfaces, sockets or keys cannot be set up, or one of them fails.
pub async fn run(config: Config) -> Result<()> {
    let keys = Keys::load_or_create(&config)?;
    let clock = Clock::start();
    let (nonces, first_nonce) = NonceFile::open(&config.state_dir, Clock::unix_micros())
        .with_context(|| format!("state directory {}", config.state_dir.display()))?;
    let addresses = Addresses::of(&config);
    let rlocs = addresses.now()?;
    let core = setup::core(&config, &keys, rlocs, first_nonce)?;
    let control_address = core.control_address;
    let mut seed = [0; 32];
    OsRng
        .try_fill_bytes(&mut seed)
        .context("no randomness from the operating system")?;
    let interfaces = Interfaces::create(&config, keys, control_address).await?;
    info!(event = "started", backend = %interfaces.backend());
    let shell = Shell {
        agent: Agent::new(core, seed),
        interfaces,
        addresses,
        settled: None,
        clock,
        nonces,
        drops: Drops::default(),
        actions: Actions::default(),
        inbox: VecDeque::new(),
    };
    shell.run().await
}

struct Shell {
    agent: Agent,
    interfaces: Interfaces,
    addresses: Addresses,
    /// When to look at changed addresses.
    settled: Option<Instant>,
    clock: Clock,
    nonces: NonceFile,
    drops: Drops,
    actions: Actions,
    /// What actions led to and the agent has not heard of yet.
    inbox: VecDeque<Report>,
}

/// The outcome of an action.
enum Report {
    Applied(agent::ChangeId, bool),
    Stats(Vec<PeerStats>),
    /// A route was set: packets that were on their way into the TUN when it
    /// appeared go out before those that it takes.
    RouteSet(agent::ChangeId, bool),
}

impl Shell {
    async fn run(mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut report = signal(SignalKind::user_defined1())?;
        let mut datagram = vec![0; DATAGRAM_MAX];
        let mut packet = vec![0; DATAGRAM_MAX];
        self.step(Input::Start).await?;
        loop {
            let deadline = self.agent.next_deadline();
            let never = Timestamp(u64::MAX >> 1);
            let sleep = self.clock.instant(deadline.unwrap_or(never));
            let settled = self.settled.unwrap_or(sleep);
            tokio::select! {
                biased;
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = report.recv() => self.report_peers().await,
                () = self.addresses.changed(), if self.settled.is_none() => {
                    self.settled = Some(self.clock.instant(self.clock.now() + SETTLING));
                }
                () = sleep_until(settled), if self.settled.is_some() => self.readdress().await?,
                received = self.interfaces.control.recv_from(&mut datagram) => {
                    // A port unreachable for an earlier datagram is no reason to stop.
                    if let Ok((length, src)) = received {
                        let bytes = datagram.get(..length).unwrap_or_default();
                        self.step(Input::Datagram { src, bytes }).await?;
                    }
                    // Where anybody can send datagrams, they leave packets their turn.
                    self.captured(&mut packet, TUN_BATCH).await?;
                }
                received = self.interfaces.miss.recv(&mut packet) => {
                    let length = received.context("reading captured packets")?;
                    self.step(Input::TunPacket(packet.get(..length).unwrap_or_default())).await?;
                    self.captured(&mut packet, TUN_BATCH).await?;
                }
                () = sleep_until(sleep), if deadline.is_some() => self.step(Input::Tick).await?,
            }
        }
        self.stop(&mut datagram).await
    }

    /// Tells the agent the addresses that the host has by now.
    async fn readdress(&mut self) -> Result<()> {
        self.settled = None;
        let rlocs = match self.addresses.now() {
            Ok(rlocs) => rlocs,
            Err(error) => {
                // The next change tells when there is a way again.
                debug!(%error, "no address");
                return Ok(());
            }
        };
        if let Err(error) = self.interfaces.move_control(&rlocs) {
            warn!(?rlocs, %error, "control socket not moved");
        }
        self.step(Input::LocalRlocs(&rlocs)).await
    }

    /// Hands packets that are waiting in the TUN to the agent.
    async fn captured(&mut self, packet: &mut [u8], most: usize) -> Result<()> {
        for _ in 0..most {
            let Some(length) = self.interfaces.miss.try_recv(packet) else {
                break;
            };
            self.step(Input::TunPacket(packet.get(..length).unwrap_or_default()))
                .await?;
        }
        Ok(())
    }

    /// One input, and everything that follows from it.
    async fn step(&mut self, input: Input<'_>) -> Result<()> {
        self.feed(input).await?;
        while let Some(report) = self.inbox.pop_front() {
            match report {
                Report::Applied(id, ok) => self.feed(Input::Applied { id, ok }).await?,
                Report::Stats(stats) => self.feed(Input::PeerStats(&stats)).await?,
                Report::RouteSet(id, ok) => {
                    self.feed(Input::Applied { id, ok }).await?;
                    self.drain_miss().await?;
                    self.interfaces.data.resume();
                }
            }
        }
        Ok(())
    }

    async fn feed(&mut self, input: Input<'_>) -> Result<()> {
        self.agent
            .handle(self.clock.now(), input, &mut self.actions);
        // Before anything is sent: a nonce must not be used again after a crash.
        self.nonces
            .reserve(self.agent.register_nonce())
            .context("writing register.nonce")?;
        self.act().await;
        Ok(())
    }

    /// Empties the TUN of what it had when a route was set, so that nothing
    /// captured before is overtaken by what takes the route.
    async fn drain_miss(&mut self) -> Result<()> {
        let mut packet = vec![0; DATAGRAM_MAX];
        for _ in 0..TUN_QUEUE {
            let Some(length) = self.interfaces.miss.try_recv(&mut packet) else {
                break;
            };
            let packet = packet.get(..length).unwrap_or_default();
            self.feed(Input::TunPacket(packet)).await?;
        }
        Ok(())
    }

    async fn act(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain() {
            self.perform(action).await;
        }
        self.actions = actions;
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Send { dst, bytes } => {
                if let Err(error) = self.interfaces.control.send_to(&bytes, dst).await {
                    warn!(%dst, %error, "control datagram not sent");
                }
            }
            Action::Apply { id, change } => self.apply(id, change).await,
            Action::Kick(key) => self.interfaces.kick(&key).await,
            Action::RenewControlTunnel(index) => {
                self.interfaces.renew_control_tunnel(index).await;
            }
            Action::ReadPeerStats(keys) => {
                let stats = self.interfaces.stats(&keys).await;
                self.inbox.push_back(Report::Stats(stats));
            }
            Action::Reinject(packet) => self.interfaces.inject(&packet),
            Action::Deliver(packet) => self.interfaces.deliver(&packet).await,
            Action::Count(reason) => self.drops.count(reason),
            Action::Event(event) => narrate::event(&event),
        }
    }

    async fn apply(&mut self, id: agent::ChangeId, change: Change) {
        let is_route = matches!(change, Change::AddRoute(_));
        if is_route {
            self.interfaces.data.pause();
        }
        let done = self.interfaces.apply(&change).await;
        if let Err(error) = &done {
            warn!(?change, %error, "the data plane refused a change");
        }
        self.inbox.push_back(if is_route {
            Report::RouteSet(id, done.is_ok())
        } else {
            Report::Applied(id, done.is_ok())
        });
    }

    async fn report_peers(&mut self) {
        let (count, peers) = self.interfaces.describe_peers(&self.agent).await;
        info!(event = "peers", count, peers, drops = self.drops.summary());
    }

    /// Withdraws, waits a moment for the acknowledgements, and tidies up.
    async fn stop(mut self, datagram: &mut [u8]) -> Result<()> {
        self.step(Input::Shutdown).await?;
        let until = self.clock.now() + GOODBYE;
        while !self.agent.has_left() && self.clock.now() < until {
            let deadline = self.agent.next_deadline();
            let wake = deadline.map_or(until, |deadline| deadline.min(until));
            tokio::select! {
                received = self.interfaces.control.recv_from(datagram) => {
                    let Ok((length, src)) = received else { continue };
                    let bytes = datagram.get(..length).unwrap_or_default();
                    self.step(Input::Datagram { src, bytes }).await?;
                }
                () = sleep_until(self.clock.instant(wake)) => self.step(Input::Tick).await?,
            }
        }
        let drops = self.drops.summary();
        let closed = timeout(CLOSING, self.interfaces.close()).await;
        info!(event = "stopped", drops);
        closed.context("interfaces did not close in time")
    }
}
