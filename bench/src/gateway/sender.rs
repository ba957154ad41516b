//! First packets to many destinations, and what comes back.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use testbed::{Endpoint, monotonic_ns, sleep_until};

/// Packets that each destination gets at once.
pub(super) const BURST: u32 = 3;
/// UDP port that is sent to.
const PORT: u16 = 7;
/// How often the receiver looks whether it shall end.
const PATIENCE: Duration = Duration::from_millis(100);

/// Sends numbered packets from an endpoint, and notes when the first reply to each destination
/// came.
pub(super) struct Sender {
    socket: UdpSocket,
    shared: Arc<Shared>,
    receiver: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    /// From sending the first packet to the first reply, by destination.
    replies: Mutex<BTreeMap<Ipv4Addr, Duration>>,
}

impl Sender {
    /// Starts at `from`.
    pub(super) fn start(from: &Endpoint) -> Result<Self> {
        let open = || UdpSocket::bind(SocketAddr::new(from.eids[0], 0));
        let socket = from.namespace().run(open)?.context("open a UDP socket")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let shared = Arc::<Shared>::default();
        let (theirs, reader) = (Arc::clone(&shared), socket.try_clone()?);
        let receiver = thread::spawn(move || theirs.receive(&reader));
        Ok(Self {
            socket,
            shared,
            receiver: Some(receiver),
        })
    }

    /// Sends a burst to `destination`.
    pub(super) fn burst(&self, destination: Ipv4Addr) {
        let sent = monotonic_ns();
        for number in 0..BURST {
            let mut packet = number.to_be_bytes().to_vec();
            packet.extend(sent.to_be_bytes());
            // What the agent refuses comes back as an error of the next packet: it is lost, and
            // counted as such because nothing comes back.
            drop(self.socket.send_to(&packet, (destination, PORT)));
        }
    }

    /// Sends bursts to `destinations`, so many in a second.
    pub(super) fn bursts(&self, destinations: impl Iterator<Item = Ipv4Addr>, per_second: u32) {
        let start = monotonic_ns();
        for (number, destination) in (0..).zip(destinations) {
            sleep_until(start + number * 1_000_000_000 / u64::from(per_second));
            self.burst(destination);
        }
    }

    /// How long the first reply of `destination` took, if there was one.
    pub(super) fn reply(&self, destination: Ipv4Addr) -> Option<Duration> {
        self.shared.replies().get(&destination).copied()
    }

    /// Waits until there were `count` replies, or `patience` is over.
    pub(super) fn wait_for(&self, count: usize, patience: Duration) {
        let patience = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let until = monotonic_ns().saturating_add(patience);
        while self.shared.replies().len() < count && monotonic_ns() < until {
            testbed::sleep(PATIENCE);
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(receiver) = self.receiver.take() {
            drop(receiver.join());
        }
    }
}

impl Shared {
    fn replies(&self) -> std::sync::MutexGuard<'_, BTreeMap<Ipv4Addr, Duration>> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, socket: &UdpSocket) -> io::Result<()> {
        let mut buffer = [0; 64];
        while !self.ended.load(Ordering::Relaxed) {
            // Timeouts, and ICMP errors about other destinations.
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            let packet = buffer.get(4..length).unwrap_or_default();
            if let (Some(sent), IpAddr::V4(from)) = (packet.first_chunk(), from.ip()) {
                let took = monotonic_ns().saturating_sub(u64::from_be_bytes(*sent));
                let mut replies = self.replies();
                replies
                    .entry(from)
                    .or_insert_with(|| Duration::from_nanos(took));
            }
        }
        Ok(())
    }
}
