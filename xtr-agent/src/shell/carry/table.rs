//! Which connections are translated here, as several want to know at a time?

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use ipnet::IpNet;
use lisp_proto::Timestamp;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::sleep_until;
use wg_device::{Conntrack, Flow, NetNs};

use super::limits::{FLOWS, READING_AGE, READING_PAUSE, READING_SHARE};
use crate::shell::clock::Clock;

/// All connections of clients, as they were when they were last read.
pub(super) struct Table {
    netns: Option<NetNs>,
    clients: RwLock<Arc<[IpNet]>>,
    clock: Clock,
    read: Mutex<Read>,
}

#[derive(Default)]
struct Read {
    flows: Arc<Vec<Flow>>,
    /// Whose they may be.
    clients: Arc<[IpNet]>,
    /// When that began and ended.
    time: Option<[Timestamp; 2]>,
}

impl Table {
    /// Nothing is read yet; `clients` is where clients live.
    pub(super) fn new(netns: Option<NetNs>, clients: &[IpNet], clock: Clock) -> Self {
        Self {
            netns,
            clients: RwLock::new(clients.into()),
            clock,
            read: Mutex::default(),
        }
    }

    /// Clients live in `clients` from now on.
    pub(super) fn follow(&self, clients: &[IpNet]) {
        if *self.clients() != *clients {
            *self.clients.write().unwrap_or_else(PoisonError::into_inner) = clients.into();
        }
    }

    fn clients(&self) -> Arc<[IpNet]> {
        let clients = self.clients.read();
        Arc::clone(&clients.unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the connections of `client` as they are now, or a little later.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) async fn of(&self, client: IpNet) -> io::Result<Vec<Flow>> {
        self.since(self.clock.now(), client).await
    }

    /// The same, as they were a moment ago, if that is known.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) async fn lately_of(&self, client: IpNet) -> io::Result<Vec<Flow>> {
        let running = self.clock.now() - Timestamp::ZERO;
        let wanted = Timestamp::ZERO + running.saturating_sub(READING_AGE);
        self.since(wanted, client).await
    }

    /// Returns the connections of `client` as they were at `wanted` or later.
    async fn since(&self, wanted: Timestamp, client: IpNet) -> io::Result<Vec<Flow>> {
        let mut read = self.read.lock().await;
        let [began, ended] = read.time.unwrap_or_default();
        let clients = self.clients();
        if read.time.is_none() || began < wanted || read.clients != clients {
            let pause = (ended - began).saturating_mul(READING_SHARE);
            let at = ended + pause.min(READING_PAUSE);
            sleep_until(self.clock.instant(at)).await;
            let began = self.clock.now();
            let (netns, of) = (self.netns.clone(), Arc::clone(&clients));
            let flows = spawn_blocking(move || all(netns.as_ref(), &of)).await;
            read.flows = Arc::new(flows.map_err(io::Error::other)??);
            read.clients = clients;
            read.time = Some([began, self.clock.now()]);
        }
        let flows = Arc::clone(&read.flows);
        drop(read);
        let first = flows.partition_point(|flow| flow.source.ip() < client.network());
        let theirs = flows.get(first..).unwrap_or_default().iter();
        let theirs = theirs.take_while(|flow| client.contains(&flow.source.ip()));
        Ok(theirs.copied().collect())
    }

    /// Does something with the kernel's own table.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Conntrack) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let netns = self.netns.clone();
        let changed = spawn_blocking(move || {
            let mut conntrack = Conntrack::open(netns.as_ref()).map_err(io::Error::other)?;
            change(&mut conntrack)
        });
        changed.await.map_err(io::Error::other)?
    }
}

/// Reads all connections of clients, in the order of their sources.
fn all(netns: Option<&NetNs>, clients: &[IpNet]) -> io::Result<Vec<Flow>> {
    let mut conntrack = Conntrack::open(netns).map_err(io::Error::other)?;
    let is_client = |flow: &Flow| clients.iter().any(|net| net.contains(&flow.source.ip()));
    let mut flows = conntrack.translated(FLOWS, is_client)?;
    flows.sort_unstable_by_key(|flow| flow.source);
    Ok(flows)
}

/// Deletes connections, all that can be.
///
/// # Errors
/// What went wrong first.
pub(super) fn delete_each(conntrack: &mut Conntrack, flows: &[Flow]) -> io::Result<()> {
    let deleted = flows.iter().map(|flow| conntrack.delete(flow).map(drop));
    deleted.fold(Ok(()), io::Result::and)
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}
