//! Who may have whose connections, which of them does the other one know, and which are taken?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use lisp_proto::Timestamp;
use wg_device::{Flow, FlowKey, FlowState};

use super::limits::{FLOWS_PER_CLIENT, OFFERED_FOR, OFFERS, TIMEOUT_MAX_S};
use super::wire::Frame;

/// Clients that leave, and who may have their connections.
#[derive(Debug, Default)]
pub(super) struct Offers {
    to: BTreeMap<IpNet, (IpAddr, Timestamp)>,
}

impl Offers {
    /// Lets `to` have those of `client` from now on; the one that was offered first gives way when there
    /// is no room.
    pub(super) fn offer(&mut self, now: Timestamp, client: IpNet, to: IpAddr) {
        self.expire(now);
        if self.to.len() >= OFFERS && !self.to.contains_key(&client) {
            let oldest = self.to.iter().min_by_key(|(_, (_, until))| *until);
            if let Some(oldest) = oldest.map(|(client, _)| *client) {
                self.to.remove(&oldest);
            }
        }
        self.to.insert(client, (to, now + OFFERED_FOR));
    }

    /// Whether `by` may have those of `client`.
    pub(super) fn allows(&self, now: Timestamp, client: &IpNet, by: IpAddr) -> bool {
        let offer = self.to.get(client);
        offer.is_some_and(|(to, until)| *to == by && now < *until)
    }

    /// Whether `by` may have those of anybody.
    pub(super) fn knows(&self, now: Timestamp, by: IpAddr) -> bool {
        let mut offers = self.to.values();
        offers.any(|(to, until)| *to == by && now < *until)
    }

    /// Ends the offer of `client`.
    pub(super) fn end(&mut self, client: &IpNet) {
        self.to.remove(client);
    }

    /// Ends those that nobody has made use of for so long; says whether none is left.
    pub(super) fn expire(&mut self, now: Timestamp) -> bool {
        self.to.retain(|_, (_, until)| now < *until);
        self.to.is_empty()
    }
}

/// Connections of one client that the other proxy was told of.
#[derive(Debug, Default)]
pub(super) struct Told {
    flows: BTreeMap<FlowKey, Flow>,
}

impl Told {
    /// Returns what has changed, if `flows` are those there are by now. Further states of one that is
    /// known are no news: the other proxy follows its packets by then.
    pub(super) fn news(&mut self, flows: &[Flow]) -> Vec<Frame> {
        let alive = flows.iter().filter(|flow| flow.is_alive());
        let alive: BTreeMap<_, _> = alive.map(|flow| (flow.key(), *flow)).collect();
        let gone = self.flows.extract_if(.., |key, _| !alive.contains_key(key));
        let mut news: Vec<_> = gone.map(|(_, flow)| Frame::Gone(flow)).collect();
        for (key, flow) in alive {
            if self.flows.len() < FLOWS_PER_CLIENT && !self.flows.contains_key(&key) {
                self.flows.insert(key, flow);
                news.push(Frame::Flow(flow));
            }
        }
        news
    }
}

/// Connections of one client that are taken from another proxy.
#[derive(Debug)]
pub(super) struct Taken {
    client: IpNet,
    public: Vec<IpAddr>,
    held: BTreeSet<FlowKey>,
    refused: u32,
}

impl Taken {
    /// None by now; those of `client` are taken whose far ends see an address of `public`.
    pub(super) const fn new(client: IpNet, public: Vec<IpAddr>) -> Self {
        Self {
            client,
            public,
            held: BTreeSet::new(),
            refused: 0,
        }
    }

    /// Returns what is to be entered of a connection that there is; `None` if it is refused.
    pub(super) fn take(&mut self, flow: &Flow) -> Option<Flow> {
        let ends = [flow.source, flow.destination, flow.translated];
        let one_family = ends
            .iter()
            .all(|end| end.is_ipv4() == flow.source.is_ipv4());
        let is_good = self.client.contains(&flow.source.ip())
            && self.public.contains(&flow.translated.ip())
            && one_family
            && ends.iter().all(|end| end.port() != 0)
            && flow.is_alive()
            && !matches!(flow.state, FlowState::Tcp(tcp) if tcp.state == 0)
            && self.held.len() < FLOWS_PER_CLIENT;
        if !is_good {
            self.refused = self.refused.saturating_add(1);
            return None;
        }
        Some(Flow {
            timeout_s: flow.timeout_s.clamp(1, TIMEOUT_MAX_S),
            ..*flow
        })
    }

    /// One that was to be entered is there, or could not be.
    pub(super) fn entered(&mut self, flow: &Flow, is_there: bool) {
        if is_there {
            self.held.insert(flow.key());
        } else {
            self.refused = self.refused.saturating_add(1);
        }
    }

    /// Whether one that is gone is to be deleted: it came this way.
    pub(super) fn give_up(&mut self, flow: &Flow) -> bool {
        self.held.remove(&flow.key())
    }

    /// How many are there, and how many could not be taken.
    pub(super) fn counts(&self) -> (u32, u32) {
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        (held, self.refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use wg_device::TcpState;

    fn flow(source: &str, translated: &str) -> Flow {
        Flow {
            state: FlowState::Tcp(TcpState {
                state: 3,
                window_scales: [7; 2],
                flags: [3; 2],
            }),
            source: source.parse().unwrap(),
            destination: "198.51.100.2:80".parse().unwrap(),
            translated: translated.parse().unwrap(),
            timeout_s: 1_000,
            answered: true,
            assured: true,
        }
    }

    fn in_state(state: u8) -> Flow {
        let tcp = TcpState {
            state,
            window_scales: [0; 2],
            flags: [0; 2],
        };
        Flow {
            state: FlowState::Tcp(tcp),
            ..flow("10.0.0.3:1", "203.0.113.9:1")
        }
    }

    fn client() -> IpNet {
        "10.0.0.3/32".parse().unwrap()
    }

    #[test]
    fn only_whom_a_client_goes_to_may_have_its_connections_and_only_for_a_while() {
        let (b, other) = ([10, 0, 1, 2].into(), [10, 0, 1, 3].into());
        let mut offers = Offers::default();
        let start = Timestamp::ZERO;
        offers.offer(start, client(), b);
        assert!(offers.allows(start, &client(), b) && offers.knows(start, b));
        assert!(!offers.allows(start, &client(), other) && !offers.knows(start, other));
        let wider = "10.0.0.0/24".parse().unwrap();
        assert!(!offers.allows(start, &wider, b));
        offers.offer(start, client(), other);
        assert!(
            !offers.allows(start, &client(), b),
            "it goes elsewhere by now"
        );
        let late = start + OFFERED_FOR;
        assert!(!offers.allows(late, &client(), other) && !offers.knows(late, other));
        assert!(!offers.expire(start) && offers.expire(late));
        offers.offer(late, client(), b);
        offers.end(&client());
        assert!(!offers.allows(late, &client(), b));
    }

    #[test]
    fn there_is_room_for_so_many_offers() {
        let mut offers = Offers::default();
        let host = |number: usize| IpAddr::V4(u32::try_from(number).unwrap().into()).into();
        for number in 0..=OFFERS {
            let now = Timestamp::ZERO + Duration::from_micros(number as u64);
            offers.offer(now, host(number), [10, 0, 1, 2].into());
        }
        assert_eq!(offers.to.len(), OFFERS);
        assert!(!offers.to.contains_key(&host(0)) && offers.to.contains_key(&host(OFFERS)));
    }

    #[test]
    fn news_is_what_has_begun_and_what_is_over() {
        let [first, second] = [1, 2].map(|port| flow(&format!("10.0.0.3:{port}"), "203.0.113.9:7"));
        let mut told = Told::default();
        assert_eq!(told.news(&[first]), [Frame::Flow(first)]);
        let later = Flow {
            timeout_s: 7,
            ..first
        };
        assert_eq!(told.news(&[later, second]), [Frame::Flow(second)]);
        assert_eq!(told.news(&[second]), [Frame::Gone(first)]);
        assert_eq!(
            told.news(&[in_state(7), second]),
            [],
            "it waits to be forgotten"
        );
    }

    #[test]
    fn what_is_taken_is_of_the_client_and_of_the_own_address_and_alive() {
        let mut taken = Taken::new(client(), vec![[203, 0, 113, 9].into()]);
        let good = Flow {
            timeout_s: u32::MAX,
            ..flow("10.0.0.3:40000", "203.0.113.9:1024")
        };
        let entered = taken.take(&good).unwrap();
        assert_eq!(entered.timeout_s, TIMEOUT_MAX_S);
        taken.entered(&entered, true);
        let mut bad = vec![
            flow("10.0.0.4:40000", "203.0.113.9:1024"),
            flow("10.0.0.3:40000", "203.0.113.8:1024"),
            flow("10.0.0.3:0", "203.0.113.9:1024"),
            flow("[fd00::1]:1", "203.0.113.9:1024"),
            Flow {
                destination: "[2001:db8::1]:80".parse().unwrap(),
                ..good
            },
        ];
        bad.extend([0, 7, 8, 255].map(in_state));
        for (before, flow) in bad.iter().enumerate() {
            assert_eq!(taken.counts(), (1, u32::try_from(before).unwrap()));
            assert_eq!(taken.take(flow), None, "{flow:?}");
        }
        assert!(!taken.give_up(&bad[0]) && taken.give_up(&good) && !taken.give_up(&good));
        assert_eq!(taken.counts().0, 0);
    }

    #[test]
    fn no_more_are_told_or_taken_than_there_is_room_for() {
        let all = (0..=FLOWS_PER_CLIENT).map(|number| {
            let port = u16::try_from(number % 60_000).unwrap() + 1;
            let far = u32::try_from(number / 60_000).unwrap() + 1;
            Flow {
                source: ([10, 0, 0, 3], port).into(),
                destination: (std::net::Ipv4Addr::from(far), 80).into(),
                ..flow("10.0.0.3:1", "203.0.113.9:1")
            }
        });
        let all: Vec<_> = all.collect();
        assert_eq!(Told::default().news(&all).len(), FLOWS_PER_CLIENT);
        let mut taken = Taken::new(client(), vec![[203, 0, 113, 9].into()]);
        for flow in &all {
            if let Some(flow) = taken.take(flow) {
                taken.entered(&flow, true);
            }
        }
        let held = u32::try_from(FLOWS_PER_CLIENT).unwrap();
        assert_eq!(taken.counts(), (held, 1));
    }
}
