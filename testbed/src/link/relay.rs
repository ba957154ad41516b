//! Carries frames between pairs of TAPs, for kernels without netem.
//!
//! One thread serves all links of a testbed. It wakes from `ppoll` a little before the next
//! frame is due and watches the clock for the rest, with real-time priority: timers alone are
//! late by more than a link should err.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::prctl::set_timerslack;

use super::impair::{Direction, DirectionCounters};
use super::params::LinkParams;
use crate::clock::monotonic_ns;
use crate::error::{Doing, TestbedError, best_effort};
use crate::sys;

/// How long before a frame is due the thread stops sleeping: longer than timers are late.
const WATCH_NS: u64 = 100_000;
/// How long the thread sleeps when nothing is on its way.
const IDLE: Duration = Duration::from_secs(3_600);
/// Frames read from one TAP before the others get their turn.
const BATCH: usize = 32;
/// No frame is longer, whatever the MTU.
const MAX_FRAME: usize = 65_550;

/// Names a link of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkId(u64);

/// The thread and what it shares with those who change its links.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    wake: EventFd,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    links: BTreeMap<LinkId, Pair>,
    on_their_way: BinaryHeap<Reverse<Frame>>,
    next_link: u64,
    next_frame: u64,
    /// Grows when a TAP comes or goes.
    generation: u64,
}

/// Two TAPs; what is read from `taps[n]` goes through `directions[n]` to the other one.
struct Pair {
    taps: [Arc<OwnedFd>; 2],
    directions: [Direction; 2],
}

/// A frame on its way; ordered by when it is due, then by when it came.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Frame {
    due: u64,
    number: u64,
    link: LinkId,
    from: usize,
    bytes: Vec<u8>,
}

/// A TAP the thread listens to.
struct Port {
    tap: Arc<OwnedFd>,
    link: LinkId,
    side: usize,
}

impl Relay {
    pub(crate) fn start() -> Result<Self, TestbedError> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = EventFd::from_flags(flags).doing("create", "an eventfd")?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake,
            stop: AtomicBool::new(false),
        });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("testbed-relay".into())
            .spawn(move || carry(&own))
            .doing("start", "the relay thread")?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Joins two TAPs; frames from the first one get `params[0]`.
    pub(crate) fn add(&self, taps: [OwnedFd; 2], params: [LinkParams; 2], seed: u64) -> LinkId {
        let mut state = self.shared.lock();
        let id = LinkId(state.next_link);
        state.next_link += 1;
        state.generation += 1;
        let [forward, backward] = params;
        let seed = seed.wrapping_add(id.0.wrapping_mul(2));
        let directions = [
            Direction::new(forward, seed),
            Direction::new(backward, seed.wrapping_add(1)),
        ];
        state.links.insert(
            id,
            Pair {
                taps: taps.map(Arc::new),
                directions,
            },
        );
        drop(state);
        self.shared.wake();
        id
    }

    pub(crate) fn remove(&self, id: LinkId) {
        let mut state = self.shared.lock();
        state.links.remove(&id);
        state.generation += 1;
        drop(state);
        self.shared.wake();
    }

    pub(crate) fn set_params(&self, id: LinkId, params: [LinkParams; 2]) {
        if let Some(pair) = self.shared.lock().links.get_mut(&id) {
            for (direction, params) in pair.directions.iter_mut().zip(params) {
                direction.set_params(params);
            }
        }
    }

    pub(crate) fn set_cut(&self, id: LinkId, cut: bool) {
        if let Some(pair) = self.shared.lock().links.get_mut(&id) {
            for direction in &mut pair.directions {
                direction.set_cut(cut);
            }
        }
    }

    pub(crate) fn counters(&self, id: LinkId) -> Option<[DirectionCounters; 2]> {
        let state = self.shared.lock();
        let [forward, backward] = &state.links.get(&id)?.directions;
        Some([forward.counters(), backward.counters()])
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            best_effort(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the thread wakes anyway.
        best_effort(self.wake.write(1));
    }
}

/// The thread: delivers what is due, waits, reads what came, until told to stop.
fn carry(shared: &Shared) {
    // Both make links more exact, neither is needed to carry frames.
    best_effort(set_timerslack(1));
    best_effort(sys::become_real_time());
    let mut buffer = vec![0; MAX_FRAME];
    let mut ports = Vec::new();
    let mut generation = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let mut state = shared.lock();
        state.deliver_due();
        if state.generation != generation {
            generation = state.generation;
            ports = state.ports();
        }
        let next_due = state.next_due();
        drop(state);
        let ready = wait(&ports, shared.wake.as_fd(), next_due);
        if ready.is_empty() {
            continue;
        }
        let mut state = shared.lock();
        for port in ready.into_iter().filter_map(|index| ports.get(index)) {
            state.take_from(port, &mut buffer);
        }
    }
}

/// Waits for frames, a change of links, or the time to deliver; returns the ports to read.
fn wait(ports: &[Port], wake: BorrowedFd<'_>, next_due: Option<u64>) -> Vec<usize> {
    let timeout = next_due.map_or(IDLE, |due| {
        Duration::from_nanos(due.saturating_sub(monotonic_ns()).saturating_sub(WATCH_NS))
    });
    let interest = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut polled: Vec<_> = ports
        .iter()
        .map(|port| interest(port.tap.as_fd()))
        .collect();
    polled.push(interest(wake));
    match ppoll(&mut polled, Some(timeout.into()), None) {
        Ok(0) | Err(_) => return Vec::new(),
        Ok(_) => {}
    }
    let mut counter = [0; 8];
    // Not ready is the usual case; what counts is that it is zero afterwards.
    best_effort(nix::unistd::read(wake, &mut counter));
    let has_frame = |fd: &PollFd<'_>| {
        fd.revents()
            .is_some_and(|events| events.contains(PollFlags::POLLIN))
    };
    let ready = polled
        .iter()
        .take(ports.len())
        .enumerate()
        .filter(|(_, fd)| has_frame(fd));
    ready.map(|(index, _)| index).collect()
}

impl State {
    fn ports(&self) -> Vec<Port> {
        let sides = self.links.iter().flat_map(|(link, pair)| {
            let side = move |(side, tap): (usize, &Arc<OwnedFd>)| Port {
                tap: Arc::clone(tap),
                link: *link,
                side,
            };
            pair.taps.iter().enumerate().map(side)
        });
        sides.collect()
    }

    fn next_due(&self) -> Option<u64> {
        self.on_their_way.peek().map(|Reverse(frame)| frame.due)
    }

    fn deliver_due(&mut self) {
        while self.next_due().is_some_and(|due| due <= monotonic_ns()) {
            let Some(Reverse(frame)) = self.on_their_way.pop() else {
                return;
            };
            // The link may be gone, and the frame with it.
            let Some(pair) = self.links.get_mut(&frame.link) else {
                continue;
            };
            if let Some(direction) = pair.directions.get_mut(frame.from) {
                direction.release();
            }
            if let Some(tap) = pair.taps.get(1 - frame.from) {
                // A TAP that is down refuses frames, as an unplugged interface would.
                best_effort(nix::unistd::write(tap, &frame.bytes));
            }
        }
    }

    fn take_from(&mut self, port: &Port, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            let Ok(length) = nix::unistd::read(port.tap.as_fd(), buffer) else {
                return;
            };
            let Some(frame) = buffer.get(..length) else {
                return;
            };
            let direction = self.links.get_mut(&port.link);
            let direction = direction.and_then(|pair| pair.directions.get_mut(port.side));
            let Some(direction) = direction else { return };
            for due in direction
                .admit(monotonic_ns(), length)
                .into_iter()
                .flatten()
            {
                let number = self.next_frame;
                self.next_frame += 1;
                let bytes = frame.to_vec();
                self.on_their_way.push(Reverse(Frame {
                    due,
                    number,
                    link: port.link,
                    from: port.side,
                    bytes,
                }));
            }
        }
    }
}
