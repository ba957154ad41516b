//! The addresses this host can be reached at, and when they change.

use std::future::pending;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use tracing::warn;
use wg_device::{AddressWatch, local_address_towards};

use super::uplinks;
use crate::agent;
use crate::config::{Config, Uplink};

/// Where the data interface can be reached: as configured, or the address
/// that the kernel uses towards the map server.
#[derive(Debug)]
pub(super) struct Addresses {
    configured: Vec<Uplink>,
    towards: IpAddr,
    /// Of what goes there.
    mark: u32,
    /// None when nothing can change, or nobody tells.
    watch: Option<AddressWatch>,
}

impl Addresses {
    pub(super) fn of(config: &Config) -> Self {
        let towards = config.map_server.underlay();
        let watch = match config.has_uplinks() {
            true => {
                let interfaces = config.rlocs.iter().filter_map(|it| it.interface.clone());
                Some(AddressWatch::open_for_uplinks(interfaces.collect()))
            }
            false => config.rlocs.is_empty().then(AddressWatch::open),
        };
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
    /// There is no way to the map server, or none of the uplinks is there.
    pub(super) fn now(&self) -> Result<Vec<agent::Uplink>> {
        if !self.configured.is_empty() {
            return self.configured_now();
        }
        let towards = self.towards;
        let rloc = local_address_towards(towards, self.mark).with_context(|| {
            format!("no route to the map server at {towards}; add one, or set `rlocs`")
        })?;
        Ok(vec![rloc.into()])
    }

    /// Those that are configured, but for uplinks that are not there.
    fn configured_now(&self) -> Result<Vec<agent::Uplink>> {
        let has_uplinks = self.configured.iter().any(|it| it.interface.is_some());
        let present = match has_uplinks {
            true => uplinks::present(&self.configured)?,
            false => Vec::new(),
        };
        let is_there = |it: &&Uplink| it.interface.is_none() || present.contains(&it.address);
        let there: Vec<_> = self.configured.iter().filter(is_there).collect();
        ensure!(
            !there.is_empty(),
            "no uplink of `rlocs` is up and has its address; see `ip address`"
        );
        Ok(there.into_iter().map(Uplink::told).collect())
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
