//! An agent under a sequence of packets, good and bent messages, and answers
//! of its data plane.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp_proto::{
    Connections, EidPrefix, Handoff, InstanceId, Message, Nonce, NotifyParams, ReplyParams,
    RequestFlags, RequestParams, RequestedEid, SiteId, Timestamp, Ttl, XtrId, decode,
    encode_info_reply, encode_map_notify, encode_map_reply, encode_map_request,
};
use xtr_agent::agent::{
    Action, Actions, Agent, Carry, Change, ChangeId, Config, Input, MapServer, PeerStats,
    Translates, Uplink,
};

use super::{Choices, bend, control, key, prefix, record};

const SERVER: u8 = 100;
const STRANGER: u8 = 200;

/// Uplinks that tunnels can be made to leave by, those whose bits are set, with these priorities.
fn uplinks(which: u8, priorities: [u8; 3]) -> Vec<Uplink> {
    let all = [
        IpAddr::from([192, 0, 2, 1]),
        IpAddr::from([198, 51, 100, 1]),
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xffff]),
    ];
    let numbered = (0..).zip(all).zip(priorities);
    let there = numbered.filter(|((bit, _), _)| which >> bit & 1 != 0);
    let uplinks = there.map(|((_, address), priority)| Uplink {
        priority,
        steers: true,
        ..Uplink::from(address)
    });
    uplinks.collect()
}

/// An agent that has a control tunnel, or none.
fn new_agent(keyless: bool, rlocs: Vec<Uplink>) -> Agent {
    let net = |text: &str| text.parse().expect("a prefix");
    let config = Config {
        map_servers: vec![MapServer {
            address: control(SERVER),
            key: key(SERVER),
            outer: Some((
                lisp_proto::PublicKey([0xee; 32]),
                SocketAddr::from(([203, 0, 113, 1], 51820)),
            )),
        }],
        iid: InstanceId(0),
        eid_prefixes: vec![net("10.1.0.0/32"), net("fd00:1:1::/128")],
        serves: Vec::new(),
        shared: false,
        overlay: vec![net("10.0.0.0/8"), net("fd00:1::/32")],
        control_address: control(1).ip(),
        public_key: lisp_proto::PublicKey([4; 32]),
        listen_port: 51820,
        rlocs,
        ids: Some((XtrId([1; 16]), SiteId([0; 8]))),
        keyless,
        encapsulate_requests: false,
        ttl: Ttl::from_minutes(15),
        register_interval: Duration::from_secs(60),
        first_nonce: Nonce(1),
        hold: Duration::from_secs(3),
        idle: Duration::from_secs(300),
        translates: Translates::ToShared,
        tells_handshakes: !keyless,
        max_peers: 25_000,
        subscriptions: vec![net("10.2.0.0/24"), net("fd00:1:2::/64")],
        witnesses: vec![[10, 2, 0, 0].into(), [10, 3, 1, 0].into()],
    };
    Agent::new(config, [9; 32])
}

/// Runs the sequence that `bytes` describe.
///
/// Panics when a rule is broken: a held packet is sent twice to the same peer, a stranger gets
/// more bytes than it sent, something ill-formed is sent, packets are made to leave from an address
/// that is not there, or time stands still.
pub fn run(bytes: &[u8]) {
    // The length decides, so that the rest means the same to either.
    let (keyless, steers) = (bytes.len() % 4 == 3, bytes.len() / 4 % 2 == 1);
    let rlocs = match steers {
        true => uplinks(7, [1, 2, 1]),
        false => vec![IpAddr::from([192, 0, 2, 1]).into()],
    };
    let mut world = World {
        agent: new_agent(keyless, rlocs.clone()),
        rlocs,
        steered: BTreeMap::new(),
        now: Timestamp::ZERO,
        asked: Vec::new(),
        registered: Nonce(0),
        whereabouts: None,
        changes: Vec::new(),
        awaited: Vec::new(),
        echoes: Vec::new(),
        fate: BTreeMap::new(),
        serial: 0,
    };
    world.step(Input::Start, 0);
    let mut choices = Choices(bytes);
    for _ in 0..96 {
        if !choices.more() {
            break;
        }
        let wait = [0, 1, 300, 20_000][usize::from(choices.below(4))];
        world.now = world.now + Duration::from_millis(wait);
        world.turn(&mut choices);
        world.settle();
    }
    world.step(Input::Shutdown, 0);
}

struct World {
    agent: Agent,
    /// Addresses at which it is reached.
    rlocs: Vec<Uplink>,
    /// From which of those packets were made to leave, by where they go.
    steered: BTreeMap<IpAddr, IpAddr>,
    now: Timestamp,
    asked: Vec<Nonce>,
    registered: Nonce,
    /// The last question where it is seen.
    whereabouts: Option<(Nonce, EidPrefix)>,
    changes: Vec<ChangeId>,
    /// Peers whose handshakes the agent wants to be told of.
    awaited: Vec<lisp_proto::PublicKey>,
    /// Echoes that nobody has answered.
    echoes: Vec<(IpAddr, u16)>,
    /// How often each captured packet was sent on.
    fate: BTreeMap<u32, u32>,
    serial: u32,
}

impl World {
    fn turn(&mut self, choices: &mut Choices<'_>) {
        let mut datagram = Vec::new();
        match choices.below(8) {
            0 | 1 => {
                let packet = self.packet(choices);
                return self.step(Input::TunPacket(&packet), 0);
            }
            2 => {
                if !self.changes.is_empty() {
                    let id = self.changes.remove(0);
                    let ok = choices.below(8) != 7;
                    self.step(Input::Applied { id, ok }, 0);
                } else if self.rlocs.iter().any(|it| it.steers) {
                    self.change_uplinks(choices);
                }
                return;
            }
            3 => {
                let stats: Vec<_> = (0..choices.below(4))
                    .map(|_| self.counters(choices))
                    .collect();
                if stats.is_empty()
                    && let Some(key) = self.awaited.pop()
                {
                    return self.step(Input::Handshake(key), 0);
                }
                if stats.is_empty()
                    && let Some((from, number)) = self.echoes.pop()
                {
                    let answer = match number % 4 {
                        3 => Input::EchoNotSent(number),
                        _ => Input::EchoAnswered { from, number },
                    };
                    return self.step(answer, 0);
                }
                return self.step(Input::PeerStats(&stats), 0);
            }
            4 => self.reply(choices, &mut datagram),
            5 => self.notify(choices, &mut datagram),
            6 => match self.whereabouts {
                Some(asked) if choices.below(4) != 0 => info_reply(asked, choices, &mut datagram),
                _ => question(choices, &mut datagram),
            },
            _ => datagram.extend(choices.bytes()),
        }
        bend(&mut datagram, choices);
        let stranger = choices.below(8) == 7;
        let src = control(if stranger { STRANGER } else { SERVER });
        let most = if stranger { datagram.len() } else { usize::MAX };
        self.step(
            Input::Datagram {
                src,
                bytes: &datagram,
            },
            most,
        );
    }

    /// Uplinks come and go, or others are better.
    fn change_uplinks(&mut self, choices: &mut Choices<'_>) {
        let priorities = [0; 3].map(|_| 1 + choices.below(3));
        self.rlocs = uplinks(1 + choices.below(7), priorities);
        let rlocs = self.rlocs.clone();
        self.step(Input::LocalRlocs(&rlocs), 0);
        let is_there = |from: &IpAddr| rlocs.iter().any(|it| it.address == *from);
        assert!(
            self.steered.values().all(is_there),
            "by an uplink that is gone"
        );
    }

    fn counters(&self, choices: &mut Choices<'_>) -> PeerStats {
        let key = lisp_proto::PublicKey([1 + choices.below(8); 32]);
        let handshake_seen = choices.below(2) == 0;
        let [rx, tx] = [0; 2].map(|_| choices.byte());
        // Where it is heard from.
        let endpoint = SocketAddr::from(([192, 0, 2, rx], 1 + u16::from(tx)));
        PeerStats {
            key,
            endpoint: (rx % 4 == 3).then_some(endpoint),
            handshake_seen,
            rx_bytes: rx.into(),
            tx_bytes: tx.into(),
            read_at: self.now,
        }
    }

    /// Packets to `to` are made to leave from `from`.
    fn steer(&mut self, to: IpAddr, from: Option<IpAddr>) {
        let Some(from) = from else {
            self.steered.remove(&to);
            return;
        };
        let mut uplinks = self.rlocs.iter().filter(|it| it.steers);
        assert!(uplinks.any(|it| it.address == from), "no uplink of ours");
        assert_eq!(from.is_ipv4(), to.is_ipv4(), "of another family");
        self.steered.insert(to, from);
    }

    /// A UDP packet of this overlay with a number of its own.
    fn packet(&mut self, choices: &mut Choices<'_>) -> Vec<u8> {
        self.serial += 1;
        let far = choices.below(4);
        let mut packet = if choices.below(2) == 0 {
            let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 0];
            packet.extend([10, far, choices.below(4), 0]);
            packet
        } else {
            let mut packet = vec![0x60, 0, 0, 0, 0, 12, 17, 64];
            packet.extend(
                "fd00:1:1::"
                    .parse::<std::net::Ipv6Addr>()
                    .expect("one")
                    .octets(),
            );
            let dst = std::net::Ipv6Addr::new(0xfd00, 1, far.into(), 0, 0, 0, 0, 1);
            packet.extend(dst.octets());
            packet
        };
        packet.extend([0, 9, 0, 9, 0, 12, 0, 0]);
        packet.extend(self.serial.to_be_bytes());
        packet
    }

    fn reply(&mut self, choices: &mut Choices<'_>, out: &mut Vec<u8>) {
        let Some(nonce) = self.asked.pop() else {
            return;
        };
        let records: Vec<_> = (0..1 + choices.below(3))
            .map(|_| {
                let eid = prefix(choices.below(4), choices);
                record(eid, choices)
            })
            .collect();
        let params = ReplyParams {
            probe: false,
            echo_nonce: false,
            nonce,
            records: &records,
        };
        encode_map_reply(&params, out).expect("it fits");
    }

    fn notify(&mut self, choices: &mut Choices<'_>, out: &mut Vec<u8>) {
        let answered = |asked: &mut Vec<Nonce>| asked.pop().unwrap_or(Nonce(0));
        let nonce = match choices.below(4) {
            0 => self.registered,
            1 => answered(&mut self.asked),
            _ => Nonce(1000 + u64::from(choices.byte())),
        };
        let eid = prefix(choices.below(4), choices);
        let records = [record(eid, choices)];
        let far = [10, 3, 0, choices.byte()].into();
        let handoff = match choices.below(4) {
            0 => Some(Handoff::From(far)),
            1 => Some(Handoff::To(far)),
            _ => None,
        };
        let params = NotifyParams {
            nonce,
            records: &records,
            handoff,
        };
        encode_map_notify(&params, &key(SERVER), out).expect("it fits");
    }

    fn step(&mut self, input: Input<'_>, most: usize) {
        let mut actions = Actions::default();
        self.agent.handle(self.now, input, &mut actions);
        let (mut answered, mut heard, mut carried) = (0, false, Vec::new());
        for action in actions.drain() {
            match action {
                Action::Send { dst, bytes } => {
                    if dst.ip() == control(STRANGER).ip() {
                        answered += bytes.len();
                    }
                    match decode(&bytes).expect("what we send is well-formed") {
                        Message::MapRequest(request) => self.asked.push(request.nonce),
                        Message::MapRegister(register) => self.registered = register.nonce,
                        Message::InfoRequest(info) => {
                            let eid = info.eid().expect("it has one");
                            self.whereabouts = Some((info.nonce, eid));
                        }
                        _ => {}
                    }
                }
                Action::Apply { id, change } => {
                    // What a peer that is taken out had kept may be sent again.
                    if matches!(change, Change::RemovePeer(_)) {
                        self.fate.clear();
                    }
                    self.changes.push(id);
                }
                // A hello to a far end, of which there are many: an echo request.
                Action::Reinject(packet) if is_icmp(&packet) => {}
                Action::Reinject(packet) => {
                    let serial = packet.last_chunk::<4>().expect("it has a number");
                    let times = self.fate.entry(u32::from_be_bytes(*serial)).or_insert(0);
                    *times += 1;
                    assert_eq!(*times, 1, "a packet was sent on twice");
                }
                Action::AwaitHandshake(key) => self.awaited.push(key),
                Action::Echo { to, number } => self.echoes.push((to, number)),
                Action::Hear => heard = true,
                Action::Carry(carry) => carried.push(carry),
                Action::LeaveFrom { to, from } => self.steer(to, from),
                Action::Kick(_)
                | Action::RenewControlTunnel(_)
                | Action::ReadPeerStats(_)
                | Action::ReadPeerStatsAnew(_)
                | Action::Listen
                | Action::Deliver(_)
                | Action::Count(_)
                | Action::Event(_) => {}
            }
        }
        assert!(answered <= most, "a stranger was answered with more");
        for carry in carried {
            match carry {
                Carry::Fetch { client, .. } => self.step(Input::Fetched(client), 0),
                Carry::Release { client } => self.step(
                    Input::Released {
                        client,
                        connections: Some(Connections { moved: 1, reset: 1 }),
                    },
                    0,
                ),
                Carry::Offer { .. } => {}
            }
        }
        if heard {
            let went = [[10, 2, 0, 1], [10, 1, 0, 0], [10, 3, 0, 1]].map(IpAddr::from);
            self.step(Input::Heard(&went), 0);
        }
    }

    fn settle(&mut self) {
        for _ in 0..1_000 {
            if self
                .agent
                .next_deadline()
                .is_none_or(|deadline| deadline > self.now)
            {
                return;
            }
            self.step(Input::Tick, 0);
        }
        panic!("the same deadline for ever");
    }
}

fn is_icmp(packet: &[u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(9) == Some(&1),
        Some(6) => packet.get(6) == Some(&58),
        _ => false,
    }
}

/// The map server sees the agent where that says that it is, behind a NAT, or in another family; or only its address.
fn info_reply((nonce, eid): (Nonce, EidPrefix), choices: &mut Choices<'_>, out: &mut Vec<u8>) {
    let address = match choices.below(4) {
        0 => IpAddr::from([192, 0, 2, 1]),
        1 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
        n => IpAddr::from([198, 51, 100, n]),
    };
    let port = u16::from(choices.below(3)) * 7_000;
    encode_info_reply(
        nonce,
        eid,
        SocketAddr::new(address, port),
        &key(SERVER),
        out,
    );
}

fn question(choices: &mut Choices<'_>, out: &mut Vec<u8>) {
    let flags = choices.byte();
    let params = RequestParams {
        flags: RequestFlags {
            probe: flags & 1 != 0,
            smr: flags & 2 != 0,
            ..RequestFlags::default()
        },
        nonce: Nonce(5),
        source_eid: None,
        itr_rlocs: &vec![control(STRANGER).ip(); 1 + usize::from(flags >> 5)],
        eids: &[RequestedEid {
            subscribe: false,
            eid: prefix(choices.below(4), choices),
        }],
        source_record: None,
        gap: None,
        ids: None,
    };
    encode_map_request(&params, out).expect("it fits");
}
