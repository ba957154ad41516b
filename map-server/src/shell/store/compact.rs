//! How are the commonest facts written?
//!
//! As bytes of a few fields each, a quarter as long as JSON: a map server that many xTRs register at spends much of
//! its time on its log. What cannot be written so, and every rarer fact, is JSON.
//!
//! Numbers are in the order of bytes on the wire. A line end is escaped, so that none is ever inside.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ipnet::IpNet;
use lisp_proto::{
    Action, EidPrefix, InstanceId, Locator, Nonce, PublicKey, Record, Rloc, SiteId, Ttl, XtrId,
};

use crate::config::XtrName;
use crate::store_event::{StoreEvent, XtrIds};

/// What a fact begins with; JSON begins with a brace.
const REGISTERED: u8 = b'R';
const NONCE: u8 = b'N';
const WITHDRAWN: u8 = b'W';

const LINE_END: u8 = b'\n';
/// What follows it stands for a line end, or for this byte itself.
const ESCAPE: u8 = 0x1b;
const ESCAPED_LINE_END: u8 = b'n';
const ESCAPED_ESCAPE: u8 = b'e';

/// The order in which actions are numbered.
const ACTIONS: [Action; 6] = [
    Action::NoAction,
    Action::NativelyForward,
    Action::SendMapRequest,
    Action::Drop,
    Action::PolicyDenied,
    Action::AuthFailure,
];

/// Appends a fact of `at_ms` to `out`; `None` if it is to be written in another way, and `out` is then as it was or
/// longer.
pub(super) fn write_fact(out: &mut Vec<u8>, at_ms: u64, event: &StoreEvent) -> Option<()> {
    let start = out.len();
    match event {
        StoreEvent::Registered {
            xtr,
            ids,
            record,
            merge,
            want_notify,
            lifetime,
            source,
            full_tag,
        } => {
            begin(out, REGISTERED, at_ms, xtr, ids.as_ref())?;
            let flags = [*merge, *want_notify, *full_tag, record.authoritative];
            out.push(pack(flags));
            out.extend_from_slice(&lifetime.as_secs().to_be_bytes());
            out.extend_from_slice(&lifetime.subsec_nanos().to_be_bytes());
            write_socket(out, source)?;
            write_record(out, record)?;
        }
        StoreEvent::Nonce {
            xtr,
            ids,
            key_id,
            nonce,
        } => {
            begin(out, NONCE, at_ms, xtr, ids.as_ref())?;
            out.push(*key_id);
            out.extend_from_slice(&nonce.0.to_be_bytes());
        }
        StoreEvent::Withdrawn { xtr, ids, eid } => {
            begin(out, WITHDRAWN, at_ms, xtr, ids.as_ref())?;
            write_eid(out, eid);
        }
        StoreEvent::NotifyFloor { .. }
        | StoreEvent::Assigned { .. }
        | StoreEvent::Unassigned { .. }
        | StoreEvent::Dismissed { .. }
        | StoreEvent::Forgotten { .. }
        | StoreEvent::Leaving { .. }
        | StoreEvent::Left { .. }
        | StoreEvent::Draining { .. }
        | StoreEvent::SubscribeNonce { .. } => return None,
    }
    escape(out, start);
    Some(())
}

/// Reads a fact with its time; `None` if there is none.
pub(super) fn read_fact(bytes: &[u8]) -> Option<(u64, StoreEvent)> {
    let plain = unescape(bytes)?;
    let mut reader = Reader(&plain);
    let reader = &mut reader;
    let [kind] = reader.array()?;
    let at_ms = reader.u64()?;
    let (xtr, ids) = reader.registrant()?;
    let event = match kind {
        REGISTERED => {
            let [merge, want_notify, full_tag, authoritative] = reader.flags()?;
            let lifetime = Duration::new(reader.u64()?, reader.nanoseconds()?);
            let source = reader.socket()?;
            StoreEvent::Registered {
                xtr,
                ids,
                record: reader.record(authoritative)?,
                merge,
                want_notify,
                lifetime,
                source,
                full_tag,
            }
        }
        NONCE => {
            let [key_id] = reader.array()?;
            let nonce = Nonce(reader.u64()?);
            StoreEvent::Nonce {
                xtr,
                ids,
                key_id,
                nonce,
            }
        }
        WITHDRAWN => {
            let eid = reader.eid()?;
            StoreEvent::Withdrawn { xtr, ids, eid }
        }
        _ => return None,
    };
    reader.0.is_empty().then_some((at_ms, event))
}

fn begin(out: &mut Vec<u8>, kind: u8, at_ms: u64, xtr: &str, ids: Option<&XtrIds>) -> Option<()> {
    out.push(kind);
    out.extend_from_slice(&at_ms.to_be_bytes());
    out.extend_from_slice(&u16::try_from(xtr.len()).ok()?.to_be_bytes());
    out.extend_from_slice(xtr.as_bytes());
    out.push(ids.is_some().into());
    if let Some((xtr, site)) = ids {
        out.extend_from_slice(&xtr.0);
        out.extend_from_slice(&site.0);
    }
    Some(())
}

fn write_record(out: &mut Vec<u8>, record: &Record) -> Option<()> {
    write_eid(out, &record.eid);
    out.extend_from_slice(&record.ttl.minutes().to_be_bytes());
    let action = ACTIONS.iter().position(|action| *action == record.action)?;
    out.push(u8::try_from(action).ok()?);
    out.push(u8::try_from(record.locators.len()).ok()?);
    record.locators.iter().try_for_each(|locator| {
        let key = match &locator.rloc {
            Rloc::Plain(_) => None,
            Rloc::WireGuard { key, .. } => Some(key),
        };
        let flags = [
            locator.local,
            locator.probed,
            locator.reachable,
            key.is_some(),
        ];
        out.extend_from_slice(&[locator.priority, locator.weight, pack(flags)]);
        match &locator.rloc {
            Rloc::Plain(address) => write_address(out, *address),
            Rloc::WireGuard { endpoint, key } => {
                write_socket(out, endpoint)?;
                out.extend_from_slice(&key.0);
            }
        }
        Some(())
    })
}

fn write_eid(out: &mut Vec<u8>, eid: &EidPrefix) {
    out.extend_from_slice(&eid.iid().0.to_be_bytes());
    out.push(eid.net().prefix_len());
    write_address(out, eid.net().addr());
}

/// Writes an address with its port; `None` for one that is good on one link only.
fn write_socket(out: &mut Vec<u8>, socket: &SocketAddr) -> Option<()> {
    let global = |it: &SocketAddrV6| it.flowinfo() == 0 && it.scope_id() == 0;
    if let SocketAddr::V6(v6) = socket
        && !global(v6)
    {
        return None;
    }
    out.extend_from_slice(&socket.port().to_be_bytes());
    write_address(out, socket.ip());
    Some(())
}

fn write_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            out.push(4);
            out.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.push(6);
            out.extend_from_slice(&v6.octets());
        }
    }
}

fn pack(flags: [bool; 4]) -> u8 {
    let flags = flags.into_iter().rev();
    flags.fold(0, |packed, flag| packed << 1 | u8::from(flag))
}

/// Takes line ends out of what was appended after `start`, where it is: most facts have one, the first octet of `10.x`.
fn escape(out: &mut Vec<u8>, start: usize) {
    let is_special = |byte: &u8| *byte == LINE_END || *byte == ESCAPE;
    let plain = out.get(start..).unwrap_or_default();
    let mut from = plain.len();
    let mut to = from + plain.iter().filter(|byte| is_special(byte)).count();
    out.resize(start + to, 0);
    let body = out.get_mut(start..).unwrap_or_default();
    // From the end: what is behind a special byte moves by one for each that is left before it.
    while from < to {
        let rest = body.get(..from).unwrap_or_default();
        let Some(at) = rest.iter().rposition(is_special) else {
            return;
        };
        to -= from - at - 1;
        body.copy_within(at + 1..from, to);
        from = at;
        to -= 2;
        let code = match body.get(at) {
            Some(&LINE_END) => ESCAPED_LINE_END,
            _ => ESCAPED_ESCAPE,
        };
        if let Some(place) = body.get_mut(to..to + 2) {
            place.copy_from_slice(&[ESCAPE, code]);
        }
    }
}

fn unescape(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        plain.push(match *byte {
            LINE_END => return None,
            ESCAPE => match *rest.next()? {
                ESCAPED_LINE_END => LINE_END,
                ESCAPED_ESCAPE => ESCAPE,
                _ => return None,
            },
            byte => byte,
        });
    }
    Some(plain)
}

/// A cursor over a fact.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Reads the part of a second that is less than a whole one.
    fn nanoseconds(&mut self) -> Option<u32> {
        self.u32()
            .filter(|nanoseconds| *nanoseconds < 1_000_000_000)
    }

    fn flags(&mut self) -> Option<[bool; 4]> {
        let [packed] = self.array()?;
        (packed < 16).then(|| [0, 1, 2, 3].map(|bit| packed >> bit & 1 == 1))
    }

    fn registrant(&mut self) -> Option<(XtrName, Option<XtrIds>)> {
        let length = self.u16()?;
        let (name, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        let name = str::from_utf8(name).ok()?;
        let ids = match self.array()? {
            [0] => None,
            [1] => Some((XtrId(self.array()?), SiteId(self.array()?))),
            _ => return None,
        };
        Some((name.into(), ids))
    }

    fn record(&mut self, authoritative: bool) -> Option<Record> {
        let eid = self.eid()?;
        let ttl = Ttl::from_minutes(self.u32()?);
        let [action, count] = self.array()?;
        let action = *ACTIONS.get(usize::from(action))?;
        let locators = (0..count).map(|_| self.locator());
        Some(Record {
            eid,
            ttl,
            action,
            authoritative,
            locators: locators.collect::<Option<_>>()?,
        })
    }

    fn locator(&mut self) -> Option<Locator> {
        let [priority, weight] = self.array()?;
        let [local, probed, reachable, has_key] = self.flags()?;
        let rloc = match has_key {
            false => Rloc::Plain(self.address()?),
            true => Rloc::WireGuard {
                endpoint: self.socket()?,
                key: PublicKey(self.array()?),
            },
        };
        Some(Locator {
            priority,
            weight,
            local,
            probed,
            reachable,
            rloc,
        })
    }

    fn eid(&mut self) -> Option<EidPrefix> {
        let iid = InstanceId(self.u32()?);
        let [length] = self.array()?;
        let net = IpNet::new(self.address()?, length).ok()?;
        Some(EidPrefix::new(iid, net))
    }

    fn socket(&mut self) -> Option<SocketAddr> {
        let port = self.u16()?;
        Some(SocketAddr::new(self.address()?, port))
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.array()? {
            [4] => self.array::<4>().map(IpAddr::from),
            [6] => self.array::<16>().map(IpAddr::from),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
