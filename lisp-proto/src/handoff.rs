//! What becomes of the connections of a client that moves from one translator of addresses to another? A
//! name among the locators of a Map-Notify, or of its acknowledgement, says so.

use std::net::IpAddr;

/// What is said about the connections of a client, whose prefixes are in the same message.
///
/// On the wire it is a distinguished name (AFI 17, RFC 9735) in the place of a locator, in the first
/// record: `connections-from@10.0.1.1`, `connections-to@10.0.1.2` or `connections@moved-3-reset-2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Handoff {
    /// A map server says: the client comes from the xTR with this EID, which has its connections.
    From(IpAddr),
    /// A map server says: the client goes to the xTR with this EID, which may ask for its connections; the
    /// unspecified address: to one that cannot ask for them.
    To(IpAddr),
    /// An xTR says that the client has left it.
    Left(Connections),
}

/// How many connections of a client were translated where it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connections {
    /// Those that go on where the client is now.
    pub moved: u32,
    /// Those that do not: the far end takes what comes of them for something else.
    pub reset: u32,
}

impl Handoff {
    /// Returns the name that says so.
    pub(crate) fn name(self) -> String {
        match self {
            Self::From(eid) => format!("{FROM}{eid}"),
            Self::To(eid) => format!("{TO}{eid}"),
            Self::Left(Connections { moved, reset }) => format!("{LEFT}{moved}{RESET}{reset}"),
        }
    }

    /// Reads a name; `None` if it says something else.
    pub(crate) fn of_name(name: &[u8]) -> Option<Self> {
        let name = str::from_utf8(name).ok()?;
        if let Some(eid) = name.strip_prefix(FROM) {
            return Some(Self::From(eid.parse().ok()?));
        }
        if let Some(eid) = name.strip_prefix(TO) {
            return Some(Self::To(eid.parse().ok()?));
        }
        let (moved, reset) = name.strip_prefix(LEFT)?.split_once(RESET)?;
        let (moved, reset) = (count(moved)?, count(reset)?);
        Some(Self::Left(Connections { moved, reset }))
    }
}

fn count(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|digit| digit.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

const FROM: &str = "connections-from@";
const TO: &str = "connections-to@";
const LEFT: &str = "connections@moved-";
const RESET: &str = "-reset-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_where_connections_are_and_what_became_of_them() {
        let left = Connections {
            moved: 3,
            reset: u32::MAX,
        };
        for (handoff, name) in [
            (
                Handoff::From([10, 0, 1, 1].into()),
                "connections-from@10.0.1.1",
            ),
            (
                Handoff::To("fd00:1::2".parse().unwrap()),
                "connections-to@fd00:1::2",
            ),
            (Handoff::Left(left), "connections@moved-3-reset-4294967295"),
        ] {
            assert_eq!(handoff.name(), name);
            assert_eq!(Handoff::of_name(name.as_bytes()), Some(handoff));
        }
        for other in [
            "connections-from@",
            "connections-to@10.0.1.0/24",
            "connections@moved-3",
            "connections@moved--reset-",
            "connections@moved-+1-reset-0",
            "connections@moved-1-reset-4294967296",
            "gap@us-1",
        ] {
            assert_eq!(Handoff::of_name(other.as_bytes()), None, "{other}");
        }
        assert_eq!(Handoff::of_name(&[0xff]), None);
    }
}
