//! Do packets of the data interface, wrapped by WireGuard, fit the paths they take?

use std::collections::BTreeMap;
use std::net::IpAddr;

use tracing::warn;
use wg_device::{path_mtu, wireguard_overhead};

/// Paths looked at in one go; with more peers, some wait for the next look.
const AT_ONCE: usize = 256;

/// Endpoints whose path is too narrow, with what it carries in bytes.
#[derive(Debug, Default)]
pub(super) struct PathSizes {
    narrow: BTreeMap<IpAddr, u32>,
    /// Of the packets that go there.
    mark: u32,
    /// Where the last look ended.
    last: Option<IpAddr>,
}

impl PathSizes {
    /// Nothing was looked at yet; packets have this mark.
    pub(super) fn marked(mark: u32) -> Self {
        Self {
            mark,
            ..Self::default()
        }
    }

    /// Looks at the paths to some of `endpoints`, and warns of those that have become too narrow
    /// for packets of `mtu` bytes inside.
    pub(super) fn look(&mut self, mtu: u16, endpoints: impl Iterator<Item = IpAddr>) {
        let endpoints: std::collections::BTreeSet<IpAddr> = endpoints.collect();
        self.narrow
            .retain(|endpoint, _| endpoints.contains(endpoint));
        let last = self.last.take();
        let after = endpoints.iter().filter(|ip| Some(**ip) > last);
        let chosen: Vec<IpAddr> = after.take(AT_ONCE).copied().collect();
        self.last = (chosen.len() == AT_ONCE)
            .then(|| chosen.last().copied())
            .flatten();
        for endpoint in chosen {
            // Without a way there is nothing to say about its size.
            let Ok(size) = path_mtu(endpoint, self.mark) else {
                continue;
            };
            if complaint(mtu, endpoint, size).is_none() {
                self.narrow.remove(&endpoint);
            } else if self.narrow.insert(endpoint, size) != Some(size)
                && let Some(text) = complaint(mtu, endpoint, size)
            {
                warn!(event = "path_mtu", %endpoint, size, "{text}");
            }
        }
    }

    /// What is wrong at present, a line for each path.
    pub(super) fn complaints(&self, mtu: u16) -> impl Iterator<Item = String> {
        let narrow = self.narrow.iter();
        narrow.filter_map(move |(endpoint, size)| complaint(mtu, *endpoint, *size))
    }
}

/// What is wrong with a path of `size` bytes for packets of `mtu` bytes inside, and what to do.
fn complaint(mtu: u16, endpoint: IpAddr, size: u32) -> Option<String> {
    let overhead = wireguard_overhead(endpoint);
    let needed = u32::from(mtu) + overhead;
    if needed <= size {
        return None;
    }
    let fitting = size.saturating_sub(overhead);
    // Less is no MTU for IPv6 (RFC 8200 5).
    let remedy = if fitting >= 1_280 {
        format!("set `mtu = {fitting}` here and at the far end")
    } else {
        "widen the path: no usable `mtu` fits it".to_owned()
    };
    Some(format!(
        "packets to {endpoint} may have {size} bytes, but those of MTU {mtu} become {needed}: \
         large ones are fragmented or lost; {remedy}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_path_is_said_with_numbers_and_a_remedy() {
        let v4: IpAddr = "192.0.2.2".parse().unwrap();
        let v6: IpAddr = "2001:db8::2".parse().unwrap();
        assert_eq!(complaint(1_420, v4, 1_500), None);
        assert_eq!(complaint(1_420, v6, 1_500), None);
        assert_eq!(complaint(1_440, v4, 1_500), None);
        let text = complaint(1_440, v6, 1_500).unwrap();
        assert!(
            text.contains("become 1520") && text.contains("`mtu = 1420`"),
            "{text}"
        );
        let text = complaint(1_420, v4, 1_300).unwrap();
        assert!(text.contains("no usable `mtu`"), "{text}");
    }
}
