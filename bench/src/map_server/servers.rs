//! The servers that are measured, in one network namespace, each on the same core.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use lisp_proto::PublicKey;
use serde::de::DeserializeOwned;
use testbed::{Binaries, Namespace, Testbed, sleep};
use wg_device::PrivateKey;

use super::data::{Plan, SECRET, configured};
use super::load::{Ask, Flood, Job, Outcomes, Register};
use super::meet::{self, Round, Voice};
use crate::own_program;
use crate::usage::Usage;

/// Where the servers are.
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Where questions come from.
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Where registrations come from.
const REGISTRANT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// Where floods with forged sources come from, and agents: all of it is local.
const FORGED: &str = "198.18.0.0/15";
const AGENTS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The interface of all these addresses.
const INTERFACE: &str = "ms0";
/// Where Open Overlay Router listens, whatever it is told.
const LISP_PORT: u16 = 4_342;
/// The core of the generator, and that of the servers.
const GENERATOR_CORE: &str = "0";
const SERVER_CORE: &str = "1";
const BOTH_CORES: &str = "0,1";
/// Limits that nobody reaches.
const UNLIMITED: &str = "requests_per_s = 100000000\nrequest_burst = 100000000\n\
                         registers_per_s = 100000000\nregister_burst = 100000000\n";
/// A server listens after so many looks, or never will.
const LOOKS: u32 = 1_000;
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// A server that has used less than a tenth of this time in as long is at rest.
const REST: Duration = Duration::from_millis(200);

/// One network namespace with all addresses on one interface.
pub(super) struct Site {
    testbed: Testbed,
    namespace: Namespace,
    binaries: Binaries,
    next_port: u16,
}

/// A server that runs; it is killed when dropped.
pub(super) struct Server {
    child: Child,
    pub(super) address: SocketAddr,
    directory: Option<PathBuf>,
    speaks: Speaks,
}

/// What is spoken with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    /// LISP, or what is as long.
    Lisp,
    /// gRPC.
    Grpc,
}

impl Speaks {
    /// The transport protocol, as /proc/net calls it.
    const fn transport(self) -> &'static str {
        match self {
            Self::Lisp => "udp",
            Self::Grpc => "tcp",
        }
    }

    /// The role of this program that generates the load.
    const fn generator(self) -> &'static str {
        match self {
            Self::Lisp => "load",
            Self::Grpc => "grpc-calls",
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if let Some(directory) = &self.directory {
            drop(fs::remove_dir_all(directory));
        }
    }
}

impl Server {
    pub(super) fn usage(&self) -> Result<Usage> {
        Usage::of(self.child.id())
    }

    /// Waits until it does nothing any more: neither stores nor frees what it was told before.
    pub(super) fn rest(&self) -> Result<()> {
        loop {
            let before = self.usage()?.cpu;
            sleep(REST);
            if self.usage()?.cpu.saturating_sub(before) < REST / 10 {
                return Ok(());
            }
        }
    }

    /// Waits until the port is open.
    fn wait(mut self) -> Result<Self> {
        // As /proc/net/udp and /proc/net/tcp write it.
        let port = format!(":{:04X} ", self.address.port());
        let (pid, transport) = (self.child.id(), self.speaks.transport());
        let sockets = ["", "6"].map(|version| format!("/proc/{pid}/net/{transport}{version}"));
        for _ in 0..LOOKS {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server of {} has ended: {status}", self.address);
            }
            for sockets in &sockets {
                if fs::read_to_string(sockets)?.contains(&port) {
                    return Ok(self);
                }
            }
            sleep(LOOK_PAUSE);
        }
        bail!("the server of {} does not listen", self.address)
    }
}

impl Site {
    pub(super) fn new(binaries: Binaries) -> Result<Self> {
        let testbed = Testbed::new(1)?;
        let namespace = testbed.namespace("bench")?;
        let mut add = Command::new("ip");
        add.args([
            "link", "add", INTERFACE, "type", "veth", "peer", "name", "ms1",
        ]);
        for (interface, mut command) in
            [(INTERFACE, add)]
                .into_iter()
                .chain(["ms0", "ms1"].map(|interface| {
                    let mut up = Command::new("ip");
                    up.args(["link", "set", interface, "up"]);
                    (interface, up)
                }))
        {
            command.stdin(Stdio::null());
            let status = namespace.spawn(command)?.wait()?;
            ensure!(status.success(), "ip link of {interface}: {status}");
        }
        let mut route = Command::new("ip");
        route.args(["route", "add", "local", FORGED, "dev", INTERFACE]);
        let status = namespace.spawn(route)?.wait()?;
        ensure!(status.success(), "ip route of {FORGED}: {status}");
        for host in [SERVER, CLIENT, REGISTRANT] {
            namespace.add_address(INTERFACE, Ipv4Net::new(host, 24)?.into())?;
        }
        Ok(Self {
            testbed,
            namespace,
            binaries,
            next_port: 5_000,
        })
    }

    /// Starts a program on `cores`.
    fn start(&self, cores: &str, program: &Path, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new("taskset");
        command.args(["-c", cores]).arg(program).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // What a server logs unless it is told otherwise is part of what it costs.
        command.env_remove("RUST_LOG").stderr(Stdio::null());
        Ok(self.namespace.spawn(command)?)
    }

    fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    /// Starts the limit: a server that only echoes, with answers of these lengths to Map-Requests and to
    /// Map-Registers.
    pub(super) fn echo(&mut self, reply: usize, notify: usize) -> Result<Server> {
        let address = SocketAddr::new(SERVER.into(), self.port());
        let [listen, reply, notify] = [address.to_string(), reply.to_string(), notify.to_string()];
        let arguments = [
            "echo", "--listen", &listen, "--reply", &reply, "--notify", &notify,
        ];
        let child = self.start(SERVER_CORE, &own_program()?, &arguments)?;
        let server = Server {
            child,
            address,
            directory: None,
            speaks: Speaks::Lisp,
        };
        server.wait()
    }

    /// Starts the gRPC server, and lets it fill itself with so many mappings.
    pub(super) fn grpc(&mut self, plan: Plan, mappings: u32) -> Result<Server> {
        let address = SocketAddr::new(SERVER.into(), self.port());
        let plan = serde_json::to_string(&plan)?;
        let [listen, mappings] = [address.to_string(), mappings.to_string()];
        let arguments = [
            "grpc-keys",
            "--listen",
            &listen,
            "--plan",
            &plan,
            "--mappings",
            &mappings,
        ];
        let child = self.start(SERVER_CORE, &own_program()?, &arguments)?;
        let server = Server {
            child,
            address,
            directory: None,
            speaks: Speaks::Grpc,
        };
        let server = server.wait()?;
        server.rest()?;
        Ok(server)
    }

    /// Starts our map server with so many threads; with two the second core is the generator's. It lets every
    /// source ask as often as it likes.
    pub(super) fn map_server(&mut self, workers: usize) -> Result<Server> {
        self.map_server_with(workers, UNLIMITED)
    }

    /// Starts our map server as an operator would, but for the questions per second that it takes from one
    /// source.
    pub(super) fn limited_map_server(&mut self, requests_per_s: u64) -> Result<Server> {
        self.map_server_with(1, &format!("requests_per_s = {requests_per_s}\n"))
    }

    fn map_server_with(&mut self, workers: usize, limits: &str) -> Result<Server> {
        let address = SocketAddr::new(SERVER.into(), self.port());
        let directory = self.directory(address.port())?;
        let mut prefixes = String::new();
        for eid in configured() {
            write!(prefixes, "\"{eid}\", ")?;
        }
        let config = format!(
            "state_dir = \"{}\"\nworkers = {workers}\n\
             [plain]\nlisten = [\"{address}\"]\nrequests_from = [\"{CLIENT}/32\"]\n\
             [limits]\n{limits}\
             [[xtr]]\nname = \"all\"\nkey = \"{SECRET}\"\nkey_id = 1\nalgorithm = \"sha256\"\n\
             more_specifics = true\neid_prefixes = [{prefixes}]\n",
            directory.display(),
        );
        let cores = if workers > 1 { BOTH_CORES } else { SERVER_CORE };
        self.configured_map_server(cores, address, directory, &config)
    }

    /// Starts our map server with `members` agents enrolled; returns its key as well.
    pub(super) fn enrolling_map_server(&mut self, members: u32) -> Result<(Server, PublicKey)> {
        let address = SocketAddr::new(SERVER.into(), self.port());
        let directory = self.directory(address.port())?;
        let key = PrivateKey::load_or_create(&directory.join("control.key"))?.public();
        let mut config = format!(
            "state_dir = \"{}\"\n\
             [control]\nlisten_port = {}\naddress = \"{}\"\n\
             data_plane = \"embedded\"\n[limits]\n{UNLIMITED}",
            directory.display(),
            address.port(),
            meet::SERVER.ip(),
        );
        for number in 0..members {
            let theirs = PrivateKey::from_bytes(meet::secret(number)).public();
            let inside = Voice::new(number, &key).inside.ip();
            write!(
                config,
                "[[xtr]]\nname = \"agent-{number}\"\npublic_key = \"{theirs}\"\n\
                 control_address = \"{inside}\"\neid_prefixes = [\"{}\"]\n",
                meet::eid(number),
            )?;
        }
        let server = self.configured_map_server(SERVER_CORE, address, directory, &config)?;
        Ok((server, key))
    }

    fn configured_map_server(
        &self,
        cores: &str,
        address: SocketAddr,
        directory: PathBuf,
        config: &str,
    ) -> Result<Server> {
        let file = directory.join("map-server.toml");
        fs::write(&file, config)?;
        let file = file.display().to_string();
        let arguments = ["run", "--config", &file];
        let child = self.start(cores, &self.binaries.map_server, &arguments)?;
        let server = Server {
            child,
            address,
            directory: Some(directory),
            speaks: Speaks::Lisp,
        };
        server.wait()
    }

    /// Lets agents that are enrolled at `server`, which has this key, meet each other.
    pub(super) fn meet(
        &self,
        server: &Server,
        key: PublicKey,
        (members, each, rounds): (u32, u32, u32),
        (group, pace_us): (u32, Option<u64>),
    ) -> Result<Vec<Round>> {
        let job = meet::Job {
            server: SocketAddrV4::new(SERVER, server.address.port()),
            key,
            pid: server.child.id(),
            sources: AGENTS,
            members,
            each,
            rounds,
            group,
            pace_us,
        };
        let job = serde_json::to_string(&job)?;
        self.own(GENERATOR_CORE, &["meet", &job])
    }

    /// Starts Open Overlay Router as a map server.
    pub(super) fn oor(&self) -> Result<Server> {
        let directory = self.directory(LISP_PORT)?;
        let file = directory.join("oor.conf");
        let config = format!(
            "debug = 0\nmap-request-retries = 2\nlog-file = {}\noperating-mode = MS\n\
             control-iface = {INTERFACE}\nlisp-site {{\n eid-prefix = 10.0.0.0/8\n key-type = 1\n \
             key = {SECRET}\n iid = 0\n accept-more-specifics = true\n}}\n",
            directory.join("oor.log").display()
        );
        fs::write(&file, config)?;
        let file = file.display().to_string();
        let child = self.start(SERVER_CORE, Path::new("oor"), &["-f", &file])?;
        let server = Server {
            child,
            address: SocketAddr::new(SERVER.into(), LISP_PORT),
            directory: Some(directory),
            speaks: Speaks::Lisp,
        };
        server.wait()
    }

    fn directory(&self, port: u16) -> Result<PathBuf> {
        let directory = self.testbed.directory().join(port.to_string());
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// Lets the load generator work at `server`.
    pub(super) fn load(
        &self,
        server: &Server,
        ask: Option<Ask>,
        register: Option<Register>,
    ) -> Result<Outcomes> {
        self.generate(server, (ask, register, None))
    }

    /// Lets the load generator ask `server`, and flood it.
    pub(super) fn flood(&self, server: &Server, ask: Ask, flood: Flood) -> Result<Outcomes> {
        self.generate(server, (Some(ask), None, Some(flood)))
    }

    fn generate(
        &self,
        server: &Server,
        (ask, register, flood): (Option<Ask>, Option<Register>, Option<Flood>),
    ) -> Result<Outcomes> {
        let job = Job {
            server: server.address,
            client: CLIENT.into(),
            registrant: REGISTRANT.into(),
            ask,
            register,
            flood,
        };
        let job = serde_json::to_string(&job)?;
        self.own(GENERATOR_CORE, &[server.speaks.generator(), &job])
    }

    /// Runs this program in another role on the servers' core, and reads what it prints.
    pub(super) fn measure_alone<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        self.own(SERVER_CORE, arguments)
    }

    fn own<T: DeserializeOwned>(&self, cores: &str, arguments: &[&str]) -> Result<T> {
        let mut command = Command::new("taskset");
        command.args(["-c", cores]).arg(own_program()?);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::piped());
        let mut child = self.namespace.spawn(command)?;
        let mut text = String::new();
        let mut out = child.stdout.take().context("no output")?;
        out.read_to_string(&mut text)?;
        let status = child.wait()?;
        let role = arguments.first().copied().unwrap_or_default();
        ensure!(status.success(), "bench {role}: {status}");
        serde_json::from_str(&text).with_context(|| format!("read what bench {role} says"))
    }
}
