use std::collections::BTreeMap;
use std::net::SocketAddr;

use lisp_proto::{PublicKey, Rloc, SiteId, XtrId};
use proptest::prelude::*;

use super::*;
use crate::server::sites::tests::xtr;

/// What is registered, written down in the plainest way.
#[derive(Default)]
struct Model(BTreeMap<EidPrefix, BTreeMap<Registrant, (Registration, Timestamp)>>);

impl Model {
    fn store(&mut self, eid: EidPrefix, registrant: Registrant, it: Registration, now: Timestamp) {
        let all = self.0.entry(eid).or_default();
        all.retain(|other, (old, _)| *other == registrant || (it.merge && old.merge));
        let expires = now + it.lifetime;
        all.insert(registrant, (it, expires));
    }

    fn withdraw(&mut self, eid: &EidPrefix, registrant: &Registrant) {
        if let Some(all) = self.0.get_mut(eid) {
            all.remove(registrant);
        }
        self.0.retain(|_, all| !all.is_empty());
    }

    fn registrations(&self) -> Vec<(EidPrefix, Registrant, Registration)> {
        let all = self
            .0
            .iter()
            .flat_map(|(eid, all)| all.iter().map(|(who, (it, _))| (*eid, *who, it.clone())));
        all.collect()
    }

    fn registered_by(&self, xtr: XtrIndex, iid: InstanceId) -> Vec<EidPrefix> {
        let theirs = self
            .0
            .iter()
            .filter(|(eid, all)| eid.iid() == iid && all.keys().any(|who| who.xtr == xtr));
        theirs.map(|(eid, _)| *eid).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Store(usize, Registrant, Box<Registration>),
    Withdraw(usize, Registrant),
    Wait(u64),
}

/// Prefixes inside each other, of two instances, one of them configured.
const EIDS: [&str; 8] = [
    "10.0.0.0/8",
    "10.0.0.1",
    "10.0.0.2",
    "[7]10.0.0.1",
    "fd00::/16",
    "fd00::1",
    "[7]fd00::1",
    "172.16.0.0/12",
];

fn eid(number: usize) -> EidPrefix {
    EIDS[number].parse().unwrap()
}

fn registrant() -> impl Strategy<Value = Registrant> {
    (0usize..3, prop::option::of(0u8..2)).prop_map(|(number, ids)| Registrant {
        xtr: xtr(number),
        ids: ids.map(|id| (XtrId([id; 16]), SiteId([0; 8]))),
    })
}

fn registration() -> impl Strategy<Value = Registration> {
    let locator = (0u8..2, any::<bool>(), any::<[bool; 3]>(), 0u8..3).prop_map(
        |(host, keyed, flags, priority)| {
            let endpoint: SocketAddr = if host == 0 {
                "192.0.2.1:51820"
            } else {
                "[2001:db8::1]:7"
            }
            .parse()
            .unwrap();
            let key = PublicKey([priority; 32]);
            let [local, probed, reachable] = flags;
            let rloc = if keyed {
                Rloc::WireGuard { endpoint, key }
            } else {
                Rloc::Plain(endpoint.ip())
            };
            Locator {
                priority,
                weight: 1,
                local,
                probed,
                reachable,
                rloc,
            }
        },
    );
    (
        prop::collection::vec(locator, 0..3),
        any::<[bool; 3]>(),
        1u32..3,
        1u64..300,
        4341u16..4343,
    )
        .prop_map(
            |(locators, [merge, want_notify, full_tag], minutes, seconds, port)| Registration {
                ttl: Ttl::from_minutes(minutes),
                locators,
                merge,
                want_notify,
                contact: Contact {
                    source: ([192, 0, 2, 9], port).into(),
                    full_tag,
                },
                lifetime: Duration::from_secs(seconds),
            },
        )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..EIDS.len(), registrant(), registration()).prop_map(|(eid, who, it)| Step::Store(eid, who, Box::new(it))),
        1 => (0..EIDS.len(), registrant()).prop_map(|(eid, who)| Step::Withdraw(eid, who)),
        1 => (0u64..200).prop_map(Step::Wait),
    ]
}

fn mappings() -> Mappings {
    Mappings::new([eid(0), eid(7)].into_iter())
}

proptest! {
    #[test]
    fn the_database_agrees_with_a_plain_list(steps in prop::collection::vec(step(), 0..60)) {
        let (mut mappings, mut model, mut now) = (mappings(), Model::default(), Timestamp::ZERO);
        for step in steps {
            match step {
                Step::Store(number, who, it) => {
                    let before = mappings.exact(&eid(number)).map(|mapping| mapping.record());
                    let known = mappings.registration(&eid(number), &who);
                    let change = match mappings.renew(&eid(number), who, it.said(), now) {
                        Some(renewed) => {
                            prop_assert_eq!(renewed.is_known, known.as_ref() == Some(&*it));
                            renewed.change
                        }
                        None => mappings.store(eid(number), who, (*it).clone(), now).unwrap().change,
                    };
                    let after = mappings.exact(&eid(number)).unwrap().record();
                    prop_assert_eq!(change == Change::Updated, before != Some(after));
                    model.store(eid(number), who, *it, now);
                }
                Step::Withdraw(number, who) => {
                    mappings.withdraw(&eid(number), &who);
                    model.withdraw(&eid(number), &who);
                }
                Step::Wait(seconds) => {
                    now = now + Duration::from_secs(seconds);
                    while let Some((eid, who, _)) = mappings.expire(now) {
                        let expires = model.0[&eid][&who].1;
                        prop_assert!(expires <= now);
                        model.withdraw(&eid, &who);
                    }
                    let left = model.0.values().flat_map(|all| all.values().map(|(_, at)| *at)).min();
                    prop_assert!(left.is_none_or(|left| left > now));
                    prop_assert!(left.is_none_or(|left| mappings.next_deadline().is_some_and(|at| at <= left)));
                }
            }
            let mut all: Vec<_> = mappings.registrations().collect();
            all.sort_by_key(|(eid, who, _)| (*eid, *who));
            prop_assert_eq!(all, model.registrations());
            for number in 0..3 {
                for iid in [InstanceId(0), InstanceId(7)] {
                    let theirs = mappings.registered_by(xtr(number), iid, usize::MAX);
                    prop_assert_eq!(mappings.has_registered(xtr(number), iid), !theirs.is_empty());
                    prop_assert_eq!(theirs, model.registered_by(xtr(number), iid));
                }
            }
        }
    }
}

#[test]
fn a_host_mapping_takes_little_room() {
    assert_eq!(size_of::<Slot>(), 84);
}

#[test]
fn a_refresh_of_a_shared_prefix_is_a_renewal() {
    let mut mappings = mappings();
    let who = Registrant::any(xtr(0));
    let locator = Locator {
        priority: 1,
        weight: 1,
        local: true,
        probed: false,
        reachable: true,
        rloc: Rloc::WireGuard {
            endpoint: "192.0.2.1:51820".parse().unwrap(),
            key: PublicKey([1; 32]),
        },
    };
    let it = Registration {
        ttl: Ttl::from_minutes(1),
        locators: vec![locator],
        merge: true,
        want_notify: false,
        contact: Contact {
            source: "192.0.2.9:4342".parse().unwrap(),
            full_tag: false,
        },
        lifetime: Duration::from_secs(180),
    };
    let now = Timestamp::ZERO;
    mappings.store(eid(1), who, it.clone(), now).unwrap();
    let renewed = mappings.renew(&eid(1), who, it.said(), now);
    let (change, is_known) = (Change::None, true);
    assert_eq!(renewed, Some(Renewed { change, is_known }));
    let other = Said {
        merge: false,
        ..it.said()
    };
    assert_eq!(mappings.renew(&eid(1), who, other, now), None);
}

#[test]
fn what_comes_and_goes_leaves_no_timers_behind() {
    let mut mappings = mappings();
    let who = Registrant::any(xtr(0));
    let it = Registration {
        ttl: Ttl::from_minutes(1),
        locators: Vec::new(),
        merge: false,
        want_notify: false,
        contact: Contact {
            source: "192.0.2.9:4342".parse().unwrap(),
            full_tag: false,
        },
        lifetime: limits::REGISTRATION_LIFETIME_MAX,
    };
    for ms in 0..50_000 {
        mappings
            .store(eid(1), who, it.clone(), Timestamp(ms * 1_000_000))
            .unwrap();
        mappings.withdraw(&eid(1), &who);
    }
    assert!(mappings.expiry.len() < 10_000);
}
