//! Changes of this host's addresses, heard of as they happen.

use tokio::time::timeout;
use wg_device::AddressWatch;

use crate::support::{PATIENCE, SILENCE, in_namespace, ip};

#[test]
fn a_new_address_and_a_new_route_are_heard_of() {
    in_namespace(|| async {
        ip("link add left0 type veth peer name right0");
        ip("link set left0 up");
        ip("link set right0 up");
        let watch = AddressWatch::open().unwrap();
        quiet(&watch).await;
        for change in [
            "addr add 192.0.2.1/24 dev left0",
            "addr add 2001:db8::1/64 dev left0",
            "route add 198.51.100.0/24 dev left0",
            "addr del 192.0.2.1/24 dev left0",
        ] {
            ip(change);
            timeout(PATIENCE, watch.changed())
                .await
                .expect(change)
                .unwrap();
            quiet(&watch).await;
        }
    });
}

#[test]
fn more_changes_than_the_kernel_keeps_are_a_change() {
    in_namespace(|| async {
        ip("link add left0 type veth peer name right0");
        ip("link set left0 up");
        let watch = AddressWatch::open().unwrap();
        for third in 0..8 {
            let batch: String = (0..250)
                .map(|n| format!("addr add 10.1.{third}.{n}/32 dev left0\n"))
                .collect();
            let path = std::env::temp_dir().join(format!("batch-{}-{third}", std::process::id()));
            std::fs::write(&path, batch).unwrap();
            ip(&format!("-batch {}", path.display()));
            std::fs::remove_file(path).unwrap();
        }
        timeout(PATIENCE, watch.changed()).await.unwrap().unwrap();
        quiet(&watch).await;
    });
}

/// Waits until nothing is said any more.
async fn quiet(watch: &AddressWatch) {
    let quiet = async { while timeout(SILENCE, watch.changed()).await.is_ok() {} };
    timeout(PATIENCE, quiet).await.expect("it never ends");
}
