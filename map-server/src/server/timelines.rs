//! The paths through the server as readable timelines: documentation that fails when it is wrong.

use std::time::Duration;

use super::bench::{Bench, Sent, control, empty, own_records};
use crate::config::{Options, ReplyAfter};

/// Notes who said what to whom.
#[derive(Default)]
struct Timeline(Vec<String>);

impl Timeline {
    fn hears(&mut self, bench: &Bench, what: &str, answers: &[Sent]) {
        let at = bench.now.0 / 1_000_000;
        self.0.push(format!("{at:>5} ms < {what}"));
        for sent in answers {
            self.0.push(format!("{at:>5} ms > {}", sent.line()));
        }
    }

    #[track_caller]
    fn reads(&self, expected: &str) {
        let expected: Vec<_> = expected
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let lines: Vec<_> = self.0.iter().map(|line| line.trim()).collect();
        assert_eq!(lines, expected, "{:#?}", self.0);
    }
}

#[test]
fn path_a_register_refresh_withdraw() {
    let (mut bench, mut timeline) = (Bench::new(), Timeline::default());
    let sent = bench.register("a", &own_records("a"));
    timeline.hears(&bench, "a registers", &sent);
    bench.wait(Duration::from_secs(60));
    let stored = bench.stored.len();
    let sent = bench.register("a", &own_records("a"));
    timeline.hears(&bench, "a refreshes", &sent);
    assert_eq!(
        bench.stored.len(),
        stored,
        "an unchanged refresh stores nothing"
    );
    bench.wait(Duration::from_secs(179));
    let sent = bench.register("a", &[empty("10.0.0.1", 0)]);
    timeline.hears(&bench, "a withdraws 10.0.0.1", &sent);
    bench.wait(Duration::from_secs(1));
    let sent = bench.ask("b", "fd00:1::1");
    timeline.hears(&bench, "b asks for fd00:1::1, which has expired", &sent);
    timeline.reads(
        "
        0 ms < a registers
        0 ms > Tunnel [fd4c:1::a]:4342 Map-Notify, 10.0.0.1/32 for 1440 min at 192.0.2.1:51820, fd00:1::1/128 for 1440 min at 192.0.2.1:51820
        60000 ms < a refreshes
        60000 ms > Tunnel [fd4c:1::a]:4342 Map-Notify, 10.0.0.1/32 for 1440 min at 192.0.2.1:51820, fd00:1::1/128 for 1440 min at 192.0.2.1:51820
        239000 ms < a withdraws 10.0.0.1
        239000 ms > Tunnel [fd4c:1::a]:4342 Map-Notify, 10.0.0.1/32 for 0 min no-action
        240000 ms < b asks for fd00:1::1, which has expired
        240000 ms > Tunnel [fd4c:1::b]:4342 Map-Reply, fd00:1::1/128 for 1 min drop
        ",
    );
}

#[test]
fn path_b_request_push_acknowledge_reply() {
    let (mut bench, mut timeline) = (Bench::new(), Timeline::default());
    bench.register_all();
    let sent = bench.ask("a", "10.0.0.2");
    timeline.hears(&bench, "a asks for 10.0.0.2", &sent);
    bench.wait(Duration::from_millis(10));
    let sent = bench.ack("b", &sent[0]);
    timeline.hears(&bench, "b acknowledges", &sent);
    bench.wait(Duration::from_millis(10));
    let sent = bench.ack("a", &sent[1]);
    timeline.hears(&bench, "a acknowledges", &sent);
    timeline.reads(
        "
        0 ms < a asks for 10.0.0.2
        0 ms > Tunnel [fd4c:1::b]:4342 Map-Notify, 10.0.0.1/32 for 1440 min at 192.0.2.1:51820, fd00:1::1/128 for 1440 min at 192.0.2.1:51820
        10 ms < b acknowledges
        10 ms > Tunnel [fd4c:1::a]:4342 Map-Reply, 10.0.0.2/32 for 1440 min at 192.0.2.2:51820
        10 ms > Tunnel [fd4c:1::a]:4342 Map-Notify, fd00:1::2/128 for 1440 min at 192.0.2.2:51820
        20 ms < a acknowledges
        ",
    );
    assert_eq!(
        bench.server.next_deadline().map(|at| at.0 / 1_000_000_000),
        Some(180),
        "no retransmission is left"
    );
}

#[test]
fn path_b_reply_right_after_the_push_when_so_configured() {
    let options = Options {
        reply_after: ReplyAfter::Send,
        ..Options::default()
    };
    let (mut bench, mut timeline) = (Bench::with(options), Timeline::default());
    bench.register_all();
    let sent = bench.ask("a", "10.0.0.2");
    timeline.hears(&bench, "a asks for 10.0.0.2", &sent);
    timeline.reads(
        "
        0 ms < a asks for 10.0.0.2
        0 ms > Tunnel [fd4c:1::b]:4342 Map-Notify, 10.0.0.1/32 for 1440 min at 192.0.2.1:51820, fd00:1::1/128 for 1440 min at 192.0.2.1:51820
        0 ms > Tunnel [fd4c:1::a]:4342 Map-Reply, 10.0.0.2/32 for 1440 min at 192.0.2.2:51820
        0 ms > Tunnel [fd4c:1::a]:4342 Map-Notify, fd00:1::2/128 for 1440 min at 192.0.2.2:51820
        ",
    );
}

#[test]
fn path_b_with_a_dead_owner_the_reply_leaves_after_the_hold_time() {
    let (mut bench, mut timeline) = (Bench::new(), Timeline::default());
    bench.register_all();
    let sent = bench.ask("a", "10.0.0.2");
    timeline.hears(&bench, "a asks for 10.0.0.2", &sent);
    let mut silence = bench.wait(Duration::from_millis(1_000));
    let answer = silence.split_off(2);
    timeline.hears(&bench, "nothing: the hold time is over", &answer);
    let retransmissions = silence.iter().filter(|sent| sent.dst == control("b"));
    assert_eq!(retransmissions.count(), 2, "after 200 ms and 400 ms more");
    timeline.reads(
        "
        0 ms < a asks for 10.0.0.2
        0 ms > Tunnel [fd4c:1::b]:4342 Map-Notify, 10.0.0.1/32 for 1440 min at 192.0.2.1:51820, fd00:1::1/128 for 1440 min at 192.0.2.1:51820
        1000 ms < nothing: the hold time is over
        1000 ms > Tunnel [fd4c:1::a]:4342 Map-Reply, 10.0.0.2/32 for 1440 min at 192.0.2.2:51820
        1000 ms > Tunnel [fd4c:1::a]:4342 Map-Notify, fd00:1::2/128 for 1440 min at 192.0.2.2:51820
        ",
    );
}

#[test]
fn path_e_a_move_and_a_withdrawal_reach_the_other_end() {
    let (mut bench, mut timeline) = (Bench::new(), Timeline::default());
    bench.register_all();
    let push = bench.ask("a", "10.0.0.2");
    bench.ack("b", &push[0]);
    let moved = [super::bench::record("10.0.0.1", "198.51.100.1:51820")];
    let sent = bench.register("a", &moved);
    timeline.hears(&bench, "a registers from a new RLOC", &sent);
    bench.ack("b", &sent[1]);
    let sent = bench.register("b", &[empty("10.0.0.2", 0)]);
    timeline.hears(&bench, "b withdraws", &sent);
    timeline.reads(
        "
        0 ms < a registers from a new RLOC
        0 ms > Tunnel [fd4c:1::a]:4342 Map-Notify, 10.0.0.1/32 for 1440 min at 198.51.100.1:51820
        0 ms > Tunnel [fd4c:1::b]:4342 Map-Notify, 10.0.0.1/32 for 1440 min at 198.51.100.1:51820
        0 ms < b withdraws
        0 ms > Tunnel [fd4c:1::b]:4342 Map-Notify, 10.0.0.2/32 for 0 min no-action
        0 ms > Tunnel [fd4c:1::a]:4342 Map-Notify, 10.0.0.2/32 for 0 min no-action
        ",
    );
}
