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

/// The underlay.
#[derive(Debug)]
pub(super) struct Network {
    ipv6: bool,
    places: BTreeMap<Host, (f64, f64)>,
    attached: BTreeMap<IpAddr, Attached>,
    next_rloc: u32,
    nats: BTreeMap<u32, Nat>,
    weather: BTreeMap<usize, Weather>,
    cuts: BTreeMap<usize, Cut>,
}

#[derive(Clone, Copy, Debug)]
enum Attached {
    Host(Host),
    /// The NAT of this agent.
    Nat(u32),
}

impl Network {
    pub(super) const fn new(ipv6: bool) -> Self {
        Self {
            ipv6,
            places: BTreeMap::new(),
            attached: BTreeMap::new(),
            next_rloc: 0,
            nats: BTreeMap::new(),
            weather: BTreeMap::new(),
            cuts: BTreeMap::new(),
        }
    }

    /// Gives `host` a place and an address of its own.
    pub(super) fn attach(&mut self, host: Host, rng: &mut StdRng) -> IpAddr {
        self.places.insert(host, (rng.random(), rng.random()));
        self.renumber(host, None)
    }

    /// Puts an agent behind a NAT of its own; returns what it takes for its address.
    pub(super) fn attach_behind_nat(&mut self, agent: u32, rng: &mut StdRng) -> IpAddr {
        self.places
            .insert(Host::Agent(agent), (rng.random(), rng.random()));
        let public = self.new_rloc();
        self.attached.insert(public, Attached::Nat(agent));
        self.nats.insert(agent, Nat::new(public));
        addresses::private_rloc(agent, self.ipv6)
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
        self.nats.contains_key(&agent)
    }

    /// Makes a NAT forget everything.
    pub(super) fn restart_nat(&mut self, agent: u32) {
        if let Some(nat) = self.nats.get_mut(&agent) {
            nat.forget();
        }
    }

    /// Starts the weather, or the cut, that fault `fault` brings.
    pub(super) fn set_weather(&mut self, fault: usize, weather: Weather) {
        self.weather.insert(fault, weather);
    }

    /// Starts a cut.
    pub(super) fn set_cut(&mut self, fault: usize, cut: Cut) {
        self.cuts.insert(fault, cut);
    }

    /// Ends whatever fault `fault` had brought.
    pub(super) fn clear(&mut self, fault: usize) {
        self.weather.remove(&fault);
        self.cuts.remove(&fault);
    }

    /// How long a datagram takes in good weather.
    pub(super) fn delay(&self, from: Host, to: Host) -> Duration {
        let place = |host| self.places.get(&host).copied().unwrap_or_default();
        let ((x1, y1), (x2, y2)) = (place(from), place(to));
        // The map is a square with an edge of 1 / sqrt(2): its diagonal is 1.
        let distance = (x1 - x2).hypot(y1 - y2) / std::f64::consts::SQRT_2;
        DELAY_MIN + DELAY_ACROSS.mul_f64(distance)
    }

    /// Sends a datagram on its way: from which address it will seem to come, and after how long
    /// each copy of it arrives.
    pub(super) fn send(
        &mut self,
        now: Timestamp,
        from: Host,
        src: SocketAddr,
        dst: SocketAddr,
        rng: &mut StdRng,
    ) -> (SocketAddr, [Option<Duration>; 2]) {
        let src = match from {
            Host::Agent(agent) => match self.nats.get_mut(&agent) {
                Some(nat) => nat.outbound(now, src.port(), dst),
                None => src,
            },
            Host::Server(_) => src,
        };
        let to = match self.attached.get(&dst.ip()) {
            Some(Attached::Host(host)) => *host,
            Some(Attached::Nat(agent)) => Host::Agent(*agent),
            None => return (src, [None; 2]),
        };
        if self.is_cut(from, to) {
            return (src, [None; 2]);
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
        (src, [first, second])
    }

    /// Who receives a datagram that arrives now, and at which port of its own.
    pub(super) fn receiver(
        &mut self,
        now: Timestamp,
        src: SocketAddr,
        dst: SocketAddr,
    ) -> Option<(Host, u16)> {
        match self.attached.get(&dst.ip())? {
            Attached::Host(host) => Some((*host, dst.port())),
            Attached::Nat(agent) => {
                let port = self.nats.get(agent)?.inbound(now, dst.port(), src)?;
                Some((Host::Agent(*agent), port))
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
        let copies =
            (0..1_000).flat_map(|_| network.send(Timestamp::ZERO, from, src, dst, &mut rng).1);
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
        assert_eq!(network.receiver(Timestamp::ZERO, b, a), None);
        assert_eq!(network.receiver(Timestamp::ZERO, b, moved), Some((A, 7)));
    }
}
