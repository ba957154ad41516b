//! One kept netlink socket: a request goes out, its answers and its acknowledgement come back.
//!
//! Calls are synchronous on purpose: the kernel does the whole work inside `send`, in microseconds,
//! and an interface can then be deleted where nothing can be awaited (`Drop`). A socket stays in
//! the network namespace it was opened in, whatever thread uses it later.

pub(crate) mod link;
pub(crate) mod policy;

use std::fmt::Debug;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// A netlink socket of one protocol.
#[derive(Debug)]
pub(crate) struct NetlinkSocket {
    socket: Socket,
    sequence: u32,
    reply: Vec<u8>,
}

impl NetlinkSocket {
    /// Opens a socket for `protocol` in the current network namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            reply: Vec::with_capacity(REPLY_BYTES),
        })
    }

    /// From now until what this returns is dropped, the kernel tells only what was asked for. `None`: it tells
    /// all that there is, whatever was asked for.
    pub(crate) fn strict(&mut self) -> Option<Strict<'_>> {
        let is_set = self.socket.set_netlink_get_strict_chk(true);
        is_set.is_ok().then_some(Strict(self))
    }

    /// Sends a request and waits until the kernel has done it.
    pub(crate) fn execute<M>(&mut self, message: M, flags: u16) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        self.query(message, flags, |_| {})
    }

    /// Sends a request and hands every answer to `on_answer`, over as many parts as it takes.
    pub(crate) fn query<M>(
        &mut self,
        message: M,
        flags: u16,
        mut on_answer: impl FnMut(M),
    ) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        while !self.read_part(&mut on_answer)? {}
        Ok(())
    }

    /// Reads one datagram; whether it was the last of the present request.
    fn read_part<M>(&mut self, on_answer: &mut impl FnMut(M)) -> io::Result<bool>
    where
        M: NetlinkDeserializable + Debug,
    {
        self.reply.clear();
        let length = self.socket.recv(&mut self.reply, libc::MSG_TRUNC)?;
        if length > self.reply.len() {
            return Err(invalid("an answer longer than the kernel's limit"));
        }
        let mut rest = self.reply.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<M>::deserialize(rest).map_err(invalid)?;
            let aligned = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(aligned..).unwrap_or_default();
            // What is left of a request that failed half-way.
            if message.header.sequence_number != self.sequence {
                continue;
            }
            let code = if let NetlinkPayload::InnerMessage(answer) = message.payload {
                on_answer(answer);
                continue;
            } else if let NetlinkPayload::Error(error) = message.payload {
                error.raw_code()
            } else if let NetlinkPayload::Done(done) = message.payload {
                done.code
            } else {
                continue;
            };
            return match code {
                0 => Ok(true),
                code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
            };
        }
        Ok(false)
    }
}

/// A socket whose requests are looked at closely: other requests would be refused for what they leave open.
pub(crate) struct Strict<'a>(pub(crate) &'a mut NetlinkSocket);

impl Drop for Strict<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.socket.set_netlink_get_strict_chk(false) {
            tracing::debug!(%error, "requests to the kernel are still looked at closely");
        }
    }
}

fn invalid(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

/// The kernel fills dump answers up to 32 KiB.
const REPLY_BYTES: usize = 65_536;
