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
    pub(crate) mod oor;
    pub(crate) mod packet;
    pub(crate) mod site;
    pub(crate) mod tools;
    pub(crate) mod tshark;
}

use std::net::UdpSocket;
use std::time::Duration;

use interop::capture::Capture;
use interop::docs;
use interop::oor::{behind, start_oor};
use interop::packet::Datagram;
use interop::site::{Site, answers};
use interop::tools;
use interop::tshark::dissect;
use lisp_proto::{
    Action, Algorithm, AuthKey, Locator, Nonce, PublicKey, Record, RegisterFlags, RegisterParams,
    Rloc, Ttl, encode_map_register,
};
use testbed::{Daemon, Host, Namespace, TestbedError};

/// OOR registers two seconds after its start, and again after two more; a busy machine delays it.
const PATIENCE: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(30);
/// Pings that go unanswered when nobody serves their destination.
const FEW: usize = 3;
/// Pings of which one is answered; OOR loses the first of a pair in each direction.
const MANY: usize = 40;
const SERVER: &str = "192.0.2.1";

#[test]
fn oor_xtrs_register_with_our_map_server_and_their_sites_reach_each_other() {
    if !equipped() {
        return;
    }
    let mut site = Site::new();
    let server_host = site.host("server");
    let (xtr_1, xtr_2, client) = (site.host("oor-1"), site.host("oor-2"), site.host("client"));
    let (host_1, host_2) = (behind(&site, &xtr_1, 1), behind(&site, &xtr_2, 2));
    let capture = Capture::start(&server_host.namespace);
    let mut server = site.start_map_server(&server_host, &docs::block("map-server.toml"));
    server.wait_for("started", PATIENCE).unwrap();
    let config_1 = docs::block("oor-xtr-1.conf");
    let config_2 = config_1.replace("192.168.1.0/24", "192.168.2.0/24");
    let mut oor_1 = start_oor(&site, &xtr_1, &config_1);
    let mut oor_2 = start_oor(&site, &xtr_2, &config_2);
    wait_for_registration(&server, "oor-1", "192.168.1.0/24");
    wait_for_registration(&server, "oor-2", "192.168.2.0/24");

    for (from, to) in [(&host_1, "192.168.2.10"), (&host_2, "192.168.1.10")] {
        assert!(answers(&from.namespace, to, MANY), "{}", site.story());
    }
    site.succeed(&host_1.namespace, &docs::block("from-192.168.1.10.sh"));

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

    for oor in [&mut oor_1, &mut oor_2] {
        // It may end by a signal, at something that is closed while it stops.
        match oor.stop(STOP) {
            Ok(()) | Err(TestbedError::Ended { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    server.stop(STOP).unwrap();
    must_be_clean(&site, capture);
}

#[test]
fn our_map_server_says_what_is_weak_about_oor() {
    if !equipped() {
        return;
    }
    let mut site = Site::new();
    let host = site.host("server");
    let server = site.start_map_server(&host, &docs::block("map-server.toml"));
    server.wait_for("started", PATIENCE).unwrap();
    let story = site.story();
    for weakness in ["replay_check", "sha1", "no WireGuard keys"] {
        for xtr in ["oor-1", "oor-2"] {
            let said = story
                .lines()
                .any(|line| line.contains(weakness) && line.contains(xtr));
            assert!(said, "nothing about {weakness} of {xtr} in:\n{story}");
        }
    }
}

/// OOR crashes on a locator with a key, and on the actions that it does not know.
#[test]
fn an_oor_xtr_that_asks_for_a_wireguard_endpoint_gets_an_answer_that_it_can_read() {
    if !equipped() {
        return;
    }
    let mut site = Site::new();
    let (server_host, xtr, gear) = (site.host("server"), site.host("oor-1"), site.host("gear"));
    let host = behind(&site, &xtr, 1);
    let mut config = docs::block("map-server.toml");
    config += "[[xtr]]\nname = \"gear\"\nalgorithm = \"sha256\"\nkey_id = 0\nkey = \"secret\"\n";
    config += "eid_prefixes = [\"192.168.7.0/24\", \"192.168.8.0/24\"]\n";
    let capture = Capture::start(&server_host.namespace);
    let server = site.start_map_server(&server_host, &config);
    server.wait_for("started", PATIENCE).unwrap();
    let mut oor = start_oor(&site, &xtr, &docs::block("oor-xtr-1.conf"));
    wait_for_registration(&server, "oor-1", "192.168.1.0/24");
    let key = Rloc::WireGuard {
        endpoint: "192.0.2.3:51821".parse().unwrap(),
        key: PublicKey([0x5a; 32]),
    };
    let plain = Rloc::Plain("192.0.2.3".parse().unwrap());
    register(&gear, 1, "192.168.7.0/24", &[key]);
    register(&gear, 2, "192.168.8.0/24", &[plain, key]);
    wait_for_registration(&server, "gear", "192.168.7.0/24");
    wait_for_registration(&server, "gear", "192.168.8.0/24");

    for destination in ["192.168.7.10", "192.168.8.10"] {
        let before = site.log.position();
        assert!(!answers(&host.namespace, destination, FEW));
        let asked = server.wait_since(before, "request", PATIENCE, |event| {
            event.text("eid").starts_with(destination)
        });
        assert!(asked.is_ok(), "{}", site.story());
    }
    // It ends by our SIGTERM, and has not crashed before.
    if let Err(error) = oor.stop(STOP) {
        panic!("{error}\n{}", site.story());
    }
    must_be_clean(&site, capture);
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
    let _oor = start_oor(&site, &server, &docs::block("oor-ms.conf"));
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
    must_be_clean(&site, capture);
}

#[test]
fn our_lig_asks_an_oor_map_server_about_an_oor_xtr() {
    if !equipped() {
        return;
    }
    let mut site = Site::new();
    let (server, xtr, client) = (site.host("oor-ms"), site.host("oor-1"), site.host("client"));
    let _behind = behind(&site, &xtr, 1);
    let capture = Capture::start(&server.namespace);
    let _oor_ms = start_oor(&site, &server, &docs::block("oor-ms.conf"));
    let _oor_xtr = start_oor(&site, &xtr, &docs::block("oor-xtr-1.conf"));
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
    must_be_clean(&site, capture);
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
    let command = format!("lig {eid} --server {SERVER} --ecm --timeout-ms 2000");
    site.run(from, &command).status.code()
}

/// Registers with our map server what OOR cannot.
fn register(gear: &Host, nonce: u64, eid: &str, rlocs: &[Rloc]) {
    let locator = |rloc: &Rloc| Locator {
        priority: 1,
        weight: 100,
        local: true,
        probed: false,
        reachable: true,
        rloc: *rloc,
    };
    let record = Record {
        eid: eid.parse().unwrap(),
        ttl: Ttl::from_minutes(10),
        action: Action::NoAction,
        authoritative: true,
        locators: rlocs.iter().map(locator).collect(),
    };
    let params = RegisterParams {
        flags: RegisterFlags {
            proxy_reply: true,
            want_notify: true,
            ..RegisterFlags::default()
        },
        nonce: Nonce(nonce),
        records: &[record],
        ids: None,
    };
    let mut bytes = Vec::new();
    let key = AuthKey::new(0, Algorithm::Sha256_128, b"secret");
    encode_map_register(&params, &key, &mut bytes).unwrap();
    let send = || {
        let socket = UdpSocket::bind("0.0.0.0:4342").unwrap();
        socket.send_to(&bytes, (SERVER, 4342)).unwrap();
    };
    gear.namespace.run(send).unwrap();
}

/// Nothing that was said on port 4342, by OOR or by us, may be malformed.
fn must_be_clean(site: &Site, capture: Capture) {
    let messages: Vec<Datagram> = capture.finish();
    assert!(!messages.is_empty());
    for (message, dissection) in messages
        .iter()
        .zip(dissect(site.testbed.directory(), &messages))
    {
        assert_eq!(dissection.complaint(), None, "{message:?}");
    }
}
