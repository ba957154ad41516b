//! How do many datagrams come and go with one call of the system?

use std::array;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

/// Datagrams per call.
pub const BATCH: usize = 64;
/// Room between the buffers of two datagrams, in bytes: they begin in different sets of the caches.
const GAP: usize = 192;
/// A full queue of the interface empties within this time, or what is to be sent is lost.
const SEND_PATIENCE_MS: u8 = 5;

/// The datagrams that one call has received. Each socket needs its own.
#[derive(Debug)]
pub struct Inbox {
    headers: MultiHeaders<SockaddrStorage>,
    buffer: Box<[u8]>,
    stride: usize,
    received: Vec<(SocketAddr, usize)>,
}

impl Inbox {
    /// Makes room for datagrams of `longest` bytes; what is longer is cut.
    #[must_use]
    pub fn new(longest: usize) -> Self {
        let stride = longest + GAP;
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            buffer: vec![0; stride * BATCH].into(),
            stride,
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Takes the datagrams in that have arrived, in place of those from the last call; returns how many
    /// there are. Does not wait.
    ///
    /// # Errors
    /// None has arrived (`WouldBlock`), or the system reports what became of one that was sent.
    pub fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        self.received.clear();
        let mut parts = self.buffer.chunks_mut(self.stride);
        let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
            array::from_fn(|_| [IoSliceMut::new(parts.next().unwrap_or_default())]);
        let fd = socket.as_fd().as_raw_fd();
        let messages = recvmmsg(
            fd,
            &mut self.headers,
            slices.iter_mut(),
            MsgFlags::MSG_DONTWAIT,
            None,
        )?;
        for message in messages {
            // A datagram from nowhere cannot be answered, but keeps its place.
            let source = message.address.as_ref().and_then(address_of);
            let source = source.unwrap_or_else(|| SocketAddr::from(([0; 4], 0)));
            self.received.push((source, message.bytes));
        }
        Ok(self.received.len())
    }

    /// Returns one of the datagrams, by its position.
    #[must_use]
    pub fn get(&self, position: usize) -> Option<(SocketAddr, &[u8])> {
        let (source, len) = self.received.get(position)?;
        let start = position * self.stride;
        Some((*source, self.buffer.get(start..start + len)?))
    }

    /// Lists the datagrams.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        (0..self.received.len()).filter_map(|position| self.get(position))
    }
}

/// Datagrams that are to be sent.
#[derive(Debug)]
pub struct Outbox {
    headers: MultiHeaders<SockaddrStorage>,
    bytes: Vec<u8>,
    datagrams: Vec<(Range<usize>, SocketAddr)>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            bytes: Vec::new(),
            datagrams: Vec::with_capacity(BATCH),
        }
    }
}

impl Outbox {
    /// Returns where the bytes of the next datagram are appended.
    pub const fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Makes one datagram to `destination` of what was appended since the last one.
    pub fn push(&mut self, destination: SocketAddr) {
        let start = self.datagrams.last().map_or(0, |(range, _)| range.end);
        self.datagrams.push((start..self.bytes.len(), destination));
    }

    /// Whether as many datagrams wait as one call sends.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.datagrams.len() >= BATCH
    }

    /// Sends all datagrams; those that the network refuses are lost, as datagrams may be. Returns how
    /// many were, and why the first one.
    pub fn send(&mut self, socket: &impl AsFd) -> Option<(usize, io::Error)> {
        let mut lost: Option<(usize, io::Error)> = None;
        let mut lose = |count: usize, error: Errno| match &mut lost {
            Some((known, _)) => *known += count,
            None => lost = Some((count, error.into())),
        };
        let fd = socket.as_fd();
        let mut done = 0;
        while let Some(rest) = self.datagrams.get(done..).filter(|rest| !rest.is_empty()) {
            match send_some(&mut self.headers, fd, &self.bytes, rest) {
                Ok(sent) => done += sent.max(1),
                Err(Errno::EAGAIN) if becomes_writable(fd) => {}
                Err(Errno::EINTR) => {}
                Err(error @ Errno::EAGAIN) => {
                    lose(rest.len(), error);
                    break;
                }
                Err(error) => {
                    lose(1, error);
                    done += 1;
                }
            }
        }
        self.bytes.clear();
        self.datagrams.clear();
        lost
    }
}

/// Sends the first datagrams of `rest`; returns how many.
fn send_some(
    headers: &mut MultiHeaders<SockaddrStorage>,
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    rest: &[(Range<usize>, SocketAddr)],
) -> nix::Result<usize> {
    let count = rest.len().min(BATCH);
    let one = |position: usize| rest.get(position.min(count.saturating_sub(1)));
    let slices: [[IoSlice<'_>; 1]; BATCH] = array::from_fn(|position| {
        let range = one(position).map_or(0..0, |(range, _)| range.clone());
        [IoSlice::new(bytes.get(range).unwrap_or_default())]
    });
    let addresses: [Option<SockaddrStorage>; BATCH] =
        array::from_fn(|position| one(position).map(|(_, address)| (*address).into()));
    let sent = sendmmsg(
        fd.as_raw_fd(),
        headers,
        slices.iter().take(count),
        addresses,
        [],
        MsgFlags::MSG_DONTWAIT,
    )?;
    Ok(sent.count())
}

fn becomes_writable(fd: BorrowedFd<'_>) -> bool {
    let mut wanted = [PollFd::new(fd, PollFlags::POLLOUT)];
    matches!(
        poll(&mut wanted, PollTimeout::from(SEND_PATIENCE_MS)),
        Ok(1..)
    )
}

fn address_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in();
    let v4 = v4.map(|it| SocketAddr::V4(SocketAddrV4::new(it.ip(), it.port())));
    v4.or_else(|| {
        let it = address.as_sockaddr_in6()?;
        let v6 = SocketAddrV6::new(it.ip(), it.port(), it.flowinfo(), it.scope_id());
        Some(SocketAddr::V6(v6))
    })
}

/// Waits until something can be received from one of `sockets`; returns `false` when the other end of
/// `stop` is closed.
///
/// # Errors
/// The system refuses to wait.
pub fn wait_for_any(sockets: &[impl AsFd], stop: &impl AsFd) -> io::Result<bool> {
    let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut fds: Vec<_> = sockets
        .iter()
        .map(|socket| wanted(socket.as_fd()))
        .collect();
    fds.push(wanted(stop.as_fd()));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let stopped = fds.last().and_then(PollFd::any);
    Ok(stopped != Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    fn numbered(number: usize) -> Vec<u8> {
        vec![u8::try_from(number).unwrap(); number * 3]
    }

    #[test]
    fn datagrams_arrive_whole_and_in_order_with_their_sources() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let one = UdpSocket::bind(address).unwrap();
            let other = UdpSocket::bind(address).unwrap();
            let to = other.local_addr().unwrap();
            let mut outbox = Outbox::default();
            let count = BATCH + 7;
            for number in 0..count {
                outbox.bytes_mut().extend(numbered(number));
                outbox.push(to);
            }
            assert!(outbox.is_full());
            assert!(outbox.send(&one).is_none());
            assert!(!outbox.is_full());
            let mut inbox = Inbox::new(2_000);
            let mut got = 0;
            for round in [BATCH, 7] {
                assert_eq!(inbox.receive(&other).unwrap(), round);
                for (source, bytes) in inbox.iter() {
                    assert_eq!(source, one.local_addr().unwrap());
                    assert_eq!(bytes, numbered(got));
                    got += 1;
                }
            }
            let error = inbox.receive(&other).unwrap_err();
            assert_eq!((got, error.kind()), (count, io::ErrorKind::WouldBlock));
            assert_eq!(inbox.iter().count(), 0);
        }
    }

    #[test]
    fn one_that_cannot_be_sent_is_lost_alone() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let mut outbox = Outbox::default();
        for destination in [to, "[::1]:9".parse().unwrap(), to] {
            outbox.bytes_mut().push(1);
            outbox.push(destination);
        }
        assert_eq!(outbox.send(&socket).map(|(lost, _)| lost), Some(1));
        assert_eq!(Inbox::new(9).receive(&socket).unwrap(), 2);
    }

    #[test]
    fn waiting_ends_when_the_other_end_is_closed() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (stop, stopper) = std::os::unix::net::UnixStream::pair().unwrap();
        socket.send_to(&[1], socket.local_addr().unwrap()).unwrap();
        let sockets = [socket];
        assert!(wait_for_any(&sockets, &stop).unwrap());
        Inbox::new(9).receive(&sockets[0]).unwrap();
        drop(stopper);
        assert!(!wait_for_any(&sockets, &stop).unwrap());
    }
}
