//! The daemon around the state machine: receive, handle, act.
//!
//! One task, no locks. Datagrams that have arrived are handled before timers that are due, so that
//! a server which could not run for a while does not act on silence that was none.

mod admin;
mod clock;
mod control;
mod endpoints;
mod narrate;
mod operate;
mod settings;
mod sink;
mod sockets;
mod store;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lisp_proto::{Nonce, Timestamp};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::sleep_until;
use tracing::{info, warn};
use wg_device::PrivateKey;

use self::admin::{Admin, Question, REQUEST_BYTES};
use self::clock::Clock;
use self::control::ControlTunnel;
use self::sink::Sink;
use self::sockets::Sockets;
use self::store::{Recovered, Snapshot, Store};
use crate::server::{Actions, Input, MapServer, Via, limits};
use crate::store_event::StoreEvent;

pub use self::admin::Request;
pub use self::settings::{Settings, SettingsError};
pub use self::store::StoreError;

/// UDP port of the control protocol (RFC 9301 §4).
const CONTROL_PORT: u16 = 4342;
/// How often the store is told that the server is alive, and the counters are reported.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Timers wait no longer than this for the sockets to run dry: under a flood they never do.
const TIMER_PATIENCE: Duration = Duration::from_millis(100);

/// A running map server.
struct Shell {
    clock: Clock,
    server: MapServer,
    sockets: Sockets,
    sink: Sink,
    actions: Actions,
    heartbeat: Timestamp,
}

/// Runs the map server until SIGTERM or SIGINT.
///
/// # Errors
/// A key file, the store, an interface or a socket cannot be used.
pub async fn run(settings: Settings) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let key_file = settings.control_key_file();
    let private_key = PrivateKey::load_or_create(&key_file)?;
    let (store, recovered) = Store::open(settings.state_dir(), Clock::since_1970())?;
    if recovered.torn_bytes > 0 {
        warn!(
            bytes = recovered.torn_bytes,
            "cut off an incomplete line at the end of the stored registrations"
        );
    }
    for (xtr, weakness) in settings.weaknesses() {
        narrate::warn_of(xtr, weakness);
    }
    let config = settings.config(&private_key, notify_floor())?;
    let config = config.with_quiet_period(quiet_period(&recovered));
    let mut shell = Shell::new(MapServer::new(config, seed()?), store);
    shell.restore(recovered.events)?;
    let mut admin = Admin::open(&settings.admin_socket(), REQUEST_BYTES)?;

    let mut tunnel = match &settings.control {
        Some(control) => {
            let tunnel = ControlTunnel::create(&settings, control, private_key).await?;
            let address = SocketAddr::new(control.address, CONTROL_PORT);
            let device = tunnel.device();
            let bound = shell
                .sockets
                .bind(Via::Tunnel, address, Some(device.name()));
            bound.with_context(|| format!("listening on {address} in {}", device.name()))?;
            info!(event = "started", interface = device.name(), listen_port = device.listen_port(), backend = %device.backend());
            Some(tunnel)
        }
        None => None,
    };
    for address in &settings.plain {
        let bound = shell.sockets.bind(Via::Plain, *address, None);
        let address = bound.with_context(|| format!("listening on {address}"))?;
        info!(event = "started", listen = %address);
    }

    let (stop, stopped) = oneshot::channel();
    let registered = Arc::clone(&shell.sink.registered);
    let serve = async {
        let result = shell.run(&mut admin, &mut terminate, &mut interrupt).await;
        drop(stop);
        result
    };
    let watch = async {
        if let Some(tunnel) = &mut tunnel {
            tunnel.watch_endpoints(&registered, stopped).await;
        }
    };
    let (result, ()) = tokio::join!(serve, watch);
    if let Some(tunnel) = tunnel {
        tunnel.close().await;
    }
    info!(event = "stopped", drops = shell.sink.summary());
    result
}

impl Shell {
    fn new(server: MapServer, store: Store) -> Self {
        let clock = Clock::start();
        Self {
            heartbeat: clock.now() + HEARTBEAT,
            clock,
            server,
            sockets: Sockets::new(),
            sink: Sink::new(store),
            actions: Actions::new(),
        }
    }

    /// Gives back what an earlier run has kept, and begins a fresh log with it.
    fn restore(&mut self, events: Vec<StoreEvent>) -> Result<()> {
        let count = events.len();
        for event in events {
            self.server
                .handle(self.clock.now(), Input::Restore(event), &mut self.actions);
            self.sink.take(&mut self.actions, None)?;
        }
        self.sink
            .store
            .replace(Clock::since_1970(), self.server.snapshot())?;
        if count > 0 {
            info!(facts = count, "restored");
        }
        Ok(())
    }

    async fn run(
        &mut self,
        admin: &mut Admin,
        terminate: &mut Signal,
        interrupt: &mut Signal,
    ) -> Result<()> {
        let mut syncing: Option<JoinHandle<io::Result<()>>> = None;
        let mut compacting: Option<JoinHandle<Result<Snapshot, StoreError>>> = None;
        loop {
            let deadline = self.server.next_deadline();
            let wake = deadline.map_or(self.heartbeat, |deadline| deadline.min(self.heartbeat));
            let mut asked = None;
            tokio::select! {
                biased;
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                synced = finished(&mut syncing) => {
                    syncing = None;
                    synced?.context("bringing the stored registrations to the disk")?;
                }
                snapshot = finished(&mut compacting) => {
                    compacting = None;
                    self.sink.store.install(snapshot??)?;
                }
                question = admin.next() => asked = Some(question),
                () = self.sockets.readable() => {}
                () = sleep_until(self.clock.instant(wake)) => {}
            }
            let drained = self.receive()?;
            let overdue =
                deadline.is_some_and(|deadline| self.clock.now() - deadline > TIMER_PATIENCE);
            if drained || overdue {
                self.tick()?;
            }
            let answer = asked.map(|question| self.operate(question)).transpose()?;
            self.sink.store.flush()?;
            if let Some((question, answer)) = answer {
                question.answer(answer);
            }
            self.send().await;
            if self.sink.store.wants_snapshot() {
                compacting = Some(self.compact()?);
            }
            if syncing.is_none()
                && let Some(unsynced) = self.sink.store.unsynced()?
            {
                syncing = Some(spawn_blocking(move || unsynced.sync()));
            }
        }
        // It would be in the way of the last snapshot.
        if let Some(compacting) = compacting {
            compacting.await??;
        }
        self.sink
            .store
            .replace(Clock::since_1970(), self.server.snapshot())?;
        Ok(())
    }

    /// Does what an operator asks for; the answer is to be given when that is stored.
    fn operate(&mut self, question: Question) -> Result<(Question, Value)> {
        let (clock, server) = (self.clock, &self.server);
        if let Request::Migrations { run, counts } = question.request {
            let answer = operate::migrations(clock, server, run, counts);
            return Ok((question, answer));
        }
        let Some(command) = operate::command(&question.request) else {
            return Ok((question, Value::Null));
        };
        let answer = match operate::plan(clock, server, &command) {
            Err(refused) => refused,
            Ok(plan) if command.is_dry_run() => plan,
            Ok(_) => {
                let input = Input::Operator(command);
                self.server.handle(clock.now(), input, &mut self.actions);
                self.sink.take(&mut self.actions, None)?;
                json!({ "run": self.server.last_run() })
            }
        };
        Ok((question, answer))
    }

    /// Begins to write a snapshot of what is known now, while the server goes on.
    fn compact(&mut self) -> Result<JoinHandle<Result<Snapshot, StoreError>>, StoreError> {
        let facts: Vec<_> = self.server.snapshot().collect();
        let draft = self.sink.store.draft(Clock::since_1970(), facts)?;
        Ok(spawn_blocking(move || draft.write()))
    }

    /// Handles the datagrams that have arrived; returns whether there are no more.
    fn receive(&mut self) -> Result<bool, StoreError> {
        self.sockets.drain(|src, via, bytes| {
            let now = self.clock.now();
            self.server
                .handle(now, Input::Datagram { src, via, bytes }, &mut self.actions);
            self.sink.take(&mut self.actions, Some(src))
        })
    }

    /// Acts on the timers that are due.
    fn tick(&mut self) -> Result<()> {
        let now = self.clock.now();
        if self
            .server
            .next_deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            self.server.handle(now, Input::Tick, &mut self.actions);
            self.sink.take(&mut self.actions, None)?;
        }
        if self.heartbeat <= now {
            self.heartbeat = now + HEARTBEAT;
            self.sink.store.append(Clock::since_1970(), None)?;
            self.sink.report();
        }
        Ok(())
    }

    async fn send(&mut self) {
        for (dst, via, bytes) in self.sink.outbox.drain(..) {
            self.sockets.send(dst, via, &bytes).await;
        }
    }
}

/// Waits for work in the background; for ever if there is none.
async fn finished<T>(work: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    match work {
        Some(handle) => handle.await,
        None => std::future::pending().await,
    }
}

/// Nonces of unsolicited Map-Notifies never repeat, even if the store is lost: time has passed.
/// Counted in nanoseconds, because xTRs count Map-Registers in microseconds: the acknowledgement
/// of a Map-Register is never taken for news, nor news for an acknowledgement.
fn notify_floor() -> Nonce {
    Nonce(u64::try_from(Clock::since_1970().as_nanos()).unwrap_or(0))
}

/// Returns how long the absence of a registration means nothing: one refresh interval, unless an
/// earlier run has left all its registrations behind.
fn quiet_period(recovered: &Recovered) -> Duration {
    if recovered.is_complete() {
        return Duration::ZERO;
    }
    limits::REFRESH_INTERVAL
}

fn seed() -> Result<[u8; 32]> {
    let mut seed = [0; 32];
    OsRng
        .try_fill_bytes(&mut seed)
        .context("randomness of the operating system")?;
    Ok(seed)
}
