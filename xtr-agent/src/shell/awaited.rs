//! Handshakes that the data planes are to tell of.

use std::collections::BTreeMap;
use std::future::Future;

use anyhow::{Context, Result};
use lisp_proto::{InstanceId, PublicKey};
use tokio::task::{Id, JoinError, JoinSet};

/// Handshakes that are awaited: of which instance, with whom. Each is told of once at most, and not
/// after its peer was taken out: the peer that may have been put back since has no session.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    tasks: JoinSet<bool>,
    by_task: BTreeMap<Id, (InstanceId, PublicKey)>,
    latest: BTreeMap<(InstanceId, PublicKey), Id>,
}

impl Awaited {
    /// Waits for `handshake`, which says whether there was one, in place of an earlier wait.
    pub(super) fn wait(
        &mut self,
        iid: InstanceId,
        key: PublicKey,
        handshake: impl Future<Output = bool> + Send + 'static,
    ) {
        let id = self.tasks.spawn(handshake).id();
        self.forget(iid, key);
        self.by_task.insert(id, (iid, key));
        self.latest.insert((iid, key), id);
    }

    /// The peer is taken out: whatever is told of it from now on is about what is gone.
    pub(super) fn forget(&mut self, iid: InstanceId, key: PublicKey) {
        if let Some(id) = self.latest.remove(&(iid, key)) {
            self.by_task.remove(&id);
        }
    }

    /// A wait has ended; `None` without any. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Option<Result<(Id, bool), JoinError>> {
        self.tasks.join_next_with_id().await
    }

    /// With whom there is a session after that wait, if that is still wanted.
    ///
    /// # Errors
    ///
    /// When the wait ended in a panic.
    pub(super) fn ended(
        &mut self,
        wait: Result<(Id, bool), JoinError>,
    ) -> Result<Option<(InstanceId, PublicKey)>> {
        let (id, shaken) = wait.context("waiting for a handshake")?;
        let Some(whose) = self.by_task.remove(&id) else {
            return Ok(None);
        };
        self.latest.remove(&whose);
        Ok(shaken.then_some(whose))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IID: InstanceId = InstanceId(7);
    const KEY: PublicKey = PublicKey([1; 32]);

    async fn next(awaited: &mut Awaited) -> Option<(InstanceId, PublicKey)> {
        let wait = awaited.next().await.unwrap();
        awaited.ended(wait).unwrap()
    }

    #[tokio::test]
    async fn a_handshake_is_told_of_unless_its_peer_was_taken_out() {
        let mut awaited = Awaited::default();
        awaited.wait(IID, KEY, async { true });
        assert_eq!(next(&mut awaited).await, Some((IID, KEY)));
        awaited.wait(IID, KEY, async { true });
        awaited.forget(IID, KEY);
        assert_eq!(next(&mut awaited).await, None);
        assert!(awaited.next().await.is_none());
    }

    #[tokio::test]
    async fn of_two_waits_for_one_peer_the_later_counts() {
        let mut awaited = Awaited::default();
        let (first, ends) = tokio::sync::oneshot::channel();
        awaited.wait(IID, KEY, async { ends.await.is_ok() });
        let (second, too) = tokio::sync::oneshot::channel();
        awaited.wait(IID, KEY, async { too.await.is_ok() });
        first.send(()).unwrap();
        assert_eq!(next(&mut awaited).await, None, "its peer may be gone");
        second.send(()).unwrap();
        assert_eq!(next(&mut awaited).await, Some((IID, KEY)));
        awaited.wait(IID, KEY, async { false });
        assert_eq!(next(&mut awaited).await, None, "there was none");
        assert!(awaited.by_task.is_empty() && awaited.latest.is_empty());
    }
}
