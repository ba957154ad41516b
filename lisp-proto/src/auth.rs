//! Does this message come from someone who knows the key? (RFC 9301 §5.6, §5.7)

use std::fmt;

use hkdf::HkdfExtract;
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::error::{AuthError, DecodeError};
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

/// Hash states into which the key is already fed.
#[derive(Clone)]
enum KeyState {
    None,
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
    Hkdf(Box<HkdfState>),
}

#[derive(Clone)]
struct HkdfState {
    secret: Box<[u8]>,
    register: HkdfExtract<Sha256>,
    notify: HkdfExtract<Sha256>,
    notify_ack: HkdfExtract<Sha256>,
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
        let state = match algorithm {
            Algorithm::None => KeyState::None,
            Algorithm::Sha1_96 => KeyState::Sha1(keyed(secret)),
            Algorithm::Sha256_128 => KeyState::Sha256(keyed(secret)),
            Algorithm::Sha256_128Hkdf => KeyState::Hkdf(Box::new(HkdfState {
                secret: secret.into(),
                register: HkdfExtract::new(Some(b"Map-Register Authentication")),
                notify: HkdfExtract::new(Some(b"Map-Notify Authentication")),
                notify_ack: HkdfExtract::new(Some(b"Map-Notify-Ack Authentication")),
            })),
        };
        Self {
            key_id,
            algorithm,
            full_tag: false,
            state,
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
        let (tag, tag_len) = (self.compute(&signed), signed.tag.len());
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

    /// Computes the code over the whole message, its tag taken as zeros.
    fn compute(&self, signed: &Signed<'_>) -> [u8; MAX_TAG_LEN] {
        let mut tag = [0; MAX_TAG_LEN];
        match &self.state {
            KeyState::None => {}
            KeyState::Sha1(hmac) => signed.feed(hmac.clone(), &mut tag),
            KeyState::Sha256(hmac) => signed.feed(hmac.clone(), &mut tag),
            KeyState::Hkdf(state) => signed.feed(state.message_key(signed), &mut tag),
        }
        tag
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthKey")
            .field("key_id", &self.key_id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl HkdfState {
    /// Derives the key of one message from its nonce, its type and the secret.
    #[expect(
        clippy::expect_used,
        reason = "fails for long outputs only, this one is short"
    )]
    fn message_key(&self, signed: &Signed<'_>) -> Hmac<Sha256> {
        let mut extract = match signed.kind {
            Kind::Register => self.register.clone(),
            Kind::Notify => self.notify.clone(),
            Kind::NotifyAck => self.notify_ack.clone(),
        };
        extract.input_ikm(signed.nonce);
        extract.input_ikm(&self.secret);
        let (_, expand) = extract.finalize();
        let mut key = [0; 32];
        expand
            .expand(&[], &mut key)
            .expect("HKDF-SHA256 gives up to 255 blocks, this is one");
        keyed(&key)
    }
}

/// Checks the authentication data of a Map-Register, Map-Notify or Map-Notify-Ack, in constant
/// time. The key id is not looked at: it served to find the key.
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
    let expected = key.compute(&signed);
    let expected = expected.get(..tag_len).unwrap_or_default();
    if !bool::from(expected.ct_eq(signed.tag)) {
        return Err(AuthError::Mismatch);
    }
    Ok(VerifiedTag {
        tag_len,
        full: tag_len > short,
    })
}

/// An authenticated message, cut where its tag is.
struct Signed<'a> {
    kind: Kind,
    nonce: &'a [u8],
    algorithm_id: u8,
    before: &'a [u8],
    tag: &'a [u8],
    after: &'a [u8],
}

#[derive(Clone, Copy)]
enum Kind {
    Register,
    Notify,
    NotifyAck,
}

impl<'a> Signed<'a> {
    fn split(datagram: &'a [u8]) -> Option<Self> {
        let (before, rest) = datagram.split_at_checked(TAG_OFFSET)?;
        let kind = match before.first()? >> 4 {
            3 => Kind::Register,
            4 => Kind::Notify,
            5 => Kind::NotifyAck,
            _ => return None,
        };
        let auth = AuthView::read(&mut Reader::new(datagram.get(AUTH_OFFSET..)?)).ok()?;
        let (tag, after) = rest.split_at_checked(auth.tag.len())?;
        Some(Self {
            kind,
            nonce: before.get(NONCE_OFFSET..AUTH_OFFSET)?,
            algorithm_id: auth.algorithm_id,
            before,
            tag,
            after,
        })
    }

    /// Runs the whole message through `mac` and stores the result in `tag`. The datagram stays
    /// as it is: zeros are fed in the place of its tag.
    fn feed(&self, mut mac: impl Mac, tag: &mut [u8; MAX_TAG_LEN]) {
        mac.update(self.before);
        mac.update([0; MAX_TAG_LEN].get(..self.tag.len()).unwrap_or_default());
        mac.update(self.after);
        for (to, from) in tag.iter_mut().zip(mac.finalize().into_bytes()) {
            *to = from;
        }
    }
}

/// Feeds a secret of any length into an HMAC.
#[expect(clippy::expect_used, reason = "the error is for other codes than HMAC")]
fn keyed<M: Mac + KeyInit>(secret: &[u8]) -> M {
    <M as Mac>::new_from_slice(secret).expect("HMAC takes keys of every length")
}

const NONCE_OFFSET: usize = 4;
const AUTH_OFFSET: usize = 12;
const TAG_OFFSET: usize = 16;
const MAX_TAG_LEN: usize = 32;
