//! Which of several owners suits a client best, and what is it told of the others?

use std::collections::BTreeMap;

use lisp_proto::Locator;

use super::limits;
use super::mappings::Mapping;
use super::sites::XtrIndex;

/// Highest priority number of the owner that a client is on: there is one behind it, and one that
/// says that a locator must not be used.
const LAST_OWN: u8 = u8::MAX - 2;

/// Returns the lowest priority number that `owner` offers, and the weight of that.
pub(super) fn offer(mapping: Mapping<'_>, owner: XtrIndex) -> (u8, u32) {
    let locators = || {
        let offers = mapping.offers().filter(|(xtr, _)| *xtr == owner);
        offers.flat_map(|(_, locators)| locators)
    };
    let priority = locators().map(|locator| locator.priority).min();
    let priority = priority.unwrap_or(u8::MAX);
    let best = locators().filter(|locator| locator.priority == priority);
    (
        priority,
        best.map(|locator| u32::from(locator.weight)).sum(),
    )
}

/// Whether an owner offers nothing that may be used (RFC 9301 §5.4): all its clients are to go.
pub(super) fn withholds(locators: &[Locator]) -> bool {
    !locators.is_empty() && locators.iter().all(|it| it.priority == u8::MAX)
}

/// Returns the locators of `mapping`, those of `owner` first; others are behind them, and may not be
/// used at all while they are drained. An owner that withholds its own keeps its clients until they
/// have moved.
pub(super) fn locators_for(
    mapping: Mapping<'_>,
    owner: XtrIndex,
    is_draining: impl Fn(XtrIndex) -> bool,
) -> Vec<Locator> {
    let is_own = |xtr: &XtrIndex| *xtr == owner;
    let own = mapping.offers().filter(|(xtr, _)| is_own(xtr));
    let own: Vec<u8> = own
        .flat_map(|(_, locators)| locators)
        .map(|it| it.priority)
        .collect();
    let leaves = own.iter().all(|priority| *priority == u8::MAX);
    let usable = own.iter().filter(|it| leaves || **it != u8::MAX);
    let last = usable.map(|it| (*it).min(LAST_OWN)).max();
    let behind = last.map_or(0, |last| last.saturating_add(1));
    let mut locators: BTreeMap<_, (bool, Locator)> = BTreeMap::new();
    for (xtr, offered) in mapping.offers() {
        for locator in &offered {
            let priority = match locator.priority {
                own if is_own(&xtr) && (leaves || own != u8::MAX) => own.min(LAST_OWN),
                u8::MAX => u8::MAX,
                _ if is_draining(xtr) => u8::MAX,
                other => {
                    let other = other.saturating_add(limits::PRIORITY_BEHIND);
                    other.max(behind).min(u8::MAX - 1)
                }
            };
            let told = Locator {
                priority,
                local: false,
                probed: false,
                ..*locator
            };
            let place = (!is_own(&xtr), told);
            let known = locators.entry(locator.rloc).or_insert(place);
            if is_own(&xtr) {
                *known = place;
            }
        }
    }
    let mut locators: Vec<_> = locators.into_values().collect();
    locators.sort_by_key(|(behind, locator)| (*behind, locator.priority, locator.rloc));
    locators.truncate(limits::LOCATORS_PER_RECORD);
    locators.into_iter().map(|(_, locator)| locator).collect()
}

/// Returns how much `owner` suits `client`: the share of clients for which it is the highest is that
/// of the weight, and a change of owners moves no client but theirs (weighted rendezvous hashing).
pub(super) fn score(client: &str, owner: &str, weight: u32) -> u64 {
    let digest = digest([client, owner]);
    let chance = (f64::from(u32::try_from(digest >> 32).unwrap_or(0)) + 0.5) / 4_294_967_296.0;
    // No weight at all is less than any.
    let weight = f64::from(weight).max(f64::MIN_POSITIVE.sqrt());
    // The order of positive numbers is that of their bits.
    (weight / -chance.ln()).to_bits()
}

/// Returns a number that depends on every byte, and is the same in every version of this program.
fn digest(texts: [&str; 2]) -> u64 {
    // FNV-1a, and then a finish that carries every bit into the upper half.
    let mut digest: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in texts.iter().flat_map(|text| text.bytes().chain([0xff])) {
        digest = (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    digest = (digest ^ (digest >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    digest = (digest ^ (digest >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    digest ^ (digest >> 33)
}
