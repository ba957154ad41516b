//! The rules of RFC 9301 and RFC 9437 for an xTR that no other file tells a story about.

use super::*;

fn stranger() -> SocketAddr {
    "198.51.100.1:4342".parse().unwrap()
}

fn probe() -> RequestFlags {
    RequestFlags {
        probe: true,
        ..RequestFlags::default()
    }
}

fn smr() -> RequestFlags {
    RequestFlags {
        smr: true,
        ..RequestFlags::default()
    }
}

/// An agent without a control tunnel: anybody may ask it.
fn in_the_open() -> Bench {
    Bench::with(Config {
        keyless: true,
        ..Bench::config()
    })
}

fn asked_by_stranger(bench: &mut Bench, bytes: &[u8]) -> Vec<Action> {
    let src = stranger();
    bench.input(Input::Datagram { src, bytes })
}

/// An agent that has the mapping of the far end.
fn with_far_end() -> Bench {
    let mut bench = in_the_open();
    bench.connect(1, &far_end(SMALLER), 0);
    bench
}

#[test]
fn an_smr_is_answered_with_an_smr_invoked_request_to_the_map_server() {
    let mut bench = with_far_end();
    let asked = asked_by_stranger(&mut bench, &question(smr(), "10.0.0.2", 0));
    let [Action::Send { dst, .. }] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert_eq!(*dst, SERVER.parse().unwrap(), "never to who solicits");
    let request = &requests(&asked)[0];
    assert!(request.flags.smr_invoked && !request.flags.smr);
    let asked: Vec<_> = request.eids().map(|asked| asked.eid.to_string()).collect();
    assert_eq!(asked, ["10.0.0.2/32"], "with the length that is cached");
}

#[test]
fn an_smr_for_what_is_not_cached_is_not_answered() {
    let mut bench = with_far_end();
    let before = bench.agent.fingerprint();
    let bytes = question(smr(), "10.0.0.3", 0);
    assert!(asked_by_stranger(&mut bench, &bytes).is_empty());
    assert_eq!(bench.agent.fingerprint(), before);
}

#[test]
fn an_smr_for_a_negative_entry_is_not_answered() {
    let mut bench = in_the_open();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let mut none = far_end(SMALLER);
    none.locators.clear();
    let nonce = requests(&asked)[0].nonce;
    bench.reply(nonce, &none);
    let bytes = question(smr(), "10.0.0.2", 0);
    assert!(asked_by_stranger(&mut bench, &bytes).is_empty());
}

#[test]
fn smrs_are_heeded_once_in_three_seconds_per_prefix() {
    let mut bench = with_far_end();
    let bytes = question(smr(), "10.0.0.2", 0);
    let mut asked = 0;
    let mut nonce = None;
    for _ in 0..100 {
        let actions = asked_by_stranger(&mut bench, &bytes);
        asked += requests(&actions).len();
        nonce = requests(&actions).first().map(|r| r.nonce).or(nonce);
        if let Some(nonce) = nonce.take() {
            bench.reply(nonce, &far_end(SMALLER));
        }
        bench.after(Duration::from_millis(90));
    }
    assert_eq!(asked, 3, "in nine seconds");
}

#[test]
fn a_flood_of_questions_is_not_answered_more_than_so_often() {
    let mut bench = in_the_open();
    bench.now = Timestamp::ZERO + Duration::from_secs(100);
    let bytes = question(probe(), "10.0.0.1", 20);
    let actions: Vec<_> = (0..1_000)
        .flat_map(|_| asked_by_stranger(&mut bench, &bytes))
        .collect();
    let most = usize::try_from(limits::QUESTIONS_PER_SECOND).unwrap();
    assert_eq!(sent(&actions).len(), most);
    assert_eq!(actions.len(), 1_000, "the others are counted");
}

#[test]
fn an_rloc_probe_is_answered_to_its_sender_with_nonce_and_authority() {
    let mut bench = in_the_open();
    let answered = asked_by_stranger(&mut bench, &question(probe(), "10.0.0.1", 20));
    let [Action::Send { dst, bytes }] = &answered[..] else {
        panic!("{answered:?}");
    };
    assert_eq!(*dst, stranger());
    let Message::MapReply(reply) = decode(bytes).unwrap() else {
        panic!("no reply");
    };
    assert!(reply.probe && reply.nonce == Nonce(77));
    let records: Vec<_> = reply.records().collect();
    assert_eq!(records.len(), 1);
    assert!(records[0].authoritative());
    assert_eq!(records[0].ttl(), Ttl::from_minutes(15));
}

#[test]
fn of_several_locators_only_the_probed_one_has_the_p_bit() {
    let mut config = Bench::config();
    config.keyless = true;
    config.rlocs = vec![addr("192.0.2.1").into(), addr("203.0.113.1").into()];
    config.control_address = addr("203.0.113.1");
    let mut bench = Bench::with(config);
    let answered = asked_by_stranger(&mut bench, &question(probe(), "10.0.0.1", 20));
    let Message::MapReply(reply) = decode(sent(&answered)[0]).unwrap() else {
        panic!("no reply");
    };
    let record = reply.records().next().unwrap();
    let probed: Vec<_> = record.locators().map(|locator| locator.probed).collect();
    assert_eq!(probed, [false, true]);
}

#[test]
fn a_probe_that_wants_no_reply_gets_none() {
    let mut bench = in_the_open();
    let flags = RequestFlags {
        no_reply: true,
        ..probe()
    };
    let bytes = question(flags, "10.0.0.1", 20);
    assert!(sent(&asked_by_stranger(&mut bench, &bytes)).is_empty());
}

#[test]
fn a_probe_in_an_encapsulated_message_is_dropped() {
    let mut bench = in_the_open();
    let mut bytes = Vec::new();
    let inner = question(probe(), "10.0.0.1", 20);
    let to = "10.0.0.1:4342".parse().unwrap();
    lisp_proto::encode_ecm(stranger(), to, &inner, &mut bytes).unwrap();
    assert_eq!(
        story(&asked_by_stranger(&mut bench, &bytes)),
        ["NotAMapServer"]
    );
    assert_eq!(story(&bench.heard(&bytes)), ["UnexpectedMessage"]);
}

#[test]
fn a_map_request_that_neither_probes_nor_solicits_is_not_answered() {
    let mut bench = in_the_open();
    let bytes = question(RequestFlags::default(), "10.0.0.1", 20);
    assert_eq!(
        story(&asked_by_stranger(&mut bench, &bytes)),
        ["UnexpectedMessage"]
    );
}

#[test]
fn a_reply_to_a_probe_that_nobody_sent_is_dropped_and_the_answer_still_awaited() {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let mut bytes = Vec::new();
    let params = ReplyParams {
        probe: true,
        echo_nonce: false,
        nonce,
        records: &[far_end(BIGGER)],
    };
    encode_map_reply(&params, &mut bytes).unwrap();
    assert_eq!(story(&bench.heard(&bytes)), ["UnexpectedMessage"]);
    assert_eq!(
        story(&bench.reply(nonce, &far_end(SMALLER))),
        ["peer [10.0.0.2/32]"]
    );
}

#[test]
fn a_reply_with_lisp_sec_data_is_dropped() {
    let mut bench = Bench::new();
    let asked = bench.input(Input::TunPacket(&to_far_end(&[1])));
    let nonce = requests(&asked)[0].nonce;
    let mut bytes = Vec::new();
    let params = ReplyParams {
        probe: false,
        echo_nonce: false,
        nonce,
        records: &[far_end(BIGGER)],
    };
    encode_map_reply(&params, &mut bytes).unwrap();
    bytes[0] |= 0x02;
    bytes.extend([0; 8]);
    assert_eq!(story(&bench.heard(&bytes)), ["UnexpectedMessage"]);
    assert_eq!(bench.agent.peers().count(), 0);
}

#[test]
fn the_acknowledgement_of_a_registration_is_not_acknowledged() {
    let mut bench = Bench::new();
    bench.input(Input::Start);
    let own = record("10.0.0.1/32", OWN, Ttl::from_minutes(15));
    assert!(sent(&bench.notify(1000, &own)).is_empty());
}

#[test]
fn every_map_register_has_a_nonce_above_all_before_and_the_shell_is_told() {
    let mut bench = Bench::new();
    let mut last = 999;
    let mut sent_in_all = bench.input(Input::Start);
    for _ in 0..10 {
        let next = bench.agent.next_deadline().unwrap();
        sent_in_all.extend(bench.after(next - bench.now));
    }
    sent_in_all.extend(bench.input(Input::LocalRlocs(&[addr("198.51.100.9").into()])));
    sent_in_all.extend(bench.input(Input::Shutdown));
    for bytes in sent(&sent_in_all) {
        if let Message::MapRegister(register) = decode(bytes).unwrap() {
            assert!(register.nonce.0 > last);
            last = register.nonce.0;
        }
    }
    assert!(last > 1005 && bench.agent.register_nonce().0 > last);
}

/// The pauses between the first Map-Registers of an agent that nobody answers, ms.
fn pauses_of_registers(seed: [u8; 32]) -> Vec<u128> {
    let mut bench = Bench::new();
    bench.agent = Agent::new(Bench::config(), seed);
    bench.input(Input::Start);
    let pauses = (0..8).map(|_| {
        let next = bench.agent.next_deadline().unwrap();
        let pause = next - bench.now;
        bench.after(pause);
        pause.as_millis()
    });
    pauses.collect()
}

#[test]
fn an_unacknowledged_map_register_is_repeated_after_a_second_at_most_and_then_ever_later() {
    let pauses = pauses_of_registers([3; 32]);
    let longest = [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000];
    for (pause, longest) in pauses.into_iter().zip(longest) {
        let right = longest * 3 / 4..=longest;
        assert!(right.contains(&pause), "{pause} of {longest}");
    }
}

#[test]
fn agents_that_lose_a_map_server_at_the_same_time_do_not_call_for_it_in_step() {
    let mut registered = [BTreeSet::new(), BTreeSet::new()];
    let mut asked = BTreeSet::new();
    for seed in 1..=50 {
        let pauses = pauses_of_registers([seed; 32]);
        for (nth, all) in registered.iter_mut().enumerate() {
            all.insert(pauses[nth] / 5);
        }
        let mut bench = Bench::new();
        bench.agent = Agent::new(Bench::config(), [seed; 32]);
        bench.input(Input::TunPacket(&to_far_end(&[1])));
        asked.insert((bench.agent.next_deadline().unwrap() - bench.now).as_millis());
    }
    assert!(
        registered.iter().all(|all| all.len() >= 25),
        "{registered:?}"
    );
    assert!(asked.len() >= 25, "{asked:?}");
}
