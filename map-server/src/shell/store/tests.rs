//! What is left of the log after a crash.

use super::*;

const NOON: Duration = Duration::from_secs(1_800_000_000);

#[test]
fn what_was_flushed_is_there_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, recovered) = Store::open(directory.path(), NOON).unwrap();
    assert_eq!(recovered.events, []);
    store.append(NOON, Some(fact(1))).unwrap();
    store.append(NOON, Some(fact(2))).unwrap();
    store.flush().unwrap();
    store.append(NOON, Some(fact(3))).unwrap();
    drop(store);
    let (_, recovered) = Store::open(directory.path(), NOON).unwrap();
    assert_eq!(recovered.events, [fact(1), fact(2)]);
}

#[test]
fn of_the_nonces_of_a_registrant_the_last_one_is_kept() {
    let nonce = |xtr: &str, number| StoreEvent::Nonce {
        xtr: xtr.into(),
        ids: None,
        key_id: 1,
        nonce: Nonce(number),
    };
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
    for event in [nonce("a", 1), fact(1), nonce("b", 1), nonce("a", 2)] {
        store.append(NOON, Some(event)).unwrap();
    }
    store.flush().unwrap();
    store.append(NOON, Some(nonce("a", 3))).unwrap();
    store.flush().unwrap();
    drop(store);
    let (_, recovered) = Store::open(directory.path(), NOON).unwrap();
    let kept = [fact(1), nonce("a", 2), nonce("b", 1), nonce("a", 3)];
    assert_eq!(recovered.events, kept);
}

#[test]
fn a_torn_last_line_is_cut_off() {
    let directory = with_facts(3);
    let path = directory.path().join(LOG);
    let whole = fs::read(&path).unwrap();
    for cut in 1..whole.len() {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let (mut store, recovered) = Store::open(directory.path(), NOON).unwrap();
        assert!(recovered.events.len() < 3);
        assert_eq!(recovered.events, facts(recovered.events.len()));
        store.append(NOON, Some(fact(9))).unwrap();
        store.flush().unwrap();
        drop(store);
        let (_, again) = Store::open(directory.path(), NOON).unwrap();
        assert_eq!((again.events.last(), again.torn_bytes), (Some(&fact(9)), 0));
    }
}

#[test]
fn zeros_at_the_end_are_cut_off() {
    let directory = with_facts(2);
    let path = directory.path().join(LOG);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend([0; 4096]);
    fs::write(&path, &bytes).unwrap();
    let (_, recovered) = Store::open(directory.path(), NOON).unwrap();
    assert_eq!((recovered.events, recovered.torn_bytes), (facts(2), 4096));
}

#[test]
fn damage_in_the_middle_is_reported_with_its_place() {
    let directory = with_facts(3);
    let path = directory.path().join(LOG);
    let mut bytes = fs::read(&path).unwrap();
    let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    bytes[second + 30] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = Store::open(directory.path(), NOON).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("registrations.log") && text.contains(&format!("byte {second};")),
        "{text}"
    );
    assert_eq!(fs::read(&path).unwrap(), bytes, "nothing is thrown away");
}

#[test]
fn what_a_newer_version_wrote_is_not_cut_off() {
    for torn in ["", "0000"] {
        let directory = with_facts(2);
        let path = directory.path().join(LOG);
        let mut bytes = fs::read(&path).unwrap();
        let known = bytes.len();
        let crc = crc32fast::hash(b"X");
        bytes.extend(format!("00000001 {crc:08x} X\n{torn}").bytes());
        fs::write(&path, &bytes).unwrap();
        let error = Store::open(directory.path(), NOON).unwrap_err().to_string();
        assert!(
            error.contains("newer version") && error.contains(&format!("byte {known} ")),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), bytes, "nothing is thrown away");
    }
}

#[test]
fn a_snapshot_ends_with_a_line_that_all_versions_read() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
    store.replace(NOON, facts(3).into_iter()).unwrap();
    let bytes = fs::read(directory.path().join(LOG)).unwrap();
    let last = bytes.trim_ascii_end().rsplit(|byte| *byte == b'\n').next();
    assert!(last.unwrap().ends_with(b"{\"at_ms\":1800000000000}"));
}

#[test]
fn one_server_uses_a_state_directory() {
    let directory = tempfile::tempdir().unwrap();
    let first = Store::open(directory.path(), NOON).unwrap();
    assert!(matches!(
        Store::open(directory.path(), NOON),
        Err(StoreError::InUse { .. })
    ));
    drop(first);
    assert!(Store::open(directory.path(), NOON).is_ok());
}

#[test]
fn a_snapshot_takes_the_place_of_the_log() {
    let directory = with_facts(3);
    fs::write(directory.path().join(SNAPSHOT), "left by a crash").unwrap();
    let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
    store.append(NOON, Some(fact(4))).unwrap();
    store.replace(NOON, facts(2).into_iter()).unwrap();
    store.append(NOON, Some(fact(5))).unwrap();
    store.flush().unwrap();
    assert!(!store.wants_snapshot());
    drop(store);
    let (_, recovered) = Store::open(directory.path(), NOON).unwrap();
    assert_eq!(recovered.events, [fact(1), fact(2), fact(5)]);
    assert!(!directory.path().join(SNAPSHOT).exists());
}

#[test]
fn what_is_appended_while_a_snapshot_is_written_follows_it() {
    let directory = with_facts(3);
    let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
    store.append(NOON, Some(fact(4))).unwrap();
    let draft = store.draft(NOON, facts(2)).unwrap();
    assert!(!store.wants_snapshot(), "one at a time");
    store.append(NOON, Some(fact(5))).unwrap();
    store.flush().unwrap();
    let snapshot = draft.write().unwrap();
    store.append(NOON, Some(fact(6))).unwrap();
    store.flush().unwrap();
    store.append(NOON, Some(fact(7))).unwrap();
    drop(store.install(snapshot).unwrap());
    store.append(NOON, Some(fact(8))).unwrap();
    store.flush().unwrap();
    assert!(store.unsynced().unwrap().unwrap().directory.is_some());
    let len = fs::metadata(directory.path().join(LOG)).unwrap().len();
    assert_eq!(store.len, len);
    drop(store);
    let (_, recovered) = Store::open(directory.path(), NOON).unwrap();
    assert_eq!(recovered.events, [1, 2, 5, 6, 7, 8].map(fact));
}

#[test]
fn what_is_appended_while_a_snapshot_is_written_is_in_no_memory() {
    let directory = with_facts(3);
    let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
    let draft = store.draft(NOON, facts(2)).unwrap();
    let before = store.len;
    let meanwhile = || (0..2_000).map(|number| fact(number % 250));
    for fact in meanwhile() {
        store.append(NOON, Some(fact)).unwrap();
        store.flush().unwrap();
    }
    let snapshot = draft.write().unwrap();
    let written = fs::metadata(directory.path().join(SNAPSHOT)).unwrap().len();
    assert_eq!(
        written - snapshot.len,
        store.len - before,
        "nothing is left to who puts it in place"
    );
    store.append(NOON, Some(fact(5))).unwrap();
    drop(store.install(snapshot).unwrap());
    drop(store);
    let (_, recovered) = Store::open(directory.path(), NOON).unwrap();
    let after = meanwhile().chain([fact(5)]);
    let expected: Vec<_> = facts(2).into_iter().chain(after).collect();
    assert_eq!(recovered.events, expected);
}

#[test]
fn after_a_snapshot_that_was_given_up_the_log_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
    while !store.wants_snapshot() {
        store.append(NOON, Some(fact(1))).unwrap();
        store.flush().unwrap();
    }
    drop(store.draft(NOON, facts(1)).unwrap());
    store.give_up();
    let (given_up, wanted) = (store.len, 2 * store.len + GROWTH);
    assert!(!store.wants_snapshot(), "not again at once");
    while store.len <= wanted {
        assert!(!store.wants_snapshot());
        (0..1_000).for_each(|_| store.append(NOON, Some(fact(2))).unwrap());
        store.flush().unwrap();
    }
    assert!(store.wants_snapshot() && store.len > given_up);
    let snapshot = store.draft(NOON, facts(2)).unwrap().write().unwrap();
    store.append(NOON, Some(fact(4))).unwrap();
    drop(store.install(snapshot).unwrap());
    drop(store);
    let (_, recovered) = Store::open(directory.path(), NOON).unwrap();
    assert_eq!(recovered.events, [1, 2, 4].map(fact));
}

#[test]
fn a_crash_while_a_snapshot_is_written_leaves_the_log() {
    for written in [false, true] {
        let directory = with_facts(3);
        let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
        let draft = store.draft(NOON, facts(1)).unwrap();
        store.append(NOON, Some(fact(4))).unwrap();
        store.flush().unwrap();
        if written {
            draft.write().unwrap();
        }
        drop(store);
        let (mut store, recovered) = Store::open(directory.path(), NOON).unwrap();
        assert_eq!(recovered.events, [1, 2, 3, 4].map(fact));
        store.replace(NOON, facts(1).into_iter()).unwrap();
        drop(store);
        let (_, recovered) = Store::open(directory.path(), NOON).unwrap();
        assert_eq!(recovered.events, [fact(1)]);
    }
}

#[test]
fn a_log_that_has_grown_wants_a_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
    while store.len <= GROWTH {
        assert!(!store.wants_snapshot());
        (0..250).for_each(|number| store.append(NOON, Some(fact(number))).unwrap());
        store.flush().unwrap();
    }
    assert!(store.wants_snapshot());
}

#[test]
fn a_source_on_one_link_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
    let fact = registered("10.0.0.1", "[fe80::1%3]:4342", 180);
    store.append(NOON, Some(fact.clone())).unwrap();
    store.flush().unwrap();
    drop(store);
    let (_, recovered) = Store::open(directory.path(), NOON).unwrap();
    assert_eq!(recovered.events, [fact]);
}

#[test]
fn time_without_a_server_counts_against_lifetimes() {
    let registered = |seconds| registered("10.0.0.1", "[fd4c:1::a]:4342", seconds);
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
    store.append(NOON, Some(registered(180))).unwrap();
    store
        .append(NOON + Duration::from_secs(3_600), None)
        .unwrap();
    store.flush().unwrap();
    drop(store);
    let later = |seconds: u64| NOON + Duration::from_secs(3_600 + seconds);
    let events = |seconds| {
        Store::open(directory.path(), later(seconds))
            .unwrap()
            .1
            .events
    };
    assert_eq!(
        events(50),
        [registered(130)],
        "since it was last alive, not since the registration"
    );
    assert_eq!(events(500), [registered(0)]);
    let before = Store::open(directory.path(), NOON).unwrap().1.events;
    assert_eq!(
        before,
        [registered(180)],
        "a clock that was set back adds nothing"
    );
}

#[test]
fn what_an_owner_is_to_forget_is_as_old_as_its_line() {
    let hours = |count: u32| Duration::from_secs(3_600) * count;
    let dismissed = |left_s: &[u32]| StoreEvent::Dismissed {
        xtr: "alpha".into(),
        eids: vec!["10.0.0.1/32".parse().unwrap()],
        left_s: left_s.to_vec(),
    };
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
    store.append(NOON, Some(dismissed(&[]))).unwrap();
    let second = dismissed(&[9_000]);
    store.append(NOON + hours(1), Some(second)).unwrap();
    store.append(NOON + hours(2), None).unwrap();
    store.flush().unwrap();
    drop(store);
    let text = fs::read_to_string(directory.path().join(LOG)).unwrap();
    // As earlier versions have it.
    let short = r#"{"dismissed":{"xtr":"alpha","eids":["10.0.0.1/32"]}}"#;
    assert!(text.contains(short), "{text}");
    let events = |after| {
        Store::open(directory.path(), NOON + after)
            .unwrap()
            .1
            .events
    };
    let left = |count: u32| dismissed(&[count * 3_600]);
    assert_eq!(events(hours(3)), [left(45), dismissed(&[1_800])]);
    assert_eq!(events(hours(90)), [left(0), left(0)]);
}

fn with_facts(count: usize) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(directory.path(), NOON).unwrap();
    facts(count)
        .into_iter()
        .for_each(|fact| store.append(NOON, Some(fact)).unwrap());
    store.flush().unwrap();
    directory
}

fn facts(count: usize) -> Vec<StoreEvent> {
    (1..=count as u64).map(fact).collect()
}

/// Returns a fact that is JSON, one that is not, or a nonce.
fn fact(number: u64) -> StoreEvent {
    match number % 3 {
        1 => StoreEvent::NotifyFloor {
            xtr: "alpha".into(),
            nonce: Nonce(number),
        },
        2 => registered(&format!("10.10.27.{number}"), "192.0.2.1:4342", 180),
        _ => StoreEvent::Nonce {
            xtr: number.to_string().as_str().into(),
            ids: None,
            key_id: 1,
            nonce: Nonce(number),
        },
    }
}

fn registered(eid: &str, source: &str, seconds: u64) -> StoreEvent {
    StoreEvent::Registered {
        xtr: "alpha".into(),
        ids: None,
        record: lisp_proto::Record {
            eid: eid.parse().unwrap(),
            ttl: lisp_proto::Ttl::from_minutes(15),
            action: lisp_proto::Action::NoAction,
            authoritative: false,
            locators: Vec::new(),
        },
        merge: false,
        want_notify: true,
        lifetime: Duration::from_secs(seconds),
        source: source.parse().unwrap(),
        full_tag: false,
    }
}
