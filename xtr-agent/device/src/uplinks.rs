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
//! | 4334 | marked | to whom another uplink was chosen: one host route each |
//! | 4335 | marked, from the address of an uplink | the networks of all uplinks, by that one |
//! | 4336 | marked | the networks of all uplinks, by the best one |
//! | 4337 | marked | what the main table knows better than by a default route |
//! | 4338 | marked, from the address of an uplink | anywhere, by that uplink |
//! | 4339 | marked | anywhere, by the best uplink |
//! | 4340 | from the address of an uplink | what the main table knows better than by a default route |
//! | 4341 | from the address of an uplink | anywhere, by that uplink |
//!
//! What there is and what there shall be are compared whenever something changes, so what a killed run
//! has left is taken over or goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
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

/// The table of those to whom an uplink was chosen.
const CHOSEN_TABLE: u32 = 4_336;
/// The rules, in their order.
const CHOSEN: u32 = 4_334;
const NEAR_FROM: u32 = 4_335;
const NEAR_BEST: u32 = 4_336;
const NEAR: u32 = 4_337;
const FROM: u32 = 4_338;
const BEST: u32 = 4_339;
const OTHERS_NEAR: u32 = 4_340;
const OTHERS_FROM: u32 = 4_341;
/// The table of the first uplink; others follow.
const FIRST_TABLE: u32 = 4_344;
/// Most uplinks, and tables.
const MOST: u32 = 8;

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

/// An uplink that is there: its interface is up and has the address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Present {
    spec: UplinkSpec,
    index: u32,
    /// The network that it is in.
    network: IpNet,
    table: u32,
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

#[derive(Debug, Default)]
struct Looked {
    present: Vec<Present>,
    /// The networks of all uplinks, whether their interfaces are up or not.
    networks: BTreeSet<IpNet>,
    /// Why others are not there.
    missing: BTreeMap<IpAddr, Missing>,
}

/// Why an uplink is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Interface,
    Address,
    Carrier,
    /// Of an IPv6 address it is looked first whether somebody else has it, or somebody has.
    Confirmation,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interface => "there is no such interface",
            Self::Address => "the interface has no such address",
            Self::Carrier => "the interface is down or has no carrier",
            Self::Confirmation => "others may have the address (duplicate address detection)",
        })
    }
}

#[derive(Debug)]
struct State {
    links: Links,
    now: Looked,
    /// Why uplinks that are there have no routes.
    refused: BTreeMap<IpAddr, String>,
    /// To whom packets leave from which address.
    chosen: BTreeMap<IpAddr, IpAddr>,
}

impl Uplinks {
    /// Opens the routing tables of the present network namespace; changes nothing.
    ///
    /// # Errors
    /// The system refuses a netlink socket.
    pub fn open() -> Result<Self, DeviceError> {
        let links = Links::open().map_err(|e| DeviceError::system(OPENING, TABLES, e))?;
        Ok(Self {
            state: Mutex::new(State {
                links,
                now: Looked::default(),
                refused: BTreeMap::new(),
                chosen: BTreeMap::new(),
            }),
            is_set: AtomicBool::new(false),
            stays: AtomicBool::new(false),
        })
    }

    /// Gives those of `wanted` that are there their rules and routes, and takes those of others away.
    /// Returns the addresses of those that have them; why one has not, for instance because nobody can be
    /// a gateway there, is logged once.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing.
    pub fn set(&self, wanted: &[UplinkSpec]) -> Result<Vec<IpAddr>, DeviceError> {
        let mut state = self.state();
        state.now = state.look(wanted)?;
        self.is_set.store(true, Ordering::Relaxed);
        let here: BTreeSet<_> = state.addresses().collect();
        state.chosen.retain(|_, from| here.contains(from));
        state.settle()?;
        Ok(state.addresses().collect())
    }

    /// The addresses of those of `wanted` that are there; changes nothing.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn present(&self, wanted: &[UplinkSpec]) -> Result<Vec<IpAddr>, DeviceError> {
        let present = self.state().look(wanted)?.present;
        Ok(present.iter().map(|it| it.spec.address).collect())
    }

    /// Why the uplink with `address` was not there when they were [`set`](Self::set) the last time, if it was
    /// not.
    pub fn why_missing(&self, address: IpAddr) -> Option<String> {
        let state = self.state();
        let missing = state.now.missing.get(&address).map(Missing::to_string);
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

    /// Removes what a run left that is no more; that there is nothing is no error.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing.
    pub fn remove_leftover() -> Result<(), DeviceError> {
        Self::open()?.state().settle()
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
    /// Those of `wanted` that are there.
    fn look(&mut self, wanted: &[UplinkSpec]) -> Result<Looked, DeviceError> {
        let mut looked = Looked::default();
        for (table, spec) in (FIRST_TABLE..FIRST_TABLE + MOST).zip(wanted) {
            let found = self.find(spec, table);
            let found = found.map_err(|e| DeviceError::system(SETTING, &spec.interface, e))?;
            let missing = match found {
                Err(missing) => Some(missing),
                Ok((uplink, missing)) => {
                    looked.networks.insert(uplink.network);
                    if missing.is_none() {
                        looked.present.push(uplink);
                    }
                    missing
                }
            };
            let missing = missing.map(|missing| (spec.address, missing));
            looked.missing.extend(missing);
        }
        Ok(looked)
    }

    /// The uplink `spec` if its interface has the address, and why packets cannot leave from it, if so.
    fn find(
        &mut self,
        spec: &UplinkSpec,
        table: u32,
    ) -> io::Result<Result<(Present, Option<Missing>), Missing>> {
        let Some(link) = self.links.find(&spec.interface)? else {
            return Ok(Err(Missing::Interface));
        };
        let addresses = self.links.addresses(link.index)?;
        let mut addresses = addresses.into_iter();
        let own = addresses.find(|own| own.net.addr() == spec.address);
        let Some(own) = own else {
            return Ok(Err(Missing::Address));
        };
        let uplink = Present {
            spec: spec.clone(),
            index: link.index,
            network: own.net.trunc(),
            table,
        };
        let missing = match (link.is_running, own.is_ready) {
            (false, _) => Some(Missing::Carrier),
            (true, false) => Some(Missing::Confirmation),
            (true, true) => None,
        };
        Ok(Ok((uplink, missing)))
    }

    /// The addresses of those that are there.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.now.present.iter().map(|it| it.spec.address)
    }

    /// Makes the host what it shall be: routes before the rules that lead to them. An uplink whose routes
    /// are refused counts as one that is not there, and the others are what they shall be.
    fn settle(&mut self) -> Result<(), DeviceError> {
        let failed = |e| DeviceError::system(SETTING, TABLES, e);
        let routes = self.wanted_routes();
        let mut policy = Policy(self.links.socket());
        let there = policy.routes(is_own_table).map_err(failed)?;
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
        let rules = wanted_rules(&self.now.present);
        let mut policy = Policy(self.links.socket());
        let there = policy.rules(CHOSEN..=OTHERS_FROM).map_err(failed)?;
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
            let route = |to, gateway| PolicyRoute {
                table: uplink.table,
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
            table: CHOSEN_TABLE,
            to: IpNet::from(to),
            index: uplink.index,
            gateway: uplink.spec.gateway.filter(|_| !is_near),
            source: Some(from),
        })
    }
}

fn wanted_rules(present: &[Present]) -> BTreeSet<PolicyRule> {
    let mut rules = BTreeSet::new();
    let rule = |priority, uplink: &Present, table| PolicyRule {
        priority,
        is_ipv4: uplink.spec.address.is_ipv4(),
        from: None,
        mark: 0,
        table,
        is_near: false,
    };
    let is_better = |one: &Present, other: &Present| {
        let alike = one.spec.address.is_ipv4() == other.spec.address.is_ipv4();
        alike && (one.spec.rank, one.table) < (other.spec.rank, other.table)
    };
    let mark = UNDERLAY_MARK;
    for uplink in present {
        let from = Some(uplink.spec.address);
        let near = |priority, table| PolicyRule {
            is_near: true,
            ..rule(priority, uplink, table)
        };
        let chosen = rule(CHOSEN, uplink, CHOSEN_TABLE);
        let of_main = near(NEAR, MAIN_TABLE);
        rules.extend([chosen, of_main].map(|rule| PolicyRule { mark, ..rule }));
        let own = [
            near(NEAR_FROM, uplink.table),
            rule(FROM, uplink, uplink.table),
        ];
        rules.extend(own.map(|rule| PolicyRule { mark, from, ..rule }));
        if !present.iter().any(|other| is_better(other, uplink)) {
            let best = [
                near(NEAR_BEST, uplink.table),
                rule(BEST, uplink, uplink.table),
            ];
            rules.extend(best.map(|rule| PolicyRule { mark, ..rule }));
        }
        let others = [
            near(OTHERS_NEAR, MAIN_TABLE),
            rule(OTHERS_FROM, uplink, uplink.table),
        ];
        rules.extend(others.map(|rule| PolicyRule { from, ..rule }));
    }
    rules
}

/// Whether a table is one of uplinks.
pub(crate) fn is_own_table(table: u32) -> bool {
    table == CHOSEN_TABLE || (FIRST_TABLE..FIRST_TABLE + MOST).contains(&table)
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
            table: FIRST_TABLE + index,
        }
    }

    #[test]
    fn tunnels_without_an_address_leave_by_the_best_uplink_that_is_there() {
        let best = |uplinks: &[Present]| {
            let rules = wanted_rules(uplinks).into_iter();
            let best = rules.filter(|rule| rule.priority == BEST);
            best.map(|rule| rule.table - FIRST_TABLE)
                .collect::<Vec<_>>()
        };
        assert_eq!(best(&[present(0, 2), present(1, 1)]), [1]);
        assert_eq!(best(&[present(0, 1), present(1, 1)]), [0]);
        assert_eq!(best(&[present(0, 2)]), [0]);
        assert_eq!(best(&[]), []);
    }

    #[test]
    fn what_is_asked_first_is_what_was_chosen_and_then_what_the_address_says() {
        let rules: Vec<_> = wanted_rules(&[present(0, 1)]).into_iter().collect();
        let order: Vec<_> = rules.iter().map(|rule| rule.priority).collect();
        assert_eq!(order, Vec::from_iter(CHOSEN..=OTHERS_FROM));
        let marked = rules.iter().filter(|rule| rule.mark == UNDERLAY_MARK);
        assert_eq!(marked.count(), 6);
    }
}
