//! What is said about commands that make no sense.

use super::*;
use crate::server::Input;
use crate::server::proxies::all_registered;

#[test]
fn a_command_that_makes_no_sense_is_refused_with_what_to_do() {
    let bench = all_registered();
    let migrate = |from: &str, to: &str| Command::Migrate {
        from: from.into(),
        to: to.into(),
        clients: Clients::All,
        dry_run: false,
    };
    for (command, expected) in [
        (
            migrate("d", "x"),
            "no xTR is called x; these share prefixes: d, e, f",
        ),
        (
            migrate("d", "d"),
            "d is both source and destination; name two xTRs",
        ),
        (
            migrate("d", "a"),
            "d and a share no prefix: d registers 0.0.0.0/0, ::/0, a registers 10.0.0.1/32, \
             fd00:1::1/128; both must register the same one with the merge bit",
        ),
        (
            migrate("gear", "a"),
            "gear and a share no prefix: gear registers nothing, a registers 10.0.0.1/32, \
             fd00:1::1/128; both must register the same one with the merge bit",
        ),
        (
            Command::Drain {
                from: "x".into(),
                dry_run: false,
            },
            "no xTR is called x; these share prefixes: d, e, f",
        ),
    ] {
        let refused = bench.server.plan(&command).unwrap_err();
        assert_eq!(refused.to_string(), expected);
    }
}

#[test]
fn nobody_is_moved_to_an_owner_that_is_drained() {
    let mut bench = all_registered();
    let drain = Command::Drain {
        from: "e".into(),
        dry_run: false,
    };
    bench.input(Input::Operator(drain));
    let command = Command::Migrate {
        from: "d".into(),
        to: "e".into(),
        clients: Clients::All,
        dry_run: false,
    };
    let refused = bench.server.plan(&command).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "e is drained; `map-server drain --undo e` lets it have clients again"
    );
    let before = bench.server.fingerprint();
    assert_eq!(bench.input(Input::Operator(command)), []);
    assert_eq!(bench.server.fingerprint(), before);
}

#[test]
fn a_long_list_is_cut_in_an_error() {
    let many: Vec<_> = (0..20).collect();
    assert_eq!(listed(&many), "0, 1, 2, 3, 4, 5, 6, 7 and 12 more");
    assert_eq!(listed::<u8>(&[]), "nothing");
}
