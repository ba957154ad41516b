//! The daemon as a process, in the plain: a crash, a replay, a clean stop.

#![expect(clippy::unwrap_used, reason = "in a test a failure is a finding")]

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lisp_proto::{
    Action, Algorithm, AuthKey, EidPrefix, InstanceId, Locator, Message, Nonce, Record,
    RegisterFlags, RegisterParams, RequestFlags, RequestParams, RequestedEid, Rloc, Ttl, decode,
    encode_map_register, encode_map_request, verify,
};

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(200);

const CONFIG: &str = r#"
state_dir = "state"

[plain]
listen = ["127.0.0.1:0"]
requests_from = ["127.0.0.0/8"]

[limits]
registers_per_s = 100000
register_burst = 100000

[[xtr]]
name = "gear"
algorithm = "sha256"
key_id = 3
key = "password"
eid_prefixes = ["192.168.0.0/16"]
more_specifics = true
"#;

#[test]
fn registrations_and_nonces_survive_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let recorded = register(7);

    let mut server = Server::start(directory.path());
    let notify = exchange(&socket, server.address, &recorded);
    verify(&key(), &notify).unwrap();
    assert!(
        matches!(decode(&notify).unwrap(), Message::MapNotify(notify) if notify.nonce == Nonce(7))
    );
    server.process.kill().unwrap();
    server.process.wait().unwrap();

    let mut server = Server::start(directory.path());
    let reply = exchange(&socket, server.address, &request());
    let Message::MapReply(reply) = decode(&reply).unwrap() else {
        panic!("not a Map-Reply");
    };
    let records: Vec<_> = reply
        .records()
        .filter_map(|record| record.to_record(0))
        .collect();
    assert_eq!(records, [record()]);

    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.send_to(&recorded, server.address).unwrap();
    assert!(
        socket.recv(&mut [0; 512]).is_err(),
        "a replay is not answered"
    );

    assert_eq!(server.stop().code(), Some(0));
    assert!(server.log().contains("replayed_nonce=1"));
}

#[test]
fn nothing_is_lost_while_the_log_is_made_short() {
    let directory = tempfile::tempdir().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut server = Server::start(directory.path());
    let log = directory.path().join("state/registrations.log");
    let mut longest = 0;
    let mut nonce = 0;
    loop {
        nonce += 1;
        exchange(&socket, server.address, &change(nonce));
        let len = std::fs::metadata(&log).unwrap().len();
        if len < longest {
            break;
        }
        longest = len;
    }
    server.process.kill().unwrap();
    server.process.wait().unwrap();

    let server = Server::start(directory.path());
    let reply = exchange(&socket, server.address, &request());
    let Message::MapReply(reply) = decode(&reply).unwrap() else {
        panic!("not a Map-Reply");
    };
    let ttl = reply.records().next().unwrap().ttl();
    assert_eq!(u64::from(ttl.minutes()), nonce);
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.send_to(&change(nonce), server.address).unwrap();
    let answer = socket.recv(&mut [0; 512]);
    assert!(answer.is_err(), "a replay is not answered");
}

#[test]
fn several_workers_answer_at_one_port_and_hand_on_what_changes_something() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start_with(directory.path(), &format!("workers = 3\n{CONFIG}"));
    // The kernel deals sources out by their ports, so of so many some go to each worker.
    for nonce in 1..=60 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&[0x10], server.address).unwrap();
        let notify = exchange(&socket, server.address, &change(nonce));
        verify(&key(), &notify).unwrap();
        let reply = exchange(&socket, server.address, &request());
        let Message::MapReply(reply) = decode(&reply).unwrap() else {
            panic!("not a Map-Reply");
        };
        let ttl = reply.records().next().unwrap().ttl();
        assert_eq!(
            u64::from(ttl.minutes()),
            nonce,
            "what was acknowledged is told"
        );
    }
    assert_eq!(server.stop().code(), Some(0));
    let log = server.log();
    assert!(log.contains("malformed=60"), "{log}");
}

#[test]
fn exit_codes_tell_usage_configuration_and_failure_apart() {
    let directory = tempfile::tempdir().unwrap();
    let good = write_config(directory.path(), CONFIG);
    let bad = directory.path().join("bad.toml");
    std::fs::write(&bad, "colour = 1").unwrap();
    let code = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_map-server"));
        let output = command
            .args(arguments)
            .current_dir(directory.path())
            .output()
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(code(&["config", "check", &good]).0, 0);
    assert_eq!(code(&["--version"]).0, 0);
    assert_eq!(code(&["walk"]).0, 64);
    let (status, complaint) = code(&["run", "--config", bad.to_str().unwrap()]);
    assert_eq!(status, 2);
    assert!(
        complaint.contains("bad.toml:1: colour: unknown field"),
        "{complaint}"
    );

    let mut first = Server::start(directory.path());
    let (status, complaint) = code(&["run", "--config", &good]);
    assert_eq!(status, 1);
    assert!(
        complaint.contains("another map server uses this state directory"),
        "{complaint}"
    );
    assert_eq!(first.stop().code(), Some(0));
}

#[test]
fn an_operator_reads_what_was_done_what_was_refused_and_that_no_server_runs() {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(directory.path(), CONFIG);
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_map-server"));
        let command = command.args(arguments).args(["--config", &config]);
        let output = command.current_dir(directory.path()).output().unwrap();
        let text = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
        (output.status.code().unwrap(), text.concat())
    };
    let (code, said) = run(&["migrations"]);
    assert_eq!(code, 2);
    assert!(
        said.contains("nobody answers at state/admin.sock; start it"),
        "{said}"
    );

    let mut server = Server::start(directory.path());
    let (code, said) = run(&["migrations"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("nobody was migrated") && said.contains("drained: none"),
        "{said}"
    );
    let (code, said) = run(&["migrate", "--from", "gear", "--to", "nobody"]);
    assert_eq!(code, 1);
    assert!(
        said.contains("map-server: no xTR is called nobody; nobody shares"),
        "{said}"
    );
    let (code, said) = run(&["drain", "gear", "--dry-run"]);
    assert!(code == 0 && said.contains("this is a dry run"), "{said}");
    let (code, said) = run(&["drain", "gear", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (code, &answer["counts"]["failed"]),
        (0, &serde_json::json!(0))
    );
    server.process.kill().unwrap();
    server.process.wait().unwrap();

    let mut server = Server::start(directory.path());
    assert!(
        run(&["migrations"]).1.contains("drained: gear"),
        "it was stored"
    );
    let (code, said) = run(&["drain", "gear", "--undo"]);
    assert!(
        code == 0 && said.contains("gear may have clients again"),
        "{said}"
    );
    assert!(run(&["migrations"]).1.contains("drained: none"));
    assert_eq!(server.stop().code(), Some(0));
    assert!(!directory.path().join("state/admin.sock").exists());
}

#[test]
fn the_public_key_stays_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(directory.path(), CONFIG);
    let print = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_map-server"));
        let output = command
            .args(["pubkey", "--config", &config])
            .current_dir(directory.path())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let key = print();
    assert!(key.trim().parse::<lisp_proto::PublicKey>().is_ok(), "{key}");
    assert_eq!(print(), key);
}

/// A server process; killed when a test fails.
struct Server {
    process: Child,
    /// Reads what the server says, lest it waits for somebody who does.
    log: Option<JoinHandle<String>>,
    address: SocketAddr,
}

impl Server {
    /// Starts a server in `directory`, and waits until it listens.
    fn start(directory: &Path) -> Self {
        Self::start_with(directory, CONFIG)
    }

    fn start_with(directory: &Path, config: &str) -> Self {
        let config = write_config(directory, config);
        let mut process = Command::new(env!("CARGO_BIN_EXE_map-server"))
            .args(["run", "--log-format", "json", "--config", &config])
            .current_dir(directory)
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let (found, listening) = mpsc::channel();
        let log = thread::spawn(move || {
            let mut log = String::new();
            for line in stderr.lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("\"listen\":\"") {
                    let address = rest.split('"').next().unwrap().parse().unwrap();
                    found.send(address).unwrap();
                }
                log += &line;
            }
            log
        });
        let mut server = Self {
            process,
            log: Some(log),
            address: SocketAddr::from(([0; 4], 0)),
        };
        server.address = listening.recv_timeout(PATIENCE).unwrap();
        server
    }

    /// Stops the server as an init system does.
    fn stop(&mut self) -> ExitStatus {
        let id = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
        self.process.wait().unwrap()
    }

    /// Returns what the server has said. Only of a server that has stopped.
    fn log(&mut self) -> String {
        self.log.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
    }
}

fn write_config(directory: &Path, text: &str) -> String {
    let path = directory.join("server.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Sends `datagram` and returns the answer.
fn exchange(socket: &UdpSocket, server: SocketAddr, datagram: &[u8]) -> Vec<u8> {
    socket.send_to(datagram, server).unwrap();
    let mut answer = vec![0; 2048];
    let (len, source) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(source, server);
    answer.truncate(len);
    answer
}

/// Returns a Map-Register that changes twenty mappings: their TTL is its nonce.
fn change(nonce: u64) -> Vec<u8> {
    let records = (1..=20u8).map(|number| Record {
        eid: EidPrefix::host(InstanceId(0), [192, 168, 1, number].into()),
        ttl: Ttl::from_minutes(u32::try_from(nonce).unwrap()),
        ..record()
    });
    register_of(nonce, &records.collect::<Vec<_>>())
}

fn register(nonce: u64) -> Vec<u8> {
    register_of(nonce, &[record()])
}

fn register_of(nonce: u64, records: &[Record]) -> Vec<u8> {
    let params = RegisterParams {
        flags: RegisterFlags {
            want_notify: true,
            ..RegisterFlags::default()
        },
        nonce: Nonce(nonce),
        records,
        ids: None,
    };
    let mut bytes = Vec::new();
    encode_map_register(&params, &key(), &mut bytes).unwrap();
    bytes
}

fn request() -> Vec<u8> {
    let params = RequestParams {
        flags: RequestFlags::default(),
        nonce: Nonce(1),
        source_eid: None,
        itr_rlocs: &[IpAddr::from([127, 0, 0, 1])],
        eids: &[RequestedEid {
            subscribe: false,
            eid: EidPrefix::host(InstanceId(0), [192, 168, 1, 1].into()),
        }],
        source_record: None,
        gap: None,
        ids: None,
    };
    let mut bytes = Vec::new();
    encode_map_request(&params, &mut bytes).unwrap();
    bytes
}

fn record() -> Record {
    Record {
        eid: "192.168.1.0/24".parse().unwrap(),
        ttl: Ttl::from_minutes(1440),
        action: Action::NoAction,
        authoritative: false,
        locators: vec![Locator {
            priority: 1,
            weight: 100,
            local: false,
            probed: false,
            reachable: true,
            rloc: Rloc::Plain([192, 0, 2, 1].into()),
        }],
    }
}

fn key() -> AuthKey {
    AuthKey::new(3, Algorithm::Sha256_128, b"password")
}
