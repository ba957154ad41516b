//! The uplinks of this host: which are there, and by which one the map server is reached.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Value, json};
use tracing::{info, warn};
use wg_device::{Device, UplinkSpec, Uplinks};

use crate::config::{Config, Uplink};

/// The uplinks that have routes of their own.
pub(super) struct OwnUplinks {
    routes: Uplinks,
    configured: Vec<Uplink>,
    /// Those that are there.
    present: BTreeSet<IpAddr>,
    /// Where the map server is, and the uplink that was chosen for what goes there.
    server: (IpAddr, Option<IpAddr>),
}

impl OwnUplinks {
    /// Gives the uplinks of `config` their routes, if it has any.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing, or a gateway cannot be reached.
    pub(super) fn of(config: &Config) -> Result<Option<Self>> {
        if !config.has_uplinks() {
            return Ok(None);
        }
        let mut uplinks = Self {
            routes: Uplinks::open()?,
            configured: Vec::new(),
            present: BTreeSet::new(),
            server: (config.map_server.underlay(), None),
        };
        uplinks.configure(config)?;
        Ok(Some(uplinks))
    }

    /// Takes over what `config` says of them: which one is chosen begins anew.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub(super) fn configure(&mut self, config: &Config) -> Result<()> {
        self.choose_for_server(None);
        self.server.0 = config.map_server.underlay();
        self.configured.clone_from(&config.rlocs);
        self.settle()
    }

    /// Looks at which are there, and gives those their routes.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub(super) fn settle(&mut self) -> Result<()> {
        let present: BTreeSet<IpAddr> = self
            .routes
            .set(&specs(&self.configured))?
            .into_iter()
            .collect();
        for address in present.difference(&self.present) {
            info!(event = "uplink_up", %address);
        }
        for address in self.present.difference(&present) {
            warn!(event = "uplink_down", %address);
        }
        self.present = present;
        if self
            .server
            .1
            .is_some_and(|from| !self.present.contains(&from))
        {
            self.server.1 = None;
        }
        Ok(())
    }

    /// The addresses of those that are there.
    pub(super) fn present(&self) -> Vec<IpAddr> {
        self.present.iter().copied().collect()
    }

    /// Has packets of the tunnels of `device` to `to` leave from `from`, or as all others do.
    pub(super) fn steer(&self, device: &Device, to: IpAddr, from: Option<IpAddr>) {
        self.leave_from(to, from);
        device.leave_from(to, from);
    }

    fn leave_from(&self, to: IpAddr, from: Option<IpAddr>) {
        if let Err(error) = self.routes.leave_from(to, from) {
            warn!(%to, %error, "no other uplink");
        }
    }

    /// The map server does not answer: it is reached by the next uplink from now on. Returns where it is,
    /// and our address that packets to it leave from.
    pub(super) fn turn_for_server(&mut self) -> (IpAddr, Option<IpAddr>) {
        let (server, used) = self.server;
        let mut usable: Vec<_> = self.configured.iter().collect();
        usable.retain(|it| {
            let alike = it.address.is_ipv4() == server.is_ipv4();
            alike && self.present.contains(&it.address)
        });
        usable.sort_by_key(|it| rank(it));
        let usable: Vec<_> = usable.iter().map(|it| it.address).collect();
        if usable.len() < 2 {
            return self.server;
        }
        let place = usable.iter().position(|it| Some(*it) == used).unwrap_or(0);
        let next = usable.get((place + 1) % usable.len()).copied();
        warn!(
            event = "map_server_silent",
            uplink = next.map(tracing::field::display)
        );
        self.choose_for_server(next);
        self.server
    }

    /// Where the map server is, and our address that packets to it leave from, if one was chosen.
    pub(super) const fn server(&self) -> (IpAddr, Option<IpAddr>) {
        self.server
    }

    fn choose_for_server(&mut self, from: Option<IpAddr>) {
        if self.server.1 != from {
            self.server.1 = from;
            self.leave_from(self.server.0, from);
        }
    }

    /// From now on rules and routes are left in place for the next run.
    pub(super) fn stay(&self) {
        self.routes.stay();
    }

    /// Removes rules and routes.
    pub(super) fn remove(self) {
        self.routes.remove();
    }

    /// What `status` says of them.
    pub(super) fn report(&self) -> Vec<Value> {
        let told = self.configured.iter().map(|uplink| {
            json!({
                "address": uplink.address,
                "interface": uplink.interface,
                "gateway": uplink.gateway,
                "priority": uplink.priority,
                "weight": uplink.weight,
                "up": uplink.interface.is_none() || self.present.contains(&uplink.address),
                "map_server": self.server.1 == Some(uplink.address),
            })
        });
        told.collect()
    }
}

/// Which of `configured` are there, without changing anything.
///
/// # Errors
/// The system does not tell.
pub(super) fn present(configured: &[Uplink]) -> Result<Vec<IpAddr>> {
    Ok(Uplinks::open()?.present(&specs(configured))?)
}

fn specs(configured: &[Uplink]) -> Vec<UplinkSpec> {
    let specs = configured.iter().filter_map(|uplink| {
        Some(UplinkSpec {
            address: uplink.address,
            interface: uplink.interface.clone()?,
            gateway: uplink.gateway,
            rank: rank(uplink),
        })
    });
    specs.collect()
}

/// The lower, the sooner an uplink is used.
fn rank(uplink: &Uplink) -> u16 {
    u16::from_be_bytes([uplink.priority, u8::MAX - uplink.weight])
}
