//! A map server under a sequence of good, bent and senseless messages.

use std::net::SocketAddr;
use std::time::Duration;

use lisp_proto::{
    EidPrefix, Gap, Message, Nonce, NotifyParams, PublicKey, RegisterFlags, RegisterParams,
    RequestFlags, RequestParams, RequestedEid, SiteId, Timestamp, XtrId, decode, encode_ecm,
    encode_info_request, encode_map_notify_ack, encode_map_register, encode_map_request,
};
use map_server::config::{ControlKeys, Options, XtrConfig};
use map_server::{Action, Actions, Config, Input, MapServer, Via};

use super::{Choices, bend, control, key, prefix, record};

/// Sources that nobody vouches for.
const STRANGER: u8 = 200;
const XTRS: u8 = 4;
/// Who may be a relay: it may serve everybody.
const RELAY: u8 = 1;

fn new_server() -> MapServer {
    // The last one shares what the one before it may register.
    let of = |n: u8| -> [EidPrefix; 2] {
        let prefixes = [format!("10.{n}.0.0/16"), format!("fd00:1:{n}::/48")];
        prefixes.map(|prefix| prefix.parse().expect("a prefix"))
    };
    let shared = |n: u8| (n == XTRS - 1).then(|| of(n - 1));
    let served = |n: u8| {
        let all = ["0.0.0.0/0", "::/0"].map(|prefix| prefix.parse().expect("a prefix"));
        (n == RELAY).then_some(all)
    };
    let xtrs = (0..XTRS).map(|n| XtrConfig {
        name: n.to_string().into(),
        control_address: (n > 0).then(|| control(n).ip()),
        xtr_id: None,
        site_id: None,
        auth: key(n),
        replay_check: n > 0,
        eid_prefixes: of(n)
            .into_iter()
            .chain(shared(n).into_iter().flatten())
            .chain(served(n).into_iter().flatten())
            .collect(),
        more_specifics: n != 1,
    });
    let options = Options {
        relays: [RELAY.to_string().into()].into(),
        ..Options::default()
    };
    let config = Config::new(options, xtrs.collect()).expect("no contradictions");
    let agents = (1..XTRS).map(|n| (control(n).ip(), control_key(n)));
    let config = config.with_control_keys(ControlKeys {
        own: Some(control_key(0)),
        agents: agents.collect(),
    });
    MapServer::new(config, [7; 32])
}

/// The key of xTR `n` in the control tunnel; 0 is the server.
fn control_key(n: u8) -> PublicKey {
    PublicKey([0xc0 + n; 32])
}

/// Runs the sequence that `bytes` describe.
///
/// Panics when a rule is broken: a bent or senseless datagram changes the
/// state, a stranger gets more bytes than it sent, or time does not pass.
pub fn run(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let mut server = new_server();
    let mut actions = Actions::new();
    let mut now = Timestamp::ZERO;
    let mut nonce = 1;
    let mut vouched = false;
    let mut pushed: Vec<(SocketAddr, Nonce)> = Vec::new();
    for _ in 0..64 {
        if !choices.more() {
            break;
        }
        now = now + Duration::from_millis([0, 1, 250, 90_000][usize::from(choices.below(4))]);
        nonce += 1;
        let xtr = choices.below(XTRS);
        let mut datagram = Vec::new();
        let mut bent = false;
        match choices.below(6) {
            0 | 1 => register(xtr, nonce, &mut choices, &mut datagram),
            2 => request(xtr, nonce, &mut choices, &mut datagram),
            3 => acknowledge(&mut pushed, &mut choices, &mut datagram),
            4 => datagram.extend(choices.bytes()),
            _ => match choices.below(3) {
                0 => ask_where(xtr, nonce, &mut choices, &mut datagram),
                1 => {
                    look(&mut server, now, &mut choices, &mut actions);
                    let told = hear(&mut actions, &mut pushed);
                    assert!(vouched || told == 0, "a stranger was told");
                }
                _ => {}
            },
        }
        let kind = datagram.first().map(|byte| byte >> 4);
        let authenticated = matches!(kind, Some(3 | 5 | 7));
        if authenticated {
            bent = bend(&mut datagram, &mut choices);
        }
        let stranger = choices.below(8) == 7;
        let (src, via) = if stranger {
            (control(STRANGER), Via::Plain)
        } else {
            (control(xtr), if xtr > 0 { Via::Tunnel } else { Via::Plain })
        };
        // Of the authenticated kinds, one wrong byte anywhere is one too many.
        let before = bent.then(|| server.fingerprint());
        server.handle(
            now,
            Input::Datagram {
                src,
                via,
                bytes: &datagram,
            },
            &mut actions,
        );
        if let Some(before) = before {
            assert_eq!(
                server.fingerprint(),
                before,
                "a bent message changed the state"
            );
        }
        let answered = hear(&mut actions, &mut pushed);
        // Whoever knows the secret is no stranger, wherever it comes from, nor is who comes from
        // there later.
        vouched |= stranger && matches!(kind, Some(3 | 5)) && !bent;
        assert!(
            !stranger || vouched || answered <= datagram.len(),
            "a stranger was answered with more"
        );
        settle(&mut server, &mut now, &mut actions);
    }
}

/// Takes note of what is to be acknowledged; returns how many bytes a stranger gets.
fn hear(actions: &mut Actions, pushed: &mut Vec<(SocketAddr, Nonce)>) -> usize {
    let mut answered = 0;
    for action in actions.drain() {
        if let Action::Send { dst, bytes, .. } = action {
            if dst.ip() == control(STRANGER).ip() {
                answered += bytes.len();
            }
            match decode(&bytes).expect("what we send is well-formed") {
                Message::MapNotify(notify) => pushed.push((dst, notify.nonce)),
                _ => {}
            }
        }
    }
    answered
}

/// Time must pass: a deadline that was served may not come again at once for ever.
fn settle(server: &mut MapServer, now: &mut Timestamp, actions: &mut Actions) {
    for _ in 0..1_000 {
        if server
            .next_deadline()
            .is_none_or(|deadline| deadline > *now)
        {
            return;
        }
        server.handle(*now, Input::Tick, actions);
        actions.drain();
    }
    panic!("the same deadline for ever");
}

fn register(xtr: u8, nonce: u64, choices: &mut Choices<'_>, out: &mut Vec<u8>) {
    let owner = if choices.below(4) == 0 {
        choices.below(XTRS)
    } else {
        xtr
    };
    let records: Vec<_> = (0..1 + choices.below(3))
        .map(|_| {
            let eid = prefix(owner, choices);
            record(eid, choices)
        })
        .collect();
    let flags = choices.byte();
    let params = RegisterParams {
        flags: RegisterFlags {
            proxy_reply: flags & 1 != 0,
            want_notify: flags & 2 != 0,
            use_ttl: flags & 4 != 0,
            merge: flags & 8 != 0,
            ..RegisterFlags::default()
        },
        nonce: Nonce(nonce),
        records: &records,
        ids: (flags & 16 != 0).then_some((XtrId([xtr; 16]), SiteId([0; 8]))),
    };
    encode_map_register(&params, &key(xtr), out).expect("it fits");
}

fn request(xtr: u8, nonce: u64, choices: &mut Choices<'_>, out: &mut Vec<u8>) {
    let wanted = choices.below(XTRS + 1);
    let eids: Vec<_> = (0..1 + choices.below(2))
        .map(|_| RequestedEid {
            subscribe: choices.below(4) == 0,
            eid: prefix(wanted, choices),
        })
        .collect();
    let flags = choices.byte();
    let source = prefix(xtr, choices);
    // What it cannot reach, how long nothing came, or both.
    let said = matches!(flags >> 4, 4..=7).then(|| {
        let mut said = record(prefix(wanted, choices), choices);
        for locator in &mut said.locators {
            locator.reachable = flags >> 4 == 7;
        }
        said
    });
    let gap = match flags >> 4 {
        5 => Some(Gap::Unknown),
        6 => Some(Gap::Longest(Duration::from_micros(nonce))),
        _ => None,
    };
    let params = RequestParams {
        flags: RequestFlags {
            probe: flags & 0xf0 == 0x10,
            smr: flags & 0xf0 == 0x20,
            no_reply: flags & 0xf0 == 0x30,
            ..RequestFlags::default()
        },
        nonce: Nonce(nonce),
        source_eid: (flags & 1 == 0).then_some((source.iid(), source.net().addr())),
        itr_rlocs: &[control(if flags & 2 == 0 { xtr } else { STRANGER }).ip()],
        eids: &eids,
        source_record: said.as_ref(),
        gap,
        ids: (flags & 4 != 0).then_some((XtrId([xtr; 16]), SiteId([0; 8]))),
    };
    let mut inner = Vec::new();
    encode_map_request(&params, &mut inner).expect("it fits");
    if flags & 8 == 0 {
        out.extend(inner);
        return;
    }
    let eid = eids.first().map(|asked: &RequestedEid| asked.eid);
    let to = eid.map_or_else(|| control(0).ip(), |eid: EidPrefix| eid.net().addr());
    let from = if to.is_ipv4() {
        SocketAddr::from(([10, 0, 0, 1], 4342))
    } else {
        control(xtr)
    };
    encode_ecm(from, SocketAddr::new(to, 4342), &inner, out).expect("it fits");
}

/// Where is the data interface of `xtr` seen?
fn ask_where(xtr: u8, nonce: u64, choices: &mut Choices<'_>, out: &mut Vec<u8>) {
    let owner = if choices.below(4) == 0 {
        choices.below(XTRS)
    } else {
        xtr
    };
    encode_info_request(Nonce(nonce), prefix(owner, choices), &key(xtr), out);
}

/// A look at the control tunnel, which may have begun a while ago, finds peers somewhere: agents, data interfaces, or
/// nobody's.
fn look(server: &mut MapServer, now: Timestamp, choices: &mut Choices<'_>, actions: &mut Actions) {
    let ago = u64::from(choices.below(3)) * 250_000_000;
    let began = Timestamp(now.0.saturating_sub(ago));
    let peers: Vec<_> = (0..choices.below(6))
        .map(|_| {
            let key = match choices.below(2) {
                0 => control_key(choices.below(XTRS)),
                _ => PublicKey([1 + choices.below(9); 32]),
            };
            let nat = [198, 51, 100, choices.below(2)];
            (key, SocketAddr::from((nat, choices.byte().into())))
        })
        .collect();
    let peers = &peers;
    server.handle(now, Input::Seen { began, peers }, actions);
}

fn acknowledge(
    pushed: &mut Vec<(SocketAddr, Nonce)>,
    choices: &mut Choices<'_>,
    out: &mut Vec<u8>,
) {
    if pushed.is_empty() {
        return;
    }
    let at = usize::from(choices.byte()) % pushed.len();
    let (_, nonce) = pushed.swap_remove(at);
    let xtr = choices.below(XTRS);
    encode_map_notify_ack(
        &NotifyParams {
            nonce,
            records: &[],
            handoff: None,
        },
        &key(xtr),
        out,
    )
    .expect("it fits");
}
