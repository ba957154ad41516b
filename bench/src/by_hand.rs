//! A tunnel that somebody configured by hand: what there is without any control plane.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use command_line::say;
use testbed::{Host, LinkParams, Testbed, Topology, Underlay};
use wg_device::PrivateKey;

use crate::{own_program, plane_name};

/// UDP port of both ends.
const WIREGUARD_PORT: u16 = 51_821;

/// Two hosts with a tunnel that somebody typed in.
pub(crate) struct ByHand {
    pub(crate) ends: [End; 2],
    topology: Topology,
    _testbed: Testbed,
}

/// One of them.
pub(crate) struct End {
    pub(crate) host: Host,
    /// Its address in the tunnel.
    pub(crate) inner: IpAddr,
    process: Child,
}

impl ByHand {
    /// Makes hosts, tunnel and routes.
    pub(crate) fn start(plane: testbed::DataPlane, links: LinkParams) -> Result<Self> {
        let testbed = Testbed::new(2)?;
        let mut topology = Topology::new(&testbed, Underlay::default())?;
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
            topology,
            _testbed: testbed,
        })
    }

    /// Gives one end, counted from 0, another address on the underlay.
    pub(crate) fn move_end(&mut self, index: usize, to: IpAddr) -> Result<()> {
        let end = self.ends.get_mut(index).context("no such end")?;
        Ok(self.topology.move_host(&mut end.host, to)?)
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
