//! Proxies that fail, each in a way of its own.

use std::fs;
use std::process::{Command, Stdio};

use super::{Endpoint, TwoProxies};
use crate::error::{Doing, TestbedError};
use crate::namespace::Namespace;

/// The interface of an agent to the other endpoints.
const DATA_INTERFACE: &str = "lisp0";

/// A way in which a proxy fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its process is killed, and its tunnels are gone.
    Killed,
    /// Its link to the underlay is cut.
    LinkCut,
    /// Its tunnels are up, and it forwards nothing.
    NotForwarding,
}

impl Failure {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Killed, Self::LinkCut, Self::NotForwarding];
}

impl TwoProxies {
    /// Lets a proxy fail; nobody is told.
    ///
    /// # Errors
    ///
    /// When there is no such proxy, or its namespace is gone.
    pub fn fail(&mut self, proxy: usize, failure: Failure) -> Result<(), TestbedError> {
        let proxy = self.proxy_mut(proxy)?;
        match failure {
            Failure::Killed => {
                proxy.node.kill();
                // The kernel's tunnels outlive the process; those of the agent are gone already.
                let mut command = Command::new("ip");
                command.args(["link", "delete", DATA_INTERFACE]);
                command.stderr(Stdio::null());
                let mut child = proxy.namespace().spawn(command)?;
                child.wait().doing("delete", DATA_INTERFACE).map(|_| ())
            }
            Failure::LinkCut => proxy.node.host.link.cut(),
            Failure::NotForwarding => forward(proxy.namespace(), "0"),
        }
    }

    /// Undoes [`fail`](Self::fail), and returns when the proxy is registered.
    ///
    /// # Errors
    ///
    /// When there is no such proxy, or it does not register.
    pub fn heal(&mut self, proxy: usize, failure: Failure) -> Result<(), TestbedError> {
        match failure {
            Failure::Killed => {
                let log = self.network.log.clone();
                let proxy = self.proxy_mut(proxy)?;
                proxy.node.start(&log)?;
                proxy.wait_until_registered()
            }
            Failure::LinkCut => self.proxy_mut(proxy)?.node.host.link.restore(),
            Failure::NotForwarding => forward(self.proxy_mut(proxy)?.namespace(), "1"),
        }
    }

    fn proxy_mut(&mut self, proxy: usize) -> Result<&mut Endpoint, TestbedError> {
        let proxy = self.network.endpoints.get_mut(proxy);
        proxy.ok_or(TestbedError::Unexpected("there is no such proxy"))
    }
}

/// Switches the forwarding of a namespace on or off.
fn forward(namespace: &Namespace, value: &str) -> Result<(), TestbedError> {
    let written = namespace.run(|| fs::write(IP_FORWARD, value))?;
    written.doing("write", IP_FORWARD)
}

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
