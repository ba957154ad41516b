//! How are fields appended to a message?

use std::net::IpAddr;

use crate::address::{AFI_IPV4, AFI_IPV6, AFI_LCAF, AFI_NONE};
use crate::lcaf::LCAF_INSTANCE_ID;
use crate::mapping::{EidPrefix, InstanceId};
use crate::types::{SiteId, XtrId};

/// Appends big-endian fields to the bytes of one message.
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    pub(crate) const fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Appends `count` zero bytes.
    pub(crate) fn zeros(&mut self, count: usize) {
        self.out.resize(self.out.len() + count, 0);
    }

    /// Writes AFI 0: no address.
    pub(crate) fn no_address(&mut self) {
        self.u16(AFI_NONE);
    }

    /// Writes an address behind its AFI.
    pub(crate) fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => {
                self.u16(AFI_IPV4);
                self.bytes(&v4.octets());
            }
            IpAddr::V6(v6) => {
                self.u16(AFI_IPV6);
                self.bytes(&v6.octets());
            }
        }
    }

    /// Writes an EID, inside an Instance-ID LCAF unless the instance is 0 (RFC 8060 §4.1).
    pub(crate) fn eid(&mut self, iid: InstanceId, address: IpAddr) {
        if iid != InstanceId::default() {
            let length = 4 + address_len(address);
            self.lcaf(LCAF_INSTANCE_ID, length);
            self.u32(iid.0);
        }
        self.address(address);
    }

    /// Writes the prefix of an EID-prefix; its length has a field of its own.
    pub(crate) fn eid_prefix(&mut self, eid: EidPrefix) {
        self.eid(eid.iid(), eid.net().network());
    }

    /// Writes the AFI and header of an LCAF whose body takes `length` bytes (RFC 8060 §3).
    pub(crate) fn lcaf(&mut self, kind: u8, length: u16) {
        self.u16(AFI_LCAF);
        self.bytes(&[0, 0, kind, 0]);
        self.u16(length);
    }

    /// Writes the identity that ends a Map-Register or a subscription.
    pub(crate) fn ids(&mut self, ids: Option<(XtrId, SiteId)>) {
        if let Some((xtr, site)) = ids {
            self.bytes(&xtr.0);
            self.bytes(&site.0);
        }
    }
}

/// Returns how many bytes an address takes with its AFI.
pub(crate) const fn address_len(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => 6,
        IpAddr::V6(_) => 18,
    }
}
