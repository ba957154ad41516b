//! Which uplink is used while the map server, or an uplink, fails and comes back?

use super::*;

const BEST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));

/// A host with two uplinks, whose agent asks the map server every second while it is silent.
struct Scene {
    way: ServerWay,
    now: Timestamp,
    /// Whether the map server answers what comes by an uplink.
    answers: fn(IpAddr) -> bool,
    /// Whether far ends are reached by another uplink than that.
    is_avoided: fn(IpAddr) -> bool,
    /// How often another uplink was used.
    turns: usize,
}

impl Scene {
    fn new() -> Self {
        let mut way = ServerWay::default();
        way.set_usable(Timestamp::ZERO, vec![BEST, OTHER]);
        Self {
            way,
            now: Timestamp::ZERO,
            answers: |_| true,
            is_avoided: |_| false,
            turns: 0,
        }
    }

    fn used(&self) -> IpAddr {
        self.way.used().unwrap()
    }

    /// So many seconds pass; says during how many of them the map server was asked in vain.
    fn pass(&mut self, seconds: u32) -> u32 {
        let mut unanswered = 0;
        for _ in 0..seconds {
            self.now = self.now + Duration::from_secs(1);
            self.turns += usize::from(self.way.tick(self.now));
            if (self.answers)(self.used()) {
                self.way.heard(self.now);
                self.way.answered(self.now);
            } else {
                unanswered += 1;
                let avoided = (self.is_avoided)(self.used());
                self.turns += usize::from(self.way.silent(self.now, avoided));
            }
        }
        unanswered
    }
}

#[test]
fn a_map_server_that_restarts_is_waited_for() {
    let mut scene = Scene::new();
    scene.answers = |_| false;
    scene.pass(2);
    assert_eq!((scene.used(), scene.turns), (BEST, 0));
    scene.answers = |_| true;
    scene.pass(600);
    assert_eq!((scene.used(), scene.turns), (BEST, 0));
}

#[test]
fn an_uplink_that_far_ends_were_left_by_is_left_at_once() {
    let mut scene = Scene::new();
    scene.answers = |by| by == OTHER;
    scene.is_avoided = |by| by == BEST;
    scene.pass(1);
    assert_eq!(scene.used(), OTHER);
}

#[test]
fn far_ends_that_are_reached_otherwise_are_no_reason_to_leave_one_that_answers() {
    let mut scene = Scene::new();
    scene.is_avoided = |by| by == BEST;
    scene.pass(600);
    assert_eq!((scene.used(), scene.turns), (BEST, 0));
}

#[test]
fn an_uplink_that_leads_nowhere_is_left_and_tried_again_ever_later() {
    let mut scene = Scene::new();
    scene.answers = |by| by == OTHER;
    let unanswered = scene.pass(4);
    assert_eq!((scene.used(), unanswered), (OTHER, 3));
    assert_eq!(scene.way.chosen(), Some(OTHER));
    let unanswered = scene.pass(3_600);
    assert_eq!(scene.used(), OTHER);
    // Eight times, for a second or two.
    assert!((8..=16).contains(&unanswered), "{unanswered}");
    scene.answers = |_| true;
    scene.pass(600);
    assert_eq!((scene.used(), scene.way.chosen()), (BEST, None));
}

#[test]
fn a_map_server_that_was_down_for_long_is_on_the_best_uplink_within_a_minute() {
    for down in [3, 10, 60, 200, 1_000] {
        let mut scene = Scene::new();
        scene.answers = |_| false;
        scene.pass(down);
        assert!(
            scene.turns <= 10 + down as usize / 30,
            "{} turns",
            scene.turns
        );
        scene.answers = |_| true;
        scene.pass(62);
        assert_eq!(scene.used(), BEST, "after {down} s");
        let turns = scene.turns;
        scene.pass(600);
        assert_eq!(scene.turns, turns, "there it stays");
    }
}

/// Where nobody asks, nothing keeps the others in use.
#[test]
fn a_silent_map_server_that_is_seldom_asked_is_waited_for_at_the_best_uplink() {
    let mut scene = Scene::new();
    scene.way.silent(scene.now, false);
    let later = scene.now + Duration::from_secs(30);
    assert!(scene.way.silent(later, false));
    assert_eq!(scene.used(), OTHER);
    let due = scene.way.due().unwrap();
    assert!(!scene.way.tick(later));
    assert!(scene.way.tick(due));
    assert_eq!((scene.used(), scene.way.due()), (BEST, None));
}

#[test]
fn what_comes_by_the_other_uplink_is_no_answer_by_the_best_one() {
    let mut scene = Scene::new();
    scene.answers = |by| by == OTHER;
    scene.pass(10);
    let due = scene.way.due().unwrap();
    assert!(scene.way.tick(due));
    assert!(scene.way.is_on_trial());
    scene.way.heard(due);
    assert!(scene.way.is_on_trial());
    assert!(!scene.way.silent(due, false), "that was asked before");
    assert!(scene.way.silent(due + JUST_BEGUN, false));
    assert_eq!(scene.used(), OTHER);
}

#[test]
fn another_one_that_is_silent_for_moments_does_not_keep_the_best_one_from_being_tried() {
    let mut scene = Scene::new();
    scene.answers = |by| by == OTHER;
    scene.pass(10);
    assert_eq!(scene.used(), OTHER);
    scene.answers = |_| true;
    for _ in 0..4 {
        scene.way.silent(scene.now, false);
        scene.pass(20);
    }
    assert_eq!((scene.used(), scene.way.chosen()), (BEST, None));
}

#[test]
fn one_that_works_for_a_moment_only_is_tried_less_often() {
    let mut scene = Scene::new();
    scene.answers = |by| by == OTHER;
    scene.pass(10);
    let mut turns = Vec::new();
    for _ in 0..6 {
        // The best one works whenever it is tried, and no longer.
        let due = scene.way.due().unwrap();
        turns.push(due - scene.now);
        scene.now = due;
        assert!(scene.way.tick(due));
        scene.way.answered(due);
        scene.pass(10);
        assert_eq!(scene.used(), OTHER);
    }
    assert!(turns.windows(2).all(|pair| pair[0] <= pair[1]), "{turns:?}");
    assert!(turns[5] > turns[0] * 4, "{turns:?}");
}

#[test]
fn what_can_be_used_changes_and_the_way_that_works_stays() {
    let mut scene = Scene::new();
    scene.way.set_usable(scene.now, vec![OTHER]);
    assert_eq!((scene.used(), scene.way.chosen()), (OTHER, None));
    scene.way.set_usable(scene.now, vec![BEST, OTHER]);
    assert_eq!((scene.used(), scene.way.chosen()), (OTHER, Some(OTHER)));
    scene.pass(62);
    assert_eq!((scene.used(), scene.way.chosen()), (BEST, None));
    scene.way.set_usable(scene.now, Vec::new());
    assert_eq!((scene.way.used(), scene.way.chosen()), (None, None));
    assert!(!scene.way.silent(scene.now, true));
    assert_eq!(scene.way.due(), None);
}
