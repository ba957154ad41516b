//! The parts of the standard network before any daemon runs: keys and configuration files.

use std::net::IpAddr;

use super::config::{EndpointConfig, ServerConfig, XtrEntry};
use super::node::public_keys;
use super::{Endpoint, NetworkOptions, Node, Tenant};
use crate::binaries::Binaries;
use crate::crowd::{Crowd, UNDERLAY};
use crate::error::TestbedError;
use crate::namespace::Namespace;
use crate::testbed::Testbed;
use crate::topology::Topology;

/// Role of the host that all far ends without a daemon share.
const CROWD: &str = "crowd";

/// Makes the endpoint `number`, counted from 1, of a map server with this key and address, and what
/// the map server has to know of it.
pub(super) fn endpoint(
    testbed: &Testbed,
    mut node: Node,
    number: usize,
    options: &NetworkOptions,
    (server_key, server_address): (&str, IpAddr),
    binaries: &Binaries,
) -> Result<(Endpoint, XtrEntry), TestbedError> {
    let state_dir = &node.state_dir;
    let mut config = EndpointConfig::new(options, number, state_dir, server_key, server_address);
    let mut namespaces = Vec::new();
    for iid in 1..=options.tenants {
        let namespace = testbed.namespace(&format!("{}-{iid}", node.name()))?;
        config.add_tenant(iid, namespace.name());
        namespaces.push(namespace);
    }
    node.write_config(&config.to_string())?;
    let instances = 1 + config.tenants.len();
    let (control_key, data_keys) = public_keys(&binaries.xtr_agent, &node.config, instances)?;
    let mut data_keys = data_keys.into_iter();
    let data_key = data_keys.next().unwrap_or_default();
    let mut tenants = Vec::new();
    for ((tenant, namespace), data_key) in config.tenants.iter().zip(namespaces).zip(data_keys) {
        tenants.push(Tenant {
            iid: tenant.iid,
            eids: tenant.eids,
            untouched: namespace.snapshot()?,
            namespace,
            data_key,
        });
    }
    let entry = XtrEntry::new(node.name(), &control_key, &config);
    let endpoint = Endpoint {
        node,
        eids: config.eids,
        control_key,
        data_key,
        tenants,
        site: config.site,
    };
    Ok((endpoint, entry))
}

/// Adds the host of all far ends that have no daemon, and the way to it from all `others`.
pub(super) fn crowd<'a>(
    topology: &mut Topology,
    others: impl Iterator<Item = &'a Namespace>,
    options: &NetworkOptions,
    server_config: &mut ServerConfig,
) -> Result<Crowd, TestbedError> {
    let host = topology.add_host(CROWD, options.links)?;
    let Some(IpAddr::V4(gateway)) = host.addresses().first().copied() else {
        return Err(TestbedError::Unexpected("a crowd needs an IPv4 underlay"));
    };
    for other in others {
        other.set_route(UNDERLAY, gateway)?;
    }
    let crowd = Crowd::new(host, options.crowd, options.seed)?;
    for (number, (key, control_address, eid)) in crowd.enrolled().enumerate() {
        let name = format!("{CROWD}-{number}");
        let entry = XtrEntry::single(name, &key, control_address, eid.into());
        server_config.xtrs.push(entry);
    }
    Ok(crowd)
}
