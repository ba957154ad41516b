//! A TCP transfer at an even pace: does the connection live on, and how long does it stall?

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::clock::{monotonic_ns, nanos, sleep_until};
use crate::error::{Doing, TestbedError, best_effort};
use crate::namespace::Namespace;

/// A transfer over one connection; the receiver sends all that it got back.
#[derive(Clone, Copy, Debug)]
pub struct TcpProbe {
    /// Address and port that the receiver listens on and the sender connects to.
    pub destination: SocketAddr,
    /// Address to connect from; `None` leaves it to the routing table.
    pub source: Option<IpAddr>,
    /// How many pieces.
    pub count: u32,
    /// Bytes of each.
    pub piece: usize,
    /// Time from one piece to the next.
    pub interval: Duration,
    /// How long nothing comes back until the connection counts as dead.
    pub timeout: Duration,
}

/// What became of the transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpReport {
    /// Bytes sent.
    pub sent: u64,
    /// Bytes that came back.
    pub returned: u64,
    /// Whether all of them came back, and the connection was closed in order.
    pub survived: bool,
    /// The longest time in which nothing came back.
    pub longest_gap: Duration,
    /// The address that the receiver saw the connection come from.
    pub seen_as: Option<IpAddr>,
}

impl TcpProbe {
    /// Connects from one namespace to another and reports; returns when the connection has ended.
    ///
    /// # Errors
    ///
    /// When the receiver cannot listen, or no connection is made within the timeout.
    pub fn run(&self, from: &Namespace, to: &Namespace) -> Result<TcpReport, TestbedError> {
        let listener = to.run(|| self.listen())?;
        let listener = listener.doing("listen on", self.destination)?;
        thread::scope(|scope| {
            let echo = scope.spawn(|| self.echo(&listener));
            let connected = from.run(|| self.connect())?;
            let sent = connected.and_then(|stream| self.transfer(&stream));
            let seen_as = echo.join().unwrap_or_default();
            let report = sent.doing("connect to", self.destination)?;
            Ok(TcpReport { seen_as, ..report })
        })
    }

    fn listen(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.destination), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(self.destination))?;
        socket.listen(1)?;
        socket.set_read_timeout(Some(self.timeout))?;
        Ok(socket)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.destination), Type::STREAM, None)?;
        if let Some(source) = self.source {
            socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
        }
        socket.connect_timeout(&SockAddr::from(self.destination), self.timeout)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }

    /// Sends back what comes on the first connection; returns where that is from.
    fn echo(&self, listener: &Socket) -> Option<IpAddr> {
        let (socket, from) = listener.accept().ok()?;
        let from = from.as_socket()?.ip();
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true).ok()?;
        stream.set_read_timeout(Some(self.timeout)).ok()?;
        let mut buffer = [0; 65_536];
        while let Ok(length) = stream.read(&mut buffer)
            && length > 0
        {
            let piece = buffer.get(..length).unwrap_or_default();
            if stream.write_all(piece).is_err() {
                break;
            }
        }
        Some(from)
    }

    fn transfer(&self, stream: &TcpStream) -> io::Result<TcpReport> {
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(thread::scope(|scope| {
            let receiving = scope.spawn(|| receive(stream));
            let sent = self.send(stream);
            let (returned, longest_gap, in_order) = receiving.join().unwrap_or_default();
            TcpReport {
                sent,
                returned,
                survived: in_order && returned == sent && sent == self.wanted(),
                longest_gap,
                seen_as: None,
            }
        }))
    }

    /// Bytes in all.
    fn wanted(&self) -> u64 {
        u64::from(self.count).saturating_mul(u64::try_from(self.piece).unwrap_or(u64::MAX))
    }

    /// Sends all pieces, and that there are no more; returns how many bytes that were.
    fn send(&self, mut stream: &TcpStream) -> u64 {
        let piece = vec![0x4c; self.piece];
        let start = monotonic_ns();
        let mut sent = 0;
        for number in 0..self.count {
            sleep_until(start.saturating_add(nanos(self.interval) * u64::from(number)));
            if stream.write_all(&piece).is_err() {
                return sent;
            }
            sent += u64::try_from(self.piece).unwrap_or(u64::MAX);
        }
        // A connection that is dead by now has been noticed by the receiving side.
        best_effort(stream.shutdown(Shutdown::Write));
        sent
    }
}

/// Reads what comes back: how much, the longest pause, and whether it ended in order.
fn receive(mut stream: &TcpStream) -> (u64, Duration, bool) {
    let mut buffer = [0; 65_536];
    let (mut returned, mut longest) = (0, 0);
    let mut last = monotonic_ns();
    loop {
        let read = stream.read(&mut buffer);
        let now = monotonic_ns();
        match read {
            Ok(0) => return (returned, Duration::from_nanos(longest), true),
            Ok(length) => {
                longest = longest.max(now.saturating_sub(last));
                last = now;
                returned += u64::try_from(length).unwrap_or(u64::MAX);
            }
            Err(_) => {
                longest = longest.max(now.saturating_sub(last));
                return (returned, Duration::from_nanos(longest), false);
            }
        }
    }
}
