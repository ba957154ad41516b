//! A path that drops large packets without a word is noticed, and only that one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::Duration;

use testbed::{Endpoint, Network, NetworkOptions, Ping};

#[test]
fn a_path_that_swallows_large_packets_is_said() {
    let options = NetworkOptions {
        endpoints: 3,
        ..NetworkOptions::default()
    };
    let network = Network::start(&options).unwrap();
    let [alpha, beta, gamma] = network.endpoints.as_slice() else {
        unreachable!("three endpoints");
    };
    for far in [beta, gamma] {
        let report = Ping::once(far.eids[0]).run(alpha.namespace()).unwrap();
        assert_eq!(report.replies.len(), 1);
    }
    narrow(beta, 1_300);
    let status = alpha.node.ask(&["status"]).unwrap();
    let text = String::from_utf8(status.stdout).unwrap();
    let warnings: Vec<_> = text
        .lines()
        .filter(|line| line.contains("WARNING"))
        .collect();
    let [warning] = warnings.as_slice() else {
        unreachable!("one warning:\n{text}");
    };
    let expected = format!("packets of 1420 bytes do not reach peer {}", short(beta));
    assert!(warning.contains(&expected), "{text}");
    let daemon = alpha.node.daemon().unwrap();
    let logged = daemon.wait_since(
        daemon.started_at(),
        "path_mtu",
        Duration::from_secs(5),
        |event| event.text("key") == short(beta),
    );
    logged.unwrap();
}

/// Makes the switch drop what is too large for the way to a host.
fn narrow(endpoint: &Endpoint, mtu: u32) {
    let [_, port] = endpoint.node.host.link.ends();
    let mut command = Command::new("ip");
    let mtu = mtu.to_string();
    command.args(["link", "set", "dev", &port.interface, "mtu", &mtu]);
    let mut child = port.namespace.spawn(command).unwrap();
    assert!(child.wait().unwrap().success());
}

/// As logs show keys.
fn short(endpoint: &Endpoint) -> &str {
    endpoint.data_key.get(..8).unwrap()
}
