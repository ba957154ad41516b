//! An endpoint with two uplinks: the first one fails under a flow, and packets go on by the other.
#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{
    Binaries, DataPlane, Endpoint, Network, NetworkOptions, Ping, SecondUplink, UdpProbe,
    UdpReport, UplinkFailure,
};

/// Time from one packet to the next.
const PACE: Duration = Duration::from_millis(1);
/// Packets of a stream during which the uplink fails: a busy machine takes its time to notice.
const COUNT: u32 = 9_000;
/// The last ones, long after the failure: all of these arrive.
const SETTLED: u32 = 1_500;
/// So many are lost at most, of either direction: far fewer than until WireGuard notices by itself.
const MOST_LOST: usize = 2_500;
/// Packets of a stream in which nothing fails.
const CALM: u32 = 2_000;
/// Packets have flowed for so long when the uplink fails: it is known by then who answers.
const BEFORE: Duration = Duration::from_secs(2);
/// How long it takes at most until the first uplink is tried again.
const RETURN: Duration = Duration::from_secs(90);
/// How long a reload takes at most.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_far_end_goes_on_when_the_first_uplink_is_cut() {
    goes_on(DataPlane::Embedded, UplinkFailure::Cut);
}

#[test]
fn a_far_end_goes_on_when_everything_is_lost_beyond_the_first_uplink() {
    goes_on(DataPlane::Embedded, UplinkFailure::BlackHole);
}

#[test]
fn a_far_end_goes_on_when_the_first_uplink_works_in_one_direction_only() {
    goes_on(DataPlane::Embedded, UplinkFailure::OneWay);
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
    for failure in UplinkFailure::ALL {
        goes_on(DataPlane::Kernel, failure);
    }
}

#[test]
fn nothing_is_left_on_the_host_when_the_agent_has_ended_or_was_killed_before() {
    let (mut network, uplink) = prepared(DataPlane::Embedded);
    let there = |network: &Network| network.endpoints[1].node.leftovers().unwrap();
    // The kernel looks first whether others have an address.
    while there(&network)
        .iter()
        .any(|line| line.contains("Tentative"))
    {
        testbed::sleep(Duration::from_millis(20));
    }
    let before = there(&network);
    network.start_all().unwrap();
    assert!(
        there(&network).len() > before.len() + 10,
        "rules and routes"
    );
    let log = network.log.clone();
    let beta = &mut network.endpoints[1];
    beta.node.kill();
    beta.node.start(&log).unwrap();
    beta.wait_until_registered().unwrap();
    assert!(reaches(&network.endpoints[0], &network.endpoints[1]));
    network.endpoints[1].node.stop().unwrap();
    assert_eq!(there(&network), before);
    drop(uplink);
}

#[test]
fn nothing_is_left_of_uplinks_that_were_taken_out_of_the_file_of_a_killed_agent() {
    let (mut network, _uplink) = prepared(DataPlane::Embedded);
    let log = network.log.clone();
    network.start_all().unwrap();
    let beta = &mut network.endpoints[1];
    let with = fs::read_to_string(&beta.node.config).unwrap();
    let (_, without) = with.split_once('\n').unwrap();
    beta.node.kill();
    assert!(has_rules(beta));
    fs::write(&beta.node.config, without).unwrap();
    beta.node.start(&log).unwrap();
    beta.wait_until_registered().unwrap();
    assert!(!has_rules(beta), "when it starts");
    beta.node.stop().unwrap();
    fs::write(&beta.node.config, &with).unwrap();
    beta.node.start(&log).unwrap();
    beta.wait_until_registered().unwrap();
    beta.node.kill();
    fs::write(&beta.node.config, without).unwrap();
    assert!(has_rules(beta));
    let purged = beta.node.ask(&["stop", "--purge"]).unwrap();
    assert!(purged.status.success());
    assert!(!has_rules(beta), "when it is purged");
}

/// Whether the host of an agent has rules of uplinks.
fn has_rules(endpoint: &Endpoint) -> bool {
    !rules(endpoint).is_empty()
}

/// The rules by which packets from the address of an uplink leave by it.
fn rules(endpoint: &Endpoint) -> Vec<String> {
    let mut left = endpoint.node.leftovers().unwrap();
    left.retain(|line| line.contains("Priority(4304)"));
    left
}

/// Tunnels of the run before, where the kernel has them, go on by them.
#[test]
fn a_start_that_fails_leaves_the_rules_of_an_earlier_run() {
    let (mut network, _uplink) = prepared(DataPlane::Embedded);
    let log = network.log.clone();
    network.start_all().unwrap();
    let beta = &mut network.endpoints[1];
    beta.node.kill();
    let before = rules(beta);
    assert!(!before.is_empty());
    let link = |arguments: &[&str]| {
        let mut command = Command::new("ip");
        command.arg("link").args(arguments).stdin(Stdio::null());
        let mut child = beta.namespace().spawn(command).unwrap();
        assert!(child.wait().unwrap().success(), "{arguments:?}");
    };
    link(&["add", "lisp0", "type", "veth", "peer", "other"]);
    let refused = beta.node.ask(&["run"]).unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("lisp0"), "{said}");
    assert_eq!(rules(beta), before);
    link(&["del", "lisp0"]);
    beta.node.start(&log).unwrap();
    beta.wait_until_registered().unwrap();
    assert_eq!(rules(beta), before);
    assert!(reaches(&network.endpoints[0], &network.endpoints[1]));
}

#[test]
fn a_map_server_that_was_away_is_reached_by_the_first_uplink_again() {
    let (mut network, uplink) = network(DataPlane::Embedded);
    let log = network.log.clone();
    assert!(is_for_server(&network.endpoints[1], 0));
    network.server.kill();
    let position = log.position();
    // It registers at once, and is not answered.
    say(&network, &network.endpoints[1], &rlocs(&uplink, [1, 3]));
    let daemon = network.endpoints[1].node.daemon().unwrap();
    let tried = daemon.wait_since(position, "map_server_silent", PATIENCE, |_| true);
    tried.unwrap();
    network.server.start(&log).unwrap();
    let position = log.position();
    let back = daemon.wait_since(position, "map_server_uplink", RETURN, |_| true);
    back.unwrap();
    // If nobody answered there, it would be left again by then.
    testbed::sleep(Duration::from_secs(3));
    assert!(is_for_server(&network.endpoints[1], 0));
}

/// Whether the map server is reached by this uplink of an endpoint.
fn is_for_server(endpoint: &Endpoint, uplink: usize) -> bool {
    let answer = endpoint.node.ask(&["status", "--json"]).unwrap();
    let status: Value = serde_json::from_slice(&answer.stdout).unwrap();
    status["uplinks"][uplink]["map_server"] == true
}

#[test]
fn a_map_server_without_a_control_tunnel_is_tried_by_the_next_uplink_too() {
    let (mut network, uplink) = prepared(DataPlane::Embedded);
    let server = network.server.host.addresses()[0];
    let secret = "algorithm = \"sha256\"\nkey = \"secret\"\n";
    let config = &network.endpoints[1].node.config;
    let text = fs::read_to_string(config).unwrap();
    let (own, _) = text.split_once("[map_server]").unwrap();
    let text = format!("{own}[map_server]\naddress = \"{server}\"\n{secret}");
    fs::write(config, text).unwrap();
    let config = &network.server.config;
    let text = fs::read_to_string(config).unwrap();
    let (others, own) = text.split_once("[[xtr]]\nname = \"beta\"\n").unwrap();
    let (_, prefixes) = own.split_once("eid_prefixes").unwrap();
    let plain = format!("[plain]\nlisten = [\"{server}:4342\"]\n");
    let own = format!("[[xtr]]\nname = \"beta\"\n{secret}key_id = 0\neid_prefixes{prefixes}");
    let text = format!("{others}{plain}{own}");
    fs::write(config, text).unwrap();
    network.start_all().unwrap();
    network
        .fail_first(&uplink, UplinkFailure::BlackHole)
        .unwrap();
    let beta = &network.endpoints[1];
    let position = network.log.position();
    // It registers at once, and is not answered.
    say(&network, beta, &rlocs(&uplink, [1, 3]));
    let daemon = beta.node.daemon().unwrap();
    let said = daemon.wait_since(position, "registered", PATIENCE, |_| true);
    said.unwrap();
    // A question says where its answer goes; it is one that tells nothing to those without a tunnel.
    assert!(!reaches(beta, &network.endpoints[0]));
    let answered = daemon.wait_since(position, "negative", PATIENCE, |_| true);
    answered.unwrap();
}

fn goes_on(data_plane: DataPlane, failure: UplinkFailure) {
    let (network, uplink) = network(data_plane);
    let [alpha, beta] = &network.endpoints[..] else {
        unreachable!("two endpoints");
    };
    assert!((0..10).any(|_| reaches(alpha, beta)), "no way to beta");
    assert_eq!(endpoint(&network, alpha, beta), uplink.first);
    let reports = thread::scope(|scope| {
        let streams = both_ways(alpha, beta, COUNT);
        let flowing = streams.map(|stream| scope.spawn(move || stream.run()));
        testbed::sleep(BEFORE);
        network.fail_first(&uplink, failure).unwrap();
        flowing.map(|flowing| flowing.join().unwrap())
    });
    for (report, way) in reports.iter().zip(["to it", "from it"]) {
        println!(
            "{failure:?}, {way}: longest gap {:?}, {} of {COUNT} lost",
            report.longest_gap(PACE),
            report.lost.len()
        );
    }
    for report in &reports {
        let late = COUNT - SETTLED;
        let lost = report.lost.iter().filter(|number| **number >= late);
        assert_eq!(lost.count(), 0, "{:?}", report.lost);
        assert!(report.lost.len() < MOST_LOST, "{} lost", report.lost.len());
    }
    assert_eq!(endpoint(&network, alpha, beta), uplink.address);
    network.heal_first(&uplink, failure).unwrap();
    calm(alpha, beta);
    assert_eq!(
        endpoint(&network, alpha, beta),
        uplink.address,
        "there it stays"
    );
    say(&network, beta, &rlocs(&uplink, [1, 3]));
    calm(alpha, beta);
    assert_eq!(
        endpoint(&network, alpha, beta),
        uplink.first,
        "it is told to go back"
    );
}

/// Two endpoints; beta has two uplinks.
fn network(data_plane: DataPlane) -> (Network, SecondUplink) {
    let (mut network, uplink) = prepared(data_plane);
    network.start_all().unwrap();
    (network, uplink)
}

/// The same, before anything runs.
fn prepared(data_plane: DataPlane) -> (Network, SecondUplink) {
    let options = NetworkOptions {
        data_plane,
        ..NetworkOptions::default()
    };
    let binaries = Binaries::up_to_date(|_| ()).unwrap();
    let mut network = Network::prepare(&options, binaries).unwrap();
    let uplink = network.second_uplink("provider", 1, &options).unwrap();
    let config = &network.endpoints[1].node.config;
    let text = fs::read_to_string(config).unwrap();
    fs::write(config, format!("{}\n{text}", rlocs(&uplink, [1, 2]))).unwrap();
    (network, uplink)
}

/// One line of configuration.
fn rlocs(uplink: &SecondUplink, priorities: [u8; 2]) -> String {
    let SecondUplink {
        first,
        address,
        gateway,
        ..
    } = uplink;
    let [one, other] = priorities;
    format!(
        "rlocs = [{{ address = \"{first}\", priority = {one}, interface = \"eth0\" }}, \
         {{ address = \"{address}\", priority = {other}, interface = \"eth1\", gateway = \"{gateway}\" }}]"
    )
}

/// Has an agent read its file again, with another first line.
fn say(network: &Network, endpoint: &Endpoint, line: &str) {
    let text = fs::read_to_string(&endpoint.node.config).unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    fs::write(&endpoint.node.config, format!("{line}\n{rest}")).unwrap();
    let position = network.log.position();
    let daemon = endpoint.node.daemon().unwrap();
    daemon.signal(Signal::SIGHUP).unwrap();
    let said = daemon.wait_since(position, "reloaded", PATIENCE, |_| true);
    said.unwrap();
}

/// Where `from` sends what is for `to`.
fn endpoint(network: &Network, from: &Endpoint, to: &Endpoint) -> IpAddr {
    let peers = from.report_peers(&network.log).unwrap();
    let peer = peers.into_iter().find(|peer| peer.key == to.data_key);
    let endpoint: SocketAddr = peer.unwrap().endpoint.unwrap().parse().unwrap();
    endpoint.ip()
}

fn reaches(from: &Endpoint, to: &Endpoint) -> bool {
    let ping = Ping {
        timeout: Duration::from_secs(5),
        ..Ping::once(to.eids[0])
    };
    ping.run(from.namespace()).unwrap().replies.len() == 1
}

/// Packets flow both ways, and none is lost.
fn calm(alpha: &Endpoint, beta: &Endpoint) {
    thread::scope(|scope| {
        let streams = both_ways(alpha, beta, CALM);
        let flowing = streams.map(|stream| scope.spawn(move || stream.run()));
        for report in flowing.map(|flowing| flowing.join().unwrap()) {
            assert_eq!(report.lost, [0; 0]);
        }
    });
}

struct Stream {
    from: testbed::Namespace,
    to: testbed::Namespace,
    probe: UdpProbe,
}

impl Stream {
    fn run(&self) -> UdpReport {
        self.probe.run(&self.from, &self.to).unwrap()
    }
}

fn both_ways(alpha: &Endpoint, beta: &Endpoint, count: u32) -> [Stream; 2] {
    [(alpha, beta), (beta, alpha)].map(|(from, to)| Stream {
        from: from.namespace().clone(),
        to: to.namespace().clone(),
        probe: UdpProbe {
            source: Some(from.eids[0]),
            count,
            interval: PACE,
            // An emulated guest may be seconds late.
            timeout: Duration::from_secs(10),
            ..UdpProbe::thousand_to(SocketAddr::new(to.eids[0], 9_000))
        },
    })
}

#[test]
fn status_shows_the_uplinks_and_the_locators_of_far_ends() {
    let (network, uplink) = network(DataPlane::Embedded);
    let [alpha, beta] = &network.endpoints[..] else {
        unreachable!("two endpoints");
    };
    assert!((0..10).any(|_| reaches(alpha, beta)), "no way to beta");
    let asked = |node: &Endpoint, arguments: &[&str]| {
        let answer = node.node.ask(arguments).unwrap();
        String::from_utf8(answer.stdout).unwrap()
    };
    let json = |node: &Endpoint| -> Value {
        serde_json::from_str(&asked(node, &["status", "--json"])).unwrap()
    };
    let own = &json(beta)["uplinks"];
    assert_eq!(own[1]["address"], uplink.address.to_string());
    assert_eq!((&own[0]["up"], &own[1]["up"]), (&true.into(), &true.into()));
    let peers = &json(alpha)["instances"][0]["peers"];
    let locators = peers[0]["locators"].as_array().unwrap();
    let used: Vec<_> = locators.iter().map(|it| &it["used"]).collect();
    assert_eq!(used, [true, false]);
    println!(
        "{}\n{}",
        asked(alpha, &["status"]),
        asked(beta, &["status"])
    );
}
