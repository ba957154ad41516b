//! Configuration files that are good, and what is said about those that are not.

use lisp_proto::{SiteId, XtrId};

use super::*;

const HEAD: &str = r#"
[control]
address = "fd4c:1::1"

[plain]
listen = ["192.0.2.1:4342", "[2001:db8::1]:4342"]
"#;

const ALPHA: &str = r#"
[[xtr]]
name = "alpha"
public_key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
control_address = "fd4c:1::a"
eid_prefixes = ["10.0.0.1/32", "fd00:1::1/128"]
"#;

const GEAR: &str = r#"
[[xtr]]
name = "oor-1"
algorithm = "sha1"
key_id = 0
key = "password"
replay_check = false
eid_prefixes = ["192.168.0.0/16"]
more_specifics = true
"#;

#[test]
fn what_is_not_said_has_a_default() {
    let settings = parse(&[HEAD, ALPHA, GEAR]).unwrap();
    let control = settings.control.as_ref().unwrap();
    assert_eq!(
        (&*control.interface, control.listen_port),
        ("lispms0", 51820)
    );
    assert_eq!(
        settings.control_key_file(),
        Path::new("/var/lib/lispwire/map-server/control.key")
    );
    assert_eq!(settings.plain.len(), 2);
    assert_eq!(
        settings
            .enrolled()
            .map(|(name, ..)| name)
            .collect::<Vec<_>>(),
        ["alpha"]
    );
    assert_eq!(settings.options.reply_after, ReplyAfter::Ack);
    assert_eq!(settings.options.reply_hold, Duration::from_secs(1));
}

#[test]
fn an_identity_is_written_in_hexadecimal() {
    let ids = "xtr_id = \"000102030405060708090a0b0c0d0e0F\"\nsite_id = \"1011121314151617\"";
    let settings = parse(&[HEAD, ALPHA, ids]).unwrap();
    let xtr_id = 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f_u128.to_be_bytes();
    assert_eq!(settings.xtrs[0].xtr_id, Some(XtrId(xtr_id)));
    let site_id = Some(SiteId([16, 17, 18, 19, 20, 21, 22, 23]));
    assert_eq!(settings.xtrs[0].site_id, site_id);
}

#[test]
fn everything_weak_about_an_xtr_is_listed() {
    let settings = parse(&[HEAD, ALPHA, GEAR]).unwrap();
    let all = [Weakness::NoReplayCheck, Weakness::Sha1, Weakness::Plain];
    assert_eq!(
        settings.weaknesses().collect::<Vec<_>>(),
        all.map(|weakness| ("oor-1", weakness)),
        "and nothing is weak about alpha"
    );
    let (agent, gear) = (without(ALPHA, "name"), without(GEAR, "algorithm"));
    let agent = format!("{agent}name = \"beta\"\nalgorithm = \"sha1\"\nkey = \"word\"");
    let gear = gear.replace("replay_check = false", "");
    let settings = parse(&[HEAD, &agent, &gear]).unwrap();
    assert_eq!(
        settings.weaknesses().collect::<Vec<_>>(),
        [("beta", Weakness::Sha1), ("oor-1", Weakness::Plain)]
    );
}

#[test]
fn secrets_of_agents_are_derived_from_both_control_keys() {
    let settings = parse(&[HEAD, ALPHA, GEAR]).unwrap();
    let config = settings.config(&PrivateKey::generate(), Nonce(5)).unwrap();
    let [alpha, gear] = config.xtrs() else {
        panic!("two xTRs");
    };
    assert_eq!(
        (alpha.auth.key_id(), alpha.auth.algorithm()),
        (1, Algorithm::Sha256_128Hkdf)
    );
    assert_eq!(
        (gear.auth.key_id(), gear.auth.algorithm()),
        (0, Algorithm::Sha1_96)
    );
    assert_eq!(config.options().notify_floor, Nonce(5));
}

#[test]
fn a_file_that_says_everything_is_good() {
    let top = r#"
        state_dir = "/tmp/state"
        reply_after = "send"
        reply_hold_ms = 250
        negative_action = "natively-forward"
        [limits]
        requests_per_s = 100
        request_burst = 1000
        registers_per_s = 10
        register_burst = 100
        [control]
        interface = "ms0"
        listen_port = 51900
        address = "fd4c:1::1"
        data_plane = "embedded"
        [plain]
        listen = ["0.0.0.0:4342"]
        requests_from = ["192.0.2.0/24", "2001:db8::/32"]
    "#;
    let settings = parse(&[top, ALPHA]).unwrap();
    assert_eq!(settings.options.request_rate.burst, 1000);
    assert_eq!(settings.options.requests_from.len(), 2);
}

#[test]
fn mistakes_are_named_with_line_key_and_remedy() {
    complains(&[
        (
            &["reply_aftr = \"ack\"", HEAD],
            "/etc/s.toml:1: reply_aftr: unknown field",
        ),
        (
            &["reply_after = \"never\"", HEAD],
            "/etc/s.toml:1: reply_after: unknown variant `never`",
        ),
        (
            &["reply_hold_ms = 60000", HEAD],
            "/etc/s.toml:1: reply_hold_ms: 60000 ms is too long; choose at most 10000",
        ),
        (&["reply_after ="], "/etc/s.toml:1: reply_after: "),
        (
            &[ALPHA],
            "there is nothing to listen on; add a [control] section",
        ),
        (
            &[HEAD, "[limits]\nrequest_burst = 0"],
            "request_burst: 0 would silence every source",
        ),
        (
            &["[control]\naddress = \"fd4c::1\"\ninterface = \"much-too-long-a-name\""],
            ":3: interface: ",
        ),
        (
            &["[control]\naddress = \"fd4c::1\"\nlisten_port = 0"],
            ":3: listen_port: agents could not know",
        ),
        (
            &["[plain]\nlisten = [\"192.0.2.1:4342\", \"192.0.2.2:4342\"]"],
            ":2: listen: a second address of the same family",
        ),
    ]);
}

#[test]
fn contradictions_between_two_xtrs_name_both() {
    let other_key = "fiHuvVzBPcBCBwPVSJQzmlYRvxd1sOhcbjNqY7A6hxA=";
    let other = ALPHA.replace("\"alpha\"", "\"beta\"");
    let other = other.replace("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", other_key);
    complains(&[
        (
            &[HEAD, ALPHA, ALPHA],
            ":16: public_key: xTR alpha has the same public key",
        ),
        (
            &[HEAD, ALPHA, &other],
            ":17: control_address: xTR alpha has the same control address; choose a free",
        ),
        (
            &[HEAD, ALPHA, &GEAR.replace("192.168.0.0/16", "10.0.0.1/32")],
            "eid_prefixes: xTR alpha has the same EID-prefix; list every prefix once",
        ),
        (
            &[
                HEAD,
                ALPHA,
                &other.replace("beta", "alpha").replace("::a", "::b"),
            ],
            ":15: name: another xTR has the same name",
        ),
    ]);
    let sharing = parse(&[HEAD, ALPHA, &other.replace("::a", "::b")]).unwrap();
    assert_eq!(sharing.enrolled().count(), 2, "both in the tunnel");
}

#[test]
fn an_incomplete_or_impossible_xtr_is_refused() {
    complains(&[
        (
            &[HEAD, &ALPHA.replace("10.0.0.1/32", "10.0.0.1/33")],
            "eid_prefixes: expected an EID-prefix such as",
        ),
        (
            &[HEAD, &ALPHA.replace("hSDw", "hSD")],
            "public_key: expected a public key",
        ),
        (
            &[HEAD, &without(ALPHA, "control_address")],
            "public_key: an xTR with a public key needs an address",
        ),
        (
            &[HEAD, &without(ALPHA, "public_key")],
            "control_address: an xTR in the control tunnel needs a public key",
        ),
        (
            &[HEAD, &ALPHA.replace("fd4c:1::a", "fd4c:1::1")],
            "control_address: this is the server's own",
        ),
        (
            &[HEAD, &ALPHA.replace("fd4c:1::a", "192.0.2.7")],
            "control_address: not of the family",
        ),
        (
            &["[plain]\nlisten = []", ALPHA],
            "public_key: there is no control tunnel",
        ),
        (
            &["[control]\naddress = \"fd4c::1\"", GEAR],
            "[[xtr]]: an xTR without a public key registers in the plain",
        ),
        (
            &[HEAD, &GEAR.replace("sha1", "none")],
            "algorithm: Map-Registers without authentication are not accepted",
        ),
        (
            &[HEAD, &GEAR.replace("password", "")],
            "key: the key is empty",
        ),
        (
            &[HEAD, &without(GEAR, "key =")],
            "[[xtr]]: Map-Registers could not be authenticated; add public_key",
        ),
        (
            &[HEAD, &GEAR.replace("[\"192.168.0.0/16\"]", "[]")],
            "[[xtr]]: it has no EID-prefix; list at least one",
        ),
        (
            &[HEAD, ALPHA, "site_id = \"0011\""],
            "site_id: \"0011\" is no identity of 8 bytes; write 16 hexadecimal digits",
        ),
        (
            &[HEAD, ALPHA, "xtr_id = \"+123456789abcdef0123456789abcdef\""],
            "xtr_id: ",
        ),
        (
            &[HEAD, &GEAR.replace("oor-1", " ")],
            "name: the name is empty",
        ),
        (
            &[HEAD, GEAR, "key_file = \"/nonexistent\""],
            "key: there is a key_file as well",
        ),
    ]);
}

#[test]
fn a_key_file_is_read_relative_to_the_configuration_and_only_if_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.toml");
    let key = directory.path().join("gear.key");
    let text = [
        HEAD,
        &GEAR.replace("key = \"password\"", "key_file = \"gear.key\""),
    ]
    .concat();
    fs::write(&path, text).unwrap();
    let missing = Settings::load(&path).unwrap_err().to_string();
    assert!(
        missing.contains("key_file: ") && missing.contains("No such file"),
        "{missing}"
    );
    fs::write(&key, "password\n").unwrap();
    let mode = |mode| {
        fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap()
    };
    mode(0o644);
    let open = Settings::load(&path).unwrap_err().to_string();
    assert!(
        open.contains("mode 0644 lets others read it; run `chmod 600"),
        "{open}"
    );
    mode(0o600);
    let settings = Settings::load(&path).unwrap();
    assert!(matches!(&settings.xtrs[0].secret, Secret::Given(secret) if secret == b"password"));
    assert!(!format!("{settings:?}").contains("password"));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Settings::load(Path::new("/nonexistent/s.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("/nonexistent/s.toml: No such file") && error.contains("--config"),
        "{error}"
    );
}

/// Checks what is said about each of several files.
#[track_caller]
fn complains(cases: &[(&[&str], &str)]) {
    for (parts, expected) in cases {
        let error = parse(parts).unwrap_err().to_string();
        assert!(
            error.contains(expected),
            "expected {expected:?}, said {error:?}"
        );
    }
}

fn parse(parts: &[&str]) -> Result<Settings, SettingsError> {
    let text = parts.concat();
    let path = Path::new("/etc/s.toml");
    Settings::parse(Source { path, text: &text })
}

fn without(section: &str, key: &str) -> String {
    section
        .lines()
        .filter(|line| !line.starts_with(key))
        .map(|line| format!("{line}\n"))
        .collect()
}
