//! Two agents that know nothing of each other, and a stream that starts at full pace: its first
//! packets wait for the tunnel, and all arrive in order.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use testbed::{LinkParams, Network, NetworkOptions, UdpProbe, UdpReport, Underlay};

#[test]
fn no_packet_is_lost_or_reordered_over_plain_links() {
    thousand_each_way_of_writing_addresses(&NetworkOptions::default());
}

#[test]
fn no_packet_is_lost_or_reordered_over_delayed_links() {
    let links = LinkParams::delayed(Duration::from_micros(500));
    thousand_each_way_of_writing_addresses(&NetworkOptions {
        links,
        ..NetworkOptions::default()
    });
}

#[test]
fn no_packet_is_lost_or_reordered_over_an_ipv6_underlay() {
    let underlay = Underlay::Ipv6Only;
    let options = NetworkOptions {
        underlay,
        ..NetworkOptions::default()
    };
    thousand_each_way_of_writing_addresses(&options);
}

/// Sends to the IPv4 EID of one cold pair and to the IPv6 EID of another.
fn thousand_each_way_of_writing_addresses(options: &NetworkOptions) {
    for eid in [0, 1] {
        let network = Network::start(options).unwrap();
        let [alpha, beta] = network.endpoints.as_slice() else {
            panic!("two endpoints");
        };
        for endpoint in [alpha, beta] {
            assert_eq!(endpoint.report_peers(&network.log).unwrap(), []);
        }
        let probe = UdpProbe::thousand_to(SocketAddr::new(beta.eids[eid], 9_000));
        let report = probe.run(alpha.namespace(), beta.namespace()).unwrap();
        assert!(
            report.is_perfect(),
            "{}\n{}",
            summary(&report),
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
