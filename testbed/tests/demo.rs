//! The demo, as its users run it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Columns that fit a terminal.
const COLUMNS: usize = 100;

#[test]
fn the_demo_tells_the_story_and_cleans_up() {
    let output = testbed(&["demo", "--delay-ms", "1", "--runs", "2"]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for part in [
        "Peers before",
        "catches and holds the packet",
        "Map-Request",
        "Map-Notify",
        "Map-Reply",
        "as a WireGuard peer",
        "handshake",
        "first echo reply",
        "fd00:1::2",
        "gamma     0",
        "2 cold starts",
        "left behind",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    let long = text.lines().find(|line| line.chars().count() > COLUMNS);
    assert_eq!(long, None);
}

#[test]
fn a_kept_network_works_until_it_is_removed() {
    let output = testbed(&["demo", "--delay-ms", "0", "--endpoints", "2", "--keep"]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let holder: i32 = text
        .lines()
        .last()
        .unwrap()
        .split(' ')
        .next_back()
        .unwrap()
        .parse()
        .unwrap();
    let kept = Kept(holder);
    let ping = text.lines().find(|line| line.contains(" ping ")).unwrap();
    let mut words = ping.split_whitespace();
    let status = Command::new(words.next().unwrap())
        .args(words)
        .args(["-c", "1"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{ping}");
    drop(kept);
    assert_eq!(namespaces(holder), Vec::<String>::new());
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let mut demo = command(&["demo", "--delay-ms", "200"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = i32::try_from(demo.id()).unwrap();
    // Kept until the end: a demo that cannot write its next line ends by itself.
    let mut output = BufReader::new(demo.stdout.take().unwrap()).lines();
    let reached = output
        .by_ref()
        .map(Result::unwrap)
        .any(|line| line.starts_with("alpha pings"));
    assert!(reached);
    let daemons = children(&demo);
    assert_eq!(daemons.len(), 4);
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    demo.wait().unwrap();
    assert_eq!(namespaces(pid), Vec::<String>::new());
    for daemon in daemons {
        let command = fs::read_to_string(format!("/proc/{daemon}/cmdline")).unwrap_or_default();
        assert!(!command.contains("config.toml"), "{daemon} still runs");
    }
}

/// A kept network; removed on drop.
struct Kept(i32);

impl Drop for Kept {
    fn drop(&mut self) {
        let output = testbed(&["clean", &self.0.to_string()]);
        assert!(
            text(&output).contains("Removed 1 kept network"),
            "{output:?}"
        );
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    command.args(arguments);
    command
}

fn testbed(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    )
}

fn namespaces(pid: i32) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with(&format!("lw-{pid}-")))
        .collect()
}

/// The processes that this one started, whichever of its threads did.
fn children(parent: &Child) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|&process| parent_of(process) == Some(parent.id()))
        .collect()
}

/// None if the process is gone meanwhile.
fn parent_of(process: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    parent.trim().parse().ok()
}
