//! The loop around the agents: receive, handle, act. One task, no locks.
//!
//! | question | file |
//! |---|---|
//! | What happens next, and to which instance? | `mod.rs` |
//! | What do the instances share? | `shared.rs` |
//! | What does one instance consist of, and who carries out its actions? | `overlay.rs` |
//! | Which instance is a control datagram about? | `dispatch.rs` |
//! | How is the map server reached? | `control.rs` |
//! | Which interfaces and routes does an instance have? | `data_plane.rs` |
//! | May this host forward for the networks behind it? | `forwarding.rs` |
//! | How do connections follow a client to another proxy? | `carry` |
//! | What is an agent told before it starts? | `setup.rs` |
//! | What may be asked of a running agent, and how is it answered? | `admin.rs`, `report.rs` |
//! | How does it end, and what stays? | `ending.rs`, `leftovers.rs` |
//! | What is kept for the next start? | `cache_file.rs`, `nonce_file.rs` |
//! | What changes without a restart? | `reload.rs`, `unchangeable.rs` |
//! | Who reads counters, and when? | `counting.rs` |
//! | Are there signs of life, do packets fit? | `heard.rs`, `path_sizes.rs`, `echoes.rs` |
//! | At which addresses can this host be reached? | `addresses.rs` |
//! | Which uplinks has it? | `uplinks.rs` |
//! | Which one leads to the map server? | `server_way.rs` |
//! | Which ones come and go too often? | `damping.rs` |

mod addresses;
mod admin;
mod awaited;
mod cache_file;
mod carry;
mod clock;
mod control;
mod counting;
mod damping;
mod data_plane;
mod dispatch;
mod echoes;
mod ending;
mod forwarding;
mod heard;
mod leftovers;
mod narrate;
mod nonce_file;
mod overlay;
mod path_sizes;
mod reload;
mod report;
mod scout;
mod server_way;
mod setup;
mod shared;
mod unchangeable;
mod uplinks;

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use lisp_proto::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};
use wg_device::PrivateKey;

use crate::agent::Input;
use crate::config::Config;
use addresses::Addresses;
use admin::{Admin, Question, REQUEST_BYTES};
use awaited::Awaited;
use cache_file::CacheFile;
use carry::Carried;
use clock::Clock;
use control::Control;
use counting::Found;
use ending::Ending;
use nonce_file::NonceFile;
use overlay::Overlay;
use reload::{Reload, next_rebuilt};
use shared::Shared;
use uplinks::OwnUplinks;

pub use admin::Request;
pub use leftovers::remove_leftovers;
pub use setup::Keys;

/// Largest control datagram (RFC 9301 fits in one UDP datagram).
const DATAGRAM_MAX: usize = 65_535;
/// Packets read from each TUN in one go before other inputs get their turn.
const TUN_BATCH: usize = 64;
/// How long after a change of addresses and routes the next one is looked at: the first one counts
/// at once, and a host with thousands of them is not kept busy.
const SETTLING: Duration = Duration::from_millis(50);
/// How long its interfaces may take to close.
const CLOSING: Duration = Duration::from_secs(2);

/// Runs the agent until it is told to stop. On SIGHUP it reads `config_path` again, where `config`
/// came from.
///
/// # Errors
/// When interfaces, sockets or keys cannot be set up, or one of them fails.
pub async fn run(config: Config, config_path: &Path) -> Result<()> {
    // First: whoever has it is the one agent of this configuration.
    let admin = Admin::open(&config.admin_socket, REQUEST_BYTES)?;
    let keys = Keys::load_or_create(&config)?;
    let clock = Clock::start();
    let (nonces, first_nonce) = NonceFile::open(&config.state_dir, Clock::unix_micros())
        .with_context(|| format!("state directory {}", config.state_dir.display()))?;
    let addresses = Addresses::of(&config);
    let uplinks = OwnUplinks::of(clock.now(), &config)?;
    let rlocs = addresses.now()?;
    let rlocs = match &uplinks {
        Some(uplinks) => uplinks.usable(rlocs),
        None => rlocs,
    };
    let control_address = setup::control_address(&config, &rlocs)?;
    let sources = uplinks.as_ref().map(OwnUplinks::sources);
    let key = keys.control.clone();
    let control = Control::create(&config, key, control_address, sources.clone()).await?;
    let mut overlays = Vec::new();
    for (instance, data_key) in config.instances.iter().zip(&keys.data) {
        let keys = (&keys.control, data_key);
        let at = (control_address, rlocs.as_slice());
        let since = (first_nonce, clock);
        let sources = sources.clone();
        overlays.push(Overlay::create(&config, instance, keys, at, since, sources).await?);
    }
    let backend = overlays.first().map(|overlay| overlay.backend());
    let backend = backend.ok_or_else(|| anyhow!("no instance is configured"))?;
    info!(event = "started", %backend, instances = overlays.len());
    let (cache, known) = CacheFile::open(
        &config.state_dir,
        clock.instant(clock.now()),
        Clock::unix_micros(),
    );
    let mut shell = Shell {
        shared: Shared {
            control,
            uplinks,
            clock,
            nonces,
            cache,
            readings: JoinSet::new(),
            handshakes: Awaited::default(),
        },
        overlays,
        addresses,
        settled: None,
        config,
        config_path: config_path.to_owned(),
        control_key: keys.control,
        reload: None,
    };
    for overlay in &mut shell.overlays {
        overlay.restore(&mut shell.shared, &known).await?;
    }
    shell.follow_uplinks().await?;
    shell.stay();
    shell.run(admin).await
}

/// Everything that runs.
struct Shell {
    shared: Shared,
    /// Each has another instance-id.
    overlays: Vec<Overlay>,
    addresses: Addresses,
    /// Until when changes of addresses are left to settle.
    settled: Option<Instant>,
    config: Config,
    config_path: PathBuf,
    control_key: PrivateKey,
    /// A reload that goes on beside the loop.
    reload: Option<Reload>,
}

impl Shell {
    async fn run(mut self, mut admin: Admin) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut report = signal(SignalKind::user_defined1())?;
        let mut datagram = vec![0; DATAGRAM_MAX];
        let mut packet = vec![0; DATAGRAM_MAX];
        self.step_all(Input::Start).await?;
        let ending = loop {
            self.go_on_reloading().await?;
            let deadline = self.next_deadline();
            let never = Timestamp(u64::MAX >> 1);
            let sleep = self.shared.clock.instant(deadline.unwrap_or(never));
            let settled = self.settled.unwrap_or(sleep);
            let written = self.shared.cache.due();
            tokio::select! {
                biased;
                _ = terminate.recv() => break Ending::leave(),
                _ = interrupt.recv() => break Ending::purge(),
                _ = hangup.recv() => self.reload().await?,
                question = admin.next() => {
                    if let Some(ending) = self.answer(question).await? {
                        break ending;
                    }
                }
                _ = report.recv() => self.overlays.iter().for_each(Overlay::report_peers),
                () = self.addresses.changed(), if self.settled.is_none() => {
                    self.readdress().await?;
                    let clock = self.shared.clock;
                    self.settled = Some(clock.instant(clock.now() + SETTLING));
                }
                () = sleep_until(settled), if self.settled.is_some() => self.settled = None,
                rebuilt = next_rebuilt(&mut self.reload) => self.rebuilt(rebuilt).await?,
                // Before counters that may have been read before it.
                Some(told) = self.shared.handshakes.next() => self.shaken_hands(told).await?,
                Some(read) = self.shared.readings.join_next_with_id() => self.counted(read).await?,
                received = self.shared.control.socket.recv_from(&mut datagram) => {
                    self.received(received, &datagram).await?;
                    // Where anybody can send datagrams, they leave packets their turn.
                    self.captured(&mut packet).await?;
                }
                arrived = next_arrived(&mut self.overlays, &mut packet) => {
                    let (index, arrived) = arrived.context("reading captured packets")?;
                    self.arrived(index, arrived, &packet).await?;
                    self.captured(&mut packet).await?;
                }
                () = sleep_until(sleep), if deadline.is_some() => self.tick().await?,
                () = sleep_until(written.unwrap_or(sleep)), if written.is_some() => {
                    self.write_cache().await;
                }
            }
        };
        self.end(ending, admin, &mut datagram).await
    }

    /// Answers a question, or says how to end when that was the question.
    async fn answer(&mut self, question: Question) -> Result<Option<Ending>> {
        match question.request {
            Request::Status => self.status(question),
            Request::Trace { eid } => self.trace(eid, question),
            Request::Drain { undo } => self.drain(!undo, question).await?,
            Request::Stop { purge } => return Ok(Some(Ending::asked(purge, question))),
        }
        Ok(None)
    }

    /// Writes down what the agents know.
    async fn write_cache(&mut self) {
        let now = self.shared.clock.now();
        let instant = self.shared.clock.instant(now);
        if self.shared.cache.is_busy(instant) {
            return;
        }
        let snapshots = self.overlays.iter().map(|overlay| overlay.snapshot(now));
        let snapshots = snapshots.collect();
        let cache = &mut self.shared.cache;
        cache.write(instant, Clock::unix_micros(), snapshots).await;
    }

    /// When an agent wants to be woken next.
    fn next_deadline(&self) -> Option<Timestamp> {
        let deadlines = self.overlays.iter().filter_map(Overlay::next_deadline);
        let uplinks = self.shared.uplinks.as_ref().and_then(OwnUplinks::due);
        deadlines.chain(self.reload_deadline()).chain(uplinks).min()
    }

    /// Wakes the agents that wanted to be woken by now.
    async fn tick(&mut self) -> Result<()> {
        let now = self.shared.clock.now();
        for overlay in &mut self.overlays {
            if overlay.next_deadline().is_some_and(|at| at <= now) {
                overlay.step(&mut self.shared, Input::Tick).await?;
            }
        }
        let uplinks = self.shared.uplinks.as_mut();
        if uplinks.is_some_and(|it| it.is_to_settle(now)) {
            self.readdress().await?;
        }
        let uplinks = self.shared.uplinks.as_mut();
        if uplinks.is_some_and(|it| it.tick(now)) {
            self.follow_uplinks().await?;
            let uplinks = self.shared.uplinks.as_ref();
            if uplinks.is_some_and(OwnUplinks::is_on_trial) {
                self.step_all(Input::OtherWay).await?;
            }
        }
        Ok(())
    }

    async fn step_all(&mut self, input: Input<'_>) -> Result<()> {
        for overlay in &mut self.overlays {
            overlay.step(&mut self.shared, input).await?;
        }
        Ok(())
    }

    /// Hands a control datagram to the agent that it concerns.
    async fn received(
        &mut self,
        received: io::Result<(usize, std::net::SocketAddr)>,
        buffer: &[u8],
    ) -> Result<()> {
        // A port unreachable for an earlier datagram is no reason to stop.
        let Ok((length, src)) = received else {
            return Ok(());
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        let index = self.concerned(bytes);
        self.shared.server_is_heard();
        if let Some(overlay) = self.overlays.get_mut(index) {
            overlay.renewals.answered();
            let input = Input::Datagram { src, bytes };
            overlay.step(&mut self.shared, input).await?;
        }
        Ok(())
    }

    /// Which instance `datagram` is for; the first one counts what is for none.
    fn concerned(&self, datagram: &[u8]) -> usize {
        if self.overlays.len() < 2 {
            return 0;
        }
        let iid = dispatch::instance_of(datagram);
        let concerned = |overlay: &Overlay| Some(overlay.iid) == iid;
        self.overlays.iter().position(concerned).unwrap_or(0)
    }

    /// The map server is reached by the uplink that was chosen for it.
    async fn follow_uplinks(&mut self) -> Result<()> {
        let Some(uplinks) = &self.shared.uplinks else {
            return Ok(());
        };
        self.shared.control.follow(uplinks).await;
        match self.shared.control.answers_to() {
            Some(own) => self.step_all(Input::AnswersTo(own)).await,
            None => Ok(()),
        }
    }

    /// Tells the agents the addresses that the host has by now.
    async fn readdress(&mut self) -> Result<()> {
        if let Some(uplinks) = &mut self.shared.uplinks {
            if let Err(error) = uplinks.settle(self.shared.clock.now()) {
                warn!(
                    error = format!("{error:#}"),
                    "uplinks are not as they shall be"
                );
            }
            self.follow_uplinks().await?;
        }
        let rlocs = match self.addresses.now() {
            Ok(rlocs) => match &self.shared.uplinks {
                Some(uplinks) => uplinks.usable(rlocs),
                None => rlocs,
            },
            Err(error) => {
                // The next change tells when there is a way again.
                debug!(%error, "no address");
                return Ok(());
            }
        };
        if let Err(error) = self.shared.control.move_to(&rlocs) {
            warn!(?rlocs, %error, "control socket not moved");
        }
        self.step_all(Input::LocalRlocs(&rlocs)).await
    }

    /// Hands what has come to the agent of one instance.
    async fn arrived(&mut self, index: usize, arrived: Arrived, packet: &[u8]) -> Result<()> {
        let input = match arrived {
            Arrived::Packet(length) => Input::TunPacket(packet.get(..length).unwrap_or_default()),
            Arrived::Echo(from, number) => Input::EchoAnswered { from, number },
            Arrived::Carried(Carried::Fetched(client)) => Input::Fetched(client),
            Arrived::Carried(Carried::Released(client, connections)) => Input::Released {
                client,
                connections,
            },
        };
        match self.overlays.get_mut(index) {
            Some(overlay) => overlay.step(&mut self.shared, input).await,
            None => Ok(()),
        }
    }

    /// Hands packets that are waiting in the TUNs to the agents.
    async fn captured(&mut self, packet: &mut [u8]) -> Result<()> {
        for overlay in &mut self.overlays {
            overlay
                .captured(&mut self.shared, packet, TUN_BATCH)
                .await?;
        }
        Ok(())
    }

    /// Tells the instance that waits for it of a handshake.
    async fn shaken_hands(&mut self, told: Result<(Id, bool), JoinError>) -> Result<()> {
        let Some((iid, key)) = self.shared.handshakes.ended(told)? else {
            return Ok(());
        };
        let waits = |overlay: &&mut Overlay| overlay.iid == iid;
        if let Some(overlay) = self.overlays.iter_mut().find(waits) {
            overlay
                .step(&mut self.shared, Input::Handshake(key))
                .await?;
        }
        Ok(())
    }

    /// Hands counters to the instance that wanted them, if it is still there.
    async fn counted(&mut self, read: Result<(Id, Found), JoinError>) -> Result<()> {
        let (id, found) = match read {
            Ok(read) => read,
            Err(error) if error.is_cancelled() => return Ok(()),
            Err(error) => return Err(error).context("reading counters"),
        };
        let wanted = |overlay: &&mut Overlay| overlay.counting.is_under_way(id);
        if let Some(overlay) = self.overlays.iter_mut().find(wanted) {
            // The agent concludes from counters who is silent: it hears those first who are not.
            while let Some((from, number)) = overlay.scout.answered() {
                let answered = Input::EchoAnswered { from, number };
                overlay.step(&mut self.shared, answered).await?;
            }
            overlay.counted(&mut self.shared, found).await?;
        }
        Ok(())
    }
}

/// What comes to an instance by itself.
enum Arrived {
    /// A packet of this length was captured.
    Packet(usize),
    /// An echo with this number was answered.
    Echo(IpAddr, u16),
    /// Connections have come or gone.
    Carried(Carried),
}

/// Waits until one of the instances has captured a packet, or was answered: which, and what it is.
/// Cancelling loses nothing.
async fn next_arrived(overlays: &mut [Overlay], packet: &mut [u8]) -> io::Result<(usize, Arrived)> {
    poll_fn(|context| {
        for (index, overlay) in overlays.iter_mut().enumerate() {
            if let Poll::Ready(carried) = overlay.carrier.poll_told(context) {
                return Poll::Ready(Ok((index, Arrived::Carried(carried))));
            }
            if let Poll::Ready((from, number)) = overlay.scout.poll_answer(context) {
                return Poll::Ready(Ok((index, Arrived::Echo(from, number))));
            }
            if let Poll::Ready(length) = overlay.poll_captured(context, packet) {
                return Poll::Ready(length.map(|length| (index, Arrived::Packet(length))));
            }
        }
        Poll::Pending
    })
    .await
}
