//! Clients with nothing but a default route into their tunnels, a proxy that leads them on, and the
//! world behind it.
#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod by_hand;
mod guest;

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use testbed::{
    Binaries, DataPlane, Endpoint, Link, LinkEnd, LinkParams, Namespace, Network, NetworkOptions,
    Ping, Snapshot, TcpProbe, UdpProbe,
};

use by_hand::{edit, ip};

/// The server in the world, and the proxy's addresses there.
const WORLD: [&str; 2] = ["198.51.100.2", "2001:db8:ff::2"];
const UPLINK: [&str; 2] = ["198.51.100.1", "2001:db8:ff::1"];

#[test]
fn clients_reach_the_world_with_an_address_of_the_proxy() {
    masquerades(DataPlane::Embedded);
}

#[test]
fn clients_reach_the_world_with_their_own_addresses_and_are_reached() {
    routes(DataPlane::Embedded);
}

#[test]
fn and_so_they_do_on_kernel_wireguard() {
    guest::passes(IN_GUEST);
}

/// The name of the test that runs in a guest.
const IN_GUEST: &str = "on_kernel_wireguard";

#[test]
#[ignore = "needs WireGuard in the kernel; another test runs it in a guest"]
fn on_kernel_wireguard() {
    masquerades(DataPlane::Kernel);
    routes(DataPlane::Kernel);
}

#[test]
fn what_a_client_left_that_was_killed_is_purged() {
    let mut world = World::new(DataPlane::Embedded, "");
    let before = world.snapshots();
    world.network.start_all().unwrap();
    let client = &mut world.network.endpoints[1];
    client.node.kill();
    let left = client.namespace().snapshot().unwrap();
    let left = left.changes_since(&before[1]);
    assert!(left.iter().any(|line| line.contains("rule")), "{left:?}");
    let purged = client.node.ask(&["stop", "--purge"]).unwrap();
    assert!(purged.status.success());
    let left = client.namespace().snapshot().unwrap();
    assert_eq!(left.changes_since(&before[1]), Vec::<String>::new());
}

fn masquerades(data_plane: DataPlane) {
    let nat = "nat = \"masquerade\"\nuplink = \"uplink0\"";
    let mut world = World::new(data_plane, nat);
    let before = world.snapshots();
    world.network.start_all().unwrap();
    let [proxy, clients @ ..] = world.network.endpoints.as_slice() else {
        unreachable!("there are three endpoints");
    };
    for client in clients {
        for (to, seen_as) in WORLD.into_iter().zip(UPLINK) {
            world.reaches(client, to, Some(seen_as));
        }
    }
    meet(&world.network.log, clients, proxy);
    assert!(tables(proxy.namespace()).contains("masquerade"));
    world.ends_without_a_trace(&before);
}

fn routes(data_plane: DataPlane) {
    let mut world = World::new(data_plane, "");
    for (net, [via, family]) in [
        ("10.0.0.0/8", [UPLINK[0], "-4"]),
        ("fd00:1::/48", [UPLINK[1], "-6"]),
    ] {
        ip(&world.server, &[family, "route", "add", net, "via", via]);
    }
    let before = world.snapshots();
    world.network.start_all().unwrap();
    let [proxy, clients @ ..] = world.network.endpoints.as_slice() else {
        unreachable!("there are three endpoints");
    };
    // The world begins: nobody has asked for this client by now.
    let first = ping(clients[0].eids[0]).run(&world.server).unwrap();
    assert_eq!(first.replies.len(), 20, "{first:?}");
    for client in clients {
        for to in WORLD {
            world.reaches(client, to, None);
        }
        for eid in client.eids {
            let report = ping(eid).run(&world.server).unwrap();
            assert_eq!(report.replies.len(), 20, "{eid}: {report:?}");
        }
    }
    meet(&world.network.log, clients, proxy);
    // An address that nobody has is refused, and not sent to and fro.
    let nobody = Ping {
        timeout: Duration::from_secs(5),
        ..Ping::once("10.0.0.99".parse().unwrap())
    };
    assert_eq!(nobody.run(&world.server).unwrap().unreachable, 1);
    world.ends_without_a_trace(&before);
}

/// The clients reach each other directly.
fn meet(log: &testbed::EventLog, clients: &[Endpoint], proxy: &Endpoint) {
    for eid in clients[1].eids {
        let report = ping(eid).run(clients[0].namespace()).unwrap();
        assert_eq!(report.replies.len(), 20, "{eid}: {report:?}");
    }
    let peers = clients[0].report_peers(log).unwrap();
    let of = |endpoint: &Endpoint| peers.iter().find(|peer| peer.key == endpoint.data_key);
    let direct = of(&clients[1]).unwrap();
    assert!(
        direct
            .eids
            .iter()
            .all(|eid| eid.ends_with("/32") || eid.ends_with("/128"))
    );
    assert!(of(proxy).is_some());
}

fn ping(destination: IpAddr) -> Ping {
    Ping {
        count: 20,
        interval: Duration::from_millis(5),
        // An emulated guest may be late.
        timeout: Duration::from_secs(10),
        ..Ping::once(destination)
    }
}

/// All that nftables has in a namespace.
fn tables(namespace: &Namespace) -> String {
    let mut command = Command::new("nft");
    command.args(["list", "ruleset"]).stdout(Stdio::piped());
    let child = namespace.spawn(command).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A proxy, two clients whose only way out is a default route, and a server behind the proxy.
struct World {
    network: Network,
    server: Namespace,
    _cable: Link,
}

impl World {
    /// With these lines in the proxy's configuration; nothing runs yet.
    fn new(data_plane: DataPlane, proxy_toml: &str) -> Self {
        let options = NetworkOptions {
            endpoints: 3,
            links: LinkParams::delayed(Duration::from_millis(2)),
            data_plane,
            ..NetworkOptions::default()
        };
        let binaries = Binaries::up_to_date(|_| ()).unwrap();
        let network = Network::prepare(&options, binaries).unwrap();
        let server = network.testbed().namespace("world").unwrap();
        let [proxy, clients @ ..] = network.endpoints.as_slice() else {
            unreachable!("there are three endpoints");
        };
        let ends = [(proxy.namespace(), "uplink0"), (&server, "eth0")];
        let ends = ends.map(|(at, interface)| LinkEnd {
            namespace: at.clone(),
            interface: interface.into(),
        });
        let cable = Link::new(network.testbed(), ends, LinkParams::default()).unwrap();
        for (family, length) in [24, 64].into_iter().enumerate() {
            let net = |address: &str| format!("{address}/{length}").parse().unwrap();
            let addresses = [UPLINK[family], WORLD[family]].map(net);
            let at = [(proxy.namespace(), "uplink0"), (&server, "eth0")];
            for ((namespace, interface), address) in at.into_iter().zip(addresses) {
                namespace.add_address(interface, address).unwrap();
            }
        }
        edit(&proxy.node.config, |text| {
            format!("role = \"proxy\"\n{proxy_toml}\n{text}")
        });
        let own = format!("\"{}/128\"", proxy.eids[1]);
        edit(&network.server.config, |text| {
            text.replacen(&own, &format!("{own}, \"0.0.0.0/0\", \"::/0\""), 1)
        });
        for client in clients {
            edit(&client.node.config, |text| {
                text.replacen(
                    "overlay = [\"10.0.0.0/8\", \"fd00:1::/48\"]",
                    "overlay = [\"0.0.0.0/0\", \"::/0\"]",
                    1,
                )
            });
            // Whatever carries the tunnels takes a default route as well.
            let at = client.namespace();
            for (family, near) in [("-4", "192.0.2.0/24"), ("-6", "2001:db8::/64")] {
                ip(at, &[family, "route", "del", near, "dev", "eth0"]);
                ip(at, &[family, "route", "add", "default", "dev", "eth0"]);
            }
        }
        Self {
            network,
            server,
            _cable: cable,
        }
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        let endpoints = self.network.endpoints.iter();
        let snapshots = endpoints.map(|endpoint| endpoint.namespace().snapshot().unwrap());
        snapshots.collect()
    }

    /// The client reaches an address of the server, which sees it as `seen_as`, or else as what it is.
    fn reaches(&self, client: &Endpoint, to: &str, seen_as: Option<&str>) {
        let (name, to): (_, IpAddr) = (client.name(), to.parse().unwrap());
        // Linux takes packets in by eight, and connection tracking drops all but the first of those
        // that open one flow together, unless they are of UDP.
        let together: u16 = if seen_as.is_some() { 1 } else { 20 };
        for _ in 0..20 / together {
            let ping = Ping {
                count: together,
                ..ping(to)
            };
            let report = ping.run(client.namespace()).unwrap();
            let replies = report.replies.len();
            assert_eq!(replies, usize::from(together), "{name} to {to}: {report:?}");
        }
        let own = client.eids[usize::from(to.is_ipv6())];
        let seen_as = seen_as.map_or(own, |address| address.parse().unwrap());
        let transfer = TcpProbe {
            destination: SocketAddr::new(to, 9_001),
            source: None,
            count: 200,
            piece: 4_000,
            interval: Duration::from_millis(1),
            timeout: Duration::from_secs(20),
        };
        let report = transfer.run(client.namespace(), &self.server).unwrap();
        assert!(report.survived, "{name} to {to}: {report:?}");
        assert_eq!(report.seen_as, Some(seen_as), "{name} to {to}");
        let stream = UdpProbe {
            count: 500,
            timeout: Duration::from_secs(10),
            ..UdpProbe::thousand_to(SocketAddr::new(to, 9_000))
        };
        let report = stream.run(client.namespace(), &self.server).unwrap();
        assert!(report.is_perfect(), "{name} to {to}: {:?}", report.lost);
    }

    /// All agents are purged: everything is as it was.
    fn ends_without_a_trace(&mut self, before: &[Snapshot]) {
        for endpoint in &self.network.endpoints {
            let purged = endpoint.node.ask(&["stop", "--purge"]).unwrap();
            assert!(purged.status.success(), "{}", endpoint.name());
        }
        for (endpoint, before) in self.network.endpoints.iter().zip(before) {
            let after = endpoint.namespace().snapshot().unwrap();
            let name = endpoint.name();
            assert_eq!(after.changes_since(before), Vec::<String>::new(), "{name}");
            assert_eq!(tables(endpoint.namespace()), "", "{name}");
        }
        let forwards = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_owned();
        let settings = [
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/net/ipv6/conf/all/forwarding",
        ];
        let proxy = self.network.endpoints[0].namespace();
        assert_eq!(proxy.run(|| settings.map(forwards)).unwrap(), ["0", "0"]);
    }
}
