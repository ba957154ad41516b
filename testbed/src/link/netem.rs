//! The kernel's own link emulator, where it has one.

use std::sync::OnceLock;
use std::time::Duration;

use futures::StreamExt;
use netlink_packet_core::{
    DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::Error;

use super::params::LinkParams;
use crate::clock::nanos;
use crate::error::{Doing, TestbedError};
use crate::namespace::Namespace;
use crate::netlink::Netlink;

// From linux/rtnetlink.h and linux/pkt_sched.h.
const TCA_OPTIONS: u16 = 2;
const TCA_NETEM_REORDER: u16 = 3;
const TCA_NETEM_RATE: u16 = 6;
const TCA_NETEM_RATE64: u16 = 8;
const TCA_NETEM_LATENCY64: u16 = 10;
const TCA_NETEM_JITTER64: u16 = 11;
const TCA_NETEM_PRNG_SEED: u16 = 14;

/// Given as a rate it changes no time, but makes netem keep the order under jitter.
const UNLIMITED_BYTES_PER_S: u64 = 1_000_000_000_000;

/// Whether the kernel has netem; `scratch` is any namespace of ours.
pub(crate) fn is_available(scratch: &Namespace) -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let netlink = scratch.netlink();
        let params = LinkParams::delayed(Duration::from_millis(1));
        let found = set(netlink, "lo", &params, 0).is_ok();
        found && clear(netlink, "lo").is_ok()
    })
}

/// Impairs what leaves `interface`.
pub(crate) fn set(
    netlink: &Netlink,
    interface: &str,
    params: &LinkParams,
    seed: u64,
) -> Result<(), TestbedError> {
    replace_root(netlink, interface, "netem", options(params, seed))
}

/// Drops all that leaves `interface`, without taking its carrier away.
pub(crate) fn block(netlink: &Netlink, interface: &str) -> Result<(), TestbedError> {
    // A queue that holds no packet.
    replace_root(netlink, interface, "pfifo", 0_u32.to_ne_bytes().to_vec())
}

/// Lets all that leaves `interface` pass as on a new interface.
pub(crate) fn clear(netlink: &Netlink, interface: &str) -> Result<(), TestbedError> {
    let message = RouteNetlinkMessage::DelQueueDiscipline(root(netlink, interface)?);
    match request(netlink, message, 0) {
        // Nothing of ours was there.
        Err(Error::NetlinkError(error)) if error.raw_code() == -libc::ENOENT => Ok(()),
        outcome => outcome.doing("remove the queue of", netlink.subject(interface)),
    }
}

fn replace_root(
    netlink: &Netlink,
    interface: &str,
    kind: &str,
    options: Vec<u8>,
) -> Result<(), TestbedError> {
    // netem cannot be changed into another kind, nor its options be taken back.
    clear(netlink, interface)?;
    let mut message = root(netlink, interface)?;
    message.attributes.push(TcAttribute::Kind(kind.into()));
    message
        .attributes
        .push(TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options)));
    let message = RouteNetlinkMessage::NewQueueDiscipline(message);
    request(netlink, message, NLM_F_CREATE | NLM_F_REPLACE)
        .doing("set the queue of", netlink.subject(interface))
}

fn root(netlink: &Netlink, interface: &str) -> Result<TcMessage, TestbedError> {
    let index = netlink.index(interface)?.cast_signed();
    let mut message = TcMessage::with_index(index);
    message.header.parent = TcHandle::ROOT;
    Ok(message)
}

fn request(netlink: &Netlink, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut answers = netlink.handle().request(message)?;
    while let Some(answer) = netlink.wait(answers.next()) {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// `struct tc_netem_qopt` and the attributes after it.
fn options(params: &LinkParams, seed: u64) -> Vec<u8> {
    let limit = u32::try_from(params.queue).unwrap_or(u32::MAX);
    // netem reorders every gap-th packet; 1 leaves it to chance alone.
    let gap = u32::from(!params.reorder.is_none());
    // Latency and jitter are given in nanoseconds below.
    let words = [
        0,
        limit,
        params.loss.scaled(),
        gap,
        params.duplicate.scaled(),
        0,
    ];
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    attribute(
        &mut bytes,
        TCA_NETEM_LATENCY64,
        &nanos(params.delay).to_ne_bytes(),
    );
    attribute(
        &mut bytes,
        TCA_NETEM_JITTER64,
        &nanos(params.jitter).to_ne_bytes(),
    );
    attribute(&mut bytes, TCA_NETEM_PRNG_SEED, &seed.to_ne_bytes());
    if !params.reorder.is_none() {
        // Probability and correlation.
        let reorder = [params.reorder.scaled(), 0].map(u32::to_ne_bytes).concat();
        attribute(&mut bytes, TCA_NETEM_REORDER, &reorder);
    }
    let keep_order = !params.jitter.is_zero() && params.reorder.is_none();
    let unlimited = keep_order.then_some(UNLIMITED_BYTES_PER_S);
    if let Some(rate) = params.rate.map(|bits| (bits / 8).max(1)).or(unlimited) {
        // `struct tc_netem_rate`; the rate itself is the 64 bit one.
        let head = [u32::try_from(rate).unwrap_or(u32::MAX), 0, 0, 0];
        attribute(
            &mut bytes,
            TCA_NETEM_RATE,
            &head.map(u32::to_ne_bytes).concat(),
        );
        attribute(&mut bytes, TCA_NETEM_RATE64, &rate.to_ne_bytes());
    }
    bytes
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut encoded = vec![0; attribute.buffer_len()];
    attribute.emit(&mut encoded);
    bytes.extend(encoded);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::params::Share;

    #[test]
    fn options_begin_with_the_kernels_struct() {
        let params = LinkParams {
            loss: Share::percent(50),
            queue: 7,
            ..LinkParams::delayed(Duration::from_nanos(5))
        };
        let bytes = options(&params, 1);
        let words: Vec<_> = bytes[..24]
            .chunks(4)
            .map(|w| u32::from_ne_bytes(w.try_into().unwrap()))
            .collect();
        assert_eq!(words, [0, 7, 1 << 31, 0, 0, 0]);
        // Length, type and value of the latency.
        assert_eq!(bytes[24..28], [12, 0, 10, 0]);
        assert_eq!(bytes[28..36], 5_u64.to_ne_bytes());
    }
}
