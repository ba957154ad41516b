//! Two proxies, a client with a daemon, many without, and the host behind the proxies.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::process::Output;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use serde::Deserialize;
use testbed::{
    Binaries, CrowdStream, LinkParams, NetworkOptions, TcpProbe, TcpReport, TwoProxies, UdpProbe,
    UdpReport, sleep,
};

use super::baseline::{self, Baseline};

/// Delay of each link, one way; a path crosses two.
pub(super) const DELAY: Duration = Duration::from_millis(5);
/// How long one client sends in each run, and how long many do.
const ONE: Duration = Duration::from_secs(2);
const MANY: Duration = Duration::from_secs(4);
/// Packets have flowed for so long when clients move.
const BEFORE: Duration = Duration::from_millis(500);
/// How long packets are waited for after the last one.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client may take to say that it has moved.
const MOVED: Duration = Duration::from_secs(30);
/// Time in which clients without a daemon register.
const REGISTERING: Duration = Duration::from_secs(120);
/// Packets that open a tunnel: links may lose some.
const FIRST: u32 = 4;
/// How often they are sent at most, until all have one.
const FIRST_ROUNDS: u32 = 10;
const UDP_PORT: u16 = 9_000;
const TCP_PORT: u16 = 9_001;

/// Everything that moves.
pub(super) struct Scene {
    pub(super) proxies: TwoProxies,
    clients: u32,
    /// From one packet to the next, of all clients that send.
    pace: Duration,
}

/// What became of a client that was told to move.
pub(super) struct One {
    /// The packets that it sent.
    pub(super) sent: UdpReport,
    /// Its connection.
    pub(super) tcp: TcpReport,
    /// Why it has not moved, if it has not.
    pub(super) failed: Option<String>,
}

/// What became of many clients.
pub(super) struct Many {
    /// The packets of each while nobody moves.
    pub(super) still: Vec<UdpReport>,
    /// The packets of each while all move.
    pub(super) moved: Vec<UdpReport>,
    /// From being told to having moved, of each, in milliseconds.
    pub(super) moves_ms: Vec<f64>,
    /// The longest gap in what came to each, as it has told the map server, in milliseconds.
    pub(super) told_ms: Vec<f64>,
}

/// What the map server reports.
#[derive(Deserialize)]
struct Migrations {
    clients: Vec<Migration>,
}

#[derive(Deserialize)]
struct Migration {
    client: String,
    state: String,
    move_ms: Option<f64>,
    gap_ms: Option<f64>,
    why: Option<String>,
}

impl Migrations {
    /// The first client that has not moved, and why.
    fn failed(&self) -> Option<String> {
        let mut all = self.clients.iter();
        let it = all.find(|it| it.state != "confirmed")?;
        let why = it.why.as_deref().unwrap_or_default();
        Some(format!("{} is {}: {why}", it.client, it.state))
    }
}

impl Scene {
    /// Starts all daemons; the client uses one of the proxies when this returns.
    pub(super) fn start(
        plane: testbed::DataPlane,
        clients: u32,
        pace: Duration,
        links: LinkParams,
    ) -> Result<Self> {
        let options = NetworkOptions {
            endpoints: TwoProxies::PROXIES + 1,
            links,
            data_plane: plane,
            crowd: clients,
            ..NetworkOptions::default()
        };
        let binaries = Binaries::up_to_date(|_| ())?;
        let mut proxies = TwoProxies::prepare(&options, binaries, "")?;
        proxies.network.start_all()?;
        let crowd = proxies.network.crowd.as_mut().context("no crowd")?;
        crowd.register(clients, REGISTERING)?;
        let scene = Self {
            proxies,
            clients,
            pace,
        };
        let first = scene.stream(FIRST)?;
        ensure!(first.received > 0, "no tunnel before the first move");
        Ok(scene)
    }

    pub(super) fn round_trip(&self) -> Result<Duration> {
        Ok(self.proxies.network.round_trip()?)
    }

    pub(super) fn stop(&mut self) -> Result<()> {
        Ok(self.proxies.network.stop_all()?)
    }

    /// The client sends, and nothing happens.
    pub(super) fn stay(&self) -> Result<UdpReport> {
        self.stream(packets(ONE, self.pace))
    }

    /// Packets of the client to the host behind the proxies.
    fn stream(&self, count: u32) -> Result<UdpReport> {
        let client = self.proxies.client()?;
        self.stream_to(client.eids[0], TwoProxies::INSIDE.into(), count)
    }

    fn stream_to(&self, from: IpAddr, to: IpAddr, count: u32) -> Result<UdpReport> {
        let client = self.proxies.client()?;
        let probe = UdpProbe {
            source: Some(from),
            count,
            interval: self.pace,
            timeout: PATIENCE,
            ..UdpProbe::thousand_to(SocketAddr::new(to, UDP_PORT))
        };
        Ok(probe.run(client.namespace(), &self.proxies.inside)?)
    }

    /// The client sends through a tunnel that is taken down and set up anew to the other proxy.
    pub(super) fn under(&self, baseline: &mut Baseline) -> Result<UdpReport> {
        let count = packets(baseline.time(), self.pace);
        thread::scope(|scope| {
            let [from, to] = baseline::ADDRESSES;
            let flowing = scope.spawn(move || self.stream_to(from.into(), to.into(), count));
            sleep(BEFORE);
            let switched = baseline.switch();
            let report = joined(flowing)?;
            switched?;
            Ok(report)
        })
    }

    /// The client moves to the other proxy; what comes back to it moves when it has.
    pub(super) fn move_one(&self) -> Result<One> {
        let client = self.proxies.client()?;
        let IpAddr::V4(eid) = client.eids[0] else {
            bail!("the client has no IPv4 address");
        };
        let [from, to] = self.proxies.used_by(client)?;
        self.proxies.return_through(eid.into(), from)?;
        let tcp = TcpProbe {
            destination: SocketAddr::new(TwoProxies::INSIDE.into(), TCP_PORT),
            source: Some(client.eids[0]),
            count: 1_000,
            piece: 1_000,
            interval: Duration::from_millis(2),
            timeout: Duration::from_secs(10),
        };
        thread::scope(|scope| {
            let flowing = scope.spawn(|| self.stay());
            let inside = &self.proxies.inside;
            let connected = scope.spawn(|| Ok(tcp.run(client.namespace(), inside)?));
            sleep(BEFORE);
            let log = &self.proxies.network.log;
            let position = log.position();
            let clients = ["--clients", client.name()];
            let moving = scope.spawn(move || self.migrate([from, to], &clients));
            let server = self.proxies.network.server.daemon()?;
            let has_moved = |event: &testbed::LogEvent| event.text("state") == "switched";
            let moved = server.wait_since(position, "migration", MOVED, has_moved);
            let led = self.proxies.return_through(eid.into(), to);
            let report = joined(moving)?;
            let (sent, tcp) = (joined(flowing)?, joined(connected)?);
            let failed = migrations(&report)?.failed();
            if failed.is_none() {
                moved?;
                led?;
            }
            Ok(One { sent, tcp, failed })
        })
    }

    /// All clients move from one proxy to the other.
    pub(super) fn move_many(&self) -> Result<Many> {
        let crowd = self.proxies.network.crowd.as_ref().context("no crowd")?;
        let interval = self.pace * self.clients;
        let stream = |count| CrowdStream {
            members: self.clients,
            destination: SocketAddrV4::new(TwoProxies::INSIDE, UDP_PORT),
            count,
            interval,
            timeout: PATIENCE,
        };
        let inside = &self.proxies.inside;
        let mut without = usize::MAX;
        for _ in 0..FIRST_ROUNDS {
            // On a slow machine so many handshakes take longer than a round.
            let first = crowd.stream(stream(FIRST), inside)?;
            without = first.iter().filter(|report| report.received == 0).count();
            if without == 0 {
                break;
            }
        }
        ensure!(without == 0, "{without} clients have no tunnel");
        // Each is on one of the two: all of them shall be on the first.
        all_confirmed(&self.migrate([1, 0], &["--all"])?)?;
        let count = packets(MANY, interval).max(1);
        let still = crowd.stream(stream(count), inside)?;
        thread::scope(|scope| {
            let flowing = scope.spawn(|| Ok(crowd.stream(stream(count), inside)?));
            sleep(BEFORE);
            let report = self.migrate([0, 1], &["--all"]);
            let moved = joined(flowing)?;
            let report = all_confirmed(&report?)?;
            let clients = report.clients.iter();
            let moves_ms = clients.clone().filter_map(|it| it.move_ms).collect();
            let told_ms = clients.filter_map(|it| it.gap_ms).collect();
            Ok(Many {
                still,
                moved,
                moves_ms,
                told_ms,
            })
        })
    }

    fn migrate(&self, [from, to]: [usize; 2], clients: &[&str]) -> Result<Output> {
        let name = |number: usize| {
            let endpoint = self.proxies.network.endpoints.get(number);
            endpoint.map_or("", testbed::Endpoint::name)
        };
        let mut arguments = vec!["migrate", "--from", name(from), "--to", name(to), "--json"];
        arguments.extend(clients);
        Ok(self.proxies.network.server.ask(&arguments)?)
    }
}

/// How many packets are sent in so much time.
fn packets(time: Duration, pace: Duration) -> u32 {
    u32::try_from(time.as_nanos() / pace.as_nanos().max(1)).unwrap_or(u32::MAX)
}

/// What a migration reports.
fn migrations(output: &Output) -> Result<Migrations> {
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).with_context(|| format!("{text}{complaint}"))
}

/// What a migration reports, when nobody has failed.
fn all_confirmed(output: &Output) -> Result<Migrations> {
    let report = migrations(output)?;
    match report.failed() {
        Some(failed) => bail!(failed),
        None => Ok(report),
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(done) => done,
        Err(_) => bail!("a thread panicked"),
    }
}

/// The network of a single address.
pub(super) fn host(address: std::net::Ipv4Addr) -> Ipv4Net {
    Ipv4Net::from(address)
}
