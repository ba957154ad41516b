//! What became of the connections of clients that have come and gone: for `status`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use lisp_proto::Timestamp;
use serde_json::{Value, json};

/// Moves that are remembered.
const MOVES: usize = 16;

/// How a move of a client ended, as far as its connections are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It came, and so many of its connections with it; others could not be entered.
    Taken { moved: u32, refused: u32 },
    /// It came without them.
    NotTaken { why: String },
    /// It has left: so many are held by the one it went to, and the others have ended.
    Left { moved: u32, reset: u32 },
    /// It has left, and nobody knows what became of them.
    Unknown { why: String },
}

/// The latest moves, the latest one last.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger(Arc<Mutex<VecDeque<(Timestamp, IpNet, Outcome)>>>);

impl Ledger {
    /// Notes how the move of `client` has ended.
    pub(super) fn note(&self, now: Timestamp, client: IpNet, outcome: Outcome) {
        let mut moves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if moves.len() >= MOVES {
            moves.pop_front();
        }
        moves.push_back((now, client, outcome));
    }

    /// What `status` says of them, the latest one first.
    pub(super) fn report(&self, now: Timestamp) -> Vec<Value> {
        let moves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = moves.iter().rev().map(|(at, client, outcome)| {
            let (way, moved, reset, why) = match outcome {
                Outcome::Taken { moved, refused } => ("came", Some(moved), Some(refused), None),
                Outcome::NotTaken { why } => ("came", None, None, Some(why)),
                Outcome::Left { moved, reset } => ("left", Some(moved), Some(reset), None),
                Outcome::Unknown { why } => ("left", None, None, Some(why)),
            };
            let ago = u64::try_from((now - *at).as_millis()).unwrap_or(u64::MAX);
            json!({
                "client": client,
                "way": way,
                "moved": moved,
                "reset": reset,
                "why": why,
                "ago_ms": ago,
            })
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_latest_moves_are_told_first_and_old_ones_are_forgotten() {
        let ledger = Ledger::default();
        let client: IpNet = "10.0.0.1/32".parse().unwrap();
        for moved in 0..20 {
            let now = Timestamp::ZERO + Duration::from_secs(moved.into());
            let outcome = Outcome::Left { moved, reset: 2 };
            ledger.note(now, client, outcome);
        }
        let now = Timestamp::ZERO + Duration::from_secs(20);
        let why = "no way".to_owned();
        ledger.note(now, client, Outcome::NotTaken { why });
        let told = ledger.report(now + Duration::from_secs(1));
        assert_eq!(told.len(), MOVES);
        assert_eq!(
            (&told[0]["way"], &told[0]["why"]),
            (&"came".into(), &"no way".into())
        );
        assert!(told[0]["moved"].is_null());
        let second = &told[1];
        assert_eq!(
            (&second["moved"], &second["reset"]),
            (&19.into(), &2.into())
        );
        assert_eq!(second["ago_ms"], 2_000);
    }
}
