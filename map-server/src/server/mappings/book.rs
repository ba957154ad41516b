//! What belongs to mappings, but is not stored with each of them?

use lisp_proto::EidPrefix;

use super::super::prefix_table::Slab;
use super::super::sites::{Registrant, XtrIndex};
use super::expiry::Millis;
use super::form::{Form, Held, Lean, Many};
use super::owners::Owners;
use super::terms::{AllTerms, Terms};
use super::{Change, Registration};

/// What mappings have in common, what does not fit into them, and who owns them.
#[derive(Clone, Debug)]
pub(super) struct Book {
    pub(super) owners: Owners,
    terms: AllTerms,
    many: Slab<Many>,
}

impl Book {
    pub(super) fn new() -> Self {
        Self {
            owners: Owners::new(),
            terms: AllTerms::new(),
            many: Slab::new(),
        }
    }

    /// Returns the mapping that is stored as `form`.
    pub(super) fn read<'a>(&'a self, form: &'a Form) -> Option<Held<'a>> {
        match form {
            Form::Vacant => None,
            Form::Lean(lean) => Some(Held::Lean(lean, self.terms.get(lean.terms)?)),
            Form::Many(id) => self.many.get(*id).map(Held::Many),
        }
    }

    /// Returns who has registered `lean`.
    pub(super) fn owner(&self, lean: &Lean) -> Option<XtrIndex> {
        let terms = self.terms.get(lean.terms)?;
        Some(terms.registrant.xtr)
    }

    /// Replaces what `registrant` has registered as `lean` by `registration`, if that is such as well.
    pub(super) fn refresh(
        &mut self,
        lean: &mut Lean,
        registrant: Registrant,
        registration: &Registration,
        expires: Millis,
    ) -> Option<Change> {
        let before = *self.terms.get(lean.terms)?;
        if before.registrant != registrant {
            return None;
        }
        let terms = Terms::of(registrant, registration);
        let mut later = Lean::of(registration, lean.terms, expires)?;
        if terms != before {
            later.terms = self.terms.hold(terms);
            self.terms.release(lean.terms);
        }
        Some(lean.become_like(&later))
    }

    /// Whether `lean` is what `registrant` has registered by `registration`.
    pub(super) fn says(
        &self,
        lean: &Lean,
        registrant: Registrant,
        registration: &Registration,
    ) -> bool {
        let terms = self.terms.get(lean.terms);
        terms == Some(&Terms::of(registrant, registration)) && lean.is_of(registration)
    }

    /// Takes a mapping out.
    pub(super) fn take(&mut self, eid: EidPrefix, form: Form) -> Option<Many> {
        let many = match form {
            Form::Vacant => return None,
            Form::Many(id) => self.many.remove(id)?,
            Form::Lean(lean) => {
                let terms = *self.terms.get(lean.terms)?;
                self.terms.release(lean.terms);
                self.owners.uncount(terms.registrant);
                let mut many = Many::new(eid);
                many.add(terms.registrant, lean.registration(&terms), lean.expires());
                return Some(many);
            }
        };
        for (registrant, _) in many.registrations() {
            self.owners.uncount(*registrant);
            self.owners.unshare(registrant.xtr, eid);
        }
        Some(many)
    }

    /// Stores a mapping.
    pub(super) fn put(&mut self, many: Many) -> Form {
        if many.is_empty() {
            return Form::Vacant;
        }
        let eid = many.record().eid;
        if let Some((registrant, registration, expires)) = many.single() {
            let terms = self.terms.hold(Terms::of(registrant, registration));
            if let Some(lean) = Lean::of(registration, terms, expires) {
                self.owners.count(registrant);
                return Form::Lean(lean);
            }
            self.terms.release(terms);
        }
        for (registrant, _) in many.registrations() {
            self.owners.count(*registrant);
            self.owners.share(registrant.xtr, eid);
        }
        Form::Many(self.many.insert(many))
    }

    /// Returns the registration that expires first, with when that is.
    pub(super) fn first_to_expire(&self, form: &Form) -> Option<(Registrant, Millis)> {
        match self.read(form)? {
            Held::Lean(lean, terms) => Some((terms.registrant, lean.expires())),
            Held::Many(many) => many.first_to_expire(),
        }
    }

    /// Lists when registrations expire.
    pub(super) fn expiries(&self, form: &Form) -> Vec<Millis> {
        match self.read(form) {
            None => Vec::new(),
            Some(Held::Lean(lean, _)) => vec![lean.expires()],
            Some(Held::Many(many)) => many.expiries().collect(),
        }
    }
}
