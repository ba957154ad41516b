//! A server with three enrolled agents and one plain xTR, for the tests of this module.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp_proto::{
    Action as NegativeAction, Algorithm, AuthKey, EidPrefix, Locator, MapReply, Message, Nonce,
    NotifyParams, PublicKey, Record, RegisterFlags, RegisterParams, RequestFlags, RequestParams,
    RequestedEid, Rloc, Timestamp, Ttl, decode, encode_ecm, encode_map_notify_ack,
    encode_map_register, encode_map_request, verify,
};

use super::{Action, Actions, Counters, DropReason, Event, Input, MapServer, Via};
use crate::config::{Config, ControlKeys, Options, XtrConfig};
use crate::store_event::{StoreEvent, XtrIds};

/// Agents a, b and c own 10.0.0.1, .2 and .3 (and fd00:1::1, ::2, ::3); `gear` owns
/// 192.168.0.0/16 and what is inside, and registers in the plain with SHA-1.
pub(super) struct Bench {
    pub(super) server: MapServer,
    pub(super) now: Timestamp,
    pub(super) counters: Counters,
    pub(super) stored: Vec<StoreEvent>,
    pub(super) events: Vec<Event>,
    pub(super) sent: Vec<Sent>,
    /// Peers of the control interface that are no agents.
    pub(super) watched: BTreeSet<PublicKey>,
    /// How often the server wanted to know where its peers are.
    pub(super) looks: usize,
    next_nonce: u64,
}

/// A datagram that left the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) dst: SocketAddr,
    pub(super) via: Via,
    pub(super) bytes: Vec<u8>,
}

/// What a Map-Register of a test says.
#[derive(Clone, Debug)]
pub(super) struct Register {
    pub(super) key: AuthKey,
    pub(super) records: Vec<Record>,
    pub(super) nonce: u64,
    pub(super) ids: Option<XtrIds>,
    pub(super) merge: bool,
    pub(super) use_ttl: bool,
    pub(super) want_notify: bool,
    pub(super) proxy_reply: bool,
    pub(super) echo_notify: bool,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(super) fn with(options: Options) -> Self {
        Self::of(options, xtrs())
    }

    pub(super) fn of(options: Options, xtrs: Vec<XtrConfig>) -> Self {
        let config = Config::new(options, xtrs).unwrap();
        let agents = ["a", "b", "c"].map(|name| (control(name).ip(), control_key(name)));
        let config = config.with_control_keys(ControlKeys {
            own: Some(PublicKey([0xee; 32])),
            agents: agents.into(),
        });
        Self {
            server: MapServer::new(config, [7; 32]),
            now: Timestamp::ZERO,
            counters: Counters::default(),
            stored: Vec::new(),
            events: Vec::new(),
            sent: Vec::new(),
            watched: BTreeSet::new(),
            looks: 0,
            next_nonce: 0,
        }
    }

    /// Gives the server an input; returns the datagrams it sends.
    pub(super) fn input(&mut self, input: Input<'_>) -> Vec<Sent> {
        let mut actions = Actions::new();
        self.server.handle(self.now, input, &mut actions);
        let before = self.sent.len();
        for action in actions.drain() {
            match action {
                Action::Send { dst, via, bytes } => {
                    let bytes = bytes.to_vec();
                    self.sent.push(Sent { dst, via, bytes });
                }
                Action::Persist(event) => self.stored.push(event),
                Action::Count(reason) => self.counters.count(reason),
                Action::Event(event) => self.events.push(event),
                Action::Watch(key) => assert!(self.watched.insert(key), "twice"),
                Action::Unwatch(key) => assert!(self.watched.remove(&key), "not there"),
                Action::Look => self.looks += 1,
            }
        }
        self.sent[before..].to_vec()
    }

    pub(super) fn datagram(&mut self, src: SocketAddr, via: Via, bytes: &[u8]) -> Vec<Sent> {
        self.input(Input::Datagram { src, via, bytes })
    }

    /// Lets time pass, acting on every deadline on the way.
    pub(super) fn wait(&mut self, span: Duration) -> Vec<Sent> {
        let until = self.now + span;
        let mut sent = Vec::new();
        while let Some(at) = self.server.next_deadline().filter(|at| *at <= until) {
            self.now = at;
            sent.extend(self.input(Input::Tick));
        }
        self.now = until;
        sent
    }

    pub(super) fn nonce(&mut self) -> u64 {
        self.next_nonce += 1;
        self.next_nonce
    }

    /// Registers `records` as the agent called `name`.
    pub(super) fn register(&mut self, name: &str, records: &[Record]) -> Vec<Sent> {
        let register = self.register_of(name, records);
        self.datagram(control(name), Via::Tunnel, &register.bytes())
    }

    /// Returns a Map-Register of the agent called `name`, to be changed by a test.
    pub(super) fn register_of(&mut self, name: &str, records: &[Record]) -> Register {
        Register {
            key: key(name),
            records: records.to_vec(),
            nonce: self.nonce(),
            ids: None,
            merge: false,
            use_ttl: false,
            want_notify: true,
            proxy_reply: true,
            echo_notify: false,
        }
    }

    /// Lets agents a, b and c register their own prefixes.
    pub(super) fn register_all(&mut self) {
        for name in ["a", "b", "c"] {
            assert_eq!(self.register(name, &own_records(name)).len(), 1);
        }
    }

    /// Asks for `eid` as the agent called `name`, from its own IPv4 EID.
    pub(super) fn ask(&mut self, name: &str, eid: &str) -> Vec<Sent> {
        let nonce = self.nonce();
        self.ask_again(name, eid, nonce)
    }

    pub(super) fn ask_again(&mut self, name: &str, eid: &str, nonce: u64) -> Vec<Sent> {
        let source = own_records(name)[0].eid.net().addr();
        let bytes = request(Some(source), &[control(name).ip()], &[eid], nonce);
        self.datagram(control(name), Via::Tunnel, &bytes)
    }

    /// Lets `requester` ask for `eid`, and both ends acknowledge what they are told.
    pub(super) fn pair(&mut self, requester: &str, owner: &str, eid: &str) {
        let push = self.ask(requester, eid);
        let answer = self.ack(owner, &push[0]);
        assert_eq!(answer.len(), 2, "the reply, and what else the owner has");
        self.ack(requester, &answer[1]);
    }

    /// Acknowledges a Map-Notify as the agent called `name`.
    pub(super) fn ack(&mut self, name: &str, notify: &Sent) -> Vec<Sent> {
        self.datagram(control(name), Via::Tunnel, &ack(name, notify))
    }

    pub(super) fn count(&self, reason: DropReason) -> u64 {
        self.counters.total(reason)
    }

    /// Builds a server with the same configuration that knows what this one has stored.
    pub(super) fn restart(&self) -> Self {
        self.restart_as(xtrs())
    }

    /// The same with these xTRs enrolled.
    pub(super) fn restart_as(&self, xtrs: Vec<XtrConfig>) -> Self {
        let mut next = Self::of(Options::default(), xtrs);
        for event in &self.stored {
            next.input(Input::Restore(event.clone()));
        }
        next.stored.clone_from(&self.stored);
        next.next_nonce = self.next_nonce;
        next
    }
}

impl Register {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let params = RegisterParams {
            flags: RegisterFlags {
                proxy_reply: self.proxy_reply,
                echo_notify: self.echo_notify,
                use_ttl: self.use_ttl,
                merge: self.merge,
                want_notify: self.want_notify,
                ..RegisterFlags::default()
            },
            nonce: Nonce(self.nonce),
            records: &self.records,
            ids: self.ids,
        };
        let mut bytes = Vec::new();
        encode_map_register(&params, &self.key, &mut bytes).unwrap();
        bytes
    }
}

impl Sent {
    /// Returns the records of a Map-Reply.
    pub(super) fn reply_records(&self) -> Vec<Record> {
        self.reply()
            .records()
            .map(|record| record.to_record(0).unwrap())
            .collect()
    }

    pub(super) fn reply(&self) -> MapReply<'_> {
        let Ok(Message::MapReply(reply)) = decode(&self.bytes) else {
            panic!("not a Map-Reply: {}", self.line());
        };
        reply
    }

    /// Whether it is a Map-Notify.
    pub(super) fn is_notify(&self) -> bool {
        matches!(decode(&self.bytes), Ok(Message::MapNotify(_)))
    }

    /// Returns nonce and records of a Map-Notify for the agent called `name`.
    pub(super) fn notify(&self, name: &str) -> (Nonce, Vec<Record>) {
        let Ok(Message::MapNotify(notify)) = decode(&self.bytes) else {
            panic!("not a Map-Notify: {}", self.line());
        };
        verify(&key(name), &self.bytes).unwrap();
        let records = notify
            .records()
            .map(|record| record.to_record(0).unwrap())
            .collect();
        (notify.nonce, records)
    }

    /// Describes the datagram in one line.
    pub(super) fn line(&self) -> String {
        let mut line = format!("{:?} {} ", self.via, self.dst);
        let records: Vec<_> = match decode(&self.bytes).unwrap() {
            Message::MapReply(reply) => {
                line.push_str("Map-Reply");
                reply
                    .records()
                    .map(|record| record.to_record(0).unwrap())
                    .collect()
            }
            Message::MapNotify(notify) => {
                line.push_str("Map-Notify");
                notify
                    .records()
                    .map(|record| record.to_record(0).unwrap())
                    .collect()
            }
            Message::MapRequest(_)
            | Message::MapRegister(_)
            | Message::MapNotifyAck(_)
            | Message::MapReferral(_)
            | Message::InfoRequest(_)
            | Message::Ecm(_) => panic!("no message of a Map-Server"),
        };
        for record in records {
            write!(line, ", {} for {} min", record.eid, record.ttl.minutes()).unwrap();
            for locator in &record.locators {
                match locator.rloc {
                    Rloc::Plain(address) => write!(line, " at {address}").unwrap(),
                    Rloc::WireGuard { endpoint, .. } => write!(line, " at {endpoint}").unwrap(),
                }
            }
            if record.locators.is_empty() {
                write!(line, " {}", record.action).unwrap();
            }
        }
        line
    }
}

/// Returns the acknowledgement of a Map-Notify by the agent called `name`.
pub(super) fn ack(name: &str, notify: &Sent) -> Vec<u8> {
    let (nonce, records) = notify.notify(name);
    let mut bytes = Vec::new();
    let records = &records;
    encode_map_notify_ack(
        &NotifyParams {
            nonce,
            records,
            handoff: None,
        },
        &key(name),
        &mut bytes,
    )
    .unwrap();
    bytes
}

/// Returns a bare Map-Request.
pub(super) fn request(
    source: Option<IpAddr>,
    itr_rlocs: &[IpAddr],
    eids: &[&str],
    nonce: u64,
) -> Vec<u8> {
    request_with(RequestFlags::default(), source, itr_rlocs, eids, nonce)
}

pub(super) fn request_with(
    flags: RequestFlags,
    source: Option<IpAddr>,
    itr_rlocs: &[IpAddr],
    eids: &[&str],
    nonce: u64,
) -> Vec<u8> {
    let requested = |text: &&str| RequestedEid {
        subscribe: false,
        eid: eid(text),
    };
    let params = RequestParams {
        flags,
        nonce: Nonce(nonce),
        source_eid: source.map(|source| (Default::default(), source)),
        itr_rlocs,
        eids: &eids.iter().map(requested).collect::<Vec<_>>(),
        source_record: None,
        gap: None,
        ids: None,
    };
    let mut bytes = Vec::new();
    encode_map_request(&params, &mut bytes).unwrap();
    bytes
}

/// Wraps a Map-Request from port `port` of `source`.
pub(super) fn ecm(source: &str, port: u16, destination: &str, inner: &[u8]) -> Vec<u8> {
    let source = SocketAddr::new(ip(source), port);
    let destination = SocketAddr::new(ip(destination), 4342);
    let mut bytes = Vec::new();
    encode_ecm(source, destination, inner, &mut bytes).unwrap();
    bytes
}

/// Returns what the agent called `name` registers: an IPv4 and an IPv6 host prefix.
pub(super) fn own_records(name: &str) -> [Record; 2] {
    let number = number(name);
    let endpoint = format!("192.0.2.{number}:51820");
    [
        record(&format!("10.0.0.{number}"), &endpoint),
        record(&format!("fd00:1::{number}"), &endpoint),
    ]
}

/// Returns a record with one WireGuard locator and a TTL of a day.
pub(super) fn record(prefix: &str, endpoint: &str) -> Record {
    let endpoint: SocketAddr = endpoint.parse().unwrap();
    let mut key = [1; 32];
    key[0] = endpoint
        .to_string()
        .bytes()
        .fold(1, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte));
    let rloc = Rloc::WireGuard {
        endpoint,
        key: PublicKey(key),
    };
    Record {
        locators: vec![locator(rloc)],
        ..empty(prefix, 1440)
    }
}

/// Returns a record with one locator without a key, as gear without WireGuard registers.
pub(super) fn plain_record(prefix: &str, address: &str) -> Record {
    Record {
        locators: vec![locator(Rloc::Plain(ip(address)))],
        ..empty(prefix, 1440)
    }
}

/// Returns a record without locators; with `minutes` 0 it is a withdrawal.
pub(super) fn empty(prefix: &str, minutes: u32) -> Record {
    Record {
        eid: eid(prefix),
        ttl: Ttl::from_minutes(minutes),
        action: NegativeAction::NoAction,
        authoritative: false,
        locators: Vec::new(),
    }
}

const fn locator(rloc: Rloc) -> Locator {
    Locator {
        priority: 1,
        weight: 100,
        local: false,
        probed: false,
        reachable: true,
        rloc,
    }
}

/// Returns where the agent called `name` sends from inside the control tunnel.
pub(super) fn control(name: &str) -> SocketAddr {
    SocketAddr::new(ip(&format!("fd4c:1::{name}")), 4342)
}

/// Returns the key of an agent in the control tunnel.
pub(super) fn control_key(name: &str) -> PublicKey {
    PublicKey([0xc0 | u8::try_from(number(name)).unwrap(); 32])
}

pub(super) fn key(name: &str) -> AuthKey {
    match name {
        "gear" => AuthKey::new(0, Algorithm::Sha1_96, b"password").with_tag_len(true),
        name => AuthKey::new(1, Algorithm::Sha256_128Hkdf, name.as_bytes()),
    }
}

pub(super) fn eid(text: &str) -> EidPrefix {
    text.parse().unwrap()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn number(name: &str) -> usize {
    ["a", "b", "c"]
        .iter()
        .position(|other| *other == name)
        .unwrap()
        + 1
}

/// An xTR with a control tunnel that may register these prefixes.
pub(super) fn agent(name: &str, eid_prefixes: Vec<EidPrefix>) -> XtrConfig {
    XtrConfig {
        name: name.into(),
        control_address: Some(control(name).ip()),
        auth: key(name),
        xtr_id: None,
        site_id: None,
        replay_check: true,
        eid_prefixes,
        more_specifics: false,
    }
}

pub(super) fn xtrs() -> Vec<XtrConfig> {
    let agent = |name: &str| {
        let own = own_records(name);
        agent(name, own.iter().map(|record| record.eid).collect())
    };
    let gear = XtrConfig {
        name: "gear".into(),
        control_address: None,
        auth: key("gear"),
        xtr_id: None,
        site_id: None,
        replay_check: true,
        eid_prefixes: vec![eid("192.168.0.0/16")],
        more_specifics: true,
    };
    vec![agent("a"), agent("b"), agent("c"), gear]
}
