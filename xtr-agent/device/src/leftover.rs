//! Interfaces that outlived their process: found by name, removed when asked for.

use crate::error::DeviceError;
use crate::link_guard::NameClaim;
use crate::miss_tun::OPENING_NETLINK;
use crate::netlink::link::Links;
use crate::netns::{NetNs, inside};

/// Removes the interface `name`, with its addresses and routes, if an earlier run of this software
/// left it in the present network namespace, or the one named; returns whether there was one.
///
/// # Errors
/// A process uses the interface, somebody else made it, or CAP_NET_ADMIN is missing.
pub fn remove_leftover(netns: Option<&NetNs>, name: &str) -> Result<bool, DeviceError> {
    inside(netns, || remove_here(name))
}

fn remove_here(name: &str) -> Result<bool, DeviceError> {
    let claim = NameClaim::take(name)?;
    let failed = |action| move |e| DeviceError::system(action, name, e);
    let mut links = Links::open().map_err(failed(OPENING_NETLINK))?;
    let Some(link) = links.find(claim.name()).map_err(failed(REMOVING))? else {
        return Ok(false);
    };
    if !link.is_marked {
        let name = name.to_owned();
        return Err(DeviceError::Foreign { name });
    }
    links.delete(link.index).map_err(failed(REMOVING))?;
    Ok(true)
}

const REMOVING: &str = "removing interface";
