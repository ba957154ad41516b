//! ICMP echoes through an interface, one at a time, without waiting for their answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, ready};

use socket2::Domain;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use crate::echo::{OPENING, SMALL_ECHO, open, reply, request};
use crate::error::DeviceError;
use crate::netns::{NetNs, inside};

/// Packets looked at in one go: others ping too, and their answers come here as well.
const AT_ONCE: usize = 64;

/// Sends echo requests of [`SMALL_ECHO`] bytes, with their IP header, through one interface. Sockets are opened with
/// the first one.
#[derive(Debug)]
pub struct Pinger {
    netns: Option<String>,
    device: String,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Pinger {
    /// One for the interface `device`, which may be in another network namespace, and need not be
    /// there yet.
    #[must_use]
    pub fn new(netns: Option<&str>, device: &str) -> Self {
        Self {
            netns: netns.map(str::to_owned),
            device: device.to_owned(),
            v4: None,
            v6: None,
        }
    }

    /// Sends an echo request with this sequence number to `to`.
    ///
    /// # Errors
    /// CAP_NET_RAW is missing, there is no such interface, or no way to `to` through it.
    pub fn send(&mut self, to: IpAddr, number: u16) -> Result<(), DeviceError> {
        let domain = domain_of(&to);
        let socket = match to {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        };
        let failed = |error| DeviceError::system(OPENING, &self.device, error);
        let socket = match socket {
            Some(socket) => socket,
            None => {
                let netns = self.netns.as_deref().map(NetNs::open).transpose()?;
                let opened = inside(netns.as_ref(), || {
                    open(&self.device, domain).map_err(failed)
                })?;
                socket.insert(opened)
            }
        };
        let header = if to.is_ipv4() { 20 } else { 40 };
        let length = SMALL_ECHO - header;
        let request = request(domain, identifier(), number.to_be_bytes(), length);
        let sent = socket.try_send_to(&request, SocketAddr::new(to, 0));
        let failed =
            |error| DeviceError::system("sending an echo through interface", &self.device, error);
        sent.map(|_| ()).map_err(failed)
    }

    /// Waits for the answer to one of them: by whom, and its sequence number.
    pub fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<(IpAddr, u16)> {
        for (socket, domain) in [(&self.v4, Domain::IPV4), (&self.v6, Domain::IPV6)] {
            if let Some(socket) = socket
                && let Poll::Ready(Some(answer)) = poll_socket(socket, domain, context)
            {
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    }
}

/// Reads from one socket until there is an answer to us; `None` when others keep us busy, or the socket
/// fails, which the next echo shows.
fn poll_socket(
    socket: &UdpSocket,
    domain: Domain,
    context: &mut Context<'_>,
) -> Poll<Option<(IpAddr, u16)>> {
    let mut bytes = [0; 256];
    for _ in 0..AT_ONCE {
        let mut buffer = ReadBuf::new(&mut bytes);
        let received: io::Result<SocketAddr> = ready!(socket.poll_recv_from(context, &mut buffer));
        let Ok(from) = received else {
            return Poll::Ready(None);
        };
        if let Some(number) = reply(domain, identifier(), buffer.filled()) {
            return Poll::Ready(Some((from.ip(), number)));
        }
    }
    // There may be more.
    context.waker().wake_by_ref();
    Poll::Ready(None)
}

const fn domain_of(address: &IpAddr) -> Domain {
    match address {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    }
}

/// What tells our echoes from those of other programs, and from those that measure round trips, which
/// add their length.
fn identifier() -> [u8; 2] {
    let identifier = (!std::process::id()).to_be_bytes();
    [identifier[2], identifier[3]]
}
