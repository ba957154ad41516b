//! A configuration file that is read again while packets go through tunnels: other map servers, other
//! instances, other addresses and limits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::IpAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lisp_proto::PublicKey;
use nix::sys::signal::Signal;
use testbed::{Endpoint, LogEvent, LogPosition, Namespace, Network, NetworkOptions, Ping, sleep};

const PATIENCE: Duration = Duration::from_secs(30);
/// Echo requests of a flow, and the time between two.
const FLOW: u16 = 400;
const PACE: Duration = Duration::from_millis(40);

/// Pings steadily; how many replies came.
fn flow(from: &Namespace, to: IpAddr) -> JoinHandle<usize> {
    let namespace = from.clone();
    let flow = thread::spawn(move || {
        let ping = Ping {
            count: FLOW,
            interval: PACE,
            ..Ping::once(to)
        };
        ping.run(&namespace).unwrap().replies.len()
    });
    sleep(Duration::from_secs(1));
    flow
}

/// Whether one echo request is answered, if it is given time.
fn reaches(from: &Namespace, to: IpAddr) -> bool {
    let ping = Ping {
        timeout: Duration::from_secs(5),
        ..Ping::once(to)
    };
    ping.run(from).unwrap().replies.len() == 1
}

/// Has an agent read `text`, and waits until it says that it has; returns where its log was before.
fn reload(network: &Network, endpoint: &Endpoint, text: &str) -> LogPosition {
    fs::write(&endpoint.node.config, text).unwrap();
    let position = network.log.position();
    endpoint
        .node
        .daemon()
        .unwrap()
        .signal(Signal::SIGHUP)
        .unwrap();
    says(endpoint, position, "reloaded");
    position
}

/// Waits until an agent says `event` after `position`.
fn says(endpoint: &Endpoint, position: LogPosition, event: &str) {
    let daemon = endpoint.node.daemon().unwrap();
    let said = daemon.wait_since(position, event, PATIENCE, |_| true);
    said.unwrap();
}

/// Waits until an agent says after `position` that `prefix` is registered.
fn registers(endpoint: &Endpoint, position: LogPosition, prefix: &str) {
    let daemon = endpoint.node.daemon().unwrap();
    let of = |event: &LogEvent| event.text("eid") == prefix;
    daemon
        .wait_since(position, "registered", PATIENCE, of)
        .unwrap();
}

fn text(endpoint: &Endpoint) -> String {
    fs::read_to_string(&endpoint.node.config).unwrap()
}

/// Whether what this agent has said since `position` touches a tunnel.
fn is_touched(network: &Network, name: &str, position: LogPosition) -> bool {
    let events = network.log.since(position);
    let touching = [
        "peer_removed",
        "caught",
        "handshake_restarted",
        "peer_installed",
    ];
    let mut events = events.iter();
    events.any(|event| touching.iter().any(|kind| event.is(name, kind)))
}

#[test]
fn a_map_server_with_another_key_and_another_address_takes_over_under_a_flow() {
    let options = NetworkOptions {
        endpoints: 3,
        ..NetworkOptions::default()
    };
    let mut network = Network::start(&options).unwrap();
    let flow = flow(
        network.endpoints[0].namespace(),
        network.endpoints[1].eids[0],
    );

    // The same directory at another place, under a new key.
    let log = network.log.clone();
    network.server.stop().unwrap();
    let key_file = network.server.state_dir.join("control.key");
    fs::remove_file(key_file).unwrap();
    let known = fs::read_to_string(&network.server.config).unwrap();
    let moved = known
        .replace("listen_port = 51820", "listen_port = 51830")
        .replace("fd4c:1::", "fd4c:2::");
    assert_ne!(known, moved);
    fs::write(&network.server.config, moved).unwrap();
    network.server.start(&log).unwrap();
    let daemon = network.server.daemon().unwrap();
    daemon.wait_for("started", PATIENCE).unwrap();
    let key = network.server.ask(&["pubkey"]).unwrap();
    let key = String::from_utf8(key.stdout).unwrap();
    let key: PublicKey = key.trim().parse().unwrap();

    for endpoint in &network.endpoints {
        let before = text(endpoint);
        let old = before.lines().find(|line| line.starts_with("public_key"));
        let after = before
            .replace(old.unwrap(), &format!("public_key = \"{key}\""))
            .replace(":51820\"", ":51830\"")
            .replace("fd4c:1::", "fd4c:2::");
        let position = reload(&network, endpoint, &after);
        says(endpoint, position, "registered");
        assert!(!is_touched(&network, endpoint.node.name(), position));
    }
    let [alpha, beta, gamma] = network.endpoints.as_slice() else {
        panic!("three endpoints");
    };
    assert!(
        reaches(gamma.namespace(), alpha.eids[1]),
        "asked at the new one"
    );
    assert!(reaches(beta.namespace(), gamma.eids[0]));
    assert_eq!(
        flow.join().unwrap(),
        usize::from(FLOW),
        "replies of the flow"
    );

    // Nothing of the old way is left.
    network.endpoints[0].node.stop().unwrap();
    assert_eq!(network.endpoints[0].node.leftovers().unwrap(), [""; 0]);
}

#[test]
fn instances_go_and_come_and_the_others_do_not_notice() {
    let options = NetworkOptions {
        tenants: 2,
        ..NetworkOptions::default()
    };
    let mut network = Network::start(&options).unwrap();
    let [alpha, beta] = network.endpoints.as_slice() else {
        panic!("two endpoints");
    };
    let [first, second] = alpha.tenants.as_slice() else {
        panic!("two tenants");
    };
    let own = |n: usize| beta.tenants[n].eids[2];
    assert!(reaches(&first.namespace, own(0)));
    let flows = [
        flow(alpha.namespace(), beta.eids[0]),
        flow(&second.namespace, own(1)),
    ];
    let both = text(alpha);
    let (head, tables) = both.split_once("\n[[instance]]").unwrap();
    let (_, last) = tables.split_once("\n[[instance]]").unwrap();
    let one = format!("{head}\n[[instance]]{last}");

    reload(&network, alpha, &one);
    assert_eq!(
        first.leftovers().unwrap(),
        [""; 0],
        "its interfaces are gone"
    );
    let there = &beta.tenants[0].namespace;
    assert!(!reaches(there, first.eids[2]), "it is withdrawn");
    let prefix = format!("[{}]{}/32", first.iid, first.eids[2]);
    let position = reload(&network, alpha, &both);
    registers(alpha, position, &prefix);
    assert!(reaches(&first.namespace, own(0)), "it is as it was");
    assert!(reaches(there, first.eids[2]));

    // One that cannot be made is said, and made when the file is right.
    reload(&network, alpha, &one);
    let nowhere = both.replacen("netns = \"", "netns = \"not-", 1);
    let position = reload(&network, alpha, &nowhere);
    says(alpha, position, "reload_partial");
    let position = reload(&network, alpha, &both);
    registers(alpha, position, &prefix);
    assert!(reaches(&first.namespace, own(0)));
    for flow in flows {
        assert_eq!(flow.join().unwrap(), usize::from(FLOW), "replies of a flow");
    }

    network.endpoints[0].node.stop().unwrap();
    let alpha = &network.endpoints[0];
    assert_eq!(alpha.node.leftovers().unwrap(), [""; 0]);
    for tenant in &alpha.tenants {
        assert_eq!(tenant.leftovers().unwrap(), [""; 0]);
    }
}

#[test]
fn limits_and_addresses_change_under_a_flow() {
    let network = Network::start(&NetworkOptions::default()).unwrap();
    let [alpha, beta] = network.endpoints.as_slice() else {
        panic!("two endpoints");
    };
    let flow = flow(alpha.namespace(), beta.eids[0]);
    let before = text(alpha);
    let rloc = alpha.node.host.addresses()[0];
    let limits = format!("idle_s = 900\nmax_peers = 16\nrlocs = [\"{rloc}\", \"192.0.2.99\"]");
    let position = reload(&network, alpha, &format!("{limits}\n{before}"));
    let status = alpha.node.ask(&["status", "--json"]).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let rlocs = &status["instances"][0]["rlocs"];
    assert_eq!(rlocs, &serde_json::json!([rloc, "192.0.2.99"]));
    assert!(!is_touched(&network, "alpha", position));
    reload(&network, alpha, &before);
    let status = alpha.node.ask(&["status", "--json"]).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let rlocs = &status["instances"][0]["rlocs"];
    assert_eq!(rlocs, &serde_json::json!([rloc]));
    assert_eq!(
        flow.join().unwrap(),
        usize::from(FLOW),
        "replies of the flow"
    );
}
