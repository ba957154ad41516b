//! The standard Lispwire network: one map server and endpoints around a switch.

mod cold_start;
mod config;
mod failure;
mod node;
mod peers;
mod prepare;
mod proxies;
mod router;
mod uplinks;

use std::net::IpAddr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ipnet::IpNet;

use crate::binaries::Binaries;
use crate::crowd::{Crowd, Directory};
use crate::daemon::EventLog;
use crate::error::{Doing, TestbedError};
use crate::link::LinkParams;
use crate::namespace::Namespace;
use crate::snapshot::Snapshot;
use crate::testbed::Testbed;
use crate::topology::{Topology, Underlay};
pub use cold_start::ColdStart;
use config::ServerConfig;
pub use config::{CONTROL_INTERFACE, SERVER_CONTROL_INTERFACE};
pub use failure::Failure;
pub use node::Node;
use node::public_keys;
pub use peers::PeerReport;
pub use proxies::TwoProxies;
pub use router::Router;
pub use uplinks::{SecondUplink, UplinkFailure};

/// Time that registering may take: with lost packets a WireGuard handshake is repeated after 5 s.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that a running agent may take to tell its peers.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
const SERVER: &str = "server";
const ENDPOINT_NAMES: [&str; 6] = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"];

/// Which WireGuard the daemons shall use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DataPlane {
    /// The kernel's where it has one, else the embedded one.
    #[default]
    Auto,
    /// The kernel's.
    Kernel,
    /// The one inside the daemons.
    Embedded,
}

/// What network to build.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// How many endpoints.
    pub endpoints: usize,
    /// What every link does, one way.
    pub links: LinkParams,
    /// What the map server's link does, if not the same.
    pub server_links: Option<LinkParams>,
    /// Addresses of the hosts. WireGuard runs over IPv4 where there is a choice.
    pub underlay: Underlay,
    /// Which WireGuard.
    pub data_plane: DataPlane,
    /// How many further instances every agent serves, each in a network namespace of its own, all
    /// with the same addresses.
    pub tenants: u32,
    /// Whether every endpoint is the gateway of a network behind it.
    pub sites: bool,
    /// How many further far ends there are, all in one thread.
    pub crowd: u32,
    /// Lines for every agent's configuration, before its `[map_server]`.
    pub agent_toml: String,
    /// Lines for the server's configuration, before its `[control]`.
    pub server_toml: String,
    /// What the links' random decisions start from.
    pub seed: u64,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            endpoints: 2,
            links: LinkParams::default(),
            server_links: None,
            underlay: Underlay::default(),
            data_plane: DataPlane::default(),
            tenants: 0,
            sites: false,
            crowd: 0,
            agent_toml: String::new(),
            server_toml: String::new(),
            seed: 1,
        }
    }
}

/// A map server and endpoints; keys and configuration files exist, daemons run once started.
pub struct Network {
    /// The map server.
    pub server: Node,
    /// The endpoints, in the order of their addresses.
    pub endpoints: Vec<Endpoint>,
    /// The far ends that have no daemon.
    pub crowd: Option<Crowd>,
    /// What all daemons say.
    pub log: EventLog,
    directory: Option<Directory>,
    binaries: Binaries,
    // Last: they outlive what runs in them.
    topology: Topology,
    testbed: Testbed,
}

/// An endpoint with its identities.
pub struct Endpoint {
    /// The host and its agent.
    pub node: Node,
    /// What lives here, IPv4 and IPv6.
    pub eids: [IpAddr; 2],
    /// Key of its tunnel to the map server, in base64.
    pub control_key: String,
    /// Key of its tunnels to other endpoints, in base64.
    pub data_key: String,
    /// Its further instances.
    pub tenants: Vec<Tenant>,
    /// The networks behind it, which it is the gateway of.
    pub site: Vec<IpNet>,
}

/// A further instance of an endpoint's agent.
pub struct Tenant {
    /// The instance-id.
    pub iid: u32,
    /// Where its interfaces are.
    pub namespace: Namespace,
    /// What lives here: IPv4 and IPv6 as in every other instance, and an address of its own.
    pub eids: [IpAddr; 3],
    /// Key of its tunnels, in base64.
    pub data_key: String,
    /// The namespace before the agent ran.
    untouched: Snapshot,
}

impl Tenant {
    /// What differs in the namespace from before the agent ran.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn leftovers(&self) -> Result<Vec<String>, TestbedError> {
        Ok(self.namespace.snapshot()?.changes_since(&self.untouched))
    }
}

impl Network {
    /// Builds the network, makes keys and configuration files, and starts nothing.
    ///
    /// # Errors
    ///
    /// When not root, when a program is missing, or when the system is out of something.
    pub fn prepare(options: &NetworkOptions, binaries: Binaries) -> Result<Self, TestbedError> {
        let testbed = Testbed::new(options.seed)?;
        let mut topology = Topology::new(&testbed, options.underlay)?;
        let directory = testbed.directory();
        let server_host =
            topology.add_host(SERVER, options.server_links.unwrap_or(options.links))?;
        let mut server = Node::new(server_host, &binaries.map_server, directory)?;
        let mut server_config = ServerConfig::new(options, &server.state_dir);
        server.write_config(&server_config.to_string())?;
        let (server_key, _) = public_keys(&binaries.map_server, &server.config, 0)?;
        let server_address = server.underlay_address()?;
        let mut endpoints = Vec::new();
        for number in 1..=options.endpoints {
            let host = topology.add_host(&endpoint_name(number), options.links)?;
            let node = Node::new(host, &binaries.xtr_agent, directory)?;
            let server = (server_key.as_str(), server_address);
            let (endpoint, entry) =
                prepare::endpoint(&testbed, node, number, options, server, &binaries)?;
            server_config.xtrs.push(entry);
            endpoints.push(endpoint);
        }
        let mut crowd = None;
        let mut directory_of_crowd = None;
        if options.crowd > 0 {
            let namespaces = endpoints.iter().map(Endpoint::namespace);
            let others = [&server.host.namespace].into_iter().chain(namespaces);
            crowd = Some(prepare::crowd(
                &mut topology,
                others,
                options,
                &mut server_config,
            )?);
            directory_of_crowd = Some(config::directory(&server_key, server_address)?);
        }
        server.write_config(&server_config.to_string())?;
        let log = EventLog::default();
        Ok(Self {
            server,
            endpoints,
            crowd,
            log,
            directory: directory_of_crowd,
            binaries,
            topology,
            testbed,
        })
    }

    /// Builds the network, starts all daemons and waits until all endpoints are registered.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare), or when a daemon fails.
    pub fn start(options: &NetworkOptions) -> Result<Self, TestbedError> {
        let mut network = Self::prepare(options, Binaries::up_to_date(|_| ())?)?;
        network.start_all()?;
        Ok(network)
    }

    /// Starts all daemons and waits until all endpoints are registered.
    ///
    /// # Errors
    ///
    /// When a daemon cannot be started, ends, or does not register in time.
    pub fn start_all(&mut self) -> Result<(), TestbedError> {
        self.server.start(&self.log)?;
        self.server
            .daemon()?
            .wait_for("started", REGISTER_TIMEOUT)?;
        if let (Some(crowd), Some(directory)) = (&mut self.crowd, self.directory) {
            crowd.start(directory)?;
        }
        for endpoint in &mut self.endpoints {
            endpoint.node.start(&self.log)?;
        }
        self.endpoints
            .iter()
            .try_for_each(Endpoint::wait_until_registered)
    }

    /// Stops all daemons that run: the agents, then the server.
    ///
    /// # Errors
    ///
    /// When one does not end in time or ends with a failure.
    pub fn stop_all(&mut self) -> Result<(), TestbedError> {
        for endpoint in &mut self.endpoints {
            endpoint.node.stop()?;
        }
        self.server.stop()
    }

    /// Gives the endpoint with this index, counted from 0, another address on the underlay.
    ///
    /// # Errors
    ///
    /// When there is no such endpoint, or it has no address of that family.
    pub fn move_endpoint(&mut self, index: usize, to: IpAddr) -> Result<(), TestbedError> {
        let endpoint = self.endpoints.get_mut(index);
        let endpoint = endpoint.ok_or(TestbedError::Unexpected("no such endpoint"))?;
        self.topology.move_host(&mut endpoint.node.host, to)
    }

    /// Asks the map server for `eid` from an endpoint, with `lig`; returns what it printed.
    ///
    /// # Errors
    ///
    /// When `lig` cannot be started.
    pub fn lig(
        &self,
        from: &Endpoint,
        eid: IpAddr,
        flags: &[&str],
    ) -> Result<Output, TestbedError> {
        let server = config::SERVER_CONTROL_ADDRESS.to_string();
        let eid = eid.to_string();
        let mut command = Command::new(&self.binaries.lig);
        command.args([&eid, "--server", &server]).args(flags);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = from.node.host.namespace.spawn(command)?;
        child.wait_with_output().doing("run", "lig")
    }

    /// All hosts with a daemon, the server first.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        let endpoints = self.endpoints.iter().map(|endpoint| &endpoint.node);
        [&self.server].into_iter().chain(endpoints)
    }

    /// The endpoint of this name.
    pub fn endpoint(&self, name: &str) -> Option<&Endpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.node.name() == name)
    }

    /// The programs that run in it.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The testbed the network is part of.
    pub fn testbed(&self) -> &Testbed {
        &self.testbed
    }
}

impl Endpoint {
    /// The agent's name.
    pub fn name(&self) -> &str {
        self.node.name()
    }

    /// Where the agent runs.
    pub fn namespace(&self) -> &Namespace {
        &self.node.host.namespace
    }

    /// Waits until the map server has acknowledged all of the endpoint's prefixes.
    ///
    /// # Errors
    ///
    /// When that takes too long or the agent ends.
    pub fn wait_until_registered(&self) -> Result<(), TestbedError> {
        let daemon = self.node.daemon()?;
        let outer = self.eids.iter().map(|eid| IpNet::from(*eid).to_string());
        let tenants = self.tenants.iter().flat_map(|tenant| {
            let eids = tenant.eids.iter().map(|eid| IpNet::from(*eid));
            eids.map(|eid| format!("[{}]{eid}", tenant.iid))
        });
        for eid in outer.chain(tenants) {
            let position = daemon.started_at();
            daemon.wait_since(position, "registered", REGISTER_TIMEOUT, |event| {
                event.text("eid") == eid
            })?;
        }
        Ok(())
    }

    /// Asks the agent which peers its data interface has (SIGUSR1).
    ///
    /// # Errors
    ///
    /// When the agent does not run or does not answer.
    pub fn report_peers(&self, log: &EventLog) -> Result<Vec<PeerReport>, TestbedError> {
        let daemon = self.node.daemon()?;
        let position = log.position();
        daemon.signal(nix::sys::signal::Signal::SIGUSR1)?;
        let event = daemon.wait_since(position, "peers", REPORT_TIMEOUT, |_| true)?;
        peers::read(&event).ok_or_else(|| TestbedError::Output {
            program: self.name().into(),
            output: event.text("peers").into(),
            expected: "a list of peers",
        })
    }
}

fn endpoint_name(number: usize) -> String {
    let known = ENDPOINT_NAMES.get(number.wrapping_sub(1));
    known.map_or_else(|| format!("endpoint-{number}"), ToString::to_string)
}
