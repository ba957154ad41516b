//! Proxies that translate addresses: what becomes of the connections of clients that move from one to
//! the other.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod by_hand;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Output;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use testbed::{Binaries, DataPlane, Endpoint, LinkParams, NetworkOptions, Ping, TwoProxies};

use by_hand::{edit, ip};

/// The address that the world sees.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// Another one, that only one proxy has.
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// Where all clients connect from.
const SOURCE_PORT: u16 = 40_000;
/// Long enough for TCP to try again after an address has moved.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn connections_live_on_where_both_proxies_have_one_address() {
    let scene = scene(|_, text| text);
    let clients = &scene.network.endpoints[TwoProxies::PROXIES..];
    let [from, to] = gather(&scene);
    lead(&scene, PUBLIC, from, None);
    let mut listener = scene.inside.run(listen).unwrap();
    let mut talks: Vec<Talk> = clients
        .iter()
        .map(|client| Talk::begin(client, &mut listener))
        .collect();
    let ports: Vec<_> = talks.iter().map(|talk| talk.seen_as.port()).collect();
    assert!(
        talks
            .iter()
            .all(|talk| talk.seen_as.ip() == IpAddr::from(PUBLIC))
    );
    assert_ne!(
        ports[0], ports[1],
        "the proxy had to give one of them another port"
    );
    for talk in &mut talks {
        talk.exchange().unwrap();
    }
    let said = migrate_all(&scene, [from, to], || lead(&scene, PUBLIC, to, Some(from)));
    // The far end begins: only who knows the connection can tell whose that is.
    for talk in &mut talks {
        talk.far_says().unwrap();
        talk.exchange().unwrap();
    }
    assert_eq!(connections(&said), [(1, 0), (1, 0)], "{said}");
    assert_eq!(left(&scene, from), [(1, 0), (1, 0)]);
    // Back again, where nothing of the first time is in the way.
    let said = migrate_all(&scene, [to, from], || lead(&scene, PUBLIC, from, Some(to)));
    for talk in &mut talks {
        talk.far_says().unwrap();
        talk.exchange().unwrap();
    }
    assert_eq!(connections(&said), [(1, 0), (1, 0)], "{said}");
}

#[test]
fn connections_end_where_each_proxy_has_its_own_address_and_the_report_says_so() {
    let scene = scene(|proxy, text| match proxy {
        0 => text,
        _ => text.replace(&PUBLIC.to_string(), &OTHER.to_string()),
    });
    let [from, to] = gather(&scene);
    for (proxy, address) in [PUBLIC, OTHER].into_iter().enumerate() {
        lead(&scene, address, proxy, None);
    }
    let mut listener = scene.inside.run(listen).unwrap();
    let clients = &scene.network.endpoints[TwoProxies::PROXIES..];
    let mut talk = Talk::begin(&clients[0], &mut listener);
    talk.exchange().unwrap();
    let said = migrate_all(&scene, [from, to], || ());
    let mut counts = connections(&said);
    counts.sort_unstable();
    assert_eq!(counts, [(0, 0), (0, 1)], "{said}");
    assert_eq!(left(&scene, from), counts);
    talk.near.write_all(b"question").unwrap();
    let error = talk.near.read(&mut [0; 9]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let mut next = Talk::begin(&clients[1], &mut listener);
    next.exchange().unwrap();
    assert_eq!(next.seen_as.ip(), IpAddr::from([PUBLIC, OTHER][to]));
}

/// Two proxies and two clients that run; `change` changes the configuration of a proxy.
fn scene(change: impl Fn(usize, String) -> String) -> TwoProxies {
    let options = NetworkOptions {
        endpoints: TwoProxies::PROXIES + 2,
        links: LinkParams::delayed(Duration::from_millis(2)),
        data_plane: DataPlane::Embedded,
        ..NetworkOptions::default()
    };
    let binaries = Binaries::up_to_date(|_| ()).unwrap();
    let nat = format!("nat = {{ address = \"{PUBLIC}\" }}\nuplink = \"uplink\"");
    let mut scene = TwoProxies::prepare(&options, binaries, &nat).unwrap();
    for number in 0..TwoProxies::PROXIES {
        let config = &scene.network.endpoints[number].node.config;
        edit(config, |text| change(number, text));
    }
    scene.network.start_all().unwrap();
    scene
}

/// Brings all clients to one proxy; returns the number of it and of the other one.
fn gather(scene: &TwoProxies) -> [usize; 2] {
    let clients = &scene.network.endpoints[TwoProxies::PROXIES..];
    for client in clients {
        // Whether an answer comes back does not matter: the way out makes it a client of one of them.
        let ping = Ping {
            timeout: Duration::from_secs(2),
            ..Ping::once(TwoProxies::INSIDE.into())
        };
        ping.run(client.namespace()).unwrap();
    }
    let used = clients.iter().map(|client| scene.used_by(client).unwrap());
    let used: Vec<[usize; 2]> = used.collect();
    if used[0] != used[1] {
        migrate_all(scene, used[1], || ());
    }
    used[0]
}

/// Has the world reach `address` at a proxy, and no more at another one.
fn lead(scene: &TwoProxies, address: Ipv4Addr, proxy: usize, before: Option<usize>) {
    let net = format!("{address}/32");
    let at = |number: usize| scene.network.endpoints[number].namespace();
    ip(at(proxy), &["addr", "add", &net, "dev", "uplink"]);
    scene.return_through(address.into(), proxy).unwrap();
    if let Some(before) = before {
        ip(at(before), &["addr", "del", &net, "dev", "uplink"]);
    }
}

/// Moves all clients from one proxy to the other, and does `then` when one has moved; returns the report.
fn migrate_all(scene: &TwoProxies, ends: [usize; 2], then: impl FnOnce()) -> String {
    let [from, to] = ends.map(|number| scene.network.endpoints[number].name());
    let position = scene.network.log.position();
    thread::scope(|scope| {
        let arguments = ["migrate", "--from", from, "--to", to, "--all", "--json"];
        let moving = scope.spawn(move || scene.network.server.ask(&arguments).unwrap());
        let server = scene.network.server.daemon().unwrap();
        let has_moved = |event: &testbed::LogEvent| event.text("state") == "switched";
        server
            .wait_since(position, "migration", PATIENCE, has_moved)
            .unwrap();
        then();
        let Output {
            status,
            stdout,
            stderr,
        } = moving.join().unwrap();
        let said = String::from_utf8_lossy(&stdout).into_owned();
        assert!(
            status.success(),
            "{said}{}",
            String::from_utf8_lossy(&stderr)
        );
        said
    })
}

/// How many connections of each client have moved, and how many were reset.
fn connections(report: &str) -> Vec<(u64, u64)> {
    let report: serde_json::Value = serde_json::from_str(report).unwrap();
    let clients = report["clients"].as_array().unwrap().iter();
    let counts = clients.map(|client| {
        let count = |name: &str| client["connections"][name].as_u64().unwrap();
        (count("moved"), count("reset"))
    });
    counts.collect()
}

/// What a proxy says of the connections of the two clients that have left it last: how many the next one keeps,
/// and how many have ended.
fn left(scene: &TwoProxies, proxy: usize) -> Vec<(u64, u64)> {
    let node = &scene.network.endpoints[proxy].node;
    let answer = node.ask(&["status", "--json"]).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    let moves = &status["instances"][0]["connections"]["moves"];
    // Clients have IPv6 addresses as well, of which nothing is translated.
    let is_ipv4 = |it: &&serde_json::Value| it["client"].as_str().unwrap().contains('.');
    let latest = moves.as_array().unwrap().iter().filter(is_ipv4).take(2);
    let mut counts: Vec<_> = latest
        .map(|it| {
            assert_eq!(it["way"], "left", "{moves}");
            let count = |name: &str| it[name].as_u64().unwrap();
            (count("moved"), count("reset"))
        })
        .collect();
    counts.sort_unstable();
    let shown = node.ask(&["status"]).unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("connections: translated to"), "{shown}");
    counts
}

fn listen() -> TcpListener {
    TcpListener::bind((TwoProxies::INSIDE, 9_001)).unwrap()
}

/// Both ends of a connection.
struct Talk {
    near: TcpStream,
    far: TcpStream,
    /// What the far end takes the near one for.
    seen_as: SocketAddr,
}

impl Talk {
    fn begin(client: &Endpoint, listener: &mut TcpListener) -> Self {
        let eid = client.eids[0];
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let from = SocketAddr::new(eid, SOURCE_PORT);
            socket.bind(&from.into()).unwrap();
            let to = SocketAddr::new(TwoProxies::INSIDE.into(), 9_001);
            socket.connect_timeout(&to.into(), PATIENCE).unwrap();
            TcpStream::from(socket)
        };
        let near = client.namespace().run(connect).unwrap();
        let (far, seen_as) = listener.accept().unwrap();
        for end in [&near, &far] {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        Self { near, far, seen_as }
    }

    /// Something goes there, and something else comes back.
    fn exchange(&mut self) -> io::Result<()> {
        self.near.write_all(b"question")?;
        let mut heard = [0; 8];
        self.far.read_exact(&mut heard)?;
        assert_eq!(&heard, b"question");
        self.far_says()
    }

    fn far_says(&mut self) -> io::Result<()> {
        self.far.write_all(b"an answer")?;
        let mut heard = [0; 9];
        self.near.read_exact(&mut heard)?;
        assert_eq!(&heard, b"an answer");
        Ok(())
    }
}
