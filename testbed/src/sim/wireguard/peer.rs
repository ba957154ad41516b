//! One peer of an interface, with the timers that WireGuard runs for it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use lisp_proto::Timestamp;

use super::session::Sessions;
use super::wire::Inner;

/// Packets that wait for a session; older ones give way.
pub(super) const STAGED: usize = 128;

/// Everything an interface knows of a peer.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) endpoint: Option<SocketAddr>,
    /// Persistent keepalive.
    pub(super) keepalive: Option<Duration>,
    /// Our initiation that waits for its response.
    pub(super) initiated: Option<Initiated>,
    /// When we last sent an initiation or a response.
    pub(super) handshake_sent: Option<Timestamp>,
    /// Repetitions of the present initiation.
    pub(super) attempts: u32,
    /// Greatest time stamp of its initiations.
    pub(super) latest_stamp: u64,
    pub(super) initiation_seen: Option<Timestamp>,
    pub(super) sessions: Sessions,
    pub(super) staged: VecDeque<Inner>,
    /// What was sent a moment ago, and when.
    pub(super) sent: VecDeque<(Timestamp, Inner)>,
    pub(super) armed: Armed,
    /// Data came while a keepalive was due already.
    pub(super) another_keepalive: bool,
    /// Whether the present session was renewed in its last minute.
    pub(super) renewed_late: bool,
    pub(super) last_handshake: Option<Timestamp>,
    /// When an initiation of ours was last answered.
    pub(super) answered: Option<Timestamp>,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
}

/// An initiation of ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Initiated {
    pub(super) index: u32,
    pub(super) ephemeral: u64,
}

/// Timers that are not started again while they run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Armed {
    pub(super) keepalive: bool,
    pub(super) new_handshake: bool,
}

/// What WireGuard waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The initiation is repeated.
    Retransmit,
    /// Data was received and nothing was sent: say that we are here.
    Keepalive,
    /// Data was sent and nothing was received: make a new session.
    NewHandshake,
    /// The persistent keepalive.
    Persistent,
}

impl Timer {
    pub(super) const ALL: [Self; 4] = [
        Self::Retransmit,
        Self::Keepalive,
        Self::NewHandshake,
        Self::Persistent,
    ];
}

/// Which implementation an interface runs on: they differ in how soon an initiation is repeated,
/// and in the clock of its time stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sim) enum Backend {
    /// The kernel's: 5 s plus up to 333 ms, and the wall clock.
    Kernel,
    /// Ours: 300 to 500 ms, and a clock that never goes back while it runs.
    Embedded,
}

impl Backend {
    /// No two handshake messages of ours are closer together than this.
    pub(super) const fn rekey_timeout(self) -> Duration {
        match self {
            Self::Kernel => Duration::from_secs(5),
            Self::Embedded => Duration::from_millis(300),
        }
    }

    /// Largest addition to the time after which an initiation is repeated.
    pub(super) const fn jitter(self) -> Duration {
        match self {
            Self::Kernel => Duration::from_millis(333),
            Self::Embedded => Duration::from_millis(200),
        }
    }

    /// Repetitions within the 90 s after which WireGuard gives up.
    pub(super) const fn attempts(self) -> u32 {
        match self {
            Self::Kernel => 18,
            Self::Embedded => 225,
        }
    }
}
