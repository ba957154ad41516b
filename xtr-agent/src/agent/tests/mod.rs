//! An agent on a bench: its inputs by hand, its actions as words.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the one variant that it wants"
)]

use lisp_proto::{
    Action as MapAction, Algorithm, Handoff, Locator, MapRequest, Message, NotifyParams, Record,
    ReplyParams, RequestFlags, RequestParams, RequestedEid, Rloc, decode, encode_map_notify,
    encode_map_reply, encode_map_request, verify,
};

mod anew;
mod apart;
mod carry;
mod change_servers;
mod changes;
mod doubts;
mod failover;
mod floods;
mod handover;
mod handover_words;
mod handshakes;
mod idle;
mod multihomed;
mod nat;
mod order;
mod overlaps;
mod paths;
mod proxies;
mod publications;
mod reconfigure;
mod refusals;
mod rules;
mod snapshot;
mod storms;
mod subscriptions;
mod trace;

use super::ip_header::tests::packet;
use bytes::Bytes;
use lisp_proto::{AuthKey, InstanceId, SiteId, Ttl, XtrId};

use super::*;

const OWN: PublicKey = PublicKey([5; 32]);
const BIGGER: PublicKey = PublicKey([9; 32]);
const SMALLER: PublicKey = PublicKey([1; 32]);
const SERVER: &str = "[fd4c:1::1]:4342";

fn key() -> AuthKey {
    AuthKey::new(1, Algorithm::Sha256_128Hkdf, b"secret")
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// An agent with a clock, and what it did last.
struct Bench {
    agent: Agent,
    now: Timestamp,
}

impl Bench {
    fn config() -> Config {
        Config {
            map_servers: vec![MapServer {
                address: SERVER.parse().unwrap(),
                key: key(),
                outer: None,
            }],
            iid: InstanceId(0),
            eid_prefixes: vec![net("10.0.0.1/32"), net("fd00:1::1/128")],
            serves: Vec::new(),
            shared: false,
            overlay: vec![net("10.0.0.0/8"), net("fd00:1::/48")],
            control_address: addr("fd4c:1::a"),
            public_key: OWN,
            listen_port: 51820,
            rlocs: vec![addr("192.0.2.1").into()],
            ids: Some((XtrId([7; 16]), SiteId([0; 8]))),
            keyless: false,
            encapsulate_requests: false,
            ttl: Ttl::from_minutes(15),
            register_interval: Duration::from_secs(60),
            first_nonce: Nonce(1000),
            hold: Duration::from_secs(3),
            idle: Duration::from_secs(300),
            translates: Translates::Nothing,
            tells_handshakes: false,
            max_peers: 70_000,
            subscriptions: Vec::new(),
            witnesses: Vec::new(),
        }
    }

    /// An agent with another configuration.
    fn with(config: Config) -> Self {
        Self {
            agent: Agent::new(config, [3; 32]),
            now: Timestamp::ZERO,
        }
    }

    fn new() -> Self {
        Self::with(Self::config())
    }

    fn input(&mut self, input: Input<'_>) -> Vec<Action> {
        let mut actions = Actions::default();
        self.agent.handle(self.now, input, &mut actions);
        actions.drain().collect()
    }

    fn heard(&mut self, bytes: &[u8]) -> Vec<Action> {
        self.input(Input::Datagram {
            src: SERVER.parse().unwrap(),
            bytes,
        })
    }

    fn after(&mut self, wait: Duration) -> Vec<Action> {
        self.now = self.now + wait;
        self.input(Input::Tick)
    }

    fn reply(&mut self, nonce: Nonce, record: &Record) -> Vec<Action> {
        let mut bytes = Vec::new();
        let records = std::slice::from_ref(record);
        let params = ReplyParams {
            probe: false,
            echo_nonce: false,
            nonce,
            records,
        };
        encode_map_reply(&params, &mut bytes).unwrap();
        self.heard(&bytes)
    }

    fn notify(&mut self, nonce: u64, record: &Record) -> Vec<Action> {
        self.notify_all(nonce, std::slice::from_ref(record))
    }

    fn notify_all(&mut self, nonce: u64, records: &[Record]) -> Vec<Action> {
        self.notify_of(nonce, records, None)
    }

    fn notify_of(
        &mut self,
        nonce: u64,
        records: &[Record],
        handoff: Option<Handoff>,
    ) -> Vec<Action> {
        let mut bytes = Vec::new();
        encode_map_notify(
            &NotifyParams {
                nonce: Nonce(nonce),
                records,
                handoff,
            },
            &key(),
            &mut bytes,
        )
        .unwrap();
        self.heard(&bytes)
    }

    /// Reports every change in `actions` as done.
    fn done(&mut self, actions: &[Action]) -> Vec<Action> {
        self.reported(actions, true)
    }

    /// Reports every change in `actions` as refused.
    fn failed(&mut self, actions: &[Action]) -> Vec<Action> {
        self.reported(actions, false)
    }

    fn reported(&mut self, actions: &[Action], ok: bool) -> Vec<Action> {
        let mut out = Vec::new();
        for action in actions {
            if let Action::Apply { id, .. } = action {
                out.extend(self.input(Input::Applied { id: *id, ok }));
            }
        }
        out
    }

    /// Has a push of one of `SMALLER`'s mappings installed, its handshake seen after so many bytes,
    /// and its route set.
    fn connect(&mut self, nonce: u64, record: &Record, bytes: u64) {
        let installing = self.notify(nonce, record);
        self.done(&installing);
        let fired = self.handshake(SMALLER, bytes);
        self.done(&fired);
    }

    fn handshake(&mut self, key: PublicKey, bytes: u64) -> Vec<Action> {
        self.input(Input::PeerStats(&[PeerStats {
            key,
            endpoint: None,
            handshake_seen: true,
            rx_bytes: bytes,
            tx_bytes: 0,
            read_at: self.now,
        }]))
    }

    /// Everything in sight, for "nothing changed".
    fn fingerprint(&self) -> String {
        let Agent {
            cache,
            resolver,
            peers,
            servers,
            acks,
            changes,
            ..
        } = &self.agent;
        format!("{cache:?}{resolver:?}{peers:?}{servers:?}{acks:?}{changes:?}")
    }
}

fn record(eid: &str, key: PublicKey, ttl: Ttl) -> Record {
    Record {
        eid: EidPrefix::new(InstanceId(0), net(eid)),
        ttl,
        action: MapAction::NoAction,
        authoritative: false,
        locators: vec![Locator {
            priority: 1,
            weight: 100,
            local: false,
            probed: false,
            reachable: true,
            rloc: Rloc::WireGuard {
                endpoint: "192.0.2.2:51820".parse().unwrap(),
                key,
            },
        }],
    }
}

fn far_end(key: PublicKey) -> Record {
    record("10.0.0.2/32", key, Ttl::from_minutes(15))
}

fn to_far_end(payload: &[u8]) -> Vec<u8> {
    packet("10.0.0.1", "10.0.0.2", payload)
}

fn sent(actions: &[Action]) -> Vec<&Bytes> {
    let sent = actions.iter().filter_map(|action| match action {
        Action::Send { bytes, .. } => Some(bytes),
        _ => None,
    });
    sent.collect()
}

fn requests(actions: &[Action]) -> Vec<MapRequest<'_>> {
    let messages = sent(actions)
        .into_iter()
        .map(|bytes| decode(bytes).unwrap());
    let requests = messages.filter_map(|message| match message {
        Message::MapRequest(request) => Some(request),
        _ => None,
    });
    requests.collect()
}

/// One word per action that matters to the data plane or the sender.
fn story(actions: &[Action]) -> Vec<String> {
    let words = actions.iter().filter_map(|action| {
        Some(match action {
            Action::Send { bytes, .. } => match decode(bytes).unwrap() {
                Message::MapRequest(_) => "request".to_owned(),
                Message::MapRegister(_) => "register".to_owned(),
                Message::MapNotifyAck(_) => "ack".to_owned(),
                Message::InfoRequest(_) => "info".to_owned(),
                other => panic!("sent {other:?}"),
            },
            Action::Apply { change, .. } => match change {
                Change::SetPeer(spec) => format!("peer {:?}", spec.allowed_ips),
                Change::RemovePeer(_) => "no peer".to_owned(),
                Change::AddRoute(prefix) => format!("route {prefix}"),
                Change::RemoveRoute(prefix) => format!("no route {prefix}"),
            },
            Action::Kick(_) => "kick".to_owned(),
            Action::AwaitHandshake(_) => "wait for a session".to_owned(),
            Action::RenewControlTunnel(_) => "new control tunnel".to_owned(),
            Action::Reinject(packet) => format!("sent on {}", packet.last()?),
            Action::Deliver(_) => "icmp".to_owned(),
            Action::Echo { to, .. } => format!("echo {to}"),
            Action::LeaveFrom { to, from } => format!("{to} from {from:?}"),
            Action::Listen => "listen".to_owned(),
            Action::Hear => "hear".to_owned(),
            Action::Carry(carry) => format!("{carry:?}"),
            Action::Count(reason) => format!("{reason:?}"),
            Action::ReadPeerStats(_) | Action::ReadPeerStatsAnew(_) | Action::Event(_) => {
                return None;
            }
        })
    });
    words.collect()
}

fn question(flags: RequestFlags, eid: &str, pad: usize) -> Vec<u8> {
    question_by("198.51.100.1", flags, eid, pad)
}

fn question_by(itr_rloc: &str, flags: RequestFlags, eid: &str, pad: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let itr_rlocs = vec![addr(itr_rloc); 1 + pad];
    let params = RequestParams {
        flags,
        nonce: Nonce(77),
        source_eid: None,
        itr_rlocs: &itr_rlocs,
        eids: &[RequestedEid {
            subscribe: false,
            eid: eid.parse().unwrap(),
        }],
        source_record: None,
        gap: None,
        ids: None,
    };
    encode_map_request(&params, &mut bytes).unwrap();
    bytes
}
