//! The uplinks of this host: which are there, and by which one the map server is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lisp_proto::{InstanceId, Timestamp};
use serde_json::{Value, json};
use tracing::{info, warn};
use wg_device::{Sources, UplinkSpec, Uplinks};

use super::damping::Damping;
use super::forwarding::{boot, remove_note};
use super::server_way::ServerWay;
use crate::agent;
use crate::config::{Config, Uplink};

/// The uplinks that have routes of their own.
pub(super) struct OwnUplinks {
    routes: Uplinks,
    /// The same for data planes in this process.
    sources: Sources,
    configured: Vec<Uplink>,
    /// Those that are there, and used.
    present: BTreeSet<IpAddr>,
    /// What of others is known that come and go.
    damping: Damping,
    /// Those that are not, as far as that was said.
    missing: BTreeSet<IpAddr>,
    /// Where the map server is.
    server: IpAddr,
    /// By which one it is reached.
    way: ServerWay,
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

    /// Whether an instance has found out that packets leave from another address of its family than `used`.
    fn avoid(&self, used: IpAddr) -> bool {
        let mut choices = self.0.values().flatten();
        choices.any(|(owner, from)| {
            let is_other = *from != used && from.is_ipv4() == used.is_ipv4();
            is_other && matches!(owner, Owner::Instance(_))
        })
    }

    /// For which addresses `owner` has chosen.
    fn chosen_by(&self, owner: Owner) -> Vec<IpAddr> {
        let chosen = self.0.keys().copied();
        chosen.filter(|to| self.by(owner, to).is_some()).collect()
    }

    /// Only choices of these addresses of ours count any more. Returns where each leads by now.
    fn keep(&mut self, present: &BTreeSet<IpAddr>) -> Vec<(IpAddr, Option<IpAddr>)> {
        let all: Vec<_> = self.0.keys().copied().collect();
        self.0.retain(|_, choices| {
            choices.retain(|(_, from)| present.contains(from));
            !choices.is_empty()
        });
        all.into_iter().map(|to| (to, self.of(&to))).collect()
    }
}

impl OwnUplinks {
    /// Gives the uplinks of `config` their routes, if it has any; otherwise what an earlier run has left of
    /// such routes goes.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing, or the state directory cannot be written.
    pub(super) fn of(now: Timestamp, config: &Config) -> Result<Option<Self>> {
        let note = note_in(&config.state_dir);
        if !config.has_uplinks() {
            remove_left(config)?;
            return Ok(None);
        }
        let before = number_of_now(&note)?;
        let routes = Uplinks::claim(before)?;
        if before == Some(routes.number()) {
            // Tunnels of an earlier run may go on with these, and shall if this one cannot start.
            routes.stay();
        }
        let noted = format!("{} {}", routes.number(), boot());
        fs::write(&note, noted).with_context(|| format!("writing {}", note.display()))?;
        let mut uplinks = Self {
            routes,
            sources: Sources::default(),
            configured: Vec::new(),
            present: BTreeSet::new(),
            damping: Damping::default(),
            missing: BTreeSet::new(),
            server: config.map_server.underlay(),
            way: ServerWay::default(),
            choices: Choices::default(),
            note,
        };
        uplinks.configure(now, config)?;
        Ok(Some(uplinks))
    }

    /// Takes over what `config` says of them: which one the map server is reached by begins anew.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing.
    pub(super) fn configure(&mut self, now: Timestamp, config: &Config) -> Result<()> {
        self.choose(Owner::MapServer, self.server, None);
        self.way = ServerWay::default();
        self.server = config.map_server.underlay();
        self.configured.clone_from(&config.rlocs);
        self.settle(now)
    }

    /// Looks at which are there, and gives those their routes.
    ///
    /// # Errors
    /// As [`configure`](Self::configure).
    pub(super) fn settle(&mut self, now: Timestamp) -> Result<()> {
        let wanted = specs(&self.configured);
        let damping = &mut self.damping;
        let held_back = |there: &BTreeSet<IpAddr>| damping.held_back(now, there);
        let present = self.routes.set_but(&wanted, held_back)?;
        let present: BTreeSet<_> = present.into_iter().collect();
        let missing = wanted.iter().map(|it| it.address);
        let missing: BTreeSet<_> = missing.filter(|it| !present.contains(it)).collect();
        for address in present.difference(&self.present) {
            info!(event = "uplink_up", %address);
        }
        for address in missing.difference(&self.missing) {
            let why = self.routes.why_missing(*address).unwrap_or_default();
            warn!(event = "uplink_down", %address, why);
        }
        let there: Vec<_> = present.iter().copied().collect();
        self.sources.set(&there);
        for (to, from) in self.choices.keep(&present) {
            self.leave_from(to, from);
        }
        (self.present, self.missing) = (present, missing);
        self.way.set_usable(now, self.usable_for_server());
        self.follow_way();
        Ok(())
    }

    /// Our addresses that packets to the map server can leave from, the best one first.
    fn usable_for_server(&self) -> Vec<IpAddr> {
        let mut usable: Vec<_> = self.configured.iter().collect();
        usable.retain(|it| {
            let alike = it.address.is_ipv4() == self.server.is_ipv4();
            alike && self.present.contains(&it.address)
        });
        usable.sort_by_key(|it| rank(it));
        usable.iter().map(|it| it.address).collect()
    }

    /// Those of `rlocs` that packets can leave from, unless that is none: an interface may be up, and its
    /// gateway of no use.
    pub(super) fn usable(&self, rlocs: Vec<agent::Uplink>) -> Vec<agent::Uplink> {
        let mut usable = rlocs.clone();
        usable.retain(|it| !it.steers || self.present.contains(&it.address));
        if usable.is_empty() { rlocs } else { usable }
    }

    /// From which of our addresses data planes in this process send.
    pub(super) fn sources(&self) -> Sources {
        self.sources.clone()
    }

    /// Has packets of the tunnels of an instance to `to` leave from `from`, or as all others do.
    pub(super) fn steer(&mut self, iid: InstanceId, to: IpAddr, from: Option<IpAddr>) {
        self.choose(Owner::Instance(iid), to, from);
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

    /// Routes and sources belong together, whichever interface a packet is of.
    fn leave_from(&self, to: IpAddr, from: Option<IpAddr>) {
        match self.routes.leave_from(to, from) {
            Ok(()) => self.sources.choose(to, from),
            Err(error) => warn!(%to, %error, "no other uplink"),
        }
    }

    /// The map server has not answered for a second: another uplink may be used from now on.
    pub(super) fn server_is_silent(&mut self, now: Timestamp) {
        let is_avoided = self.way.used().is_some_and(|it| self.choices.avoid(it));
        if self.way.silent(now, is_avoided) {
            let uplink = self.way.used().map(tracing::field::display);
            warn!(event = "map_server_silent", uplink);
            self.follow_way();
        }
    }

    /// The map server has answered a question.
    pub(super) fn server_has_replied(&mut self, now: Timestamp) {
        self.way.heard(now);
    }

    /// The map server has answered what was sent to it.
    pub(super) fn server_has_answered(&mut self, now: Timestamp) {
        let was_on_trial = self.is_on_trial();
        self.way.answered(now);
        if was_on_trial {
            self.follow_way();
        }
    }

    /// When something is to be done: [`settle`](Self::settle) or [`tick`](Self::tick).
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.way.due().into_iter().chain(self.damping.due()).min()
    }

    /// Whether one that was held back may be used by now: that is said once.
    pub(super) fn is_to_settle(&mut self, now: Timestamp) -> bool {
        self.damping.is_over(now)
    }

    /// Goes on with what waits for a moment. Says whether the map server is reached by another uplink from
    /// now on.
    pub(super) fn tick(&mut self, now: Timestamp) -> bool {
        let turns = self.way.tick(now);
        if turns {
            let uplink = self.way.used().map(tracing::field::display);
            info!(event = "map_server_uplink", uplink);
            self.follow_way();
        }
        turns
    }

    /// Whether it is tried if the map server is reached by the best uplink again: something has to be sent.
    pub(super) const fn is_on_trial(&self) -> bool {
        self.way.is_on_trial()
    }

    /// Has packets to the map server leave by the uplink that they shall take.
    fn follow_way(&mut self) {
        // The best one needs no choice, but while it is tried: WireGuard answers from where it was reached last, which
        // may be the other one, and what is sent there would not try anything.
        let from = match self.is_on_trial() {
            true => self.way.used(),
            false => self.way.chosen(),
        };
        self.choose(Owner::MapServer, self.server, from);
    }

    /// Our address that packets to the map server leave from.
    pub(super) const fn for_server(&self) -> Option<IpAddr> {
        self.way.used()
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
        let for_server = self.for_server();
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
    if let Some(number) = number_of_now(&note)? {
        Uplinks::remove_leftover(number)?;
    }
    remove_note(&note);
    Ok(())
}

/// The number of rules and tables that `note` names, if it was written since the host was started: what there
/// was before is gone, and others may have it now.
fn number_of_now(note: &Path) -> Result<Option<u32>> {
    let noted = match fs::read_to_string(note) {
        Ok(noted) => noted,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", note.display())),
    };
    let noted = noted.split_once(' ').filter(|(_, at)| *at == boot());
    Ok(noted.and_then(|(number, _)| number.parse().ok()))
}

fn note_in(state_dir: &Path) -> PathBuf {
    state_dir.join("uplinks")
}

/// Which of `configured` are there, without changing anything.
///
/// # Errors
/// The system does not tell.
pub(super) fn present(configured: &[Uplink]) -> Result<Vec<IpAddr>> {
    Ok(Uplinks::present(&specs(configured))?)
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
        assert!(choices.avoid(one) && !choices.avoid(other));
        assert_eq!(choices.keep(&[one].into()), [(far, Some(one))]);
        assert!(!choices.avoid(other), "the map server has chosen that");
        assert_eq!(choices.chosen_by(instance), [] as [IpAddr; 0]);
        choices.choose(server, far, None);
        assert_eq!((choices.of(&far), choices.0.len()), (None, 0));
        choices.choose(instance, far, Some(other));
        assert_eq!(choices.keep(&[one].into()), [(far, None)]);
    }
}
