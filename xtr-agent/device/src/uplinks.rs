//! Uplinks of this host: each has its own source address, and a way out of its own.
//!
//! Packets from the address of an uplink leave by it, through a routing table with the network that it
//! is in and its gateway. Those that carry tunnels (they have the mark) and have no address yet leave by
//! the best uplink that is there, unless somebody has chosen another one for where they go.
//!
//! What the main table knows better than by a default route comes first, such as networks that are at
//! other interfaces. But it also knows the networks of all uplinks, by the interface of each, whether that
//! leads anywhere or not. So the table of each uplink has those too, by its own gateway.
//!
//! | rule | who | where to |
//! |---|---|---|
//! | 4272 | marked | to whom another uplink was chosen: one host route each |
//! | 4280 | marked, from the address of an uplink | the networks of all uplinks, by that one |
//! | 4288 | marked | the networks of all uplinks, by the best one |
//! | 4296 | marked | what the main table knows better than by a default route |
//! | 4304 | marked, from the address of an uplink | anywhere, by that uplink |
//! | 4312 | marked | anywhere, by the best uplink |
//! | 4320 | from the address of an uplink | what the main table knows better than by a default route |
//! | 4328 | from the address of an uplink | anywhere, by that uplink |
//!
//! Several agents may have uplinks in one network namespace: each has numbers of its own (`slot`), those above
//! and up to seven more, and touches no others. What they share is the mark. So the best uplink, and what was
//! chosen, are those of the agent with the lowest numbers for packets of all that have no address yet.
//!
//! What there is and what there shall be are compared whenever something changes, so what a killed run
//! has left is taken over or goes.

mod look;
mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use crate::error::DeviceError;
use crate::netlink::link::Links;
use crate::netlink::policy::{Policy, PolicyRoute, PolicyRule};
use crate::routes::MAIN_TABLE;
use crate::rules::UNDERLAY_MARK;
use look::{Looked, Present};
use slot::{
    BEST, CHOSEN, Claim, FROM, Kind, NEAR, NEAR_BEST, NEAR_FROM, OTHERS_FROM, OTHERS_NEAR, Slot,
};

/// An uplink as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkSpec {
    /// Its address.
    pub address: IpAddr,
    /// The interface that has it.
    pub interface: String,
    /// The next router; `None`: the interface leads to one other end only.
    pub gateway: Option<IpAddr>,
    /// Which one is used where nobody has chosen: the lowest that is there.
    pub rank: u16,
}

/// The uplinks of this host, in the network namespace in which this was opened. Rules and routes are
/// removed when this is dropped, unless it was told to [`stay`](Self::stay).
#[derive(Debug)]
pub struct Uplinks {
    state: Mutex<State>,
    /// Whether there may be anything to remove.
    is_set: AtomicBool,
    stays: AtomicBool,
}

#[derive(Debug)]
struct State {
    claim: Claim,
    links: Links,
    now: Looked,
    /// Why uplinks that are there have no routes.
    refused: BTreeMap<IpAddr, String>,
    /// Gateways that are not in the network of their uplink, as far as that was said.
    elsewhere: BTreeSet<IpAddr>,
    /// To whom packets leave from which address.
    chosen: BTreeMap<IpAddr, IpAddr>,
}

impl Uplinks {
    /// Opens the routing tables of the present network namespace, and claims numbers there that no other agent
    /// has: the `preferred` ones, if they are free, or some under which nothing was left. Changes nothing.
    ///
    /// # Errors
    /// The system refuses a netlink socket, or all numbers are taken.
    pub fn claim(preferred: Option<u32>) -> Result<Self, DeviceError> {
        let failed = |e| DeviceError::system(OPENING, TABLES, e);
        let mut links = Links::open().map_err(failed)?;
        let claim = claim(&mut links, preferred).map_err(failed)?;
        Ok(Self {
            state: Mutex::new(State {
                claim,
                links,
                now: Looked::default(),
                refused: BTreeMap::new(),
                elsewhere: BTreeSet::new(),
                chosen: BTreeMap::new(),
            }),
            is_set: AtomicBool::new(false),
            stays: AtomicBool::new(false),
        })
    }

    /// Which numbers of rules and tables were claimed, for the next run.
    pub fn number(&self) -> u32 {
        self.state().claim.slot.number()
    }

    /// Gives those of `wanted` that are there their rules and routes, and takes those of others away.
    /// Returns the addresses of those that have them; why one has not, for instance because nobody can be
    /// a gateway there, is logged once.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing.
    pub fn set(&self, wanted: &[UplinkSpec]) -> Result<Vec<IpAddr>, DeviceError> {
        self.set_but(wanted, |_| BTreeSet::new())
    }

    /// The same, but those that are `held_back` of the ones that are there count as if they were not.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_but(
        &self,
        wanted: &[UplinkSpec],
        held_back: impl FnOnce(&BTreeSet<IpAddr>) -> BTreeSet<IpAddr>,
    ) -> Result<Vec<IpAddr>, DeviceError> {
        let mut state = self.state();
        let mut looked = Looked::at(&mut state.links, wanted)?;
        let there = looked.addresses().collect();
        looked.hold_back(&held_back(&there));
        state.warn_of_gateways(&looked);
        state.now = looked;
        self.is_set.store(true, Ordering::Relaxed);
        let here: BTreeSet<_> = state.now.addresses().collect();
        state.chosen.retain(|_, from| here.contains(from));
        state.settle()?;
        Ok(state.now.addresses().collect())
    }

    /// The addresses of those of `wanted` that are there; claims and changes nothing.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn present(wanted: &[UplinkSpec]) -> Result<Vec<IpAddr>, DeviceError> {
        let mut links = Links::open().map_err(|e| DeviceError::system(OPENING, TABLES, e))?;
        Ok(Looked::at(&mut links, wanted)?.addresses().collect())
    }

    /// Why the uplink with `address` was not there when they were [`set`](Self::set) the last time, if it was
    /// not.
    pub fn why_missing(&self, address: IpAddr) -> Option<String> {
        let state = self.state();
        let missing = state.now.missing.get(&address).map(ToString::to_string);
        missing.or_else(|| state.refused.get(&address).cloned())
    }

    /// Has packets of tunnels to `to` leave by the uplink with the address `from`, if it is there;
    /// `None`: as all others do.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing, or the interface has gone down. Then they leave as before.
    pub fn leave_from(&self, to: IpAddr, from: Option<IpAddr>) -> Result<(), DeviceError> {
        let mut state = self.state();
        let failed = |e| DeviceError::system(CHOOSING, &to.to_string(), e);
        let before = state.chosen.get(&to).copied();
        if before == from {
            return Ok(());
        }
        let old = before.and_then(|from| state.host_route(to, from));
        let new = from.and_then(|from| state.host_route(to, from));
        let mut policy = Policy(state.links.socket());
        match (&new, &old) {
            // In the place of the old one.
            (Some(new), _) => policy.add_route(new).map_err(failed)?,
            (None, Some(old)) => policy.remove_route(old).map_err(failed)?,
            (None, None) => {}
        }
        match new.and(from) {
            Some(from) => state.chosen.insert(to, from),
            None => state.chosen.remove(&to),
        };
        Ok(())
    }

    /// From now on rules and routes are left in place for the next run.
    pub fn stay(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    /// From now on rules and routes go when this is dropped, as at first.
    pub fn stay_no_longer(&self) {
        self.stays.store(false, Ordering::Relaxed);
    }

    /// Removes rules and routes, whether they were to stay or not.
    pub fn remove(self) {
        self.stays.store(false, Ordering::Relaxed);
    }

    /// Removes what a run with this [`number`](Self::number) left that is no more; that there is nothing is
    /// no error, and what another agent has under it by now stays.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing.
    pub fn remove_leftover(number: u32) -> Result<(), DeviceError> {
        let uplinks = Self::claim(Some(number))?;
        if uplinks.number() == number {
            uplinks.state().settle()?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Uplinks {
    fn drop(&mut self) {
        if *self.stays.get_mut() || !*self.is_set.get_mut() {
            return;
        }
        let mut state = self.state();
        (state.now, state.chosen) = (Looked::default(), BTreeMap::new());
        if let Err(error) = state.settle() {
            tracing::warn!(%error, "rules and routes of uplinks are still there");
        }
    }
}

impl State {
    /// Says once which gateways are not where their uplinks are: the kernel takes them, and looks for them
    /// there all the same.
    fn warn_of_gateways(&mut self, looked: &Looked) {
        let elsewhere = looked
            .present
            .iter()
            .filter(|it| it.has_gateway_elsewhere());
        for Present { spec, network, .. } in elsewhere {
            let gateways = spec.gateway.into_iter();
            for gateway in gateways.filter(|it| self.elsewhere.insert(*it)) {
                let address = spec.address;
                tracing::warn!(event = "uplink_gateway_elsewhere", %address, %gateway, %network);
            }
        }
    }

    /// Makes the host what it shall be: routes before the rules that lead to them. An uplink whose routes
    /// are refused counts as one that is not there, and the others are what they shall be.
    fn settle(&mut self) -> Result<(), DeviceError> {
        let failed = |e| DeviceError::system(SETTING, TABLES, e);
        let slot = self.claim.slot;
        let routes = self.wanted_routes();
        let mut policy = Policy(self.links.socket());
        let there = policy.routes(slot.tables()).map_err(failed)?;
        for route in there.difference(&routes) {
            policy.remove_route(route).map_err(failed)?;
        }
        let mut refused = BTreeMap::new();
        for route in routes.difference(&there) {
            if let Err(error) = policy.add_route(route) {
                let source = route.source.into_iter();
                refused.extend(source.map(|source| (source, error.to_string())));
            }
        }
        self.refuse(refused);
        let rules = wanted_rules(slot, &self.now.present);
        let mut policy = Policy(self.links.socket());
        let there = policy.rules(|it| slot.has_priority(it)).map_err(failed)?;
        for rule in rules.difference(&there) {
            policy.add_rule(rule).map_err(failed)?;
        }
        for rule in there.difference(&rules) {
            policy.remove_rule(rule).map_err(failed)?;
        }
        Ok(())
    }

    /// The routes of uplinks with these addresses are refused, for these reasons.
    fn refuse(&mut self, refused: BTreeMap<IpAddr, String>) {
        for (address, error) in &refused {
            if self.refused.get(address) != Some(error) {
                tracing::warn!(event = "uplink_refused", %address, %error);
            }
        }
        let present = &mut self.now.present;
        present.retain(|it| !refused.contains_key(&it.spec.address));
        self.chosen.retain(|_, from| !refused.contains_key(from));
        self.refused = refused;
    }

    fn wanted_routes(&self) -> BTreeSet<PolicyRoute> {
        let mut routes = BTreeSet::new();
        for uplink in &self.now.present {
            let table = self.claim.slot.uplink_table(uplink.place);
            let route = |to, gateway| PolicyRoute {
                table,
                to,
                index: uplink.index,
                gateway,
                source: Some(uplink.spec.address),
            };
            if uplink.network.prefix_len() < uplink.network.max_prefix_len() {
                routes.insert(route(uplink.network, None));
            }
            let gateway = uplink.spec.gateway;
            routes.insert(route(everything(uplink.spec.address), gateway));
            let others = self.now.networks.iter().filter(|other| {
                let alike = other.addr().is_ipv4() == uplink.spec.address.is_ipv4();
                alike && !uplink.network.contains(*other)
            });
            routes.extend(others.map(|other| route(*other, gateway)));
        }
        let chosen = self.chosen.iter();
        routes.extend(chosen.filter_map(|(to, from)| self.host_route(*to, *from)));
        routes
    }

    /// The route to `to` alone, by the uplink with the address `from`.
    fn host_route(&self, to: IpAddr, from: IpAddr) -> Option<PolicyRoute> {
        let mut present = self.now.present.iter();
        let uplink = present.find(|it| it.spec.address == from)?;
        let is_near = uplink.network.contains(&to);
        Some(PolicyRoute {
            table: self.claim.slot.chosen_table(),
            to: IpNet::from(to),
            index: uplink.index,
            gateway: uplink.spec.gateway.filter(|_| !is_near),
            source: Some(from),
        })
    }
}

fn wanted_rules(slot: Slot, present: &[Present]) -> BTreeSet<PolicyRule> {
    let mut rules = BTreeSet::new();
    let rule = |kind: Kind, uplink: &Present, table| PolicyRule {
        priority: slot.priority(kind),
        is_ipv4: uplink.spec.address.is_ipv4(),
        from: None,
        mark: 0,
        table,
        is_near: false,
    };
    let is_better = |one: &Present, other: &Present| {
        let alike = one.spec.address.is_ipv4() == other.spec.address.is_ipv4();
        alike && (one.spec.rank, one.place) < (other.spec.rank, other.place)
    };
    let mark = UNDERLAY_MARK;
    for uplink in present {
        let from = Some(uplink.spec.address);
        let by_it = slot.uplink_table(uplink.place);
        let near = |kind, table| PolicyRule {
            is_near: true,
            ..rule(kind, uplink, table)
        };
        let chosen = rule(CHOSEN, uplink, slot.chosen_table());
        let of_main = near(NEAR, MAIN_TABLE);
        rules.extend([chosen, of_main].map(|rule| PolicyRule { mark, ..rule }));
        let own = [near(NEAR_FROM, by_it), rule(FROM, uplink, by_it)];
        rules.extend(own.map(|rule| PolicyRule { mark, from, ..rule }));
        if !present.iter().any(|other| is_better(other, uplink)) {
            let best = [near(NEAR_BEST, by_it), rule(BEST, uplink, by_it)];
            rules.extend(best.map(|rule| PolicyRule { mark, ..rule }));
        }
        let others = [
            near(OTHERS_NEAR, MAIN_TABLE),
            rule(OTHERS_FROM, uplink, by_it),
        ];
        rules.extend(others.map(|rule| PolicyRule { from, ..rule }));
    }
    rules
}

/// Claims the `preferred` slot, or the first one that nobody has and under which nothing was left.
fn claim(links: &mut Links, preferred: Option<u32>) -> io::Result<Claim> {
    if let Some(claim) = preferred.and_then(Slot::of).map(Slot::claim)
        && let Some(claim) = claim?
    {
        return Ok(claim);
    }
    let mut policy = Policy(links.socket());
    for slot in Slot::all() {
        let Some(claim) = slot.claim()? else {
            continue;
        };
        if policy.rules(|it| slot.has_priority(it))?.is_empty() {
            return Ok(claim);
        }
    }
    Err(io::Error::other(
        "other agents in this network namespace have taken, or left, all rules; see `ip rule`",
    ))
}

/// Whether a table is one of uplinks.
pub(crate) fn is_own_table(table: u32) -> bool {
    Slot::all().any(|slot| slot.tables().any(|it| it == table))
}

/// Where everything is, of the family of `address`.
fn everything(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

const OPENING: &str = "opening";
const SETTING: &str = "setting";
const CHOOSING: &str = "choosing the uplink to";
const TABLES: &str = "the rules and routes of uplinks";

#[cfg(test)]
mod tests {
    use super::*;

    fn present(number: u8, rank: u16) -> Present {
        let address = IpAddr::from([192, 0, number, 1]);
        let index = u32::from(number);
        Present {
            spec: UplinkSpec {
                address,
                interface: format!("eth{number}"),
                gateway: Some([192, 0, number, 254].into()),
                rank,
            },
            index,
            network: IpNet::new(address, 24).unwrap().trunc(),
            place: index,
        }
    }

    #[test]
    fn tunnels_without_an_address_leave_by_the_best_uplink_that_is_there() {
        let best = |uplinks: &[Present]| {
            let slot = Slot::of(1).unwrap();
            let rules = wanted_rules(slot, uplinks).into_iter();
            let best = rules.filter(|rule| rule.priority == slot.priority(BEST));
            best.map(|rule| rule.table - slot.uplink_table(0))
                .collect::<Vec<_>>()
        };
        assert_eq!(best(&[present(0, 2), present(1, 1)]), [1]);
        assert_eq!(best(&[present(0, 1), present(1, 1)]), [0]);
        assert_eq!(best(&[present(0, 2)]), [0]);
        assert_eq!(best(&[]), []);
    }

    #[test]
    fn what_is_asked_first_is_what_was_chosen_and_then_what_the_address_says() {
        let slot = Slot::of(0).unwrap();
        let rules: Vec<_> = wanted_rules(slot, &[present(0, 1)]).into_iter().collect();
        let order: Vec<_> = rules.iter().map(|rule| rule.priority).collect();
        let kinds = [
            CHOSEN,
            NEAR_FROM,
            NEAR_BEST,
            NEAR,
            FROM,
            BEST,
            OTHERS_NEAR,
            OTHERS_FROM,
        ];
        assert_eq!(order, kinds.map(|kind| slot.priority(kind)));
        let marked = rules.iter().filter(|rule| rule.mark == UNDERLAY_MARK);
        assert_eq!(marked.count(), 6);
    }
}
