//! The control port, inside the tunnel and in the plain.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tracing::debug;
use wg_device::bind_control_socket;

use crate::server::Via;

/// Datagrams taken from one socket before the others, and the timers, have their turn.
const BATCH: usize = 256;
/// Room for the largest UDP payload, in bytes.
const DATAGRAM: usize = 65_536;

/// All sockets of the control port.
#[derive(Debug)]
pub(super) struct Sockets {
    sockets: Vec<(Via, UdpSocket)>,
    buffer: Vec<u8>,
}

impl Sockets {
    pub(super) fn new() -> Self {
        Self {
            sockets: Vec::new(),
            buffer: vec![0; DATAGRAM],
        }
    }

    /// Opens one more socket; with `device`, it hears what comes through that interface only.
    /// Returns its address.
    ///
    /// # Errors
    /// The address is not there or in use, or the system refuses.
    pub(super) fn bind(
        &mut self,
        via: Via,
        address: SocketAddr,
        device: Option<&str>,
    ) -> io::Result<SocketAddr> {
        let socket = bind_control_socket(address, device, 0)?;
        let local = socket.local_addr()?;
        self.sockets.push((via, socket));
        Ok(local)
    }

    /// Waits until a datagram can be received.
    pub(super) async fn readable(&self) {
        poll_fn(|context| {
            let mut ready = self
                .sockets
                .iter()
                .filter(|(_, socket)| socket.poll_recv_ready(context).is_ready());
            if ready.next().is_some() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Gives the datagrams that have arrived to `take`, a bounded number of them. Returns whether
    /// there are no more.
    ///
    /// # Errors
    /// Those of `take`, at the first one.
    pub(super) fn drain<E>(
        &mut self,
        mut take: impl FnMut(SocketAddr, Via, &[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut drained = true;
        for (via, socket) in &self.sockets {
            let mut left = BATCH;
            while left > 0 {
                left -= 1;
                match socket.try_recv_from(&mut self.buffer) {
                    Ok((len, src)) => take(src, *via, self.buffer.get(..len).unwrap_or_default())?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Of an earlier datagram to somewhere that is not reachable.
                    Err(error) => debug!(%error, "receive"),
                }
            }
            drained &= left > 0;
        }
        Ok(drained)
    }

    /// Sends a datagram; what the network refuses is lost, as datagrams may be.
    pub(super) async fn send(&self, dst: SocketAddr, via: Via, bytes: &Bytes) {
        let mut sockets = self.sockets.iter().filter(|(other, socket)| {
            let local = socket.local_addr();
            *other == via && local.is_ok_and(|local| local.is_ipv4() == dst.is_ipv4())
        });
        let Some((_, socket)) = sockets.next() else {
            return;
        };
        if let Err(error) = socket.send_to(bytes, dst).await {
            debug!(%error, %dst, "send");
        }
    }
}
