//! What the agent says of the way of a first packet, and of itself.

use super::*;

fn ask(bench: &mut Bench) -> Nonce {
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    requests(&asked)[0].nonce
}

fn trace(bench: &Bench) -> Trace {
    let found = bench.agent.trace(bench.now, addr("10.0.0.2"));
    found.expect("a trace")
}

fn stages(trace: &Trace) -> Vec<(Stage, u64)> {
    let stages = trace.stages.iter();
    stages.map(|at| (at.stage, at.after_us / 1_000)).collect()
}

#[test]
fn every_stage_of_a_first_packet_has_its_time() {
    let mut bench = Bench::new();
    let nonce = ask(&mut bench);
    bench.after(Duration::from_millis(10));
    let installing = bench.reply(nonce, &far_end(BIGGER));
    bench.after(Duration::from_millis(1));
    bench.done(&installing);
    assert_eq!(trace(&bench).waits_for(), Some(Stage::Handshake));
    bench.after(Duration::from_millis(20));
    bench.handshake(BIGGER, 92);
    bench.after(Duration::from_millis(5));
    bench.handshake(BIGGER, 300);
    let found = trace(&bench);
    let expected = [0, 0, 10, 10, 11, 31, 36];
    let expected: Vec<_> = Stage::ALL.into_iter().zip(expected).collect();
    assert_eq!(stages(&found), expected);
    assert_eq!((found.waits_for(), found.failed), (None, None));
    assert_eq!((found.requests, found.key), (1, Some(BIGGER)));
    assert!(bench.agent.trace(bench.now, addr("10.0.0.3")).is_none());
}

#[test]
fn a_trace_says_at_which_stage_and_why_it_ended() {
    let mut bench = Bench::new();
    ask(&mut bench);
    for _ in 0..10 {
        bench.after(Duration::from_millis(400));
    }
    let failed = trace(&bench).failed.expect("a failure");
    assert_eq!(
        (failed.stage, failed.reason),
        (Stage::Answered, DropReason::NoAnswer)
    );
    assert!(trace(&bench).requests > 2);
    assert_eq!(trace(&bench).waits_for(), None);
}

#[test]
fn a_scan_leaves_no_more_traces_than_there_is_room_for() {
    let mut bench = Bench::new();
    ask(&mut bench);
    for n in 0..400u16 {
        let [high, low] = n.to_be_bytes();
        let to = format!("10.9.{high}.{low}");
        bench.input(Input::TunPacket(&packet("10.0.0.1", &to, &[1])));
    }
    assert!(bench.agent.trace(bench.now, addr("10.0.0.2")).is_none());
    assert!(bench.agent.trace(bench.now, addr("10.9.1.143")).is_some());
}

#[test]
fn the_status_tells_servers_mappings_and_peers_with_their_ages() {
    let mut bench = Bench::new();
    let started = bench.input(Input::Start);
    let Message::MapRegister(register) = decode(sent(&started)[0]).unwrap() else {
        panic!("no Map-Register");
    };
    let nonce = register.nonce.0;
    bench.now = bench.now + Duration::from_millis(30);
    let own = record("10.0.0.1/32", OWN, Ttl::from_minutes(15));
    bench.notify(nonce, &own);
    let nonce = ask(&mut bench);
    let installing = bench.reply(nonce, &far_end(BIGGER));
    let fired = bench.done(&installing);
    bench.done(&fired);
    bench.handshake(BIGGER, 92);
    bench.after(Duration::from_secs(2));
    let status = bench.agent.status(bench.now);
    let server = status.servers[0];
    assert_eq!(
        (server.rtt_us, server.acknowledged_ms),
        (Some(30_000), Some(2_000))
    );
    let mapping = status.mappings[0];
    assert_eq!((mapping.key, mapping.cause), (Some(BIGGER), Cause::Reply));
    assert_eq!((mapping.age_ms, mapping.ttl_left_ms), (2_000, 898_000));
    assert!(status.peers[0].handshake_seen);
    assert_eq!(status.eid_prefixes.len(), 2);
}
