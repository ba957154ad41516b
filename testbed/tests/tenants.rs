//! Agents that serve several tenants, all of whom use the same addresses: nothing gets from one to
//! another.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod guest;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use testbed::{DataPlane, Namespace, Network, NetworkOptions, Ping, Tenant};

/// Where tenants say who they are.
const PORT: u16 = 9_000;
const TENANTS: u32 = 3;
/// Bytes of the smallest IPv4 packet that a ping of these tests is.
const ECHO: u64 = 84;

#[test]
fn three_tenants_with_the_same_addresses_do_not_hear_of_each_other() {
    tenants_stay_apart(DataPlane::Embedded);
}

#[test]
fn nor_do_they_on_kernel_wireguard() {
    guest::passes(IN_GUEST);
}

/// The name of the test that runs in a guest.
const IN_GUEST: &str = "tenants_on_kernel_wireguard";

#[test]
#[ignore = "needs WireGuard in the kernel; another test runs it in a guest"]
fn tenants_on_kernel_wireguard() {
    tenants_stay_apart(DataPlane::Kernel);
}

fn tenants_stay_apart(data_plane: DataPlane) {
    let options = NetworkOptions {
        tenants: TENANTS,
        data_plane,
        ..NetworkOptions::default()
    };
    let mut network = Network::start(&options).unwrap();
    let [alpha, beta] = network.endpoints.as_slice() else {
        unreachable!("two endpoints");
    };
    keys_differ(&network);
    let _answering: Vec<_> = beta.tenants.iter().map(answer).collect();
    // All at once, and nobody has a tunnel yet.
    thread::scope(|scope| {
        let asked: Vec<_> = alpha
            .tenants
            .iter()
            .map(|tenant| scope.spawn(|| (tenant.iid, everybody_there(tenant, beta.eids))))
            .collect();
        for asked in asked {
            let (iid, answers) = asked.join().unwrap();
            assert_eq!(answers, [iid; 2], "the answers that tenant {iid} got");
        }
    });
    for from in &alpha.tenants {
        for to in &beta.tenants {
            let own = to.eids[2];
            let report = quick(own).run(&from.namespace).unwrap();
            let expected = usize::from(from.iid == to.iid);
            assert_eq!(report.replies.len(), expected, "{} to {own}", from.iid);
        }
    }
    traffic_of_one_moves_no_counter_of_another(&network);
    network.stop_all().unwrap();
    for endpoint in &network.endpoints {
        assert_eq!(endpoint.node.leftovers().unwrap(), Vec::<String>::new());
        for tenant in &endpoint.tenants {
            assert_eq!(tenant.leftovers().unwrap(), Vec::<String>::new());
        }
    }
}

#[test]
fn what_is_excluded_stays_outside() {
    let options = NetworkOptions {
        agent_toml: "exclude = [\"10.9.0.0/16\"]".into(),
        ..NetworkOptions::default()
    };
    let network = Network::start(&options).unwrap();
    let [alpha, beta] = network.endpoints.as_slice() else {
        unreachable!("two endpoints");
    };
    let outside = way(alpha.namespace(), "10.9.1.1");
    assert!(outside.is_err(), "no route leads there: {outside:?}");
    for inside in ["10.8.255.255", "10.10.0.0"] {
        assert!(way(alpha.namespace(), inside).is_ok(), "{inside}");
    }
    let report = Ping::once(beta.eids[0]).run(alpha.namespace()).unwrap();
    assert_eq!(report.replies.len(), 1);
}

/// The source address of packets to `destination`, or why there is no way.
fn way(from: &Namespace, destination: &str) -> io::Result<IpAddr> {
    let destination: IpAddr = destination.parse().unwrap();
    let connected = from.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((destination, PORT))?;
        socket.local_addr()
    });
    Ok(connected.unwrap()?.ip())
}

fn quick(destination: IpAddr) -> Ping {
    Ping {
        timeout: Duration::from_secs(2),
        ..Ping::once(destination)
    }
}

fn keys_differ(network: &Network) {
    let mut keys = BTreeSet::new();
    for endpoint in &network.endpoints {
        keys.insert(endpoint.control_key.clone());
        keys.insert(endpoint.data_key.clone());
        keys.extend(
            endpoint
                .tenants
                .iter()
                .map(|tenant| tenant.data_key.clone()),
        );
    }
    assert_eq!(keys.len(), network.endpoints.len() * (2 + TENANTS as usize));
}

/// Answers every datagram to the tenant's addresses with its instance-id, until the test ends.
fn answer(tenant: &Tenant) -> Vec<thread::JoinHandle<()>> {
    let serve = |eid: &IpAddr| {
        let at = SocketAddr::new(*eid, PORT);
        let socket = tenant
            .namespace
            .run(|| UdpSocket::bind(at))
            .unwrap()
            .unwrap();
        let iid = tenant.iid.to_be_bytes();
        thread::spawn(move || {
            let mut question = [0; 16];
            while let Ok((_, from)) = socket.recv_from(&mut question) {
                drop(socket.send_to(&iid, from));
            }
        })
    };
    tenant.eids[..2].iter().map(serve).collect()
}

/// Who answers `tenant` at each of `eids`, from the address that all tenants here have.
fn everybody_there(tenant: &Tenant, eids: [IpAddr; 2]) -> Vec<u32> {
    let asked = eids.iter().zip(tenant.eids).map(|(eid, own)| {
        let at = SocketAddr::new(own, 0);
        let socket = tenant
            .namespace
            .run(|| UdpSocket::bind(at))
            .unwrap()
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        socket.send_to(b"who is there", (*eid, PORT)).unwrap();
        let mut answer = [0; 4];
        let (_, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!(from.ip(), *eid);
        u32::from_be_bytes(answer)
    });
    asked.collect()
}

fn traffic_of_one_moves_no_counter_of_another(network: &Network) {
    let [alpha, beta] = network.endpoints.as_slice() else {
        unreachable!("two endpoints");
    };
    let received = || -> Vec<u64> {
        let tenants = beta.tenants.iter();
        let counters = tenants.map(|tenant| {
            let data = format!("lisp{}", tenant.iid);
            tenant.namespace.counters(&data).unwrap().received_bytes
        });
        counters.collect()
    };
    let before = received();
    let ping = Ping {
        count: 20,
        interval: Duration::from_millis(5),
        ..quick(beta.eids[0])
    };
    let report = ping.run(&alpha.tenants[1].namespace).unwrap();
    assert_eq!(report.replies.len(), 20);
    let after = received();
    let moved: Vec<_> = before
        .iter()
        .zip(&after)
        .map(|(old, new)| new - old)
        .collect();
    // The kernel counts WireGuard's own keepalives, 32 bytes each, which may come at any time.
    let others = moved[0].max(moved[2]);
    assert!(moved[1] >= 20 * ECHO && others < ECHO, "{moved:?}");
}
