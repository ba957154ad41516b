//! Everything we send, read by a dissector that nobody here wrote.
//!
//! Needs tshark (Debian package `tshark`), and root for what the daemons say.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod interop {
    pub(crate) mod capture;
    pub(crate) mod docs;
    pub(crate) mod encoded;
    pub(crate) mod kinds;
    pub(crate) mod packet;
    pub(crate) mod site;
    pub(crate) mod tools;
    pub(crate) mod tshark;
}

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use interop::capture::Capture;
use interop::docs;
use interop::encoded;
use interop::kinds::{Kind, kind_of};
use interop::packet::Datagram;
use interop::site::{Site, answers};
use interop::tools;
use interop::tshark::dissect;
use lisp_proto::{Message, decode};
use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{LogEvent, LogPosition, Network, NetworkOptions, Ping};

const TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn every_message_and_option_is_dissected_without_complaint() {
    if !have_tshark() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let messages = encoded::every_message();
    let datagrams: Vec<_> = messages
        .iter()
        .map(|message| datagram(&message.bytes))
        .collect();
    let mut problems = Vec::new();
    for (message, dissection) in messages.iter().zip(dissect(directory.path(), &datagrams)) {
        let name = message.name;
        let complaint = dissection.complaint();
        problems.extend(complaint.map(|complaint| format!("{name}: {complaint}")));
        for (field, values) in &message.expected {
            let found = dissection.field(field).join(";");
            if found != *values {
                problems.push(format!("{name}: {field} is {found}, not {values}"));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn damage_is_noticed() {
    if !have_tshark() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let whole = encoded::every_message();
    let cut = whole
        .iter()
        .map(|message| &message.bytes[..message.bytes.len() - 1]);
    let long = whole
        .iter()
        .map(|message| [&message.bytes[..], &[0]].concat());
    // What is longer than its inner packet inside an ECM is padding.
    let is_ecm = |datagram: &Datagram| datagram.payload[0] >> 4 == 8;
    let long = long
        .map(|bytes| datagram(&bytes))
        .filter(|long| !is_ecm(long));
    let damaged: Vec<_> = cut.map(datagram).chain(long).collect();
    for (datagram, dissection) in damaged.iter().zip(dissect(directory.path(), &damaged)) {
        assert!(
            dissection.complaint().is_some(),
            "{datagram:?}: {dissection:?}"
        );
    }
}

#[test]
fn everything_the_daemons_say_is_dissected_without_complaint() {
    if !tools::have_root() || !have_tshark() {
        return;
    }
    let binaries = testbed::Binaries::up_to_date(|_| ()).unwrap();
    let options = NetworkOptions {
        tenants: 1,
        agent_toml: "shared = true\n".into(),
        ..NetworkOptions::default()
    };
    let mut network = Network::prepare(&options, binaries).unwrap();
    let capture = Capture::start(&network.server.host.namespace);
    network.start_all().unwrap();
    wait_until_seen(&network);
    use_everything(&mut network);
    let messages = capture.finish();

    let seen = count(network.testbed().directory(), &messages);
    for kind in Kind::ALL {
        assert!(seen.contains_key(&kind), "no {kind:?} in {seen:?}");
    }
    let merged = messages.iter().any(|message| {
        matches!(decode(&message.payload), Ok(Message::MapRegister(register)) if register.flags.merge)
    });
    assert!(merged, "no Map-Register with the merge bit");
    println!("{} messages: {seen:?}", messages.len());
}

/// Waits until all agents were told where they are seen: the map server looks once a second.
fn wait_until_seen(network: &Network) {
    for endpoint in &network.endpoints {
        let is_told = || {
            let status = endpoint.node.ask(&["status", "--json"]).unwrap();
            let status: Value = serde_json::from_slice(&status.stdout).unwrap();
            !status["instances"][0]["nat"]["behind"].is_null()
        };
        let mut tries = 0..100;
        while !is_told() {
            assert!(tries.next().is_some(), "{} was not told", endpoint.name());
            testbed::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn everything_said_in_the_plain_is_dissected_without_complaint() {
    if !tools::have_root() || !have_tshark() {
        return;
    }
    let mut site = Site::new();
    let (server, agent, client) = (site.host("server"), site.host("agent"), site.host("client"));
    let capture = Capture::start(&server.namespace);
    let map_server = site.start_map_server(&server, PLAIN_MAP_SERVER);
    map_server.wait_for("started", TIMEOUT).unwrap();
    let mut agent_daemon = site.start_agent(&agent, &docs::block("xtr-agent.toml"));
    for eid in ["192.168.2.10/32", "fd00:2::10/128"] {
        let start = agent_daemon.started_at();
        let wanted = |event: &LogEvent| event.text("eid") == eid;
        let registered = agent_daemon.wait_since(start, "registered", TIMEOUT, wanted);
        assert!(registered.is_ok(), "{eid}: {}", site.story());
    }
    for (eid, flags) in [
        ("192.168.2.10", ""),
        ("fd00:2::10", ""),
        ("fd00:2::10", "--ecm"),
    ] {
        let command = format!("lig {eid} --server 192.0.2.1 {flags}");
        let found = site.succeed(&client.namespace, &command);
        assert!(found.contains("192.0.2.2"), "{command}: {found}");
    }
    for nobody in ["192.168.9.9", "fd00:2::9999"] {
        assert!(!answers(&agent.namespace, nobody, 1));
    }
    agent_daemon.wait_for("negative", TIMEOUT).unwrap();
    agent_daemon.stop(TIMEOUT).unwrap();
    let messages = capture.finish();

    let seen = count(site.testbed.directory(), &messages);
    for kind in Kind::ALL.iter().filter(|kind| !kind.is_private()) {
        assert!(seen.contains_key(kind), "no {kind:?} in {seen:?}");
    }
    println!("{} messages: {seen:?}", messages.len());
}

/// What our map server is told of our agent when it registers as with a stock OOR map server.
const PLAIN_MAP_SERVER: &str = r#"
[plain]
listen = ["192.0.2.1:4342"]
requests_from = ["192.0.2.3/32"]

[[xtr]]
name = "agent"
algorithm = "sha1"
key_id = 0
key = "password"
eid_prefixes = ["192.168.2.10/32", "fd00:2::10/128"]
"#;

/// Has tshark dissect what was captured; counts the messages of each kind.
fn count(directory: &Path, messages: &[Datagram]) -> BTreeMap<Kind, usize> {
    let mut seen = BTreeMap::new();
    for (message, dissection) in messages.iter().zip(dissect(directory, messages)) {
        assert_eq!(dissection.complaint(), None, "{message:?}");
        *seen.entry(kind_of(&message.payload)).or_default() += 1;
    }
    seen
}

/// Makes the daemons say all they have to say.
fn use_everything(network: &mut Network) {
    let [alpha, beta] = network.endpoints.as_slice() else {
        panic!("two endpoints");
    };
    for eid in beta.eids {
        let report = Ping::once(eid).run(alpha.namespace()).unwrap();
        assert_eq!(report.replies.len(), 1, "{eid}: {report:?}");
    }
    let nobody: [IpAddr; 2] = ["10.9.9.9".parse().unwrap(), "fd00:1::9999".parse().unwrap()];
    for eid in nobody {
        let timeout = Duration::from_millis(500);
        let ping = Ping {
            timeout,
            ..Ping::once(eid)
        };
        assert_eq!(ping.run(alpha.namespace()).unwrap().replies, []);
    }
    for flags in [&[][..], &["--ecm"]] {
        for eid in beta.eids {
            let answer = network.lig(alpha, eid, flags).unwrap();
            assert!(answer.status.success(), "{eid} {flags:?}: {answer:?}");
        }
    }
    subscribe_for_a_while(network);
    let before = network.log.position();
    network.endpoints[1].node.stop().unwrap();
    let told = network
        .log
        .wait(before, TIMEOUT, |event| event.is("server", "push_acked"));
    let events = network.log.since(LogPosition::default());
    assert!(
        told.is_some(),
        "the withdrawal was not published: {events:?}"
    );
}

/// The first endpoint asks to be told about an EID of the second, and then no more.
fn subscribe_for_a_while(network: &Network) {
    let [alpha, beta] = network.pair().unwrap();
    let config = std::fs::read_to_string(&alpha.node.config).unwrap();
    let subscribing = format!("subscribe = [\"{}/32\"]\n{config}", beta.eids[0]);
    for (config, event) in [(subscribing, "subscribed"), (config, "reloaded")] {
        std::fs::write(&alpha.node.config, config).unwrap();
        let before = network.log.position();
        let daemon = alpha.node.daemon().unwrap();
        daemon.signal(Signal::SIGHUP).unwrap();
        daemon.wait_since(before, event, TIMEOUT, |_| true).unwrap();
    }
}

fn have_tshark() -> bool {
    tools::have("tshark", "tshark")
}

fn datagram(payload: &[u8]) -> Datagram {
    Datagram {
        source: "192.0.2.7:4342".parse().unwrap(),
        destination: "192.0.2.1:4342".parse().unwrap(),
        payload: payload.to_vec(),
    }
}
