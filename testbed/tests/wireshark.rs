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
    pub(crate) mod encoded;
    pub(crate) mod kinds;
    pub(crate) mod packet;
    pub(crate) mod tools;
    pub(crate) mod tshark;
}

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use interop::capture::Capture;
use interop::encoded;
use interop::kinds::{Kind, kind_of};
use interop::packet::Datagram;
use interop::tools;
use interop::tshark::{dissect, write_pcap};
use testbed::{LogPosition, Network, NetworkOptions, Ping};

const TIMEOUT: Duration = Duration::from_secs(10);

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
    let mut network = Network::prepare(&NetworkOptions::default(), binaries).unwrap();
    let capture = Capture::start(&network.server.host.namespace);
    network.start_all().unwrap();
    use_everything(&mut network);
    let messages = capture.finish();

    let directory = network.testbed().directory();
    write_pcap(&directory.join("daemons.pcap"), &messages);
    let mut seen = BTreeMap::<Kind, usize>::new();
    for (message, dissection) in messages.iter().zip(dissect(directory, &messages)) {
        assert_eq!(dissection.complaint(), None, "{message:?}");
        *seen.entry(kind_of(&message.payload)).or_default() += 1;
    }
    for kind in Kind::ALL {
        assert!(seen.contains_key(&kind), "no {kind:?} in {seen:?}");
    }
    println!(
        "{} messages, dissected without complaint: {seen:?}",
        messages.len()
    );
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
