//! Two agents that know nothing of each other, and a stream that starts at full pace: its first
//! packets wait for the tunnel, and all arrive in order.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;

use std::net::SocketAddr;
use std::time::Duration;

use testbed::{DataPlane, LinkParams, Network, NetworkOptions, UdpProbe, UdpReport, Underlay};

/// Time from one packet to the next.
const PACE: Duration = Duration::from_millis(1);
/// The same in a guest, where a handshake takes a hundred times as long as on the machine it is
/// emulated on: WireGuard itself keeps 128 packets for it.
const EMULATED_PACE: Duration = Duration::from_millis(10);

#[test]
fn no_packet_is_lost_or_reordered_over_plain_links() {
    thousand_each_way_of_writing_addresses(&NetworkOptions::default(), PACE);
}

#[test]
fn no_packet_is_lost_or_reordered_over_delayed_links() {
    let links = LinkParams::delayed(Duration::from_micros(500));
    let options = NetworkOptions {
        links,
        ..NetworkOptions::default()
    };
    thousand_each_way_of_writing_addresses(&options, PACE);
}

#[test]
fn no_packet_is_lost_or_reordered_over_an_ipv6_underlay() {
    let underlay = Underlay::Ipv6Only;
    let options = NetworkOptions {
        underlay,
        ..NetworkOptions::default()
    };
    thousand_each_way_of_writing_addresses(&options, PACE);
}

#[test]
fn no_packet_is_lost_on_kernel_wireguard_either() {
    guest::passes(IN_GUEST);
}

/// The name of the test that runs in a guest.
const IN_GUEST: &str = "over_kernel_wireguard_and_netem";

#[test]
#[ignore = "needs WireGuard and netem in the kernel; another test runs it in a guest"]
fn over_kernel_wireguard_and_netem() {
    let options = NetworkOptions {
        links: LinkParams::delayed(Duration::from_millis(2)),
        data_plane: DataPlane::Kernel,
        ..NetworkOptions::default()
    };
    thousand_each_way_of_writing_addresses(&options, EMULATED_PACE);
}

/// Sends to the IPv4 EID of one cold pair and to the IPv6 EID of another.
fn thousand_each_way_of_writing_addresses(options: &NetworkOptions, interval: Duration) {
    for eid in [0, 1] {
        let network = Network::start(options).unwrap();
        let [alpha, beta] = network.endpoints.as_slice() else {
            panic!("two endpoints");
        };
        for endpoint in [alpha, beta] {
            assert_eq!(endpoint.report_peers(&network.log).unwrap(), []);
        }
        let probe = UdpProbe {
            interval,
            ..UdpProbe::thousand_to(SocketAddr::new(beta.eids[eid], 9_000))
        };
        let report = probe.run(alpha.namespace(), beta.namespace()).unwrap();
        assert!(
            report.is_perfect(),
            "{}\narrived: {}\n{}",
            summary(&report),
            order(&report),
            story(&network)
        );
        println!(
            "{:?} to {}: {}",
            options.underlay,
            beta.eids[eid],
            summary(&report)
        );
    }
}

fn summary(report: &UdpReport) -> String {
    format!(
        "{} of {} arrived, first after {:?}, {} duplicated, {} reordered, lost {:?}",
        report.received,
        report.sent,
        report.first_arrival,
        report.duplicates,
        report.reordered,
        report.lost
    )
}

/// The numbers of the packets as they arrived, runs of them in short.
fn order(report: &UdpReport) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in report.order.iter().copied() {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let runs = runs.iter().map(|(first, last)| format!("{first}-{last}"));
    runs.collect::<Vec<_>>().join(" ")
}

fn story(network: &Network) -> String {
    let events = network.log.since(testbed::LogPosition::default());
    let lines = events.iter().map(|event| {
        format!(
            "{} {} {} {:?}",
            event.timestamp, event.daemon, event.event, event.fields
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}
