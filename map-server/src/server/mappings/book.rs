//! What belongs to mappings, but is not stored with each of them?

use lisp_proto::EidPrefix;

use super::super::prefix_table::Slab;
use super::super::sites::{Registrant, XtrIndex};
use super::expiry::Millis;
use super::form::{Form, Held, Lean, Many};
use super::owners::Owners;
use super::terms::{AllTerms, Terms};
use super::{Change, Renewed, Said};

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

    /// Replaces what `registrant` has registered as `lean` by what it says now, if that is such as well.
    /// Where it stands beside others, or did, it must say the same.
    pub(super) fn renew(
        &mut self,
        lean: &mut Lean,
        registrant: Registrant,
        said: Said<'_>,
        expires: Millis,
    ) -> Option<Renewed> {
        let before = self.terms.get(lean.terms)?;
        let terms = Terms::of(registrant, said);
        let has_same_terms = *before == terms;
        if has_same_terms && lean.is_of(said) {
            lean.set_expires(expires);
            return Some(Renewed {
                change: Change::None,
                is_known: true,
            });
        }
        if before.registrant != registrant || before.merge || said.merge {
            return None;
        }
        let mut later = Lean::of(said, lean.terms, expires)?;
        if !has_same_terms {
            later.terms = self.terms.hold(terms);
            self.terms.release(lean.terms);
        }
        Some(Renewed {
            change: lean.become_like(&later),
            is_known: false,
        })
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

    /// Stores a mapping with one registration, if that is such as mostly are.
    pub(super) fn put_single(
        &mut self,
        registrant: Registrant,
        said: Said<'_>,
        expires: Millis,
    ) -> Option<Lean> {
        let terms = self.terms.hold(Terms::of(registrant, said));
        let lean = Lean::of(said, terms, expires);
        match &lean {
            Some(_) => self.owners.count(registrant),
            None => self.terms.release(terms),
        }
        lean
    }

    /// Stores a mapping.
    pub(super) fn put(&mut self, many: Many) -> Form {
        if many.is_empty() {
            return Form::Vacant;
        }
        let eid = many.record().eid;
        if let Some((registrant, registration, expires)) = many.single()
            && let Some(lean) = self.put_single(registrant, registration.said(), expires)
        {
            return Form::Lean(lean);
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
