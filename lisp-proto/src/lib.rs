//! LISP control-plane wire format (RFC 9301, 8060, 9437) and its vocabulary.
//!
//! | type | message | read | write |
//! | --- | --- | --- | --- |
//! | 1 | Map-Request | [`MapRequest`] | [`encode_map_request`] |
//! | 2 | Map-Reply | [`MapReply`] | [`encode_map_reply`] |
//! | 3 | Map-Register | [`MapRegister`] | [`encode_map_register`] |
//! | 4 | Map-Notify | [`MapNotify`] | [`encode_map_notify`] |
//! | 5 | Map-Notify-Ack | [`MapNotify`] | [`encode_map_notify_ack`] |
//! | 6 | Map-Referral | [`MapReferral`] | |
//! | 7 | Info-Request, Info-Reply | [`Info`] | [`encode_info_request`], [`encode_info_reply`] |
//! | 8 | Encapsulated Control Message | [`Ecm`] | [`encode_ecm`] |
//!
//! Reading starts at [`decode`]: it checks a datagram to the last byte, and returns views that
//! borrow from it. Writing takes owned [`Record`]s and appends to a `Vec<u8>`. What a Map-Register
//! or Map-Notify, or an Info-Reply, says counts only after [`verify`].
//!
//! No IO, no clock, no randomness, no state.

mod address;
mod auth;
mod ecm;
mod error;
mod form_a;
mod gap;
mod handoff;
#[cfg(test)]
mod hex;
mod info;
mod inner_packet;
mod lcaf;
mod lcaf_body;
mod locator;
mod mac;
mod mapping;
mod message;
mod notify;
mod reader;
mod record;
mod referral;
mod register;
mod reply;
mod request;
mod time;
mod types;
mod wireguard;
mod writer;

pub use address::{Address, EncodedAddress};
pub use auth::{Algorithm, AuthKey, AuthView, VerifiedTag, verify};
pub use ecm::{Ecm, encode_ecm};
pub use error::{AuthError, DecodeError, EncodeError, ParseError};
pub use gap::Gap;
pub use handoff::{Connections, Handoff};
pub use info::{Info, encode_info_reply, encode_info_request};
pub use inner_packet::{decode_udp, encode_udp};
pub use lcaf::Lcaf;
pub use lcaf_body::{AfiList, ExplicitPath, Hop, NatTraversal, ReplicationList, SecurityKey};
pub use locator::LocatorView;
pub use mapping::{Action, EidPrefix, InstanceId, Locator, Record, RequestedEid, Rloc};
pub use message::{Message, decode};
pub use notify::{MapNotify, NotifyParams, encode_map_notify, encode_map_notify_ack};
pub use record::RecordView;
pub use referral::MapReferral;
pub use register::{
    MapRegister, RegisterFlags, RegisterParams, encode_map_register, first_registered,
};
pub use reply::{MapReply, ReplyParams, encode_map_reply};
pub use request::{MapRequest, RequestFlags, RequestParams, RequestedAddress, encode_map_request};
pub use time::{Deadlines, Timestamp};
pub use types::{Nonce, PublicKey, SiteId, Ttl, XtrId};
