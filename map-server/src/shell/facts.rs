//! All that must survive a restart, read while the state machine goes on.
//!
//! A few facts at a time. What changes meanwhile is also appended to the log, behind the snapshot, so it does
//! not matter whether the snapshot has it as it was before or after.

use std::sync::Arc;
use std::vec::IntoIter;

use super::clock::Clock;
use super::posts::{SharedServer, read};
use crate::server::SnapshotMark;
use crate::store_event::StoreEvent;

/// The facts, one by one.
#[derive(Debug)]
pub(super) struct Facts {
    server: Arc<SharedServer>,
    clock: Clock,
    part: IntoIter<StoreEvent>,
    mark: SnapshotMark,
}

impl Facts {
    pub(super) fn of(server: Arc<SharedServer>, clock: Clock) -> Self {
        Self {
            server,
            clock,
            part: Vec::new().into_iter(),
            mark: SnapshotMark::default(),
        }
    }
}

impl Iterator for Facts {
    type Item = StoreEvent;

    fn next(&mut self) -> Option<StoreEvent> {
        loop {
            if let Some(fact) = self.part.next() {
                return Some(fact);
            }
            let server = read(&self.server);
            let (part, mark) = server.snapshot_part(self.clock.now(), self.mark)?;
            drop(server);
            (self.part, self.mark) = (part.into_iter(), mark);
        }
    }
}
