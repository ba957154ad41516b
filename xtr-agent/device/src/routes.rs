//! Routes into the overlay interfaces: added once, removed exactly.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::DeviceError;
use crate::netlink::link::Links;
use crate::netns::{NetNs, inside};

/// A route through an interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteSpec {
    /// Destination.
    pub prefix: IpNet,
    /// Interface the packets leave through.
    pub device: String,
    /// Preference among routes of one prefix; lower is better.
    pub metric: u32,
    /// Source address of packets whose sender did not choose one.
    pub source: Option<IpAddr>,
    /// The routing table, as `ip route` numbers them.
    pub table: u32,
}

/// The routing table that is asked where no rule says another one.
pub const MAIN_TABLE: u32 = 254;

/// The routes of this process in one network namespace.
///
/// They are not removed on drop: the kernel does that when their interface goes.
pub struct Routes(Mutex<State>);

struct State {
    links: Links,
    added: HashSet<RouteSpec>,
    /// Routes of an earlier run that nobody has asked for yet, with the index of their interface.
    stale: HashMap<Place, (RouteSpec, u32)>,
    /// Interface indexes by name, as last looked up.
    indexes: HashMap<String, u32>,
}

/// Where there is room for one route: prefix, metric and table.
type Place = (IpNet, u32, u32);

impl Routes {
    /// Opens the routing tables of the present network namespace.
    ///
    /// # Errors
    /// The system refuses a netlink socket.
    pub fn new() -> Result<Self, DeviceError> {
        Self::new_in(None)
    }

    /// The same in another network namespace.
    ///
    /// # Errors
    /// As [`new`](Self::new), or the namespace cannot be entered.
    pub fn new_in(netns: Option<&NetNs>) -> Result<Self, DeviceError> {
        let links = inside(netns, || {
            Links::open().map_err(|e| DeviceError::system(OPENING, "routing tables", e))
        })?;
        Ok(Self(Mutex::new(State {
            links,
            added: HashSet::new(),
            stale: HashMap::new(),
            indexes: HashMap::new(),
        })))
    }

    /// Reads which routes of this software an earlier run left through `device`. Adding one of them
    /// costs nothing; the others go with [`Routes::remove_stale`].
    ///
    /// # Errors
    /// The interface does not exist, or the system refuses.
    pub fn adopt(&self, device: &str) -> Result<(), DeviceError> {
        let mut state = self.state();
        let index = state.index_of(ADOPTING, device)?;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let found = state
                .ours_through(device, index, family)
                .map_err(|e| DeviceError::system(ADOPTING, device, e))?;
            let found = found.into_iter();
            let rows = found.map(|spec| (spec.place(), (spec, index)));
            state.stale.extend(rows);
        }
        Ok(())
    }

    /// Removes the routes of an earlier run that were not added again; returns how many.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing.
    pub fn remove_stale(&self) -> Result<usize, DeviceError> {
        let mut state = self.state();
        let stale = std::mem::take(&mut state.stale);
        let count = stale.len();
        #[expect(
            clippy::iter_over_hash_type,
            reason = "the order in which routes go does not matter"
        )]
        for (_, (spec, index)) in stale {
            state.delete(&spec, index)?;
        }
        Ok(count)
    }

    /// Whether the route is there, added by this process or left by an earlier run.
    #[must_use]
    pub fn has(&self, spec: &RouteSpec) -> bool {
        let state = self.state();
        let left = state.stale.get(&spec.place());
        state.added.contains(spec) || left.is_some_and(|(left, _)| left == spec)
    }

    /// Adds a route; one that is there already, through the same interface, is no error.
    ///
    /// # Errors
    /// The interface does not exist, another interface has a route of that prefix and metric, or
    /// CAP_NET_ADMIN is missing.
    pub fn add(&self, spec: &RouteSpec) -> Result<(), DeviceError> {
        let mut state = self.state();
        let mut index = state.index_of(ADDING, &spec.device)?;
        // Two routes of one place cannot be told apart: one that differs goes first.
        match state.stale.remove(&spec.place()) {
            Some((old, its_index)) if old == *spec && its_index == index => {
                state.added.insert(old);
                return Ok(());
            }
            Some((old, its_index)) => state.delete(&old, its_index)?,
            None => {}
        }
        let mut result = state.create(spec, index);
        if let Err(error) = &result
            && error.raw_os_error() == Some(libc::ENODEV)
        {
            // The interface was made anew since its index was looked up.
            state.indexes.remove(&spec.device);
            index = state.index_of(ADDING, &spec.device)?;
            result = state.create(spec, index);
        }
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if !state.is_ours(spec, index)? {
                    return Ok(());
                }
            }
            result => {
                result.map_err(|e| DeviceError::system(ADDING, &spec.prefix.to_string(), e))?
            }
        }
        state.added.insert(spec.clone());
        Ok(())
    }

    /// Adds a route in the place of one that this process added, in one step: there is no moment
    /// without either.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn replace(&self, spec: &RouteSpec) -> Result<(), DeviceError> {
        let mut state = self.state();
        let mut added = state.added.iter();
        let Some(old) = added.find(|old| old.place() == spec.place()).cloned() else {
            drop(state);
            return self.add(spec);
        };
        let index = state.index_of(ADDING, &spec.device)?;
        let message = RouteNetlinkMessage::NewRoute(message(spec, index));
        let socket = state.links.socket();
        let replaced = socket.execute(message, NLM_F_CREATE | NLM_F_REPLACE);
        replaced.map_err(|e| DeviceError::system(ADDING, &spec.prefix.to_string(), e))?;
        state.added.remove(&old);
        state.added.insert(spec.clone());
        Ok(())
    }

    /// The routes that this process added through `device`, in no particular order.
    #[must_use]
    pub fn through(&self, device: &str) -> Vec<RouteSpec> {
        let state = self.state();
        let through = state.added.iter().filter(|spec| spec.device == device);
        through.cloned().collect()
    }

    /// Removes a route this process added; anything else is left alone.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing.
    pub fn remove(&self, spec: &RouteSpec) -> Result<(), DeviceError> {
        let mut state = self.state();
        if !state.added.contains(spec) {
            return Ok(());
        }
        // The routes of an interface go with it: no interface, or an index that is out of date,
        // means that there is nothing left to remove.
        let index = match state.index_of(REMOVING, &spec.device) {
            Ok(index) => index,
            Err(DeviceError::NoInterface { .. }) => {
                state.added.remove(spec);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        state.delete(spec, index)?;
        state.added.remove(spec);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RouteSpec {
    const fn place(&self) -> Place {
        (self.prefix, self.metric, self.table)
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Routes").field(&self.state().added).finish()
    }
}

impl State {
    fn index_of(&mut self, action: &'static str, device: &str) -> Result<u32, DeviceError> {
        if let Some(index) = self.indexes.get(device) {
            return Ok(*index);
        }
        let link = self
            .links
            .find(device)
            .map_err(|e| DeviceError::system(action, device, e))?;
        let Some(link) = link else {
            let name = device.to_owned();
            return Err(DeviceError::NoInterface { action, name });
        };
        self.indexes.insert(device.to_owned(), link.index);
        Ok(link.index)
    }

    fn create(&mut self, spec: &RouteSpec, index: u32) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(message(spec, index));
        let socket = self.links.socket();
        socket.execute(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    fn delete(&mut self, spec: &RouteSpec, index: u32) -> Result<(), DeviceError> {
        let message = RouteNetlinkMessage::DelRoute(message(spec, index));
        match self.links.socket().execute(message, 0) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) => {
                Ok(())
            }
            result => {
                result.map_err(|e| DeviceError::system(REMOVING, &spec.prefix.to_string(), e))
            }
        }
    }

    /// Lists the routes of this software through one interface.
    fn ours_through(
        &mut self,
        device: &str,
        index: u32,
        family: AddressFamily,
    ) -> io::Result<Vec<RouteSpec>> {
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        let mut found = Vec::new();
        let request = RouteNetlinkMessage::GetRoute(query);
        self.links.socket().query(request, NLM_F_DUMP, |answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else {
                return;
            };
            let ours =
                route.header.protocol == PROTOCOL && outgoing_interface(&route) == Some(index);
            if ours {
                found.extend(read(&route, device));
            }
        })?;
        Ok(found)
    }

    /// Whether the route that is in the way of `spec` is one of this software, through the same
    /// interface; an error when it leads through another one.
    fn is_ours(&mut self, spec: &RouteSpec, index: u32) -> Result<bool, DeviceError> {
        let failed = |e| DeviceError::system(ADDING, &spec.prefix.to_string(), e);
        let mut query = RouteMessage::default();
        query.header.address_family = family(spec.prefix.addr());
        let mut owner = None;
        let mut ours = None;
        self.links
            .socket()
            .query(RouteNetlinkMessage::GetRoute(query), NLM_F_DUMP, |answer| {
                let RouteNetlinkMessage::NewRoute(route) = answer else {
                    return;
                };
                if !is_in_the_way(&route, spec) {
                    return;
                }
                let oif = outgoing_interface(&route);
                if oif == Some(index) {
                    ours = Some(route.header.protocol == PROTOCOL);
                }
                owner = oif.or(owner);
            })
            .map_err(failed)?;
        if let Some(ours) = ours {
            return Ok(ours);
        }
        let owner = match owner {
            Some(oif) => self.links.name_of(oif).map_err(failed)?,
            None => None,
        };
        Err(DeviceError::RouteTaken {
            prefix: spec.prefix,
            metric: spec.metric,
            device: spec.device.clone(),
            owner: owner.unwrap_or_else(|| "another program".to_owned()),
        })
    }
}

fn message(spec: &RouteSpec, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    // Numbers that do not fit the header are in the attribute only.
    let table = u8::try_from(spec.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.header = RouteHeader {
        address_family: family(spec.prefix.addr()),
        destination_prefix_length: spec.prefix.prefix_len(),
        table,
        protocol: PROTOCOL,
        scope: match spec.prefix {
            IpNet::V4(_) => RouteScope::Link,
            IpNet::V6(_) => RouteScope::Universe,
        },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(spec.prefix.network().into()),
        RouteAttribute::Oif(index),
        RouteAttribute::Priority(spec.metric),
        RouteAttribute::Table(spec.table),
    ];
    if let Some(source) = spec.source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(source.into()));
    }
    message
}

/// What [`message`] was made of.
fn read(route: &RouteMessage, device: &str) -> Option<RouteSpec> {
    let mut metric = 0;
    let mut source = None;
    let mut destination = if route.header.address_family == AddressFamily::Inet6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    for attribute in &route.attributes {
        if let RouteAttribute::Priority(priority) = attribute {
            metric = *priority;
        } else if let RouteAttribute::Destination(address) = attribute {
            destination = ip(address)?;
        } else if let RouteAttribute::PrefSource(address) = attribute {
            source = Some(ip(address)?);
        }
    }
    let prefix = IpNet::new(destination, route.header.destination_prefix_length).ok()?;
    Some(RouteSpec {
        prefix,
        device: device.to_owned(),
        metric,
        source,
        table: table_of(route),
    })
}

/// The table of a route: the header has room for the first 255 only.
pub(crate) fn table_of(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|attribute| {
        let RouteAttribute::Table(table) = attribute else {
            return None;
        };
        Some(*table)
    });
    attribute.unwrap_or_else(|| route.header.table.into())
}

pub(crate) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some((*v4).into())
    } else if let RouteAddress::Inet6(v6) = address {
        Some((*v6).into())
    } else {
        None
    }
}

/// Whether prefix, metric and table are those of `spec`.
fn is_in_the_way(route: &RouteMessage, spec: &RouteSpec) -> bool {
    let mut metric = 0;
    let mut destination = match spec.prefix {
        IpNet::V4(_) => RouteAddress::Inet(Ipv4Addr::UNSPECIFIED),
        IpNet::V6(_) => RouteAddress::Inet6(Ipv6Addr::UNSPECIFIED),
    };
    for attribute in &route.attributes {
        if let RouteAttribute::Priority(priority) = attribute {
            metric = *priority;
        } else if let RouteAttribute::Destination(address) = attribute {
            destination = address.clone();
        }
    }
    table_of(route) == spec.table
        && route.header.destination_prefix_length == spec.prefix.prefix_len()
        && destination == RouteAddress::from(spec.prefix.network())
        && metric == effective_metric(spec)
}

fn outgoing_interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| {
        let RouteAttribute::Oif(index) = attribute else {
            return None;
        };
        Some(*index)
    })
}

/// IPv6 has no metric 0: the kernel takes 1,024 for it.
fn effective_metric(spec: &RouteSpec) -> u32 {
    match (spec.prefix, spec.metric) {
        (IpNet::V6(_), 0) => 1_024,
        (_, metric) => metric,
    }
}

const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

const OPENING: &str = "opening";
const ADOPTING: &str = "adopting the routes of interface";
const ADDING: &str = "adding route";
const REMOVING: &str = "removing route";

/// Marks our routes and rules: what `ip route` shows as `proto 76`. Not assigned to anybody (rtnetlink(7)).
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(76);
