//! Messages of other implementations, and what a decoder must make of each.
//!
//! `vectors/README.md` says what the files hold and where they are from.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;
mod render;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lisp_proto::{Algorithm, AuthKey, DecodeError, Message, decode, verify};
use serde::Deserialize;
use serde_json::Value;

/// One vector.
#[derive(Deserialize)]
struct Vector {
    name: String,
    length: usize,
    expect: Expect,
    mac: Option<Mac>,
    #[serde(skip)]
    bytes: Vec<u8>,
    #[serde(skip)]
    json: Vec<u8>,
}

/// The expected fields of a vector. Read on their own: those of a message that is nested too
/// deep are themselves nested deeper than JSON is read.
#[derive(Deserialize)]
struct Decoded {
    decoded: Value,
}

#[derive(Deserialize)]
struct Expect {
    parse: Verdict,
    #[serde(default)]
    map_server: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Accept,
    Reject,
    Either,
    Unsupported,
}

#[derive(Deserialize)]
struct Mac {
    psk: String,
    algorithm_id: u8,
    auth_len: usize,
    verify: bool,
}

#[test]
fn every_verdict_is_right() {
    let mut counts = BTreeMap::new();
    for vector in vectors() {
        let accepted = read(&vector.bytes).is_ok();
        let right = match vector.expect.parse {
            Verdict::Accept => accepted,
            Verdict::Reject | Verdict::Unsupported => !accepted,
            Verdict::Either => true,
        };
        assert!(right, "{}: {:?}", vector.name, read(&vector.bytes));
        let count: &mut (usize, usize) = counts.entry(vector.expect.parse).or_default();
        count.0 += 1;
        count.1 += usize::from(accepted);
    }
    for (verdict, (count, accepted)) in &counts {
        println!("{verdict:?}: {count}, of which read: {accepted}");
    }
    let total: usize = counts.values().map(|(count, _)| count).sum();
    assert_eq!(total, 213);
}

#[test]
fn every_field_of_what_is_accepted_is_right() {
    let mut checked = 0;
    for vector in vectors() {
        if vector.expect.parse != Verdict::Accept {
            continue;
        }
        let message = decode(&vector.bytes).unwrap();
        let expected: Decoded = serde_json::from_slice(&vector.json).unwrap();
        let expected = normalised(&expected.decoded);
        assert_eq!(render::message(&message), expected, "{}", vector.name);
        checked += 1;
    }
    println!("{checked} vectors, every field");
    assert_eq!(checked, 133);
}

#[test]
fn every_authentication_code_is_judged_right() {
    let mut counts = BTreeMap::new();
    for vector in vectors() {
        let Some(mac) = vector.mac else {
            continue;
        };
        let algorithm = match mac.algorithm_id {
            1 => Algorithm::Sha1_96,
            2 => Algorithm::Sha256_128,
            3 => Algorithm::Sha256_128Hkdf,
            other => panic!("{}: algorithm {other}", vector.name),
        };
        let verdict = verify(
            &AuthKey::new(0, algorithm, mac.psk.as_bytes()),
            &vector.bytes,
        );
        assert_eq!(verdict.is_ok(), mac.verify, "{}: {verdict:?}", vector.name);
        if let Ok(tag) = verdict {
            assert_eq!(tag.tag_len, mac.auth_len, "{}", vector.name);
        }
        *counts.entry(mac.verify).or_insert(0) += 1;
    }
    println!("authentic: {}, forged: {}", counts[&true], counts[&false]);
    assert_eq!(counts[&true] + counts[&false], 22);
}

#[test]
fn what_a_map_server_must_drop_is_told_as_a_probe() {
    let mut count = 0;
    for vector in vectors().filter(|vector| vector.expect.map_server.is_some()) {
        let Ok(Message::MapRequest(request)) = decode(&vector.bytes) else {
            panic!("{}", vector.name);
        };
        assert!(request.flags.probe, "{}", vector.name);
        count += 1;
    }
    assert_eq!(count, 8);
}

#[test]
fn unsupported_types_are_told_from_broken_messages() {
    for vector in vectors().filter(|vector| vector.expect.parse == Verdict::Unsupported) {
        let error = decode(&vector.bytes).unwrap_err();
        assert!(
            matches!(error, DecodeError::UnsupportedType(_)),
            "{}",
            vector.name
        );
    }
}

/// Reads a message, and the one inside if there is one.
fn read(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let message = decode(bytes)?;
    if let Message::Ecm(ecm) = message {
        decode(ecm.message)?;
    }
    Ok(message)
}

/// Leaves out what the vectors tell about their making, and names actions as this crate does.
fn normalised(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let is_address = object.contains_key("afi");
            let fields = object.iter().filter(|(name, _)| match name.as_str() {
                "legacy_I" | "legacy_R" | "decoded_by" => false,
                "length" => !is_address,
                _ => true,
            });
            let fields = fields.map(|(name, value)| match name.as_str() {
                "act" => (name.clone(), action(value)),
                _ => (name.clone(), normalised(value)),
            });
            Value::Object(fields.collect())
        }
        Value::Array(items) => items.iter().map(normalised).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn action(number: &Value) -> Value {
    let name = match number.as_u64() {
        Some(0) => "no-action",
        Some(1) => "natively-forward",
        Some(2) => "send-map-request",
        Some(4) => "policy-denied",
        Some(5) => "auth-failure",
        _ => "drop",
    };
    name.into()
}

fn vectors() -> impl Iterator<Item = Vector> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    paths.sort();
    paths.into_iter().map(|path| {
        let json = fs::read(&path).unwrap();
        let mut vector: Vector = serde_json::from_slice(&json).unwrap();
        vector.json = json;
        let text = fs::read_to_string(path.with_extension("hex")).unwrap();
        vector.bytes = common::hex(text.trim());
        assert_eq!(vector.bytes.len(), vector.length, "{}", vector.name);
        vector
    })
}
