//! Interfaces: found, made, given addresses, brought up, deleted.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::RawFd;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::NetlinkSocket;

/// An interface that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Interface index, unique in the network namespace.
    pub(crate) index: u32,
    /// Whether it is a kernel WireGuard interface.
    pub(crate) is_wireguard: bool,
    /// Whether it is a TUN or TAP interface.
    pub(crate) is_tun: bool,
    /// Whether it carries the mark of this software.
    pub(crate) is_marked: bool,
    /// Whether it is up and has a carrier.
    pub(crate) is_running: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnAddress {
    /// It, and the length of the prefix that is at the interface.
    pub(crate) net: IpNet,
    /// Whether packets may have it as their source by now: of an IPv6 address it is looked first whether
    /// somebody else has it (RFC 4862 5.4).
    pub(crate) is_ready: bool,
}

/// The interfaces of one network namespace.
#[derive(Debug)]
pub(crate) struct Links(NetlinkSocket);

impl Links {
    /// Opens the interfaces of the current network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(NetlinkSocket::open(NETLINK_ROUTE)?))
    }

    /// Finds an interface by name.
    pub(crate) fn find(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
        ];
        let mut found = None;
        let result = self
            .0
            .query(RouteNetlinkMessage::GetLink(message), 0, |answer| {
                if let RouteNetlinkMessage::NewLink(link) = answer {
                    found = Some(Link {
                        index: link.header.index,
                        is_wireguard: is_of_kind(&link, &InfoKind::Wireguard),
                        is_tun: is_of_kind(&link, &InfoKind::Tun),
                        is_marked: is_marked(&link),
                        is_running: link.header.flags.contains(RUNNING),
                    });
                }
            });
        match result {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            result => result.map(|()| found),
        }
    }

    /// Finds the name of an interface.
    pub(crate) fn name_of(&mut self, index: u32) -> io::Result<Option<String>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let mut name = None;
        self.0
            .query(RouteNetlinkMessage::GetLink(message), 0, |answer| {
                let RouteNetlinkMessage::NewLink(link) = answer else {
                    return;
                };
                for attribute in link.attributes {
                    if let LinkAttribute::IfName(text) = attribute {
                        name = Some(text);
                    }
                }
            })?;
        Ok(name)
    }

    /// Makes a kernel WireGuard interface, in the network namespace behind `netns` if given: its UDP
    /// socket stays here. `EOPNOTSUPP` when the kernel has none.
    pub(crate) fn create_wireguard(
        &mut self,
        name: &str,
        mtu: u16,
        netns: Option<RawFd>,
    ) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu.into()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
        ];
        if let Some(netns) = netns {
            message.attributes.push(LinkAttribute::NetNsFd(netns));
        }
        let request = RouteNetlinkMessage::NewLink(message);
        self.0.execute(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Marks the interface as made by this software, for later runs and for people (`ip link`).
    pub(crate) fn mark(&mut self, index: u32) -> io::Result<()> {
        self.change(index, LinkAttribute::IfAlias(MARK.to_owned()))
    }

    /// Sets the MTU in bytes.
    pub(crate) fn set_mtu(&mut self, index: u32, mtu: u16) -> io::Result<()> {
        self.change(index, LinkAttribute::Mtu(mtu.into()))
    }

    fn change(&mut self, index: u32, attribute: LinkAttribute) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![attribute];
        self.0.execute(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Brings the interface up without link-local addresses and without multicast.
    ///
    /// The kernel, or a daemon that announces services, would else talk through it: for an overlay
    /// interface those are packets to unknown destinations.
    pub(crate) fn bring_up(&mut self, index: u32) -> io::Result<()> {
        let no_link_local = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
            vec![no_link_local],
        )])];
        match self.0.execute(RouteNetlinkMessage::SetLink(message), 0) {
            // A kernel without IPv6 has nothing to silence.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            result => result?,
        }
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up | LinkFlags::Multicast;
        self.0.execute(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Adds an address that can be bound at once.
    pub(crate) fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let ip = address.addr();
        let mut message = AddressMessage::default();
        message.header.family = family_of(ip);
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        // Duplicate detection makes a new IPv6 address unusable for a second or more, and there
        // is nobody to ask on a tunnel.
        let mut flags = AddressFlags::Nodad;
        if address.prefix_len() == address.max_prefix_len() {
            flags |= AddressFlags::Noprefixroute;
        }
        message.attributes = vec![
            AddressAttribute::Local(ip),
            AddressAttribute::Address(ip),
            AddressAttribute::Flags(flags),
        ];
        let request = RouteNetlinkMessage::NewAddress(message);
        self.0.execute(request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Lists the addresses of an interface.
    pub(crate) fn addresses(&mut self, index: u32) -> io::Result<Vec<OwnAddress>> {
        let mut found = Vec::new();
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.0.query(request, NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewAddress(message) = answer
                && message.header.index == index
                && let Some(net) = address_of(&message)
            {
                let is_ready = is_ready(flags_of(&message));
                found.push(OwnAddress { net, is_ready });
            }
        })?;
        Ok(found)
    }

    /// Takes an address from an interface; one that is not there is no error.
    pub(crate) fn remove_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let ip = address.addr();
        let mut message = AddressMessage::default();
        message.header.family = family_of(ip);
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        match self.0.execute(RouteNetlinkMessage::DelAddress(message), 0) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            result => result,
        }
    }

    /// Whether packets to an IPv6 address are taken in by this host.
    pub(crate) fn is_local(&mut self, address: Ipv6Addr) -> io::Result<bool> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.destination_prefix_length = 128;
        message.attributes = vec![RouteAttribute::Destination(address.into())];
        let mut local = false;
        let result = self
            .0
            .query(RouteNetlinkMessage::GetRoute(message), 0, |answer| {
                if let RouteNetlinkMessage::NewRoute(route) = answer {
                    local = route.header.kind == RouteType::Local;
                }
            });
        match result {
            Err(error) if error.raw_os_error() == Some(libc::ENETUNREACH) => Ok(false),
            result => result.map(|()| local),
        }
    }

    /// Deletes the interface; one that is gone is no error.
    pub(crate) fn delete(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.0.execute(RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }

    /// Returns the socket, for messages about routes.
    pub(crate) const fn socket(&mut self) -> &mut NetlinkSocket {
        &mut self.0
    }
}

const fn family_of(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Our own address, with the length of the prefix that is at the interface. Where that leads to one other
/// end, the message names the address of that end beside ours, and the length is about that.
fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let (mut local, mut named) = (None, None);
    for attribute in &message.attributes {
        if let AddressAttribute::Local(ip) = attribute {
            local = Some(*ip);
        } else if let AddressAttribute::Address(ip) = attribute {
            named = Some(*ip);
        }
    }
    match (local, named) {
        (Some(local), Some(other)) if local != other => Some(IpNet::from(local)),
        (own, named) => IpNet::new(own.or(named)?, message.header.prefix_len).ok(),
    }
}

/// The flags of an address, of which the header has room for the first eight only.
fn flags_of(message: &AddressMessage) -> AddressFlags {
    let flags = message.attributes.iter().find_map(|attribute| {
        let AddressAttribute::Flags(flags) = attribute else {
            return None;
        };
        Some(*flags)
    });
    flags.unwrap_or_else(|| AddressFlags::from_bits_truncate(message.header.flags.bits().into()))
}

const fn is_ready(flags: AddressFlags) -> bool {
    let is_looked_for = flags.contains(AddressFlags::Tentative);
    let may_be_used = !is_looked_for || flags.contains(AddressFlags::Optimistic);
    may_be_used && !flags.contains(AddressFlags::Dadfailed)
}

fn is_of_kind(link: &LinkMessage, kind: &InfoKind) -> bool {
    link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos)
            if infos.iter().any(|info| matches!(info, LinkInfo::Kind(found) if found == kind)))
    })
}

fn is_marked(link: &LinkMessage) -> bool {
    link.attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfAlias(alias) if alias == MARK))
}

const RUNNING: LinkFlags = LinkFlags::Up.union(LinkFlags::Running);

/// The alias of every interface of this software.
const MARK: &str = "lispwire";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_others_have_is_not_ready_whatever_else_is_said_of_it() {
        let none = AddressFlags::empty();
        let (tentative, optimistic) = (AddressFlags::Tentative, AddressFlags::Optimistic);
        assert!(is_ready(none));
        assert!(!is_ready(tentative));
        assert!(is_ready(tentative.union(optimistic)));
        for flags in [none, tentative, optimistic, tentative.union(optimistic)] {
            assert!(!is_ready(flags.union(AddressFlags::Dadfailed)));
        }
    }
}
