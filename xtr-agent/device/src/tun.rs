//! Makes TUN interfaces: plain IP packets, no packet information, no kernel chatter.

use std::io;

use crate::error::{CREATING, DeviceError};
use crate::link_guard::{LinkGuard, NameClaim};
use crate::netlink::link::Links;

/// Makes a TUN interface that is still down; must run within a tokio runtime.
pub(crate) fn open(
    claim: NameClaim,
    mut links: Links,
    mtu: u16,
) -> Result<(tun::AsyncDevice, LinkGuard), DeviceError> {
    let failed = |source| failed_to_create(claim.name(), source);
    // A TUN left persistent by somebody else would be opened without a word.
    if links.find(claim.name()).map_err(failed)?.is_some() {
        let name = claim.name().to_owned();
        return Err(DeviceError::NameTaken { name });
    }
    let mut config = tun::Configuration::default();
    config.tun_name(claim.name()).mtu(mtu);
    let device = tun::create_as_async(&config).map_err(|error| {
        if let tun::Error::Io(source) = error {
            return failed(source);
        }
        failed(io::Error::other(error))
    })?;
    let link = links.find(claim.name()).map_err(failed)?;
    let link = link.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENODEV)))?;
    Ok((device, LinkGuard::new(claim, link, links)))
}

fn failed_to_create(name: &str, source: io::Error) -> DeviceError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO) => DeviceError::NoTun {
            name: name.to_owned(),
        },
        Some(libc::EBUSY) => DeviceError::NameTaken {
            name: name.to_owned(),
        },
        _ => DeviceError::system(CREATING, name, source),
    }
}
