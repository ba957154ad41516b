//! For how long did nothing come to an xTR while a mapping moved? A name among locators says so.

use std::time::Duration;

/// What an xTR says about a mapping that it uses, and that has moved to another locator.
///
/// On the wire it is a distinguished name (AFI 17, RFC 9735) in the place of a locator, in the
/// record of a Map-Request: `gap@us-12500`, in microseconds, or `gap@unknown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gap {
    /// Nothing has come since, so nobody can tell.
    Unknown,
    /// The longest time in which nothing came.
    Longest(Duration),
}

impl Gap {
    /// Returns the name that says so.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Unknown => UNKNOWN.to_owned(),
            Self::Longest(time) => format!("{MICROSECONDS}{}", time.as_micros()),
        }
    }

    /// Reads a name; `None` if it says something else.
    pub(crate) fn of_name(name: &[u8]) -> Option<Self> {
        let name = str::from_utf8(name).ok()?;
        if name == UNKNOWN {
            return Some(Self::Unknown);
        }
        let digits = name.strip_prefix(MICROSECONDS)?;
        let plain = digits.bytes().all(|digit| digit.is_ascii_digit());
        let micros = digits.parse().ok().filter(|_| plain)?;
        Some(Self::Longest(Duration::from_micros(micros)))
    }
}

const UNKNOWN: &str = "gap@unknown";
const MICROSECONDS: &str = "gap@us-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_how_long_it_was() {
        for gap in [0, 12_500, u64::MAX].map(|us| Gap::Longest(Duration::from_micros(us))) {
            assert_eq!(Gap::of_name(gap.name().as_bytes()), Some(gap));
        }
        assert_eq!(
            Gap::of_name(b"gap@us-12500"),
            Some(Gap::Longest(Duration::from_micros(12_500)))
        );
        assert_eq!(
            Gap::of_name(Gap::Unknown.name().as_bytes()),
            Some(Gap::Unknown)
        );
        for other in [
            "gap@us-",
            "gap@us-+1",
            "gap@us-18446744073709551616",
            "gw@tp-51820",
            "\u{fe}",
        ] {
            assert_eq!(Gap::of_name(other.as_bytes()), None, "{other}");
        }
        assert_eq!(Gap::of_name(&[0xff]), None);
    }
}
