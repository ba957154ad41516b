//! Makes TUN interfaces: plain IP packets, no packet information, no kernel chatter.

use std::io;

use crate::error::{CREATING, DeviceError};
use crate::link_guard::{LinkGuard, NameClaim};
use crate::netlink::link::Links;

/// Makes a TUN interface that is still down; must run within a tokio runtime.
///
/// One that an earlier run left is taken over with `adopt`, and replaced without. Taken over ones
/// are up, stay until they are removed, and so do new ones when told to.
pub(crate) fn open(
    claim: NameClaim,
    mut links: Links,
    mtu: u16,
    adopt: bool,
) -> Result<(tun::AsyncDevice, LinkGuard), DeviceError> {
    let failed = |source| failed_to_create(claim.name(), source);
    let found = links.find(claim.name()).map_err(failed)?;
    let left = match found {
        // A TUN left persistent by somebody else would be opened without a word.
        Some(link) if !link.is_marked => {
            let name = claim.name().to_owned();
            return Err(DeviceError::NameTaken { name });
        }
        Some(link) if !(adopt && link.is_tun) => {
            tracing::info!(
                name = claim.name(),
                "removing the interface an earlier run left"
            );
            links.delete(link.index).map_err(failed)?;
            None
        }
        left => left,
    };
    let mut config = tun::Configuration::default();
    config.tun_name(claim.name()).mtu(mtu);
    let opened = tun::create(&config).and_then(|mut device| {
        if adopt {
            device.persist()?;
        }
        Ok(tun::AsyncDevice::new(device)?)
    });
    let device = opened.map_err(|error| {
        if let tun::Error::Io(source) = error {
            return failed(source);
        }
        failed(io::Error::other(error))
    })?;
    let link = links.find(claim.name()).map_err(failed)?;
    let link = link.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENODEV)))?;
    let guard = LinkGuard::new(claim, link, links);
    if left.is_some() {
        guard.stay();
    }
    Ok((device, guard))
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
