//! How is a connection written in attributes of ctnetlink? (`linux/netfilter/nfnetlink_conntrack.h`)

use std::net::{IpAddr, SocketAddr};

use super::{Flow, FlowState, TCP, TcpState, UDP};

/// Reads the attributes of an entry; `None` for what is not carried: other protocols, a destination
/// that is translated, zones, and whatever is not understood.
pub(super) fn read(bytes: &[u8]) -> Option<Flow> {
    let (mut original, mut reply) = (None, None);
    let (mut status, mut timeout_s, mut tcp) = (0, 0, None);
    for (kind, value) in attributes(bytes) {
        match kind {
            CTA_TUPLE_ORIG => original = Some(read_tuple(value)?),
            CTA_TUPLE_REPLY => reply = Some(read_tuple(value)?),
            CTA_STATUS => status = read_u32(value)?,
            CTA_TIMEOUT => timeout_s = read_u32(value)?,
            CTA_PROTOINFO => tcp = nested(value, CTA_PROTOINFO_TCP).map(read_tcp),
            CTA_ZONE => return None,
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    let same = original.protocol == reply.protocol && original.destination == reply.source;
    let state = match original.protocol {
        TCP => FlowState::Tcp(tcp?),
        UDP => FlowState::Udp,
        _ => return None,
    };
    same.then_some(Flow {
        state,
        source: original.source,
        destination: original.destination,
        translated: reply.destination,
        timeout_s,
        answered: status & IPS_SEEN_REPLY != 0,
        assured: status & IPS_ASSURED != 0,
    })
}

/// Writes the attributes of a new entry. The reply is that of the untranslated connection: the kernel
/// makes it what the translation says.
pub(super) fn entry(flow: &Flow) -> Vec<u8> {
    let protocol = flow.state.protocol();
    let mut out = ends(flow);
    let reply = tuple(protocol, flow.destination, flow.source);
    put(&mut out, CTA_TUPLE_REPLY | NESTED, &reply);
    let mut status = IPS_CONFIRMED;
    for (is_set, bit) in [(flow.answered, IPS_SEEN_REPLY), (flow.assured, IPS_ASSURED)] {
        if is_set {
            status |= bit;
        }
    }
    put(&mut out, CTA_STATUS, &status.to_be_bytes());
    put(&mut out, CTA_TIMEOUT, &flow.timeout_s.to_be_bytes());
    if let FlowState::Tcp(tcp) = &flow.state {
        let mut info = Vec::new();
        put(&mut info, CTA_PROTOINFO_TCP | NESTED, &write_tcp(tcp));
        put(&mut out, CTA_PROTOINFO | NESTED, &info);
    }
    put(&mut out, CTA_NAT_SRC | NESTED, &write_nat(flow.translated));
    out
}

/// Writes which connection is meant, by its ends.
pub(super) fn ends(flow: &Flow) -> Vec<u8> {
    let mut out = Vec::new();
    let protocol = flow.state.protocol();
    let original = tuple(protocol, flow.source, flow.destination);
    put(&mut out, CTA_TUPLE_ORIG | NESTED, &original);
    out
}

/// One direction of a connection.
struct Tuple {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
}

fn read_tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut source, mut destination) = (None, None);
    for (kind, value) in attributes(nested(bytes, CTA_TUPLE_IP)?) {
        match kind {
            CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = Some(read_address(value)?),
            CTA_IP_V4_DST | CTA_IP_V6_DST => destination = Some(read_address(value)?),
            _ => {}
        }
    }
    let (mut protocol, mut ports) = (None, [None; 2]);
    for (kind, value) in attributes(nested(bytes, CTA_TUPLE_PROTO)?) {
        match kind {
            CTA_PROTO_NUM => protocol = value.first().copied(),
            CTA_PROTO_SRC_PORT => ports[0] = read_u16(value),
            CTA_PROTO_DST_PORT => ports[1] = read_u16(value),
            _ => {}
        }
    }
    let [source_port, destination_port] = ports;
    Some(Tuple {
        protocol: protocol?,
        source: SocketAddr::new(source?, source_port?),
        destination: SocketAddr::new(destination?, destination_port?),
    })
}

fn tuple(protocol: u8, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (mut ip, mut proto, mut out) = (Vec::new(), Vec::new(), Vec::new());
    let kinds = match source.is_ipv4() {
        true => [CTA_IP_V4_SRC, CTA_IP_V4_DST],
        false => [CTA_IP_V6_SRC, CTA_IP_V6_DST],
    };
    for (kind, end) in kinds.into_iter().zip([source, destination]) {
        put_address(&mut ip, kind, end.ip());
    }
    put(&mut proto, CTA_PROTO_NUM, &[protocol]);
    put(&mut proto, CTA_PROTO_SRC_PORT, &source.port().to_be_bytes());
    put(
        &mut proto,
        CTA_PROTO_DST_PORT,
        &destination.port().to_be_bytes(),
    );
    put(&mut out, CTA_TUPLE_IP | NESTED, &ip);
    put(&mut out, CTA_TUPLE_PROTO | NESTED, &proto);
    out
}

fn read_tcp(bytes: &[u8]) -> TcpState {
    let mut tcp = TcpState {
        state: 0,
        window_scales: [0; 2],
        flags: [0; 2],
    };
    for (kind, value) in attributes(bytes) {
        let first = value.first().copied().unwrap_or(0);
        match kind {
            CTA_PROTOINFO_TCP_STATE => tcp.state = first,
            CTA_PROTOINFO_TCP_WSCALE_ORIGINAL => tcp.window_scales[0] = first,
            CTA_PROTOINFO_TCP_WSCALE_REPLY => tcp.window_scales[1] = first,
            CTA_PROTOINFO_TCP_FLAGS_ORIGINAL => tcp.flags[0] = first,
            CTA_PROTOINFO_TCP_FLAGS_REPLY => tcp.flags[1] = first,
            _ => {}
        }
    }
    tcp
}

fn write_tcp(tcp: &TcpState) -> Vec<u8> {
    let mut out = Vec::new();
    // A handshake that goes on elsewhere would look like none here.
    let state = tcp.state.max(TCP_ESTABLISHED);
    put(&mut out, CTA_PROTOINFO_TCP_STATE, &[state]);
    let kinds = [
        (
            CTA_PROTOINFO_TCP_WSCALE_ORIGINAL,
            CTA_PROTOINFO_TCP_FLAGS_ORIGINAL,
        ),
        (
            CTA_PROTOINFO_TCP_WSCALE_REPLY,
            CTA_PROTOINFO_TCP_FLAGS_REPLY,
        ),
    ];
    let known = tcp.window_scales.into_iter().zip(tcp.flags);
    for ((scale_kind, flags_kind), (scale, flags)) in kinds.into_iter().zip(known) {
        put(&mut out, scale_kind, &[scale]);
        let flags = flags & TCP_FLAGS | TCP_FLAG_BE_LIBERAL;
        put(
            &mut out,
            flags_kind,
            &[flags, TCP_FLAGS | TCP_FLAG_BE_LIBERAL],
        );
    }
    out
}

fn write_nat(to: SocketAddr) -> Vec<u8> {
    let (mut out, mut ports) = (Vec::new(), Vec::new());
    let kinds = match to.is_ipv4() {
        true => [CTA_NAT_V4_MINIP, CTA_NAT_V4_MAXIP],
        false => [CTA_NAT_V6_MINIP, CTA_NAT_V6_MAXIP],
    };
    for kind in kinds {
        put_address(&mut out, kind, to.ip());
    }
    for kind in [CTA_PROTONAT_PORT_MIN, CTA_PROTONAT_PORT_MAX] {
        put(&mut ports, kind, &to.port().to_be_bytes());
    }
    put(&mut out, CTA_NAT_PROTO | NESTED, &ports);
    out
}

/// Walks through attributes; what is cut off ends the walk.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let ([low, high, kind_low, kind_high], _) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let kind = u16::from_ne_bytes([*kind_low, *kind_high]) & TYPE_MASK;
        let value = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn nested(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut found = attributes(bytes).filter(|(kind, _)| *kind == wanted);
    found.next().map(|(_, value)| value)
}

fn read_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

fn read_u16(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

fn read_address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(octets.into());
    }
    let octets: [u8; 16] = value.try_into().ok()?;
    Some(octets.into())
}

fn put_address(out: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => put(out, kind, &address.octets()),
        IpAddr::V6(address) => put(out, kind, &address.octets()),
    }
}

/// Writes an attribute; all of ours are short.
fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Bytes of `struct nlattr`.
const HEADER: usize = 4;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_NAT_SRC: u16 = 6;
const CTA_TIMEOUT: u16 = 7;
const CTA_ZONE: u16 = 18;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_WSCALE_ORIGINAL: u16 = 2;
const CTA_PROTOINFO_TCP_WSCALE_REPLY: u16 = 3;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;

const CTA_NAT_V4_MINIP: u16 = 1;
const CTA_NAT_V4_MAXIP: u16 = 2;
const CTA_NAT_PROTO: u16 = 3;
const CTA_NAT_V6_MINIP: u16 = 4;
const CTA_NAT_V6_MAXIP: u16 = 5;
const CTA_PROTONAT_PORT_MIN: u16 = 1;
const CTA_PROTONAT_PORT_MAX: u16 = 2;

const IPS_SEEN_REPLY: u32 = 0x02;
const IPS_ASSURED: u32 = 0x04;
const IPS_CONFIRMED: u32 = 0x08;

/// `TCP_CONNTRACK_ESTABLISHED`.
const TCP_ESTABLISHED: u8 = 3;
/// Flags that are carried over: window scaling, selective acknowledgements, closed by the source.
const TCP_FLAGS: u8 = 0x01 | 0x02 | 0x04;
const TCP_FLAG_BE_LIBERAL: u8 = 0x08;

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow {
            state: FlowState::Tcp(TcpState {
                state: 3,
                window_scales: [7, 9],
                flags: [3, 3],
            }),
            source: "10.0.0.3:40000".parse().unwrap(),
            destination: "198.51.100.2:80".parse().unwrap(),
            translated: "203.0.113.9:1024".parse().unwrap(),
            timeout_s: 432_000,
            answered: true,
            assured: true,
        }
    }

    /// What the kernel says of what `entry` makes: the reply goes to where the translation leads.
    fn as_read_back(flow: &Flow) -> Vec<u8> {
        let mut out = ends(flow);
        let protocol = flow.state.protocol();
        let reply = tuple(protocol, flow.destination, flow.translated);
        put(&mut out, CTA_TUPLE_REPLY | NESTED, &reply);
        // The kernel's own order does not matter: the first reply is overruled.
        out.extend(entry(flow).split_off(ends(flow).len() + reply.len() + HEADER));
        out
    }

    #[test]
    fn what_is_written_is_read_back_with_windows_that_are_not_checked() {
        let mut expected = flow();
        if let FlowState::Tcp(tcp) = &mut expected.state {
            tcp.flags = [0x0b; 2];
        }
        assert_eq!(read(&as_read_back(&flow())), Some(expected));
        let v6 = Flow {
            state: FlowState::Udp,
            source: "[fd00:1::3]:40000".parse().unwrap(),
            destination: "[2001:db8:ff::2]:443".parse().unwrap(),
            translated: "[2001:db8::9]:40001".parse().unwrap(),
            ..flow()
        };
        assert_eq!(read(&as_read_back(&v6)), Some(v6));
    }

    #[test]
    fn a_handshake_that_is_under_way_is_entered_as_over_and_an_end_as_it_is() {
        for (state, entered) in [(1, 3), (2, 3), (3, 3), (4, 4), (6, 6)] {
            let tcp = TcpState {
                state,
                window_scales: [0; 2],
                flags: [0; 2],
            };
            let of = Flow {
                state: FlowState::Tcp(tcp),
                ..flow()
            };
            let read = read(&as_read_back(&of)).unwrap();
            assert!(matches!(read.state, FlowState::Tcp(tcp) if tcp.state == entered));
        }
    }

    #[test]
    fn what_is_cut_off_or_not_carried_is_none_and_no_panic() {
        let whole = as_read_back(&flow());
        for end in 0..whole.len() {
            let _cut = read(&whole[..end]);
        }
        let mut zoned = whole;
        put(&mut zoned, CTA_ZONE, &[0, 7]);
        assert_eq!(read(&zoned), None);
        // The destination is translated as well.
        let mut other = ends(&flow());
        let reply = tuple(TCP, "10.9.9.9:80".parse().unwrap(), flow().translated);
        put(&mut other, CTA_TUPLE_REPLY | NESTED, &reply);
        assert_eq!(read(&other), None);
        let icmp = tuple(1, flow().source, flow().destination);
        let mut other = Vec::new();
        put(&mut other, CTA_TUPLE_ORIG | NESTED, &icmp);
        put(&mut other, CTA_TUPLE_REPLY | NESTED, &icmp);
        assert_eq!(read(&other), None);
    }
}
