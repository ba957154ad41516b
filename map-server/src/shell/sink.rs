//! Where do actions go?

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tracing::{debug, info};

use super::lookout::Orders;
use super::narrate::{self, Pace};
use super::store::{Store, StoreError};
use super::workers::Workers;
use crate::server::{Action, Actions, Counters, Event, Via};

/// What is to be done, sorted by who does it.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) store: Store,
    /// Sent only when the store holds the facts that came before.
    pub(super) outbox: Vec<(SocketAddr, Via, Bytes)>,
    /// Told when a registration is new or has changed, and when the server wants to know where its peers are.
    pub(super) registered: Arc<Notify>,
    /// For the control tunnel.
    orders: Orders,
    pub(super) counters: Counters,
    pace: Pace,
    reported: Counters,
}

impl Sink {
    pub(super) fn new(store: Store, orders: Orders) -> Self {
        Self {
            store,
            orders,
            outbox: Vec::new(),
            registered: Arc::default(),
            counters: Counters::default(),
            pace: Pace::default(),
            reported: Counters::default(),
        }
    }

    /// Takes the actions that a datagram from `src`, or something else, has led to, so long after 1970.
    ///
    /// # Errors
    /// A fact cannot be stored.
    pub(super) fn take(
        &mut self,
        since_1970: Duration,
        actions: &mut Actions,
        src: Option<SocketAddr>,
    ) -> Result<(), StoreError> {
        for action in actions.drain() {
            match action {
                Action::Send { dst, via, bytes } => self.outbox.push((dst, via, bytes)),
                Action::Persist(event) => self.store.append(since_1970, Some(event))?,
                Action::Watch(key) => self.orders.give(key, true),
                Action::Unwatch(key) => self.orders.give(key, false),
                Action::Look => self.registered.notify_one(),
                Action::Count(reason) => {
                    self.counters.count(reason);
                    debug!(drop = reason.name(), src = src.map(tracing::field::display));
                }
                Action::Event(event) => {
                    if matches!(event, Event::Registered { .. }) {
                        self.registered.notify_one();
                    }
                    if self.pace.allows(&event, since_1970) {
                        narrate::narrate(&event);
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells the operator what was not logged, and what was dropped since the start, if that has changed.
    pub(super) fn report(&mut self, workers: &Workers) {
        self.pace.tell();
        let counters = self.all_counters(workers);
        if counters != self.reported {
            info!(
                drops = narrate::summary(&counters),
                "dropped since the start"
            );
            self.reported = counters;
        }
    }

    /// Returns what was dropped since the start, by all threads.
    pub(super) fn all_counters(&self, workers: &Workers) -> Counters {
        let mut counters = self.counters.clone();
        workers.add_to(&mut counters);
        counters
    }
}
