//! At which address and port is an xTR seen from outside?
//!
//! An xTR asks through its control tunnel (Info-Request), and WireGuard tells where that tunnel's other end is. If that
//! address is none of those that the xTR has registered as its own, there is a NAT. Then the port of its *data*
//! interface is wanted as well: the control interface gets that key as a peer, with no AllowedIPs, so that the data
//! interface can shake hands with us, and nothing more. What the handshake vouches for is the answer. It is given once
//! more, unasked, when it changes.
//!
//! Two rules keep others out of it. A look at the peers that began before the question says nothing new. And the data
//! interface counts only where the control tunnel is seen as well: a handshake that somebody has recorded and repeats to
//! a server that has forgotten it, or a key that belongs to somebody else, leads to no other address.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lisp_proto::{EidPrefix, Info, Locator, PublicKey, Rloc, Timestamp, encode_info_reply};

use super::actions::{Actions, Event, Via};
use super::counters::DropReason;
use super::register::authenticate;
use super::sightings::{Question, Subject};
use super::sites::XtrIndex;
use super::{MapServer, Origin, limits};

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
        let question = Question::new(now, info.nonce, origin.src, full_tag);
        let until = now + limits::SIGHTING_LIFETIME;
        if !self.state.sightings.ask(subject, question, until) {
            return actions.count(DropReason::TableFull);
        }
        self.look_at(subject, None, actions);
        let question = self.state.sightings.question(&subject);
        if question.is_some_and(|question| question.is_watched()) {
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

    /// A look at the peers that began at `began` has found the holders of these keys at other places than before.
    pub(super) fn seen(
        &mut self,
        began: Timestamp,
        peers: &[(PublicKey, SocketAddr)],
        actions: &mut Actions,
    ) {
        let sightings = &mut self.state.sightings;
        let mut concerned: BTreeSet<Subject> = sightings.waiting_for(began);
        for (key, at) in peers {
            let enrolled = self.sites.of_control_key(key);
            let mut watchers = sightings.watchers(key).peekable();
            if enrolled.is_none() && watchers.peek().is_none() {
                continue;
            }
            let mut affected: Vec<_> = watchers.collect();
            affected.extend(enrolled.into_iter().flat_map(|xtr| sightings.of(xtr)));
            if sightings.note(*key, SocketAddr::new(at.ip().to_canonical(), at.port())) {
                concerned.extend(affected);
            }
        }
        for subject in concerned {
            self.look_at(subject, Some(began), actions);
        }
    }

    /// What `xtr` has registered may have changed, because it has moved: so may the answers to it.
    pub(super) fn look_again(&mut self, now: Timestamp, xtr: XtrIndex, actions: &mut Actions) {
        for subject in self.state.sightings.of(xtr) {
            if let Some(question) = self.state.sightings.question(&subject) {
                question.since = now;
            }
            self.look_at(subject, None, actions);
        }
    }

    /// Forgets the questions that were not asked again.
    pub(super) fn expire_sightings(&mut self, now: Timestamp, actions: &mut Actions) {
        self.state.sightings.expire(now, actions);
    }

    /// Brings the peers of the control interface in line with what is asked, and answers if there is something new. The
    /// reason may be a look at them that began at `began`.
    fn look_at(&mut self, subject: Subject, began: Option<Timestamp>, actions: &mut Actions) {
        let Some(question) = self.state.sightings.question(&subject).copied() else {
            return;
        };
        let is_fresh = began.is_some_and(|began| began >= question.since);
        let goes_by = |seen: SocketAddr| seen.port() != 0 && question.told == Some(seen);
        let answer = self.where_is(subject);
        let sightings = &mut self.state.sightings;
        match answer {
            // That there is no NAT its own word confirms.
            Some((hidden, seen)) if is_fresh || hidden.is_none() || goes_by(seen) => {
                sightings.settle(&subject);
                sightings.watch(subject, hidden, actions);
                self.tell_where(subject, seen, actions);
            }
            // It will have been seen when the next look has something new.
            None if is_fresh => sightings.settle(&subject),
            Some(_) | None => {
                sightings.wait(subject);
                actions.look();
            }
        }
    }

    /// Returns where the xTR of `subject` was last seen, and the key to watch if that is behind a NAT; port 0 says that
    /// only the address is known. `None`: nowhere.
    fn where_is(&self, (xtr, eid): Subject) -> Option<(Option<PublicKey>, SocketAddr)> {
        let sightings = &self.state.sightings;
        let control = self.sites.control_key(xtr);
        let control = control.and_then(|key| sightings.at(&key))?.ip();
        let hidden = self.hidden_key(xtr, &eid, control);
        let hole = hidden.and_then(|key| sightings.at(&key));
        let hole = hole.filter(|hole| hole.ip() == control);
        Some((hidden, hole.unwrap_or_else(|| SocketAddr::new(control, 0))))
    }

    /// Returns the data key under which `xtr` has registered `eid`, if it can be reached only through a NAT, seen from
    /// `control`, and we may have that key as a peer.
    fn hidden_key(&self, xtr: XtrIndex, eid: &EidPrefix, control: IpAddr) -> Option<PublicKey> {
        let mapping = self.state.mappings.exact(eid)?;
        let mut offers = mapping.offers();
        let (_, locators) = offers.find(|(owner, _)| *owner == xtr)?;
        let own: Vec<_> = own_locators(&locators).collect();
        let (_, key) = *own.first()?;
        // What it has of another family says nothing about the way of its tunnel.
        let mut comparable = own
            .iter()
            .filter(|(address, _)| address.is_ipv4() == control.is_ipv4())
            .peekable();
        comparable.peek()?;
        if comparable.any(|(address, _)| *address == control) {
            return None;
        }
        let may_watch = self.state.sightings.may_watch(&key);
        (may_watch && !self.sites.is_of_the_tunnel(&key)).then_some(key)
    }

    fn tell_where(&mut self, subject: Subject, seen: SocketAddr, actions: &mut Actions) {
        let (xtr, eid) = subject;
        let question = self.state.sightings.question(&subject);
        let is_news = |question: &Question| !question.answered || question.told != Some(seen);
        let Some(question) = question.filter(|question| is_news(question)) else {
            return;
        };
        let is_known = question.told.replace(seen) == Some(seen);
        question.answered = true;
        let site = self.sites.site(xtr);
        self.scratch.clear();
        let auth = site.notify_auth(question.full_tag);
        encode_info_reply(question.nonce, eid, seen, auth, &mut self.scratch);
        actions.send(question.source, Via::Tunnel, &self.scratch);
        if seen.port() != 0 && !is_known {
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
