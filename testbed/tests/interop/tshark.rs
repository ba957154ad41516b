//! What another dissector makes of our messages.
//!
//! tshark 4.0 knows RFC 6830 and the LCAFs of RFC 8060, with four gaps. What it does not know is
//! shown to it in a form it knows, or its complaint is expected; all else must be free of
//! complaints:
//!
//! | it does not know | so |
//! | --- | --- |
//! | Map-Notify-Ack (type 5) | shown as a Map-Notify, which has the same layout |
//! | the body of LCAF 11 | one "Not dissected yet" per LCAF 11 is expected |
//! | xTR-ID and Site-ID after a Map-Request with the I bit | 24 bytes over are expected |
//! | an ITR-RLOC of AFI 0 (unsubscribe, RFC 9437) | shown as 0.0.0.0 |

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::packet::Datagram;

/// pcap link type: packets start with their IP header.
const LINKTYPE_RAW: u32 = 101;
const NOT_DISSECTED: &str = "Not dissected yet (report to wireshark.org)";
const SECURITY_KEY: &str = "11";
const IDS_LEN: &str = "24";
const MAP_REQUEST: u8 = 1;
const MAP_NOTIFY: u8 = 4;
const MAP_NOTIFY_ACK: u8 = 5;

const FIELDS: &[&str] = &[
    "frame.protocols",
    "ip.checksum.status",
    "udp.checksum.status",
    "data.len",
    "_ws.malformed",
    "_ws.expert.message",
    "_ws.col.Info",
    "lisp.type",
    "lisp.irc",
    "lisp.records",
    "lisp.nonce",
    "lisp.keyid",
    "lisp.authlen",
    "lisp.xtrid",
    "lisp.siteid",
    "lisp.mreq.flags",
    "lisp.mreq.res",
    "lisp.mreq.srceid.string",
    "lisp.mreq.srceid.ipv4",
    "lisp.mreq.srceid_ipv6",
    "lisp.mreq.itr_rloc_ipv4",
    "lisp.mreq.itr_rloc_ipv6",
    "lisp.mreq.record.prefix.length",
    "lisp.mreq.record.prefix.ipv4",
    "lisp.mreq.record.prefix.ipv6",
    "lisp.mreg.flags.pmr",
    "lisp.mreg.flags.sec",
    "lisp.mreg.flags.xtrid",
    "lisp.mreg.flags.wmn",
    "lisp.mreg.res",
    "lisp.mrep.flags.probe",
    "lisp.mrep.flags.enlr",
    "lisp.mapping.ttl",
    "lisp.mapping.loccnt",
    "lisp.mapping.eid.masklen",
    "lisp.mapping.eid.ipv4",
    "lisp.mapping.eid.ipv6",
    "lisp.mapping.act",
    "lisp.mapping.auth",
    "lisp.loc.priority",
    "lisp.loc.weight",
    "lisp.loc.flags",
    "lisp.loc.locator",
    "lisp.lcaf.type",
    "lisp.lcaf.iid",
    "lisp.lcaf.iid.ipv4",
    "lisp.lcaf.iid.ipv6",
    "lisp.lcaf.afi_list.ipv4",
    "lisp.lcaf.afi_list.ipv6",
    "lisp.lcaf.natt.msport",
    "lisp.lcaf.natt.etrport",
];

/// What tshark says about one datagram.
#[derive(Debug)]
pub(crate) struct Dissection {
    fields: BTreeMap<&'static str, Vec<String>>,
    ids_follow: bool,
}

impl Dissection {
    /// All values of a field, in the order of the packet.
    pub(crate) fn field(&self, name: &str) -> &[String] {
        self.fields.get(name).map_or(&[], Vec::as_slice)
    }

    /// What is wrong with the message, if anything is.
    pub(crate) fn complaint(&self) -> Option<String> {
        let protocols = self.field("frame.protocols");
        let left_over = self.field("data.len");
        let expected_left_over: &[&str] = if self.ids_follow { &[IDS_LEN] } else { &[] };
        let understood = protocols
            .first()
            .is_some_and(|all| all.split(':').any(|protocol| protocol == "lisp"));
        let experts = self.field("_ws.expert.message");
        let of_keys = |text: &String| text == NOT_DISSECTED;
        let keys = self.field("lisp.lcaf.type").iter();
        let keys = keys.filter(|kind| *kind == SECURITY_KEY).count();
        let good = |status: &String| status == "1";
        let problem = if !understood {
            "not taken for LISP"
        } else if !self.field("_ws.malformed").is_empty() {
            "malformed"
        } else if !experts.iter().all(of_keys) || experts.len() != keys {
            "expert item"
        } else if left_over != expected_left_over {
            "bytes left over"
        } else if !self.field("ip.checksum.status").iter().all(good)
            || !self.field("udp.checksum.status").iter().all(good)
        {
            "wrong checksum"
        } else {
            return None;
        };
        Some(format!("{problem}: {self:?}"))
    }
}

/// Has tshark dissect `datagrams`; `directory` is for the capture file.
pub(crate) fn dissect(directory: &Path, datagrams: &[Datagram]) -> Vec<Dissection> {
    let shown: Vec<_> = datagrams.iter().map(as_tshark_knows_it).collect();
    let path = directory.join("shown-to-tshark.pcap");
    write_pcap(&path, &shown);
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(&path);
    command.args(["-o", "ip.check_checksum:TRUE"]);
    command.args(["-o", "udp.check_checksum:TRUE"]);
    command.args(["-T", "fields", "-E", "separator=/t", "-E", "aggregator=;"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tshark failed: {said}");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), datagrams.len(), "{said}");
    lines
        .iter()
        .zip(datagrams)
        .map(|(line, datagram)| Dissection {
            fields: fields(line),
            ids_follow: ids_follow(&datagram.payload),
        })
        .collect()
}

/// Writes a capture file that any version of Wireshark reads.
fn write_pcap(path: &Path, datagrams: &[Datagram]) {
    let mut file = Vec::new();
    for number in [0xa1b2_c3d4, 0x0002_0004, 0, 0, 65_535, LINKTYPE_RAW] {
        file.extend_from_slice(&u32::to_be_bytes(number));
    }
    for (second, datagram) in (0..).zip(datagrams) {
        let packet = datagram.to_packet();
        let length = u32::try_from(packet.len()).unwrap();
        for number in [second, 0, length, length] {
            file.extend_from_slice(&u32::to_be_bytes(number));
        }
        file.extend_from_slice(&packet);
    }
    fs::write(path, file).unwrap();
}

fn fields(line: &str) -> BTreeMap<&'static str, Vec<String>> {
    let mut fields = BTreeMap::new();
    for (name, values) in FIELDS.iter().zip(line.split('\t')) {
        if !values.is_empty() {
            fields.insert(*name, values.split(';').map(str::to_owned).collect());
        }
    }
    fields
}

fn as_tshark_knows_it(datagram: &Datagram) -> Datagram {
    let mut payload = datagram.payload.clone();
    match payload.first().map(|byte| byte >> 4) {
        Some(MAP_NOTIFY_ACK) => payload[0] = MAP_NOTIFY << 4 | payload[0] & 0x0f,
        Some(MAP_REQUEST) => {
            let source_len = match payload.get(12..14) {
                Some([0, 1]) => 4,
                Some([0, 2]) => 16,
                // An LCAF: six bytes up to its Length, and what that says.
                Some([0x40, 0x03]) => 6 + usize::from(payload[19]),
                _ => 0,
            };
            let itr_rloc = 14 + source_len;
            if payload.get(itr_rloc..itr_rloc + 2) == Some(&[0, 0]) {
                payload.splice(itr_rloc..itr_rloc + 2, [0, 1, 0, 0, 0, 0]);
            }
        }
        _ => {}
    }
    Datagram {
        payload,
        ..datagram.clone()
    }
}

/// Whether a Map-Request ends in xTR-ID and Site-ID (RFC 9437 §4).
fn ids_follow(payload: &[u8]) -> bool {
    matches!(payload, [first, second, ..] if first >> 4 == MAP_REQUEST && second & 0x10 != 0)
}
