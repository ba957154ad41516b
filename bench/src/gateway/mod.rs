//! `bench gateway`: one agent with as many peers as a busy gateway has.

mod report;
mod sender;
mod storm;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use command_line::say;
use testbed::{
    Crowd, Distribution, Endpoint, LinkParams, Network, NetworkOptions, Ping, monotonic_ns, sleep,
};

use crate::plan::Plan;
use crate::slow::{self, Slowest};
use crate::usage::Usage;
use crate::{guest, plane_name};
use report::{FILE, Plane, Report, Size};
use sender::{BURST, Sender};

/// Delay of each link, one way; a path crosses two.
const DELAY: Duration = Duration::from_millis(5);
/// First packets that need longer are slow.
const SLOW: Duration = Duration::from_secs(1);
/// Peers that are met between two looks for slow ones, of which the agent remembers more.
const STEP: u32 = 100;
/// Peers that are met between two lines about that.
const SAID: u32 = 1_000;
/// Peers that are added when the cost of one is measured.
const ADDED: u32 = 100;
/// How long replies are waited for after the last packet.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the agent is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(5);
/// Members may need so long to register, and each so much longer.
const REGISTER: Duration = Duration::from_secs(60);
const REGISTER_EACH: Duration = Duration::from_millis(50);
/// Sockets of the second scan.
const MANY_SOCKETS: usize = 512;
/// First packets during a scan.
const DURING_SCANS: u32 = 64;
/// A guest is given so long, plus so long per peer.
const GUEST: Duration = Duration::from_secs(1_800);
const GUEST_EACH: Duration = Duration::from_millis(500);
/// Memory of a guest, MiB.
const GUEST_MEMORY: u32 = 6_144;

/// Measures one agent with as many peers as a busy gateway has.
///
/// It meets all of them, so many new ones in a second; memory and the cost of one more are read
/// at each size. Then a /16 of the overlay in which nobody is gets 50,000 packets a second.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Fewer peers and a shorter scan: shows that everything works, and is good for no figures
    #[arg(long)]
    quick: bool,
    /// Numbers of peers, growing [default: 100,10000,20000, with --quick 20,100]
    #[arg(long, value_name = "N", value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..=90_000))]
    peers: Vec<u32>,
    /// Peers that are met for the first time in a second
    #[arg(long, value_name = "N", default_value_t = 90,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pace: u32,
    /// Seconds that each scan lasts [default: 10, with --quick 2]
    #[arg(long, value_name = "SECONDS")]
    storm_s: Option<u64>,
    #[command(flatten)]
    plan: Plan,
}

impl Args {
    fn sizes(&self) -> Vec<u32> {
        match (self.peers.as_slice(), self.quick) {
            ([], true) => vec![20, 100],
            ([], false) => vec![100, 10_000, 20_000],
            (sizes, _) => sizes.to_vec(),
        }
    }

    fn storm(&self) -> Duration {
        let default = if self.quick { 2 } else { 10 };
        Duration::from_secs(self.storm_s.unwrap_or(default))
    }
}

/// Runs `bench gateway`.
///
/// # Errors
///
/// When a network cannot be built.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let sizes = args.sizes();
    ensure!(sizes.is_sorted(), "--peers must grow");
    let planes = args.plan.measure(
        |plane| Ok(vec![measure(plane, args)?]),
        |out| Ok(in_guest(args, out)?.into_iter().collect()),
    )?;
    args.plan.finish(&Report::of(planes), FILE)
}

fn in_guest(args: &Args, out: &Path) -> Result<Option<Plane>> {
    let sizes = args.sizes();
    let peers: Vec<_> = sizes.iter().map(u32::to_string).collect();
    let (peers, pace) = (peers.join(","), args.pace.to_string());
    let storm = args.storm().as_secs().to_string();
    let arguments = [
        "gateway",
        "--data-plane",
        "kernel",
        "--peers",
        &peers,
        "--pace",
        &pace,
        "--storm-s",
        &storm,
    ];
    let patience = GUEST + GUEST_EACH * sizes.last().copied().unwrap_or_default();
    let report: Option<Report> =
        guest::run_with_memory(&arguments, out, FILE, patience, GUEST_MEMORY)?;
    Ok(report.and_then(|mut report| report.planes.pop()))
}

/// An agent that meets one member of the crowd after the other.
struct Meeting<'a> {
    plane: &'static str,
    gateway: &'a Endpoint,
    crowd: &'a Crowd,
    sender: &'a Sender,
    pace: u32,
    met: u32,
    /// What arrived at each member, in order of arrival.
    arrived: BTreeMap<u32, Vec<u32>>,
    /// How far the first packet to a member had come, when it had taken long.
    ways: BTreeMap<u32, String>,
}

/// Measures one data plane on this kernel.
fn measure(plane: testbed::DataPlane, args: &Args) -> Result<Plane> {
    let sizes = args.sizes();
    let most = sizes.last().copied().unwrap_or_default();
    let during_scans = 2 * DURING_SCANS;
    let mut network = Network::start(&NetworkOptions {
        endpoints: 1,
        crowd: most + during_scans,
        links: LinkParams::delayed(DELAY),
        data_plane: plane,
        ..NetworkOptions::default()
    })?;
    let name = plane_name(plane);
    say(&format!(
        "{name}: {} far ends register",
        most + during_scans
    ));
    let crowd = network.crowd.as_mut().context("there is a crowd")?;
    crowd.register(most + during_scans, REGISTER + REGISTER_EACH * most)?;
    let [gateway] = network.endpoints.as_slice() else {
        anyhow::bail!("there is one endpoint");
    };
    let crowd = network.crowd.as_ref().context("there is a crowd")?;
    let server = network.server.host.addresses().first();
    let ping = Ping::once(*server.context("the server has an address")?);
    let round_trip = ping.run(gateway.namespace())?.shortest();
    let sender = Sender::start(gateway)?;
    let mut meeting = Meeting {
        plane: name,
        gateway,
        crowd,
        sender: &sender,
        pace: args.pace,
        met: 0,
        arrived: BTreeMap::new(),
        ways: BTreeMap::new(),
    };
    let sizes: Result<Vec<_>> = sizes.iter().map(|size| meeting.grow(*size)).collect();
    let sizes = sizes?;
    let (times, lost) = meeting.times();
    let not_in_order = meeting.not_in_order();
    let slowest = meeting.slowest();
    let mut storms = Vec::new();
    let mut strangers = most..;
    for sockets in [1, MANY_SOCKETS] {
        say(&format!("{name}: a scan from {sockets} sockets"));
        let members = strangers.by_ref().take(DURING_SCANS as usize);
        storms.push(storm::scan(
            gateway,
            &sender,
            sockets,
            args.storm(),
            members,
        )?);
    }
    drop(sender);
    // What was measured stands, however the daemons end.
    if let Err(error) = network.stop_all() {
        say(&format!("{name}: {error}"));
    }
    Ok(Plane {
        name: name.into(),
        round_trip_ms: round_trip.unwrap_or_default().as_secs_f64() * 1e3,
        first_reply_ms: Distribution::of(times),
        lost_first_packets: lost,
        not_in_order,
        slowest,
        sizes,
        storms,
    })
}

impl Meeting<'_> {
    /// Meets members until there are `size` peers.
    fn grow(&mut self, size: u32) -> Result<Size> {
        let added = ADDED.min(size - self.met);
        self.meet(size - added)?;
        let daemon = self.gateway.node.daemon()?;
        let pid = daemon.pid().context("the agent does not run")?;
        let idle = |time| -> Result<f64> {
            let (before, start) = (Usage::of(pid)?, monotonic_ns());
            sleep(time);
            let took = Duration::from_nanos(monotonic_ns() - start);
            let used = Usage::of(pid)?.cpu - before.cpu;
            Ok(used.as_secs_f64() / took.as_secs_f64())
        };
        // What the data plane does for so many peers anyhow is not the cost of one more.
        let idle_cores = idle(IDLE)?;
        let (before, start) = (Usage::of(pid)?, monotonic_ns());
        let first = self.met;
        self.meet(size)?;
        let took = Duration::from_nanos(monotonic_ns() - start);
        let after = Usage::of(pid)?;
        let used = (after.cpu - before.cpu).as_secs_f64() - idle_cores * took.as_secs_f64();
        let replies = (first..size).filter_map(|member| self.sender.reply(Crowd::eid(member)));
        let replies = replies.map(|reply| reply.as_secs_f64() * 1e3).collect();
        Ok(Size {
            peers: size,
            added: added as usize,
            first_reply_ms: Distribution::of(replies).p50,
            cpu_ms_each: used * 1e3 / f64::from(added),
            resident_mib: after.mib(),
            idle_cores,
        })
    }

    fn meet(&mut self, size: u32) -> Result<()> {
        let mut last = self.met;
        while self.met < size {
            let (until, before) = (size.min(self.met + STEP), self.met);
            let members = before..until;
            self.sender.bursts(members.map(Crowd::eid), self.pace);
            self.met = until;
            if until.is_multiple_of(SAID) || until == size {
                say(&format!("{}: {until} peers met", self.plane));
            }
            self.look_for_slow_ones(last..before)?;
            last = before;
        }
        self.sender.wait_for(self.met as usize, PATIENCE);
        self.look_for_slow_ones(last..size)?;
        for arrival in self.crowd.arrivals() {
            let numbers = self.arrived.entry(arrival.member).or_default();
            numbers.push(arrival.number);
        }
        Ok(())
    }

    /// Asks the agent about first packets to `members` that took long, while it remembers.
    fn look_for_slow_ones(&mut self, members: Range<u32>) -> Result<()> {
        for member in members {
            let eid = Crowd::eid(member);
            let reply = self.sender.reply(eid);
            if reply.is_none_or(|reply| reply > SLOW) {
                let way = slow::way(self.gateway, eid.into())?;
                self.ways.insert(member, way);
            }
        }
        Ok(())
    }

    /// Those that took long, now that all replies are there.
    fn slowest(&self) -> Slowest {
        let mut slowest = Slowest::default();
        for (member, way) in &self.ways {
            let reply = self.sender.reply(Crowd::eid(*member));
            if reply.is_none_or(|reply| reply > SLOW) {
                let pair = format!("to member {member} of the crowd");
                slowest.add(pair, reply, Some(way.clone()));
            }
        }
        slowest
    }

    /// All times to first replies, in ms, and how many there were none of.
    fn times(&self) -> (Vec<f64>, usize) {
        let replies = (0..self.met).map(|member| self.sender.reply(Crowd::eid(member)));
        let replies: Vec<_> = replies.collect();
        let lost = replies.iter().filter(|reply| reply.is_none()).count();
        let times = replies.iter().flatten();
        (times.map(|time| time.as_secs_f64() * 1e3).collect(), lost)
    }

    /// Members at which packets were missing, came twice, or in another order.
    fn not_in_order(&self) -> usize {
        let members = 0..self.met;
        let whole: Vec<_> = (0..BURST).collect();
        let broken = members.filter(|member| self.arrived.get(member) != Some(&whole));
        broken.count()
    }
}
