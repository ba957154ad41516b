//! What links do to real packets.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![expect(clippy::print_stdout, reason = "what was measured is worth seeing")]

mod guest;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use testbed::{Host, LinkKind, LinkParams, Ping, Share, Testbed, Topology, UdpProbe, Underlay};

const MS: Duration = Duration::from_millis(1);

/// Two hosts around a switch, the second on the link under test.
struct Pair {
    near: Host,
    far: Host,
    // Last: the switch outlives the links.
    _topology: Topology,
}

impl Pair {
    fn new(params: LinkParams) -> Self {
        let testbed = Testbed::new(42).unwrap();
        let mut topology = Topology::new(&testbed, Underlay::Dual).unwrap();
        let near = topology.add_host("near", LinkParams::default()).unwrap();
        let far = topology.add_host("far", params).unwrap();
        Self {
            near,
            far,
            _topology: topology,
        }
    }

    fn destinations(&self) -> Vec<IpAddr> {
        self.far.addresses().to_vec()
    }

    fn probe(&self, destination: IpAddr) -> UdpProbe {
        UdpProbe {
            timeout: Duration::from_secs(2),
            ..UdpProbe::thousand_to(SocketAddr::new(destination, 9_000))
        }
    }
}

#[test]
fn plain_links_carry_all_packets_in_order() {
    let pair = Pair::new(LinkParams::default());
    assert_eq!(pair.far.link.kind(), LinkKind::Plain);
    for destination in pair.destinations() {
        let report = pair
            .probe(destination)
            .run(&pair.near.namespace, &pair.far.namespace)
            .unwrap();
        assert!(report.is_perfect(), "{report:?}");
    }
}

#[test]
fn delayed_links_carry_all_packets_in_order() {
    let pair = Pair::new(LinkParams {
        jitter: 2 * MS,
        ..LinkParams::delayed(5 * MS)
    });
    for destination in pair.destinations() {
        let probe = UdpProbe {
            interval: MS / 4,
            ..pair.probe(destination)
        };
        let report = probe
            .run(&pair.near.namespace, &pair.far.namespace)
            .unwrap();
        assert!(report.is_perfect(), "{report:?}");
    }
}

#[test]
fn the_delay_of_a_link_is_reported() {
    let pair = Pair::new(LinkParams::delayed(5 * MS));
    for destination in pair.destinations() {
        round_trips(&pair, destination, 2 * MS);
    }
}

#[test]
fn so_are_links_of_netem_beside_kernel_wireguard() {
    guest::passes_all_but("so_are_links_of_netem_beside_kernel_wireguard");
}

#[test]
#[ignore = "needs netem, and a clock that no other program holds up; another test runs it in a guest"]
fn links_of_both_kinds_err_by_less_than_200_us() {
    let delayed = LinkParams::delayed(5 * MS);
    for (params, kind) in [
        (delayed, LinkKind::Netem),
        (delayed.relayed(), LinkKind::Relay),
    ] {
        let pair = Pair::new(params);
        assert_eq!(pair.far.link.kind(), kind);
        for destination in pair.destinations() {
            let bare = Pair::new(LinkParams::default());
            let unlinked = round_trips(&bare, destination, 2 * MS)[25];
            for round_trip in round_trips(&pair, destination, 20 * MS) {
                let error = (round_trip - unlinked).abs_diff(10 * MS);
                // There and back.
                assert!(error < 2 * MS / 5, "{kind:?} errs by {error:?}");
            }
        }
    }
}

/// The round trips of 50 pings, the shortest first.
fn round_trips(pair: &Pair, destination: IpAddr, interval: Duration) -> Vec<Duration> {
    let ping = Ping {
        count: 50,
        interval,
        ..Ping::once(destination)
    };
    let report = ping.run(&pair.near.namespace).unwrap();
    assert_eq!(report.replies.len(), 50);
    let mut round_trips: Vec<_> = report.replies.iter().map(|r| r.round_trip).collect();
    round_trips.sort();
    println!(
        "{:?} link, {:?} one way: min {:?} median {:?} max {:?}",
        pair.far.link.kind(),
        pair.far.link.params()[0].delay,
        round_trips[0],
        round_trips[25],
        round_trips[49]
    );
    round_trips
}

#[test]
fn lossy_links_lose_their_share() {
    let pair = Pair::new(LinkParams::default().with_loss(Share::percent(20)));
    let destination = pair.destinations()[0];
    let report = pair
        .probe(destination)
        .run(&pair.near.namespace, &pair.far.namespace)
        .unwrap();
    assert!(
        (120..=280).contains(&report.lost.len()),
        "{} of 1000 at 20 %",
        report.lost.len()
    );
    assert_eq!((report.duplicates, report.reordered), (0, 0));
}

#[test]
fn duplicating_links_double_their_share() {
    let pair = Pair::new(LinkParams {
        duplicate: Share::percent(10),
        ..LinkParams::default()
    });
    let destination = pair.destinations()[0];
    let report = pair
        .probe(destination)
        .run(&pair.near.namespace, &pair.far.namespace)
        .unwrap();
    assert!(
        (40..=170).contains(&report.duplicates),
        "{} of 1000 at 10 %",
        report.duplicates
    );
    assert!(report.lost.is_empty(), "{report:?}");
}

#[test]
fn reordering_links_let_some_packets_overtake() {
    let pair = Pair::new(LinkParams {
        reorder: Share::percent(10),
        ..LinkParams::delayed(5 * MS)
    });
    let destination = pair.destinations()[0];
    let report = pair
        .probe(destination)
        .run(&pair.near.namespace, &pair.far.namespace)
        .unwrap();
    assert!(report.reordered > 0 && report.lost.is_empty(), "{report:?}");
}

#[test]
fn links_are_changed_cut_and_restored_while_up() {
    let mut pair = Pair::new(LinkParams::default().adjustable());
    let destination = pair.destinations()[1];
    let short = Ping {
        timeout: Duration::from_millis(200),
        ..Ping::once(destination)
    };
    let answered = |pair: &Pair| short.run(&pair.near.namespace).unwrap().replies.len();
    assert_eq!(answered(&pair), 1);
    pair.far.link.cut().unwrap();
    assert_eq!(answered(&pair), 0);
    pair.far.link.restore().unwrap();
    assert_eq!(answered(&pair), 1);
    pair.far
        .link
        .set(LinkParams::default().with_loss(Share::ALL))
        .unwrap();
    assert_eq!(answered(&pair), 0);
    pair.far.link.set(LinkParams::delayed(MS)).unwrap();
    assert_eq!(answered(&pair), 1);
}

#[test]
fn plain_links_can_be_cut_without_the_hosts_noticing() {
    let mut pair = Pair::new(LinkParams::default());
    let destination = pair.destinations()[1];
    let short = Ping {
        timeout: Duration::from_millis(200),
        ..Ping::once(destination)
    };
    let before = pair.far.namespace.snapshot().unwrap();
    pair.far.link.cut().unwrap();
    assert_eq!(short.run(&pair.near.namespace).unwrap().replies.len(), 0);
    assert_eq!(
        pair.far
            .namespace
            .snapshot()
            .unwrap()
            .changes_since(&before),
        [""; 0]
    );
    pair.far.link.restore().unwrap();
    assert_eq!(short.run(&pair.near.namespace).unwrap().replies.len(), 1);
}

#[test]
fn snapshots_show_what_came_and_went() {
    let pair = Pair::new(LinkParams::default());
    let before = pair.near.namespace.snapshot().unwrap();
    let net = "10.9.8.7/32".parse().unwrap();
    pair.near.namespace.add_address("eth0", net).unwrap();
    let changes = pair
        .near
        .namespace
        .snapshot()
        .unwrap()
        .changes_since(&before);
    assert!(
        changes.iter().any(|line| line.starts_with("+ address /32")),
        "{changes:?}"
    );
    assert!(
        changes
            .iter()
            .any(|line| line.starts_with("+ route Inet /32")),
        "{changes:?}"
    );
    pair.near.namespace.delete_address("eth0", net).unwrap();
    assert_eq!(pair.near.namespace.snapshot().unwrap(), before);
}
