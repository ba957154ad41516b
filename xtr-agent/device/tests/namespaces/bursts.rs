//! Many packets injected at once, as when a tunnel is up that many waited for.

use std::net::SocketAddr;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;
use wg_device::{BackendChoice, Device, PeerSpec, PrivateKey};

use crate::support::{Cable, Node, bind, receive, udp_packet, with_each_backend};

/// What an agent hands to the data plane for a peer that has not shaken hands yet.
const STAGED: u32 = 64;

/// Packets that are sent on at once.
const BURST: u32 = 900;

/// Bytes of a datagram that nearly fill a packet.
const LARGE: usize = 1_372;

#[test]
fn peers_that_never_answer_leave_room_for_others() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let (near, _far, socket) = acquainted(choice, &cable).await;
        for number in 1..=3_u16 {
            let silent = format!("10.0.9.{number}");
            let spec = PeerSpec {
                key: PrivateKey::generate().public(),
                endpoint: Some(SocketAddr::new(
                    "192.0.2.3".parse().unwrap(),
                    1_000 + number,
                )),
                allowed_ips: vec![format!("{silent}/32").parse().unwrap()],
                keepalive: None,
            };
            near.device.set_peer(&spec).await.unwrap();
            for _ in 0..STAGED {
                inject(&near.device, &silent, &"s".repeat(LARGE)).await;
            }
        }
        inject(&near.device, "10.0.0.2", "alive").await;
        assert_eq!(receive(&socket).await.0, "alive");
    });
}

#[test]
fn more_packets_than_a_socket_holds_arrive_in_order() {
    with_each_backend(|choice| async move {
        let cable = Cable::lay();
        let (near, far, socket) = acquainted(choice, &cable).await;
        setsockopt(&socket, sockopt::RcvBufForce, &(128 << 20)).unwrap();
        near.device.kick(&far.key.public()).await.unwrap();
        near.wait_for_handshake(&far).await;
        far.wait_for_handshake(&near).await;
        // Many more than a socket holds, and no more than the kernel's WireGuard keeps to be decrypted:
        // this processor is that of the far end as well.
        for size in [LARGE, 10] {
            let urgent = Urgent::now();
            for number in 0..BURST {
                let text = format!("{number:0size$}");
                inject(&near.device, "10.0.0.2", &text).await;
            }
            drop(urgent);
            for number in 0..BURST {
                assert_eq!(number_of(&socket).await, number, "of {size} bytes");
            }
        }
    });
}

async fn inject(device: &Device, to: &str, text: &str) {
    let packet = udp_packet("10.0.0.1", to, text);
    device.inject(&packet).await.unwrap();
}

/// Before all else that this processor has to do, the kernel's encryption included: until dropped.
struct Urgent;

impl Urgent {
    fn now() -> Self {
        schedule(libc::SCHED_FIFO, 1);
        Self
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        schedule(libc::SCHED_OTHER, 0);
    }
}

#[expect(unsafe_code, reason = "nix does not know this call")]
fn schedule(policy: libc::c_int, sched_priority: libc::c_int) {
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: the parameters outlive the call; 0 is the calling thread.
    let done = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

async fn number_of(socket: &UdpSocket) -> u32 {
    receive(socket).await.0.parse().unwrap()
}

/// Two nodes that know each other, and a socket at the far one; the thread is there afterwards.
async fn acquainted(choice: BackendChoice, cable: &Cable) -> (Node, Node, UdpSocket) {
    let near = Node::start(choice, "lisp0", "192.0.2.1", &["10.0.0.1/32"]).await;
    cable.far.enter();
    let far = Node::start(choice, "lisp0", "192.0.2.2", &["10.0.0.2/32"]).await;
    near.device.set_peer(&far.as_peer()).await.unwrap();
    far.device.set_peer(&near.as_peer()).await.unwrap();
    let socket = bind("10.0.0.2", &far.device);
    (near, far, socket)
}
