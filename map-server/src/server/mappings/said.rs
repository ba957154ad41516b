//! What does a registrant say, before anything is copied?

use std::time::Duration;

use lisp_proto::{Locator, Ttl};

use super::Registration;
use crate::server::contacts::Contact;

/// A [`Registration`] that is not stored yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said<'a> {
    pub(crate) ttl: Ttl,
    pub(crate) locators: &'a [Locator],
    pub(crate) merge: bool,
    pub(crate) want_notify: bool,
    pub(crate) contact: Contact,
    pub(crate) lifetime: Duration,
}

impl Said<'_> {
    /// Copies it.
    pub(crate) fn registration(&self) -> Registration {
        Registration {
            ttl: self.ttl,
            locators: self.locators.to_vec(),
            merge: self.merge,
            want_notify: self.want_notify,
            contact: self.contact,
            lifetime: self.lifetime,
        }
    }
}

impl Registration {
    pub(crate) const fn said(&self) -> Said<'_> {
        Said {
            ttl: self.ttl,
            locators: self.locators.as_slice(),
            merge: self.merge,
            want_notify: self.want_notify,
            contact: self.contact,
            lifetime: self.lifetime,
        }
    }
}
