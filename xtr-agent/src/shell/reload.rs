//! SIGHUP: what changed in the configuration file takes effect, where no tunnel would notice.
//!
//! What takes time does so beside the loop: first another map server, and instances that go, are said
//! goodbye to; then the interfaces of these are removed, and those of new instances made.

use std::net::IpAddr;

use anyhow::{Context, Result};
use lisp_proto::{InstanceId, Nonce, Timestamp};
use tokio::task::{JoinError, JoinHandle};
use tracing::{info, warn};
use wg_device::{PrivateKey, Sources};

use super::clock::Clock;
use super::control::Renewals;
use super::ending::GOODBYE;
use super::overlay::Overlay;
use super::unchangeable::needs_restart;
use super::uplinks::OwnUplinks;
use super::{Addresses, Shared, Shell, setup};
use crate::agent::{self, Adjustable, Input};
use crate::config::{Config, Instance};

/// How far a reload is.
pub(super) enum Reload {
    /// Those who go have said goodbye, and are waited for until then.
    Leaving(Box<Wanted>, Timestamp),
    /// Interfaces go and come.
    Rebuilding(Box<Config>, JoinHandle<Rebuilt>),
}

/// What shall be.
#[derive(Debug)]
pub(super) struct Wanted {
    config: Config,
    /// Where map servers answer to.
    address: IpAddr,
    rlocs: Vec<agent::Uplink>,
}

/// The instances that were made, and those that could not be.
pub(super) struct Rebuilt {
    made: Vec<Overlay>,
    failed: Vec<(InstanceId, anyhow::Error)>,
}

impl Shell {
    /// Reads the configuration file again. One that cannot be run, or that changes what cannot change
    /// now, changes nothing.
    pub(super) async fn reload(&mut self) -> Result<()> {
        self.finish_reload().await?;
        let refused = |error: &dyn std::fmt::Display| {
            warn!(event = "reload_failed", %error, "going on with what was read before");
        };
        let wanted = match self.config.reload(&self.config_path, needs_restart) {
            Ok(wanted) => wanted,
            Err(errors) => {
                errors.iter().for_each(|error| refused(error));
                return Ok(());
            }
        };
        let wanted = match Wanted::now(wanted) {
            Ok(wanted) => wanted,
            Err(error) => {
                refused(&error);
                return Ok(());
            }
        };
        let leaves = !self.config.map_server.is_same(&wanted.config.map_server);
        let now = self.shared.clock.now();
        let mut until = now;
        for overlay in &mut self.overlays {
            if leaves || named(&wanted.config, overlay.iid).is_none() {
                overlay.leave(&mut self.shared).await?;
                until = now + GOODBYE;
            }
        }
        self.reload = Some(Reload::Leaving(Box::new(wanted), until));
        self.go_on_reloading().await
    }

    /// Goes on with a reload when nobody is waited for any more.
    pub(super) async fn go_on_reloading(&mut self) -> Result<()> {
        let Some(Reload::Leaving(_, until)) = &self.reload else {
            return Ok(());
        };
        let goes = |overlay: &&Overlay| overlay.is_leaving();
        let mut leaving = self.overlays.iter().filter(goes);
        if self.shared.clock.now() < *until && !leaving.all(Overlay::has_left) {
            return Ok(());
        }
        if let Some(Reload::Leaving(wanted, _)) = self.reload.take() {
            self.take_over(*wanted).await?;
        }
        Ok(())
    }

    /// When a reload goes on, whoever is still waited for.
    pub(super) const fn reload_deadline(&self) -> Option<Timestamp> {
        match &self.reload {
            Some(Reload::Leaving(_, until)) => Some(*until),
            Some(Reload::Rebuilding(..)) | None => None,
        }
    }

    /// Brings a reload to its end, waiting for it.
    pub(super) async fn finish_reload(&mut self) -> Result<()> {
        if let Some(Reload::Leaving(_, until)) = &mut self.reload {
            *until = Timestamp::ZERO;
            self.go_on_reloading().await?;
        }
        if let Some(Reload::Rebuilding(_, work)) = &mut self.reload {
            let rebuilt = work.await;
            self.rebuilt(rebuilt).await?;
        }
        Ok(())
    }

    /// Puts `wanted` into effect.
    async fn take_over(&mut self, wanted: Wanted) -> Result<()> {
        let Wanted {
            config: mut wanted,
            mut address,
            rlocs,
        } = wanted;
        let moves = self.config.map_server != wanted.map_server;
        if moves || self.config.rlocs != wanted.rlocs {
            self.addresses = Addresses::of(&wanted);
            if let Some(uplinks) = &mut self.shared.uplinks
                && let Err(error) = uplinks.configure(self.shared.clock.now(), &wanted)
            {
                partial(&error);
            }
        }
        let (stay, go): (Vec<_>, Vec<_>) = std::mem::take(&mut self.overlays)
            .into_iter()
            .partition(|overlay| named(&wanted, overlay.iid).is_some());
        self.overlays = stay;
        for gone in &go {
            let uplinks = self.shared.uplinks.iter_mut();
            uplinks.for_each(|it| it.forget(gone.iid));
        }
        if moves {
            if let Err(error) = self.shared.control.change_server(&wanted, address).await {
                partial(&error);
                // The next reload tries again.
                wanted.map_server = self.config.map_server.clone();
                address = self.shared.control.socket.local_addr()?.ip();
            }
            let key = &self.control_key;
            for overlay in &mut self.overlays {
                let shared = &mut self.shared;
                overlay.join(shared, &wanted, key, address).await?;
            }
        }
        self.readdress().await?;
        for overlay in &mut self.overlays {
            if let Some(instance) = named(&wanted, overlay.iid) {
                let settings = adjustable(&wanted, instance);
                let shared = &mut self.shared;
                overlay.reconfigure(shared, settings, instance).await?;
            }
        }
        let runs = |instance: &&Instance| !self.overlays.iter().any(|it| it.iid == instance.iid);
        let come: Vec<Instance> = wanted.instances.iter().filter(runs).cloned().collect();
        if go.is_empty() && come.is_empty() {
            self.reloaded(wanted);
            return Ok(());
        }
        let nonces = self.shared.nonces.first(Clock::unix_micros());
        let rebuild = Rebuild {
            config: wanted.clone(),
            go,
            come,
            control_key: self.control_key.clone(),
            address,
            rlocs,
            first_nonce: nonces.context("writing register.nonce")?,
            clock: self.shared.clock,
            sources: self.shared.uplinks.as_ref().map(OwnUplinks::sources),
        };
        self.reload = Some(Reload::Rebuilding(
            Box::new(wanted),
            tokio::spawn(rebuild.run()),
        ));
        Ok(())
    }

    /// The interfaces are as they shall be.
    pub(super) async fn rebuilt(&mut self, rebuilt: Result<Rebuilt, JoinError>) -> Result<()> {
        let Some(Reload::Rebuilding(mut wanted, _)) = self.reload.take() else {
            return Ok(());
        };
        let Rebuilt { made, failed } = rebuilt.context("making and removing instances")?;
        for (iid, error) in failed {
            partial(&error);
            // The next reload tries again.
            wanted.instances.retain(|instance| instance.iid != iid);
        }
        for mut overlay in made {
            overlay.stay();
            overlay.step(&mut self.shared, Input::Start).await?;
            self.overlays.push(overlay);
        }
        let place = |iid| wanted.instances.iter().position(|it| it.iid == iid);
        self.overlays.sort_by_key(|overlay| place(overlay.iid));
        for overlay in &mut self.overlays {
            overlay.beside(wanted.instances.len());
        }
        // The host may have moved since those that are new were told where it is.
        self.readdress().await?;
        self.reloaded(*wanted);
        Ok(())
    }

    fn reloaded(&mut self, wanted: Config) {
        info!(event = "reloaded", path = %self.config_path.display());
        self.shared.cache.touch();
        self.config = wanted;
    }
}

impl Wanted {
    /// What `config` means on this host at present.
    ///
    /// # Errors
    /// This host has no address for it.
    fn now(config: Config) -> Result<Self> {
        let rlocs = Addresses::of(&config).now()?;
        let address = setup::control_address(&config, &rlocs)?;
        Ok(Self {
            config,
            address,
            rlocs,
        })
    }
}

/// Waits until interfaces have gone and come, if a reload is at that.
pub(super) async fn next_rebuilt(reload: &mut Option<Reload>) -> Result<Rebuilt, JoinError> {
    match reload {
        Some(Reload::Rebuilding(_, work)) => work.await,
        Some(Reload::Leaving(..)) | None => std::future::pending().await,
    }
}

/// A part of a reload has failed.
fn partial(error: &anyhow::Error) {
    warn!(
        event = "reload_partial",
        error = format!("{error:#}"),
        "correct the file, or restart"
    );
}

/// What `config` says of the instance `iid`, if that is in it.
fn named(config: &Config, iid: InstanceId) -> Option<&Instance> {
    let mut instances = config.instances.iter();
    instances.find(|instance| instance.iid == iid)
}

/// Instances that go, and instances that come in their place.
struct Rebuild {
    config: Config,
    go: Vec<Overlay>,
    come: Vec<Instance>,
    control_key: PrivateKey,
    address: IpAddr,
    rlocs: Vec<agent::Uplink>,
    first_nonce: Nonce,
    clock: Clock,
    sources: Option<Sources>,
}

impl Rebuild {
    /// First all go: names and ports may be those of others then.
    async fn run(self) -> Rebuilt {
        let (mut made, mut failed) = (Vec::new(), Vec::new());
        for overlay in self.go {
            let iid = overlay.iid;
            failed.extend(overlay.close().await.err().map(|error| (iid, error)));
        }
        for instance in &self.come {
            let at = (self.address, self.rlocs.as_slice());
            let created = async {
                let key = setup::key(&self.config, &instance.key_file)?;
                let keys = (&self.control_key, &key);
                let since = (self.first_nonce, self.clock);
                let sources = self.sources.clone();
                Overlay::create(&self.config, instance, keys, at, since, sources).await
            };
            match created.await {
                Ok(overlay) => made.push(overlay),
                Err(error) => failed.push((instance.iid, error)),
            }
        }
        Rebuilt { made, failed }
    }
}

impl Overlay {
    /// Withdraws what is registered: others are about to take the place of the map servers, or the
    /// instance goes.
    async fn leave(&mut self, shared: &mut Shared) -> Result<()> {
        let now = shared.clock.now();
        self.agent.leave(now, &mut self.actions);
        self.follow(shared).await
    }

    /// The map server is that of `config` from now on.
    async fn join(
        &mut self,
        shared: &mut Shared,
        config: &Config,
        control_key: &PrivateKey,
        address: IpAddr,
    ) -> Result<()> {
        self.server = config.map_server.underlay();
        self.renewals = Renewals::default();
        let now = shared.clock.now();
        let servers = setup::map_servers(config, control_key);
        self.agent.join(now, servers, address, &mut self.actions);
        self.follow(shared).await
    }

    /// Puts settings into effect that may change at any time.
    async fn reconfigure(
        &mut self,
        shared: &mut Shared,
        wanted: Adjustable,
        instance: &Instance,
    ) -> Result<()> {
        let now = shared.clock.now();
        self.agent.reconfigure(now, wanted, &mut self.actions);
        self.follow(shared).await?;
        let before = (&self.instance.overlay, &self.instance.eid_prefixes);
        if before != (&instance.overlay, &instance.eid_prefixes)
            && let Err(error) = self.plane.move_house(instance).await
        {
            self.span.in_scope(|| partial(&error.into()));
        }
        self.instance = instance.clone();
        Ok(())
    }
}

pub(super) fn adjustable(config: &Config, instance: &Instance) -> Adjustable {
    Adjustable {
        ttl: config.ttl,
        register_interval: config.register_interval,
        hold: config.hold,
        subscriptions: instance.subscribe.clone(),
        witnesses: instance.witnesses.clone(),
        eid_prefixes: instance.eid_prefixes.clone(),
        overlay: instance.overlay.clone(),
        idle: config.idle,
        max_peers: config.max_peers,
    }
}
