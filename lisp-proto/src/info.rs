//! Does a NAT stand between an xTR and the map server?
//!
//! Info-Request and Info-Reply are of the NAT-traversal drafts: the xTR asks, and the map server says at
//! which address and port it sees it. Both are authenticated as Map-Register and Map-Notify are.

use std::net::SocketAddr;

use crate::address::{Address, EncodedAddress};
use crate::auth::{AuthKey, AuthView};
use crate::error::DecodeError;
use crate::lcaf::{LCAF_NAT_TRAVERSAL, Lcaf};
use crate::mapping::EidPrefix;
use crate::message::{bit, flag};
use crate::reader::Reader;
use crate::types::{Nonce, Ttl};
use crate::writer::{Writer, address_len};

/// An Info-Request or Info-Reply, read in place. Its authentication data is not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info<'a> {
    /// An Info-Reply (R).
    pub reply: bool,
    /// Ties a reply to its request.
    pub nonce: Nonce,
    /// The authentication data.
    pub auth: AuthView<'a>,
    /// How long the list of RTRs is good for.
    pub ttl: Ttl,
    /// The length of the EID-prefix in bits.
    pub mask_len: u8,
    eid: EncodedAddress<'a>,
    info: EncodedAddress<'a>,
}

impl<'a> Info<'a> {
    /// Reads an Info-Request or Info-Reply.
    ///
    /// ```text
    ///  | Type 7 | R |                  reserved (27)                   |
    ///  |                          Nonce (64)                           |
    ///  | Key ID (8) | Algorithm ID (8) | Authentication Data Length (16) |
    ///  | Authentication Data ...       |           TTL (32)            |
    ///  | reserved (8) | EID mask-len (8) | EID ... | request: AFI 0; reply: LCAF 7
    /// ```
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [first, _, _, _] = reader.array("Info header")?;
        let nonce = Nonce(reader.u64("nonce")?);
        let auth = AuthView::read(reader)?;
        let ttl = Ttl::from_minutes(reader.u32("TTL")?);
        let [_, mask_len] = reader.array("EID mask-len")?;
        let (eid, address) = EncodedAddress::take_eid(reader, "EID")?;
        address.check_mask_len("EID mask-len", mask_len)?;
        let (info, _) = EncodedAddress::take(reader, "Info address", 0)?;
        reader.end()?;
        Ok(Self {
            reply: bit(first, REPLY),
            nonce,
            auth,
            ttl,
            mask_len,
            eid,
            info,
        })
    }

    /// Returns the EID-prefix of the xTR; `None` for a kind of EID that is not served.
    #[must_use]
    pub fn eid(&self) -> Option<EidPrefix> {
        self.eid.read().eid_prefix(self.mask_len)
    }

    /// Returns the EID of the xTR, of whatever kind.
    #[must_use]
    pub fn eid_address(&self) -> Address<'a> {
        self.eid.read()
    }

    /// Returns what a reply says about the NAT; nothing, or a host name, in a request.
    #[must_use]
    pub fn info_address(&self) -> Address<'a> {
        self.info.read()
    }

    /// Returns where a reply says that the xTR is seen, port 0 if only the address is known; `None` in a
    /// request, and in a reply that does not say.
    #[must_use]
    pub fn seen(&self) -> Option<SocketAddr> {
        match self.info.read() {
            Address::Lcaf(Lcaf::NatTraversal(nat)) => {
                let address = nat.global_etr.read().ip()?;
                Some(SocketAddr::new(address, nat.etr_port))
            }
            Address::None
            | Address::Ip(_)
            | Address::Mac(_)
            | Address::Name(_)
            | Address::Lcaf(_) => None,
        }
    }
}

/// Appends an Info-Request, authenticated by `key`, to `out`: at which address and port is the xTR of
/// `eid` seen?
pub fn encode_info_request(nonce: Nonce, eid: EidPrefix, key: &AuthKey, out: &mut Vec<u8>) {
    let start = out.len();
    let mut writer = Writer::new(out);
    write_header(&mut writer, false, nonce, eid, key);
    writer.no_address();
    key.sign(out, start);
}

/// Appends the answer to such an Info-Request, authenticated by `key`, to `out`: the xTR is seen at
/// `seen`. Port 0 says that only the address is known.
pub fn encode_info_reply(
    nonce: Nonce,
    eid: EidPrefix,
    seen: SocketAddr,
    key: &AuthKey,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    let mut writer = Writer::new(out);
    write_header(&mut writer, true, nonce, eid, key);
    writer.lcaf(LCAF_NAT_TRAVERSAL, 2 + 2 + address_len(seen.ip()) + 2 + 2);
    writer.u16(CONTROL_PORT);
    writer.u16(seen.port());
    writer.address(seen.ip());
    // Nothing about the map server, or an address behind the NAT, that the xTR would not know better.
    writer.no_address();
    writer.no_address();
    key.sign(out, start);
}

fn write_header(writer: &mut Writer<'_>, reply: bool, nonce: Nonce, eid: EidPrefix, key: &AuthKey) {
    writer.u8(TYPE | flag(reply, REPLY));
    writer.zeros(3);
    writer.u64(nonce.0);
    key.write_header(writer);
    // How long RTRs are good for: none are named.
    writer.u32(0);
    writer.bytes(&[0, eid.net().prefix_len()]);
    writer.eid_prefix(eid);
}

const TYPE: u8 = 0x70;
pub(crate) const REPLY: u8 = 0x08;
/// UDP port of the map server (RFC 9301 §4).
const CONTROL_PORT: u16 = 4342;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Algorithm, verify};
    use crate::hex::hex;
    use crate::message::{Message, decode};

    #[test]
    fn both_are_sent_byte_for_byte() {
        let key = AuthKey::new(1, Algorithm::None, b"");
        let mut bytes = Vec::new();
        encode_info_request(Nonce(7), eid("10.0.0.0/8"), &key, &mut bytes);
        let header = |first: &str| format!("{first}000000 {:016x} 01000000 00000000", 7);
        let expected = format!("{} 0008 0001 0a000000 0000", header("70"));
        assert_eq!(bytes, hex(&expected));
        assert_eq!(info(&bytes).seen(), None);

        bytes.clear();
        let seen = "192.0.2.1:51821".parse().unwrap();
        encode_info_reply(Nonce(7), eid("[3]fd00::1"), seen, &key, &mut bytes);
        let expected = format!(
            "{} 0080 4003 00000200 0016 00000003 0002 fd000000000000000000000000000001
             4003 00000700 000e 10f6 ca6d 0001 c0000201 0000 0000",
            header("78")
        );
        assert_eq!(bytes, hex(&expected));
        let read = info(&bytes);
        assert_eq!((read.reply, read.seen()), (true, Some(seen)));
        assert_eq!(read.eid(), Some(eid("[3]fd00::1")));
    }

    #[test]
    fn a_request_is_no_reply_whoever_sends_it_back() {
        let key = AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"secret");
        let mut bytes = Vec::new();
        encode_info_request(Nonce(7), eid("10.0.0.1"), &key, &mut bytes);
        assert!(verify(&key, &bytes).is_ok());
        bytes[0] |= REPLY;
        assert!(verify(&key, &bytes).is_err());
    }

    fn info(bytes: &[u8]) -> Info<'_> {
        match decode(bytes) {
            Ok(Message::InfoRequest(info)) => info,
            other => panic!("{other:?}"),
        }
    }

    fn eid(text: &str) -> EidPrefix {
        text.parse().unwrap()
    }
}
