//! What all instances use.

use std::net::IpAddr;

use lisp_proto::InstanceId;
use tokio::task::JoinSet;

use super::awaited::Awaited;
use super::cache_file::CacheFile;
use super::clock::Clock;
use super::control::{Control, Renewals};
use super::counting::Found;
use super::nonce_file::NonceFile;
use super::uplinks::OwnUplinks;

/// What all instances use.
pub(super) struct Shared {
    pub(super) control: Control,
    /// Where any has routes of its own.
    pub(super) uplinks: Option<OwnUplinks>,
    pub(super) clock: Clock,
    pub(super) nonces: NonceFile,
    pub(super) cache: CacheFile,
    /// Counters that are being read.
    pub(super) readings: JoinSet<Found>,
    /// Handshakes that are awaited.
    pub(super) handshakes: Awaited,
}

impl Shared {
    /// Has packets of the tunnels of an instance to `to` leave from `from`, or as all others do.
    pub(super) fn steer(&mut self, iid: InstanceId, to: IpAddr, from: Option<IpAddr>) {
        if let Some(uplinks) = &mut self.uplinks {
            uplinks.steer(iid, to, from);
        }
    }

    /// Something came from the map server, for whichever instance.
    pub(super) fn server_is_heard(&mut self) {
        self.control.heard(self.clock.now());
    }

    /// The map server has answered a question: it gets what we send. What it sends by itself says nothing of that.
    pub(super) fn server_has_replied(&mut self) {
        let now = self.clock.now();
        if let Some(uplinks) = &mut self.uplinks {
            uplinks.server_has_replied(now);
        }
    }

    /// The map server has acknowledged the latest registration of an instance.
    pub(super) fn server_has_answered(&mut self) {
        let now = self.clock.now();
        if let Some(uplinks) = &mut self.uplinks {
            uplinks.server_has_answered(now);
        }
    }

    /// The map server at `index` has not answered an instance, with these `renewals`. Returns where it answers to
    /// from now on, if that may have changed.
    pub(super) async fn renew(&mut self, index: usize, renewals: &mut Renewals) -> Option<IpAddr> {
        let now = self.clock.now();
        let uplinks = self.uplinks.as_mut();
        self.control.renew(now, index, renewals, uplinks).await;
        self.control.answers_to()
    }
}
