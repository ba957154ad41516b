//! The addresses this host can be reached at, and when they change.

use std::future::pending;
use std::net::IpAddr;

use anyhow::{Context, Result};
use tracing::warn;
use wg_device::{AddressWatch, local_address_towards};

use crate::config::Config;

/// Where the data interface can be reached: as configured, or the address
/// that the kernel uses towards the map server.
#[derive(Debug)]
pub(super) struct Addresses {
    configured: Vec<IpAddr>,
    towards: IpAddr,
    /// Of what goes there.
    mark: u32,
    /// None when nothing can change, or nobody tells.
    watch: Option<AddressWatch>,
}

impl Addresses {
    pub(super) fn of(config: &Config) -> Self {
        let towards = config.map_server.underlay();
        let watch = config.rlocs.is_empty().then(AddressWatch::open);
        let unwatched = |error| warn!(%error, "changes of address will not be noticed");
        Self {
            configured: config.rlocs.clone(),
            towards,
            mark: config.mark(),
            watch: watch.and_then(|watch| watch.map_err(unwatched).ok()),
        }
    }

    /// The addresses now.
    ///
    /// # Errors
    /// There is no way to the map server.
    pub(super) fn now(&self) -> Result<Vec<IpAddr>> {
        if !self.configured.is_empty() {
            return Ok(self.configured.clone());
        }
        let towards = self.towards;
        let rloc = local_address_towards(towards, self.mark).with_context(|| {
            format!("no route to the map server at {towards}; add one, or set `rlocs`")
        })?;
        Ok(vec![rloc])
    }

    /// Waits until they may have changed. Cancelling loses nothing.
    pub(super) async fn changed(&mut self) {
        let Some(watch) = &self.watch else {
            return pending().await;
        };
        if let Err(error) = watch.changed().await {
            warn!(%error, "changes of address will not be noticed any more");
            self.watch = None;
        }
    }
}
