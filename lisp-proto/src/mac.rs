//! How is the message authentication code of a message computed? (RFC 9301 §5.6)

use hkdf::HkdfExtract;
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::Sha256;

use crate::auth::{Algorithm, AuthView};
use crate::info::REPLY;
use crate::message::bit;
use crate::reader::Reader;

/// Hash states into which the secret is already fed.
#[derive(Clone)]
pub(crate) enum KeyState {
    None,
    Sha1(Hmac<Sha1>),
    Sha256(Hmac<Sha256>),
    Hkdf(Box<HkdfState>),
}

/// One extractor per frequent message type, each with its salt.
#[derive(Clone)]
pub(crate) struct HkdfState {
    secret: Box<[u8]>,
    register: HkdfExtract<Sha256>,
    notify: HkdfExtract<Sha256>,
    notify_ack: HkdfExtract<Sha256>,
}

impl KeyState {
    pub(crate) fn new(algorithm: Algorithm, secret: &[u8]) -> Self {
        match algorithm {
            Algorithm::None => Self::None,
            Algorithm::Sha1_96 => Self::Sha1(keyed(secret)),
            Algorithm::Sha256_128 => Self::Sha256(keyed(secret)),
            Algorithm::Sha256_128Hkdf => Self::Hkdf(Box::new(HkdfState {
                secret: secret.into(),
                register: HkdfExtract::new(Some(b"Map-Register Authentication")),
                notify: HkdfExtract::new(Some(b"Map-Notify Authentication")),
                notify_ack: HkdfExtract::new(Some(b"Map-Notify-Ack Authentication")),
            })),
        }
    }

    /// Computes the code of a whole message, its tag taken as zeros.
    pub(crate) fn compute(&self, signed: &Signed<'_>) -> [u8; MAX_TAG_LEN] {
        match self {
            Self::None => [0; MAX_TAG_LEN],
            Self::Sha1(hmac) => signed.feed(hmac.clone()),
            Self::Sha256(hmac) => signed.feed(hmac.clone()),
            Self::Hkdf(state) => signed.feed(keyed::<Hmac<Sha256>>(&state.message_key(signed))),
        }
    }
}

impl HkdfState {
    /// Derives the key of one message from its nonce, its type and the secret.
    #[expect(
        clippy::expect_used,
        reason = "fails for long outputs only, this one is short"
    )]
    fn message_key(&self, signed: &Signed<'_>) -> [u8; 32] {
        let mut extract = match signed.kind {
            Kind::Register => self.register.clone(),
            Kind::Notify => self.notify.clone(),
            Kind::NotifyAck => self.notify_ack.clone(),
            // Rare, and no reason to keep another state for every key.
            Kind::InfoRequest => HkdfExtract::new(Some(b"Info-Request Authentication")),
            Kind::InfoReply => HkdfExtract::new(Some(b"Info-Reply Authentication")),
        };
        extract.input_ikm(signed.nonce);
        extract.input_ikm(&self.secret);
        let (_, expand) = extract.finalize();
        let mut key = [0; 32];
        expand
            .expand(&[], &mut key)
            .expect("HKDF-SHA256 gives up to 255 blocks, this is one");
        key
    }
}

/// An authenticated message, cut where its tag is.
pub(crate) struct Signed<'a> {
    kind: Kind,
    nonce: &'a [u8],
    pub(crate) algorithm_id: u8,
    pub(crate) tag: &'a [u8],
    before: &'a [u8],
    after: &'a [u8],
}

#[derive(Clone, Copy)]
enum Kind {
    Register,
    Notify,
    NotifyAck,
    InfoRequest,
    InfoReply,
}

impl<'a> Signed<'a> {
    /// Cuts a message; `None` for types that carry no tag, and when it ends before its tag does.
    pub(crate) fn split(datagram: &'a [u8]) -> Option<Self> {
        let (before, rest) = datagram.split_at_checked(TAG_OFFSET)?;
        let first = *before.first()?;
        let kind = match first >> 4 {
            3 => Kind::Register,
            4 => Kind::Notify,
            5 => Kind::NotifyAck,
            7 if bit(first, REPLY) => Kind::InfoReply,
            7 => Kind::InfoRequest,
            _ => return None,
        };
        let auth = AuthView::read(&mut Reader::new(datagram.get(AUTH_OFFSET..)?)).ok()?;
        let (tag, after) = rest.split_at_checked(auth.tag.len())?;
        Some(Self {
            kind,
            nonce: before.get(NONCE_OFFSET..AUTH_OFFSET)?,
            algorithm_id: auth.algorithm_id,
            tag,
            before,
            after,
        })
    }

    /// Runs the whole message through `mac`. The datagram stays as it is: zeros are fed in the
    /// place of its tag.
    fn feed(&self, mut mac: impl Mac) -> [u8; MAX_TAG_LEN] {
        mac.update(self.before);
        for part in self.tag.chunks(MAX_TAG_LEN) {
            let zeros = [0; MAX_TAG_LEN];
            mac.update(zeros.get(..part.len()).unwrap_or_default());
        }
        mac.update(self.after);
        let mut tag = [0; MAX_TAG_LEN];
        for (to, from) in tag.iter_mut().zip(mac.finalize().into_bytes()) {
            *to = from;
        }
        tag
    }
}

/// Feeds a secret of any length into an HMAC.
#[expect(clippy::expect_used, reason = "the error is for other codes than HMAC")]
fn keyed<M: Mac + KeyInit>(secret: &[u8]) -> M {
    <M as Mac>::new_from_slice(secret).expect("HMAC takes keys of every length")
}

const NONCE_OFFSET: usize = 4;
const AUTH_OFFSET: usize = 12;
pub(crate) const TAG_OFFSET: usize = 16;
/// Bytes of the longest code, that of SHA-256.
pub(crate) const MAX_TAG_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hkdf_gives_every_type_and_nonce_its_own_key() {
        let KeyState::Hkdf(state) = KeyState::new(Algorithm::Sha256_128Hkdf, b"password") else {
            panic!("another state");
        };
        let key = |kind: u8, nonce: u8| {
            let mut message = [0; TAG_OFFSET];
            (message[0], message[11]) = (kind << 4, nonce);
            state.message_key(&Signed::split(&message).unwrap())
        };
        // As OpenSSL's HKDF computes it from nonce 1 and the secret.
        let expected = "72dcb2f072779293bf5333c2e682cdc99aa4ac34073f022657b369b0afb8a204";
        assert_eq!(hex(&key(3, 1)), expected);
        assert_ne!(key(3, 1), key(3, 2));
        assert_ne!(key(3, 1), key(4, 1));
        assert_ne!(key(4, 1), key(5, 1));
        assert_ne!(key(5, 1), key(7, 1));
    }

    #[test]
    fn other_types_and_cut_messages_have_no_tag() {
        let mut message = [0x30; 20];
        (message[14], message[15]) = (0, 4);
        assert!(Signed::split(&message).is_some());
        assert!(Signed::split(&message[..19]).is_none());
        assert!(Signed::split(&message[..15]).is_none());
        message[0] = 0x20;
        assert!(Signed::split(&message).is_none());
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
