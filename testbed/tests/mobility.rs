//! Hosts that move to other addresses while packets flow: tunnels follow, and sessions stay.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use testbed::{
    DataPlane, Endpoint, LinkParams, Namespace, Network, NetworkOptions, Ping, UdpProbe, UdpReport,
};

/// Time from one packet to the next.
const PACE: Duration = Duration::from_millis(5);
/// Packets of a stream.
const COUNT: u32 = 2_000;
/// The last ones, long after the move: all of these arrive.
const SETTLED: u32 = 400;
/// Packets have flowed for so long when a host moves.
const BEFORE: Duration = Duration::from_secs(1);
/// How long the map server is out of reach.
const OUTAGE: Duration = Duration::from_secs(2);
/// Where the hosts move to.
const ELSEWHERE: [[u8; 4]; 2] = [[192, 0, 2, 102], [192, 0, 2, 103]];

#[test]
fn a_host_that_nobody_hears_from_is_found_at_its_new_address() {
    // The stream goes towards the one that moves: without being told, nobody would know.
    let (network, [towards, _]) = moved(DataPlane::Embedded, &[0], Duration::ZERO);
    settles(&towards);
    keeps_its_session(&network);
}

#[test]
fn two_hosts_that_move_at_the_same_instant_find_each_other() {
    let (network, streams) = moved(DataPlane::Embedded, &[0, 1], Duration::ZERO);
    streams.iter().for_each(settles);
    keeps_its_session(&network);
}

#[test]
fn so_they_do_once_the_map_server_is_back_when_it_is_away_at_that_moment() {
    let (_network, streams) = moved(DataPlane::Embedded, &[0, 1], OUTAGE);
    streams.iter().for_each(settles);
}

#[test]
fn hosts_on_kernel_wireguard_find_each_other_as_well() {
    guest::passes(IN_GUEST);
}

/// The name of the test that runs in a guest.
const IN_GUEST: &str = "on_kernel_wireguard";

#[test]
#[ignore = "needs WireGuard in the kernel; another test runs it in a guest"]
fn on_kernel_wireguard() {
    for (movers, outage) in [
        (&[0][..], Duration::ZERO),
        (&[0, 1], Duration::ZERO),
        (&[0, 1], OUTAGE),
    ] {
        let (network, streams) = moved(DataPlane::Kernel, movers, outage);
        streams.iter().for_each(settles);
        if outage.is_zero() {
            keeps_its_session(&network);
        }
    }
}

/// Moves endpoints while packets flow both ways between the two, and says what became of those to
/// alpha and those to beta. One stream only, to alpha, where alpha alone moves.
fn moved(data_plane: DataPlane, movers: &[usize], outage: Duration) -> (Network, [UdpReport; 2]) {
    let options = NetworkOptions {
        links: LinkParams::delayed(Duration::from_millis(5)).adjustable(),
        data_plane,
        ..NetworkOptions::default()
    };
    let mut network = Network::start(&options).unwrap();
    let [alpha, beta] = [0, 1].map(|index| place(&network.endpoints[index]));
    assert!(
        Ping::once(beta.1)
            .run(&alpha.0)
            .unwrap()
            .shortest()
            .is_some()
    );
    let reports = thread::scope(|scope| {
        let to_alpha = scope.spawn(|| stream(&beta, &alpha));
        let to_beta = (movers.len() > 1).then(|| scope.spawn(|| stream(&alpha, &beta)));
        testbed::sleep(BEFORE);
        if !outage.is_zero() {
            network.server.host.link.cut().unwrap();
        }
        for index in movers {
            let to = IpAddr::from(ELSEWHERE[*index]);
            network.move_endpoint(*index, to).unwrap();
        }
        if !outage.is_zero() {
            testbed::sleep(outage);
            network.server.host.link.restore().unwrap();
        }
        let to_beta = to_beta.map(|stream| stream.join().unwrap());
        [to_alpha.join().unwrap(), to_beta.unwrap_or_default()]
    });
    (network, reports)
}

fn place(endpoint: &Endpoint) -> (Namespace, IpAddr) {
    (endpoint.namespace().clone(), endpoint.eids[0])
}

fn stream(from: &(Namespace, IpAddr), to: &(Namespace, IpAddr)) -> UdpReport {
    let probe = UdpProbe {
        source: Some(from.1),
        count: COUNT,
        interval: PACE,
        // An emulated guest may be seconds late.
        timeout: Duration::from_secs(10),
        ..UdpProbe::thousand_to(SocketAddr::new(to.1, 9_000))
    };
    probe.run(&from.0, &to.0).unwrap()
}

/// What was sent long after the move arrives, once and in order.
fn settles(report: &UdpReport) {
    if report.sent == 0 {
        return;
    }
    println!("longest gap {:?}", report.longest_gap(PACE));
    let late: Vec<_> = report
        .lost
        .iter()
        .filter(|number| **number >= COUNT - SETTLED)
        .collect();
    assert!(late.is_empty(), "lost after the move: {late:?}");
    assert_eq!((report.duplicates, report.reordered), (0, 0));
}

/// Neither end has shaken hands anew since the hosts moved.
fn keeps_its_session(network: &Network) {
    for endpoint in &network.endpoints {
        let peers = endpoint.report_peers(&network.log).unwrap();
        let since = peers[0].since_handshake.unwrap();
        assert!(since > PACE * COUNT, "{}: {since:?}", endpoint.name());
    }
}
