//! Routes: added once, removed exactly, and nobody else's touched.

use wg_device::{DeviceError, RouteSpec, Routes};

use crate::support::{in_namespace, ip, route};

#[test]
fn a_route_has_its_metric_and_source() {
    in_namespace(|| async {
        let routes = with_two_interfaces();
        ip("addr add 10.0.0.1/32 dev left0");
        ip("addr add fd00:1::1/128 dev left0 nodad");
        for (prefix, source) in [("10.1.0.0/16", "10.0.0.1"), ("fd00:2::/48", "fd00:1::1")] {
            let spec = RouteSpec {
                source: Some(source.parse().unwrap()),
                ..route(prefix, "left0")
            };
            routes.add(&spec).unwrap();
            let shown = show(prefix);
            for part in [
                "dev left0",
                "metric 50",
                &format!("src {source}"),
                "proto 76",
            ] {
                assert!(shown.contains(part), "{part}: {shown}");
            }
            routes.remove(&spec).unwrap();
        }
    });
}

#[test]
fn a_route_in_another_table_is_there_only_and_is_adopted_and_removed_there() {
    in_namespace(|| async {
        let routes = with_two_interfaces();
        for (prefix, family) in [("10.1.0.0/16", "-4"), ("fd00:2::/48", "-6")] {
            for table in [107, 70_000] {
                let main = route(prefix, "left0");
                let spec = RouteSpec {
                    table,
                    ..main.clone()
                };
                let there = || ip(&format!("{family} route show {prefix} table {table}"));
                // The same prefix and metric: another table has room for both.
                routes.add(&main).unwrap();
                routes.add(&spec).unwrap();
                routes.add(&spec).unwrap();
                assert_eq!(there().lines().count(), 1, "{}", there());
                assert_eq!(count(prefix), 1);
                routes.remove(&main).unwrap();
                assert_eq!((there().lines().count(), count(prefix)), (1, 0));
                let next = Routes::new().unwrap();
                next.adopt("left0").unwrap();
                next.add(&spec).unwrap();
                assert_eq!(next.remove_stale().unwrap(), 0);
                let last = Routes::new().unwrap();
                last.adopt("left0").unwrap();
                assert_eq!(last.remove_stale().unwrap(), 1, "nobody wants it any more");
                assert_eq!(there(), "");
            }
        }
    });
}

#[test]
fn a_route_that_is_replaced_has_its_new_source_and_is_removed_with_it() {
    in_namespace(|| async {
        let routes = with_two_interfaces();
        for (prefix, sources) in [
            ("10.1.0.0/16", ["10.0.0.1", "10.0.0.2"]),
            ("fd00:2::/48", ["fd00:1::1", "fd00:1::2"]),
        ] {
            let mut specs = Vec::new();
            for source in sources {
                let rest = match source.contains(':') {
                    true => "/128 dev left0 nodad",
                    false => "/32 dev left0",
                };
                ip(&format!("addr add {source}{rest}"));
                specs.push(RouteSpec {
                    source: Some(source.parse().unwrap()),
                    ..route(prefix, "left0")
                });
                // The first one is not there yet.
                routes.replace(specs.last().unwrap()).unwrap();
            }
            let shown = show(prefix);
            assert!(shown.contains(sources[1]) && !shown.contains(&format!("{} ", sources[0])));
            assert_eq!(
                (count(prefix), routes.through("left0")),
                (1, vec![specs[1].clone()])
            );
            assert_eq!(routes.through("right0"), []);
            routes.remove(&specs[1]).unwrap();
            assert_eq!(count(prefix), 0);
        }
    });
}

#[test]
fn adding_twice_is_one_route_and_removing_twice_is_none() {
    in_namespace(|| async {
        let routes = with_two_interfaces();
        for prefix in ["10.1.0.0/16", "10.1.2.3/32", "fd00:2::/48", "fd00:2::7/128"] {
            let spec = route(prefix, "left0");
            routes.add(&spec).unwrap();
            routes.add(&spec).unwrap();
            assert_eq!(count(prefix), 1, "{prefix}");
            routes.remove(&spec).unwrap();
            routes.remove(&spec).unwrap();
            assert_eq!(count(prefix), 0, "{prefix}");
        }
    });
}

#[test]
fn a_route_of_another_interface_is_in_the_way_and_named() {
    in_namespace(|| async {
        let routes = with_two_interfaces();
        for prefix in ["10.1.0.0/16", "0.0.0.0/0", "fd00:2::/48", "::/0"] {
            ip(&format!("route add {prefix} dev right0 metric 50"));
            let refused = routes.add(&route(prefix, "left0")).unwrap_err();
            assert!(
                matches!(&refused, DeviceError::RouteTaken { owner, .. } if owner == "right0"),
                "{refused}"
            );
            // With another metric both have room.
            let other = RouteSpec {
                metric: 60,
                ..route(prefix, "left0")
            };
            routes.add(&other).unwrap();
            routes.remove(&other).unwrap();
            assert_eq!(count(prefix), 1, "{prefix}");
        }
    });
}

#[test]
fn a_route_somebody_else_added_through_our_interface_is_used_and_left() {
    in_namespace(|| async {
        let routes = with_two_interfaces();
        for prefix in ["10.1.0.0/16", "fd00:2::/48"] {
            ip(&format!(
                "route add {prefix} dev left0 metric 50 proto static"
            ));
            let spec = route(prefix, "left0");
            routes.add(&spec).unwrap();
            routes.remove(&spec).unwrap();
            assert_eq!(count(prefix), 1, "{prefix}");
        }
    });
}

#[test]
fn a_route_an_earlier_run_left_is_adopted() {
    in_namespace(|| async {
        let spec = route("10.1.0.0/16", "left0");
        with_two_interfaces().add(&spec).unwrap();
        let routes = Routes::new().unwrap();
        routes.add(&spec).unwrap();
        routes.remove(&spec).unwrap();
        assert_eq!(count("10.1.0.0/16"), 0);
    });
}

#[test]
fn an_interface_made_anew_gets_its_routes_again() {
    in_namespace(|| async {
        let routes = with_two_interfaces();
        for prefix in ["10.1.0.0/16", "fd00:2::/48"] {
            let spec = route(prefix, "left0");
            routes.add(&spec).unwrap();
            ip("link del left0");
            make("left0");
            routes.add(&spec).unwrap();
            assert_eq!(count(prefix), 1, "{prefix}");
            ip("link del left0");
            routes.add(&spec).unwrap_err();
            routes.remove(&spec).unwrap();
            make("left0");
        }
    });
}

#[test]
fn a_route_through_no_interface_is_refused() {
    in_namespace(|| async {
        let refused = Routes::new()
            .unwrap()
            .add(&route("10.1.0.0/16", "none"))
            .unwrap_err();
        assert!(
            matches!(refused, DeviceError::NoInterface { .. }),
            "{refused}"
        );
    });
}

fn with_two_interfaces() -> Routes {
    make("left0");
    make("right0");
    Routes::new().unwrap()
}

fn make(name: &str) {
    ip(&format!("tuntap add {name} mode tun"));
    ip(&format!("link set {name} up"));
}

fn count(prefix: &str) -> usize {
    show(prefix).lines().count()
}

fn show(prefix: &str) -> String {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    ip(&format!("{family} route show exact {prefix}"))
}
