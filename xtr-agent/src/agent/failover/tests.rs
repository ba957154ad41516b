use super::super::limits::WITNESSES_KNOWN;
use super::*;

#[test]
fn of_many_lost_ones_the_latest_are_named() {
    let mut failover = Failover::default();
    for number in 1..=20 {
        let lost = Lost {
            endpoint: SocketAddr::new([192, 0, 2, number].into(), 51820),
            // Those with the smaller keys are the later ones.
            until: Timestamp(100 - u64::from(number % 16)),
            is_proven: true,
        };
        failover.lost.insert(PublicKey([number; 32]), lost);
    }
    let prefix = "10.0.0.0/8".parse().unwrap();
    let keys = [16, 200].map(|number| PublicKey([number; 32]));
    failover.prefixes.insert(prefix, keys.into());
    let named = failover.unreachable(&prefix);
    assert_eq!(named.len(), LOST_AT_ONCE);
    let names = |number: u8| {
        let key = PublicKey([number; 32]);
        named
            .iter()
            .any(|it| matches!(it.rloc, Rloc::WireGuard { key: it, .. } if it == key))
    };
    assert!(names(16) && names(1) && names(17) && !names(15));
}

#[test]
fn who_has_answered_is_remembered_within_a_bound() {
    let mut failover = Failover::default();
    let configured = [IpAddr::from([10, 0, 0, 1])];
    failover.learnt.push_front([10, 0, 0, 2].into());
    for number in 1..10_000_u16 {
        let [high, low] = number.to_be_bytes();
        failover.believe([10, 0, high, low].into(), &configured);
        assert!(failover.witnesses.len() <= WITNESSES_KNOWN);
    }
    for kept in configured.into_iter().chain(failover.learnt) {
        assert!(failover.witnesses.contains(&kept));
    }
}
