//! The sockets of the generator, each with a port of its own: a server sees many sources.
//!
//! Sending costs it little: messages of the same length that follow each other leave in one piece, which the
//! kernel takes apart. So it is faster than any server, and what is measured is the server.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use wg_device::{Inbox, set_receive_room};

use super::RECEIVE_ROOM;

/// Longest answer in bytes.
const ANSWER: usize = 65_536;
/// The kernel takes so many messages in one piece, and so many bytes.
const SEGMENTS: usize = 64;
const PIECE: usize = 65_000;

/// All sockets.
pub(in super::super) struct Lines {
    lines: Vec<Line>,
    inbox: Inbox,
    epoll: Epoll,
    ready: Vec<EpollEvent>,
    /// Not connected: Open Overlay Router may answer from another of its addresses.
    server: SockaddrStorage,
}

struct Line {
    socket: UdpSocket,
    local: SocketAddr,
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

impl Lines {
    /// Opens `count` sockets at `source`, towards `server`.
    pub(in super::super) fn open(source: IpAddr, count: usize, server: SocketAddr) -> Result<Self> {
        Self::open_at(&vec![SocketAddr::new(source, 0); count], server)
    }

    /// Opens one socket at each of `sources`, towards `server`; the system chooses a port where it is 0.
    pub(in super::super) fn open_at(sources: &[SocketAddr], server: SocketAddr) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut lines = Vec::with_capacity(sources.len());
        for (number, source) in sources.iter().enumerate() {
            let socket = UdpSocket::bind(source).context("open a socket")?;
            socket.set_nonblocking(true)?;
            set_receive_room(&socket, RECEIVE_ROOM)?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(number)?);
            epoll.add(&socket, event)?;
            lines.push(Line {
                local: socket.local_addr()?,
                socket,
                bytes: Vec::new(),
                lengths: Vec::new(),
            });
        }
        Ok(Self {
            ready: vec![EpollEvent::empty(); sources.len()],
            lines,
            inbox: Inbox::new(ANSWER),
            epoll,
            server: server.into(),
        })
    }

    /// Lists their addresses.
    pub(in super::super) fn locals(&self) -> impl Iterator<Item = SocketAddr> {
        self.lines.iter().map(|line| line.local)
    }

    /// Returns how many there are.
    pub(in super::super) const fn len(&self) -> usize {
        self.lines.len()
    }

    /// Lets `write` append a message to what socket number `line` sends next, told its address; returns how
    /// long it is.
    pub(in super::super) fn write(
        &mut self,
        line: usize,
        write: impl FnOnce(SocketAddr, &mut Vec<u8>) -> Result<()>,
    ) -> Result<usize> {
        let line = self.lines.get_mut(line).context("no such socket")?;
        let before = line.bytes.len();
        write(line.local, &mut line.bytes)?;
        let length = line.bytes.len() - before;
        line.lengths.push(length);
        Ok(length)
    }

    /// Sends what was written to socket number `line`; what the network refuses is lost.
    pub(in super::super) fn send(&mut self, line: usize) -> Result<()> {
        match self.lines.get_mut(line) {
            Some(line) => line.send(&self.server),
            None => Ok(()),
        }
    }

    /// Hands each answer that has arrived to `take`.
    pub(in super::super) fn hear(&mut self, mut take: impl FnMut(&[u8])) -> Result<()> {
        let count = self.epoll.wait(&mut self.ready, EpollTimeout::ZERO)?;
        for event in self.ready.iter().take(count) {
            let line = self.lines.get(usize::try_from(event.data())?);
            let line = line.context("no such socket")?;
            if self.inbox.receive(&line.socket).is_ok() {
                self.inbox.iter().for_each(|(_, answer)| take(answer));
            }
        }
        Ok(())
    }
}

impl Line {
    fn send(&mut self, server: &SockaddrStorage) -> Result<()> {
        let mut bytes = self.bytes.as_slice();
        let mut lengths = self.lengths.as_slice();
        while let Some((first, _)) = lengths.split_first() {
            let most = SEGMENTS.min((PIECE / (*first).max(1)).max(1));
            let same = lengths.iter().take(most).take_while(|it| *it == first);
            let count = same.count();
            let (Some((piece, others)), Some(rest)) =
                (bytes.split_at_checked(count * first), lengths.get(count..))
            else {
                break;
            };
            let segment = u16::try_from(*first).context("a message is too long")?;
            let segments = [ControlMessage::UdpGsoSegments(&segment)];
            let control = match count {
                1 => &[],
                _ => segments.as_slice(),
            };
            let fd = self.socket.as_raw_fd();
            let slice = [IoSlice::new(piece)];
            match sendmsg(fd, &slice, control, MsgFlags::empty(), Some(server)) {
                // Nobody listens yet, or there is no room: as if it had been lost on the way.
                Ok(_) | Err(Errno::ECONNREFUSED | Errno::EAGAIN | Errno::ENOBUFS) => {}
                Err(error) => return Err(error).context("send"),
            }
            (bytes, lengths) = (others, rest);
        }
        self.bytes.clear();
        self.lengths.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_one_by_one_and_answers_come_back() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let mut lines = Lines::open(address.ip(), 3, address).unwrap();
        let lengths = [9, 9, 9, 4, 9, 9];
        for length in lengths {
            lines
                .write(1, |_, out| {
                    out.resize(out.len() + length, 7);
                    Ok(())
                })
                .unwrap();
        }
        lines.send(1).unwrap();
        let mut buffer = [0; 100];
        for length in lengths {
            let (got, source) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(got, length);
            server.send_to(&buffer[..got], source).unwrap();
        }
        let mut heard = Vec::new();
        while heard.len() < lengths.len() {
            lines.hear(|answer| heard.push(answer.len())).unwrap();
        }
        assert_eq!(heard, lengths);
    }
}
