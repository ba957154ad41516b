//! The uplinks of this host: which are there, and by which one the map server is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lisp_proto::InstanceId;
use serde_json::{Value, json};
use tracing::{info, warn};
use wg_device::{Device, UplinkSpec, Uplinks};

use super::forwarding::{boot, remove_note};
use crate::agent;
use crate::config::{Config, Uplink};

/// The uplinks that have routes of their own.
pub(super) struct OwnUplinks {
    routes: Uplinks,
    configured: Vec<Uplink>,
    /// Those that are there.
    present: BTreeSet<IpAddr>,
    /// Those that are not, as far as that was said.
    missing: BTreeSet<IpAddr>,
    /// Where the map server is.
    server: IpAddr,
    choices: Choices,
    /// Says that there may be something to remove.
    note: PathBuf,
}

/// Who has chosen an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    MapServer,
    Instance(InstanceId),
}

/// By which uplink packets to an address leave, and who has said so, the latest one last: a far end may be
/// where the map server is, or in several instances.
#[derive(Debug, Default)]
struct Choices(BTreeMap<IpAddr, Vec<(Owner, IpAddr)>>);

impl Choices {
    /// `owner` wants packets to `to` to leave from `from`; `None`: from wherever the others do.
    fn choose(&mut self, owner: Owner, to: IpAddr, from: Option<IpAddr>) {
        let choices = self.0.entry(to).or_default();
        choices.retain(|(it, _)| *it != owner);
        choices.extend(from.map(|from| (owner, from)));
        if choices.is_empty() {
            self.0.remove(&to);
        }
    }

    /// From where packets to `to` leave, if anybody has chosen that.
    fn of(&self, to: &IpAddr) -> Option<IpAddr> {
        let latest = self.0.get(to)?.last();
        latest.map(|(_, from)| *from)
    }

    /// What `owner` has chosen for `to`.
    fn by(&self, owner: Owner, to: &IpAddr) -> Option<IpAddr> {
        let mut choices = self.0.get(to)?.iter();
        choices.find_map(|(it, from)| (*it == owner).then_some(*from))
    }

    /// For which addresses `owner` has chosen.
    fn chosen_by(&self, owner: Owner) -> Vec<IpAddr> {
        let chosen = self.0.keys().copied();
        chosen.filter(|to| self.by(owner, to).is_some()).collect()
    }

    /// Only choices of these addresses of ours count any more. Returns where they lead by now.
    fn keep(&mut self, present: &BTreeSet<IpAddr>) -> Vec<(IpAddr, IpAddr)> {
        self.0.retain(|_, choices| {
            choices.retain(|(_, from)| present.contains(from));
            !choices.is_empty()
        });
        let left = self.0.keys().filter_map(|to| Some((*to, self.of(to)?)));
        left.collect()
    }
}

impl OwnUplinks {
    /// Gives the uplinks of `config` their routes, if it has any; otherwise what an earlier run has left of
    /// such routes goes.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing, or the state directory cannot be written.
    pub(super) fn of(config: &Config) -> Result<Option<Self>> {
        let note = note_in(&config.state_dir);
        if !config.has_uplinks() {
            remove_left(config)?;
            return Ok(None);
        }
        let routes = Uplinks::open()?;
        if is_of_now(&note)? {
            // Tunnels of an earlier run may go on with these, and shall if this one cannot start.
            routes.stay();
        }
        fs::write(&note, boot()).with_context(|| format!("writing {}", note.display()))?;
        let mut uplinks = Self {
            routes,
            configured: Vec::new(),
            present: BTreeSet::new(),
            missing: BTreeSet::new(),
            server: config.map_server.underlay(),
            choices: Choices::default(),
            note,
        };
        uplinks.configure(config)?;
        Ok(Some(uplinks))
    }

    /// Takes over what `config` says of them: which one the map server is reached by begins anew.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing.
    pub(super) fn configure(&mut self, config: &Config) -> Result<()> {
        self.choose(Owner::MapServer, self.server, None);
        self.server = config.map_server.underlay();
        self.configured.clone_from(&config.rlocs);
        self.settle()
    }

    /// Looks at which are there, and gives those their routes.
    ///
    /// # Errors
    /// As [`configure`](Self::configure).
    pub(super) fn settle(&mut self) -> Result<()> {
        let wanted = specs(&self.configured);
        let present: BTreeSet<_> = self.routes.set(&wanted)?.into_iter().collect();
        let missing = wanted.iter().map(|it| it.address);
        let missing: BTreeSet<_> = missing.filter(|it| !present.contains(it)).collect();
        for address in present.difference(&self.present) {
            info!(event = "uplink_up", %address);
        }
        for address in missing.difference(&self.missing) {
            let why = self.routes.why_missing(*address).unwrap_or_default();
            warn!(event = "uplink_down", %address, why);
        }
        for (to, from) in self.choices.keep(&present) {
            self.leave_from(to, Some(from));
        }
        (self.present, self.missing) = (present, missing);
        Ok(())
    }

    /// Those of `rlocs` that packets can leave from, unless that is none: an interface may be up, and its
    /// gateway of no use.
    pub(super) fn usable(&self, rlocs: Vec<agent::Uplink>) -> Vec<agent::Uplink> {
        let mut usable = rlocs.clone();
        usable.retain(|it| !it.steers || self.present.contains(&it.address));
        if usable.is_empty() { rlocs } else { usable }
    }

    /// The addresses of those that are there.
    pub(super) fn present(&self) -> Vec<IpAddr> {
        self.present.iter().copied().collect()
    }

    /// Has packets of the tunnels of an instance, in `device`, to `to` leave from `from`, or as all others do.
    pub(super) fn steer(
        &mut self,
        iid: InstanceId,
        device: &Device,
        to: IpAddr,
        from: Option<IpAddr>,
    ) {
        self.choose(Owner::Instance(iid), to, from);
        device.leave_from(to, from);
    }

    /// The instance `iid` is gone, and whatever it has chosen.
    pub(super) fn forget(&mut self, iid: InstanceId) {
        let owner = Owner::Instance(iid);
        for to in self.choices.chosen_by(owner) {
            self.choose(owner, to, None);
        }
    }

    fn choose(&mut self, owner: Owner, to: IpAddr, from: Option<IpAddr>) {
        self.choices.choose(owner, to, from);
        self.leave_from(to, self.choices.of(&to));
    }

    fn leave_from(&self, to: IpAddr, from: Option<IpAddr>) {
        if let Err(error) = self.routes.leave_from(to, from) {
            warn!(%to, %error, "no other uplink");
        }
    }

    /// The map server does not answer: it is reached by the next uplink from now on. Returns where it is,
    /// and our address that packets to it leave from.
    pub(super) fn turn_for_server(&mut self) -> (IpAddr, Option<IpAddr>) {
        let (server, used) = self.server();
        let mut usable: Vec<_> = self.configured.iter().collect();
        usable.retain(|it| {
            let alike = it.address.is_ipv4() == server.is_ipv4();
            alike && self.present.contains(&it.address)
        });
        usable.sort_by_key(|it| rank(it));
        let usable: Vec<_> = usable.iter().map(|it| it.address).collect();
        if usable.len() < 2 {
            return (server, used);
        }
        let place = usable.iter().position(|it| Some(*it) == used).unwrap_or(0);
        let next = usable.get((place + 1) % usable.len()).copied();
        warn!(
            event = "map_server_silent",
            uplink = next.map(tracing::field::display)
        );
        self.choose(Owner::MapServer, server, next);
        self.server()
    }

    /// Where the map server is, and our address that packets to it leave from, if one was chosen.
    pub(super) fn server(&self) -> (IpAddr, Option<IpAddr>) {
        let from = self.choices.by(Owner::MapServer, &self.server);
        (self.server, from)
    }

    /// From now on rules and routes are left in place for the next run, if there are tunnels that go on.
    pub(super) fn stay(&self, stays: bool) {
        match stays {
            true => self.routes.stay(),
            false => self.routes.stay_no_longer(),
        }
    }

    /// Removes rules and routes.
    pub(super) fn remove(self) {
        self.routes.remove();
        remove_note(&self.note);
    }

    /// What `status` says of them.
    pub(super) fn report(&self) -> Vec<Value> {
        let (_, for_server) = self.server();
        let told = self.configured.iter().map(|uplink| {
            json!({
                "address": uplink.address,
                "interface": uplink.interface,
                "gateway": uplink.gateway,
                "priority": uplink.priority,
                "weight": uplink.weight,
                "why_down": self.routes.why_missing(uplink.address),
                "up": uplink.interface.is_none() || self.present.contains(&uplink.address),
                "map_server": for_server == Some(uplink.address),
            })
        });
        told.collect()
    }
}

/// Removes what an earlier run of the agent with this configuration has left of rules and routes, if it had
/// uplinks; whether there still are any in the configuration does not matter.
///
/// # Errors
/// CAP_NET_ADMIN is missing.
pub(super) fn remove_left(config: &Config) -> Result<()> {
    let note = note_in(&config.state_dir);
    if is_of_now(&note)? || config.has_uplinks() {
        Uplinks::remove_leftover()?;
    }
    remove_note(&note);
    Ok(())
}

/// Whether `note` is there, and was written since the host was started: what there was before is gone, and
/// others may have uplinks now.
fn is_of_now(note: &Path) -> Result<bool> {
    match fs::read_to_string(note) {
        Ok(noted) => Ok(noted == boot()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("reading {}", note.display())),
    }
}

fn note_in(state_dir: &Path) -> PathBuf {
    state_dir.join("uplinks")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_has_chosen_is_there_again_when_another_one_lets_go() {
        let at = |last| IpAddr::from([192, 0, 2, last]);
        let (far, one, other) = (at(9), at(1), at(2));
        let (server, instance) = (Owner::MapServer, Owner::Instance(InstanceId(7)));
        let mut choices = Choices::default();
        choices.choose(server, far, Some(one));
        choices.choose(instance, far, Some(other));
        assert_eq!(choices.of(&far), Some(other), "the latest one counts");
        assert_eq!(choices.by(server, &far), Some(one));
        assert_eq!(choices.chosen_by(instance), [far]);
        choices.choose(instance, far, None);
        assert_eq!(choices.of(&far), Some(one));
        choices.choose(instance, far, Some(other));
        assert_eq!(choices.keep(&[one].into()), [(far, one)]);
        assert_eq!(choices.chosen_by(instance), [] as [IpAddr; 0]);
        choices.choose(server, far, None);
        assert_eq!((choices.of(&far), choices.0.len()), (None, 0));
    }
}
