//! ICMP echoes through an interface, one at a time, without waiting for their answers.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::task::{Context, Poll, ready};

use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{Domain, SockRef};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use crate::echo::{OPENING, SMALL_ECHO, open, reply, request};
use crate::error::DeviceError;
use crate::netns::{NetNs, inside};

/// Packets looked at in one go: others ping too, and their answers come here as well.
const AT_ONCE: usize = 64;

/// Echoes whose answers are awaited; of more the latest.
const AWAITED: usize = 256;

/// Sends echo requests of [`SMALL_ECHO`] bytes, with their IP header, through one interface. A socket is
/// opened with the first one, and anew after one that could not be sent: the interface may be another
/// one of the same name by then.
#[derive(Debug)]
pub struct Pinger {
    netns: Option<String>,
    device: String,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    /// What was sent and not answered, the latest one last.
    awaited: VecDeque<(IpAddr, u16)>,
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
            awaited: VecDeque::new(),
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
        let opened = match socket {
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
        // Past tokio, which does not know at first that there is room.
        let sent = SockRef::from(&*opened).send_to(&request, &SocketAddr::new(to, 0).into());
        if let Err(error) = sent {
            *socket = None;
            let doing = "sending an echo through interface";
            return Err(DeviceError::system(doing, &self.device, error));
        }
        if self.awaited.len() >= AWAITED {
            self.awaited.pop_front();
        }
        self.awaited.push_back((to, number));
        Ok(())
    }

    /// Waits for the answer to one of them: by whom, and its sequence number. Each is answered once.
    pub fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<(IpAddr, u16)> {
        let Self {
            v4, v6, awaited, ..
        } = self;
        for (socket, domain) in [(v4, Domain::IPV4), (v6, Domain::IPV6)] {
            let Some(opened) = socket else {
                continue;
            };
            match poll_socket(opened, domain, awaited, context) {
                Poll::Ready(Ok(answer)) => return Poll::Ready(answer),
                // The next echo shows whether there is an interface.
                Poll::Ready(Err(_)) => *socket = None,
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }

    /// The answer to one of them that has come by now, even if nobody has been told yet that something has.
    pub fn answered(&mut self) -> Option<(IpAddr, u16)> {
        let Self {
            v4, v6, awaited, ..
        } = self;
        let opened = [(v4, Domain::IPV4), (v6, Domain::IPV6)].into_iter();
        let mut opened = opened.filter_map(|(socket, domain)| Some((socket.as_ref()?, domain)));
        opened.find_map(|(socket, domain)| waiting(socket, domain, awaited))
    }
}

/// Reads from one socket past tokio, which knows of what has come only after it has asked the kernel.
fn waiting(
    socket: &UdpSocket,
    domain: Domain,
    awaited: &mut VecDeque<(IpAddr, u16)>,
) -> Option<(IpAddr, u16)> {
    let mut bytes = [0; 256];
    for _ in 0..AT_ONCE {
        // An error is told to whoever waits for the next answer.
        let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut bytes).ok()?;
        let Some(from) = from.and_then(|from| address_of(&from)) else {
            continue;
        };
        let packet = bytes.get(..length).unwrap_or_default();
        let answer = answer_in(packet, from, domain, awaited);
        if answer.is_some() {
            return answer;
        }
    }
    None
}

fn address_of(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|from| from.ip().into());
    v4.or_else(|| from.as_sockaddr_in6().map(|from| from.ip().into()))
}

/// What `packet` answers, if that is awaited.
fn answer_in(
    packet: &[u8],
    from: IpAddr,
    domain: Domain,
    awaited: &mut VecDeque<(IpAddr, u16)>,
) -> Option<(IpAddr, u16)> {
    let number = reply(domain, identifier(), packet)?;
    let place = awaited.iter().position(|it| *it == (from, number))?;
    awaited.remove(place)
}

/// Reads from one socket until there is an answer to us. Whatever else comes, however much, keeps
/// nobody else waiting.
fn poll_socket(
    socket: &UdpSocket,
    domain: Domain,
    awaited: &mut VecDeque<(IpAddr, u16)>,
    context: &mut Context<'_>,
) -> Poll<io::Result<(IpAddr, u16)>> {
    let mut bytes = [0; 256];
    for _ in 0..AT_ONCE {
        let mut buffer = ReadBuf::new(&mut bytes);
        let from = ready!(socket.poll_recv_from(context, &mut buffer))?.ip();
        if let Some(answer) = answer_in(buffer.filled(), from, domain, awaited) {
            return Poll::Ready(Ok(answer));
        }
    }
    // There may be more, when others have had their turn.
    context.waker().wake_by_ref();
    Poll::Pending
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
