//! What a person or a program reads of an answer.

use std::net::SocketAddr;
use std::time::Duration;

use lisp_proto::{Action, EidPrefix, LocatorView, RecordView, Rloc, Ttl};
use serde_json::{Value, json};

use crate::query::{Answer, default_port};

/// An answer with what is known about its arrival.
#[derive(Debug)]
pub struct Report<'a> {
    /// What was asked.
    pub eid: EidPrefix,
    /// Who answered.
    pub server: SocketAddr,
    /// Time from the request that was answered to the answer.
    pub elapsed: Duration,
    /// Requests sent.
    pub tries: u32,
    /// The answer.
    pub answer: Answer<'a>,
}

impl Report<'_> {
    /// Lines of at most 100 columns.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for record in &self.answer.records {
            write_record(&mut out, record);
        }
        let ms = self.elapsed.as_secs_f64() * 1e3;
        let requests = if self.tries == 1 {
            "request"
        } else {
            "requests"
        };
        let (server, tries) = (self.server, self.tries);
        out.push_str(&format!(
            "answered by {server} in {ms:.3} ms, {tries} {requests} sent\n"
        ));
        out
    }

    /// One object, stable in shape: `eid`, `found`, `server`, `elapsed_ms`,
    /// `requests`, `records`.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "eid": self.eid.to_string(),
            "found": self.answer.found(),
            "server": self.server.to_string(),
            "elapsed_ms": self.elapsed.as_secs_f64() * 1e3,
            "requests": self.tries,
            "records": self.answer.records.iter().map(record_json).collect::<Vec<_>>(),
        })
    }
}

fn write_record(out: &mut String, record: &RecordView<'_>) {
    let (eid, ttl, note) = (eid(record), ttl(record.ttl()), note(record));
    out.push_str(&format!("{eid}  ttl {ttl}{note}\n"));
    if record.locators().next().is_some() {
        out.push_str("  prio weight  endpoint  key\n");
    }
    for locator in record.locators() {
        let (endpoint, key) = place(&locator);
        let numbers = format!("  {:>4} {:>6}  ", locator.priority, locator.weight);
        let key = key.unwrap_or_else(|| "-".into());
        // Both may not fit on one line.
        let gap = if numbers.len() + endpoint.len() + 2 + key.len() > 100 {
            format!("\n{:width$}", "", width = numbers.len())
        } else {
            "  ".into()
        };
        out.push_str(&format!("{numbers}{endpoint}{gap}{key}\n"));
    }
}

fn eid(record: &RecordView<'_>) -> String {
    record
        .eid()
        .map_or_else(|| "an EID of another kind".into(), |eid| eid.to_string())
}

fn ttl(ttl: Ttl) -> String {
    match ttl.duration() {
        Some(_) => format!("{} min", ttl.minutes()),
        None => "up to the receiver".into(),
    }
}

fn note(record: &RecordView<'_>) -> String {
    let authority = if record.authoritative() {
        "  authoritative"
    } else {
        ""
    };
    if record.locators().next().is_some() {
        return authority.into();
    }
    let action = action(record.action());
    format!("{authority}  no mapping: {action}")
}

fn action(action: Action) -> &'static str {
    match action {
        Action::NoAction => "no-action",
        Action::NativelyForward => "natively-forward",
        Action::SendMapRequest => "send-map-request",
        Action::Drop => "drop",
        Action::PolicyDenied => "drop (policy denied)",
        Action::AuthFailure => "drop (authentication failure)",
    }
}

/// Endpoint and key of a locator, in the words of `wg`.
fn place(locator: &LocatorView<'_>) -> (String, Option<String>) {
    match locator.rloc(default_port()) {
        Some(Rloc::WireGuard { endpoint, key }) => (endpoint.to_string(), Some(key.to_string())),
        Some(Rloc::Plain(addr)) => (addr.to_string(), None),
        None => (format!("{:?}", locator.address()), None),
    }
}

fn record_json(record: &RecordView<'_>) -> Value {
    let locators: Vec<Value> = record
        .locators()
        .map(|locator| {
            let (endpoint, key) = place(&locator);
            json!({
                "priority": locator.priority,
                "weight": locator.weight,
                "reachable": locator.reachable,
                "endpoint": endpoint,
                "key": key,
            })
        })
        .collect();
    json!({
        "eid": record.eid().map(|eid| eid.to_string()),
        "ttl_min": record.ttl().duration().map(|_| record.ttl().minutes()),
        "authoritative": record.authoritative(),
        "action": action(record.action()),
        "locators": locators,
    })
}

#[cfg(test)]
mod tests {
    use lisp_proto::{
        InstanceId, Locator, Nonce, PublicKey, Record, ReplyParams, encode_map_reply,
    };

    use super::*;
    use crate::query::{Query, parse_eid};

    fn with_report(rlocs: &[Rloc], check: impl FnOnce(Report<'_>)) {
        let query = Query {
            eid: parse_eid("10.0.0.2", 0).unwrap(),
            server: "192.0.2.1:4342".parse().unwrap(),
            local: "192.0.2.9:5000".parse().unwrap(),
            source: None,
            encapsulate: false,
            nonce: Nonce(1),
        };
        let locators = rlocs.iter().map(|rloc| Locator {
            priority: 1,
            weight: 100,
            local: false,
            probed: false,
            reachable: true,
            rloc: *rloc,
        });
        let record = Record {
            eid: EidPrefix::host(InstanceId(0), "10.0.0.2".parse().unwrap()),
            ttl: Ttl::from_minutes(15),
            action: Action::Drop,
            authoritative: false,
            locators: locators.collect(),
        };
        let mut bytes = Vec::new();
        let params = ReplyParams {
            probe: false,
            echo_nonce: false,
            nonce: Nonce(1),
            records: &[record],
        };
        encode_map_reply(&params, &mut bytes).unwrap();
        check(Report {
            eid: query.eid,
            server: query.server,
            elapsed: Duration::from_micros(1234),
            tries: 1,
            answer: query.answer(&bytes).unwrap().unwrap(),
        });
    }

    #[test]
    fn keys_are_shown_as_wg_shows_them_within_100_columns() {
        let key = PublicKey([0xab; 32]);
        let long = "[2001:db8:1111:2222:3333:4444:5555:6666]:51820"
            .parse()
            .unwrap();
        let short = "192.0.2.7:51820".parse().unwrap();
        let rlocs = [
            Rloc::WireGuard {
                endpoint: long,
                key,
            },
            Rloc::WireGuard {
                endpoint: short,
                key,
            },
        ];
        with_report(&rlocs, |report| {
            let text = report.text();
            assert!(
                text.contains(&key.to_string()) && text.contains("192.0.2.7:51820"),
                "{text}"
            );
            assert!(text.lines().all(|line| line.len() <= 100), "{text}");
            assert!(text.contains("10.0.0.2/32  ttl 15 min\n"), "{text}");
            assert!(text.contains("answered by 192.0.2.1:4342 in 1.234 ms, 1 request sent"));
            let json = report.json();
            assert_eq!(json["found"], true);
            assert_eq!(json["records"][0]["locators"][0]["key"], key.to_string());
        });
    }

    #[test]
    fn a_negative_answer_says_what_happens_to_packets() {
        with_report(&[], |report| {
            assert!(
                report.text().contains("no mapping: drop"),
                "{}",
                report.text()
            );
            assert_eq!(report.json()["found"], false);
        });
    }
}
