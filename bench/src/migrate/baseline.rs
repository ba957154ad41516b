//! What one does without a control plane: take the tunnel down, and set it up to the other proxy.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use testbed::{Namespace, TwoProxies};
use wg_device::PrivateKey;

use super::scene::{Scene, host};
use crate::by_hand::{Bare, BareEnd};

/// The client's address in its tunnel, and that of the host behind the proxies.
pub(super) const ADDRESSES: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 10)];
/// Addresses of the proxies in their tunnels.
const PROXIES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 2), Ipv4Addr::new(10, 99, 0, 3)];
const LENGTH: u8 = 24;
const PORT: u16 = 51_830;
const INTERFACE: &str = "wgq0";
/// Packets flow for so long: what starts a shell for every step takes its time in a guest.
const WITH_PROCESS: Duration = Duration::from_secs(4);
const WITH_SHELL: Duration = Duration::from_secs(12);

/// The client's tunnel, and both ends at the proxies.
pub(super) struct Baseline {
    way: Way,
    /// The proxy in use.
    used: usize,
    namespace: Namespace,
    _proxies: Vec<Bare>,
}

/// How the client's tunnel is taken down and set up.
enum Way {
    /// By the script of wireguard-tools, with a file for each proxy.
    Script([PathBuf; 2]),
    /// By ending the process that has it, and starting one for the other proxy.
    Process(Box<Process>),
}

struct Process {
    plane: testbed::DataPlane,
    ends: [BareEnd; 2],
    running: Option<Bare>,
}

impl Baseline {
    /// Sets up tunnels beside those of the agents; the client uses the first proxy.
    pub(super) fn start(plane: testbed::DataPlane, scene: &Scene) -> Result<Self> {
        let network = &scene.proxies.network;
        let directory = network.testbed().directory();
        let own = directory.join("baseline.key");
        let key = PrivateKey::load_or_create(&own)?.public();
        let client = scene.proxies.client()?;
        let [_, inside] = ADDRESSES;
        scene
            .proxies
            .inside
            .add_address("lo", IpNet::V4(host(inside)))?;
        let underlay = |endpoint: &testbed::Endpoint| {
            let address = endpoint.node.host.addresses().first().copied();
            let address = address.context("a host without address")?;
            Ok::<_, anyhow::Error>(SocketAddr::new(address, PORT))
        };
        let mut proxies = Vec::new();
        let mut ends = Vec::new();
        for (number, proxy) in network.endpoints.iter().take(PROXIES.len()).enumerate() {
            let path = directory.join(format!("baseline-{number}.key"));
            let peer = PrivateKey::load_or_create(&path)?.public();
            let end = BareEnd {
                name: INTERFACE.into(),
                key: path,
                port: PORT,
                address: net(*PROXIES.get(number).context("no such proxy")?)?,
                peer: key,
                endpoint: underlay(client)?,
            };
            proxies.push(Bare::start(plane, proxy.namespace(), &end)?);
            let way = TwoProxies::inside_of(number);
            proxy.namespace().set_route(host(inside), way)?;
            ends.push(BareEnd {
                name: INTERFACE.into(),
                key: own.clone(),
                port: PORT,
                address: net(ADDRESSES[0])?,
                peer,
                endpoint: underlay(proxy)?,
            });
        }
        let Ok(ends) = <[BareEnd; 2]>::try_from(ends) else {
            bail!("there are two proxies");
        };
        let way = match plane {
            testbed::DataPlane::Kernel if has_wg_quick() => Way::Script([
                configuration(directory, "first", &ends[0])?,
                configuration(directory, "second", &ends[1])?,
            ]),
            testbed::DataPlane::Kernel
            | testbed::DataPlane::Embedded
            | testbed::DataPlane::Auto => Way::Process(Box::new(Process {
                plane,
                ends,
                running: None,
            })),
        };
        let mut made = Self {
            way,
            used: 0,
            namespace: client.namespace().clone(),
            _proxies: proxies,
        };
        made.set_up()?;
        Ok(made)
    }

    /// What it is that takes the tunnel down and sets it up.
    pub(super) const fn name(&self) -> &'static str {
        match self.way {
            Way::Script(_) => "wg-quick down; wg-quick up",
            Way::Process(_) => "its process ended and started",
        }
    }

    /// How long packets flow around a move.
    pub(super) const fn time(&self) -> Duration {
        match self.way {
            Way::Script(_) => WITH_SHELL,
            Way::Process(_) => WITH_PROCESS,
        }
    }

    /// Moves the client to the other proxy.
    pub(super) fn switch(&mut self) -> Result<()> {
        self.take_down()?;
        self.used = 1 - self.used.min(1);
        self.set_up()
    }

    fn take_down(&mut self) -> Result<()> {
        match &mut self.way {
            Way::Script(files) => wg_quick(&self.namespace, "down", files.get(self.used)),
            Way::Process(process) => {
                process.running = None;
                Ok(())
            }
        }
    }

    fn set_up(&mut self) -> Result<()> {
        match &mut self.way {
            Way::Script(files) => wg_quick(&self.namespace, "up", files.get(self.used)),
            Way::Process(process) => {
                let end = process.ends.get(self.used).context("no such proxy")?;
                process.running = Some(Bare::start(process.plane, &self.namespace, end)?);
                Ok(())
            }
        }
    }
}

fn net(address: Ipv4Addr) -> Result<IpNet> {
    Ok(IpNet::new(IpAddr::V4(address), LENGTH)?)
}

fn has_wg_quick() -> bool {
    let found = Command::new("wg-quick")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found.is_ok()
}

/// Writes what `wg-quick` reads into a directory of its own: the file is called like the interface.
fn configuration(directory: &Path, name: &str, end: &BareEnd) -> Result<PathBuf> {
    let directory = directory.join(name);
    // It complains about keys that others can read.
    fs::DirBuilder::new().mode(0o700).create(&directory)?;
    let path = directory.join(format!("{INTERFACE}.conf"));
    let secret = fs::read_to_string(&end.key)?;
    let IpNet::V4(address) = end.address else {
        bail!("the tunnel has IPv4 addresses");
    };
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = {address}\nListenPort = {PORT}\nMTU = 1420\n\
         [Peer]\nPublicKey = {}\nEndpoint = {}\nAllowedIPs = {}\n",
        secret.trim(),
        end.peer,
        end.endpoint,
        Ipv4Net::trunc(&address),
    );
    fs::write(&path, text)?;
    Ok(path)
}

fn wg_quick(namespace: &Namespace, verb: &str, file: Option<&PathBuf>) -> Result<()> {
    let file = file.context("no such proxy")?;
    let mut command = Command::new("wg-quick");
    command.arg(verb).arg(file);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let output = namespace.spawn(command)?.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "wg-quick {verb}: {complaint}");
    Ok(())
}

impl Drop for Baseline {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            let text = format!("the tunnel of the baseline is still there: {error:#}");
            command_line::complain("bench", &text);
        }
    }
}
