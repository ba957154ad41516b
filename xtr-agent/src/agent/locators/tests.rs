//! Which way is used, and which comes next?

use super::*;

const KEY: PublicKey = PublicKey([1; 32]);

fn at(number: u8) -> SocketAddr {
    SocketAddr::new([192, 0, 2, number].into(), 51820)
}

fn ours(number: u8) -> IpAddr {
    [198, 51, 100, number].into()
}

fn known(locators: &[(u8, u8)]) -> Vec<Known> {
    let known = locators.iter().map(|(number, priority)| Known {
        endpoint: at(*number),
        priority: *priority,
        weight: 100,
    });
    known.collect()
}

fn with(told: &[(u8, u8)]) -> Locators {
    let mut locators = Locators::default();
    let used = at(told[0].0);
    locators.learn(Timestamp::ZERO, KEY, known(told), used, true);
    locators
}

/// What packets are made to do that take a way.
fn held(path: Path) -> Held {
    Held {
        to: path.to.ip(),
        from: path.from.unwrap(),
    }
}

/// Where it goes, one failure after the other, until all were tried.
fn round(locators: &mut Locators, uplinks: &[IpAddr]) -> Vec<(SocketAddr, Option<IpAddr>)> {
    let mut round = Vec::new();
    while let Some(path) = locators.next(&KEY, uplinks) {
        locators.take(Timestamp::ZERO, &KEY, path);
        round.push((path.to, path.from));
    }
    round
}

#[test]
fn a_single_locator_is_nothing_to_choose_from() {
    let mut locators = Locators::default();
    locators.learn(Timestamp::ZERO, KEY, known(&[(1, 1)]), at(1), false);
    assert!(locators.is_empty());
    assert_eq!(locators.next(&KEY, &[]), None);
}

#[test]
fn the_other_locators_come_first_and_then_the_other_uplinks() {
    let mut locators = with(&[(1, 1), (2, 2), (3, 3)]);
    assert_eq!(
        round(&mut locators, &[]),
        [(at(2), None), (at(3), None)],
        "each once"
    );
    assert_eq!(
        round(&mut locators, &[]),
        [(at(1), None), (at(2), None)],
        "and then all over again"
    );
    let mut locators = with(&[(1, 1), (2, 2)]);
    let uplinks = [ours(1), ours(2)];
    let tried = round(&mut locators, &uplinks);
    let other = Some(ours(2));
    assert_eq!(tried[..3], [(at(2), None), (at(1), other), (at(2), other)]);
    let mut single = with(&[(1, 1)]);
    let tried = round(&mut single, &uplinks);
    assert_eq!(tried, [(at(1), other)], "it was by the best one before");
}

#[test]
fn an_uplink_of_the_other_family_is_none() {
    let mut locators = with(&[(1, 1)]);
    let uplinks = [ours(1), "2001:db8::1".parse().unwrap()];
    assert_eq!(round(&mut locators, &uplinks), []);
}

#[test]
fn the_one_in_use_stays_until_something_new_is_told() {
    let mut locators = with(&[(1, 1), (2, 2)]);
    let next = locators.next(&KEY, &[]).unwrap();
    locators.take(Timestamp::ZERO, &KEY, next);
    let stays = |locators: &Locators, told: &[(u8, u8)]| locators.stays(&KEY, &known(told));
    assert_eq!(stays(&locators, &[(1, 1), (2, 2)]), Some(at(2)));
    assert_eq!(stays(&locators, &[(1, 1)]), None, "it is gone");
    assert_eq!(stays(&locators, &[(2, 1), (1, 2)]), None);
    assert_eq!(stays(&locators, &[(1, 1), (2, 2), (3, 1)]), None);
    // The first one goes, and comes back as it was.
    locators.learn(Timestamp::ZERO, KEY, known(&[(2, 2)]), at(2), true);
    assert_eq!(stays(&locators, &[(1, 1), (2, 2)]), Some(at(2)));
}

#[test]
fn where_it_is_heard_from_is_where_it_is_unless_it_was_just_moved() {
    let later = Timestamp::ZERO + READING * 2;
    let mut locators = with(&[(1, 1), (2, 2)]);
    assert_eq!(locators.seen(&KEY, at(1), later), None);
    assert_eq!(locators.seen(&KEY, at(9), later), None, "of no use to us");
    assert_eq!(locators.seen(&KEY, at(2), later), Some(Seen::Roamed));
    assert_eq!(locators.seen(&KEY, at(2), later), None);
    let next = locators.next(&KEY, &[]).unwrap();
    assert_eq!(next.to, at(1));
    locators.take(later, &KEY, next);
    assert_eq!(locators.place(later, &KEY), Some(next.to));
    assert_eq!(locators.seen(&KEY, at(2), later), None, "read before");
    let then = later + READING;
    for _ in 1..TOLD_AGAIN {
        assert_eq!(locators.seen(&KEY, at(2), then), Some(Seen::Strayed));
    }
    assert_eq!(locators.seen(&KEY, at(2), then), None, "it insists");
    assert!(
        !locators.answered(then, &KEY, Timestamp::ZERO),
        "by the old one"
    );
    assert!(locators.answered(then, &KEY, then));
    assert_eq!(locators.seen(&KEY, at(2), then), Some(Seen::Roamed));
}

#[test]
fn an_uplink_that_is_gone_is_left() {
    let mut locators = with(&[(1, 1)]);
    let uplinks = [ours(1), ours(2)];
    assert_eq!(locators.release(&uplinks), []);
    let next = locators.next(&KEY, &uplinks).unwrap();
    locators.take(Timestamp::ZERO, &KEY, next);
    assert_eq!(locators.release(&uplinks), []);
    let held = held(next);
    assert_eq!(locators.release(&uplinks[..1]), [(KEY, held)]);
    assert_eq!(locators.uplink(&KEY), None);
    let best = locators.by_the_best(&[ours(2), ours(1)]);
    assert_eq!(best, [(KEY, next)]);
    assert_eq!(locators.by_the_best(&uplinks[..1]), []);
}

#[test]
fn once_it_answers_the_far_end_chooses_the_uplink_again() {
    let mut locators = with(&[(1, 1)]);
    let next = locators.next(&KEY, &[ours(1), ours(2)]).unwrap();
    let at = |seconds| Timestamp::ZERO + Duration::from_secs(seconds);
    let held = held(next);
    let (_, turn) = locators.take(at(1), &KEY, next).unwrap();
    assert_eq!((turn.before, turn.after), (None, Some(held)));
    assert_eq!(locators.no_longer_held(at(5)), []);
    locators.answered(at(5), &KEY, at(4));
    assert_eq!(locators.no_longer_held(at(5)), []);
    assert_eq!(locators.no_longer_held(at(7)), [held]);
    assert_eq!(locators.no_longer_held(at(7)), [], "that was said");
    assert_eq!(locators.uplink(&KEY), next.from);
}

#[test]
fn a_far_end_that_answers_no_pings_is_not_held_and_told_for_ever() {
    let mut locators = with(&[(1, 1), (2, 2)]);
    let uplinks = [ours(1), ours(2)];
    let path = Path {
        to: at(2),
        from: Some(uplinks[1]),
    };
    let start = Timestamp::ZERO + Duration::from_secs(1);
    locators.take(start, &KEY, path);
    let soon = start + READING;
    assert_eq!(locators.seen(&KEY, at(1), soon), Some(Seen::Strayed));
    let later = start + MOVE_WATCHED;
    assert_eq!(locators.seen(&KEY, at(1), later), Some(Seen::Roamed));
    assert_eq!(locators.no_longer_held(later), []);
    let over = start + UPLINK_HELD_UNANSWERED;
    assert_eq!(locators.no_longer_held(over), [held(path)]);
}

#[test]
fn what_is_let_go_is_what_packets_were_made_to_do() {
    let v6 = SocketAddr::new("2001:db8::2".parse().unwrap(), 51820);
    let mut told = known(&[(1, 1), (2, 2)]);
    told.push(Known {
        endpoint: v6,
        ..told[1]
    });
    let mut locators = Locators::default();
    locators.learn(Timestamp::ZERO, KEY, told.clone(), at(1), true);
    let path = Path {
        to: at(1),
        from: Some(ours(2)),
    };
    let (_, turn) = locators.take(Timestamp::ZERO, &KEY, path).unwrap();
    let held = turn.after;
    assert_eq!(held, Some(self::held(path)));
    // It is heard from elsewhere, and then said to be in the other family.
    let later = Timestamp::ZERO + Duration::from_secs(1);
    assert!(locators.answered(later, &KEY, later));
    assert_eq!(locators.seen(&KEY, at(2), later), Some(Seen::Roamed));
    let turn = locators.learn(later, KEY, told, v6, true).unwrap();
    assert_eq!((turn.before, turn.after), (held, None), "no mixed families");
    assert_eq!(locators.held(at(1).ip()), None);
}

#[test]
fn what_is_under_way_does_not_take_back_who_was_said_to_be_elsewhere() {
    let mut locators = with(&[(1, 1), (2, 2)]);
    let now = Timestamp::ZERO + Duration::from_secs(1);
    locators.learn(now, KEY, known(&[(2, 1), (1, 2)]), at(2), true);
    let then = now + READING;
    assert_eq!(locators.seen(&KEY, at(1), then), Some(Seen::Strayed));
    assert!(locators.answered(then, &KEY, now), "by the new one");
    assert_eq!(locators.seen(&KEY, at(1), then), Some(Seen::Roamed));
}

#[test]
fn what_is_remembered_has_a_bound() {
    let mut locators = with(&[(0, 1), (1, 1)]);
    for number in 0..=u8::MAX {
        locators.learn(
            Timestamp::ZERO,
            KEY,
            known(&[(number, 1), (1, 1)]),
            at(1),
            true,
        );
        let far = &locators.0[&KEY];
        assert!(far.remembered.len() <= LOCATORS_REMEMBERED + 1);
    }
    for number in 0..2_000_u16 {
        let mut key = [7; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        locators.learn(
            Timestamp::ZERO,
            PublicKey(key),
            known(&[(1, 1), (2, 1)]),
            at(1),
            true,
        );
    }
    assert_eq!(locators.0.len(), GUARDED);
}

#[test]
fn another_uplink_is_no_reason_to_send_to_a_port_that_it_was_said_to_have_long_ago() {
    let uplinks = [ours(1), ours(2)];
    let mut locators = with(&[(1, 1)]);
    let start = Timestamp::ZERO + Duration::from_secs(1);
    assert_eq!(locators.seen(&KEY, at(9), start), None, "no locator");
    let best = locators.by_the_best(&[ours(2), ours(1)]);
    for path in [best[0].1, locators.next(&KEY, &uplinks).unwrap()] {
        let (_, turn) = locators.take(start, &KEY, path).unwrap();
        let there = Path { to: at(9), ..path };
        assert_eq!(turn.after, Some(held(there)));
        assert_eq!(locators.place(start, &KEY), Some(at(9)));
    }
    // What it says itself counts more again.
    let later = start + READING;
    assert_eq!(locators.seen(&KEY, at(1), later), None);
    assert_eq!(locators.place(later, &KEY), Some(at(1)));
}

#[test]
fn who_was_moved_and_is_heard_from_somewhere_new_is_there() {
    let mut locators = with(&[(1, 1), (2, 2), (3, 3)]);
    let start = Timestamp::ZERO + Duration::from_secs(1);
    for _ in 0..2 {
        let next = locators.next(&KEY, &[]).unwrap();
        locators.take(start, &KEY, next);
    }
    let then = start + READING;
    for left in [1, 2] {
        assert_eq!(locators.seen(&KEY, at(left), then), Some(Seen::Strayed));
        assert_eq!(locators.place(start, &KEY), Some(at(3)));
    }
    assert_eq!(locators.seen(&KEY, at(9), then), None, "not told otherwise");
    assert_eq!(locators.place(start, &KEY), Some(at(9)));
    assert_eq!(locators.seen(&KEY, at(3), then), None);
    assert_eq!(locators.place(start, &KEY), Some(at(3)));
}

#[test]
fn an_ipv6_far_end_that_another_uplink_was_chosen_for_is_told_until_it_answers() {
    let to: SocketAddr = "[2001:db8::2]:51820".parse().unwrap();
    let from = ["2001:db8:1::1", "2001:db8:2::1"].map(|it| it.parse().unwrap());
    let told = Known {
        endpoint: to,
        priority: 1,
        weight: 100,
    };
    let mut locators = Locators::default();
    locators.learn(Timestamp::ZERO, KEY, vec![told], to, true);
    assert_eq!(locators.at_ipv6(), [KEY]);
    let start = Timestamp::ZERO + Duration::from_secs(1);
    let next = locators.next(&KEY, &from).unwrap();
    assert_eq!(next.to, to);
    locators.take(start, &KEY, next);
    let then = start + READING;
    assert_eq!(locators.seen(&KEY, to, then), Some(Seen::Strayed));
    assert!(locators.answered(then, &KEY, then));
    assert_eq!(locators.seen(&KEY, to, then), None);
}
