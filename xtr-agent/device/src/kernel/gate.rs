//! Keeps packets from entering the interface for a moment, in the kernel.
//!
//! A new route takes packets at once, while older ones still wait in the TUN. Those shall leave
//! first, so what the route takes waits in a queueing discipline that can be shut (`plug`).

use std::io;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::NetlinkSocket;

/// The gate in front of one interface; open unless it was shut.
#[derive(Debug)]
pub(crate) struct Gate {
    socket: NetlinkSocket,
    index: i32,
}

impl Gate {
    /// Puts a gate in front of the interface `index`, which must not be up yet: changing the
    /// discipline of an interface in use drops packets. One that is there already is used: its
    /// process may have ended while it was shut.
    ///
    /// Returns `None` when the kernel has no such discipline.
    pub(crate) fn put(index: u32) -> io::Result<Option<Self>> {
        let mut gate = Self {
            socket: NetlinkSocket::open(NETLINK_ROUTE)?,
            index: i32::try_from(index).map_err(io::Error::other)?,
        };
        match gate.execute(LIMIT, NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            result => result?,
        }
        gate.open()?;
        Ok(Some(gate))
    }

    /// Lets all that waits pass, in order, and what comes later after it.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        self.execute(RELEASE_INDEFINITELY, 0)
    }

    /// Makes packets wait from now on; some milliseconds at most, or they are dropped.
    pub(crate) fn shut(&mut self) -> io::Result<()> {
        self.execute(BUFFER, 0)
    }

    /// Sends a `struct tc_plug_qopt` (linux/pkt_sched.h).
    fn execute(&mut self, action: u32, flags: u16) -> io::Result<()> {
        let options = [action.to_ne_bytes(), LIMIT_BYTES.to_ne_bytes()].concat();
        let mut message = TcMessage::with_index(self.index);
        message.header.handle = TcHandle::from(HANDLE);
        message.header.parent = TcHandle::ROOT;
        message.attributes = vec![
            TcAttribute::Kind("plug".to_owned()),
            TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options)),
        ];
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.socket.execute(request, flags)
    }
}

const BUFFER: u32 = 0;
const RELEASE_INDEFINITELY: u32 = 2;
const LIMIT: u32 = 3;
/// What may wait, in bytes: 20 ms of 12 Gbit/s.
const LIMIT_BYTES: u32 = 32 << 20;
/// `1:`, as `tc` would write it.
const HANDLE: u32 = 0x0001_0000;
const TCA_OPTIONS: u16 = 2;
