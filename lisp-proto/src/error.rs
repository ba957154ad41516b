//! Why was a message, a text or a signature refused?

use thiserror::Error;

/// Why bytes are not a LISP control message that this crate reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The datagram, or the structure around the field, ends too early.
    #[error("{field}: {missing} bytes missing")]
    Truncated {
        /// The field that is cut.
        field: &'static str,
        /// How many bytes more it needs.
        missing: usize,
    },
    /// A message type that RFC 9301 reserves, or that is not spoken here.
    #[error("message type {0} is not supported")]
    UnsupportedType(u8),
    /// An address family that is unknown, or not possible in this place (RFC 9301 §5.1).
    #[error("{field}: unknown address family {afi}")]
    UnknownAfi {
        /// The field that holds the address.
        field: &'static str,
        /// The address family identifier.
        afi: u16,
    },
    /// An EID of an LCAF type that is unknown (RFC 9306 §3).
    #[error("{field}: unknown LCAF type {kind}")]
    UnknownLcaf {
        /// The field that holds the address.
        field: &'static str,
        /// The LCAF type.
        kind: u8,
    },
    /// A Vendor Specific LCAF: no vendor is known (RFC 9306 §4).
    #[error("vendor specific LCAF")]
    VendorSpecific,
    /// Bytes are left over inside an LCAF of fixed shape.
    #[error("LCAF type {kind}: {excess} bytes too long")]
    LcafLength {
        /// The LCAF type.
        kind: u8,
        /// How many bytes are left over.
        excess: usize,
    },
    /// LCAFs are nested deeper than this crate follows.
    #[error("LCAFs nested too deep")]
    TooDeep,
    /// A prefix length beyond the length of its address.
    #[error("{field}: prefix length {mask_len} exceeds the address")]
    MaskLength {
        /// The field that holds the prefix.
        field: &'static str,
        /// The prefix length.
        mask_len: u8,
    },
    /// Bytes follow the end of the message.
    #[error("{0} bytes after the end of the message")]
    TrailingBytes(usize),
    /// LISP-SEC data (RFC 9303) stands between the ECM header and the packet inside.
    #[error("LISP-SEC is not supported")]
    SecurityUnsupported,
    /// The packet inside an ECM is not what RFC 9301 §5.8 asks for.
    #[error("encapsulated packet: bad {field}")]
    InnerPacket {
        /// The header field that is wrong.
        field: &'static str,
    },
}

/// Why a message cannot be written: a caller's list is too long for its count field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// More than 255 records or requested EIDs.
    #[error("{0} records do not fit a message")]
    TooManyRecords(usize),
    /// More than 255 locators in one record.
    #[error("{0} locators do not fit a record")]
    TooManyLocators(usize),
    /// More than 32 ITR-RLOCs.
    #[error("{0} ITR-RLOCs do not fit a Map-Request")]
    TooManyItrRlocs(usize),
    /// The inner source and destination of an ECM are of different address families.
    #[error("inner source and destination are of different families")]
    MixedFamilies,
    /// The message does not fit an IP packet.
    #[error("{0} bytes do not fit a packet")]
    TooLong(usize),
}

/// Why authentication data does not vouch for a message. Nothing may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthError {
    /// Of a type that carries no authentication data, or cut inside its header.
    #[error("not an authenticated message")]
    NotAuthenticated,
    /// The message names another algorithm than the key.
    #[error("algorithm {0} does not fit the key")]
    WrongAlgorithm(u8),
    /// No length that the algorithm allows: a shorter tag would be a weaker check.
    #[error("authentication data of {0} bytes")]
    TagLength(usize),
    /// The authentication data is wrong.
    #[error("wrong authentication data")]
    Mismatch,
}

/// Why a text does not name a value of the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Not an EID-prefix.
    #[error("expected an EID-prefix such as 10.0.0.0/8, fd00::1 or [7]10.0.0.0/8")]
    EidPrefix,
    /// Not hexadecimal digits of the right number.
    #[error("expected {digits} hexadecimal digits")]
    Hex {
        /// How many digits there must be.
        digits: usize,
    },
    /// Not a base64 X25519 key.
    #[error("expected a public key: 44 base64 characters, as `wg pubkey` prints")]
    PublicKey,
}
