//! Does this message come from someone who knows the key? (RFC 9301 §5.6, §5.7)

use std::fmt;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::error::{AuthError, DecodeError};
use crate::mac::{KeyState, Signed, TAG_OFFSET};
use crate::reader::Reader;
use crate::writer::Writer;

/// How messages are authenticated (RFC 9301 §12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// 0: not at all.
    #[serde(rename = "none")]
    None,
    /// 1: HMAC-SHA-1-96-None, for old gear only.
    #[serde(rename = "sha1")]
    Sha1_96,
    /// 2: HMAC-SHA-256-128-None.
    #[serde(rename = "sha256")]
    Sha256_128,
    /// 3: HMAC-SHA256-128+HKDF-SHA256, a key of its own for every message.
    #[serde(rename = "sha256-hkdf")]
    Sha256_128Hkdf,
}

impl Algorithm {
    /// Returns the number on the wire.
    #[must_use]
    pub const fn id(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Sha1_96 => 1,
            Self::Sha256_128 => 2,
            Self::Sha256_128Hkdf => 3,
        }
    }

    /// Returns the length of the tag by the RFC, in bytes.
    const fn rfc_tag_len(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Sha1_96 => 12,
            Self::Sha256_128 | Self::Sha256_128Hkdf => 16,
        }
    }

    /// Returns the length of the tag that deployed gear sends instead, in bytes: not truncated.
    const fn full_tag_len(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Sha1_96 => 20,
            Self::Sha256_128 => 32,
            Self::Sha256_128Hkdf => 16,
        }
    }
}

/// The authentication data of a message, not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthView<'a> {
    /// Which of the shared keys was used.
    pub key_id: u8,
    /// The number of the algorithm.
    pub algorithm_id: u8,
    /// The message authentication code.
    pub tag: &'a [u8],
}

impl<'a> AuthView<'a> {
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [key_id, algorithm_id] = reader.array("key id")?;
        let length = reader.u16("authentication data length")?;
        let tag = reader.bytes("authentication data", length.into())?;
        Ok(Self {
            key_id,
            algorithm_id,
            tag,
        })
    }
}

/// A shared key, ready to sign and to verify.
#[derive(Clone)]
pub struct AuthKey {
    key_id: u8,
    algorithm: Algorithm,
    full_tag: bool,
    state: KeyState,
}

/// Proof that a message is authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedTag {
    /// The length of the tag in bytes.
    pub tag_len: usize,
    /// The tag is longer than the RFC's: the peer expects such tags as well.
    pub full: bool,
}

impl AuthKey {
    /// Builds a key from a shared secret, which `Algorithm::None` ignores.
    #[must_use]
    pub fn new(key_id: u8, algorithm: Algorithm, secret: &[u8]) -> Self {
        Self {
            key_id,
            algorithm,
            full_tag: false,
            state: KeyState::new(algorithm, secret),
        }
    }

    /// Chooses what is sent: the tags of the RFC, or full ones of 20 (SHA-1) and 32 bytes
    /// (SHA-256) for old gear. Both are accepted.
    #[must_use]
    pub const fn with_tag_len(mut self, full: bool) -> Self {
        self.full_tag = full;
        self
    }

    /// Returns the number both sides know the key by.
    #[must_use]
    pub const fn key_id(&self) -> u8 {
        self.key_id
    }

    /// Returns the algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Writes key id, algorithm id and a zeroed tag.
    pub(crate) fn write_header(&self, writer: &mut Writer<'_>) {
        let tag_len = self.tag_len();
        writer.bytes(&[self.key_id, self.algorithm.id(), 0, tag_len]);
        writer.zeros(tag_len.into());
    }

    /// Fills in the tag of the message that starts at `start`.
    pub(crate) fn sign(&self, out: &mut [u8], start: usize) {
        let Some(message) = out.get_mut(start..) else {
            return;
        };
        let Some(signed) = Signed::split(message) else {
            return;
        };
        let (tag, tag_len) = (self.state.compute(&signed), signed.tag.len());
        let field = message.get_mut(TAG_OFFSET..TAG_OFFSET + tag_len);
        if let (Some(field), Some(tag)) = (field, tag.get(..tag_len)) {
            field.copy_from_slice(tag);
        }
    }

    const fn tag_len(&self) -> u8 {
        match self.full_tag {
            true => self.algorithm.full_tag_len(),
            false => self.algorithm.rfc_tag_len(),
        }
    }
}

/// Keys are the same when they are known by the same number and sign alike.
impl PartialEq for AuthKey {
    fn eq(&self, other: &Self) -> bool {
        // A Map-Register of nothing, with a tag of no length.
        let mut message = [0; TAG_OFFSET];
        if let Some(first) = message.first_mut() {
            *first = 0x30;
        }
        let signed = Signed::split(&message);
        let sign = |key: &Self| signed.as_ref().map(|signed| key.state.compute(signed));
        let form = |key: &Self| (key.key_id, key.algorithm, key.full_tag);
        form(self) == form(other) && sign(self) == sign(other)
    }
}

impl Eq for AuthKey {}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthKey")
            .field("key_id", &self.key_id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// Checks the authentication data of a Map-Register, Map-Notify, Map-Notify-Ack, Info-Request or
/// Info-Reply, in constant time. The key id is not looked at: it served to find the key.
///
/// # Errors
///
/// When the message is of another kind, names another algorithm, or its tag is wrong, or of a
/// length that the algorithm does not have. Nothing may be answered then.
pub fn verify(key: &AuthKey, datagram: &[u8]) -> Result<VerifiedTag, AuthError> {
    let signed = Signed::split(datagram).ok_or(AuthError::NotAuthenticated)?;
    if signed.algorithm_id != key.algorithm.id() {
        return Err(AuthError::WrongAlgorithm(signed.algorithm_id));
    }
    let tag_len = signed.tag.len();
    let short = usize::from(key.algorithm.rfc_tag_len());
    let full = usize::from(key.algorithm.full_tag_len());
    if tag_len != short && tag_len != full {
        return Err(AuthError::TagLength(tag_len));
    }
    let expected = key.state.compute(&signed);
    let expected = expected.get(..tag_len).unwrap_or_default();
    if !bool::from(expected.ct_eq(signed.tag)) {
        return Err(AuthError::Mismatch);
    }
    Ok(VerifiedTag {
        tag_len,
        full: tag_len > short,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::{RegisterParams, encode_map_register};

    const ALL: [Algorithm; 4] = [
        Algorithm::None,
        Algorithm::Sha1_96,
        Algorithm::Sha256_128,
        Algorithm::Sha256_128Hkdf,
    ];

    #[test]
    fn what_is_signed_verifies_with_the_same_key_only() {
        for algorithm in ALL {
            let bytes = register(&AuthKey::new(1, algorithm, b"secret"));
            assert!(verify(&AuthKey::new(2, algorithm, b"secret"), &bytes).is_ok());
            let other = verify(&AuthKey::new(1, algorithm, b"secret "), &bytes);
            assert_eq!(other.is_ok(), algorithm == Algorithm::None);
            for wrong in ALL.into_iter().filter(|wrong| *wrong != algorithm) {
                let error = AuthError::WrongAlgorithm(algorithm.id());
                assert_eq!(
                    verify(&AuthKey::new(1, wrong, b"secret"), &bytes),
                    Err(error)
                );
            }
        }
    }

    #[test]
    fn tags_are_short_unless_the_peer_wants_full_ones() {
        for (algorithm, short, full) in [
            (Algorithm::None, 0, 0),
            (Algorithm::Sha1_96, 12, 20),
            (Algorithm::Sha256_128, 16, 32),
            (Algorithm::Sha256_128Hkdf, 16, 16),
        ] {
            let key = AuthKey::new(0, algorithm, b"secret");
            let tag = verify(&key, &register(&key)).unwrap();
            assert_eq!((tag.tag_len, tag.full), (short, false));
            let tag = verify(&key, &register(&key.clone().with_tag_len(true))).unwrap();
            assert_eq!((tag.tag_len, tag.full), (full, full > short));
        }
    }

    #[test]
    fn tags_of_other_lengths_are_refused_even_if_they_begin_right() {
        for algorithm in ALL {
            let key = AuthKey::new(0, algorithm, b"secret").with_tag_len(true);
            let (short, full) = (algorithm.rfc_tag_len(), algorithm.full_tag_len());
            let signed = register(&key);
            for len in (0..40).filter(|len| ![short, full].contains(len)) {
                let mut bytes = signed.clone();
                bytes[15] = len;
                bytes.resize(TAG_OFFSET + usize::from(len), 0);
                assert_eq!(verify(&key, &bytes), Err(AuthError::TagLength(len.into())));
            }
        }
    }

    #[test]
    fn other_messages_are_not_authenticated() {
        let key = AuthKey::new(0, Algorithm::None, b"");
        for bytes in [&[0x10; 40][..], &[0x30; 15], &[]] {
            assert_eq!(verify(&key, bytes), Err(AuthError::NotAuthenticated));
        }
    }

    #[test]
    fn keys_are_the_same_when_they_sign_alike() {
        for algorithm in ALL {
            let key = AuthKey::new(1, algorithm, b"secret");
            assert_eq!(key, AuthKey::new(1, algorithm, b"secret"));
            assert_ne!(key, AuthKey::new(2, algorithm, b"secret"));
            assert_ne!(key, key.clone().with_tag_len(true));
            let other = AuthKey::new(1, algorithm, b"other");
            assert_eq!(key == other, algorithm == Algorithm::None);
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!(
            "{:?}",
            AuthKey::new(3, Algorithm::Sha256_128Hkdf, b"secret")
        );
        assert_eq!(
            shown,
            "AuthKey { key_id: 3, algorithm: Sha256_128Hkdf, .. }"
        );
    }

    fn register(key: &AuthKey) -> Vec<u8> {
        let mut out = Vec::new();
        encode_map_register(&RegisterParams::default(), key, &mut out).unwrap();
        out
    }
}
