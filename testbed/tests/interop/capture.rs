//! The LISP control messages that a namespace sends and receives.

use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use testbed::Namespace;

use super::packet::Datagram;

/// UDP port of the LISP control plane (RFC 9301 §4).
const CONTROL_PORT: u16 = 4342;
/// All protocols, in network byte order (`ETH_P_ALL`).
const EVERYTHING: i32 = 3_u16.to_be() as i32;
const LARGEST_PACKET: usize = 65_535;
/// Time without a packet after which none is on its way.
const QUIET: Duration = Duration::from_millis(50);

/// A capture that runs until it is finished.
pub(crate) struct Capture {
    ending: Arc<AtomicBool>,
    listener: JoinHandle<Vec<Datagram>>,
}

impl Capture {
    /// Listens on all interfaces of the namespace, also those that do not exist yet.
    pub(crate) fn start(namespace: &Namespace) -> Self {
        let open = || {
            let protocol = Some(Protocol::from(EVERYTHING));
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, protocol).unwrap();
            socket.set_recv_buffer_size(8 << 20).unwrap();
            socket.set_read_timeout(Some(QUIET)).unwrap();
            socket
        };
        let socket = namespace.run(open).unwrap();
        let ending = Arc::new(AtomicBool::new(false));
        let listener = thread::spawn({
            let ending = Arc::clone(&ending);
            move || listen(socket, &ending)
        });
        Self { ending, listener }
    }

    /// Ends the capture; returns the messages in the order they passed.
    pub(crate) fn finish(self) -> Vec<Datagram> {
        self.ending.store(true, Ordering::Relaxed);
        self.listener.join().unwrap()
    }
}

fn listen(mut socket: Socket, ending: &AtomicBool) -> Vec<Datagram> {
    let mut messages = Vec::new();
    let mut packet = vec![0; LARGEST_PACKET];
    loop {
        match socket.read(&mut packet) {
            Ok(length) => {
                let datagram = Datagram::from_packet(&packet[..length]);
                messages.extend(datagram.filter(is_control));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if ending.load(Ordering::Relaxed) {
                    return messages;
                }
            }
            // An interface has gone down.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENETDOWN)),
        }
    }
}

fn is_control(datagram: &Datagram) -> bool {
    [datagram.source, datagram.destination]
        .iter()
        .any(|end| end.port() == CONTROL_PORT)
}
