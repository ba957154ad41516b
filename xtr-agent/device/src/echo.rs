//! Round trips through an interface, measured by ICMP echo (RFC 792, RFC 4443).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::error::DeviceError;
use crate::netns::{NetNs, inside};

/// Bytes of the smallest echo request that is sent: the longer IP header, that of ICMP, and eight more.
pub const SMALL_ECHO: u16 = 40 + HEADER + 8;

/// Sends one echo request to each of `targets` through the interface `device`, and returns the
/// round trips of those that answer within `wait`. At most 65,536 targets are asked. The interface
/// may be in another network namespace. Each request is a packet of `bytes`, at least
/// [`SMALL_ECHO`], with its IP header; those of IPv4 are not fragmented on this host.
///
/// # Errors
/// A raw socket cannot be opened: CAP_NET_RAW is missing, or there is no such interface.
pub async fn round_trips(
    netns: Option<&NetNs>,
    device: &str,
    targets: &[IpAddr],
    bytes: u16,
    wait: Duration,
) -> Result<BTreeMap<IpAddr, Duration>, DeviceError> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = targets.iter().copied().partition(IpAddr::is_ipv4);
    let open = |domain, targets: &[IpAddr]| match targets {
        [] => Ok(None),
        _ => inside(netns, || {
            let opened = open(device, domain);
            opened.map_err(|error| DeviceError::system(OPENING, device, error))
        })
        .map(Some),
    };
    let sockets = (open(Domain::IPV4, &v4)?, open(Domain::IPV6, &v6)?);
    let end = now() + wait;
    let (v4, v6) = tokio::join!(
        exchange(sockets.0, Domain::IPV4, &v4, bytes.saturating_sub(20), end),
        exchange(sockets.1, Domain::IPV6, &v6, bytes.saturating_sub(40), end)
    );
    let failed = |error| DeviceError::system(ASKING, device, error);
    let mut answered = v4.map_err(failed)?;
    answered.extend(v6.map_err(failed)?);
    Ok(answered)
}

async fn exchange(
    socket: Option<UdpSocket>,
    domain: Domain,
    targets: &[IpAddr],
    length: u16,
    end: Instant,
) -> io::Result<BTreeMap<IpAddr, Duration>> {
    let mut answered = BTreeMap::new();
    let Some(socket) = socket else {
        return Ok(answered);
    };
    // Other programs ping too, and so do we in another size: requests carry a number of ours.
    let identifier = std::process::id().wrapping_add(length.into()).to_be_bytes();
    let identifier = [identifier[2], identifier[3]];
    let mut sent = BTreeMap::new();
    for (sequence, target) in (0..=u16::MAX).zip(targets) {
        let request = request(domain, identifier, sequence.to_be_bytes(), length);
        // One that cannot be sent is one that is not answered.
        if socket
            .send_to(&request, SocketAddr::new(*target, 0))
            .await
            .is_ok()
        {
            sent.insert(sequence, (*target, now()));
        }
    }
    let mut buffer = [0; 256];
    while answered.len() < sent.len() {
        let Ok(received) = timeout_at(end, socket.recv_from(&mut buffer)).await else {
            break;
        };
        let (length, source) = received?;
        let packet = buffer.get(..length).unwrap_or_default();
        let row = reply(domain, identifier, packet).and_then(|sequence| sent.get(&sequence));
        if let Some((target, at)) = row
            && source.ip() == *target
        {
            answered
                .entry(*target)
                .or_insert_with(|| now().saturating_duration_since(*at));
        }
    }
    Ok(answered)
}

pub(crate) fn open(device: &str, domain: Domain) -> io::Result<UdpSocket> {
    let protocol = match domain {
        Domain::IPV4 => Protocol::ICMPV4,
        _ => Protocol::ICMPV6,
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    only_replies(&socket, domain)?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.set_nonblocking(true)?;
    // It sends to an address and receives with one: all that is asked of it here.
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

/// Lets a raw socket receive echo replies and nothing else.
#[expect(unsafe_code, reason = "socket2 does not know these options")]
fn only_replies(socket: &Socket, domain: Domain) -> io::Result<()> {
    // A bit for each type that is kept out.
    let mut kept_out = [u32::MAX; 8];
    let (level, option, words, reply) = match domain {
        Domain::IPV4 => (SOL_RAW, ICMP_FILTER, 1, 0),
        _ => (libc::IPPROTO_ICMPV6, ICMP6_FILTER, kept_out.len(), 129_u32),
    };
    let word = usize::try_from(reply / u32::BITS).unwrap_or_default();
    if let Some(word) = kept_out.get_mut(word) {
        *word &= !(1 << (reply % u32::BITS));
    }
    let length = libc::socklen_t::try_from(words * size_of::<u32>()).map_err(io::Error::other)?;
    // SAFETY: the option's value is that many words of an array that outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            kept_out.as_ptr().cast(),
            length,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Options of raw sockets, from `linux/icmp.h` and `linux/icmpv6.h`.
const SOL_RAW: libc::c_int = 255;
const ICMP_FILTER: libc::c_int = 1;
const ICMP6_FILTER: libc::c_int = 1;

pub(crate) const OPENING: &str = "opening a raw socket on interface";
const ASKING: &str = "receiving echo replies on interface";

/// Bytes of an ICMP header.
const HEADER: u16 = 8;

/// An echo request of at least so many bytes, and as many as it needs.
pub(crate) fn request(
    domain: Domain,
    identifier: [u8; 2],
    sequence: [u8; 2],
    length: u16,
) -> Vec<u8> {
    let kind = if domain == Domain::IPV4 { 8 } else { 128 };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(identifier);
    message.extend(sequence);
    message.extend(*b"lispwire");
    let length = usize::from(length) & !1;
    message.resize(length.max(message.len()), 0);
    // For IPv6 the kernel sums up, which knows the addresses.
    if domain == Domain::IPV4 {
        let sum = checksum(&message).to_be_bytes();
        if let Some(field) = message.get_mut(2..4) {
            field.copy_from_slice(&sum);
        }
    }
    message
}

/// The sequence number, when the packet is a reply to a request of ours.
pub(crate) fn reply(domain: Domain, identifier: [u8; 2], packet: &[u8]) -> Option<u16> {
    let (message, kind) = if domain == Domain::IPV4 {
        // Raw IPv4 sockets hand over the header too.
        let header = usize::from(packet.first()? & 0x0f) * 4;
        (packet.get(header..)?, 0)
    } else {
        (packet, 129)
    };
    let sequence = [*message.get(6)?, *message.get(7)?];
    let ours = message.first() == Some(&kind) && message.get(4..6) == Some(&identifier);
    ours.then_some(u16::from_be_bytes(sequence))
}

/// The internet checksum of an even number of bytes (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks().0.iter();
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "round trips are measured here")]
fn now() -> Instant {
    Instant::now()
}
