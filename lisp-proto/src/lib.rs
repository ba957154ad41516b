//! LISP wire format (RFC 9301, 8060, 9437) and the vocabulary of the crates above.

pub mod error;
pub mod time;
pub mod types;

pub use error::{AuthError, DecodeError, EncodeError, ParseError};
pub use time::{Deadlines, Timestamp};
pub use types::{
    Action, EidPrefix, InstanceId, Locator, Nonce, PublicKey, Record, RequestedEid, Rloc, SiteId,
    Ttl, XtrId,
};
