//! What the embedded data plane reads and writes: the TUN interface, and packets injected before it.

use std::io;
use std::iter;
use std::sync::Arc;

use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use tokio::sync::{mpsc, watch};

/// Writes decrypted packets to the TUN interface.
pub(crate) struct TunWriter(pub(crate) Arc<tun::AsyncDevice>);

impl IpSend for TunWriter {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        self.0.send(&packet.into_bytes()).await?;
        Ok(())
    }
}

/// Reads packets to encrypt: injected ones first, then those of the TUN interface.
pub(crate) struct TunReader {
    pub(crate) tun: Arc<tun::AsyncDevice>,
    pub(crate) injected: mpsc::Receiver<Packet<Ip>>,
    pub(crate) paused: watch::Receiver<bool>,
    pub(crate) mtu: u16,
    /// A packet read from the interface that has not passed the checks yet.
    pub(crate) held: Option<Packet<Ip>>,
}

impl TunReader {
    /// Returns the next packet in order.
    ///
    /// Every packet of the interface is held first and then passes the same two checks again: a
    /// packet written to the interface after an injection, or after a pause, finds both in effect.
    async fn next(&mut self, pool: &PacketBufPool) -> io::Result<Packet<Ip>> {
        loop {
            if let Ok(packet) = self.injected.try_recv() {
                return Ok(packet);
            }
            let paused = *self.paused.borrow_and_update();
            if !paused && let Some(packet) = self.held.take() {
                return Ok(packet);
            }
            // Closed channels mean the interface is being closed.
            tokio::select! {
                biased;
                packet = self.injected.recv() => return packet.ok_or_else(closed),
                changed = self.paused.changed() => changed.map_err(|_| closed())?,
                packet = read_ip(&self.tun, pool), if !paused => self.held = Some(packet?),
            }
        }
    }
}

impl IpRecv for TunReader {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        self.next(pool).await.map(iter::once)
    }

    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::new(self.mtu)
    }
}

/// Reads one IP packet, passing over anything else. Cancelling loses nothing.
async fn read_ip(tun: &tun::AsyncDevice, pool: &PacketBufPool) -> io::Result<Packet<Ip>> {
    loop {
        let mut packet = pool.get();
        let length = tun.recv(&mut packet).await?;
        packet.truncate(length);
        if let Ok(packet) = packet.try_into_ip() {
            return Ok(packet);
        }
    }
}

fn closed() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
