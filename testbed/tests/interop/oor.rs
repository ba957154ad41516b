//! Stock Open Overlay Router, and the sites behind its xTRs.

use std::fs;

use testbed::{Daemon, Host, Link, LinkEnd, LinkParams, Namespace};

use super::docs;
use super::site::Site;

/// A host behind an xTR.
pub(crate) struct Behind {
    pub(crate) namespace: Namespace,
    _link: Link,
}

/// Starts OOR as the page says, with a `/tmp` of its own.
pub(crate) fn start_oor(site: &Site, host: &Host, config: &str) -> Daemon {
    site.succeed(&host.namespace, &docs::block("oor-host.sh"));
    let directory = site.testbed.directory().join(&host.role);
    fs::write(directory.join("oor.conf"), config).unwrap();
    site.start(host, "/tmp", &["oor", "-f", "/tmp/oor.conf"])
}

/// Host 10 of 192.168.`number`.0/24 behind `xtr`.
pub(crate) fn behind(site: &Site, xtr: &Host, number: u8) -> Behind {
    let testbed = &site.testbed;
    let namespace = testbed.namespace(&format!("behind-{number}")).unwrap();
    let ends = [(&xtr.namespace, "site0"), (&namespace, "eth0")];
    let ends = ends.map(|(at, interface)| LinkEnd {
        namespace: at.clone(),
        interface: interface.into(),
    });
    let link = Link::new(testbed, ends, LinkParams::default()).unwrap();
    let net = |host: u8| format!("192.168.{number}.{host}/24").parse().unwrap();
    xtr.namespace.add_address("site0", net(1)).unwrap();
    namespace.add_address("eth0", net(10)).unwrap();
    let route = format!("ip route add default via 192.168.{number}.1");
    site.succeed(&namespace, &route);
    Behind {
        namespace,
        _link: link,
    }
}
