//! Instances of one host that use the same destinations, in routing tables of their own.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod by_hand;
mod guest;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use testbed::{Binaries, DataPlane, Endpoint, Network, NetworkOptions, Ping};

use by_hand::{edit, ip};

const PORT: u16 = 9_000;
/// What lives at beta in instance 7, and at gamma in instance 8.
const SAME: &str = "10.50.0.1";
/// Instance, table, and who has which address there.
type Plan = (u32, u32, [(usize, &'static str); 2]);
/// Each agent has its own instance 0 as well.
const PLAN: [Plan; 2] = [
    (7, 107, [(0, "10.7.0.1"), (1, SAME)]),
    (8, 70_008, [(0, "10.8.0.1"), (2, SAME)]),
];

#[test]
fn the_table_decides_which_of_two_hosts_with_the_same_address_is_reached() {
    tables_stay_apart(DataPlane::Embedded);
}

#[test]
fn so_it_does_on_kernel_wireguard() {
    guest::passes(IN_GUEST);
}

/// The name of the test that runs in a guest.
const IN_GUEST: &str = "tables_on_kernel_wireguard";

#[test]
#[ignore = "needs WireGuard in the kernel; another test runs it in a guest"]
fn tables_on_kernel_wireguard() {
    tables_stay_apart(DataPlane::Kernel);
}

fn tables_stay_apart(data_plane: DataPlane) {
    let options = NetworkOptions {
        endpoints: 3,
        data_plane,
        ..NetworkOptions::default()
    };
    let binaries = Binaries::up_to_date(|_| ()).unwrap();
    let mut network = Network::prepare(&options, binaries).unwrap();
    for (iid, table, members) in PLAN {
        for (index, eid) in members {
            join(&network, index, iid, table, eid);
        }
    }
    network.start_all().unwrap();
    let alpha = &network.endpoints[0];
    for (answerer, iid) in [(1, 7), (2, 8)] {
        answer(&network.endpoints[answerer], iid);
    }
    for (iid, _, members) in PLAN {
        let (_, own) = members[0];
        assert_eq!(who_answers(alpha, own), iid, "asked from {own}");
    }
    // The main table knows only those of instance 0.
    let plain = Ping::once(network.endpoints[1].eids[0]);
    assert_eq!(plain.run(alpha.namespace()).unwrap().replies.len(), 1);
    let elsewhere = Ping {
        timeout: Duration::from_secs(5),
        ..Ping::once(SAME.parse().unwrap())
    };
    let report = elsewhere.run(alpha.namespace()).unwrap();
    assert_eq!((report.replies.len(), report.unreachable), (0, 1));
    for (_, table, _) in PLAN {
        let there = routes(alpha, table);
        assert!(
            there.contains("10.0.0.0/8") && there.contains(SAME),
            "{there}"
        );
    }
    if data_plane == DataPlane::Kernel {
        network.endpoints[0].node.kill();
        let log = network.log.clone();
        network.endpoints[0].node.start(&log).unwrap();
        let alpha = &network.endpoints[0];
        let daemon = alpha.node.daemon().unwrap();
        daemon
            .wait_for("restored", Duration::from_secs(20))
            .unwrap();
        daemon
            .wait_for("registered", Duration::from_secs(20))
            .unwrap();
        assert_eq!(who_answers(alpha, "10.7.0.1"), 7, "after a restart");
    }
    network.stop_all().unwrap();
    for (_, table, _) in PLAN {
        assert_eq!(routes(&network.endpoints[0], table), "");
    }
}

/// Adds an instance to an endpoint that does not run yet: to its configuration, to that of the map
/// server, and as a rule that sends what comes from there to the table.
fn join(network: &Network, index: usize, iid: u32, table: u32, eid: &str) {
    let endpoint = &network.endpoints[index];
    let more = format!(
        "\n[[instance]]\ninstance_id = {iid}\ntable = {table}\noverlay = [\"10.0.0.0/8\"]\n\
         eid_prefixes = [\"{eid}/32\"]\nlisten_port = {}\n",
        51_900 + iid
    );
    edit(&endpoint.node.config, |text| text + &more);
    let own = format!("\"{}/32\"", endpoint.eids[0]);
    let both = format!("{own}, \"[{iid}]{eid}/32\"");
    edit(&network.server.config, |text| text.replacen(&own, &both, 1));
    let table = table.to_string();
    let rule = ["rule", "add", "from", eid, "lookup", &table];
    ip(endpoint.namespace(), &rule);
}

/// The routes of a table, or nothing where there is no such table.
fn routes(endpoint: &Endpoint, table: u32) -> String {
    let shown = endpoint.namespace().run(|| {
        let mut command = Command::new("ip");
        command.args(["-4", "route", "show", "table", &table.to_string()]);
        command.output().unwrap()
    });
    String::from_utf8(shown.unwrap().stdout).unwrap()
}

/// Answers every datagram to the address that two hosts have with the instance-id.
fn answer(endpoint: &Endpoint, iid: u32) {
    let at = SocketAddr::new(SAME.parse().unwrap(), PORT);
    let bound = endpoint.namespace().run(|| UdpSocket::bind(at));
    let socket = bound.unwrap().unwrap();
    thread::spawn(move || {
        let mut question = [0; 16];
        while let Ok((_, from)) = socket.recv_from(&mut question) {
            drop(socket.send_to(&iid.to_be_bytes(), from));
        }
    });
}

/// Which instance answers at the address that two hosts have, asked from `own`.
fn who_answers(endpoint: &Endpoint, own: &str) -> u32 {
    let own = SocketAddr::new(own.parse::<IpAddr>().unwrap(), 0);
    let bound = endpoint.namespace().run(|| UdpSocket::bind(own));
    let socket = bound.unwrap().unwrap();
    let patience = Some(Duration::from_secs(10));
    socket.set_read_timeout(patience).unwrap();
    let at = SocketAddr::new(SAME.parse().unwrap(), PORT);
    socket.send_to(b"who is there", at).unwrap();
    let mut answer = [0; 4];
    socket.recv_from(&mut answer).unwrap();
    u32::from_be_bytes(answer)
}
