//! A tunnel that somebody configured by hand: what there is without any control plane.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use command_line::say;
use ipnet::IpNet;
use lisp_proto::PublicKey;
use testbed::{Host, LinkParams, Namespace, Testbed, Topology, Underlay};
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
    _process: Bare,
}

/// What one end of a tunnel is told.
pub(crate) struct BareEnd {
    /// Name of the interface.
    pub(crate) name: String,
    /// File with the private key.
    pub(crate) key: PathBuf,
    /// UDP port.
    pub(crate) port: u16,
    /// Address of the interface; its prefix is routed into it.
    pub(crate) address: IpNet,
    /// Key of the other end.
    pub(crate) peer: PublicKey,
    /// Where the other end is.
    pub(crate) endpoint: SocketAddr,
}

/// A process that has one end of a tunnel; both go when this is dropped.
pub(crate) struct Bare(Child);

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
        let [left_key, right_key] = paths;
        let start = |here: &Host, there: &Host, key, peer: &PrivateKey, inner| {
            let address = there.addresses().first();
            let end = BareEnd {
                name: "wg0".into(),
                key,
                port: WIREGUARD_PORT,
                address: IpNet::new(inner, 24)?,
                peer: peer.public(),
                endpoint: SocketAddr::new(*address.context("no address")?, WIREGUARD_PORT),
            };
            Bare::start(plane, &here.namespace, &end)
        };
        let processes = [
            start(left, right, left_key, &keys[1], inner[0])?,
            start(right, left, right_key, &keys[0], inner[1])?,
        ];
        let [left, right] = hosts;
        let [one, other] = processes;
        Ok(Self {
            ends: [
                End {
                    host: left,
                    inner: inner[0],
                    _process: one,
                },
                End {
                    host: right,
                    inner: inner[1],
                    _process: other,
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

impl Bare {
    /// Starts it in a namespace; the interface is up when this returns.
    pub(crate) fn start(
        plane: testbed::DataPlane,
        namespace: &Namespace,
        end: &BareEnd,
    ) -> Result<Self> {
        let mut command = Command::new(own_program()?);
        command
            .args(["bare", "--name", &end.name])
            .args(["--data-plane", plane_name(plane)])
            .args(["--port", &end.port.to_string()])
            .args(["--address", &end.address.to_string()])
            .args(["--peer", &end.peer.to_string()])
            .args(["--endpoint", &end.endpoint.to_string()])
            .arg("--key")
            .arg(&end.key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Self(namespace.spawn(command)?);
        let output = process.0.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "{} did not get ready", end.name);
        Ok(process)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Its standard input ends: it removes its interface and exits.
        drop(self.0.stdin.take());
        if self.0.wait().is_err() {
            say("a process of the tunnel configured by hand could not be waited for");
        }
    }
}
