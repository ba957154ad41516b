//! The UDP socket of the embedded data plane.

use std::io;

use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpTransportFactory, UdpTransportFactoryParams};
use nix::sys::socket::{setsockopt, sockopt};

/// Makes sockets that have room for what many far ends, or one that sends on all that it held, send
/// at once: with the usual 208 KiB that is 92 large packets, and more are lost.
pub(crate) struct RoomySockets(UdpSocketFactory);

impl RoomySockets {
    pub(crate) fn new() -> Self {
        Self(UdpSocketFactory {
            recv_buffer_size: Some(RECEIVE_BUFFER),
            send_buffer_size: None,
        })
    }
}

impl UdpTransportFactory for RoomySockets {
    type Send = UdpSocket;
    type Recv = UdpSocket;

    async fn bind(
        &mut self,
        params: &UdpTransportFactoryParams,
    ) -> io::Result<(Self::Send, Self::Recv)> {
        let (send, receive) = self.0.bind(params).await?;
        // Past `net.core.rmem_max`. Where that is not permitted, the factory has set what is.
        if let Err(error) = setsockopt(&receive, sockopt::RcvBufForce, &RECEIVE_BUFFER) {
            tracing::debug!(%error, "the UDP socket has a small buffer");
        }
        Ok((send, receive))
    }
}

/// Bytes, of which the kernel takes twice as many. It counts 2,304 for a large packet, so this is room
/// for the 4,096 that an agent holds for one mapping. Memory is used for what waits only.
const RECEIVE_BUFFER: usize = 8 << 20;
