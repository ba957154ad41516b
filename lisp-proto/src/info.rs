//! Does a NAT stand between an xTR and the map server?
//!
//! Info-Request and Info-Reply are of the NAT-traversal drafts only: read to be reported, never
//! sent.

use crate::address::{Address, EncodedAddress};
use crate::auth::AuthView;
use crate::error::DecodeError;
use crate::message::bit;
use crate::reader::Reader;
use crate::types::{Nonce, Ttl};

/// An Info-Request or Info-Reply, read in place. Its authentication data is not checked.
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
}

const REPLY: u8 = 0x08;
