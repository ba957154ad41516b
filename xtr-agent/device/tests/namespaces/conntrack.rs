//! Connections that are entered into connection tracking, read and deleted.

use wg_device::{
    Conntrack, Entered, Flow, FlowState, ForwardRules, Forwarded, SourceNat, TcpState, Translation,
};

use crate::support::in_namespace;

fn flow(source: &str, translated: &str) -> Flow {
    Flow {
        state: FlowState::Tcp(TcpState {
            state: 3,
            window_scales: [7, 7],
            flags: [0x0b; 2],
        }),
        source: source.parse().unwrap(),
        destination: "198.51.100.2:80".parse().unwrap(),
        translated: translated.parse().unwrap(),
        timeout_s: 1_000,
        answered: true,
        assured: true,
    }
}

#[test]
fn connections_are_entered_found_and_deleted() {
    in_namespace(|| async {
        let rules = ForwardRules::of("lisp0");
        let addresses = [
            "203.0.113.9".parse().unwrap(),
            "2001:db8::9".parse().unwrap(),
        ];
        rules
            .set(&Forwarded {
                data: "lisp0",
                miss: "lispm0",
                mtu: 1420,
                nat: Some(SourceNat {
                    translation: Translation::To(&addresses),
                    uplink: None,
                    except: &[],
                }),
            })
            .unwrap();
        let mut conntrack = Conntrack::open(None).unwrap();
        let first = flow("10.0.0.3:40000", "203.0.113.9:40000");
        // Another client from the same port: the far end has to see another one.
        let second = flow("10.0.0.4:40000", "203.0.113.9:1024");
        let sixth = Flow {
            state: FlowState::Udp,
            destination: "[2001:db8:ff::2]:443".parse().unwrap(),
            ..flow("[fd00:1::3]:40000", "[2001:db8::9]:40001")
        };
        let all = [first, second, sixth];
        for flow in all.iter().chain(&all) {
            assert_eq!(conntrack.enter(flow).unwrap(), Entered::There, "{flow:?}");
        }
        let mut there = conntrack.translated(10, |_| true).unwrap();
        for flow in &mut there {
            assert!((900..=1_000).contains(&flow.timeout_s), "{flow:?}");
            flow.timeout_s = 1_000;
        }
        there.sort_unstable();
        let mut expected = all;
        expected.sort_unstable();
        assert_eq!(there, expected);
        assert_eq!(conntrack.translated(2, |_| true).unwrap().len(), 2);
        let taken = flow("10.0.0.5:40000", "203.0.113.9:40000");
        assert_eq!(conntrack.enter(&taken).unwrap(), Entered::Taken);
        // What came from the far end before the connection was known gives way to it.
        for (flow, far) in [(first, "198.51.100.2:80"), (sixth, "[2001:db8:ff::2]:443")] {
            assert!(conntrack.delete(&flow).unwrap());
            let unknown = Flow {
                destination: flow.translated,
                answered: false,
                assured: false,
                state: flow.state,
                ..self::flow(far, far)
            };
            assert_eq!(conntrack.enter(&unknown).unwrap(), Entered::There);
            assert_eq!(conntrack.enter(&flow).unwrap(), Entered::There, "{flow:?}");
            assert!(!conntrack.delete(&unknown).unwrap());
        }
        // What the far end sees is what counts.
        let other = flow("10.0.0.3:40000", "203.0.113.9:40077");
        assert_eq!(conntrack.enter(&other).unwrap(), Entered::There);
        assert!(!conntrack.delete(&first).unwrap());
        for flow in [other, second, sixth] {
            assert!(conntrack.delete(&flow).unwrap(), "{flow:?}");
            assert!(!conntrack.delete(&flow).unwrap(), "{flow:?}");
        }
        assert_eq!(conntrack.translated(10, |_| true).unwrap(), []);
    });
}
