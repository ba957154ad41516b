//! Routing rules for an overlay that is everything: what carries the tunnels must not enter them.
//!
//! The routes of such an overlay are in a table of their own, which is asked for every packet without
//! the mark that the packets of the tunnels themselves have. What the main table knows better than
//! by a default route, the networks that this host is in, comes first. No route is needed for any
//! endpoint, so peers may come, roam and go.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::error::DeviceError;
use crate::netlink::NetlinkSocket;
use crate::routes::{MAIN_TABLE, PROTOCOL};

/// The mark of packets that carry tunnels, beside an overlay that is everything.
pub const UNDERLAY_MARK: u32 = 4_342;
/// The routing table of an overlay that is everything.
pub const OVERLAY_TABLE: u32 = 4_342;

/// The order of our rules among all: before the main table, which has 32,766.
const NEAR_FIRST: u32 = 4_342;
const THEN_OVERLAY: u32 = 4_343;

/// The rules of this host for an overlay that is everything; removed when dropped, unless told to
/// [`stay`](Self::stay).
#[derive(Debug)]
pub struct OverlayRules {
    stays: AtomicBool,
}

impl OverlayRules {
    /// Adds the rules to the present network namespace; those of an earlier run are taken over.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing, or the kernel knows no routing rules.
    pub fn add() -> Result<Self, DeviceError> {
        let failed = |e| DeviceError::system(ADDING, RULES, e);
        let mut socket = NetlinkSocket::open(NETLINK_ROUTE).map_err(failed)?;
        // From here on an error removes what was added.
        let rules = Self {
            stays: AtomicBool::new(false),
        };
        for message in messages() {
            let added = socket.execute(
                RouteNetlinkMessage::NewRule(message),
                NLM_F_CREATE | NLM_F_EXCL,
            );
            match added {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => result.map_err(failed)?,
            }
        }
        Ok(rules)
    }

    /// From now on the rules are left in place for the next run.
    pub fn stay(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    /// Removes the rules, whether they were to stay or not.
    pub fn remove(self) {
        self.stays.store(false, Ordering::Relaxed);
    }

    /// Removes what a run left that is no more; that there is nothing is no error.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing.
    pub fn remove_leftover() -> Result<(), DeviceError> {
        let failed = |e| DeviceError::system(REMOVING, RULES, e);
        let mut socket = NetlinkSocket::open(NETLINK_ROUTE).map_err(failed)?;
        for message in messages() {
            match socket.execute(RouteNetlinkMessage::DelRule(message), 0) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(failed)?,
            }
        }
        Ok(())
    }
}

impl Drop for OverlayRules {
    fn drop(&mut self) {
        if !*self.stays.get_mut()
            && let Err(error) = Self::remove_leftover()
        {
            tracing::warn!(%error, "routing rules are still there");
        }
    }
}

/// Both rules for both address families, in the order in which they are asked: what the host is in
/// stays within reach while the second one comes.
fn messages() -> impl Iterator<Item = RuleMessage> {
    let families = [AddressFamily::Inet, AddressFamily::Inet6];
    families.into_iter().flat_map(|family| {
        let mut overlay = rule(family, THEN_OVERLAY, OVERLAY_TABLE);
        overlay.header.flags = RuleFlags::Invert;
        let marked = RuleAttribute::FwMark(UNDERLAY_MARK);
        overlay.attributes.push(marked);
        let mut near = rule(family, NEAR_FIRST, MAIN_TABLE);
        near.attributes.push(RuleAttribute::SuppressPrefixLen(0));
        [near, overlay]
    })
}

fn rule(family: AddressFamily, priority: u32, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader {
        family,
        action: RuleAction::ToTable,
        ..RuleHeader::default()
    };
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    message
}

const ADDING: &str = "adding";
const REMOVING: &str = "removing";
const RULES: &str = "the routing rules of the overlay";
