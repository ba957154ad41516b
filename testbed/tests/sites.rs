//! Networks behind gateways: hosts without an agent reach each other, first packet included.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod guest;
mod held;

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use testbed::{
    DataPlane, Endpoint, Link, LinkEnd, LinkParams, Namespace, Network, NetworkOptions, Ping,
};

/// A host without an agent, behind a gateway.
struct Inside {
    namespace: Namespace,
    addresses: Vec<IpAddr>,
    _cable: Link,
}

#[test]
fn hosts_behind_gateways_reach_each_other_with_their_first_packet() {
    first_packets_of_hosts_behind_gateways(DataPlane::Embedded);
}

#[test]
fn hosts_behind_gateways_lose_no_first_segment_and_no_fragment() {
    connections_and_fragments(DataPlane::Embedded);
}

#[test]
fn nor_do_they_behind_gateways_with_kernel_wireguard() {
    guest::passes(IN_GUEST);
}

/// The name of the test that runs in a guest.
const IN_GUEST: &str = "sites_on_kernel_wireguard";

#[test]
#[ignore = "needs WireGuard in the kernel; another test runs it in a guest"]
fn sites_on_kernel_wireguard() {
    first_packets_of_hosts_behind_gateways(DataPlane::Kernel);
    connections_and_fragments(DataPlane::Kernel);
}

/// Cold starts by forwarded packets, each from another family and to another network.
fn connections_and_fragments(data_plane: DataPlane) {
    for family in [0, 1] {
        let (mut network, inside) = two_sites("forward = true", data_plane);
        network.start_all().unwrap();
        let [here, there] = inside.as_slice() else {
            unreachable!("two sites");
        };
        let (from, to) = (&here.namespace, &there.namespace);
        let address = *there.addresses.get(family).unwrap();
        held::connects(from, to, address);
        network.stop_all().unwrap();
        network.start_all().unwrap();
        let pace = Duration::from_millis(10);
        held::fragments_arrive(from, to, address, pace);
    }
}

fn first_packets_of_hosts_behind_gateways(data_plane: DataPlane) {
    let (mut network, inside) = two_sites("forward = true", data_plane);
    network.start_all().unwrap();
    for (index, destination) in inside[1].addresses.iter().enumerate() {
        let ping = Ping {
            count: 20,
            interval: Duration::from_millis(5),
            ..Ping::once(*destination)
        };
        let report = ping.run(&inside[0].namespace).unwrap();
        assert_eq!(report.replies.len(), 20, "family {index}");
        assert_eq!((report.duplicates, report.unreachable), (0, 0));
    }
    let back = Ping::once(inside[0].addresses[0]);
    assert_eq!(back.run(&inside[1].namespace).unwrap().replies.len(), 1);
    // Nobody has these: the host behind the gateway is told, not left waiting.
    for nobody in ["10.77.0.1", "fd00:1:0:77::1"] {
        let ping = Ping {
            timeout: Duration::from_secs(5),
            ..Ping::once(nobody.parse().unwrap())
        };
        let report = ping.run(&inside[0].namespace).unwrap();
        assert_eq!(
            (report.replies.len(), report.unreachable),
            (0, 1),
            "{nobody}"
        );
    }
    network.stop_all().unwrap();
    for endpoint in &network.endpoints {
        assert_eq!(forwarding(endpoint), ["0", "0"], "as it was before");
    }
}

#[test]
fn a_gateway_that_may_not_forward_says_so_and_changes_nothing() {
    let (mut network, _inside) = two_sites("", DataPlane::Embedded);
    network.start_all().unwrap();
    let alpha = &network.endpoints[0];
    let daemon = alpha.node.daemon().unwrap();
    for setting in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        let said = daemon.wait_since(
            daemon.started_at(),
            "not_forwarding",
            Duration::from_secs(1),
            |event| event.text("setting") == setting,
        );
        said.unwrap();
    }
    assert_eq!(forwarding(alpha), ["0", "0"]);
}

/// Two gateways that do not run yet, with a host behind each.
fn two_sites(agent_toml: &str, data_plane: DataPlane) -> (Network, Vec<Inside>) {
    let options = NetworkOptions {
        sites: true,
        agent_toml: agent_toml.into(),
        data_plane,
        ..NetworkOptions::default()
    };
    let binaries = testbed::Binaries::up_to_date(|_| ()).unwrap();
    let network = Network::prepare(&options, binaries).unwrap();
    let inside = network
        .endpoints
        .iter()
        .map(|gateway| host_behind(&network, gateway));
    let inside = inside.collect();
    (network, inside)
}

fn host_behind(network: &Network, gateway: &Endpoint) -> Inside {
    let testbed = network.testbed();
    let namespace = testbed
        .namespace(&format!("in-{}", gateway.name()))
        .unwrap();
    let ends = [(gateway.namespace(), "lan0"), (&namespace, "eth0")];
    let ends = ends.map(|(at, interface)| LinkEnd {
        namespace: at.clone(),
        interface: interface.into(),
    });
    let cable = Link::new(testbed, ends, LinkParams::default()).unwrap();
    let mut addresses = Vec::new();
    for net in &gateway.site {
        let [router, host] = [1, 2].map(|number| address(net, number));
        gateway.namespace().add_address("lan0", router).unwrap();
        namespace.add_address("eth0", host).unwrap();
        let via = router.addr().to_string();
        let family = if host.addr().is_ipv4() { "-4" } else { "-6" };
        let mut command = Command::new("ip");
        command.args([family, "route", "add", "default", "via", &via]);
        if host.addr().is_ipv6() {
            // Routers do not fragment IPv6: told by a first packet, or, as here, before.
            command.args(["mtu", "1420"]);
        }
        assert!(namespace.spawn(command).unwrap().wait().unwrap().success());
        addresses.push(host.addr());
    }
    Inside {
        namespace,
        addresses,
        _cable: cable,
    }
}

/// The address with this number in `net`, with the length of `net`.
fn address(net: &IpNet, number: u8) -> IpNet {
    let address = match net.addr() {
        IpAddr::V4(first) => IpAddr::from((u32::from(first) + u32::from(number)).to_be_bytes()),
        IpAddr::V6(first) => IpAddr::from((u128::from(first) + u128::from(number)).to_be_bytes()),
    };
    IpNet::new(address, net.prefix_len()).unwrap()
}

/// Whether the host forwards IPv4 and IPv6.
fn forwarding(endpoint: &Endpoint) -> [String; 2] {
    let read = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_owned();
    let settings = [
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv6/conf/all/forwarding",
    ];
    endpoint.namespace().run(|| settings.map(read)).unwrap()
}
