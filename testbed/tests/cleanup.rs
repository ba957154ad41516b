//! Nothing of a testbed stays behind, however it ends.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::panic::panic_any;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::{LinkParams, Ping, Testbed, Topology, Underlay, sleep};

#[test]
fn a_panic_leaves_nothing_behind() {
    let testbed = Testbed::new(1).unwrap();
    let directory = testbed.directory().to_owned();
    let outcome = thread::spawn(move || {
        let mut topology = Topology::new(&testbed, Underlay::Dual).unwrap();
        let delayed = LinkParams::delayed(Duration::from_millis(1));
        let _host = topology.add_host("host", delayed).unwrap();
        assert_eq!(namespaces_like(&directory).len(), 2);
        panic_any(directory);
    });
    let directory = *outcome.join().unwrap_err().downcast::<PathBuf>().unwrap();
    assert_eq!(namespaces_like(&directory), Vec::<String>::new());
    assert!(!directory.exists());
}

#[test]
fn several_testbeds_with_the_same_names_live_side_by_side() {
    let testbeds = [1, 2].map(|seed| Testbed::new(seed).unwrap());
    let mut networks: Vec<_> = testbeds
        .iter()
        .map(|testbed| {
            let mut topology = Topology::new(testbed, Underlay::Dual).unwrap();
            let hosts = ["a", "b"].map(|role| {
                topology
                    .add_host(role, LinkParams::default().adjustable())
                    .unwrap()
            });
            (topology, hosts)
        })
        .collect();
    let answered = |(_, [a, b]): &(Topology, [testbed::Host; 2])| {
        let ping = Ping {
            timeout: Duration::from_millis(300),
            ..Ping::once(b.addresses()[0])
        };
        ping.run(&a.namespace).unwrap().replies.len()
    };
    assert_eq!(networks.iter().map(answered).collect::<Vec<_>>(), [1, 1]);
    networks[0].1[0].link.cut().unwrap();
    assert_eq!(networks.iter().map(answered).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn signals_leave_nothing_behind() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut hosts = Hosts::start();
        assert_eq!(hosts.namespaces().len(), 3);
        hosts.signal(signal);
        let status = hosts.child.wait().unwrap();
        assert_eq!(status.signal(), Some(signal as i32), "{status}");
        assert_eq!(hosts.namespaces(), Vec::<String>::new());
        assert_eq!(hosts.directories(), Vec::<PathBuf>::new());
    }
}

#[test]
fn what_a_killed_testbed_leaves_is_swept_by_the_next() {
    let mut hosts = Hosts::start();
    hosts.signal(Signal::SIGKILL);
    hosts.child.wait().unwrap();
    // Any other test may have swept already.
    drop(Testbed::new(1).unwrap());
    assert_eq!(hosts.namespaces(), Vec::<String>::new());
    assert_eq!(hosts.directories(), Vec::<PathBuf>::new());
}

#[test]
fn a_child_outlives_the_thread_that_asked_for_it() {
    let testbed = Testbed::new(1).unwrap();
    let namespace = testbed.namespace("host").unwrap();
    let mut command = Command::new("sleep");
    command.arg("1000");
    let started = thread::spawn(move || namespace.spawn(command).unwrap());
    let mut child = started.join().unwrap();
    sleep(Duration::from_millis(50));
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

/// `testbed hosts` in a process of its own.
struct Hosts {
    child: Child,
}

impl Hosts {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_testbed"))
            .args(["hosts", "2", "--delay-ms", "1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut lines = output.lines().map(Result::unwrap);
        lines
            .find(|line| line.starts_with("Ctrl-C"))
            .expect("the hosts are not ready");
        Self { child }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn namespaces(&self) -> Vec<String> {
        entries(Path::new("/run/netns"), &format!("lw-{}-", self.child.id()))
    }

    fn directories(&self) -> Vec<PathBuf> {
        let prefix = format!("lispwire-testbed-{}-", self.child.id());
        entries(&std::env::temp_dir(), &prefix)
            .into_iter()
            .map(PathBuf::from)
            .collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // Fails when it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The namespaces of the testbed that has this directory.
fn namespaces_like(directory: &Path) -> Vec<String> {
    let name = directory.file_name().unwrap().to_str().unwrap();
    let numbers = name.strip_prefix("lispwire-testbed-").unwrap();
    entries(Path::new("/run/netns"), &format!("lw-{numbers}-"))
}

fn entries(directory: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(prefix)).collect()
}
