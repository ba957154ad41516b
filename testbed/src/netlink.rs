//! Interfaces, addresses and neighbours of one namespace, by rtnetlink.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use futures::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteScope, RouteType};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use tokio::runtime::Runtime;

use crate::error::{Doing, TestbedError};

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// Counters of one interface since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// Packets the interface took from the wire.
    pub received_packets: u64,
    /// Packets the interface put on the wire.
    pub sent_packets: u64,
    /// Bytes the interface took from the wire.
    pub received_bytes: u64,
    /// Bytes the interface put on the wire.
    pub sent_bytes: u64,
}

/// One end of a link that is being made.
pub(crate) struct NewInterface<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
}

/// A netlink socket that stays in one namespace, whoever uses it.
pub(crate) struct Netlink {
    handle: Handle,
    runtime: Arc<Runtime>,
    namespace: String,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open(runtime: &Arc<Runtime>, namespace: &str) -> Result<Self, TestbedError> {
        let _inside = runtime.enter();
        let (connection, handle, _) =
            rtnetlink::new_connection().doing("open a netlink socket in", namespace)?;
        runtime.spawn(connection);
        Ok(Self {
            handle,
            runtime: Arc::clone(runtime),
            namespace: namespace.into(),
        })
    }

    /// Waits for a netlink request.
    pub(crate) fn wait<T>(&self, request: impl Future<Output = T>) -> T {
        self.runtime.block_on(request)
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The interface as the kernel describes it.
    pub(crate) fn link(&self, interface: &str) -> Result<LinkMessage, TestbedError> {
        let mut found = self.handle.link().get().match_name(interface).execute();
        self.wait(found.try_next())
            .ok()
            .flatten()
            .ok_or_else(|| TestbedError::NoSuchInterface {
                interface: interface.into(),
                namespace: self.namespace.clone(),
            })
    }

    pub(crate) fn index(&self, interface: &str) -> Result<u32, TestbedError> {
        Ok(self.link(interface)?.header.index)
    }

    pub(crate) fn counters(&self, interface: &str) -> Result<InterfaceCounters, TestbedError> {
        let link = self.link(interface)?;
        let stats = link.attributes.iter().find_map(|attribute| {
            if let LinkAttribute::Stats64(stats) = attribute {
                Some(stats)
            } else {
                None
            }
        });
        Ok(
            stats.map_or_else(InterfaceCounters::default, |stats| InterfaceCounters {
                received_packets: stats.rx_packets,
                sent_packets: stats.tx_packets,
                received_bytes: stats.rx_bytes,
                sent_bytes: stats.tx_bytes,
            }),
        )
    }

    /// Changes one interface; `message` must name it by its index.
    pub(crate) fn set(&self, interface: &str, message: LinkMessage) -> Result<(), TestbedError> {
        let subject = self.subject(interface);
        self.wait(self.handle.link().set(message).execute())
            .doing("change", subject)
    }

    pub(crate) fn set_up(&self, interface: &str) -> Result<(), TestbedError> {
        let index = self.index(interface)?;
        self.set(interface, LinkUnspec::new_with_index(index).up().build())
    }

    pub(crate) fn set_mac(&self, interface: &str, mac: Mac) -> Result<(), TestbedError> {
        let index = self.index(interface)?;
        let message = LinkUnspec::new_with_index(index)
            .address(mac.to_vec())
            .build();
        self.set(interface, message)
    }

    /// Makes the interface a port of a bridge.
    pub(crate) fn attach(&self, interface: &str, bridge: &str) -> Result<(), TestbedError> {
        let port = self.index(interface)?;
        let bridge = self.index(bridge)?;
        self.set(
            interface,
            LinkUnspec::new_with_index(port).controller(bridge).build(),
        )
    }

    pub(crate) fn add_bridge(&self, name: &str) -> Result<(), TestbedError> {
        // Without a querier, snooping only delays what it has not seen yet.
        let bridge = LinkBridge::new(name)
            .mcast_snooping(false)
            .forward_delay(0)
            .build();
        self.wait(self.handle.link().add(bridge).execute())
            .doing("create", self.subject(name))
    }

    /// Makes a veth pair with one end here and one in the namespace `far_namespace`.
    pub(crate) fn add_veth(
        &self,
        near: &NewInterface<'_>,
        far: &NewInterface<'_>,
        far_namespace: BorrowedFd<'_>,
    ) -> Result<(), TestbedError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(far.name)
            .address(far.mac.to_vec())
            .setns_by_fd(far_namespace.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(near.name)
            .address(near.mac.to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.wait(self.handle.link().add(pair).execute())
            .doing("create", self.subject(near.name))
    }

    pub(crate) fn delete(&self, interface: &str) -> Result<(), TestbedError> {
        let index = self.index(interface)?;
        self.wait(self.handle.link().del(index).execute())
            .doing("delete", self.subject(interface))
    }

    /// Adds an address that is usable at once (no duplicate address detection).
    pub(crate) fn add_address(&self, interface: &str, net: IpNet) -> Result<(), TestbedError> {
        let index = self.index(interface)?;
        let mut request = self
            .handle
            .address()
            .add(index, net.addr(), net.prefix_len());
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        request.message_mut().attributes.push(flags);
        self.wait(request.execute())
            .doing("add an address to", self.subject(interface))
    }

    pub(crate) fn delete_address(&self, interface: &str, net: IpNet) -> Result<(), TestbedError> {
        let index = self.index(interface)?;
        let addresses = self.handle.address();
        let mut found = addresses
            .get()
            .set_link_index_filter(index)
            .set_address_filter(net.addr())
            .execute();
        let subject = self.subject(interface);
        while let Some(address) = self
            .wait(found.try_next())
            .doing("list the addresses of", &subject)?
        {
            self.wait(addresses.del(address).execute())
                .doing("delete an address of", &subject)?;
        }
        Ok(())
    }

    /// Adds a permanent entry to the neighbour table.
    pub(crate) fn add_neighbour(
        &self,
        interface: &str,
        address: IpAddr,
        mac: Mac,
    ) -> Result<(), TestbedError> {
        let index = self.index(interface)?;
        let request = self
            .handle
            .neighbours()
            .add(index, address)
            .link_layer_address(&mac);
        self.wait(request.replace().execute())
            .doing("add a neighbour to", self.subject(interface))
    }

    /// Sets the route to a destination, by way of a neighbour.
    pub(crate) fn set_route(
        &self,
        destination: Ipv4Net,
        gateway: Ipv4Addr,
    ) -> Result<(), TestbedError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.addr(), destination.prefix_len())
            .gateway(gateway);
        self.wait(self.handle.route().add(route.build()).replace().execute())
            .doing("set a route in", &self.namespace)
    }

    /// Takes all addresses of a prefix for the namespace's own.
    pub(crate) fn add_local_prefix(&self, prefix: Ipv4Net) -> Result<(), TestbedError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())
            .output_interface(self.index("lo")?)
            .table_id(libc::RT_TABLE_LOCAL.into())
            .scope(RouteScope::Host)
            .kind(RouteType::Local);
        self.wait(self.handle.route().add(route.build()).execute())
            .doing("add a local prefix in", &self.namespace)
    }

    pub(crate) fn subject(&self, interface: &str) -> String {
        format!("{interface} in namespace {}", self.namespace)
    }
}
