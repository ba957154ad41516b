//! The network of `docs/interop.md`: hosts around a switch with a gateway.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use testbed::{
    Binaries, Daemon, DaemonSpec, EventLog, Host, LinkParams, Namespace, Ping, Testbed, Topology,
    Underlay,
};

/// Prepares what a program finds in its file system, and becomes the program.
const IN_PRIVATE: &str = r#"mount --bind "$1" "$2" && shift 2 && exec "$@""#;

/// Hosts 192.0.2.1, 192.0.2.2, ... and the gateway 192.0.2.254.
pub(crate) struct Site {
    pub(crate) log: EventLog,
    binaries: Binaries,
    topology: Topology,
    pub(crate) testbed: Testbed,
}

impl Site {
    pub(crate) fn new() -> Self {
        let binaries = Binaries::up_to_date(|_| ()).unwrap();
        let testbed = Testbed::new(1).unwrap();
        let topology = Topology::new(&testbed, Underlay::Ipv4Only).unwrap();
        let site = Self {
            log: EventLog::default(),
            binaries,
            topology,
            testbed,
        };
        let gateway = site.topology.switch();
        site.succeed(
            gateway,
            "sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0",
        );
        gateway
            .add_address("switch", "192.0.2.254/24".parse().unwrap())
            .unwrap();
        site
    }

    /// The next host.
    pub(crate) fn host(&mut self, role: &str) -> Host {
        let host = self.topology.add_host(role, LinkParams::default()).unwrap();
        fs::create_dir(self.testbed.directory().join(role)).unwrap();
        host
    }

    pub(crate) fn start_map_server(&self, host: &Host, config: &str) -> Daemon {
        // Questions in the plain are told at this level only.
        self.start_ours(host, "map_server=debug", &self.binaries.map_server, config)
    }

    pub(crate) fn start_agent(&self, host: &Host, config: &str) -> Daemon {
        self.start_ours(host, "xtr_agent=info", &self.binaries.xtr_agent, config)
    }

    /// Starts one of our daemons with a `/var/lib` of its own.
    fn start_ours(&self, host: &Host, told: &str, program: &Path, config: &str) -> Daemon {
        let path = self
            .testbed
            .directory()
            .join(&host.role)
            .join("config.toml");
        fs::write(&path, config).unwrap();
        let (program, path) = (program.to_str().unwrap(), path.to_str().unwrap());
        let logged = format!("RUST_LOG=warn,wg_device=info,{told}");
        let run = ["run", "--log-format", "json", "--config", path];
        let command = [&["env", &logged, program], run.as_slice()].concat();
        self.start(host, "/var/lib", &command)
    }

    /// Starts `command` with the host's directory in place of `hidden`.
    pub(crate) fn start(&self, host: &Host, hidden: &str, command: &[&str]) -> Daemon {
        let directory = self.testbed.directory().join(&host.role);
        let private = [
            "--mount",
            "sh",
            "-c",
            IN_PRIVATE,
            "sh",
            directory.to_str().unwrap(),
            hidden,
        ];
        let spec = DaemonSpec {
            name: host.role.clone(),
            program: "unshare".into(),
            arguments: private
                .iter()
                .chain(command)
                .map(ToString::to_string)
                .collect(),
            namespace: host.namespace.clone(),
            directory,
        };
        Daemon::start(spec, &self.log).unwrap()
    }

    /// Runs a script, with our programs in the PATH.
    pub(crate) fn run(&self, namespace: &Namespace, script: &str) -> Output {
        let mut directories = vec![self.binaries.lig.parent().unwrap().to_owned()];
        directories.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        directories.push(PathBuf::from("/usr/sbin"));
        let mut command = Command::new("sh");
        command
            .args(["-e", "-c", script])
            .env("PATH", std::env::join_paths(directories).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        namespace
            .spawn(command)
            .unwrap()
            .wait_with_output()
            .unwrap()
    }

    /// Runs a script that must succeed; returns what it printed.
    pub(crate) fn succeed(&self, namespace: &Namespace, script: &str) -> String {
        let output = self.run(namespace, script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What all daemons have said.
    pub(crate) fn story(&self) -> String {
        let events = self.log.since(testbed::LogPosition::default());
        let lines = events
            .iter()
            .map(|event| format!("{}: {:?}", event.daemon, event.fields));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Whether `destination` answers one of `pings`, half a second apart.
pub(crate) fn answers(from: &Namespace, destination: &str, pings: usize) -> bool {
    let destination: IpAddr = destination.parse().unwrap();
    let ping = Ping {
        timeout: Duration::from_millis(500),
        ..Ping::once(destination)
    };
    (0..pings).any(|_| !ping.run(from).unwrap().replies.is_empty())
}
