//! Two agents that know nothing of each other, and a stream that starts at full pace: its first
//! packets wait for the tunnel, and all arrive in order. So do TCP connections, fragments and bursts.

#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;
mod held;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use testbed::{
    DataPlane, Endpoint, LinkParams, Network, NetworkOptions, Share, UdpProbe, UdpReport, Underlay,
};

/// Time from one packet to the next.
const PACE: Duration = Duration::from_millis(1);
/// The same in a guest, where a handshake takes a hundred times as long as on the machine it is
/// emulated on: WireGuard itself keeps 128 packets for it.
const EMULATED_PACE: Duration = Duration::from_millis(10);

/// Bytes of a datagram that makes a packet of 1,400 with the headers of IPv6.
const LARGE: usize = 1_352;

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
fn a_connection_opens_without_a_segment_repeated() {
    cold_pairs(&NetworkOptions::default(), connects);
}

#[test]
fn a_first_datagram_in_fragments_arrives_whole() {
    let options = NetworkOptions::default();
    cold_pairs(&options, |pair, eid| fragments_arrive(pair, eid, PACE));
}

#[test]
fn a_first_burst_arrives_in_order() {
    cold_pairs(&NetworkOptions::default(), a_burst_arrives);
}

#[test]
fn a_bad_way_to_the_map_server_costs_time_and_no_packet() {
    impaired_ways_to_the_map_server(DataPlane::Embedded);
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
    cold_pairs(&options, connects);
    cold_pairs(&options, |pair, eid| {
        fragments_arrive(pair, eid, EMULATED_PACE);
    });
    cold_pairs(&options, a_burst_arrives);
    impaired_ways_to_the_map_server(DataPlane::Kernel);
}

/// Streams whose tunnels are made over links that delay, lose and double control messages, or put them
/// out of order.
fn impaired_ways_to_the_map_server(data_plane: DataPlane) {
    let delayed = LinkParams::delayed(Duration::from_millis(5));
    let rough = LinkParams {
        jitter: Duration::from_millis(2),
        loss: Share::percent(1),
        duplicate: Share::percent(5),
        ..delayed
    };
    let disordered = LinkParams {
        reorder: Share::percent(5),
        ..delayed
    };
    for server_links in [rough, disordered] {
        let options = NetworkOptions {
            server_links: Some(server_links),
            data_plane,
            ..NetworkOptions::default()
        };
        // More than a second's packets fit the hold at this pace: a lost message is sent again.
        stream_each_way_of_writing_addresses(&options, 300, EMULATED_PACE);
    }
}

fn connects([alpha, beta]: [&Endpoint; 2], eid: IpAddr) {
    held::connects(alpha.namespace(), beta.namespace(), eid);
}

fn fragments_arrive([alpha, beta]: [&Endpoint; 2], eid: IpAddr, pace: Duration) {
    held::fragments_arrive(alpha.namespace(), beta.namespace(), eid, pace);
}

/// Sends more packets at once than a data plane keeps for a handshake.
fn a_burst_arrives([alpha, beta]: [&Endpoint; 2], eid: IpAddr) {
    let probe = UdpProbe {
        count: 200,
        interval: Duration::ZERO,
        payload: LARGE,
        ..UdpProbe::thousand_to(SocketAddr::new(eid, 9_003))
    };
    let report = probe.run(alpha.namespace(), beta.namespace()).unwrap();
    assert!(report.is_perfect(), "to {eid}: {report:?}");
}

fn thousand_each_way_of_writing_addresses(options: &NetworkOptions, interval: Duration) {
    stream_each_way_of_writing_addresses(options, 1_000, interval);
}

/// Sends to the IPv4 EID of one cold pair and to the IPv6 EID of another.
fn stream_each_way_of_writing_addresses(options: &NetworkOptions, count: u32, interval: Duration) {
    for eid in [0, 1] {
        let network = cold_network(options);
        let [alpha, beta] = network.pair().unwrap();
        let probe = UdpProbe {
            count,
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

/// Calls `test` with the IPv4 EID of one cold pair, and with the IPv6 EID of another.
fn cold_pairs(options: &NetworkOptions, test: impl Fn([&Endpoint; 2], IpAddr)) {
    for eid in [0, 1] {
        let network = cold_network(options);
        let pair = network.pair().unwrap();
        test(pair, pair[1].eids[eid]);
    }
}

/// A network in which nobody has a peer.
fn cold_network(options: &NetworkOptions) -> Network {
    let network = Network::start(options).unwrap();
    for endpoint in &network.endpoints {
        assert_eq!(endpoint.report_peers(&network.log).unwrap(), []);
    }
    network
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
