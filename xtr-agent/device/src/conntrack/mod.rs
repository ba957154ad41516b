//! Which connections does the kernel translate, and how do they come from one host to another?
//!
//! A translated connection lives in the connection tracking of the host that translates it: which
//! address and port the far end sees, and whose they are. Entries are read, made and deleted by
//! ctnetlink, in the network namespace that the socket was opened in.

mod attributes;
mod message;

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::error::DeviceError;
use crate::netlink::NetlinkSocket;
use crate::netns::{self, NetNs};
use message::{Kind, Request};

/// A connection whose source address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Its protocol, and how far it is.
    pub state: FlowState,
    /// Who has begun it, by the own address.
    pub source: SocketAddr,
    /// Whom it is with.
    pub destination: SocketAddr,
    /// What the far end takes the source for.
    pub translated: SocketAddr,
    /// How long it lasts if nothing more comes, seconds.
    pub timeout_s: u32,
    /// Whether the far end has answered.
    pub answered: bool,
    /// Whether it is one that must not give way to new ones.
    pub assured: bool,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowState {
    /// Of UDP, which has no states.
    Udp,
    /// Of TCP.
    Tcp(TcpState),
}

/// What connection tracking knows of a TCP connection; of pairs, what the source sends comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpState {
    /// `enum tcp_conntrack` of the kernel.
    pub state: u8,
    /// Shift counts of the windows.
    pub window_scales: [u8; 2],
    /// `IP_CT_TCP_FLAG_*` of the kernel.
    pub flags: [u8; 2],
}

/// What makes two entries the same connection: protocol, source, destination and what the far end sees.
pub type FlowKey = (u8, SocketAddr, SocketAddr, SocketAddr);

impl Flow {
    /// Returns what does not change while it lasts.
    #[must_use]
    pub const fn key(&self) -> FlowKey {
        let protocol = self.state.protocol();
        (protocol, self.source, self.destination, self.translated)
    }

    /// Whether something may still be said in it.
    #[must_use]
    pub const fn is_alive(&self) -> bool {
        match self.state {
            FlowState::Udp => true,
            FlowState::Tcp(tcp) => tcp.state < TCP_TIME_WAIT,
        }
    }
}

impl FlowState {
    /// Returns the number of the protocol.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        match self {
            Self::Udp => UDP,
            Self::Tcp(_) => TCP,
        }
    }
}

/// Protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// From this state on the kernel only waits for a TCP connection to be forgotten.
const TCP_TIME_WAIT: u8 = 7;

/// What became of a connection that was to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It is there now, or was already.
    There,
    /// What the far end sees belongs to another connection here.
    Taken,
}

/// Access to connection tracking.
#[derive(Debug)]
pub struct Conntrack {
    socket: NetlinkSocket,
}

impl Conntrack {
    /// Opens it in `netns`; `None`: in the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel has no ctnetlink, or CAP_NET_ADMIN is missing.
    pub fn open(netns: Option<&NetNs>) -> Result<Self, DeviceError> {
        netns::inside(netns, || {
            let socket = NetlinkSocket::open(NETLINK_NETFILTER)
                .map_err(|error| DeviceError::system(OPENING, CONNTRACK, error))?;
            Ok(Self { socket })
        })
    }

    /// Lists connections whose source is translated and that `wanted` accepts, at most `most`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn translated(
        &mut self,
        most: usize,
        mut wanted: impl FnMut(&Flow) -> bool,
    ) -> io::Result<Vec<Flow>> {
        let mut flows = Vec::new();
        for family in [Family::V4, Family::V6] {
            let request = Request::new(Kind::Get, family, Vec::new());
            self.socket.query(request, NLM_F_DUMP, |answer: Request| {
                let Some(flow) = attributes::read(&answer.attributes) else {
                    return;
                };
                if flows.len() < most && flow.translated != flow.source && wanted(&flow) {
                    flows.push(flow);
                }
            })?;
        }
        Ok(flows)
    }

    /// Enters a connection as one that is under way, with windows that are not checked: nobody has seen
    /// its packets here. What was known here of the same ends gives way to it, and so does what came from
    /// the far end before it was known whose that is.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&mut self, flow: &Flow) -> io::Result<Entered> {
        for _ in 0..ENTERING {
            if self.create(flow)? {
                return Ok(Entered::There);
            }
            let in_the_way = match self.find(flow)? {
                Some(there) => Some(there),
                None => self.unknown_of(flow)?,
            };
            let Some(in_the_way) = in_the_way else {
                break;
            };
            self.delete(&in_the_way)?;
        }
        Ok(Entered::Taken)
    }

    /// Looks for what a packet from the far end of `flow` has left that was nobody's here.
    fn unknown_of(&mut self, flow: &Flow) -> io::Result<Option<Flow>> {
        let unknown = Flow {
            source: flow.destination,
            destination: flow.translated,
            translated: flow.destination,
            ..*flow
        };
        let there = self.find(&unknown)?;
        Ok(there.filter(|there| there.key() == unknown.key()))
    }

    /// Makes an entry; returns whether there was none in its way.
    fn create(&mut self, flow: &Flow) -> io::Result<bool> {
        let family = Family::of(flow.source.ip());
        let request = Request::new(Kind::New, family, attributes::entry(flow));
        match self.socket.execute(request, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Looks for the connection between the ends of `flow`.
    fn find(&mut self, flow: &Flow) -> io::Result<Option<Flow>> {
        let family = Family::of(flow.source.ip());
        let request = Request::new(Kind::Get, family, attributes::ends(flow));
        let mut found = None;
        let asked = self.socket.query(request, 0, |answer: Request| {
            found = attributes::read(&answer.attributes);
        });
        match asked {
            Ok(()) => Ok(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a connection, if it is there as it is here; returns whether it was.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete(&mut self, flow: &Flow) -> io::Result<bool> {
        if self
            .find(flow)?
            .is_none_or(|there| there.key() != flow.key())
        {
            return Ok(false);
        }
        let family = Family::of(flow.source.ip());
        let request = Request::new(Kind::Delete, family, attributes::ends(flow));
        match self.socket.execute(request, 0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// An address family, as `nfgenmsg` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// How often it is tried to enter a connection: its own ends and those of an unknown one may be in the
/// way, one after the other.
const ENTERING: usize = 3;
const OPENING: &str = "opening";
const CONNTRACK: &str = "connection tracking";
