//! Where would the clients of an owner go, and why can somebody not?
//!
//! Planning changes nothing. `migrate.rs` carries a plan out.

use std::collections::{BTreeMap, BTreeSet};

use lisp_proto::EidPrefix;

use super::MapServer;
use super::operator::{Clients, Command, Migration, MigrationState, Refused, Step, Why};
use super::sites::XtrIndex;
use crate::config::XtrName;

/// What is to become of one client.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// Its name, also if there is no such xTR.
    pub(super) name: XtrName,
    pub(super) from: XtrIndex,
    pub(super) eids: Vec<EidPrefix>,
    /// Who it is and whom it shall use.
    pub(super) way: Result<(XtrIndex, XtrIndex), Why>,
}

impl MapServer {
    /// Says what `command` would do, client by client: those that can move are queued, the others
    /// have failed.
    ///
    /// # Errors
    /// It names no such xTRs, or they have nothing in common.
    pub fn plan(&self, command: &Command) -> Result<Vec<Migration>, Refused> {
        let planned = self.planned(command)?;
        Ok(planned.iter().map(|it| self.migration(0, it)).collect())
    }

    /// Writes down what is planned.
    pub(super) fn migration(&self, run: u64, planned: &Planned) -> Migration {
        let name = |xtr: XtrIndex| self.sites.site(xtr).name.clone();
        let (to, state) = match &planned.way {
            Ok((_, to)) => (Some(name(*to)), MigrationState::Queued),
            Err(why) => {
                let (step, why) = (Step::Plan, why.clone());
                (None, MigrationState::Failed { step, why })
            }
        };
        Migration {
            run,
            client: planned.name.clone(),
            eids: planned.eids.clone(),
            from: name(planned.from),
            to,
            state,
            started: None,
            told: None,
            moved: None,
            gap: None,
            connections: None,
            ended: None,
        }
    }

    /// The same as [`Self::plan`], for those who carry it out.
    pub(super) fn planned(&self, command: &Command) -> Result<Vec<Planned>, Refused> {
        match command {
            Command::Undrain { from } => self.named(from).map(|_| Vec::new()),
            Command::Drain { from, .. } => Ok(self.plan_drain(self.named(from)?)),
            Command::Migrate {
                from, to, clients, ..
            } => {
                let (source, destination) = (self.named(from)?, self.named(to)?);
                if source == destination {
                    return Err(Refused::Same { name: from.clone() });
                }
                let mappings = &self.state.mappings;
                let mut shared = self.shares(source);
                let both = |eid: &EidPrefix| {
                    let mapping = mappings.exact(eid);
                    mapping.is_some_and(|mapping| mapping.is_registered_by(destination))
                };
                shared.retain(both);
                let wants_none = |eid| {
                    let mapping = mappings.exact(eid);
                    mapping.is_some_and(|mapping| self.leaves(mapping, destination))
                };
                if self.state.assignments.is_draining(destination) || shared.iter().any(wants_none)
                {
                    return Err(Refused::Drained { name: to.clone() });
                }
                if shared.is_empty() {
                    return Err(Refused::NothingShared {
                        from: from.clone(),
                        from_has: mappings.all_registered_by(source),
                        to: to.clone(),
                        to_has: mappings.all_registered_by(destination),
                    });
                }
                Ok(self.plan_migration(source, destination, clients, &shared))
            }
        }
    }

    fn named(&self, name: &XtrName) -> Result<XtrIndex, Refused> {
        self.sites.by_name(name).ok_or_else(|| {
            let registrations = self.state.mappings.registrations();
            let sharing = registrations.filter(|(_, _, registration)| registration.merge);
            let known: BTreeSet<_> = sharing.map(|(_, registrant, _)| registrant.xtr).collect();
            let known = known
                .into_iter()
                .map(|xtr| self.sites.site(xtr).name.clone());
            Refused::Unknown {
                name: name.clone(),
                known: known.collect(),
            }
        })
    }

    /// Lists what `xtr` has registered in a way that lets others register it as well.
    fn shares(&self, xtr: XtrIndex) -> Vec<EidPrefix> {
        let mappings = &self.state.mappings;
        let eids = mappings.all_registered_by(xtr);
        let shared = eids.into_iter().filter(|eid| {
            let mapping = mappings.exact(eid);
            mapping.is_some_and(|mapping| self.is_shared(mapping))
        });
        shared.collect()
    }

    fn plan_migration(
        &self,
        from: XtrIndex,
        to: XtrIndex,
        clients: &Clients,
        shared: &[EidPrefix],
    ) -> Vec<Planned> {
        let mut using: BTreeMap<_, Vec<EidPrefix>> = BTreeMap::new();
        for eid in shared {
            for (client, owner) in self.state.assignments.clients(eid) {
                if owner == from {
                    using.entry(client).or_default().push(*eid);
                }
            }
        }
        let planned = |client: XtrIndex, eids: Vec<EidPrefix>| {
            let obstacle = self.obstacle(client, &eids);
            Planned {
                name: self.sites.site(client).name.clone(),
                from,
                eids,
                way: obstacle.map_or(Ok((client, to)), Err),
            }
        };
        let names = match clients {
            Clients::All => {
                let all = using.into_iter();
                return all.map(|(client, eids)| planned(client, eids)).collect();
            }
            Clients::Set(names) => names,
        };
        let named = names.iter().map(|name| {
            let client = self.sites.by_name(name);
            let found = client.and_then(|client| Some((client, using.remove(&client)?)));
            let why = match (found, client) {
                (Some((client, eids)), _) => return planned(client, eids),
                (None, Some(client)) => self.elsewhere(client, shared),
                (None, None) => Why::Unknown,
            };
            Planned {
                name: name.clone(),
                from,
                eids: Vec::new(),
                way: Err(why),
            }
        });
        named.collect()
    }

    /// Says where `client` is instead.
    fn elsewhere(&self, client: XtrIndex, eids: &[EidPrefix]) -> Why {
        if self.state.mappings.all_registered_by(client).is_empty() {
            return Why::NothingRegistered;
        }
        let assignments = &self.state.assignments;
        let mut at = eids.iter().filter_map(|eid| assignments.get(eid, client));
        let at = at.next();
        Why::Elsewhere {
            at: at.map(|at| self.sites.site(at.owner).name.clone()),
        }
    }

    /// Says where the clients of an owner would go that wants none.
    pub(super) fn plan_drain(&self, from: XtrIndex) -> Vec<Planned> {
        let assignments = &self.state.assignments;
        let mut ways: BTreeMap<_, Vec<EidPrefix>> = BTreeMap::new();
        for eid in self.shares(from) {
            let Some(mapping) = self.state.mappings.exact(&eid) else {
                continue;
            };
            let clients = assignments.clients(&eid);
            for (client, _) in clients.filter(|(_, owner)| *owner == from) {
                let to = self.best_owner(mapping, client, |owner| owner == from);
                let to = to.filter(|to| !self.leaves(mapping, *to));
                ways.entry((client, to)).or_default().push(eid);
            }
        }
        let planned = ways.into_iter().map(|((client, to), eids)| {
            let obstacle = self.obstacle(client, &eids);
            let way = to.map(|to| (client, to)).ok_or(Why::NobodyElse);
            Planned {
                name: self.sites.site(client).name.clone(),
                from,
                eids,
                way: obstacle.map_or(way, Err),
            }
        });
        planned.collect()
    }

    /// Says what is in the way of moving `client`, if anything.
    fn obstacle(&self, client: XtrIndex, eids: &[EidPrefix]) -> Option<Why> {
        let mappings = &self.state.mappings;
        if self.state.moves.is_moving(client) {
            return Some(Why::Moving);
        }
        let here = |eid: &EidPrefix| mappings.has_registered(client, eid.iid());
        (!eids.iter().all(here)).then_some(Why::NothingRegistered)
    }
}
