//! The private key of an interface: made, kept in a file only its owner reads, and used.

use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hkdf::Hkdf;
use lisp_proto::PublicKey;
use sha2::Sha256;
use thiserror::Error;
use x25519_dalek::{PublicKey as DhPublic, StaticSecret};
use zeroize::Zeroizing;

/// A static X25519 private key; wiped from memory when dropped, never shown.
#[derive(Clone)]
pub struct PrivateKey(StaticSecret);

impl PrivateKey {
    /// Makes a key from the randomness of the operating system.
    #[must_use]
    pub fn generate() -> Self {
        Self(StaticSecret::random())
    }

    /// The key with these 32 bytes, of which X25519 ignores some bits.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }

    /// Reads the key file at `path`, or makes a key and writes it there.
    ///
    /// The file holds base64 as `wg genkey` prints it and has mode 0600; a missing directory is
    /// made with mode 0700. Two processes that start at once end up with the same key.
    ///
    /// # Errors
    /// The file is readable by others, is not a key, or cannot be read or written.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        if let Some(directory) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|source| KeyError::io("creating directory", directory, source))?;
        }
        Self::generate().store(path)?;
        Self::load(path)
    }

    /// Returns the public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(DhPublic::from(&self.0).to_bytes())
    }

    /// Derives the Map-Register secret this side shares with the holder of `theirs`.
    ///
    /// HKDF-SHA256 over the X25519 secret of the two keys, info `lispwire map-register`: both
    /// ends of a control tunnel compute the same bytes, and nobody configures a password.
    #[must_use]
    pub fn map_register_secret(&self, theirs: &PublicKey) -> [u8; 32] {
        let shared = self.0.diffie_hellman(&DhPublic::from(theirs.0));
        let mut secret = [0; 32];
        let expanded =
            Hkdf::<Sha256>::new(None, shared.as_bytes()).expand(REGISTER_INFO, &mut secret);
        debug_assert!(
            expanded.is_ok(),
            "32 bytes are within the limit of HKDF-SHA256"
        );
        secret
    }

    /// Returns the key for the data plane, which keeps its own copy.
    pub(crate) fn secret(&self) -> StaticSecret {
        self.0.clone()
    }

    fn load(path: &Path) -> Result<Self, KeyError> {
        let text = fs::read_to_string(path)
            .map(Zeroizing::new)
            .map_err(|source| KeyError::io("reading", path, source))?;
        let metadata =
            fs::metadata(path).map_err(|source| KeyError::io("reading", path, source))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let path = path.to_owned();
            return Err(KeyError::TooOpen { path, mode });
        }
        // Public and private keys have the same text form.
        let PublicKey(bytes) =
            PublicKey::from_str(text.trim()).map_err(|_| KeyError::Malformed {
                path: path.to_owned(),
            })?;
        let bytes = Zeroizing::new(bytes);
        Ok(Self(StaticSecret::from(*bytes)))
    }

    /// Writes the key unless the file exists by now: the link fails for all but the first.
    fn store(&self, path: &Path) -> Result<(), KeyError> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".{}", std::process::id()));
        let draft = PathBuf::from(draft);
        let written = self
            .write_draft(&draft)
            .and_then(|()| match fs::hard_link(&draft, path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                result => result,
            });
        let removed = fs::remove_file(&draft);
        written
            .and(removed)
            .map_err(|source| KeyError::io("writing", path, source))
    }

    fn write_draft(&self, draft: &Path) -> io::Result<()> {
        let text = Zeroizing::new(PublicKey(self.0.to_bytes()).to_string());
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(draft)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public().short())
    }
}

/// A key file that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Others than the owner can read the file.
    #[error(
        "key file {}: mode {mode:04o} lets others read it; run `chmod 600 {}`, and make a new key if somebody may have", path.display(), path.display()
    )]
    TooOpen {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content is not a key.
    #[error(
        "key file {}: not a private key; expected 44 base64 characters as `wg genkey` prints them", path.display()
    )]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("key file: {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason the system gives.
        source: io::Error,
    },
}

impl KeyError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io {
            action,
            path,
            source,
        }
    }
}

const REGISTER_INFO: &[u8] = b"lispwire map-register";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_the_round_trip_through_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/control.key");
        let made = PrivateKey::load_or_create(&path).unwrap();
        let read = PrivateKey::load_or_create(&path).unwrap();
        assert_eq!(made.public(), read.public());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.key");
        PrivateKey::load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = PrivateKey::load_or_create(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data.key");
        PrivateKey::generate().store(&path).unwrap();
        fs::write(&path, "password\n").unwrap();
        let error = PrivateKey::load_or_create(&path).unwrap_err();
        assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "password\n");
    }

    #[test]
    fn both_ends_derive_the_same_map_register_secret() {
        let (ours, theirs) = (PrivateKey::generate(), PrivateKey::generate());
        let secret = ours.map_register_secret(&theirs.public());
        assert_eq!(secret, theirs.map_register_secret(&ours.public()));
        let other = PrivateKey::generate();
        assert_ne!(secret, other.map_register_secret(&theirs.public()));
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let key = PrivateKey::generate();
        let secret = PublicKey(key.secret().to_bytes());
        assert!(!format!("{key:?}").contains(&secret.short()));
    }
}
