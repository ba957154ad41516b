//! Where was every agent last seen from outside?
//!
//! WireGuard forgets the endpoints of its peers with the process, and without an endpoint it
//! cannot start a handshake. They are kept in a file, so that a server which has just started
//! reaches an agent before that agent happens to send something. The file is a hint: a wrong
//! endpoint costs an unanswered handshake, and the agent's next datagram corrects it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lisp_proto::PublicKey;
use tracing::warn;

/// Name of the file in the state directory.
const FILE: &str = "endpoints";
/// Name of a file that is not complete yet.
const INCOMPLETE: &str = "endpoints.new";

/// The last known outer endpoint of every peer of the control tunnel.
#[derive(Clone, Debug)]
pub(super) struct Endpoints {
    directory: PathBuf,
    known: BTreeMap<PublicKey, SocketAddr>,
}

impl Endpoints {
    /// Reads what an earlier run has left in `directory`; what cannot be read is reported, and as
    /// good as missing.
    pub(super) fn load(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let known = match fs::read_to_string(&path).and_then(|text| parse(&text)) {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                warn!(file = %path.display(), %error, "ignored the stored endpoints: agents can be reached once they have sent something");
                BTreeMap::new()
            }
        };
        Self {
            directory: directory.to_owned(),
            known,
        }
    }

    /// Returns where the holder of `key` was last seen.
    pub(super) fn of(&self, key: &PublicKey) -> Option<SocketAddr> {
        self.known.get(key).copied()
    }

    /// Takes note of where the peers are now; returns whether that is news. Peers that are not
    /// listed are forgotten, those listed without an endpoint are not.
    pub(super) fn observe(
        &mut self,
        peers: impl Iterator<Item = (PublicKey, Option<SocketAddr>)>,
    ) -> bool {
        let seen =
            peers.filter_map(|(key, endpoint)| Some((key, endpoint.or_else(|| self.of(&key))?)));
        let seen: BTreeMap<_, _> = seen.collect();
        if seen == self.known {
            return false;
        }
        self.known = seen;
        true
    }

    /// Writes the file. A crash on the way leaves the old one.
    ///
    /// # Errors
    /// The system refuses to write.
    pub(super) fn save(&self) -> io::Result<()> {
        let path = self.directory.join(INCOMPLETE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut text = String::new();
        for (key, endpoint) in &self.known {
            // Writing to a string cannot fail.
            writeln!(text, "{key} {endpoint}").unwrap_or_default();
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&path, self.directory.join(FILE))?;
        File::open(&self.directory)?.sync_all()
    }
}

/// Reads lines of a key and an endpoint each.
fn parse(text: &str) -> io::Result<BTreeMap<PublicKey, SocketAddr>> {
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(damaged(text.lines().count()));
    }
    let lines = (1..).zip(text.lines());
    lines
        .map(|(number, line)| {
            let parsed = line.split_once(' ').and_then(|(key, endpoint)| {
                let key = key.parse::<PublicKey>().ok()?;
                Some((key, endpoint.parse::<SocketAddr>().ok()?))
            });
            parsed.ok_or_else(|| damaged(number))
        })
        .collect()
}

fn damaged(line: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("damaged in line {line}"),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn endpoints_are_known_to_the_next_run() {
        let directory = tempfile::tempdir().unwrap();
        let mut endpoints = Endpoints::load(directory.path());
        assert_eq!(endpoints.of(&key(1)), None, "a first start");
        let peers = [
            (key(1), Some(socket("192.0.2.1:51820"))),
            (key(2), Some(socket("[2001:db8::2]:1"))),
            (key(3), None),
        ];
        assert!(endpoints.observe(peers.into_iter()));
        endpoints.save().unwrap();
        let next = Endpoints::load(directory.path());
        let known = [1, 2, 3].map(|number| next.of(&key(number)));
        assert_eq!(known, peers.map(|(_, endpoint)| endpoint));
        let file = fs::metadata(directory.path().join(FILE)).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn only_a_change_is_news() {
        let directory = tempfile::tempdir().unwrap();
        let mut endpoints = Endpoints::load(directory.path());
        let observe = |endpoints: &mut Endpoints, seen: &[(u8, Option<&str>)]| {
            let seen = seen.iter();
            endpoints.observe(seen.map(|(number, text)| (key(*number), text.map(socket))))
        };
        let (here, there) = (Some("192.0.2.1:1"), Some("192.0.2.1:2"));
        assert!(!observe(&mut endpoints, &[(1, None)]));
        assert!(observe(&mut endpoints, &[(1, here)]));
        assert!(!observe(&mut endpoints, &[(1, here)]));
        assert!(
            !observe(&mut endpoints, &[(1, None)]),
            "not seen is not gone"
        );
        assert!(observe(&mut endpoints, &[(1, there)]));
        assert!(observe(&mut endpoints, &[]), "no longer enrolled");
        assert_eq!(endpoints.of(&key(1)), None);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none_and_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let good = format!("{} 192.0.2.1:51820\n", key(1));
        for bad in [
            format!("{good}{}", key(2)),
            format!("{good}nonsense\n"),
            good.trim_end().to_owned(),
            good.replace("51820", "99999"),
        ] {
            fs::write(&path, &bad).unwrap();
            assert_eq!(Endpoints::load(directory.path()).of(&key(1)), None, "{bad}");
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        let mut endpoints = Endpoints::load(directory.path());
        assert!(endpoints.observe(std::iter::once((key(1), Some(socket("192.0.2.1:51820"))))));
        let before = fs::metadata(&path).unwrap().ino();
        endpoints.save().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), good);
        assert_ne!(fs::metadata(&path).unwrap().ino(), before, "not in place");
        assert!(!directory.path().join(INCOMPLETE).exists());
    }

    #[test]
    fn what_a_crash_has_left_half_written_is_in_nobodys_way() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(INCOMPLETE), "half").unwrap();
        let mut endpoints = Endpoints::load(directory.path());
        endpoints.observe(std::iter::once((key(1), Some(socket("192.0.2.1:51820")))));
        endpoints.save().unwrap();
        assert!(Endpoints::load(directory.path()).of(&key(1)).is_some());
    }

    fn key(number: u8) -> PublicKey {
        PublicKey([number; 32])
    }

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
}
