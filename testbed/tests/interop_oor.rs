//! A peer that nobody here wrote: stock Open Overlay Router, with the configurations and commands
//! of `docs/interop.md`.
//!
//! Needs root, and the Debian packages `openoverlayrouter`, `tshark` and `iproute2`.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod interop {
    pub(crate) mod capture;
    pub(crate) mod docs;
    pub(crate) mod packet;
    pub(crate) mod site;
    pub(crate) mod tools;
    pub(crate) mod tshark;
}

use std::time::Duration;

use interop::capture::Capture;
use interop::docs;
use interop::packet::Datagram;
use interop::site::{Site, answers};
use interop::tools;
use interop::tshark::{dissect, write_pcap};
use testbed::{Daemon, Namespace};

/// OOR registers two seconds after its start, and again after two more.
const PATIENCE: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(10);
/// Pings that go unanswered when nobody serves their destination.
const FEW: usize = 3;
/// Pings of which one is answered; OOR loses the first of a pair in each direction.
const MANY: usize = 20;
const SERVER: &str = "192.0.2.1";

#[test]
fn oor_xtrs_register_with_our_map_server_and_their_sites_reach_each_other() {
    if !equipped() {
        return;
    }
    let mut site = Site::new();
    let server_host = site.host("server");
    let (xtr_1, xtr_2, client) = (site.host("oor-1"), site.host("oor-2"), site.host("client"));
    let (host_1, host_2) = (site.behind(&xtr_1, 1), site.behind(&xtr_2, 2));
    let capture = Capture::start(&server_host.namespace);
    let mut server = site.start_map_server(&server_host, &docs::block("map-server.toml"));
    server.wait_for("started", PATIENCE).unwrap();
    let config_1 = docs::block("oor-xtr-1.conf");
    let config_2 = config_1.replace("192.168.1.0/24", "192.168.2.0/24");
    let mut oor_1 = site.start_oor(&xtr_1, &config_1);
    let mut oor_2 = site.start_oor(&xtr_2, &config_2);
    wait_for_registration(&server, "oor-1", "192.168.1.0/24");
    wait_for_registration(&server, "oor-2", "192.168.2.0/24");

    let pinged = site.run(&host_1.namespace, &docs::block("from-192.168.1.10.sh"));
    assert!(pinged.status.success(), "{pinged:?}\n{}", site.story());
    assert!(
        answers(&host_2.namespace, "192.168.1.10", MANY),
        "{}",
        site.story()
    );

    let found = site.succeed(&client.namespace, &docs::block("lig-at-ours.sh"));
    assert!(
        found.contains("192.168.2.0/24") && found.contains("192.0.2.3"),
        "{found}"
    );

    // A negative answer harms nobody.
    assert!(!answers(&host_1.namespace, "192.168.3.10", FEW));
    server.wait_for("negative_reply", PATIENCE).unwrap();
    assert!(
        answers(&host_1.namespace, "192.168.2.10", MANY),
        "{}",
        site.story()
    );

    for daemon in [&mut oor_1, &mut oor_2, &mut server] {
        daemon.stop(STOP).unwrap();
    }
    must_be_clean(&site, "oor-xtrs.pcap", capture);
}

#[test]
fn our_agent_registers_without_keys_at_an_oor_map_server_and_lig_finds_it() {
    if !equipped() {
        return;
    }
    let mut site = Site::new();
    let (server, agent_host, client) =
        (site.host("oor-ms"), site.host("agent"), site.host("client"));
    let capture = Capture::start(&server.namespace);
    let _oor = site.start_oor(&server, &docs::block("oor-ms.conf"));
    let mut agent = site.start_agent(&agent_host, &docs::block("xtr-agent.toml"));
    for eid in ["192.168.2.10/32", "fd00:2::10/128"] {
        let registered = agent.wait_since(agent.started_at(), "registered", PATIENCE, |event| {
            event.text("eid") == eid
        });
        assert!(
            registered.is_ok(),
            "{eid}: {registered:?}\n{}",
            site.story()
        );
    }
    let found = site.succeed(&client.namespace, &docs::block("lig-at-oor.sh"));
    for expected in ["192.168.2.10/32", "fd00:2::10/128", "192.0.2.2"] {
        assert!(found.contains(expected), "no {expected} in {found}");
    }

    // The agent asks as well: nobody serves this one.
    assert!(!answers(&agent_host.namespace, "192.168.9.10", FEW));
    agent.wait_for("negative", PATIENCE).unwrap();

    agent.stop(STOP).unwrap();
    assert_eq!(
        lig(&site, &client.namespace, "192.168.2.10"),
        Some(1),
        "{}",
        site.story()
    );
    assert_eq!(
        lig(&site, &client.namespace, "fd00:2::10"),
        Some(1),
        "{}",
        site.story()
    );
    must_be_clean(&site, "agent-at-oor.pcap", capture);
}

#[test]
fn our_lig_asks_an_oor_map_server_about_an_oor_xtr() {
    if !equipped() {
        return;
    }
    let mut site = Site::new();
    let (server, xtr, client) = (site.host("oor-ms"), site.host("oor-1"), site.host("client"));
    let _behind = site.behind(&xtr, 1);
    let capture = Capture::start(&server.namespace);
    let _oor_ms = site.start_oor(&server, &docs::block("oor-ms.conf"));
    let _oor_xtr = site.start_oor(&xtr, &docs::block("oor-xtr-1.conf"));
    let found = || {
        testbed::sleep(Duration::from_millis(500));
        lig(&site, &client.namespace, "192.168.1.10") == Some(0)
    };
    assert!((0..20).any(|_| found()), "{}", site.story());
    let command = format!("lig --json 192.168.1.10 --server {SERVER} --ecm --port 4342");
    let answer = site.succeed(&client.namespace, &command);
    assert!(
        answer.contains("192.168.1.0/24") && answer.contains("192.0.2.2"),
        "{answer}"
    );
    // Configured but not registered; not configured; of the other family.
    for eid in ["192.168.99.1", "8.8.8.8", "fd00:2::99", "2001:db8:1::1"] {
        assert_eq!(lig(&site, &client.namespace, eid), Some(1), "{eid}");
    }
    must_be_clean(&site, "lig-at-oor.pcap", capture);
}

/// Whether this machine has what the tests need.
fn equipped() -> bool {
    tools::have_root()
        && tools::have("ip", "iproute2")
        && tools::have("oor", "openoverlayrouter")
        && tools::have("tshark", "tshark")
}

fn wait_for_registration(server: &Daemon, xtr: &str, eid: &str) {
    let wanted = |event: &testbed::LogEvent| event.text("xtr") == xtr && event.text("eid") == eid;
    server
        .wait_since(server.started_at(), "registered", PATIENCE, wanted)
        .unwrap();
}

/// Asks the map server at 192.0.2.1 for `eid`; returns how `lig` ends.
fn lig(site: &Site, from: &Namespace, eid: &str) -> Option<i32> {
    let command = format!("lig {eid} --server {SERVER} --ecm --timeout-ms 500");
    site.run(from, &command).status.code()
}

/// Nothing that was said on port 4342, by OOR or by us, may be malformed.
fn must_be_clean(site: &Site, name: &str, capture: Capture) {
    let messages: Vec<Datagram> = capture.finish();
    write_pcap(&site.directory().join(name), &messages);
    assert!(!messages.is_empty());
    for (message, dissection) in messages.iter().zip(dissect(site.directory(), &messages)) {
        assert_eq!(dissection.complaint(), None, "{message:?}");
    }
}
