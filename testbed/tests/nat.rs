//! Endpoints behind routers with NAT: they are found, reach each other directly, and stay reachable.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use testbed::{
    Binaries, DataPlane, Endpoint, LinkParams, LogEvent, LogPosition, Network, NetworkOptions,
    Ping, Router,
};

/// Time until it is known where an endpoint appears.
const FOUND: Duration = Duration::from_secs(20);
/// Time until a NAT that has changed its mind is noticed: a keepalive, and a look at the peers.
const NOTICED: Duration = Duration::from_secs(60);
/// A first packet takes less, even where time is that of an emulated machine.
const FIRST_PACKET: Duration = Duration::from_millis(900);
/// Longer than it takes to find out that there is no other way, and to take that of a relay.
const FIRST_RELAYED: Duration = Duration::from_millis(2_900);
/// Longer than it takes to be greeted once more by somebody whom nobody can send to first.
const FIRST_FOUND: Duration = Duration::from_millis(2_000);
/// Longer than it takes until keepalives are due.
const QUIET: Duration = Duration::from_secs(60);

#[test]
fn one_end_behind_a_nat_in_either_role() {
    one_end(DataPlane::Embedded);
}

#[test]
fn two_ends_behind_two_nats_meet() {
    two_nats(DataPlane::Embedded);
}

#[test]
fn two_ends_behind_one_nat_meet_inside() {
    one_nat(DataPlane::Embedded);
}

#[test]
fn a_nat_that_forgets_is_noticed() {
    rebound(DataPlane::Embedded);
}

#[test]
fn a_nat_that_gets_another_address_is_noticed() {
    moved(DataPlane::Embedded);
}

#[test]
fn two_ends_that_nats_keep_apart_use_a_relay() {
    relayed(DataPlane::Embedded);
}

#[test]
fn one_end_behind_a_nat_with_a_port_for_each_destination() {
    scattered(DataPlane::Embedded);
}

#[test]
fn so_it_is_on_kernel_wireguard() {
    guest::passes(IN_GUEST);
}

/// The name of the test that runs in a guest.
const IN_GUEST: &str = "on_kernel_wireguard";

#[test]
#[ignore = "needs WireGuard in the kernel; another test runs it in a guest"]
fn on_kernel_wireguard() {
    one_end(DataPlane::Kernel);
    two_nats(DataPlane::Kernel);
    one_nat(DataPlane::Kernel);
    rebound(DataPlane::Kernel);
    moved(DataPlane::Kernel);
}

#[test]
fn so_are_ports_for_each_destination_on_kernel_wireguard() {
    guest::passes(SCATTERED_IN_GUEST);
}

/// The name of the other test that runs in a guest.
const SCATTERED_IN_GUEST: &str = "scattered_on_kernel_wireguard";

#[test]
#[ignore = "needs WireGuard in the kernel; another test runs it in a guest"]
fn scattered_on_kernel_wireguard() {
    relayed(DataPlane::Kernel);
    scattered(DataPlane::Kernel);
}

fn one_end(data_plane: DataPlane) {
    let (network, _routers) = hidden(data_plane, 4, &[&[0]]);
    let [alpha, beta, gamma, delta] = &network.endpoints[..] else {
        panic!("four endpoints");
    };
    assert_eq!(nat(alpha)["behind"], true);
    for public in [beta, gamma, delta] {
        let mut tries = 0..100;
        while nat(public)["behind"] == Value::Null && tries.next().is_some() {
            testbed::sleep(Duration::from_millis(100));
        }
        assert_eq!(nat(public)["behind"], false, "{}", public.name());
    }
    reaches(alpha, beta);
    reaches(gamma, alpha);
    reaches(gamma, delta);
    if data_plane == DataPlane::Embedded {
        // It does not count keepalives.
        return;
    }
    let bytes = |from: &Endpoint, to: &Endpoint| {
        let peers = from.report_peers(&network.log).unwrap();
        let peer = peers.into_iter().find(|peer| peer.key == to.data_key);
        peer.unwrap().tx_bytes
    };
    // What a handshake leads to has passed.
    testbed::sleep(Duration::from_secs(12));
    let pairs = [(alpha, beta), (beta, alpha), (gamma, delta), (delta, gamma)];
    let before = pairs.map(|(from, to)| bytes(from, to));
    testbed::sleep(QUIET);
    let after = pairs.map(|(from, to)| bytes(from, to));
    assert!(after[0] > before[0], "kept open from behind the NAT");
    assert_eq!(after[1..], before[1..], "and by nobody else");
}

fn two_nats(data_plane: DataPlane) {
    let (network, _routers) = hidden(data_plane, 3, &[&[0], &[1]]);
    let [alpha, beta, gamma] = &network.endpoints[..] else {
        panic!("three endpoints");
    };
    reaches(alpha, beta);
    reaches(beta, gamma);
    reaches(gamma, alpha);
}

fn one_nat(data_plane: DataPlane) {
    let (network, _routers) = hidden(data_plane, 2, &[&[0, 1]]);
    let [alpha, beta] = &network.endpoints[..] else {
        panic!("two endpoints");
    };
    reaches(alpha, beta);
    for endpoint in [alpha, beta] {
        let peers = endpoint.report_peers(&network.log).unwrap();
        let paths: Vec<_> = peers
            .into_iter()
            .filter(|it| !it.eids.is_empty())
            .map(|it| it.endpoint.unwrap())
            .collect();
        let [path] = &paths[..] else {
            panic!("one peer: {paths:?}");
        };
        assert!(path.starts_with("192.168.1."), "{path}");
    }
}

fn rebound(data_plane: DataPlane) {
    let (network, routers) = hidden(data_plane, 2, &[&[0], &[1]]);
    let [alpha, beta] = &network.endpoints[..] else {
        panic!("two endpoints");
    };
    reaches(alpha, beta);
    let position = network.log.position();
    routers[0].rebind(20_000..=20_999).unwrap();
    let endpoint = seen_at(alpha, position, NOTICED);
    let port = endpoint.rsplit_once(':').unwrap().1;
    assert!((20_000..=20_999).contains(&port.parse::<u16>().unwrap()));
    // The other end was told: packets from there get in.
    testbed::sleep(Duration::from_secs(1));
    reaches(beta, alpha);
}

fn moved(data_plane: DataPlane) {
    let (mut network, mut routers) = hidden(data_plane, 2, &[&[0], &[1]]);
    reaches(&network.endpoints[0], &network.endpoints[1]);
    let position = network.log.position();
    let to = "192.0.2.200".parse().unwrap();
    network.move_router(&mut routers[0], to).unwrap();
    let [alpha, beta] = &network.endpoints[..] else {
        panic!("two endpoints");
    };
    let endpoint = seen_at(alpha, position, NOTICED);
    assert!(endpoint.starts_with("192.0.2.200:"), "{endpoint}");
    testbed::sleep(Duration::from_secs(1));
    reaches(beta, alpha);
}

/// Hosts that nobody can send to first still reach all those that anybody can send to, in either role.
fn scattered(data_plane: DataPlane) {
    let (network, _routers) = built(data_plane, 3, &[&[0]], |_, routers| {
        routers[0].scatter().unwrap();
    });
    let [alpha, beta, gamma] = &network.endpoints[..] else {
        panic!("three endpoints");
    };
    reaches(alpha, beta);
    reaches_within(gamma, alpha, FIRST_FOUND);
}

fn relayed(data_plane: DataPlane) {
    let (network, _routers) = built(data_plane, 3, &[&[1], &[2]], |network, routers| {
        routers.iter().for_each(|router| router.scatter().unwrap());
        let relay = &network.endpoints[0];
        edit(&relay.node.config, |text| {
            format!("role = \"proxy\"\nserves = [\"10.0.0.0/8\", \"fd00:1::/48\"]\n{text}")
        });
        let own = format!("\"{}/32\"", relay.eids[0]);
        edit(&network.server.config, |text| {
            let served = format!("{own}, \"10.0.0.0/8\", \"fd00:1::/48\"");
            let text = text.replacen(&own, &served, 1);
            let name = format!("name = \"{}\"\n", relay.name());
            text.replacen(&name, &format!("{name}relay = true\n"), 1)
        });
    });
    let [relay, beta, gamma] = &network.endpoints[..] else {
        panic!("three endpoints");
    };
    let longest = match data_plane {
        // The machine is an emulated one there.
        DataPlane::Kernel => FIRST_RELAYED * 2,
        DataPlane::Auto | DataPlane::Embedded => FIRST_RELAYED,
    };
    reaches_within(beta, gamma, longest);
    reaches(gamma, beta);
    for (from, to) in [(beta, gamma), (gamma, beta)] {
        let far = relay.node.host.addresses()[0];
        let way = format!("relayed via {far}:");
        let status = status(from);
        let eid = format!("{}/32", to.eids[0]);
        let mut lines = status.lines();
        let line = lines.find(|line| line.trim_start().starts_with(&eid));
        assert!(line.is_some_and(|line| line.contains(&way)), "{status}");
    }
    reaches(beta, relay);
}

/// A network whose endpoints are behind routers, one for each of `groups`, and know where they appear.
fn hidden(data_plane: DataPlane, endpoints: usize, groups: &[&[usize]]) -> (Network, Vec<Router>) {
    built(data_plane, endpoints, groups, |_, _| ())
}

/// The same, prepared further before anything is started.
fn built(
    data_plane: DataPlane,
    endpoints: usize,
    groups: &[&[usize]],
    prepare: impl FnOnce(&Network, &[Router]),
) -> (Network, Vec<Router>) {
    let options = NetworkOptions {
        endpoints,
        links: LinkParams::delayed(Duration::from_millis(5)),
        data_plane,
        ..NetworkOptions::default()
    };
    let binaries = Binaries::up_to_date(|_| ()).unwrap();
    let mut network = Network::prepare(&options, binaries).unwrap();
    let mut routers = Vec::new();
    for (number, group) in (1..).zip(groups) {
        let name = format!("router-{number}");
        routers.push(network.hide(&name, number, group, &options).unwrap());
    }
    prepare(&network, &routers);
    let start = network.log.position();
    network.start_all().unwrap();
    for (router, group) in routers.iter().zip(groups) {
        for index in *group {
            let at = seen_at(&network.endpoints[*index], start, FOUND);
            let address = router.address().unwrap().to_string();
            assert!(at.starts_with(&address), "{at} is not {address}");
        }
    }
    (network, routers)
}

/// Where an endpoint has found out that it appears, since `position`; it is registered when this returns.
fn seen_at(endpoint: &Endpoint, position: LogPosition, timeout: Duration) -> String {
    let daemon = endpoint.node.daemon().unwrap();
    let seen = daemon.wait_since(position, "seen_at", timeout, |_| true);
    let seen = seen.unwrap();
    let at = seen.text("endpoint").to_owned();
    let later = |event: &LogEvent| event.timestamp >= seen.timestamp;
    daemon
        .wait_since(position, "registered", timeout, later)
        .unwrap();
    testbed::sleep(Duration::from_millis(200));
    at
}

fn reaches(from: &Endpoint, to: &Endpoint) {
    reaches_within(from, to, FIRST_PACKET);
}

fn reaches_within(from: &Endpoint, to: &Endpoint, longest: Duration) {
    let report = Ping::once(to.eids[0]).run(from.namespace()).unwrap();
    let took = report.shortest();
    println!("{} to {}: {took:?}", from.name(), to.name());
    assert!(
        took.is_some_and(|took| took < longest),
        "{took:?}\n{}\n{}",
        status(from),
        status(to)
    );
}

fn status(of: &Endpoint) -> String {
    let status = of.node.ask(&["status"]).unwrap();
    String::from_utf8_lossy(&status.stdout).into_owned()
}

fn edit(file: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(file).unwrap();
    fs::write(file, change(text)).unwrap();
}

/// What `status` says of a NAT.
fn nat(endpoint: &Endpoint) -> Value {
    let status = endpoint.node.ask(&["status", "--json"]).unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    status["instances"][0]["nat"].clone()
}
