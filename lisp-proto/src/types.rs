//! Who speaks, with which key, about what, and until when?
//!
//! Small value types with no invalid value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::error::ParseError;

/// Ties a message to its answer, and orders Map-Registers (RFC 9301 §5.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub u64);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Nonce {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Ok(Self(u64::from_be_bytes(parse_hex(text)?)))
    }
}

/// Identifies an xTR within its site (RFC 9301 §5.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct XtrId(pub [u8; 16]);

impl fmt::Display for XtrId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl FromStr for XtrId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Ok(Self(parse_hex(text)?))
    }
}

/// Identifies a site, the group of xTRs that register together (RFC 9301 §5.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub [u8; 8]);

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl FromStr for SiteId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Ok(Self(parse_hex(text)?))
    }
}

/// An X25519 public key, written in base64 as `wg` shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Returns the first 8 base64 characters: what logs show.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 44];
        let len = BASE64.encode_slice(self.0, &mut text);
        let text = len.ok().and_then(|len| text.get(..len));
        let text = text.and_then(|text| str::from_utf8(text).ok());
        f.write_str(text.ok_or(fmt::Error)?)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bytes = BASE64.decode(text).map_err(|_| ParseError::PublicKey)?;
        let bytes = bytes.try_into().map_err(|_| ParseError::PublicKey)?;
        Ok(Self(bytes))
    }
}

/// The lifetime of a record in minutes (RFC 9301 §5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ttl(u32);

impl Ttl {
    /// Takes the mapping out of use at once.
    pub const WITHDRAW: Self = Self(0);

    /// Builds a lifetime; 0xffffffff leaves the choice to the receiver.
    #[must_use]
    pub const fn from_minutes(minutes: u32) -> Self {
        Self(minutes)
    }

    /// Returns the lifetime in minutes, as on the wire.
    #[must_use]
    pub const fn minutes(self) -> u32 {
        self.0
    }

    /// Whether the record removes its mapping.
    #[must_use]
    pub const fn is_withdrawal(self) -> bool {
        self.0 == Self::WITHDRAW.0
    }

    /// Returns the lifetime, or `None` when the receiver decides (0xffffffff).
    #[must_use]
    pub fn duration(self) -> Option<Duration> {
        (self.0 != u32::MAX).then(|| Duration::from_secs(u64::from(self.0) * 60))
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Reads exactly `2 * N` hexadecimal digits.
fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseError> {
    let error = ParseError::Hex { digits: N * 2 };
    if text.len() != N * 2 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(error);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = str::from_utf8(pair).map_err(|_| error)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| error)?;
    }
    Ok(bytes)
}

/// Stores a type in the form that its `Display` writes and its `FromStr` reads.
macro_rules! serde_as_string {
    ($($name:ty),+) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
pub(crate) use serde_as_string;

serde_as_string!(Nonce, XtrId, SiteId, PublicKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_written_in_hex() {
        let site = SiteId([0, 1, 2, 3, 4, 5, 6, 0xff]);
        assert_eq!(site.to_string(), "00010203040506ff");
        assert_eq!("00010203040506FF".parse(), Ok(site));
        assert_eq!(Nonce(0x1f).to_string(), "000000000000001f");
        assert_eq!("000000000000001f".parse(), Ok(Nonce(0x1f)));
        for bad in ["", "0001020304050", "00010203040506f+", "0001020304050é"] {
            assert_eq!(bad.parse::<SiteId>(), Err(ParseError::Hex { digits: 16 }));
        }
    }

    #[test]
    fn public_keys_are_written_as_wg_shows_them() {
        // RFC 7748 §6.1, Alice.
        let text = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        let key: PublicKey = text.parse().unwrap();
        assert_eq!(key.0[..4], [0x85, 0x20, 0xf0, 0x09]);
        assert_eq!(key.to_string(), text);
        assert_eq!(key.short(), "hSDwCYkw");
        assert_eq!(serde_json::to_string(&key).unwrap(), format!("\"{text}\""));
        assert_eq!(
            serde_json::from_str::<PublicKey>(&format!("\"{text}\"")).unwrap(),
            key
        );
        for bad in ["", "hSDwCYkw", &text[..43], &format!("{text}A")] {
            assert_eq!(bad.parse::<PublicKey>(), Err(ParseError::PublicKey));
        }
    }

    #[test]
    fn lifetimes_are_minutes_and_the_largest_leaves_the_choice() {
        assert_eq!(
            Ttl::from_minutes(3).duration(),
            Some(Duration::from_secs(180))
        );
        assert_eq!(Ttl::WITHDRAW.duration(), Some(Duration::ZERO));
        assert!(Ttl::WITHDRAW.is_withdrawal());
        assert_eq!(Ttl::from_minutes(u32::MAX).duration(), None);
    }
}
