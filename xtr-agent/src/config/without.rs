//! An overlay without what is excluded from it, as prefixes.
//!
//! Routes can only be added: one that says "not here" would end the search for another one in the
//! table that both are in. So what is excluded gets no route at all, and what is left gets as few
//! as possible.

use ipnet::IpNet;

/// The fewest prefixes that together are `overlay` without `excluded`.
pub(super) fn without(overlay: &[IpNet], excluded: &[IpNet]) -> Vec<IpNet> {
    let mut left = overlay.to_vec();
    for hole in excluded {
        left = left.iter().flat_map(|net| around(*net, *hole)).collect();
    }
    left
}

/// The prefixes that together are `net` without `hole`.
fn around(net: IpNet, hole: IpNet) -> Vec<IpNet> {
    if hole.contains(&net) {
        return Vec::new();
    }
    if !net.contains(&hole) {
        return vec![net];
    }
    let mut left = Vec::new();
    let mut inner = hole;
    // Upwards from the hole: at each step its sibling belongs to what is left.
    while inner.prefix_len() > net.prefix_len()
        && let Some(outer) = inner.supernet()
    {
        let halves = outer.subnets(inner.prefix_len()).into_iter().flatten();
        left.extend(halves.filter(|half| *half != inner.trunc()));
        inner = outer;
    }
    left.reverse();
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_hole_leaves_its_siblings_at_every_length() {
        let left = without(&nets(&["10.0.0.0/8"]), &nets(&["10.9.0.0/16"]));
        let expected = [
            "10.128.0.0/9",
            "10.64.0.0/10",
            "10.32.0.0/11",
            "10.16.0.0/12",
            "10.0.0.0/13",
            "10.12.0.0/14",
            "10.10.0.0/15",
            "10.8.0.0/16",
        ];
        assert_eq!(left, nets(&expected));
    }

    #[test]
    fn several_holes_and_both_families() {
        let overlay = nets(&["10.0.0.0/30", "fd00::/126"]);
        let left = without(
            &overlay,
            &nets(&["10.0.0.0/32", "10.0.0.1/32", "fd00::2/128"]),
        );
        assert_eq!(left, nets(&["10.0.0.2/31", "fd00::/127", "fd00::3/128"]));
        let hole = nets(&["10.0.0.0/8"]);
        assert_eq!(
            without(&overlay, &hole),
            nets(&["fd00::/126"]),
            "wider than the overlay"
        );
        assert_eq!(without(&overlay, &[]), overlay);
    }
}
