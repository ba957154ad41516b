//! At which addresses is this host reached, and by which uplinks does it send?

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::error::{ConfigError, Source};
use crate::agent;
use crate::agent::limits::RELAY_PRIORITY;

/// Most addresses: so many locators fit into any record.
const MOST_RLOCS: usize = 8;
/// The longest name of an interface, in bytes.
const LONGEST_NAME: usize = 15;

/// An address at which the data interface can be reached, and the uplink that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The address (the RLOC).
    pub address: IpAddr,
    /// Which one far ends shall use: the lowest number; 255: none shall (RFC 9301 5.4).
    pub priority: u8,
    /// The share of far ends that use it, among those of one priority.
    pub weight: u8,
    /// The interface that has it, if tunnels are to leave by that; then it has routes of its own.
    pub interface: Option<String>,
    /// Where they go from there; `None`: the interface leads to one other end only.
    pub gateway: Option<IpAddr>,
}

impl Uplink {
    /// What the agent is told of it while it is there.
    #[must_use]
    pub const fn told(&self) -> agent::Uplink {
        agent::Uplink {
            address: self.address,
            priority: self.priority,
            weight: self.weight,
            steers: self.interface.is_some(),
        }
    }
}

/// One of `rlocs`: an address, or a table with more about it.
pub(super) struct RawRloc(RawUplink);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUplink {
    address: IpAddr,
    priority: Option<u8>,
    weight: Option<u8>,
    interface: Option<String>,
    gateway: Option<IpAddr>,
}

impl RawRloc {
    /// The address.
    pub(super) const fn address(&self) -> IpAddr {
        self.0.address
    }

    fn checked(&self) -> Uplink {
        let raw = &self.0;
        let usual = agent::Uplink::from(raw.address);
        Uplink {
            address: raw.address,
            priority: raw.priority.unwrap_or(usual.priority),
            weight: raw.weight.unwrap_or(usual.weight),
            interface: raw.interface.clone(),
            gateway: raw.gateway,
        }
    }
}

impl<'de> Deserialize<'de> for RawRloc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AddressOrTable)
    }
}

struct AddressOrTable;

impl<'de> Visitor<'de> for AddressOrTable {
    type Value = RawRloc;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an IP address, or a table with `address` and more about it")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<RawRloc, E> {
        let address = text
            .parse()
            .map_err(|error| E::custom(format!("`{text}`: {error}")))?;
        Ok(RawRloc(RawUplink {
            address,
            priority: None,
            weight: None,
            interface: None,
            gateway: None,
        }))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawRloc, A::Error> {
        RawUplink::deserialize(MapAccessDeserializer::new(map)).map(RawRloc)
    }
}

/// Checks what `rlocs` says.
///
/// # Errors
/// [`ConfigError::Value`] names the first address with something that makes no sense.
pub(super) fn uplinks(
    source: &Source<'_>,
    rlocs: Option<&Spanned<Vec<Spanned<RawRloc>>>>,
    is_tunnel: impl Fn(&str) -> bool,
) -> Result<Vec<Uplink>, ConfigError> {
    let mut uplinks: Vec<Uplink> = Vec::new();
    for at in rlocs.map(Spanned::get_ref).into_iter().flatten() {
        let uplink = at.get_ref().checked();
        let others = &uplinks;
        if let Some((problem, remedy)) = complaint(&uplink, others) {
            return Err(source.error(at, "rlocs", problem, remedy));
        }
        if let Some(name) = uplink.interface.as_deref().filter(|name| is_tunnel(name)) {
            let problem = format!("{name} is an interface of this agent");
            let remedy = "name the interface that leads to the network";
            return Err(source.error(at, "rlocs", problem, remedy));
        }
        uplinks.push(uplink);
    }
    Ok(uplinks)
}

/// What is wrong with `uplink`, beside `others`, and what to do.
fn complaint(uplink: &Uplink, others: &[Uplink]) -> Option<(String, &'static str)> {
    let address = uplink.address;
    if others.len() >= MOST_RLOCS {
        let problem = format!("{address} is one more than {MOST_RLOCS}");
        return Some((
            problem,
            "name those at which far ends shall reach this host",
        ));
    }
    if others.iter().any(|other| other.address == address) {
        let problem = format!("{address} is named twice");
        return Some((
            problem,
            "name it once, with the priority that it shall have",
        ));
    }
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        let problem = format!("{address} is no address at which others reach this host");
        return Some((problem, "name an address of one of its interfaces"));
    }
    if address == IpAddr::V4(Ipv4Addr::BROADCAST) || is_link_local(address) {
        let problem = format!("{address} means nothing beyond a link");
        return Some((problem, "name an address that others can send to"));
    }
    if uplink.priority == RELAY_PRIORITY {
        let problem = format!("{RELAY_PRIORITY}, the priority of {address}, is that of relays");
        return Some((
            problem,
            "choose a lower number, or 255 if nobody shall use it",
        ));
    }
    let name = uplink.interface.as_deref();
    if name.is_some_and(|name| {
        let is_bad = |c: char| c == '/' || c.is_whitespace();
        name.is_empty() || name.len() > LONGEST_NAME || name.contains(is_bad)
    }) {
        let problem = format!(
            "{name:?} is no name of an interface",
            name = name.unwrap_or("")
        );
        return Some((
            problem,
            "name the interface that has the address, as `ip link` does",
        ));
    }
    let gateway = uplink.gateway?;
    if name.is_none() {
        let problem = format!("{address} has a gateway and no interface");
        return Some((problem, "name the `interface` at which the gateway is, too"));
    }
    if gateway.is_ipv4() != address.is_ipv4() || gateway == address || gateway.is_unspecified() {
        let problem = format!("{gateway} cannot be the gateway of {address}");
        return Some((
            problem,
            "name the next router, by an address of the same family",
        ));
    }
    None
}

/// Whether an IPv6 address is one of fe80::/10.
const fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;

    fn parse(rlocs: &str) -> Result<Config, String> {
        let text = format!(
            "overlay = [\"10.0.0.0/8\"]\neid_prefixes = [\"10.0.0.1/32\"]\nrlocs = [\n{rlocs}\n]\n\
             [map_server]\naddress = \"fd4c:1::1\"\ncontrol_address = \"fd4c:1::a\"\n\
             endpoint = \"203.0.113.1:51820\"\n\
             public_key = \"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\"\n"
        );
        let parsed = Config::parse(Path::new("agent.toml"), &text);
        parsed.map_err(|error| error.to_string())
    }

    #[test]
    fn an_address_is_a_string_or_a_table_that_says_more() {
        let config = parse(
            "\"2001:db8::1\",\n{ address = \"192.0.2.1\", priority = 2, weight = 30, \
             interface = \"eth0\", gateway = \"192.0.2.254\" }",
        );
        let config = config.unwrap();
        let [plain, uplink] = config.rlocs.as_slice() else {
            panic!("{:?}", config.rlocs);
        };
        assert_eq!((plain.priority, plain.weight), (1, 100));
        assert!(!plain.told().steers && uplink.told().steers);
        assert_eq!((uplink.priority, uplink.weight), (2, 30));
        assert_ne!(config.mark(), 0, "the packets of tunnels are told apart");
        let plain = parse("{ address = \"192.0.2.1\", priority = 255 }").unwrap();
        assert_eq!((plain.mark(), plain.has_uplinks()), (0, false));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_line_and_a_remedy() {
        for (rlocs, expected) in [
            ("\"192.0.2.300\"", "line 4"),
            ("{ priority = 1 }", "missing field `address`"),
            (
                "{ address = \"192.0.2.1\", prio = 1 }",
                "unknown field `prio`",
            ),
            ("{ address = \"192.0.2.1\", priority = 256 }", "256"),
            (
                "\"192.0.2.1\",\n\"192.0.2.1\"",
                "agent.toml:5: rlocs: 192.0.2.1 is named twice; name it once",
            ),
            (
                "{ address = \"192.0.2.1\", gateway = \"192.0.2.2\" }",
                "agent.toml:4: rlocs: 192.0.2.1 has a gateway and no interface; name",
            ),
            (
                "{ address = \"192.0.2.1\", interface = \"eth0\", gateway = \"fe80::1\" }",
                "agent.toml:4: rlocs: fe80::1 cannot be the gateway of 192.0.2.1; name",
            ),
            (
                "{ address = \"192.0.2.1\", interface = \"eth 0\" }",
                "agent.toml:4: rlocs: \"eth 0\" is no name of an interface; name",
            ),
            (
                "{ address = \"192.0.2.1\", priority = 254 }",
                "agent.toml:4: rlocs: 254, the priority of 192.0.2.1, is that of relays; choose",
            ),
            (
                "{ address = \"192.0.2.1\", interface = \"lispc0\" }",
                "agent.toml:4: rlocs: lispc0 is an interface of this agent; name",
            ),
            (
                "\"fe80::1\"",
                "agent.toml:4: rlocs: fe80::1 means nothing beyond a link; name",
            ),
            (
                "\"255.255.255.255\"",
                "agent.toml:4: rlocs: 255.255.255.255 means nothing beyond a link; name",
            ),
            (
                "\"127.0.0.1\"",
                "agent.toml:4: rlocs: 127.0.0.1 is no address at which",
            ),
            (
                "\"10.1.1.1\"",
                "agent.toml:4: rlocs: 10.1.1.1 lies within the overlay",
            ),
        ] {
            let error = parse(rlocs).unwrap_err();
            assert!(error.contains(expected), "{error}\n{expected}");
        }
        let many = (0..9).map(|last| format!("\"192.0.2.{last}\","));
        let error = parse(&many.collect::<String>()).unwrap_err();
        assert!(error.contains("192.0.2.8 is one more than 8"), "{error}");
    }
}
