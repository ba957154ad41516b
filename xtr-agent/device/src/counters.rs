//! What the data plane knows about the peers of an interface, for whoever wants to read it beside
//! everything else that is done with the interface.

use std::sync::Arc;

use lisp_proto::PublicKey;

use crate::embedded;
use crate::error::DeviceError;
use crate::kernel;
use crate::paced_stats::{PacedStats, Urgency};
use crate::types::PeerStats;

/// Reads the counters of the peers of one interface; cheap to clone.
///
/// Among very many peers reading takes long, and nothing that a [`Device`](crate::Device) does
/// waits for it. Whoever removes a peer meanwhile, and sets it again, may still be told what was
/// read of it before.
#[derive(Clone, Debug)]
pub struct Counters {
    name: Arc<str>,
    source: Source,
    paced: Arc<PacedStats>,
}

/// Where counters come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Kernel(kernel::Reads),
    Embedded(embedded::Reads),
}

impl Counters {
    pub(crate) fn new(name: &str, source: Source) -> Self {
        Self {
            name: name.into(),
            source,
            paced: Arc::default(),
        }
    }

    /// Reads what the data plane knows about every peer, in no particular order. An embedded data
    /// plane that was stopped has none.
    ///
    /// # Errors
    /// The data plane refuses, or the interface is gone.
    pub async fn all(&self) -> Result<Vec<PeerStats>, DeviceError> {
        match &self.source {
            Source::Kernel(reads) => reads.peer_stats().await.map_err(|error| {
                DeviceError::system("reading the peers of interface", &self.name, error)
            }),
            Source::Embedded(reads) => Ok(reads.peer_stats().await),
        }
    }

    /// Reads what the data plane knows about a few peers, those of `keys` that it has, without
    /// reading all peers each time: the answer may be as old as some readings of all peers take.
    ///
    /// # Errors
    /// As [`all`](Self::all).
    pub async fn of(&self, keys: &[PublicKey]) -> Result<Vec<PeerStats>, DeviceError> {
        self.paced.of(keys, Urgency::None, self.all()).await
    }

    /// The same, from a reading that is younger: for as long as packets wait for what it says.
    ///
    /// # Errors
    /// As [`all`](Self::all).
    pub async fn recent_of(&self, keys: &[PublicKey]) -> Result<Vec<PeerStats>, DeviceError> {
        self.paced.of(keys, Urgency::PacketsWait, self.all()).await
    }

    /// Forgets what was read of a peer that is removed.
    pub(crate) fn forget(&self, key: &PublicKey) {
        self.paced.forget(key);
    }
}
