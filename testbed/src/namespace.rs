//! Network namespaces that `ip netns exec` can enter.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;

use ipnet::{IpNet, Ipv4Net};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::Runtime;

use crate::cleanup::{self, NETNS_DIRECTORY};
use crate::error::{Doing, TestbedError, best_effort};
use crate::netlink::{InterfaceCounters, Netlink};
use crate::snapshot::Snapshot;
use crate::spawner;

/// A network namespace with its own interfaces, addresses and routes.
///
/// Clones are the same namespace. It is removed when the last clone is dropped; the kernel
/// frees it when no process is in it any more.
#[derive(Clone)]
pub struct Namespace(Arc<Inner>);

struct Inner {
    // Dropped first: a socket in the namespace would keep it alive.
    netlink: Netlink,
    file: File,
    name: Name,
}

/// The name under `/run/netns`; removed on drop.
struct Name(String);

impl Namespace {
    /// Makes the namespace `name` and brings its loopback up.
    pub(crate) fn create(name: String, runtime: &Arc<Runtime>) -> Result<Self, TestbedError> {
        prepare_directory().doing("prepare", NETNS_DIRECTORY)?;
        // Registered first: a signal from here on finds it.
        cleanup::registry().namespaces.insert(name.clone());
        let name = Name(name);
        let path = Path::new(NETNS_DIRECTORY).join(&name.0);
        File::create_new(&path).doing("create", path.display())?;
        let (file, netlink) = thread::scope(|scope| {
            let inside = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).map_err(|_| TestbedError::NotPermitted)?;
                let own = "/proc/thread-self/ns/net";
                mount(
                    Some(own),
                    &path,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )
                .doing("mount", path.display())?;
                quieten().doing("set sysctls in", &name.0)?;
                let file = File::open(&path).doing("open", path.display())?;
                Ok((file, Netlink::open(runtime, &name.0)?))
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        netlink.set_up("lo")?;
        Ok(Self(Arc::new(Inner {
            netlink,
            file,
            name,
        })))
    }

    /// The name `ip netns exec` knows it by.
    pub fn name(&self) -> &str {
        &self.0.name.0
    }

    /// Runs a closure in the namespace, on a thread of its own, and waits for it.
    ///
    /// Sockets it opens stay in the namespace and may be returned.
    ///
    /// # Errors
    ///
    /// When no thread can be started in the namespace.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T, TestbedError> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| self.enter().map(|()| body()));
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
        .doing("enter", self.name())
    }

    /// Starts a program in the namespace. It is killed when this process dies.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Child, TestbedError> {
        let program = command.get_program().to_string_lossy().into_owned();
        spawner::spawn(command, self.clone()).doing("start", program)
    }

    /// Adds an address to an interface; usable at once, without duplicate address detection.
    ///
    /// # Errors
    ///
    /// When there is no such interface or it has the address already.
    pub fn add_address(&self, interface: &str, net: IpNet) -> Result<(), TestbedError> {
        self.0.netlink.add_address(interface, net)
    }

    /// Removes an address from an interface.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn delete_address(&self, interface: &str, net: IpNet) -> Result<(), TestbedError> {
        self.0.netlink.delete_address(interface, net)
    }

    /// Adds a permanent neighbour, so that no packet waits for ARP or neighbour discovery.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn add_neighbour(
        &self,
        interface: &str,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), TestbedError> {
        self.0.netlink.add_neighbour(interface, address, mac)
    }

    /// Sets the route to a destination, by way of a neighbour.
    ///
    /// # Errors
    ///
    /// When there is no such neighbour.
    pub fn set_route(&self, destination: Ipv4Net, gateway: Ipv4Addr) -> Result<(), TestbedError> {
        self.0.netlink.set_route(destination, gateway)
    }

    /// Makes a bridge.
    ///
    /// # Errors
    ///
    /// When the name is taken.
    pub fn add_bridge(&self, name: &str) -> Result<(), TestbedError> {
        self.0.netlink.add_bridge(name)
    }

    /// Makes an interface a port of a bridge.
    ///
    /// # Errors
    ///
    /// When one of the two does not exist.
    pub fn attach(&self, interface: &str, bridge: &str) -> Result<(), TestbedError> {
        self.0.netlink.attach(interface, bridge)
    }

    /// Reads the counters of an interface.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn counters(&self, interface: &str) -> Result<InterfaceCounters, TestbedError> {
        self.0.netlink.counters(interface)
    }

    /// Reads all interfaces, addresses, routes and rules.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn snapshot(&self) -> Result<Snapshot, TestbedError> {
        Snapshot::take(&self.0.netlink)
    }

    pub(crate) fn netlink(&self) -> &Netlink {
        &self.0.netlink
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }

    /// Moves the calling thread into the namespace, for good.
    fn enter(&self) -> io::Result<()> {
        setns(&self.0.file, CloneFlags::CLONE_NEWNET)?;
        Ok(())
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let mut registry = cleanup::registry();
        best_effort(cleanup::remove_namespace(&self.0));
        registry.namespaces.remove(&self.0);
    }
}

/// Makes `/run/netns` what `ip netns` makes of it: a shared mount, so that namespaces mounted
/// there are seen, and go, in every mount namespace.
fn prepare_directory() -> io::Result<()> {
    let directory = Path::new(NETNS_DIRECTORY);
    fs::create_dir_all(directory)?;
    // Two processes must not both find the directory unmounted.
    let _alone =
        Flock::lock(File::open(directory)?, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let none = None::<&str>;
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    if mount(none, directory, none, shared, none) == Err(nix::errno::Errno::EINVAL) {
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(directory), directory, none, bind, none)?;
        mount(none, directory, none, shared, none)?;
    }
    Ok(())
}

/// Sets what keeps the calling thread's namespace free of traffic nobody asked for.
fn quieten() -> io::Result<()> {
    // Detection of duplicates is off only where it is off for all interfaces too.
    for setting in [
        "all/accept_dad",
        "default/accept_dad",
        "default/router_solicitations",
    ] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{setting}"), "0")?;
    }
    Ok(())
}
