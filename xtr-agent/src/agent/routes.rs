//! Which routes past the agent are wanted, and by which mappings: two of them may need the same one.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

/// The routes past the agent, each with the mappings that need it.
#[derive(Debug, Default)]
pub(super) struct Routes(BTreeMap<IpNet, BTreeSet<IpNet>>);

impl Routes {
    /// Notes that the mapping of `prefix` needs `route`.
    pub(super) fn want(&mut self, route: IpNet, prefix: IpNet) {
        self.0.entry(route).or_default().insert(prefix);
    }

    /// Notes that the mapping of `prefix` is gone; true when it was the last that needed `route`.
    pub(super) fn release(&mut self, route: IpNet, prefix: &IpNet) -> bool {
        let Some(mappings) = self.0.get_mut(&route) else {
            return false;
        };
        let last = mappings.remove(prefix) && mappings.is_empty();
        if last {
            self.0.remove(&route);
        }
        last
    }

    /// Whether any mapping needs `route`.
    pub(super) fn wanted(&self, route: &IpNet) -> bool {
        self.0.contains_key(route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_goes_with_the_last_mapping_that_needs_it() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let (route, wide) = (net("10.0.0.0/8"), net("0.0.0.0/0"));
        let mut routes = Routes::default();
        routes.want(route, route);
        routes.want(route, wide);
        routes.want(route, wide);
        assert!(!routes.release(route, &wide));
        assert!(!routes.release(route, &wide), "it is gone already");
        assert!(routes.wanted(&route));
        assert!(routes.release(route, &route));
        assert!(!routes.wanted(&route) && !routes.release(route, &route));
    }
}
