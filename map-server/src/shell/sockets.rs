//! The control port, inside the tunnel and in the plain, as the thread uses it that owns the state machine.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;

use tokio::net::UdpSocket;
use wg_device::{bind_control_socket, bind_shared_sockets, set_receive_room};

use super::posts::Post;
use crate::server::Via;

/// What may wait in a socket, in bytes: some thousand Map-Registers that come at once.
const RECEIVE_ROOM: usize = 8 << 20;

/// All sockets of one thread.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    pub(super) posts: Vec<Post<UdpSocket>>,
}

/// Sockets of other threads at the same address.
type Others = Vec<std::net::UdpSocket>;

impl Sockets {
    /// Opens a socket that hears what comes through the interface `device` only.
    ///
    /// # Errors
    /// The address is not there or in use, or the system refuses.
    pub(super) fn bind_tunnel(&mut self, address: SocketAddr, device: &str) -> io::Result<()> {
        let socket = bind_control_socket(address, Some(device), 0)?;
        self.add(Via::Tunnel, socket)
    }

    /// Opens a socket in the plain for each of `count` threads; returns those of the others.
    ///
    /// # Errors
    /// The address is not there or in use, or the system refuses.
    pub(super) fn bind_plain(&mut self, address: SocketAddr, count: usize) -> io::Result<Others> {
        let mut sockets = bind_shared_sockets(address, count)?;
        for other in &sockets {
            set_receive_room(other, RECEIVE_ROOM)?;
        }
        if let Some(own) = sockets.pop() {
            self.add(Via::Plain, UdpSocket::from_std(own)?)?;
        }
        Ok(sockets)
    }

    fn add(&mut self, via: Via, socket: UdpSocket) -> io::Result<()> {
        set_receive_room(&socket, RECEIVE_ROOM)?;
        let local = socket.local_addr()?;
        self.posts.push(Post::new(via, local, socket));
        Ok(())
    }

    /// Returns the address of the socket that was opened last, or `wanted`.
    pub(super) fn last_address(&self, wanted: SocketAddr) -> SocketAddr {
        self.posts.last().map_or(wanted, |post| post.local)
    }

    /// Waits until a datagram can be received.
    pub(super) async fn readable(&self) {
        poll_fn(|context| {
            let mut ready = self.posts.iter();
            if ready.any(|post| post.socket().poll_recv_ready(context).is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Takes a datagram to be sent with others.
    pub(super) fn post(&mut self, dst: SocketAddr, via: Via, bytes: &[u8]) {
        let mut posts = self.posts.iter_mut();
        let post = posts.find(|it| it.via == via && it.local.is_ipv4() == dst.is_ipv4());
        if let Some(post) = post {
            post.post(dst, bytes);
        }
    }

    /// Sends what is to be sent.
    pub(super) fn send(&mut self) {
        self.posts.iter_mut().for_each(Post::send);
    }
}
