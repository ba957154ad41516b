//! What several serve, and far ends that NATs keep from us.

use super::*;

#[test]
fn of_what_several_serve_a_question_names_lost_proxies_and_nobody_for_being_apart() {
    let (mut bench, _) = behind();
    let mut shared = far_end(BIGGER);
    shared.locators.extend(far_end(SMALLER).locators);
    shared.locators[1].priority = 2;
    let installing = bench.notify(1, &shared);
    bench.done(&installing);
    let fired = bench.handshake(BIGGER, 92);
    bench.done(&fired);
    let prefix = net("10.0.0.2/32");
    let at = bench.agent.cache.get(&prefix).unwrap().chosen.unwrap();
    bench.agent.is_apart(prefix, at);
    let ask = |bench: &mut Bench| {
        let mut actions = Actions::default();
        let flags = RequestFlags::default();
        bench.agent.resolver.refreshed(&prefix);
        bench
            .agent
            .ask_again(bench.now, prefix, flags, &mut actions);
        let actions: Vec<_> = actions.drain().collect();
        lost(&requests(&actions)[0])
    };
    assert_eq!(ask(&mut bench), []);
    let spare = "192.0.2.3:51820".parse().unwrap();
    bench.agent.peers.arm(SMALLER, spare, prefix);
    let mut actions = Actions::default();
    bench.agent.mark_lost(bench.now, SMALLER, &mut actions);
    assert_eq!(ask(&mut bench), [SMALLER]);
}
