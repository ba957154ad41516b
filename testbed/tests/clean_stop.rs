//! Stopping every daemon leaves nothing that was not there before.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use testbed::{Binaries, Network, NetworkOptions, Node, Ping, Snapshot};

/// What daemons keep for their next start, as documented; all else must go.
const KEPT_STATE: [&str; 8] = [
    "state",
    "control.key",
    "data.key",
    "register.nonce",
    "registrations.log",
    "endpoints",
    // Held while a map server uses its state directory; removing it would be a race.
    "lock",
    // Written by the testbed, not by the daemon.
    ".log",
];

#[test]
fn daemons_that_connected_leave_nothing_behind() {
    let options = NetworkOptions {
        endpoints: 3,
        ..NetworkOptions::default()
    };
    let mut network = Network::prepare(&options, Binaries::up_to_date(|_| ()).unwrap()).unwrap();
    let before = Traces::of(&network);
    network.start_all().unwrap();
    let [alpha, beta, _] = network.endpoints.as_slice() else {
        panic!("three endpoints");
    };
    for eid in beta.eids {
        assert_eq!(
            Ping::once(eid)
                .run(alpha.namespace())
                .unwrap()
                .replies
                .len(),
            1
        );
    }
    let running = Traces::of(&network);
    assert_ne!(running.namespaces, before.namespaces);
    assert_eq!(running.resolver, before.resolver);
    network.stop_all().unwrap();
    Traces::of(&network).assert_same(&before);
}

#[test]
fn daemons_that_did_nothing_leave_nothing_behind() {
    let options = NetworkOptions::default();
    let mut network = Network::prepare(&options, Binaries::up_to_date(|_| ()).unwrap()).unwrap();
    let before = Traces::of(&network);
    for _ in 0..2 {
        network.start_all().unwrap();
        network.stop_all().unwrap();
        Traces::of(&network).assert_same(&before);
    }
}

/// The resolver's configuration, which is not ours to touch, with what tells whether it was written.
fn resolver() -> Option<(Vec<u8>, u64, SystemTime)> {
    let path = "/etc/resolv.conf";
    let metadata = fs::metadata(path).ok()?;
    let written = metadata.modified().unwrap();
    Some((fs::read(path).unwrap(), metadata.ino(), written))
}

/// What daemons could leave behind.
struct Traces {
    namespaces: BTreeMap<String, Snapshot>,
    files: BTreeSet<PathBuf>,
    resolver: Option<(Vec<u8>, u64, SystemTime)>,
}

impl Traces {
    fn of(network: &Network) -> Self {
        let endpoints = network.endpoints.iter().map(|endpoint| &endpoint.node);
        let nodes: Vec<&Node> = endpoints.chain([&network.server]).collect();
        let snapshot = |node: &&Node| {
            (
                node.name().to_owned(),
                node.host.namespace.snapshot().unwrap(),
            )
        };
        let namespaces = nodes.iter().map(snapshot).collect();
        Self {
            namespaces,
            files: nodes.iter().flat_map(|node| node.files()).collect(),
            resolver: resolver(),
        }
    }

    fn assert_same(&self, before: &Self) {
        for (name, snapshot) in &self.namespaces {
            let changes = snapshot.changes_since(&before.namespaces[name]);
            assert!(changes.is_empty(), "{name}:\n{}", changes.join("\n"));
        }
        let new = self.files.difference(&before.files).filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            !KEPT_STATE.iter().any(|kept| name.ends_with(kept))
        });
        assert_eq!(new.collect::<Vec<_>>(), Vec::<&PathBuf>::new());
        assert_eq!(self.resolver, before.resolver);
    }
}
