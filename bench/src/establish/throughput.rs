//! What a tunnel carries once it is up, against one configured by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::{
    Host, LinkParams, Namespace, Network, NetworkOptions, Testbed, Topology, Underlay, monotonic_ns,
};
use wg_device::PrivateKey;

use super::report::Throughput;
use super::{Effort, own_program, plane_name, say};

const PORT: u16 = 5_201;
/// UDP port of both ends configured by hand.
const WIREGUARD_PORT: u16 = 51_821;
/// A write to the stream.
const CHUNK: usize = 128 << 10;
/// What a stream may do before it is measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// Measures both in turns.
pub(super) fn measure(plane: testbed::DataPlane, effort: Effort) -> Result<Throughput> {
    let mut network = Network::start(&NetworkOptions {
        data_plane: plane,
        ..NetworkOptions::default()
    })?;
    let bare = Bare::start(plane)?;
    let mut measured = Throughput::default();
    let time = Duration::from_secs(effort.seconds.into());
    for round in 1..=effort.rounds {
        let [ours, by_hand] = [
            {
                let [alpha, beta] = network.endpoints.as_slice() else {
                    anyhow::bail!("a pair needs two endpoints");
                };
                stream(alpha.namespace(), beta.namespace(), beta.eids[0], time)?
            },
            bare.stream(time)?,
        ];
        say(&format!(
            "{}: round {round} of {}: {ours:.0} Mbit/s, by hand {by_hand:.0} Mbit/s",
            plane_name(plane),
            effort.rounds
        ));
        measured.lispwire_mbit_s.push(ours);
        measured.bare_mbit_s.push(by_hand);
    }
    network.stop_all()?;
    Ok(measured)
}

/// Sends one TCP stream for `time` and returns what arrived, in Mbit/s.
fn stream(from: &Namespace, to: &Namespace, address: IpAddr, time: Duration) -> Result<f64> {
    let target = SocketAddr::new(address, PORT);
    let listener = to.run(|| TcpListener::bind(target))?.context("listen")?;
    let mut sender = from
        .run(|| TcpStream::connect(target))?
        .context("connect")?;
    let (mut receiver, _) = listener.accept().context("accept")?;
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let chunk = vec![0x4c; CHUNK];
            // Ends when the receiver hangs up.
            while sender.write_all(&chunk).is_ok() {}
        });
        let mut buffer = vec![0; CHUNK];
        let mut take = |time: Duration| -> Result<f64> {
            let start = monotonic_ns();
            let passed = || Duration::from_nanos(monotonic_ns().saturating_sub(start));
            let mut bytes = 0;
            while passed() < time {
                let length = receiver.read(&mut buffer).context("receive")?;
                ensure!(length > 0, "the stream ended early");
                bytes += length;
            }
            Ok(bytes as f64 * 8e-6 / passed().as_secs_f64())
        };
        let rate = take(WARM_UP).and_then(|_| take(time));
        let hung_up = receiver.shutdown(Shutdown::Both);
        drop(receiver);
        let sent = sending.join();
        ensure!(hung_up.is_ok() && sent.is_ok(), "the stream did not end");
        rate
    })
}

/// Two hosts with a tunnel that somebody typed in.
struct Bare {
    ends: [End; 2],
    _topology: Topology,
    _testbed: Testbed,
}

/// One of them.
struct End {
    host: Host,
    inner: IpAddr,
    process: Child,
}

impl Bare {
    fn start(plane: testbed::DataPlane) -> Result<Self> {
        let testbed = Testbed::new(2)?;
        let mut topology = Topology::new(&testbed, Underlay::default())?;
        let links = LinkParams::default();
        let hosts = [
            topology.add_host("left", links)?,
            topology.add_host("right", links)?,
        ];
        let paths = ["left.key", "right.key"].map(|name| testbed.directory().join(name));
        let keys = [
            PrivateKey::load_or_create(&paths[0])?,
            PrivateKey::load_or_create(&paths[1])?,
        ];
        let inner: [IpAddr; 2] = [[10, 99, 0, 1].into(), [10, 99, 0, 2].into()];
        let [left, right] = &hosts;
        let processes = [
            start_end(plane, left, right, &paths[0], &keys[1], inner[0])?,
            start_end(plane, right, left, &paths[1], &keys[0], inner[1])?,
        ];
        let [left, right] = hosts;
        let [one, other] = processes;
        Ok(Self {
            ends: [
                End {
                    host: left,
                    inner: inner[0],
                    process: one,
                },
                End {
                    host: right,
                    inner: inner[1],
                    process: other,
                },
            ],
            _topology: topology,
            _testbed: testbed,
        })
    }

    fn stream(&self, time: Duration) -> Result<f64> {
        let [left, right] = &self.ends;
        stream(
            &left.host.namespace,
            &right.host.namespace,
            right.inner,
            time,
        )
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Its standard input ends: it removes its interface and exits.
        drop(self.process.stdin.take());
        if self.process.wait().is_err() {
            say("a process of the tunnel configured by hand could not be waited for");
        }
    }
}

fn start_end(
    plane: testbed::DataPlane,
    here: &Host,
    there: &Host,
    key: &Path,
    peer: &PrivateKey,
    inner: IpAddr,
) -> Result<Child> {
    let address = there
        .addresses()
        .first()
        .context("a host without address")?;
    let mut command = Command::new(own_program()?);
    command
        .args(["bare", "--name", "wg0", "--data-plane", plane_name(plane)])
        .args(["--port", &WIREGUARD_PORT.to_string()])
        .args(["--address", &format!("{inner}/24")])
        .args(["--peer", &peer.public().to_string()])
        .args([
            "--endpoint",
            &SocketAddr::new(*address, WIREGUARD_PORT).to_string(),
        ])
        .arg("--key")
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut process = here.namespace.spawn(command)?;
    let output = process.stdout.take().context("no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    ensure!(line.trim() == "ready", "{} did not get ready", here.role);
    Ok(process)
}
