//! What can go wrong with an interface: what was tried, on which one, and what to do about it.

use std::io;

use ipnet::IpNet;
use lisp_proto::PublicKey;
use thiserror::Error;

/// A failed operation on an interface or a route.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The name cannot be an interface name.
    #[error(
        "creating interface {name:?}: not a valid name; use 1 to 15 characters without '/', ':' and spaces in [interfaces]"
    )]
    InvalidName {
        /// The refused name.
        name: String,
    },
    /// Another process of this software holds the interface.
    #[error(
        "creating interface {name}: another agent or server in this network namespace runs it; stop that one, or choose another name in [interfaces]"
    )]
    Running {
        /// The interface.
        name: String,
    },
    /// A device of that name exists.
    #[error(
        "creating interface {name}: a device of that name exists; stop the program that made it, delete it with `ip link del {name}`, or choose another name in [interfaces]"
    )]
    NameTaken {
        /// The interface.
        name: String,
    },
    /// An interface that was to be removed is not of this software.
    #[error(
        "removing interface {name}: it was not made by this software; delete it with `ip link del {name}` if nobody needs it"
    )]
    Foreign {
        /// The interface.
        name: String,
    },
    /// No network namespace of that name.
    #[error(
        "network namespace {name}: there is none; make it with `ip netns add {name}`, or correct `netns`"
    )]
    NoNamespace {
        /// The name.
        name: String,
    },
    /// The process may not configure interfaces.
    #[error(
        "{action} {name}: not permitted; run as root or grant CAP_NET_ADMIN (and CAP_NET_RAW) to this process"
    )]
    NotPermitted {
        /// What was tried.
        action: &'static str,
        /// The interface.
        name: String,
    },
    /// The TUN driver is not reachable.
    #[error(
        "creating interface {name}: /dev/net/tun is absent; load the module with `modprobe tun`, or pass the device into the container"
    )]
    NoTun {
        /// The interface.
        name: String,
    },
    /// The kernel backend was demanded where there is none.
    #[error(
        "creating interface {name}: this kernel has no WireGuard; load it with `modprobe wireguard`, or set data_plane = \"embedded\""
    )]
    NoKernelWireGuard {
        /// The interface.
        name: String,
    },
    /// Packets of that size do not fit the embedded data plane.
    #[error(
        "creating interface {name}: MTU {mtu} is more than the embedded data plane carries; set mtu to at most {limit}"
    )]
    MtuTooLarge {
        /// The interface.
        name: String,
        /// The refused MTU in bytes.
        mtu: u16,
        /// The largest MTU in bytes.
        limit: u16,
    },
    /// The UDP port is taken.
    #[error(
        "bringing up interface {name}: UDP port {port} is in use; stop the program that holds it, or choose another listen_port"
    )]
    PortTaken {
        /// The interface.
        name: String,
        /// The UDP port.
        port: u16,
    },
    /// The kernel takes no IPv6 addresses.
    #[error(
        "adding address {address} to interface {name}: IPv6 is switched off here; switch it on with `sysctl net.ipv6.conf.default.disable_ipv6=0`, or leave IPv6 addresses out of the configuration"
    )]
    NoIpv6 {
        /// The interface.
        name: String,
        /// The refused address.
        address: IpNet,
    },
    /// No interface of that name.
    #[error("{action} {name}: no interface of that name; was it deleted by hand?")]
    NoInterface {
        /// What was tried.
        action: &'static str,
        /// The interface.
        name: String,
    },
    /// The peer was never set.
    #[error("interface {name}: no peer {}; set the peer first", key.short())]
    UnknownPeer {
        /// The interface.
        name: String,
        /// The key that was asked for.
        key: PublicKey,
    },
    /// Bytes to inject that are not an IP packet.
    #[error("injecting into interface {name}: neither an IPv4 nor an IPv6 packet")]
    NotIp {
        /// The interface.
        name: String,
    },
    /// Packets are injected faster than they leave.
    #[error("injecting into interface {name}: the queue is full; the packet was dropped")]
    QueueFull {
        /// The interface.
        name: String,
    },
    /// A route of somebody else is in the way.
    #[error(
        "adding route {prefix} metric {metric} through {device}: {owner} has a route of that prefix and metric; delete it, or choose another prefix"
    )]
    RouteTaken {
        /// Destination of the route.
        prefix: IpNet,
        /// Metric of the route.
        metric: u32,
        /// The interface of the refused route.
        device: String,
        /// The interface of the route that is there.
        owner: String,
    },
    /// The operating system refused for another reason.
    #[error("{action} {name}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The interface or prefix.
        name: String,
        /// The reason the system gives.
        source: io::Error,
    },
}

impl DeviceError {
    /// Names the cause when it is one with a remedy of its own.
    pub(crate) fn system(action: &'static str, name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { action, name },
            Some(libc::ENODEV) => Self::NoInterface { action, name },
            Some(libc::EEXIST) if action == CREATING => Self::NameTaken { name },
            _ => Self::System {
                action,
                name,
                source,
            },
        }
    }
}

pub(crate) const CREATING: &str = "creating interface";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_device_is_named_with_a_remedy() {
        let error = DeviceError::system(
            CREATING,
            "lisp0",
            io::Error::from_raw_os_error(libc::EEXIST),
        );
        let text = error.to_string();
        assert!(
            text.contains("lisp0") && text.contains("[interfaces]"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_capability_is_named() {
        let error = DeviceError::system(
            "adding route",
            "10.0.0.0/8",
            io::Error::from_raw_os_error(libc::EPERM),
        );
        assert!(error.to_string().contains("CAP_NET_ADMIN"));
    }
}
