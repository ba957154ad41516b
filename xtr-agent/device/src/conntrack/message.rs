//! A message of ctnetlink: nfnetlink's header, and attributes.

use std::io;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};

use super::Family;

/// What is to be done (`enum cntl_msg_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An entry is made; of an answer: there is one.
    New,
    /// Entries are read.
    Get,
    /// One is deleted.
    Delete,
}

/// A request, or an answer, whose attributes are not looked at yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    kind: Kind,
    family: Option<Family>,
    pub(super) attributes: Vec<u8>,
}

impl Request {
    pub(super) const fn new(kind: Kind, family: Family, attributes: Vec<u8>) -> Self {
        Self {
            kind,
            family: Some(family),
            attributes,
        }
    }
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        let kind = match self.kind {
            Kind::New => IPCTNL_MSG_CT_NEW,
            Kind::Get => IPCTNL_MSG_CT_GET,
            Kind::Delete => IPCTNL_MSG_CT_DELETE,
        };
        NFNL_SUBSYS_CTNETLINK << 8 | kind
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let family = match self.family {
            None => libc::AF_UNSPEC,
            Some(Family::V4) => libc::AF_INET,
            Some(Family::V6) => libc::AF_INET6,
        };
        let family = u8::try_from(family).unwrap_or(0);
        let bytes = [family, NFNETLINK_V0, 0, 0].into_iter();
        let bytes = bytes.chain(self.attributes.iter().copied());
        for (place, byte) in buffer.iter_mut().zip(bytes) {
            *place = byte;
        }
    }
}

impl NetlinkDeserializable for Request {
    type Error = io::Error;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> io::Result<Self> {
        let kind = match header.message_type & 0xff {
            IPCTNL_MSG_CT_NEW => Kind::New,
            IPCTNL_MSG_CT_GET => Kind::Get,
            IPCTNL_MSG_CT_DELETE => Kind::Delete,
            other => return Err(invalid(format!("message {other} of ctnetlink is unknown"))),
        };
        let attributes = payload.get(HEADER..);
        let attributes = attributes.ok_or_else(|| invalid("a message without a header".into()))?;
        Ok(Self {
            kind,
            family: None,
            attributes: attributes.to_vec(),
        })
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Bytes of `struct nfgenmsg`.
const HEADER: usize = 4;
const NFNETLINK_V0: u8 = 0;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
