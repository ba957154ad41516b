//! Network namespaces that live as long as a test, and two hosts on one cable.

use std::env;
use std::fs::File;
use std::future::Future;
use std::io::{Write, stderr};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use wg_device::{
    Backend, BackendChoice, Device, DeviceConfig, DeviceError, MAIN_TABLE, PeerSpec, PeerStats,
    PrivateKey, RouteSpec, Routes, bind_control_socket,
};

/// Long enough for any machine, far below WireGuard's own timers.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough for a packet that is on its way; for what must not arrive.
pub(crate) const SILENCE: Duration = Duration::from_millis(700);

/// Runs a test in a thread with a network namespace of its own, or says why not.
pub(crate) fn in_namespace<F, T>(test: F)
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = ()>,
{
    if !geteuid().is_root() {
        return skipped("making network namespaces needs root");
    }
    let thread = thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            return skipped(&format!("making network namespaces: {error}"));
        }
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a test once with every data plane this machine has, each in a fresh namespace.
pub(crate) fn with_each_backend<F, T>(test: F)
where
    F: Fn(BackendChoice) -> T + Copy + Send + 'static,
    T: Future<Output = ()>,
{
    for choice in [BackendChoice::Embedded, BackendChoice::Kernel] {
        in_namespace(move || async move {
            if choice == BackendChoice::Kernel && !has_kernel_wireguard().await {
                if env::var_os(IN_GUEST).is_some() {
                    skipped("the kernel has no WireGuard");
                }
                return;
            }
            println!("with {choice:?}");
            test(choice).await;
        });
    }
}

/// Set where these tests run in a guest, which has all that they need.
const IN_GUEST: &str = "LISPWIRE_IN_GUEST";

/// Says why a test is skipped, or fails where none may be.
fn skipped(why: &str) {
    assert!(env::var_os(IN_GUEST).is_none(), "{why}");
    // What `println!` says is kept from the reader when a test passes.
    stderr()
        .write_all(format!("skipped: {why}\n").as_bytes())
        .unwrap();
}

/// Adds a host address to the loopback interface and waits until it is in use.
pub(crate) async fn add_to_loopback(address: &str) {
    ip(&format!("addr add {address} dev lo"));
    let in_use = async {
        while !ip(&format!("route get {address}")).contains("local") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, in_use).await.expect("address not in use");
}

/// Runs `ip` in the present namespace and insists on success.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A network namespace, kept by its descriptor.
pub(crate) struct Namespace(File);

impl Namespace {
    /// The one this thread is in.
    pub(crate) fn present() -> Self {
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    /// Goes into a new one.
    pub(crate) fn enter_new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        Self::present()
    }

    /// Goes into this one.
    pub(crate) fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// What `ip` takes for a namespace.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Two namespaces joined by a cable; the near end is 192.0.2.1, the far one 192.0.2.2 and .3.
pub(crate) struct Cable {
    pub(crate) near: Namespace,
    pub(crate) far: Namespace,
}

impl Cable {
    /// Lays the cable and stays in the near namespace.
    pub(crate) fn lay() -> Self {
        let near = Namespace::present();
        let far = Namespace::enter_new();
        near.enter();
        ip(&format!(
            "link add cable0 type veth peer name cable0 netns {}",
            far.path()
        ));
        ip("addr add 192.0.2.1/24 dev cable0");
        ip("addr add 2001:db8::1/64 dev cable0 nodad");
        ip("link set cable0 up");
        far.enter();
        ip("addr add 192.0.2.2/24 dev cable0");
        ip("addr add 192.0.2.3/24 dev cable0");
        ip("addr add 2001:db8::2/64 dev cable0 nodad");
        ip("link set cable0 up");
        near.enter();
        Self { near, far }
    }
}

/// A device with its key, for peers to know.
pub(crate) struct Node {
    pub(crate) device: Device,
    pub(crate) key: PrivateKey,
    pub(crate) endpoint: SocketAddr,
    pub(crate) inner: Vec<IpNet>,
}

impl Node {
    /// Makes a device in the present namespace; `underlay` is where others reach it.
    pub(crate) async fn start(
        choice: BackendChoice,
        name: &str,
        underlay: &str,
        inner: &[&str],
    ) -> Self {
        let key = PrivateKey::generate();
        let inner: Vec<IpNet> = inner.iter().map(|net| net.parse().unwrap()).collect();
        let config = config(name, &key, 0, &inner);
        let device = Device::create(config, choice).await.unwrap();
        let endpoint = SocketAddr::new(underlay.parse().unwrap(), device.listen_port());
        Self {
            device,
            key,
            endpoint,
            inner,
        }
    }

    /// How another node describes this one.
    pub(crate) fn as_peer(&self) -> PeerSpec {
        PeerSpec {
            key: self.key.public(),
            endpoint: Some(self.endpoint),
            allowed_ips: self.inner.clone(),
            keepalive: None,
        }
    }

    /// Adds this node's inner prefixes as routes through `device` of the present namespace.
    pub(crate) fn route_through(&self, device: &Device) {
        let routes = Routes::new().unwrap();
        for prefix in &self.inner {
            routes
                .add(&route(&prefix.to_string(), device.name()))
                .unwrap();
        }
    }

    /// What this node knows about `peer`.
    pub(crate) async fn stats_of(&self, peer: &Self) -> PeerStats {
        let stats = self.device.peer_stats().await.unwrap();
        let key = peer.key.public();
        stats.into_iter().find(|stats| stats.key == key).unwrap()
    }

    /// Waits until there is a session with `peer`.
    pub(crate) async fn wait_for_handshake(&self, peer: &Self) {
        let handshake = async {
            while self.stats_of(peer).await.since_handshake.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, handshake).await.expect("no handshake");
    }
}

pub(crate) fn config(
    name: &str,
    private_key: &PrivateKey,
    listen_port: u16,
    addresses: &[IpNet],
) -> DeviceConfig {
    DeviceConfig {
        name: name.to_owned(),
        private_key: private_key.clone(),
        listen_port,
        mtu: 1420,
        mark: 0,
        sources: None,
        addresses: addresses.to_vec(),
        adopt: false,
    }
}

pub(crate) fn route(prefix: &str, device: &str) -> RouteSpec {
    RouteSpec {
        prefix: prefix.parse().unwrap(),
        device: device.to_owned(),
        metric: 50,
        source: None,
        table: MAIN_TABLE,
    }
}

/// A socket bound to an inner address and its interface.
pub(crate) fn bind(address: &str, device: &Device) -> UdpSocket {
    let address = SocketAddr::new(address.parse().unwrap(), PORT);
    bind_control_socket(address, Some(device.name()), 0).unwrap()
}

/// Waits for a datagram and returns it as text with its source.
pub(crate) async fn receive(socket: &UdpSocket) -> (String, IpAddr) {
    let mut buffer = [0; 2048];
    let received = timeout(PATIENCE, socket.recv_from(&mut buffer)).await;
    let (length, source) = received.expect("nothing arrived").unwrap();
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    (text, source.ip())
}

/// Whether nothing arrives for a while.
pub(crate) async fn is_silent(socket: &UdpSocket) -> bool {
    let mut buffer = [0; 2048];
    timeout(SILENCE, socket.recv_from(&mut buffer))
        .await
        .is_err()
}

/// The UDP port all tests use inside.
pub(crate) const PORT: u16 = 4342;

/// An IP packet with a UDP datagram, with good checksums.
pub(crate) fn udp_packet(source: &str, destination: &str, payload: &str) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut udp = Vec::new();
    udp.extend(PORT.to_be_bytes());
    udp.extend(PORT.to_be_bytes());
    udp.extend(length.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload.as_bytes());
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            [source.octets(), destination.octets()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            [source.octets(), destination.octets()].concat()
        }
        _ => panic!("mixed families"),
    };
    let pseudo = [&addresses[..], &[0, 17], &length.to_be_bytes()].concat();
    let sum = checksum(&[pseudo, udp.clone()].concat());
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut header = if source.is_ipv4() {
        let total = length + 20;
        let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header.extend(&addresses);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
        header[4..6].copy_from_slice(&length.to_be_bytes());
        header.extend(&addresses);
        header
    };
    header.extend(udp);
    header
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum).unwrap()
}

/// Creates a device whose name or port was given back just now.
///
/// A program that another test starts holds copies of all sockets of this process for a moment,
/// between its fork and its exec.
pub(crate) async fn create_again(config: &DeviceConfig, choice: BackendChoice) -> Device {
    let created = async {
        loop {
            match Device::create(config.clone(), choice).await {
                Err(DeviceError::Running { .. } | DeviceError::PortTaken { .. }) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                result => return result.unwrap(),
            }
        }
    };
    timeout(PATIENCE, created).await.expect("never given back")
}

async fn has_kernel_wireguard() -> bool {
    let key = PrivateKey::generate();
    let made = Device::create(config("lispprobe", &key, 0, &[]), BackendChoice::Auto).await;
    let device = made.unwrap();
    let found = device.backend() == Backend::Kernel;
    device.close().await;
    found
}
