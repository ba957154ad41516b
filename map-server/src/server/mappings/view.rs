//! How is a mapping read?

use lisp_proto::{Action, EidPrefix, Locator, Record, Ttl};

use super::super::contacts::Contact;
use super::super::sites::{Registrant, XtrIndex};
use super::Registration;
use super::form::{Held, empty_record};

/// A prefix that at least one xTR has registered, as it is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping<'a> {
    eid: EidPrefix,
    held: Held<'a>,
}

impl<'a> Mapping<'a> {
    pub(super) const fn new(eid: EidPrefix, held: Held<'a>) -> Self {
        Self { eid, held }
    }

    /// Returns the prefix.
    pub(crate) const fn eid(&self) -> EidPrefix {
        self.eid
    }

    /// Returns how long others may keep it.
    pub(crate) const fn ttl(&self) -> Ttl {
        match self.held {
            Held::Lean(lean, _) => lean.ttl(),
            Held::Many(many) => many.record().ttl,
        }
    }

    /// Whether it has no locators.
    pub(crate) const fn leads_nowhere(&self) -> bool {
        match self.held {
            Held::Lean(..) => false,
            Held::Many(many) => many.record().locators.is_empty(),
        }
    }

    /// Returns it as a proxy may hand it out: neither authoritative nor local.
    pub(crate) fn record(&self) -> Record {
        let mut record = empty_record(self.eid);
        self.write_to(&mut record);
        record
    }

    /// Makes `record` what [`Self::record`] returns; its memory is used again.
    pub(crate) fn write_to(&self, record: &mut Record) {
        match self.held {
            Held::Lean(lean, _) => {
                record.locators.clear();
                record.locators.push(told(lean.locator()));
                (record.eid, record.ttl) = (self.eid, lean.ttl());
                record.action = Action::NoAction;
                record.authoritative = false;
            }
            Held::Many(many) => record.clone_from(many.record()),
        }
    }

    /// Lists what its registrants have said.
    pub(super) fn registrations(
        &self,
    ) -> impl Iterator<Item = (Registrant, Registration)> + use<'a> {
        let (lean, many) = match self.held {
            Held::Lean(lean, terms) => (Some((terms.registrant, lean.registration(terms))), None),
            Held::Many(many) => (None, Some(many.registrations())),
        };
        let many = many.into_iter().flatten();
        let many = many.map(|(registrant, registration)| (*registrant, registration.clone()));
        lean.into_iter().chain(many)
    }

    /// Lists those who registered it.
    pub(super) fn registrants(&self) -> impl Iterator<Item = Registrant> + use<'a> {
        let (lean, many) = match self.held {
            Held::Lean(_, terms) => (Some(terms.registrant), None),
            Held::Many(many) => (None, Some(many.registrations())),
        };
        let many = many.into_iter().flatten();
        lean.into_iter()
            .chain(many.map(|(registrant, _)| *registrant))
    }

    /// Lists the xTRs that registered it; one may be listed more than once.
    pub(crate) fn owners(&self) -> impl Iterator<Item = XtrIndex> + use<'a> {
        self.registrants().map(|registrant| registrant.xtr)
    }

    /// Whether others may register it as well, by the merge bit.
    pub(crate) fn is_merged(&self) -> bool {
        match self.held {
            Held::Lean(_, terms) => terms.merge,
            Held::Many(many) => many.registrations().all(|(_, it)| it.merge),
        }
    }

    /// Lists what its owners have registered; one may be listed more than once.
    pub(crate) fn offers(&self) -> impl Iterator<Item = (XtrIndex, Vec<Locator>)> + use<'a> {
        let offers = self.registrations();
        offers.map(|(registrant, registration)| (registrant.xtr, registration.locators))
    }

    /// Lists those who share it with others by the merge bit, and want to be told about it.
    pub(crate) fn sharers(&self) -> impl Iterator<Item = (Registrant, Contact)> + use<'a> {
        let sharers = self.is_shared().then(|| self.registrations());
        let sharers = sharers.into_iter().flatten();
        let sharers = sharers.filter(|(_, it)| it.merge && it.want_notify);
        sharers.map(|(registrant, registration)| (registrant, registration.contact))
    }

    /// Whether somebody lets others register it.
    fn is_shared(&self) -> bool {
        match self.held {
            Held::Lean(_, terms) => terms.merge,
            Held::Many(_) => true,
        }
    }

    /// Whether `xtr` is among those who registered it.
    pub(crate) fn is_registered_by(&self, xtr: XtrIndex) -> bool {
        self.owners().any(|owner| owner == xtr)
    }
}

/// Returns a locator as others are told it.
pub(super) const fn told(locator: Locator) -> Locator {
    Locator {
        local: false,
        probed: false,
        ..locator
    }
}
