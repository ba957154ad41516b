//! A proxy fails while a client's packets flow through it: they go on through the other one.
#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use testbed::{
    Binaries, DataPlane, Failure, LinkParams, NetworkOptions, TwoProxies, UdpProbe, UdpReport,
};

/// Time from one packet to the next.
const PACE: Duration = Duration::from_millis(5);
/// Packets of a stream during which a proxy fails: a busy machine takes its time to notice.
const COUNT: u32 = 3_000;
/// The last ones, long after the failure: all of these arrive.
const SETTLED: u32 = 400;
/// Packets of a stream in which nothing fails.
const CALM: u32 = 1_000;
/// How long a proxy that is back takes at most to forget who has left it, in seconds.
const FORGOTTEN_WITHIN_S: u32 = 20;
/// Packets have flowed for so long when the proxy fails: it is known by then who answers echoes.
const BEFORE: Duration = Duration::from_secs(3);

#[test]
fn a_client_leaves_a_proxy_whose_process_was_killed() {
    fails_over(DataPlane::Embedded, Failure::Killed);
}

#[test]
fn a_client_leaves_a_proxy_whose_link_was_cut_and_does_not_come_back_by_itself() {
    fails_over(DataPlane::Embedded, Failure::LinkCut);
}

#[test]
fn a_client_leaves_a_proxy_that_forwards_nothing_though_its_tunnel_is_up() {
    fails_over(DataPlane::Embedded, Failure::NotForwarding);
}

#[test]
fn so_it_does_on_kernel_wireguard() {
    guest::passes(IN_GUEST);
}

/// The name of the test that runs in a guest.
const IN_GUEST: &str = "on_kernel_wireguard";

#[test]
#[ignore = "needs WireGuard in the kernel; another test runs it in a guest"]
fn on_kernel_wireguard() {
    for failure in Failure::ALL {
        fails_over(DataPlane::Kernel, failure);
    }
}

fn fails_over(data_plane: DataPlane, failure: Failure) {
    let options = NetworkOptions {
        endpoints: TwoProxies::PROXIES + 1,
        links: LinkParams::delayed(Duration::from_millis(5)),
        data_plane,
        ..NetworkOptions::default()
    };
    let binaries = Binaries::up_to_date(|_| ()).unwrap();
    let mut scene = TwoProxies::prepare(&options, binaries, "nat = \"masquerade\"").unwrap();
    scene.network.start_all().unwrap();
    let arrives = (0..10).any(|_| stream(&scene, 1).is_perfect());
    assert!(arrives, "nothing gets through a proxy");
    let [from, to] = used(&scene);
    let position = scene.network.log.position();
    let report = thread::scope(|scope| {
        let sender = Sender::of(&scene);
        let flowing = scope.spawn(move || sender.send(COUNT));
        testbed::sleep(BEFORE);
        scene.fail(from, failure).unwrap();
        flowing.join().unwrap()
    });
    println!("{failure:?}: longest gap {:?}", report.longest_gap(PACE));
    let late = COUNT - SETTLED;
    let lost = report.lost.iter().filter(|number| **number >= late);
    assert_eq!(lost.count(), 0, "{:?}", report.lost);
    assert!(!report.lost.is_empty(), "nothing has failed");
    assert_eq!(used(&scene), [to, from]);
    let events = scene.network.log.since(position);
    let moves = events.iter().filter(|it| it.is("server", "failed_over"));
    assert_eq!(moves.count(), 1, "it moves once, and the map server knows");
    scene.heal(from, failure).unwrap();
    // The proxy that is back forgets the client that has left it, which stays where it is.
    let report = stream(&scene, CALM);
    let lost = report.lost.len();
    assert_eq!(lost, 0, "{:?}", report.lost);
    assert_eq!(used(&scene), [to, from]);
    let client_key = &scene.client().unwrap().data_key;
    let proxy = &scene.network.endpoints[from];
    let forgotten = (0..FORGOTTEN_WITHIN_S * 2).any(|_| {
        testbed::sleep(Duration::from_millis(500));
        let peers = proxy.report_peers(&scene.network.log).unwrap();
        peers.iter().all(|peer| peer.key != *client_key)
    });
    assert!(forgotten, "the proxy still knows the client");
}

fn used(scene: &TwoProxies) -> [usize; 2] {
    scene.used_by(scene.client().unwrap()).unwrap()
}

fn stream(scene: &TwoProxies, count: u32) -> UdpReport {
    Sender::of(scene).send(count)
}

/// Sends from the client to the host behind the proxies.
struct Sender {
    from: testbed::Namespace,
    to: testbed::Namespace,
    source: std::net::IpAddr,
}

impl Sender {
    fn of(scene: &TwoProxies) -> Self {
        let client = scene.client().unwrap();
        Self {
            from: client.namespace().clone(),
            to: scene.inside.clone(),
            source: client.eids[0],
        }
    }

    fn send(&self, count: u32) -> UdpReport {
        let probe = UdpProbe {
            source: Some(self.source),
            count,
            interval: PACE,
            // An emulated guest may be seconds late.
            timeout: Duration::from_secs(10),
            ..UdpProbe::thousand_to(SocketAddr::new(TwoProxies::INSIDE.into(), 9_000))
        };
        probe.run(&self.from, &self.to).unwrap()
    }
}
