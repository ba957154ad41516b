//! Hosts with two uplinks, the first of which fails.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use xtr_agent::agent::{Input, Uplink};

use super::net::{Hole, Host};
use super::server_host::ServerHost;
use super::world::World;

/// What a host with a second uplink knows of the ways to others.
#[derive(Debug)]
pub(super) struct Second {
    /// Its other address.
    pub(super) address: IpAddr,
    /// At which address it was reached by whom: WireGuard answers from there.
    reached: BTreeMap<IpAddr, IpAddr>,
    /// From which address packets leave, by where they go, if that was chosen.
    chosen: BTreeMap<IpAddr, IpAddr>,
    /// The first uplink has no carrier.
    first_is_down: bool,
}

impl Second {
    pub(super) const fn new(address: IpAddr) -> Self {
        Self {
            address,
            reached: BTreeMap::new(),
            chosen: BTreeMap::new(),
            first_is_down: false,
        }
    }

    /// From which address a packet to `dst` leaves, if the first one is `first`.
    pub(super) fn source(&self, first: IpAddr, dst: IpAddr) -> IpAddr {
        let chosen = self.chosen.get(&dst).or_else(|| self.reached.get(&dst));
        match chosen {
            _ if self.first_is_down => self.address,
            Some(chosen) => *chosen,
            None => first,
        }
    }

    /// A packet of `src` has come to the address `dst`.
    pub(super) fn is_reached(&mut self, src: IpAddr, dst: IpAddr) {
        self.reached.insert(src, dst);
    }

    /// The data plane is told that a peer is at `endpoint`.
    pub(super) fn is_told(&mut self, endpoint: SocketAddr) {
        self.reached.remove(&endpoint.ip());
    }

    /// Packets to `to` leave from `from`.
    pub(super) fn choose(&mut self, to: IpAddr, from: Option<IpAddr>) {
        match from {
            Some(from) => self.chosen.insert(to, from),
            None => self.chosen.remove(&to),
        };
    }

    /// A map server at `server` is silent: it is reached by the other uplink.
    pub(super) fn turn(&mut self, server: IpAddr, first: IpAddr) {
        let next = match self.source(first, server) {
            used if used == first => self.address,
            _ => first,
        };
        self.chosen.insert(server, next);
    }
}

/// The uplinks of a host with the address `first`, as its agent knows them.
pub(super) fn uplinks(first: IpAddr, second: Option<IpAddr>) -> Vec<Uplink> {
    let steers = second.is_some();
    let both = [Some(first), second].into_iter().flatten();
    let uplinks = both.zip(1..).map(|(address, priority)| Uplink {
        priority,
        steers,
        ..Uplink::from(address)
    });
    uplinks.collect()
}

impl World {
    /// The first uplink of an agent loses what comes, or what goes, or its carrier.
    pub(super) fn uplink_fails(
        &mut self,
        fault: usize,
        number: u32,
        [comes, goes, carrier]: [bool; 3],
    ) {
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        let Some(second) = &mut host.second else {
            return;
        };
        let address = host.rloc;
        let hole = Hole {
            address,
            comes,
            goes,
        };
        self.network.set_hole(fault, hole);
        if carrier {
            second.first_is_down = true;
            let left = [Uplink {
                priority: 2,
                steers: true,
                ..Uplink::from(second.address)
            }];
            self.agent_input(number, Input::LocalRlocs(&left));
        }
    }

    /// It works again.
    pub(super) fn uplink_is_back(&mut self, fault: usize, number: u32) {
        self.network.clear(fault);
        let Some(host) = self.agents.get_mut(number as usize) else {
            return;
        };
        if let Some(second) = &mut host.second
            && std::mem::take(&mut second.first_is_down)
        {
            let both = uplinks(host.rloc, Some(second.address));
            self.agent_input(number, Input::LocalRlocs(&both));
        }
    }

    /// The second uplink of an agent.
    pub(super) fn second_of(&mut self, number: u32) -> Option<&mut Second> {
        self.agents.get_mut(number as usize)?.second.as_mut()
    }

    /// The map server with this index does not answer an agent, which tries its other uplink.
    pub(super) fn turn_for_server(&mut self, number: u32, index: usize) {
        let server = self.servers.get(index).map(ServerHost::rloc);
        let host = self.agents.get_mut(number as usize);
        if let (Some(server), Some(host)) = (server, host)
            && let Some(second) = &mut host.second
        {
            second.turn(server, host.rloc);
        }
    }

    /// The address that packets of an agent leave from, if there is a choice.
    pub(super) fn source_of(&self, from: Host, src: SocketAddr, dst: SocketAddr) -> SocketAddr {
        let Host::Agent(number) = from else {
            return src;
        };
        let host = self.agents.get(number as usize);
        let second = host.and_then(|host| host.second.as_ref());
        second.map_or(src, |second| {
            SocketAddr::new(second.source(src.ip(), dst.ip()), src.port())
        })
    }
}
