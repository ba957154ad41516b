//! How do connections travel from one proxy to another?
//!
//! Over TCP, through the overlay. Who wants them says whose, in 26 bytes; then come frames that begin with
//! a byte that says what they are. The answer to each [`Frame::Batch`] and [`Frame::End`] is how many
//! connections are held by now, and how many were refused. All numbers are in network byte order.
//!
//! ```text
//!  hello:  "LWCONN\0\1" (64) | family, 4 or 6 (8) | prefix length (8) | address (128)
//!  frame:  1 | connection: it is there       2 | connection: it is there no more
//!          3: that was all for now           4: that was all
//!  connection:  protocol (8) | state (8) | flags of both ends (16) | window scales of both ends (16) |
//!               answered 1, assured 2 (8) | 0 (8) | timeout in s (32) |
//!               source (128), port (16) | destination (128), port (16) | translated (128), port (16)
//!  answer:  held (32) | refused (32)
//! ```
//!
//! IPv4 addresses are written as IPv4-mapped ones.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use wg_device::{Flow, FlowState, TcpState};

/// Bytes of a hello.
pub(super) const HELLO: usize = 26;
/// Bytes of an answer.
pub(super) const ANSWER: usize = 8;
/// Bytes of the longest frame.
pub(super) const FRAME: usize = 1 + FLOW;

/// What the one that has connections says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// There is this one.
    Flow(Flow),
    /// It is there no more.
    Gone(Flow),
    /// That was all that has changed.
    Batch,
    /// The same, and nothing more follows.
    End,
}

/// What was received is nothing that a proxy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Writes a hello.
pub(super) fn hello(client: IpNet) -> [u8; HELLO] {
    let family = if client.addr().is_ipv4() { 4 } else { 6 };
    let head = MAGIC.into_iter().chain([family, client.prefix_len()]);
    let bytes = head.chain(octets(client.addr()));
    let mut out = [0; HELLO];
    for (to, from) in out.iter_mut().zip(bytes) {
        *to = from;
    }
    out
}

/// Reads a hello: whose connections are wanted.
pub(super) fn read_hello(bytes: &[u8; HELLO]) -> Result<IpNet, Malformed> {
    let mut reader = Reader(bytes);
    let [family, length] = match reader.take()? {
        MAGIC => reader.take()?,
        _ => return Err(Malformed),
    };
    let address = reader.address()?;
    let net = IpNet::new(address, length).map_err(|_| Malformed)?;
    let is_family = address.is_ipv4() == (family == 4) && matches!(family, 4 | 6);
    (is_family && net == net.trunc())
        .then_some(net)
        .ok_or(Malformed)
}

/// Writes an answer.
pub(super) fn answer(held: u32, refused: u32) -> [u8; ANSWER] {
    (u64::from(held) << 32 | u64::from(refused)).to_be_bytes()
}

/// Reads an answer: how many connections are held.
pub(super) const fn read_answer([a, b, c, d, ..]: [u8; ANSWER]) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

/// Appends a frame.
pub(super) fn write(frame: &Frame, out: &mut Vec<u8>) {
    match frame {
        Frame::Flow(flow) => write_flow(KIND_FLOW, flow, out),
        Frame::Gone(flow) => write_flow(KIND_GONE, flow, out),
        Frame::Batch => out.push(KIND_BATCH),
        Frame::End => out.push(KIND_END),
    }
}

/// Reads the first frame of `bytes` and says how long it is; `None` if more is needed.
pub(super) fn read(bytes: &[u8]) -> Result<Option<(Frame, usize)>, Malformed> {
    let Some((kind, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let of = match *kind {
        KIND_FLOW => Frame::Flow,
        KIND_GONE => Frame::Gone,
        KIND_BATCH => return Ok(Some((Frame::Batch, 1))),
        KIND_END => return Ok(Some((Frame::End, 1))),
        _ => return Err(Malformed),
    };
    match rest.first_chunk() {
        Some(flow) => Ok(Some((of(read_flow(flow)?), FRAME))),
        None => Ok(None),
    }
}

fn write_flow(kind: u8, flow: &Flow, out: &mut Vec<u8>) {
    let tcp = match flow.state {
        FlowState::Udp => NO_TCP,
        FlowState::Tcp(tcp) => tcp,
    };
    let is_set = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
    let bits = is_set(flow.answered, ANSWERED) | is_set(flow.assured, ASSURED);
    out.extend([kind, flow.state.protocol(), tcp.state]);
    out.extend(tcp.flags);
    out.extend(tcp.window_scales);
    out.extend([bits, 0]);
    out.extend(flow.timeout_s.to_be_bytes());
    for end in [flow.source, flow.destination, flow.translated] {
        out.extend(octets(end.ip()));
        out.extend(end.port().to_be_bytes());
    }
}

fn read_flow(bytes: &[u8; FLOW]) -> Result<Flow, Malformed> {
    let mut reader = Reader(bytes);
    let [protocol, state] = reader.take()?;
    let tcp = TcpState {
        state,
        flags: reader.take()?,
        window_scales: reader.take()?,
    };
    let state = match protocol {
        TCP => FlowState::Tcp(tcp),
        UDP => FlowState::Udp,
        _ => return Err(Malformed),
    };
    let [bits, _] = reader.take()?;
    Ok(Flow {
        state,
        timeout_s: u32::from_be_bytes(reader.take()?),
        source: reader.end()?,
        destination: reader.end()?,
        translated: reader.end()?,
        answered: bits & ANSWERED != 0,
        assured: bits & ASSURED != 0,
    })
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn address(&mut self) -> Result<IpAddr, Malformed> {
        let address = Ipv6Addr::from(self.take::<16>()?);
        Ok(IpAddr::V6(address).to_canonical())
    }

    fn end(&mut self) -> Result<SocketAddr, Malformed> {
        let address = self.address()?;
        let port = u16::from_be_bytes(self.take()?);
        Ok(SocketAddr::new(address, port))
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

const MAGIC: [u8; 8] = *b"LWCONN\0\x01";
const KIND_FLOW: u8 = 1;
const KIND_GONE: u8 = 2;
const KIND_BATCH: u8 = 3;
const KIND_END: u8 = 4;
/// Bytes of a connection.
const FLOW: usize = 12 + 3 * 18;
const ANSWERED: u8 = 1;
const ASSURED: u8 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const NO_TCP: TcpState = TcpState {
    state: 0,
    window_scales: [0; 2],
    flags: [0; 2],
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn end() -> impl Strategy<Value = SocketAddr> {
        // An IPv4-mapped IPv6 address is an IPv4 address here.
        any::<(IpAddr, u16)>().prop_map(|(address, port)| (address.to_canonical(), port).into())
    }

    fn flow() -> impl Strategy<Value = Flow> {
        let tcp = any::<(u8, [u8; 2], [u8; 2])>().prop_map(|(state, window_scales, flags)| {
            FlowState::Tcp(TcpState {
                state,
                window_scales,
                flags,
            })
        });
        let state = prop_oneof![Just(FlowState::Udp), tcp];
        let rest = (end(), end(), end(), any::<(u32, bool, bool)>());
        (state, rest).prop_map(|(state, (source, destination, translated, rest))| Flow {
            state,
            source,
            destination,
            translated,
            timeout_s: rest.0,
            answered: rest.1,
            assured: rest.2,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_no_part_of_it_is_enough(flow in flow()) {
            for frame in [Frame::Flow(flow), Frame::Gone(flow), Frame::Batch, Frame::End] {
                let mut bytes = Vec::new();
                write(&frame, &mut bytes);
                for end in 0..bytes.len() {
                    prop_assert_eq!(read(&bytes[..end]), Ok(None));
                }
                let length = bytes.len();
                bytes.push(9);
                prop_assert_eq!(read(&bytes), Ok(Some((frame, length))));
            }
        }

        #[test]
        fn whatever_is_received_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut rest = bytes.as_slice();
            while let Ok(Some((_, length))) = read(rest) {
                prop_assert!((1..=FRAME).contains(&length));
                rest = &rest[length..];
            }
            if let Some(hello) = bytes.first_chunk() {
                prop_assert!(read_hello(hello).is_err());
            }
        }

        #[test]
        fn a_hello_names_a_prefix(address in any::<IpAddr>(), length in 0_u8..=128) {
            if let Ok(net) = IpNet::new(address.to_canonical(), length) {
                prop_assert_eq!(read_hello(&hello(net.trunc())), Ok(net.trunc()));
                prop_assert_eq!(read_hello(&hello(net)).is_ok(), net == net.trunc());
            }
        }
    }

    #[test]
    fn an_answer_says_how_many_are_held() {
        assert_eq!(read_answer(answer(7, u32::MAX)), 7);
    }
}
