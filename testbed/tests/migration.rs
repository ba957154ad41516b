//! A planned migration: the clients of one proxy move to another while packets flow through both,
//! and none is lost.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use testbed::{
    Binaries, DataPlane, Endpoint, Link, LinkEnd, LinkParams, Namespace, NetworkOptions, TcpProbe,
    TcpReport, TestbedError, TwoProxies, UdpProbe, UdpReport,
};

/// Packets have flowed for so long when the client moves.
const BEFORE: Duration = Duration::from_secs(1);

#[test]
fn a_client_that_moves_from_one_proxy_to_another_loses_no_packet() {
    moves_without_loss(DataPlane::Embedded, Duration::from_millis(1));
}

#[test]
fn nor_does_it_on_kernel_wireguard() {
    guest::passes(IN_GUEST);
}

/// The name of the test that runs in a guest.
const IN_GUEST: &str = "on_kernel_wireguard";

#[test]
#[ignore = "needs WireGuard in the kernel; another test runs it in a guest"]
fn on_kernel_wireguard() {
    moves_without_loss(DataPlane::Kernel, Duration::from_millis(10));
}

fn moves_without_loss(data_plane: DataPlane, pace: Duration) {
    let mut scene = scene(data_plane, "");
    scene.network.start_all().unwrap();
    let client = scene.client().unwrap();
    // The first packet: from then on the client is on one of them.
    let one = stream(client, &scene, 1, pace);
    assert!(one.is_perfect(), "{one:?}");
    let [from, to] = scene.used_by(client).unwrap();
    // There and back again: one direction of the comparison of keys is not enough. First an operator
    // moves the client, then a proxy sends it away.
    for ([from, to], itself) in [([from, to], false), ([to, from], true)] {
        let proxies = [from, to].map(|number| &scene.network.endpoints[number]);
        let (report, said) = thread::scope(|scope| {
            let flowing = scope.spawn(|| stream(client, &scene, 3_000, pace));
            testbed::sleep(BEFORE);
            let said = if itself {
                proxies[0].node.ask(&["drain", "--json"])
            } else {
                migrate(&scene, proxies)
            };
            (flowing.join().unwrap(), said.unwrap())
        });
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.success(), "{text}{complaint}");
        assert!(report.is_perfect(), "lost {:?}, {report:?}", report.lost);
        assert_eq!(scene.used_by(client).unwrap(), [to, from], "{text}");
        assert!(itself || text.contains("\"move_ms\":"), "{text}");
        let peers = proxies[0].report_peers(&scene.network.log).unwrap();
        let knows = peers.iter().any(|peer| peer.key == client.data_key);
        assert!(!knows, "{from} still knows the client: {peers:?}");
    }
    scene.network.stop_all().unwrap();
}

/// Moves all clients of the first proxy to the second.
fn migrate(scene: &TwoProxies, [from, to]: [&Endpoint; 2]) -> Result<Output, TestbedError> {
    let (from, to) = (from.name(), to.name());
    let arguments = ["migrate", "--from", from, "--to", to, "--all", "--json"];
    scene.network.server.ask(&arguments)
}

/// What becomes of a TCP connection of the client while it moves, in the order of
/// docs/architecture.md. The way back moves when the client has.
#[test]
fn a_connection_survives_a_move_where_addresses_stay() {
    let scene = started("");
    let client = scene.client().unwrap();
    let report = moved_under_tcp(&scene, TwoProxies::INSIDE, &scene.inside);
    assert!(report.survived, "{report:?}");
    assert_eq!(report.seen_as, Some(client.eids[0]));
}

#[test]
fn a_connection_survives_a_move_where_a_translator_behind_the_proxies_keeps_its_address() {
    let scene = started("");
    let world = scene.network.testbed().namespace("world").unwrap();
    let ends = [(&scene.inside, "world"), (&world, "eth0")];
    let ends = ends.map(|(at, interface)| LinkEnd {
        namespace: at.clone(),
        interface: interface.into(),
    });
    let _cable = Link::new(scene.network.testbed(), ends, LinkParams::default()).unwrap();
    // Inside of what the proxies serve, and out of reach for them by themselves.
    let [anchor, server] = [1, 2].map(|host| Ipv4Addr::new(10, 200, 77, host));
    for (namespace, interface, address) in
        [(&scene.inside, "world", anchor), (&world, "eth0", server)]
    {
        let net = format!("{address}/24").parse().unwrap();
        namespace.add_address(interface, net).unwrap();
    }
    for (number, proxy) in scene.network.endpoints[..TwoProxies::PROXIES]
        .iter()
        .enumerate()
    {
        let via = TwoProxies::inside_of(number);
        proxy.namespace().set_route(server.into(), via).unwrap();
    }
    nft(
        &scene.inside,
        "table ip anchor {\nchain post {\ntype nat hook postrouting priority srcnat;\n\
         oifname \"world\" masquerade\n}\n}",
    );
    let forward = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
    scene.inside.run(forward).unwrap().unwrap();
    let report = moved_under_tcp(&scene, server, &world);
    assert!(report.survived, "{report:?}");
    assert_eq!(report.seen_as, Some(anchor.into()));
}

#[test]
fn a_connection_does_not_survive_a_move_between_translators_and_the_next_one_works_at_once() {
    let scene = started("nat = \"masquerade\"");
    let [from, to] = scene.used_by(scene.client().unwrap()).unwrap();
    let position = scene.network.log.position();
    let report = moved_under_tcp(&scene, TwoProxies::INSIDE, &scene.inside);
    assert!(!report.survived, "{report:?}");
    // The proxy that it has left says so, by client and in words.
    let left = |event: &testbed::LogEvent| event.number("reset").is_some_and(|reset| reset > 0);
    let old = scene.network.endpoints[from].node.daemon().unwrap();
    let timeout = Duration::from_secs(10);
    old.wait_since(position, "connections_left", timeout, left)
        .unwrap();
    let seen_as = |proxy| Some(TwoProxies::uplink_of(proxy).into());
    assert_eq!(report.seen_as, seen_as(from));
    let next = tcp(TwoProxies::INSIDE, 10);
    let client = scene.client().unwrap();
    let report = next.run(client.namespace(), &scene.inside).unwrap();
    assert!(report.survived, "{report:?}");
    assert_eq!(report.seen_as, seen_as(to));
}

/// Proxies with these further lines, and a client that uses one of them.
fn started(proxy_toml: &str) -> TwoProxies {
    let mut scene = scene(DataPlane::Embedded, proxy_toml);
    scene.network.start_all().unwrap();
    let client = scene.client().unwrap();
    let one = stream(client, &scene, 1, Duration::from_millis(1));
    assert!(one.is_perfect(), "{one:?}");
    scene
}

/// A connection to a host for so many times 5 ms.
fn tcp(host: Ipv4Addr, count: u32) -> TcpProbe {
    TcpProbe {
        destination: SocketAddr::new(host.into(), 9_001),
        source: None,
        count,
        piece: 1_000,
        interval: Duration::from_millis(5),
        timeout: Duration::from_secs(5),
    }
}

/// What becomes of a connection to `host` while the client moves from its proxy to the other one.
fn moved_under_tcp(scene: &TwoProxies, host: Ipv4Addr, at: &Namespace) -> TcpReport {
    let client = scene.client().unwrap();
    let [from, to] = scene.used_by(client).unwrap();
    let IpAddr::V4(eid) = client.eids[0] else {
        panic!("the first EID is an IPv4 address");
    };
    scene.return_through(eid.into(), from).unwrap();
    let proxies = [from, to].map(|number| &scene.network.endpoints[number]);
    thread::scope(|scope| {
        let transfer = scope.spawn(|| tcp(host, 800).run(client.namespace(), at));
        testbed::sleep(BEFORE);
        let position = scene.network.log.position();
        let moving = scope.spawn(move || migrate(scene, proxies).unwrap());
        let server = scene.network.server.daemon().unwrap();
        let has_moved = |event: &testbed::LogEvent| event.text("state") == "switched";
        let timeout = Duration::from_secs(10);
        server
            .wait_since(position, "migration", timeout, has_moved)
            .unwrap();
        scene.return_through(eid.into(), to).unwrap();
        assert!(moving.join().unwrap().status.success());
        transfer.join().unwrap().unwrap()
    })
}

/// Has `nft` carry out a script in a namespace.
fn nft(namespace: &Namespace, script: &str) {
    let mut command = Command::new("nft");
    command.arg(script);
    let status = namespace.spawn(command).unwrap().wait().unwrap();
    assert!(status.success(), "{script}");
}

/// Packets from a client to the host behind the proxies.
fn stream(from: &Endpoint, scene: &TwoProxies, count: u32, pace: Duration) -> UdpReport {
    let probe = UdpProbe {
        source: Some(from.eids[0]),
        count,
        interval: pace,
        // An emulated guest may be seconds late.
        timeout: Duration::from_secs(10),
        ..UdpProbe::thousand_to(SocketAddr::new(TwoProxies::INSIDE.into(), 9_000))
    };
    probe.run(from.namespace(), &scene.inside).unwrap()
}

/// Two proxies and a client.
fn scene(data_plane: DataPlane, proxy_toml: &str) -> TwoProxies {
    let options = NetworkOptions {
        endpoints: TwoProxies::PROXIES + 1,
        links: LinkParams::delayed(Duration::from_millis(5)),
        data_plane,
        ..NetworkOptions::default()
    };
    let binaries = Binaries::up_to_date(|_| ()).unwrap();
    TwoProxies::prepare(&options, binaries, proxy_toml).unwrap()
}
