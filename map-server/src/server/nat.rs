//! At which address and port is an xTR seen from outside?
//!
//! An xTR asks through its control tunnel (Info-Request), and WireGuard tells where that tunnel's other end is. If that
//! address is none of those that the xTR has registered as its own, there is a NAT. Then the port of its *data*
//! interface is wanted as well: the control interface gets that key as a peer, with no AllowedIPs, so that the data
//! interface can shake hands with us, and nothing more. What the handshake vouches for is the answer. It is given once
//! more, unasked, when it changes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lisp_proto::{
    Deadlines, EidPrefix, Info, Locator, Nonce, PublicKey, Rloc, Timestamp, encode_info_reply,
};

use super::actions::{Actions, Event, Via};
use super::counters::DropReason;
use super::register::authenticate;
use super::sites::XtrIndex;
use super::{MapServer, Origin, limits};

/// Who asked about what: an xTR asks once for each of its data interfaces.
type Subject = (XtrIndex, EidPrefix);

/// A question of an xTR that is answered whenever the answer changes.
#[derive(Clone, Copy, Debug)]
struct Question {
    nonce: Nonce,
    source: SocketAddr,
    full_tag: bool,
    /// What was answered.
    told: Option<SocketAddr>,
    /// The data key that the control interface has as a peer for it.
    watched: Option<PublicKey>,
}

/// What is known of where xTRs are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sightings {
    /// Where the holders of keys were last seen: of control keys, and of those that are watched.
    seen: BTreeMap<PublicKey, SocketAddr>,
    questions: BTreeMap<XtrIndex, BTreeMap<EidPrefix, Question>>,
    /// The xTR that each key is watched for, and by how many of its questions.
    watched: BTreeMap<PublicKey, (XtrIndex, usize)>,
    expiry: Deadlines<Subject>,
}

impl Sightings {
    /// Returns how many data keys are watched.
    pub(crate) fn len(&self) -> usize {
        self.watched.len()
    }

    /// Returns when the next question is forgotten.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.expiry.next()
    }

    fn question(&mut self, (xtr, eid): &Subject) -> Option<&mut Question> {
        self.questions.get_mut(xtr)?.get_mut(eid)
    }

    /// Takes a question in; false if its xTR has too many others.
    fn ask(&mut self, (xtr, eid): Subject, mut question: Question) -> bool {
        let own = self.questions.entry(xtr).or_default();
        match own.get(&eid) {
            Some(before) => question.watched = before.watched,
            None if own.len() >= limits::SIGHTINGS_PER_XTR => return false,
            None => {}
        }
        own.insert(eid, question);
        true
    }

    fn forget(&mut self, (xtr, eid): &Subject) -> Option<Question> {
        let own = self.questions.get_mut(xtr)?;
        let question = own.remove(eid);
        if own.is_empty() {
            self.questions.remove(xtr);
        }
        question
    }

    fn watch(&mut self, key: PublicKey, xtr: XtrIndex, actions: &mut Actions) {
        let (_, times) = self.watched.entry(key).or_insert((xtr, 0));
        *times += 1;
        if *times == 1 {
            actions.watch(key);
        }
    }

    fn unwatch(&mut self, key: PublicKey, actions: &mut Actions) {
        let Some((_, times)) = self.watched.get_mut(&key) else {
            return;
        };
        *times -= 1;
        if *times == 0 {
            self.watched.remove(&key);
            self.seen.remove(&key);
            actions.unwatch(key);
        }
    }
}

impl MapServer {
    /// Answers an Info-Request of an enrolled xTR, which came through its tunnel.
    pub(super) fn info_request(
        &mut self,
        now: Timestamp,
        origin: Origin,
        datagram: &[u8],
        info: &Info<'_>,
        actions: &mut Actions,
    ) {
        let (subject, full_tag) = match self.authenticate_info(origin, datagram, info) {
            Ok(authentic) => authentic,
            Err(reason) => return actions.count(reason),
        };
        let question = Question {
            nonce: info.nonce,
            source: origin.src,
            full_tag,
            told: None,
            watched: None,
        };
        let sightings = &mut self.state.sightings;
        if !sightings.ask(subject, question) {
            return actions.count(DropReason::TableFull);
        }
        let until = now + limits::SIGHTING_LIFETIME;
        sightings.expiry.set(subject, until);
        self.look_at(subject, actions);
        let question = self.state.sightings.question(&subject);
        if question.is_some_and(|question| question.watched.is_some()) {
            // It may ask because it has moved.
            actions.look();
        }
    }

    fn authenticate_info(
        &self,
        origin: Origin,
        datagram: &[u8],
        info: &Info<'_>,
    ) -> Result<(Subject, bool), DropReason> {
        if info.reply {
            return Err(DropReason::UnexpectedMessage);
        }
        let xtr = self.sites.enrolled(origin.via, origin.src.ip());
        let xtr = xtr.ok_or(DropReason::UnknownSource)?;
        let tag = authenticate(&self.sites.site(xtr).auth, &info.auth, datagram)?;
        let eid = info.eid().ok_or(DropReason::NoEid)?;
        if !self.sites.may_register(xtr, &eid) {
            return Err(DropReason::ForeignPrefix);
        }
        Ok(((xtr, eid), tag.full))
    }

    /// WireGuard has seen the holders of these keys at other places than before.
    pub(super) fn seen(&mut self, peers: &[(PublicKey, SocketAddr)], actions: &mut Actions) {
        for (key, endpoint) in peers {
            let sightings = &mut self.state.sightings;
            let watched = sightings.watched.get(key).map(|(xtr, _)| *xtr);
            let Some(xtr) = self.sites.of_control_key(key).or(watched) else {
                continue;
            };
            let endpoint = SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port());
            if sightings.seen.insert(*key, endpoint) != Some(endpoint) {
                self.look_again(xtr, actions);
            }
        }
    }

    /// What `xtr` has registered, or where it is seen, may have changed: so may the answers to it.
    pub(super) fn look_again(&mut self, xtr: XtrIndex, actions: &mut Actions) {
        let asked = self.state.sightings.questions.get(&xtr);
        let asked: Vec<_> = asked
            .into_iter()
            .flat_map(BTreeMap::keys)
            .copied()
            .collect();
        for eid in asked {
            self.look_at((xtr, eid), actions);
        }
    }

    /// Forgets the questions that were not asked again.
    pub(super) fn expire_sightings(&mut self, now: Timestamp, actions: &mut Actions) {
        let sightings = &mut self.state.sightings;
        while let Some(subject) = sightings.expiry.pop_due(now) {
            let question = sightings.forget(&subject);
            if let Some(key) = question.and_then(|question| question.watched) {
                sightings.unwatch(key, actions);
            }
        }
    }

    /// Brings the peers of the control interface in line with what is asked, and answers if there is something new.
    fn look_at(&mut self, subject: Subject, actions: &mut Actions) {
        let (xtr, eid) = subject;
        let control = self.sites.control_key(xtr);
        let control = control.and_then(|key| self.state.sightings.seen.get(&key));
        let Some(control) = control.map(SocketAddr::ip) else {
            // The answer follows when WireGuard has told.
            return actions.look();
        };
        let wanted = self.hidden_key(xtr, &eid, control);
        let sightings = &mut self.state.sightings;
        let Some(question) = sightings.question(&subject) else {
            return;
        };
        let before = std::mem::replace(&mut question.watched, wanted);
        if before != wanted {
            if let Some(key) = wanted {
                sightings.watch(key, xtr, actions);
            }
            if let Some(key) = before {
                sightings.unwatch(key, actions);
            }
        }
        let seen = wanted.and_then(|key| self.state.sightings.seen.get(&key));
        let seen = seen.copied().unwrap_or(SocketAddr::new(control, 0));
        self.tell_where(subject, seen, actions);
    }

    /// Returns the data key under which `xtr` has registered `eid`, if it can be reached only through a NAT, seen from
    /// `control`, and we may have that key as a peer.
    fn hidden_key(&self, xtr: XtrIndex, eid: &EidPrefix, control: IpAddr) -> Option<PublicKey> {
        let mapping = self.state.mappings.exact(eid)?;
        let mut offers = mapping.offers();
        let (_, locators) = offers.find(|(owner, _)| *owner == xtr)?;
        let own: Vec<_> = own_locators(&locators).collect();
        let (_, key) = *own.first()?;
        if own.iter().any(|(address, _)| *address == control) {
            return None;
        }
        let watched = &self.state.sightings.watched;
        let is_free = match watched.get(&key) {
            Some((other, _)) => *other == xtr,
            None => watched.len() < limits::WATCHED_KEYS,
        };
        (is_free && !self.sites.is_of_the_tunnel(&key)).then_some(key)
    }

    fn tell_where(&mut self, subject: Subject, seen: SocketAddr, actions: &mut Actions) {
        let (xtr, eid) = subject;
        let question = self.state.sightings.question(&subject);
        let Some(question) = question.filter(|question| question.told != Some(seen)) else {
            return;
        };
        question.told = Some(seen);
        let site = self.sites.site(xtr);
        self.scratch.clear();
        let auth = site.notify_auth(question.full_tag);
        encode_info_reply(question.nonce, eid, seen, auth, &mut self.scratch);
        actions.send(question.source, Via::Tunnel, &self.scratch);
        if seen.port() != 0 {
            let xtr = site.name.clone();
            actions.event(Event::Seen { xtr, eid, at: seen });
        }
    }
}

/// The addresses and keys of the WireGuard locators that an xTR has called its own: where a NAT lets it appear is not.
fn own_locators(locators: &[Locator]) -> impl Iterator<Item = (IpAddr, PublicKey)> {
    let own = locators.iter().filter(|locator| locator.local);
    own.filter_map(|locator| match locator.rloc {
        Rloc::WireGuard { endpoint, key } => Some((endpoint.ip(), key)),
        Rloc::Plain(_) => None,
    })
}

#[cfg(test)]
mod tests;
