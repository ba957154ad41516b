//! Thousands of far ends in one thread.
//!
//! Each is the agent's own core with WireGuard tunnels of its own, at an address of its own, and
//! sends back what reaches its EID. They register, are told of whoever wants to talk to them, and
//! shake hands like any other agent; only interfaces and routes they have none. So a daemon meets
//! as many peers as a busy gateway has, on one machine.

mod inner;
mod member;
mod socket;
mod stream;
mod tunnel;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use lisp_proto::{Nonce, PublicKey, Timestamp};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand::SeedableRng;
use rand::rngs::StdRng;
use xtr_agent::agent::Input;

use crate::clock::{monotonic_ns, sleep, wall_ns};
use crate::error::{Doing, TestbedError};
use crate::topology::Host;
pub use member::Arrival;
pub(crate) use member::Directory;
use member::{Enrolment, Member};
pub use socket::Datagram;
use socket::ManyAddresses;
pub use stream::CrowdStream;
use stream::Sending;
pub use tunnel::{Identity, Outbox, Tunnel};

/// Addresses of the members on the underlay (RFC 2544).
pub(crate) const UNDERLAY: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15);
/// What lives at them.
const EIDS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 64, 0, 0), 10);
/// Their addresses inside the tunnels to the map server.
const CONTROL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd4c, 1, 0, 1, 0, 0, 0, 0), 64);
/// Destinations that they would look up.
const OVERLAY: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8);
/// UDP port of both tunnels of every member.
const PORT: u16 = 51_821;
/// Most members, as there are addresses.
const MOST: u32 = 100_000;
/// Longest time between two looks at what is to be done.
const ROUND: Duration = Duration::from_millis(20);
/// How long members of a large crowd go on to begin, evenly: as long as a session lasts (the
/// `Rekey-After-Time` of WireGuard). Agents that were started at different times renew theirs at
/// different times; a crowd that began at once would do so at once, on one machine for all of them.
const ALL_BEGIN: Duration = Duration::from_secs(120);
/// Members that have begun and are not registered yet: one thread shakes hands for all of them, and a
/// handshake that is answered too late is begun again, and answered too late.
const BEGINNERS: usize = 64;
/// How long it takes to look after the tunnels of all members once, however busy the thread is: who
/// sends its keepalives too late is taken for dead, and every far end shakes hands anew.
const ALL_TUNNELS: Duration = Duration::from_secs(1);
/// Datagrams that are taken in before anything else is done.
const RECEIVED_AT_ONCE: usize = 256;

/// Thousands of far ends.
pub struct Crowd {
    /// Where all members are.
    host: Host,
    enrolments: Arc<Vec<Enrolment>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// What the crowd's thread and its owner share.
#[derive(Default)]
struct Shared {
    wanted: AtomicU32,
    registered: AtomicU32,
    ended: AtomicBool,
    /// What members are to send next.
    order: Mutex<Option<CrowdStream>>,
    /// Whether they still do.
    streaming: AtomicBool,
    arrivals: Mutex<Vec<Arrival>>,
}

/// The thread.
struct Runner {
    socket: ManyAddresses,
    directory: Directory,
    enrolments: Arc<Vec<Enrolment>>,
    shared: Arc<Shared>,
    members: Vec<Member>,
    /// Whom the map server has not acknowledged yet.
    unregistered: BTreeSet<usize>,
    due: BTreeSet<(Timestamp, usize)>,
    scheduled: Vec<Option<Timestamp>>,
    started_ns: u64,
    /// Whose tunnels are looked after next.
    next_tick: usize,
    next_round: u64,
    sending: Option<Sending>,
    out: Outbox,
}

impl Crowd {
    /// Draws the keys of `count` members that will be on `host`, which takes their addresses for
    /// its own.
    pub(crate) fn new(host: Host, count: u32, seed: u64) -> Result<Self, TestbedError> {
        host.namespace.netlink().add_local_prefix(UNDERLAY)?;
        let mut rng = StdRng::seed_from_u64(seed);
        let enrolments = (0..count.min(MOST)).map(|number| Enrolment::new(number, &mut rng));
        Ok(Self {
            host,
            enrolments: Arc::new(enrolments.collect()),
            shared: Arc::default(),
            thread: None,
        })
    }

    /// Key, control address and EID of every member, for the map server.
    pub(crate) fn enrolled(&self) -> impl Iterator<Item = (PublicKey, IpAddr, Ipv4Addr)> + '_ {
        self.enrolments.iter().map(|enrolment| {
            let number = enrolment.number;
            let control_address = member::control_address(number);
            let eid = member::eid(number);
            (enrolment.control_key(), control_address.into(), eid)
        })
    }

    /// Starts the thread, without any member yet.
    pub(crate) fn start(&mut self, directory: Directory) -> Result<(), TestbedError> {
        let socket = self.host.namespace.run(|| ManyAddresses::open(PORT))?;
        let mut runner = Runner {
            socket: socket.doing("open the socket of", "the crowd")?,
            directory,
            enrolments: Arc::clone(&self.enrolments),
            shared: Arc::clone(&self.shared),
            members: Vec::new(),
            unregistered: BTreeSet::new(),
            due: BTreeSet::new(),
            scheduled: Vec::new(),
            started_ns: monotonic_ns(),
            next_tick: 0,
            next_round: 0,
            sending: None,
            out: Outbox::new(),
        };
        let thread = thread::Builder::new().name("crowd".into());
        let thread = thread.spawn(move || runner.run());
        self.thread = Some(thread.doing("start", "the crowd")?);
        Ok(())
    }

    /// Lets the first `count` members register, and waits until the map server has acknowledged
    /// all of them.
    ///
    /// # Errors
    ///
    /// When that takes longer than `patience`, when there are not so many, or when the thread has
    /// failed.
    pub fn register(&mut self, count: u32, patience: Duration) -> Result<(), TestbedError> {
        if usize::try_from(count).is_ok_and(|count| count > self.enrolments.len()) {
            return Err(TestbedError::Unexpected("the crowd is smaller than that"));
        }
        self.shared.wanted.fetch_max(count, Ordering::Relaxed);
        let until = monotonic_ns().saturating_add(crate::clock::nanos(patience));
        while self.shared.registered.load(Ordering::Relaxed) < count {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                self.stop()?;
            }
            if monotonic_ns() > until || self.thread.is_none() {
                return Err(TestbedError::Unexpected("the crowd did not register"));
            }
            sleep(ROUND);
        }
        Ok(())
    }

    /// What lives at a member.
    #[must_use]
    pub fn eid(number: u32) -> Ipv4Addr {
        member::eid(number)
    }

    /// Takes out what arrived at members since the last call, in order of arrival.
    pub fn arrivals(&self) -> Vec<Arrival> {
        let mut arrivals = self.shared.arrivals.lock();
        let arrivals = arrivals.as_mut().unwrap_or_else(|error| error.get_mut());
        std::mem::take(arrivals)
    }

    /// Ends the thread.
    ///
    /// # Errors
    ///
    /// When it failed before.
    pub fn stop(&mut self) -> Result<(), TestbedError> {
        self.shared.ended.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let panicked = || Err(io::Error::other("it panicked"));
        thread
            .join()
            .unwrap_or_else(|_| panicked())
            .doing("run", "the crowd")
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        crate::error::best_effort(self.stop());
    }
}

impl Runner {
    fn run(&mut self) -> io::Result<()> {
        while !self.shared.ended.load(Ordering::Relaxed) {
            self.wait()?;
            for _ in 0..RECEIVED_AT_ONCE {
                let Some(datagram) = self.socket.receive()? else {
                    break;
                };
                self.receive(&datagram);
            }
            self.send_on();
            self.look_after_agents();
            let now = self.now();
            if now.0 >= self.next_round {
                let late = Duration::from_nanos(now.0 - self.next_round);
                self.next_round = now.0 + crate::clock::nanos(ROUND);
                self.begin();
                self.look_after_tunnels(ROUND + late);
            }
            for datagram in self.out.drain(..) {
                match self.socket.send(&datagram) {
                    // The buffer is full: what a congested network would do.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    sent => sent?,
                }
            }
        }
        Ok(())
    }

    /// Lets members send what they are to send by now.
    fn send_on(&mut self) {
        let order = self.shared.order.lock();
        if let Some(stream) = order.unwrap_or_else(PoisonError::into_inner).take() {
            self.sending = Some(Sending::new(stream));
        }
        let now = self.now();
        let Some(sending) = &mut self.sending else {
            return;
        };
        let senders = sending.go_on(now, &mut self.members, &mut self.out);
        if sending.next_ns().is_none() {
            self.sending = None;
            self.shared.streaming.store(false, Ordering::Relaxed);
        }
        for number in senders {
            self.looked_after(number);
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(monotonic_ns() - self.started_ns)
    }

    fn wait(&self) -> io::Result<()> {
        let now = self.now().0;
        let next = self.due.first().map_or(u64::MAX, |(at, _)| at.0);
        let send = self.sending.as_ref().and_then(Sending::next_ns);
        let send = send.map_or(u64::MAX, |at| at.saturating_sub(self.started_ns));
        let next = next.min(self.next_round).min(send);
        let wait = Duration::from_nanos(next.saturating_sub(now));
        let milliseconds = wait.min(ROUND).as_micros().div_ceil(1_000);
        let mut waits = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::ZERO);
        match poll(&mut waits, timeout) {
            Err(nix::errno::Errno::EINTR) => Ok(()),
            ready => ready.map(|_| ()).map_err(io::Error::from),
        }
    }

    fn receive(&mut self, datagram: &Datagram) {
        let first = UNDERLAY.addr().to_bits() + 1;
        let number = datagram.own.to_bits().checked_sub(first);
        let number = number.and_then(|number| usize::try_from(number).ok());
        let now = self.now();
        let Some((number, member)) =
            number.and_then(|number| Some((number, self.members.get_mut(number)?)))
        else {
            return;
        };
        if let Some(arrival) = member.receive(now, datagram, &mut self.out) {
            let arrivals = &self.shared.arrivals;
            let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            arrivals.push(arrival);
        }
        self.looked_after(number);
    }

    /// Lets more members begin, if more are wanted.
    fn begin(&mut self) {
        let now = self.now();
        let wanted = self.shared.wanted.load(Ordering::Relaxed);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        for _ in 0..self.begin_at_once() {
            if self.unregistered.len() >= BEGINNERS {
                return;
            }
            let number = self.members.len();
            let enrolments = Arc::clone(&self.enrolments);
            let Some(enrolment) = enrolments.get(number).filter(|_| number < wanted) else {
                return;
            };
            // Above those of all earlier runs.
            let first_nonce = Nonce(wall_ns() / 1_000);
            let mut member = Member::new(enrolment, self.directory, first_nonce);
            member.input(now, Input::Start, &mut self.out);
            self.members.push(member);
            self.scheduled.push(None);
            self.unregistered.insert(number);
            self.looked_after(number);
        }
    }

    /// Members that begin in one round.
    fn begin_at_once(&self) -> usize {
        let rounds = ALL_BEGIN.as_millis() / ROUND.as_millis();
        let rounds = usize::try_from(rounds).unwrap_or(usize::MAX);
        self.enrolments.len().div_ceil(rounds)
    }

    fn look_after_agents(&mut self) {
        let now = self.now();
        while let Some((at, number)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            if let Some(scheduled) = self.scheduled.get_mut(number) {
                *scheduled = None;
            }
            if let Some(member) = self.members.get_mut(number) {
                member.input(now, Input::Tick, &mut self.out);
            }
            self.looked_after(number);
        }
    }

    fn look_after_tunnels(&mut self, passed: Duration) {
        let all = self.members.len();
        let [passed, whole] = [passed, ALL_TUNNELS].map(|time| time.as_millis().max(1));
        let passed = usize::try_from(passed.min(whole)).unwrap_or(1);
        let whole = usize::try_from(whole).unwrap_or(1);
        for _ in 0..all.saturating_mul(passed).div_ceil(whole) {
            self.next_tick = (self.next_tick + 1) % all;
            if let Some(member) = self.members.get_mut(self.next_tick) {
                member.tick_tunnels(&mut self.out);
            }
        }
    }

    /// Something happened to a member: notes whether it is registered, and when it is next due.
    fn looked_after(&mut self, number: usize) {
        let (Some(member), Some(scheduled)) =
            (self.members.get(number), self.scheduled.get_mut(number))
        else {
            return;
        };
        if self.unregistered.contains(&number) && member.is_registered() {
            self.unregistered.remove(&number);
            self.shared.registered.fetch_add(1, Ordering::Relaxed);
        }
        let deadline = member.deadline();
        if *scheduled != deadline {
            if let Some(at) = *scheduled {
                self.due.remove(&(at, number));
            }
            if let Some(at) = deadline {
                self.due.insert((at, number));
            }
            *scheduled = deadline;
        }
    }
}
