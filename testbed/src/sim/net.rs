//! Does a datagram arrive, when, and how often? The underlay between the hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lisp_proto::Timestamp;
use rand::Rng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::addresses;
use super::nat::Nat;
use super::routers::Router;

/// Delay between two hosts at the same place.
const DELAY_MIN: Duration = Duration::from_micros(500);
/// Delay from one edge of the map to the other, on top of that.
const DELAY_ACROSS: Duration = Duration::from_millis(30);
/// Largest addition to a delay in good weather.
const JITTER: Duration = Duration::from_micros(300);
/// How late a datagram may be that is overtaken by others.
const REORDER_MAX: Duration = Duration::from_secs(2);

/// Somebody with a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Host {
    /// An agent, by number.
    Agent(u32),
    /// A map server, by number.
    Server(u32),
}

/// What the network does to every datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Weather {
    /// Probability that it is lost.
    pub(super) loss: f64,
    /// Probability that it arrives twice.
    pub(super) duplicate: f64,
    /// Probability that others overtake it.
    pub(super) reorder: f64,
    /// Largest addition to the delay.
    pub(super) delay: Duration,
}

/// Whom a cable cut separates.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    /// One side; the other one is everybody else.
    pub(super) side: BTreeSet<Host>,
    /// Whether datagrams into the side still pass.
    pub(super) one_way: bool,
}

/// An address that does not work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hole {
    pub(super) address: IpAddr,
    /// Whether what comes to it is lost.
    pub(super) comes: bool,
    /// Whether what goes from it is lost.
    pub(super) goes: bool,
}

/// The underlay.
#[derive(Debug)]
pub(super) struct Network {
    ipv6: bool,
    places: BTreeMap<Host, (f64, f64)>,
    attached: BTreeMap<IpAddr, Attached>,
    next_rloc: u32,
    routers: BTreeMap<u32, Home>,
    /// Behind which of them an agent is, and under which address.
    behind: BTreeMap<u32, (u32, IpAddr)>,
    weather: BTreeMap<usize, Weather>,
    cuts: BTreeMap<usize, Cut>,
    holes: BTreeMap<usize, Hole>,
}

#[derive(Clone, Copy, Debug)]
enum Attached {
    Host(Host),
    /// The NAT of this number.
    Nat(u32),
}

/// A NAT, and who is behind it.
#[derive(Debug)]
struct Home {
    nat: Nat,
    hosts: BTreeMap<IpAddr, u32>,
}

/// A datagram that was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Passage {
    /// From which address it will seem to come.
    pub(super) src: SocketAddr,
    /// The NAT behind which it stays, if it does not leave.
    pub(super) inside: Option<u32>,
    /// After how long each copy of it arrives.
    pub(super) copies: [Option<Duration>; 2],
}

impl Network {
    pub(super) const fn new(ipv6: bool) -> Self {
        Self {
            ipv6,
            places: BTreeMap::new(),
            attached: BTreeMap::new(),
            next_rloc: 0,
            routers: BTreeMap::new(),
            behind: BTreeMap::new(),
            weather: BTreeMap::new(),
            cuts: BTreeMap::new(),
            holes: BTreeMap::new(),
        }
    }

    /// Gives `host` a place and an address of its own.
    pub(super) fn attach(&mut self, host: Host, rng: &mut StdRng) -> IpAddr {
        self.places.insert(host, (rng.random(), rng.random()));
        self.renumber(host, None)
    }

    /// Puts an agent behind a NAT of its own; returns what it takes for its address.
    pub(super) fn attach_behind_nat(&mut self, agent: u32, rng: &mut StdRng) -> IpAddr {
        let place = (rng.random(), rng.random());
        self.places.insert(Host::Agent(agent), place);
        let inner = addresses::private_rloc(agent, self.ipv6);
        self.put_behind(agent, agent, inner, Nat::plain);
        inner
    }

    /// Puts an agent behind the NAT `number`, where others may be; returns what it takes for its address. Behind
    /// another NAT somebody else may have the same one.
    pub(super) fn attach_inside(
        &mut self,
        agent: u32,
        (number, router): (u32, &Router),
        rng: &mut StdRng,
    ) -> IpAddr {
        let present = self.routers.get(&number).map(|home| &home.hosts);
        let neighbour = present.and_then(|hosts| hosts.values().next());
        let place = neighbour.and_then(|agent| self.places.get(&Host::Agent(*agent)));
        let place = place
            .copied()
            .unwrap_or_else(|| (rng.random(), rng.random()));
        self.places.insert(Host::Agent(agent), place);
        let count = present.map_or(0, BTreeMap::len);
        let inner = addresses::inner_rloc(count, self.ipv6);
        self.put_behind(agent, number, inner, |public| {
            Nat::new(public, router.ports, router.forgets())
        });
        inner
    }

    fn put_behind(
        &mut self,
        agent: u32,
        number: u32,
        inner: IpAddr,
        make: impl FnOnce(IpAddr) -> Nat,
    ) {
        if !self.routers.contains_key(&number) {
            let nat = make(self.new_rloc());
            self.attached.insert(nat.public(), Attached::Nat(number));
            let hosts = BTreeMap::new();
            self.routers.insert(number, Home { nat, hosts });
        }
        if let Some(home) = self.routers.get_mut(&number) {
            home.hosts.insert(inner, agent);
        }
        self.behind.insert(agent, (number, inner));
    }

    /// Gives `host` another address in place of `old`.
    pub(super) fn renumber(&mut self, host: Host, old: Option<IpAddr>) -> IpAddr {
        if let Some(old) = old {
            self.attached.remove(&old);
        }
        let rloc = self.new_rloc();
        self.attached.insert(rloc, Attached::Host(host));
        rloc
    }

    /// Whether the agent is behind a NAT.
    pub(super) fn behind_nat(&self, agent: u32) -> bool {
        self.behind.contains_key(&agent)
    }

    /// Makes the NAT of an agent forget everything.
    pub(super) fn restart_nat(&mut self, agent: u32) {
        if let Some(home) = self.home_of(agent) {
            home.nat.forget();
        }
    }

    /// Gives the NAT of an agent another address.
    pub(super) fn renumber_nat(&mut self, agent: u32) {
        let Some((number, _)) = self.behind.get(&agent).copied() else {
            return;
        };
        let public = self.new_rloc();
        if let Some(home) = self.routers.get_mut(&number) {
            let before = home.nat.renumber(public);
            self.attached.remove(&before);
            self.attached.insert(public, Attached::Nat(number));
        }
    }

    fn home_of(&mut self, agent: u32) -> Option<&mut Home> {
        let (number, _) = self.behind.get(&agent)?;
        self.routers.get_mut(number)
    }

    /// Starts the weather, or the cut, that fault `fault` brings.
    pub(super) fn set_weather(&mut self, fault: usize, weather: Weather) {
        self.weather.insert(fault, weather);
    }

    /// Starts a cut.
    pub(super) fn set_cut(&mut self, fault: usize, cut: Cut) {
        self.cuts.insert(fault, cut);
    }

    /// An address stops working.
    pub(super) fn set_hole(&mut self, fault: usize, hole: Hole) {
        self.holes.insert(fault, hole);
    }

    /// Ends whatever fault `fault` had brought.
    pub(super) fn clear(&mut self, fault: usize) {
        self.weather.remove(&fault);
        self.cuts.remove(&fault);
        self.holes.remove(&fault);
    }

    /// How long a datagram takes in good weather.
    pub(super) fn delay(&self, from: Host, to: Host) -> Duration {
        let place = |host| self.places.get(&host).copied().unwrap_or_default();
        let ((x1, y1), (x2, y2)) = (place(from), place(to));
        // The map is a square with an edge of 1 / sqrt(2): its diagonal is 1.
        let distance = (x1 - x2).hypot(y1 - y2) / std::f64::consts::SQRT_2;
        DELAY_MIN + DELAY_ACROSS.mul_f64(distance)
    }

    /// Sends a datagram on its way.
    pub(super) fn send(
        &mut self,
        now: Timestamp,
        from: Host,
        src: SocketAddr,
        dst: SocketAddr,
        rng: &mut StdRng,
    ) -> Passage {
        let (src, inside, to) = self.way(now, from, src, dst);
        let mut passage = Passage {
            src,
            inside,
            copies: [None; 2],
        };
        let Some(to) = to.filter(|to| !self.is_cut(from, *to)) else {
            return passage;
        };
        let mut holes = self.holes.values();
        let is_lost = holes.any(|hole| {
            let comes = hole.comes && hole.address == dst.ip();
            comes || hole.goes && hole.address == src.ip()
        });
        if is_lost {
            return passage;
        }
        let base = self.delay(from, to);
        let weather = self.total_weather();
        let first = self.copy(base, weather, rng);
        let again = weather.duplicate > 0.0 && rng.random_bool(weather.duplicate);
        let second = if again {
            self.copy(base, weather, rng)
        } else {
            None
        };
        passage.copies = [first, second];
        passage
    }

    /// From which address a datagram seems to come, behind which NAT it stays, and whom it is for: behind a NAT
    /// that is somebody at least whom the same may happen to.
    fn way(
        &mut self,
        now: Timestamp,
        from: Host,
        src: SocketAddr,
        dst: SocketAddr,
    ) -> (SocketAddr, Option<u32>, Option<Host>) {
        let mut seen = src;
        if let Host::Agent(agent) = from
            && let Some((number, _)) = self.behind.get(&agent).copied()
            && let Some(home) = self.routers.get_mut(&number)
        {
            if let Some(neighbour) = home.hosts.get(&dst.ip()) {
                return (src, Some(number), Some(Host::Agent(*neighbour)));
            }
            if dst.ip() == home.nat.public() {
                // It sends nothing back in that comes from inside.
                return (src, None, None);
            }
            seen = home.nat.outbound(now, src, dst);
        }
        let to = self.attached.get(&dst.ip()).and_then(|to| match to {
            Attached::Host(host) => Some(*host),
            Attached::Nat(number) => {
                let home = self.routers.get(number)?;
                let holder = home.nat.holder(dst.port());
                let holder = holder.and_then(|inside| home.hosts.get(&inside.ip()));
                let agent = holder.or_else(|| home.hosts.values().next());
                agent.copied().map(Host::Agent)
            }
        });
        (seen, None, to)
    }

    /// Who receives a datagram that arrives now, and at which port of its own; `inside` says behind which NAT it
    /// has stayed.
    pub(super) fn receiver(
        &mut self,
        now: Timestamp,
        src: SocketAddr,
        dst: SocketAddr,
        inside: Option<u32>,
    ) -> Option<(Host, u16)> {
        if let Some(number) = inside {
            let agent = self.routers.get(&number)?.hosts.get(&dst.ip())?;
            return Some((Host::Agent(*agent), dst.port()));
        }
        match self.attached.get(&dst.ip())? {
            Attached::Host(host) => Some((*host, dst.port())),
            Attached::Nat(number) => {
                let home = self.routers.get_mut(number)?;
                let inside = home.nat.inbound(now, dst.port(), src)?;
                let agent = home.hosts.get(&inside.ip())?;
                Some((Host::Agent(*agent), inside.port()))
            }
        }
    }

    fn copy(&self, base: Duration, weather: Weather, rng: &mut StdRng) -> Option<Duration> {
        if weather.loss > 0.0 && rng.random_bool(weather.loss) {
            return None;
        }
        let late = if weather.reorder > 0.0 && rng.random_bool(weather.reorder) {
            // Mostly a little, sometimes a lot.
            REORDER_MAX.mul_f64(rng.random::<f64>().powi(4))
        } else {
            Duration::ZERO
        };
        let jitter = (JITTER + weather.delay).mul_f64(rng.random());
        Some(base + jitter + late)
    }

    fn total_weather(&self) -> Weather {
        self.weather
            .values()
            .fold(Weather::default(), |total, part| Weather {
                loss: total.loss.max(part.loss),
                duplicate: total.duplicate.max(part.duplicate),
                reorder: total.reorder.max(part.reorder),
                delay: total.delay.max(part.delay),
            })
    }

    fn is_cut(&self, from: Host, to: Host) -> bool {
        self.cuts.values().any(
            |cut| match (cut.side.contains(&from), cut.side.contains(&to)) {
                (true, false) => true,
                (false, true) => !cut.one_way,
                (true, true) | (false, false) => false,
            },
        )
    }

    fn new_rloc(&mut self) -> IpAddr {
        let rloc = addresses::rloc(self.next_rloc, self.ipv6);
        self.next_rloc += 1;
        rloc
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::seeds::stream;

    const A: Host = Host::Agent(0);
    const B: Host = Host::Agent(1);

    fn arrivals(network: &mut Network, from: Host, src: SocketAddr, dst: SocketAddr) -> usize {
        let mut rng = stream(1, "test");
        let copies = (0..1_000).flat_map(|_| {
            network
                .send(Timestamp::ZERO, from, src, dst, &mut rng)
                .copies
        });
        copies.flatten().count()
    }

    #[test]
    fn weather_loses_and_doubles_as_often_as_it_says() {
        let mut rng = stream(1, "places");
        let mut network = Network::new(false);
        let a = SocketAddr::new(network.attach(A, &mut rng), 1);
        let b = SocketAddr::new(network.attach(B, &mut rng), 1);
        assert_eq!(arrivals(&mut network, A, a, b), 1_000);
        let loss = Weather {
            loss: 0.3,
            ..Weather::default()
        };
        network.set_weather(0, loss);
        let count = arrivals(&mut network, A, a, b);
        assert!((640..760).contains(&count), "{count}");
        let duplicate = Weather {
            duplicate: 0.5,
            ..Weather::default()
        };
        network.set_weather(0, duplicate);
        let count = arrivals(&mut network, A, a, b);
        assert!((1_430..1_570).contains(&count), "{count}");
        network.clear(0);
        assert_eq!(arrivals(&mut network, A, a, b), 1_000);
    }

    #[test]
    fn cuts_separate_both_ways_or_one_way() {
        let mut rng = stream(1, "places");
        let mut network = Network::new(true);
        let a = SocketAddr::new(network.attach(A, &mut rng), 1);
        let b = SocketAddr::new(network.attach(B, &mut rng), 1);
        let side = BTreeSet::from([A]);
        network.set_cut(
            3,
            Cut {
                side: side.clone(),
                one_way: false,
            },
        );
        assert_eq!(
            (
                arrivals(&mut network, A, a, b),
                arrivals(&mut network, B, b, a)
            ),
            (0, 0)
        );
        network.set_cut(
            3,
            Cut {
                side,
                one_way: true,
            },
        );
        assert_eq!(
            (
                arrivals(&mut network, A, a, b),
                arrivals(&mut network, B, b, a)
            ),
            (0, 1_000)
        );
    }

    #[test]
    fn an_old_address_leads_nowhere() {
        let mut rng = stream(1, "places");
        let mut network = Network::new(false);
        let (a, b) = (network.attach(A, &mut rng), network.attach(B, &mut rng));
        let moved = network.renumber(A, Some(a));
        let [a, b, moved] = [a, b, moved].map(|address| SocketAddr::new(address, 7));
        assert_eq!(network.receiver(Timestamp::ZERO, b, a, None), None);
        assert_eq!(
            network.receiver(Timestamp::ZERO, b, moved, None),
            Some((A, 7))
        );
    }
}
