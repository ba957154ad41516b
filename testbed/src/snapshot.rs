//! What is configured in a namespace, to compare before and after.

use std::collections::BTreeSet;
use std::fmt;

use futures::{Stream, TryStreamExt};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use crate::error::{Doing, TestbedError};
use crate::netlink::Netlink;

/// All interfaces, addresses, routes and rules of a namespace, one readable line each.
///
/// Counters, ages and caches are left out: two snapshots are equal when nothing that somebody
/// configured has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    pub(crate) fn take(netlink: &Netlink) -> Result<Self, TestbedError> {
        let handle = netlink.handle();
        let mut lines = BTreeSet::new();
        let links = all(netlink, "links", handle.link().get().execute())?;
        lines.extend(links.iter().map(describe_link));
        for address in all(netlink, "addresses", handle.address().get().execute())? {
            let header = &address.header;
            let attributes = address.attributes.iter().filter(|attribute| {
                use netlink_packet_route::address::AddressAttribute::{
                    Address, Flags, Label, Local,
                };
                matches!(attribute, Address(_) | Flags(_) | Label(_) | Local(_))
            });
            let attributes: Vec<_> = attributes.collect();
            lines.insert(format!(
                "address /{} on interface {}: {attributes:?}",
                header.prefix_len, header.index
            ));
        }
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for query in [v4, v6] {
            let routes = all(netlink, "routes", handle.route().get(query).execute())?;
            lines.extend(routes.iter().map(describe_route));
        }
        for version in [IpVersion::V4, IpVersion::V6] {
            for rule in all(netlink, "rules", handle.rule().get(version).execute())? {
                lines.insert(format!("rule {:?} {:?}", rule.header, rule.attributes));
            }
        }
        Ok(Self(lines))
    }

    /// What differs from an earlier snapshot: lines that came (`+`) and went (`-`).
    pub fn changes_since(&self, earlier: &Self) -> Vec<String> {
        let came = self
            .0
            .difference(&earlier.0)
            .map(|line| format!("+ {line}"));
        let went = earlier
            .0
            .difference(&self.0)
            .map(|line| format!("- {line}"));
        came.chain(went).collect()
    }

    /// The lines, sorted.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().try_for_each(|line| writeln!(f, "{line}"))
    }
}

fn all<T>(
    netlink: &Netlink,
    what: &'static str,
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, TestbedError> {
    netlink.wait(answers.try_collect()).doing("list", what)
}

fn describe_link(link: &LinkMessage) -> String {
    let mut name = "";
    let mut kind: Option<&InfoKind> = None;
    let mut mtu = 0;
    for attribute in &link.attributes {
        if let LinkAttribute::IfName(value) = attribute {
            name = value;
        } else if let LinkAttribute::Mtu(value) = attribute {
            mtu = *value;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            kind = infos.iter().find_map(|info| {
                if let LinkInfo::Kind(kind) = info {
                    Some(kind)
                } else {
                    None
                }
            });
        }
    }
    let header = &link.header;
    format!(
        "interface {} {name} kind {kind:?} mtu {mtu} flags {:?}",
        header.index, header.flags
    )
}

fn describe_route(route: &RouteMessage) -> String {
    let attributes = route.attributes.iter().filter(|attribute| {
        !matches!(
            attribute,
            RouteAttribute::CacheInfo(_) | RouteAttribute::Preference(_)
        )
    });
    let attributes: Vec<_> = attributes.collect();
    let header = &route.header;
    format!(
        "route {:?} /{} table {} {:?} {:?}: {attributes:?}",
        header.address_family,
        header.destination_prefix_length,
        header.table,
        header.kind,
        header.protocol
    )
}
