//! A planned migration: the clients of one proxy move to another while packets flow through both,
//! and none is lost.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod by_hand;
mod guest;

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use testbed::{
    Binaries, DataPlane, Endpoint, Link, LinkEnd, LinkParams, Namespace, Network, NetworkOptions,
    UdpProbe,
};

use by_hand::{edit, ip};

/// What both proxies serve.
const SERVED: &str = "10.200.0.0/16";
/// A host in it.
const INSIDE: &str = "10.200.0.10";
/// The proxies are the first two endpoints, the client is the third.
const CLIENT: usize = 2;
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
    let (mut network, inside, _cables) = two_proxies(data_plane);
    network.start_all().unwrap();
    let client = &network.endpoints[CLIENT];
    // The first packet: from then on the client is on one of them.
    let one = stream(client, &inside, 1, pace).unwrap();
    assert!(one.is_perfect(), "{one:?}");
    let (from, to) = proxies_of(&network);
    println!("from {from} to {to}");
    // There and back again: one direction of the comparison of keys is not enough. First an operator
    // moves the client, then a proxy sends it away.
    for (from, to, itself) in [(&from, &to, false), (&to, &from, true)] {
        let (report, said) = thread::scope(|scope| {
            let flowing = scope.spawn(|| stream(client, &inside, 3_000, pace));
            testbed::sleep(BEFORE);
            let said = if itself {
                network
                    .endpoint(from)
                    .unwrap()
                    .node
                    .ask(&["drain", "--json"])
            } else {
                let arguments = ["migrate", "--from", from, "--to", to, "--all", "--json"];
                network.server.ask(&arguments)
            };
            (flowing.join().unwrap().unwrap(), said.unwrap())
        });
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.success(), "{text}{complaint}");
        assert!(report.is_perfect(), "lost {:?}, {report:?}", report.lost);
        assert_eq!(proxies_of(&network).0, *to, "{text}");
        let left = network.endpoint(from).unwrap();
        let peers = left.report_peers(&network.log).unwrap();
        let knows = peers.iter().any(|peer| peer.key == client.data_key);
        assert!(!knows, "{from} still knows the client: {peers:?}");
    }
    network.stop_all().unwrap();
}

/// The proxy that the client uses, and the other one.
fn proxies_of(network: &Network) -> (String, String) {
    let peers = network.endpoints[CLIENT]
        .report_peers(&network.log)
        .unwrap();
    let serves = |endpoint: &&Endpoint| {
        let of = |key: &str| peers.iter().find(|peer| peer.key == key);
        of(&endpoint.data_key).is_some_and(|peer| peer.eids.iter().any(|eid| eid == SERVED))
    };
    let used: Vec<_> = network.endpoints[..CLIENT].iter().filter(serves).collect();
    let [used] = used.as_slice() else {
        panic!("the client uses {} proxies: {peers:?}", used.len());
    };
    let other = network.endpoints[..CLIENT]
        .iter()
        .find(|endpoint| endpoint.name() != used.name());
    (used.name().to_owned(), other.unwrap().name().to_owned())
}

fn stream(
    from: &Endpoint,
    to: &Namespace,
    count: u32,
    pace: Duration,
) -> Result<testbed::UdpReport, testbed::TestbedError> {
    let probe = UdpProbe {
        source: Some(from.eids[0]),
        count,
        interval: pace,
        // An emulated guest may be seconds late.
        timeout: Duration::from_secs(10),
        ..UdpProbe::thousand_to(SocketAddr::new(INSIDE.parse().unwrap(), 9_000))
    };
    probe.run(from.namespace(), to)
}

/// Two proxies that do not run yet, the host that both lead to, and a client.
fn two_proxies(data_plane: DataPlane) -> (Network, Namespace, Vec<Link>) {
    let options = NetworkOptions {
        endpoints: CLIENT + 1,
        links: LinkParams::delayed(Duration::from_millis(5)),
        data_plane,
        ..NetworkOptions::default()
    };
    let binaries = Binaries::up_to_date(|_| ()).unwrap();
    let network = Network::prepare(&options, binaries).unwrap();
    let inside = network.testbed().namespace("inside").unwrap();
    let mut cables = Vec::new();
    for (number, proxy) in network.endpoints[..CLIENT].iter().enumerate() {
        let own = format!("\"{}/32\"", proxy.eids[0]);
        let both = format!("{own}, \"{SERVED}\"");
        edit(&proxy.node.config, |text| {
            format!(
                "shared = true\nforward = true\n{}",
                text.replacen(&own, &both, 1)
            )
        });
        edit(&network.server.config, |text| text.replacen(&own, &both, 1));
        let lan = format!("lan{number}");
        let ends = [(proxy.namespace(), "lan"), (&inside, lan.as_str())];
        let ends = ends.map(|(at, interface)| LinkEnd {
            namespace: at.clone(),
            interface: interface.into(),
        });
        cables.push(Link::new(network.testbed(), ends, LinkParams::default()).unwrap());
        let address = |host: u8| format!("10.200.{}.{host}/24", number + 1);
        ip(
            proxy.namespace(),
            &["address", "add", &address(1), "dev", "lan"],
        );
        ip(&inside, &["address", "add", &address(2), "dev", &lan]);
        let via = format!("10.200.{}.2", number + 1);
        ip(proxy.namespace(), &["route", "add", INSIDE, "via", &via]);
    }
    ip(&inside, &["address", "add", INSIDE, "dev", "lan0"]);
    (network, inside, cables)
}
