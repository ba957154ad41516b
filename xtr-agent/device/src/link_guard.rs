//! The claim on an interface name, and the interface that goes when the claim goes.

use std::io;
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;

use crate::error::{CREATING, DeviceError};
use crate::netlink::link::{Link, Links};

/// The right to make the interface of a name in this network namespace.
///
/// It is an abstract unix socket: one per name and network namespace, and gone with the process
/// however it ends. So an interface that is there although nobody holds its name was left over.
#[derive(Debug)]
pub(crate) struct NameClaim {
    name: String,
    _socket: UnixDatagram,
}

impl NameClaim {
    pub(crate) fn take(name: &str) -> Result<Self, DeviceError> {
        let valid = (1..=MAX_NAME).contains(&name.len())
            && name != "."
            && name != ".."
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
        let name = name.to_owned();
        if !valid {
            return Err(DeviceError::InvalidName { name });
        }
        let address = SocketAddr::from_abstract_name(format!("lispwire-interface:{name}"));
        match address.and_then(|address| UnixDatagram::bind_addr(&address)) {
            Ok(socket) => Ok(Self {
                name,
                _socket: socket,
            }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(DeviceError::Running { name })
            }
            Err(error) => Err(DeviceError::system(CREATING, &name, error)),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// An interface that is deleted when this is dropped, unless it is to stay.
#[derive(Debug)]
pub(crate) struct LinkGuard {
    index: u32,
    stays: AtomicBool,
    links: Mutex<Links>,
    claim: NameClaim,
}

impl LinkGuard {
    /// Takes charge of the interface `link`, which carries the claimed name.
    pub(crate) const fn new(claim: NameClaim, link: Link, links: Links) -> Self {
        Self {
            index: link.index,
            stays: AtomicBool::new(false),
            links: Mutex::new(links),
            claim,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.claim.name()
    }

    /// From now on the interface is left in place when this is dropped.
    pub(crate) fn stay(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    /// Deletes the interface whether it was to stay or not.
    pub(crate) fn remove(self) {
        self.stays.store(false, Ordering::Relaxed);
    }

    /// Makes an interface that may be of an earlier run what a new one would be, and brings it up;
    /// what is as it shall be is not touched.
    pub(crate) fn fit(&self, mtu: u16, addresses: &[IpNet]) -> Result<(), DeviceError> {
        let failed = |source| DeviceError::system(BRINGING_UP, self.name(), source);
        self.links().set_mtu(self.index, mtu).map_err(failed)?;
        self.set_addresses(addresses)
    }

    /// Gives the interface these addresses and no others; those that stay are not touched.
    pub(crate) fn set_addresses(&self, addresses: &[IpNet]) -> Result<(), DeviceError> {
        let failed = |source| DeviceError::system(BRINGING_UP, self.name(), source);
        let mut links = self.links();
        links.mark(self.index).map_err(failed)?;
        let present = links.addresses(self.index).map_err(failed)?;
        let present: Vec<IpNet> = present.iter().map(|own| own.net).collect();
        for old in present.iter().filter(|old| !addresses.contains(old)) {
            links.remove_address(self.index, *old).map_err(failed)?;
        }
        drop(links);
        let wanted = addresses.iter().copied();
        let new: Vec<IpNet> = wanted.filter(|new| !present.contains(new)).collect();
        self.bring_up(&new)
    }

    /// Marks the interface, adds the addresses and brings it up.
    pub(crate) fn bring_up(&self, addresses: &[IpNet]) -> Result<(), DeviceError> {
        let mut links = self.links();
        links
            .mark(self.index)
            .map_err(|source| DeviceError::system(BRINGING_UP, self.name(), source))?;
        for address in addresses {
            links
                .add_address(self.index, *address)
                .map_err(|source| refused_address(self.name(), *address, source))?;
        }
        links
            .bring_up(self.index)
            .map_err(|source| DeviceError::system(BRINGING_UP, self.name(), source))
    }

    /// Waits, for a bounded time, until packets to the addresses are taken in.
    ///
    /// The kernel installs what that takes for IPv6 some time after it has confirmed the address.
    pub(crate) async fn settle(&self, addresses: &[IpNet]) -> Result<(), DeviceError> {
        for _ in 0..SETTLE_CHECKS {
            if self.is_settled(addresses)? {
                return Ok(());
            }
            tokio::time::sleep(SETTLE_CHECK_INTERVAL).await;
        }
        tracing::warn!(name = self.name(), "IPv6 addresses do not become usable");
        Ok(())
    }

    fn is_settled(&self, addresses: &[IpNet]) -> Result<bool, DeviceError> {
        let mut links = self.links();
        for address in addresses {
            if let IpAddr::V6(ip) = address.addr()
                && !links
                    .is_local(ip)
                    .map_err(|source| refused_address(self.name(), *address, source))?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LinkGuard {
    fn drop(&mut self) {
        if *self.stays.get_mut() {
            return;
        }
        let links = self.links.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = links.delete(self.index) {
            tracing::warn!(name = self.claim.name(), %error, "deleting interface failed");
        }
    }
}

fn refused_address(name: &str, address: IpNet, source: io::Error) -> DeviceError {
    match (address, source.raw_os_error()) {
        (IpNet::V6(_), Some(libc::EACCES | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {
            let name = name.to_owned();
            DeviceError::NoIpv6 { name, address }
        }
        _ => DeviceError::system("adding an address to interface", name, source),
    }
}

pub(crate) const BRINGING_UP: &str = "bringing up interface";

/// Usually the first check or the second succeeds; together they take a second.
const SETTLE_CHECKS: usize = 1_000;
const SETTLE_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// `IFNAMSIZ` without the terminating zero.
const MAX_NAME: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_claimed_once_and_free_again_afterwards() {
        let claim = NameClaim::take("lisptest0").unwrap();
        let second = NameClaim::take("lisptest0").unwrap_err();
        assert!(matches!(second, DeviceError::Running { .. }), "{second}");
        drop(claim);
        NameClaim::take("lisptest0").unwrap();
    }

    #[test]
    fn names_the_kernel_would_refuse_are_refused() {
        for name in ["", "a-name-too-long-x", "a/b", "..", "a b"] {
            let error = NameClaim::take(name).unwrap_err();
            assert!(matches!(error, DeviceError::InvalidName { .. }), "{error}");
        }
    }
}
