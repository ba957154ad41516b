//! Attackers: they have seen datagrams, and can send any bytes from any address, but have no key.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use lisp_proto::{
    EidPrefix, InstanceId, Message, Nonce, RequestFlags, RequestParams, RequestedEid, Timestamp,
    decode, encode_ecm, encode_map_request,
};
use map_server::Via;
use rand::Rng;
use xtr_agent::agent::{Action, Actions, Input};

use super::addresses;
use super::invariant::Invariant;
use super::sabotage::Sabotage;
use super::stats::message_type;
use super::world::World;

/// Datagrams that attackers remember.
const OVERHEARD: usize = 256;

/// What an attacker sends.
struct Forgery {
    bytes: Vec<u8>,
    /// Not a copy: at least one byte is other than somebody with a key has written it.
    altered: bool,
}

impl World {
    /// Attackers take note of a datagram.
    pub(super) fn overhear(&mut self, bytes: &Bytes) {
        if self.overheard.len() >= OVERHEARD {
            self.overheard.pop_front();
        }
        self.overheard.push_back(bytes.clone());
    }

    /// Attackers send datagrams to the control port of an agent.
    pub(super) fn attack_agent(&mut self, number: u32, datagrams: u32) {
        if self.sabotaged(Sabotage::ForgedPush) {
            self.forge_push(number);
        }
        for _ in 0..datagrams {
            let Forgery { bytes, altered } = self.forge();
            // Through the tunnel comes only what a map server sent. Should it be otherwise, a
            // message that is authenticated still cannot be altered.
            let authenticated = matches!(message_type(&bytes), "map-notify");
            let src = if altered && authenticated && self.streams.attack.random() {
                addresses::server(0)
            } else {
                self.foreign_address()
            };
            let now = self.now();
            let host = self.agents.get_mut(number as usize);
            let Some(running) = host.and_then(|host| host.running.as_deref_mut()) else {
                return;
            };
            let local = Timestamp::ZERO + (now - running.started);
            let before = running.agent.fingerprint();
            let mut actions = Actions::default();
            running
                .agent
                .handle(local, Input::Datagram { src, bytes: &bytes }, &mut actions);
            let changed = running.agent.fingerprint() != before;
            let done: Vec<Action> = actions
                .drain()
                .filter(|action| !matches!(action, Action::Count(_)))
                .collect();
            if changed || !done.is_empty() {
                let what = super::words::message(&bytes);
                self.broken(Invariant::Silence, || {
                    format!("agent {number} believes {what} from {src}: {done:?}")
                });
            }
            self.wake_agent(number);
        }
    }

    /// Attackers send datagrams to the control port of a map server.
    pub(super) fn attack_server(&mut self, number: u32, datagrams: u32) {
        let open_door = self.sabotaged(Sabotage::OpenDoor);
        let before = self
            .running_server(number)
            .map(|running| running.server.fingerprint());
        let mut last = String::new();
        for _ in 0..datagrams {
            let Forgery { bytes, altered } = self.forge();
            let (src, via) = if open_door && self.streams.attack.random() {
                (self.somebodys_address(), Via::Tunnel)
            } else if altered
                && matches!(
                    decode(&bytes),
                    Ok(Message::MapRegister(_) | Message::MapNotifyAck(_))
                )
            {
                // An agent that has gone bad can send what it likes, but not sign for others.
                (self.somebodys_address(), Via::Tunnel)
            } else if self.streams.attack.random() {
                (self.somebodys_address(), Via::Plain)
            } else {
                (self.foreign_address(), Via::Plain)
            };
            last = format!("{} from {src} {via:?}", super::words::message(&bytes));
            let answered = self.server_answers(number, src, via, &bytes);
            if answered > bytes.len() {
                let asked = bytes.len();
                self.broken(Invariant::Amplification, || {
                    format!("server {number} answers {asked} bytes with {answered}: {last}")
                });
                return;
            }
        }
        let after = self
            .running_server(number)
            .map(|running| running.server.fingerprint());
        if before != after {
            self.broken(Invariant::Silence, || {
                format!("server {number} believes one of {datagrams} datagrams; the last: {last}")
            });
        }
    }

    /// Gives a datagram of an attacker to a map server; returns the bytes it answers with.
    fn server_answers(&mut self, number: u32, src: SocketAddr, via: Via, bytes: &[u8]) -> usize {
        let now = self.now();
        let mut answered = 0;
        if self.sabotaged(Sabotage::Chatty) {
            answered += bytes.len() * 2;
        }
        let Some(running) = self.running_server(number) else {
            return 0;
        };
        let mut actions = map_server::Actions::new();
        let local = running.local(now);
        running.server.handle(
            local,
            map_server::Input::Datagram { src, via, bytes },
            &mut actions,
        );
        for action in actions.drain() {
            if let map_server::Action::Send { bytes, .. } = action {
                answered += bytes.len();
            }
        }
        answered
    }

    /// Makes a datagram: a question, noise, or something overheard, whole, cut or altered.
    fn forge(&mut self) -> Forgery {
        if self.streams.attack.random_bool(0.2) {
            return Forgery {
                bytes: self.forge_request(),
                altered: true,
            };
        }
        let rng = &mut self.streams.attack;
        let heard = if self.overheard.is_empty() {
            0
        } else {
            rng.random_range(0..self.overheard.len())
        };
        let Some(heard) = self.overheard.get(heard).filter(|_| rng.random_bool(0.9)) else {
            let mut bytes = vec![0; rng.random_range(0..200)];
            rng.fill(bytes.as_mut_slice());
            return Forgery {
                bytes,
                altered: true,
            };
        };
        let mut bytes = heard.to_vec();
        match rng.random_range(0..4) {
            0 => {
                return Forgery {
                    bytes,
                    altered: false,
                };
            }
            1 => bytes.truncate(rng.random_range(0..bytes.len().max(1))),
            2 => bytes.extend(std::iter::repeat_n(0, rng.random_range(1..9))),
            _ => {
                for _ in 0..rng.random_range(1..4) {
                    let at = rng.random_range(0..bytes.len().max(1));
                    let bit = 1 << rng.random_range(0..8);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= bit;
                    }
                }
            }
        }
        let altered = bytes != heard.as_ref();
        Forgery { bytes, altered }
    }

    /// A Map-Request as anybody can write it, in all its varieties.
    fn forge_request(&mut self) -> Vec<u8> {
        let agents = self.scenario.agents.max(1);
        let rng = &mut self.streams.attack;
        let (asking, asked) = (rng.random_range(0..agents), rng.random_range(0..agents));
        let (ipv6, subscribe) = (rng.random(), rng.random());
        let eid = addresses::eid(asked, ipv6, 0);
        let params = RequestParams {
            flags: RequestFlags {
                authoritative: rng.random(),
                probe: rng.random(),
                smr: rng.random(),
                pitr: rng.random(),
                smr_invoked: rng.random(),
                local_in_rloc_set: rng.random(),
                no_reply: rng.random(),
            },
            nonce: Nonce(rng.random()),
            source_eid: Some((InstanceId(0), addresses::eid(asking, ipv6, 0))),
            itr_rlocs: &[addresses::control(asking).ip()],
            eids: &[RequestedEid {
                subscribe,
                eid: EidPrefix::host(InstanceId(0), eid),
            }],
            source_record: None,
            gap: None,
            ids: subscribe.then(|| addresses::ids(asking)),
        };
        let encapsulated: bool = rng.random();
        let (mut bare, mut ecm) = (Vec::new(), Vec::new());
        let (from, to) = (addresses::control(asking), addresses::server(0));
        let written = encode_map_request(&params, &mut bare)
            .and_then(|()| encode_ecm(from, to, &bare, &mut ecm));
        if encapsulated && written.is_ok() {
            return ecm;
        }
        bare
    }

    fn foreign_address(&mut self) -> SocketAddr {
        let address: u32 = self.streams.attack.random();
        SocketAddr::new(
            Ipv4Addr::from(address | 0x8000_0000).into(),
            self.streams.attack.random(),
        )
    }

    /// The address of an agent inside the control tunnels.
    fn somebodys_address(&mut self) -> SocketAddr {
        let agents = self.scenario.agents.max(1);
        let somebody: IpAddr = addresses::control(self.streams.attack.random_range(0..agents)).ip();
        SocketAddr::new(somebody, addresses::CONTROL_PORT)
    }
}
