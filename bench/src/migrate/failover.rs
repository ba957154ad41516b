//! A client whose proxy fails while it sends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use command_line::say;
use testbed::{
    Binaries, DataPlane, Distribution, Failure, LinkParams, NetworkOptions, TwoProxies, UdpProbe,
    UdpReport, sleep,
};

use crate::plane_name;

/// Time from one packet to the next.
const PACE: Duration = Duration::from_millis(1);
/// Packets have flowed for so long when a proxy fails, and first of all so that it is known who answers.
const BEFORE: Duration = Duration::from_secs(1);
const FIRST: Duration = Duration::from_secs(4);
/// How long a stream lasts.
const STREAM: Duration = Duration::from_secs(3);
/// How long packets are waited for after the last one.
const PATIENCE: Duration = Duration::from_secs(1);
/// After so long a client takes a proxy again that has failed.
const AGAIN: Duration = Duration::from_secs(10);
const PORT: u16 = 9_002;

/// The longest times without an arrival, in milliseconds, by the kind of failure.
#[derive(Clone, Debug, Default)]
pub(super) struct Failovers(BTreeMap<&'static str, Vec<f64>>);

impl Failovers {
    /// Adds what a failure has cost, in milliseconds.
    pub(super) fn push(&mut self, failure: Failure, gap_ms: f64) {
        self.0.entry(name(failure)).or_default().push(gap_ms);
    }

    /// What they cost in all.
    pub(super) fn distributions(self) -> BTreeMap<String, Distribution> {
        let each = self.0.into_iter();
        each.map(|(kind, gaps)| (kind.to_owned(), Distribution::of(gaps)))
            .collect()
    }
}

/// How a failure is called in the report.
pub(super) const fn name(failure: Failure) -> &'static str {
    match failure {
        Failure::Killed => "killed",
        Failure::LinkCut => "link_cut",
        Failure::NotForwarding => "not_forwarding",
    }
}

/// Lets proxies fail in each way, so many times.
pub(super) fn measure(plane: DataPlane, runs: u32, links: LinkParams) -> Result<Failovers> {
    let options = NetworkOptions {
        endpoints: TwoProxies::PROXIES + 1,
        links,
        data_plane: plane,
        ..NetworkOptions::default()
    };
    let binaries = Binaries::up_to_date(|_| ())?;
    let mut proxies = TwoProxies::prepare(&options, binaries, "nat = \"masquerade\"")?;
    proxies.network.start_all()?;
    let first = Sender::of(&proxies)?.send(FIRST)?;
    ensure!(first.received > 0, "no tunnel before the first failure");
    let mut gaps = Failovers::default();
    for number in 1..=runs {
        for failure in Failure::ALL {
            let gap = fail(&mut proxies, failure)?;
            gaps.push(failure, gap);
            sleep(AGAIN);
        }
        let plane = plane_name(plane);
        say(&format!(
            "{plane}: {number} of {runs} failures of each kind"
        ));
    }
    proxies.network.stop_all()?;
    Ok(gaps)
}

/// Lets the proxy in use fail, and heals it when the client has left it.
fn fail(proxies: &mut TwoProxies, failure: Failure) -> Result<f64> {
    let [from, to] = proxies.used_by(proxies.client()?)?;
    let sender = Sender::of(proxies)?;
    let report = thread::scope(|scope| {
        let flowing = scope.spawn(move || sender.send(STREAM));
        sleep(BEFORE);
        let failed = proxies.fail(from, failure);
        let Ok(report) = flowing.join() else {
            bail!("a thread that sends packets panicked");
        };
        failed?;
        report
    })?;
    let used = proxies.used_by(proxies.client()?)?;
    ensure!(
        used == [to, from],
        "{}: the client has stayed",
        name(failure)
    );
    proxies.heal(from, failure)?;
    Ok(report.longest_gap(PACE).as_secs_f64() * 1e3)
}

/// Sends from the client to the host behind the proxies.
struct Sender {
    from: testbed::Namespace,
    to: testbed::Namespace,
    source: std::net::IpAddr,
}

impl Sender {
    fn of(proxies: &TwoProxies) -> Result<Self> {
        let client = proxies.client()?;
        Ok(Self {
            from: client.namespace().clone(),
            to: proxies.inside.clone(),
            source: client.eids[0],
        })
    }

    fn send(&self, time: Duration) -> Result<UdpReport> {
        let probe = UdpProbe {
            source: Some(self.source),
            count: u32::try_from(time.as_nanos() / PACE.as_nanos())?,
            interval: PACE,
            timeout: PATIENCE,
            ..UdpProbe::thousand_to(SocketAddr::new(TwoProxies::INSIDE.into(), PORT))
        };
        Ok(probe.run(&self.from, &self.to)?)
    }
}
