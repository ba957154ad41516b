//! An agent that ends and comes back: what runs through its tunnels goes on, and what it says of
//! itself to whoever asks.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{DataPlane, Endpoint, Network, NetworkOptions, Ping, sleep};

#[test]
fn a_running_agent_says_where_it_stands_and_how_far_a_packet_came() {
    let mut network = Network::start(&NetworkOptions::default()).unwrap();
    let [alpha, beta] = network.endpoints.as_slice() else {
        panic!("two endpoints");
    };
    let eid = beta.eids[0].to_string();
    let (code, text) = ask(&network, alpha, &["trace", &eid]);
    assert!(code == 1 && text.contains("no packet to"), "{text}");
    let reply = Ping::once(beta.eids[0]).run(alpha.namespace()).unwrap();
    assert_eq!(reply.replies.len(), 1);
    // The first reply is seen with the next look at the counters.
    sleep(Duration::from_secs(5));

    let (code, text) = ask(&network, alpha, &["status"]);
    assert_eq!(code, 0, "{text}");
    for part in [
        "registered",
        "connected",
        "10.0.0.2/32",
        "10.0.0.1/32",
        "UDP port 51821",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
    let (_, json) = ask(&network, alpha, &["status", "--json"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    let peer = &report["instances"][0]["peers"][0];
    assert_eq!(peer["key"], beta.data_key.as_str());
    assert!(peer["rtt_us"].as_u64().is_some(), "{json}");
    assert!(
        report["instances"][0]["servers"][0]["rtt_us"].is_u64(),
        "{json}"
    );

    let (code, text) = ask(&network, alpha, &["trace", &eid]);
    assert_eq!(code, 0, "{text}");
    for stage in [
        "caught",
        "asked",
        "answered",
        "installed",
        "handshake",
        "first reply",
    ] {
        let line = text.lines().find(|line| line.trim().starts_with(stage));
        assert!(
            line.is_some_and(|line| line.contains(" ms")),
            "{stage}:\n{text}"
        );
    }
    let (code, text) = ask(&network, alpha, &["stop", "--purge"]);
    assert_eq!(code, 0, "{text}");
    let alpha = &mut network.endpoints[0];
    assert_eq!(alpha.node.leftovers().unwrap(), [""; 0]);
    let alpha = &network.endpoints[0];
    let (code, text) = ask(&network, alpha, &["status"]);
    assert!(code == 1 && text.contains("no agent runs"), "{text}");
    let (code, _) = ask(&network, alpha, &["stop", "--purge"]);
    assert_eq!(code, 0, "nothing to do is no failure");
    let (code, _) = ask(&network, alpha, &["trace", "nowhere"]);
    assert_eq!(code, 64);
}

#[test]
fn a_file_that_is_read_again_changes_what_tunnels_do_not_notice() {
    let network = Network::start(&NetworkOptions::default()).unwrap();
    let [alpha, beta] = network.endpoints.as_slice() else {
        panic!("two endpoints");
    };
    let once = || Ping::once(beta.eids[0]).run(alpha.namespace()).unwrap();
    assert_eq!(once().replies.len(), 1);
    let good = std::fs::read_to_string(&alpha.node.config).unwrap();
    let reloaded = |text: &str, event: &str| {
        std::fs::write(&alpha.node.config, text).unwrap();
        let position = network.log.position();
        let daemon = alpha.node.daemon().unwrap();
        daemon.signal(Signal::SIGHUP).unwrap();
        let found = daemon.wait_since(position, event, PATIENCE, |_| true);
        (found.unwrap(), position)
    };
    let (failed, _) = reloaded(&format!("speling = 1\n{good}"), "reload_failed");
    let error = failed.text("error");
    assert!(
        error.contains("speling") && error.contains("config.toml"),
        "{error}"
    );

    let subscribe = format!("ttl_min = 3\nsubscribe = [\"{}/32\"]\n{good}", beta.eids[0]);
    let (_, position) = reloaded(&subscribe, "reloaded");
    let daemon = alpha.node.daemon().unwrap();
    daemon
        .wait_since(position, "subscribed", PATIENCE, |_| true)
        .unwrap();
    let (refused, _) = reloaded(&format!("mtu = 1380\n{subscribe}"), "reload_failed");
    let error = refused.text("error");
    assert!(error.contains("config.toml:1: mtu: has changed"), "{error}");

    assert_eq!(once().replies.len(), 1);
    let events = network.log.since(position);
    let mut events = events.iter().filter(|event| event.daemon == "alpha");
    let touched =
        events.any(|event| event.is("alpha", "peer_removed") || event.is("alpha", "caught"));
    assert!(!touched, "the tunnel has noticed nothing");
}

#[test]
fn what_lives_here_and_what_is_looked_up_change_while_a_flow_goes_on() {
    let network = Network::start(&NetworkOptions::default()).unwrap();
    let [alpha, beta] = network.endpoints.as_slice() else {
        panic!("two endpoints");
    };
    // The map server may have it from the start: it lies in what alpha may register.
    let flow = flow_from(alpha, beta.eids[1]);
    sleep(Duration::from_secs(1));
    let good = std::fs::read_to_string(&alpha.node.config).unwrap();
    let own = format!("\"{}/32\", ", alpha.eids[0]);
    assert!(good.contains(&own) && good.contains("\"10.0.0.0/8\""));
    let moved = good
        .replacen(&own, "", 1)
        .replacen("\"10.0.0.0/8\"", "\"11.0.0.0/8\"", 1);
    let hang_up = |text: &str| {
        std::fs::write(&alpha.node.config, text).unwrap();
        let position = network.log.position();
        let daemon = alpha.node.daemon().unwrap();
        daemon.signal(Signal::SIGHUP).unwrap();
        daemon
            .wait_since(position, "reloaded", PATIENCE, |_| true)
            .unwrap();
    };
    let shown = |arguments: &[&str]| {
        let mut command = Command::new("ip");
        command.args(arguments);
        let output = alpha.namespace().run(|| command.output().unwrap());
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    hang_up(&moved);
    let routes = shown(&["-4", "route", "show"]);
    assert!(
        routes.contains("11.0.0.0/8") && !routes.contains("10.0.0.0/8"),
        "{routes}"
    );
    let address = format!("{}/32", alpha.eids[0]);
    assert!(!shown(&["addr", "show"]).contains(&address));
    let gone = Ping {
        timeout: Duration::from_secs(5),
        ..Ping::once(alpha.eids[0])
    };
    let report = gone.run(beta.namespace()).unwrap();
    assert_eq!(report.replies.len(), 0, "it is withdrawn");
    hang_up(&good);
    assert!(shown(&["addr", "show"]).contains(&address));
    let back = Ping {
        count: 1,
        timeout: Duration::from_secs(20),
        ..Ping::once(alpha.eids[0])
    };
    // Beta was told that nobody has it, and is told that somebody has again.
    sleep(Duration::from_secs(1));
    assert_eq!(back.run(beta.namespace()).unwrap().replies.len(), 1);
    assert_eq!(
        flow.join().unwrap(),
        FLOW,
        "replies of the flow in the other family"
    );
}

#[test]
fn tunnels_of_kernel_wireguard_outlive_their_agent() {
    guest::passes(IN_GUEST);
}

/// The name of the test that runs in a guest.
const IN_GUEST: &str = "over_kernel_wireguard";

#[test]
#[ignore = "needs WireGuard in the kernel; another test runs it in a guest"]
fn over_kernel_wireguard() {
    let options = NetworkOptions {
        data_plane: DataPlane::Kernel,
        ..NetworkOptions::default()
    };
    let mut network = Network::start(&options).unwrap();
    let eid = network.endpoints[1].eids[0];
    let first = Ping::once(eid)
        .run(network.endpoints[0].namespace())
        .unwrap();
    assert_eq!(first.replies.len(), 1);
    // Long enough for the map-cache to be written down.
    sleep(Duration::from_secs(6));

    // Killed, and started again, under a flow.
    let flow = flow_from(&network.endpoints[0], eid);
    sleep(Duration::from_millis(500));
    network.endpoints[0].node.kill();
    sleep(Duration::from_millis(500));
    let log = network.log.clone();
    network.endpoints[0].node.start(&log).unwrap();
    network.endpoints[0].wait_until_registered().unwrap();
    assert_eq!(flow.join().unwrap(), FLOW, "replies across kill -9");

    // As `systemctl restart` does it, without any map server.
    network.server.kill();
    let flow = flow_from(&network.endpoints[0], eid);
    sleep(Duration::from_millis(500));
    network.endpoints[0].node.leave().unwrap();
    network.endpoints[0].node.start(&log).unwrap();
    let daemon = network.endpoints[0].node.daemon().unwrap();
    let restored = daemon.wait_for("restored", PATIENCE).unwrap();
    daemon.wait_for("started", PATIENCE).unwrap();
    println!("{:?}", restored.fields);
    assert_eq!(flow.join().unwrap(), FLOW, "replies across a restart");
    let again = Ping::once(eid)
        .run(network.endpoints[0].namespace())
        .unwrap();
    assert_eq!(
        again.replies.len(),
        1,
        "a known peer works without any server"
    );
    let (_, text) = ask(&network, &network.endpoints[0], &["status"]);
    println!("{text}");
    assert!(
        text.contains("connected") && text.contains("restored"),
        "{text}"
    );

    // What a dead agent left goes when asked for.
    network.endpoints[0].node.kill();
    assert_ne!(network.endpoints[0].node.leftovers().unwrap(), [""; 0]);
    let (code, text) = ask(&network, &network.endpoints[0], &["stop", "--purge"]);
    println!("{text}");
    assert_eq!(code, 0, "{text}");
    assert_eq!(network.endpoints[0].node.leftovers().unwrap(), [""; 0]);
}

const PATIENCE: Duration = Duration::from_secs(30);
/// Echo requests of a flow, and the time between two.
const FLOW: usize = 200;
const PACE: Duration = Duration::from_millis(40);

/// Pings steadily; how many replies came.
fn flow_from(endpoint: &Endpoint, destination: std::net::IpAddr) -> thread::JoinHandle<usize> {
    let namespace = endpoint.namespace().clone();
    thread::spawn(move || {
        let ping = Ping {
            count: u16::try_from(FLOW).unwrap(),
            interval: PACE,
            ..Ping::once(destination)
        };
        ping.run(&namespace).unwrap().replies.len()
    })
}

/// Runs the agent's program on an endpoint: its exit code, and what it printed.
fn ask(network: &Network, endpoint: &Endpoint, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(&network.binaries().xtr_agent);
    command
        .args(arguments)
        .arg("--config")
        .arg(&endpoint.node.config)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = endpoint.namespace().spawn(command).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text.into_owned())
}
