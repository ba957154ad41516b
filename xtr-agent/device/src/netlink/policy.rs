//! Routing rules, and the routes of the tables that they lead to.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::NetlinkSocket;
use crate::routes::{PROTOCOL, ip, table_of};

/// A rule of this software.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PolicyRule {
    /// When it is asked, among all rules.
    pub(crate) priority: u32,
    pub(crate) is_ipv4: bool,
    /// Only packets from this address.
    pub(crate) from: Option<IpAddr>,
    /// Only packets with this mark; 0: any.
    pub(crate) mark: u32,
    /// The table that it leads to.
    pub(crate) table: u32,
    /// Whether the default route of that table counts for nothing.
    pub(crate) is_near: bool,
}

/// A route of this software in one of its tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PolicyRoute {
    pub(crate) table: u32,
    pub(crate) to: IpNet,
    /// Of the interface that packets leave by.
    pub(crate) index: u32,
    pub(crate) gateway: Option<IpAddr>,
    /// Of packets that have no source yet. The kernel keeps IPv6 routes without it when the address goes.
    pub(crate) source: Option<IpAddr>,
}

/// Rules and routes, by a socket of the namespace that they are in.
pub(crate) struct Policy<'a>(pub(crate) &'a mut NetlinkSocket);

impl Policy<'_> {
    /// The rules of this software with priorities that `is_ours`.
    pub(crate) fn rules(
        &mut self,
        is_ours: impl Fn(u32) -> bool,
    ) -> io::Result<BTreeSet<PolicyRule>> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RuleMessage::default();
            query.header.family = family;
            let request = RouteNetlinkMessage::GetRule(query);
            let told = self.0.query(request, NLM_F_DUMP, |answer| {
                if let RouteNetlinkMessage::NewRule(rule) = answer
                    && rule.header.family == family
                {
                    let rule = read_rule(&rule);
                    found.extend(rule.filter(|rule| is_ours(rule.priority)));
                }
            });
            unless_unknown(told)?;
        }
        Ok(found)
    }

    /// Adds a rule; one that is there is no error.
    pub(crate) fn add_rule(&mut self, rule: &PolicyRule) -> io::Result<()> {
        let request = RouteNetlinkMessage::NewRule(rule_message(rule));
        match self.0.execute(request, NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// Removes a rule; one that is gone is no error.
    pub(crate) fn remove_rule(&mut self, rule: &PolicyRule) -> io::Result<()> {
        let request = RouteNetlinkMessage::DelRule(rule_message(rule));
        match self.0.execute(request, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// The routes of this software in these tables. The kernel looks at no others, if it can do that (Linux
    /// 4.20): an overlay may have thousands.
    pub(crate) fn routes(
        &mut self,
        tables: impl Iterator<Item = u32>,
    ) -> io::Result<BTreeSet<PolicyRoute>> {
        let tables: BTreeSet<u32> = tables.collect();
        let Some(strict) = self.0.strict() else {
            let told = self.dump_routes(None)?.into_iter();
            return Ok(told.filter(|it| tables.contains(&it.table)).collect());
        };
        let mut found = BTreeSet::new();
        for table in tables {
            found.extend(Policy(&mut *strict.0).dump_routes(Some(table))?);
        }
        Ok(found)
    }

    fn dump_routes(&mut self, table: Option<u32>) -> io::Result<BTreeSet<PolicyRoute>> {
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            query.attributes.extend(table.map(RouteAttribute::Table));
            let request = RouteNetlinkMessage::GetRoute(query);
            let told = self.0.query(request, NLM_F_DUMP, |answer| {
                if let RouteNetlinkMessage::NewRoute(route) = answer
                    && route.header.address_family == family
                    && route.header.protocol == PROTOCOL
                {
                    found.extend(read_route(&route));
                }
            });
            unless_unknown(told)?;
        }
        Ok(found)
    }

    /// Adds a route in the place of any other to the same destination.
    pub(crate) fn add_route(&mut self, route: &PolicyRoute) -> io::Result<()> {
        let request = RouteNetlinkMessage::NewRoute(route_message(route));
        self.0.execute(request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route; one that is gone, as with its interface, is no error.
    pub(crate) fn remove_route(&mut self, route: &PolicyRoute) -> io::Result<()> {
        let request = RouteNetlinkMessage::DelRoute(route_message(route));
        match self.0.execute(request, 0) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) => {
                Ok(())
            }
            result => result,
        }
    }
}

/// A host without an address family, as one with IPv6 off, has no rules and routes of it; and a table that
/// was never used has none.
fn unless_unknown(told: io::Result<()>) -> io::Result<()> {
    match told {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT)
            ) =>
        {
            Ok(())
        }
        told => told,
    }
}

const fn family(is_ipv4: bool) -> AddressFamily {
    if is_ipv4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn rule_message(rule: &PolicyRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader {
        family: family(rule.is_ipv4),
        action: RuleAction::ToTable,
        ..RuleHeader::default()
    };
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    if let Some(from) = rule.from {
        message.header.src_len = IpNet::from(from).prefix_len();
        message.attributes.push(RuleAttribute::Source(from));
    }
    if rule.mark != 0 {
        message.attributes.push(RuleAttribute::FwMark(rule.mark));
    }
    if rule.is_near {
        let nothing = RuleAttribute::SuppressPrefixLen(0);
        message.attributes.push(nothing);
    }
    message
}

/// What [`rule_message`] was made of, if it is of this software.
fn read_rule(message: &RuleMessage) -> Option<PolicyRule> {
    let mut rule = PolicyRule {
        priority: 0,
        is_ipv4: message.header.family == AddressFamily::Inet,
        from: None,
        mark: 0,
        table: message.header.table.into(),
        is_near: false,
    };
    let mut is_ours = false;
    for attribute in &message.attributes {
        if let RuleAttribute::Priority(priority) = attribute {
            rule.priority = *priority;
        } else if let RuleAttribute::Table(table) = attribute {
            rule.table = *table;
        } else if let RuleAttribute::Source(from) = attribute {
            rule.from = Some(*from);
        } else if let RuleAttribute::FwMark(mark) = attribute {
            rule.mark = *mark;
        } else if let RuleAttribute::SuppressPrefixLen(length) = attribute {
            rule.is_near = *length == 0;
        } else if let RuleAttribute::Protocol(protocol) = attribute {
            is_ours = *protocol == PROTOCOL;
        }
    }
    is_ours.then_some(rule)
}

fn route_message(route: &PolicyRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    let is_ipv4 = route.to.addr().is_ipv4();
    let is_near = route.gateway.is_none() && is_ipv4;
    message.header = RouteHeader {
        address_family: family(is_ipv4),
        destination_prefix_length: route.to.prefix_len(),
        // The numbers of our tables do not fit the header.
        table: RouteHeader::RT_TABLE_UNSPEC,
        protocol: PROTOCOL,
        scope: match is_near {
            true => RouteScope::Link,
            false => RouteScope::Universe,
        },
        kind: RouteType::Unicast,
        // The gateway is at the interface, whether another route says so or not.
        flags: match route.gateway {
            Some(_) => RouteFlags::Onlink,
            None => RouteFlags::empty(),
        },
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Table(route.table),
        RouteAttribute::Oif(route.index),
    ];
    if let Some(source) = route.source {
        let source = RouteAddress::from(source);
        message.attributes.push(RouteAttribute::PrefSource(source));
    }
    if route.to.prefix_len() > 0 {
        let to = RouteAddress::from(route.to.network());
        message.attributes.push(RouteAttribute::Destination(to));
    }
    if let Some(gateway) = route.gateway {
        let gateway = RouteAddress::from(gateway);
        message.attributes.push(RouteAttribute::Gateway(gateway));
    }
    message
}

/// What [`route_message`] was made of.
fn read_route(message: &RouteMessage) -> Option<PolicyRoute> {
    let (mut to, mut index, mut gateway, mut source) = (None, 0, None, None);
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            to = ip(address);
        } else if let RouteAttribute::Oif(oif) = attribute {
            index = *oif;
        } else if let RouteAttribute::Gateway(address) = attribute {
            gateway = ip(address);
        } else if let RouteAttribute::PrefSource(address) = attribute {
            source = ip(address);
        }
    }
    let any = match message.header.address_family == AddressFamily::Inet {
        true => IpAddr::from([0; 4]),
        false => IpAddr::from([0; 16]),
    };
    let length = message.header.destination_prefix_length;
    Some(PolicyRoute {
        table: table_of(message),
        to: IpNet::new(to.unwrap_or(any), length).ok()?,
        index,
        gateway,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_family_has_no_rules_of_it_and_other_errors_count() {
        let told = |code| unless_unknown(Err(io::Error::from_raw_os_error(code)));
        assert!(told(libc::EAFNOSUPPORT).is_ok());
        assert!(told(libc::EOPNOTSUPP).is_ok());
        assert!(told(libc::ENOENT).is_ok());
        assert!(told(libc::EPERM).is_err());
    }

    #[test]
    fn a_route_that_has_lost_its_source_is_read_with_the_family_that_it_has() {
        for to in ["0.0.0.0/0", "192.0.2.0/24", "::/0", "2001:db8::/64"] {
            let route = PolicyRoute {
                table: 4_344,
                to: to.parse().unwrap(),
                index: 3,
                gateway: None,
                source: None,
            };
            assert_eq!(read_route(&route_message(&route)), Some(route));
        }
    }
}
