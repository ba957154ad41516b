//! The daemon around the state machine: receive, handle, act.
//!
//! One task owns the state machine, and does all that changes it; questions that change nothing are answered
//! by whichever thread has received them (`posts`, `workers`). Datagrams that have arrived are handled before timers that are due, so that
//! a server which could not run for a while does not act on silence that was none.

mod admin;
mod backlog;
mod beside;
mod clock;
mod control;
mod endpoints;
mod facts;
mod lookout;
mod narrate;
mod operate;
mod posts;
mod settings;
mod sink;
mod sockets;
mod store;
mod workers;

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
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn, yield_now};
use tokio::time::sleep_until;
use tracing::{info, warn};
use wg_device::{PrivateKey, give_memory_back};

use self::admin::{Admin, Question, REQUEST_BYTES};
use self::backlog::{Backlog, Datagrams};
use self::beside::{beside, finished, sync};
use self::clock::Clock;
use self::control::ControlTunnel;
use self::facts::Facts;
use self::lookout::{Look, Orders, Reporter};
use self::posts::{Clerk, SharedServer, read, write};
use self::sink::Sink;
use self::sockets::Sockets;
use self::store::{Recovered, Snapshot, Store};
use self::workers::Workers;
use crate::server::{Actions, Input, MapServer, Via, limits};
use crate::store_event::StoreEvent;

pub use self::admin::Request;
pub use self::settings::{Settings, SettingsError};
pub use self::store::StoreError;

/// UDP port of the control protocol (RFC 9301 §4).
const CONTROL_PORT: u16 = 4342;
/// How often the store is told that the server is alive, and the counters are reported.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Batches of datagrams taken from one socket before the others, and the timers, have their turn.
const TURN: usize = 4;

/// Timers wait no longer than this for the sockets to run dry: under a flood they never do.
const TIMER_PATIENCE: Duration = Duration::from_millis(100);

/// Slices of the backlog that are handled before new datagrams are received, where nobody has asked for this long.
const SLICES_UNASKED: usize = 4;
const UNASKED: Duration = Duration::from_millis(20);

/// With fewer mappings than this, what was freed is not worth the time to give it back.
const WORTHWHILE: usize = 1_000;

/// The end of a snapshot that is being written.
type Compacting = oneshot::Receiver<Result<Snapshot, StoreError>>;

/// A running map server.
struct Shell {
    clock: Clock,
    server: Arc<SharedServer>,
    sockets: Sockets,
    clerk: Clerk,
    workers: Workers,
    backlog: Backlog,
    /// When a question came last that was answered at once.
    asked: Timestamp,
    sink: Sink,
    /// Where the peers of the control tunnel are seen.
    sightings: UnboundedReceiver<Look>,
    actions: Actions,
    heartbeat: Timestamp,
    /// How many mappings there were at most since memory was given back.
    most_mappings: usize,
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
    let config = config.with_control_keys(settings.control_keys(&private_key));
    let clock = Clock::start();
    let (reporter, orders, sightings) = Reporter::new(clock);
    let server = MapServer::new(config, seed()?);
    let mut shell = Shell::new(clock, server, store, (orders, sightings));
    shell.restore(recovered.events)?;
    let mut admin = Admin::open(&settings.admin_socket(), REQUEST_BYTES)?;

    let mut tunnel = match &settings.control {
        Some(control) => {
            let tunnel = ControlTunnel::create(&settings, control, private_key).await?;
            let address = SocketAddr::new(control.address, CONTROL_PORT);
            let device = tunnel.device();
            let bound = shell.sockets.bind_tunnel(address, device.name());
            bound.with_context(|| format!("listening on {address} in {}", device.name()))?;
            info!(event = "started", interface = device.name(), listen_port = device.listen_port(), backend = %device.backend());
            Some(tunnel)
        }
        None => None,
    };
    shell.listen(&settings)?;

    let (stop, stopped) = oneshot::channel();
    let registered = Arc::clone(&shell.sink.registered);
    let serve = async {
        let result = shell.run(&mut admin, &mut terminate, &mut interrupt).await;
        drop(stop);
        result
    };
    let watch = async {
        if let Some(tunnel) = &mut tunnel {
            tunnel.watch_endpoints(reporter, &registered, stopped).await;
        }
    };
    let (result, ()) = tokio::join!(serve, watch);
    if let Some(tunnel) = tunnel {
        tunnel.close().await;
    }
    shell.workers.stop();
    let counters = shell.sink.all_counters(&shell.workers);
    info!(event = "stopped", drops = narrate::summary(&counters));
    result
}

impl Shell {
    fn new(
        clock: Clock,
        server: MapServer,
        store: Store,
        (orders, sightings): (Orders, UnboundedReceiver<Look>),
    ) -> Self {
        let server = Arc::new(SharedServer::new(server));
        Self {
            heartbeat: clock.now() + HEARTBEAT,
            clock,
            clerk: Clerk::new(&server),
            server,
            sockets: Sockets::default(),
            workers: Workers::none(),
            backlog: Backlog::default(),
            asked: Timestamp::ZERO,
            sink: Sink::new(store, orders),
            sightings,
            actions: Actions::new(),
            most_mappings: 0,
        }
    }

    /// Opens the sockets in the plain, and starts the threads that answer there besides this one.
    fn listen(&mut self, settings: &Settings) -> Result<()> {
        let count = settings.workers.get();
        let mut others: Vec<Vec<_>> = (1..count).map(|_| Vec::new()).collect();
        for address in &settings.plain {
            let bound = self.sockets.bind_plain(*address, count);
            let sockets = bound.with_context(|| format!("listening on {address}"))?;
            for (theirs, socket) in others.iter_mut().zip(sockets) {
                theirs.push((socket.local_addr()?, socket));
            }
            info!(event = "started", listen = %self.sockets.last_address(*address));
        }
        for sockets in others {
            self.workers.start(sockets, &self.server, self.clock)?;
        }
        Ok(())
    }

    /// Gives back what an earlier run has kept, and begins a fresh log with it.
    fn restore(&mut self, events: Vec<StoreEvent>) -> Result<()> {
        let count = events.len();
        for event in events {
            self.handle(Input::Restore(event))?;
        }
        let server = read(&self.server);
        self.sink
            .store
            .replace(Clock::since_1970(), server.snapshot(self.clock.now()))?;
        drop(server);
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
        let mut closing: Option<oneshot::Receiver<()>> = None;
        let mut compacting: Option<Compacting> = None;
        loop {
            let deadline = read(&self.server).next_deadline();
            let wake = deadline.map_or(self.heartbeat, |deadline| deadline.min(self.heartbeat));
            let (mut asked, mut handed_on, mut seen) = (None, None, None);
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
                    let old = self.sink.store.install(snapshot??)?;
                    // What no thread can be had for is done on the way.
                    closing = beside(move || drop(old))
                        .inspect_err(|error| warn!(%error, "closing the old log without a thread"))
                        .ok();
                }
                closed = finished(&mut closing) => {
                    closing = None;
                    closed?;
                }
                question = admin.next() => asked = Some(question),
                Some(look) = self.sightings.recv() => seen = Some(look),
                () = self.sockets.readable() => {}
                // Not at once: the runtime must hear of sockets in between.
                () = yield_now(), if !self.backlog.is_empty() => {}
                batch = self.workers.handed_on.recv() => handed_on = batch,
                () = sleep_until(self.clock.instant(wake)) => {}
            }
            seen.map_or(Ok(()), |look| self.seen(&look))?;
            let drained = self.receive(handed_on)?;
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
            self.send();
            self.give_memory_back();
            if self.sink.store.wants_snapshot() {
                compacting = self.compact()?;
            }
            if syncing.is_none()
                && let Some(unsynced) = self.sink.store.unsynced()?
            {
                syncing = Some(spawn(sync(unsynced)));
            }
        }
        // It would be in the way of the last snapshot.
        if let Some(compacting) = compacting {
            compacting.await??;
        }
        let server = read(&self.server);
        self.sink
            .store
            .replace(Clock::since_1970(), server.snapshot(self.clock.now()))?;
        Ok(())
    }

    /// Passes on where the control tunnel has found its peers.
    fn seen(&mut self, look: &Look) -> Result<(), StoreError> {
        let (began, peers) = (look.began, &look.news);
        self.handle(Input::Seen { began, peers })
    }

    /// Gives the state machine an input, and does what follows.
    fn handle(&mut self, input: Input<'_>) -> Result<(), StoreError> {
        write(&self.server).handle(self.clock.now(), input, &mut self.actions);
        self.sink.take(Clock::since_1970(), &mut self.actions, None)
    }

    /// Does what an operator asks for; the answer is to be given when that is stored.
    fn operate(&mut self, question: Question) -> Result<(Question, Value)> {
        let clock = self.clock;
        if let Request::Migrations { run, counts } = question.request {
            let answer = operate::migrations(clock, &read(&self.server), run, counts);
            return Ok((question, answer));
        }
        let Some(command) = operate::command(&question.request) else {
            return Ok((question, Value::Null));
        };
        let plan = operate::plan(clock, &read(&self.server), &command);
        let answer = match plan {
            Err(refused) => refused,
            Ok(plan) if command.is_dry_run() => plan,
            Ok(_) => {
                self.handle(Input::Operator(command))?;
                json!({ "run": read(&self.server).last_run() })
            }
        };
        Ok((question, answer))
    }

    /// Begins to write a snapshot of what is known now, while the server goes on; `None` if that is for later.
    fn compact(&mut self) -> Result<Option<Compacting>, StoreError> {
        let facts = Facts::of(Arc::clone(&self.server), self.clock);
        let draft = self.sink.store.draft(Clock::since_1970(), facts)?;
        let compacting = beside(move || draft.write());
        if let Err(error) = &compacting {
            warn!(%error, "no thread for a snapshot of the stored registrations; the log goes on");
            self.sink.store.give_up();
        }
        Ok(compacting.ok())
    }

    /// Takes the datagrams in that have arrived, answers questions, and handles some of what else waits; returns
    /// whether there is no more.
    fn receive(&mut self, handed_on: Option<Datagrams>) -> Result<bool, StoreError> {
        let mut drained = true;
        for post in &mut self.sockets.posts {
            let mut turns = 0;
            while turns < TURN && !self.backlog.is_full() && post.receive() {
                turns += 1;
                let now = self.clock.now();
                let counters = &mut self.sink.counters;
                let server = &self.server;
                if self.clerk.answer(now, server, post, |take| take(counters)) {
                    self.asked = now;
                }
                if post.via == Via::Plain {
                    post.left()
                        .for_each(|(src, bytes)| self.backlog.push(src, bytes));
                    continue;
                }
                let since_1970 = Clock::since_1970();
                let mut server = write(&self.server);
                server.expect_registers(post.left().map(|(_, bytes)| bytes));
                for (src, bytes) in post.left() {
                    let via = post.via;
                    let input = Input::Datagram { src, via, bytes };
                    server.handle(now, input, &mut self.actions);
                    self.sink.take(since_1970, &mut self.actions, Some(src))?;
                }
            }
            drained &= turns < TURN;
        }
        let mut next = handed_on;
        loop {
            if let Some(datagrams) = &next {
                let all = datagrams.iter();
                all.for_each(|(src, bytes)| self.backlog.push(src, bytes));
            }
            next = match self.backlog.is_full() {
                true => None,
                false => self.workers.handed_on.try_recv().ok(),
            };
            if next.is_none() {
                break;
            }
        }
        self.work_off()?;
        Ok(drained && self.backlog.is_empty())
    }

    /// Handles some of the datagrams that wait: few where questions come, which wait for all of it.
    fn work_off(&mut self) -> Result<(), StoreError> {
        let (now, since_1970) = (self.clock.now(), Clock::since_1970());
        let is_asked = now - self.asked < UNASKED;
        let slices = if is_asked { 1 } else { SLICES_UNASKED };
        for _ in 0..slices {
            let Some(datagrams) = self.backlog.pop() else {
                break;
            };
            let mut server = write(&self.server);
            server.expect_registers(datagrams.iter().map(|(_, bytes)| bytes));
            for (src, bytes) in datagrams.iter() {
                let via = Via::Plain;
                let input = Input::Datagram { src, via, bytes };
                server.handle(now, input, &mut self.actions);
                self.sink.take(since_1970, &mut self.actions, Some(src))?;
            }
            drop(server);
            self.backlog.recycle(datagrams);
        }
        Ok(())
    }

    /// Acts on the timers that are due.
    fn tick(&mut self) -> Result<()> {
        let now = self.clock.now();
        let deadline = read(&self.server).next_deadline();
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.handle(Input::Tick)?;
        }
        if self.heartbeat <= now {
            self.heartbeat = now + HEARTBEAT;
            self.sink.store.append(Clock::since_1970(), None)?;
            self.sink.report(&self.workers);
        }
        Ok(())
    }

    /// Gives the memory of mappings back that are no more, each time that half of them are gone.
    fn give_memory_back(&mut self) {
        let mappings = read(&self.server).sizes().mappings;
        self.most_mappings = self.most_mappings.max(mappings);
        if self.most_mappings >= WORTHWHILE && mappings <= self.most_mappings / 2 {
            give_memory_back();
            self.most_mappings = mappings;
        }
    }

    fn send(&mut self) {
        for (dst, via, bytes) in self.sink.outbox.drain(..) {
            self.sockets.post(dst, via, &bytes);
        }
        self.sockets.send();
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
