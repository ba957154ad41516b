//! When is an interface as it will stay?
//!
//! The kernel brings carriers up and prepares IPv6 addresses in the background. Until it is done
//! packets are refused, and a snapshot would show what nobody has changed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::RouteMessageBuilder;

use crate::clock::sleep;
use crate::error::{Doing, TestbedError};
use crate::netlink::Netlink;

/// Looks at an interface, and the time between them: two seconds in all.
const LOOKS: u32 = 1_000;
const POLL: Duration = Duration::from_millis(2);

/// Waits until the interface has its carrier and all its addresses are usable.
///
/// Gives up silently after two seconds: an interface may have no far end.
pub(crate) fn wait_until_settled(netlink: &Netlink, interface: &str) -> Result<(), TestbedError> {
    for _ in 0..LOOKS {
        if is_settled(netlink, interface)? {
            return Ok(());
        }
        sleep(POLL);
    }
    Ok(())
}

fn is_settled(netlink: &Netlink, interface: &str) -> Result<bool, TestbedError> {
    let link = netlink.link(interface)?.header;
    let handle = netlink.handle();
    let addresses = handle
        .address()
        .get()
        .set_link_index_filter(link.index)
        .execute();
    let addresses: Vec<_> = netlink
        .wait(addresses.try_collect())
        .doing("list the addresses of", interface)?;
    let own: Vec<_> = addresses.iter().filter_map(ipv6_of).collect();
    let query = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let routes: Vec<_> = netlink
        .wait(handle.route().get(query).execute().try_collect())
        .doing("list", "routes")?;
    // The last step for each address is a route that delivers to it.
    let delivered: BTreeSet<_> = routes.iter().filter_map(local_destination).collect();
    Ok(link.flags.contains(LinkFlags::LowerUp)
        && own.iter().any(Ipv6Addr::is_unicast_link_local)
        && !addresses.iter().any(is_tentative)
        && own.iter().all(|address| delivered.contains(address)))
}

fn ipv6_of(message: &AddressMessage) -> Option<Ipv6Addr> {
    message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Address(IpAddr::V6(address)) = attribute {
            Some(*address)
        } else {
            None
        }
    })
}

fn is_tentative(message: &AddressMessage) -> bool {
    message.attributes.iter().any(|attribute| {
        matches!(attribute, AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Tentative))
    })
}

fn local_destination(route: &RouteMessage) -> Option<Ipv6Addr> {
    let is_local = route.header.kind == RouteType::Local
        && route.header.address_family == AddressFamily::Inet6;
    route
        .attributes
        .iter()
        .filter(|_| is_local)
        .find_map(|attribute| {
            if let RouteAttribute::Destination(RouteAddress::Inet6(address)) = attribute {
                Some(*address)
            } else {
                None
            }
        })
}
