//! Who may have which AllowedIPs? The keys that the owner of the EID-prefix has registered for it.

use ipnet::IpNet;
use lisp_proto::{Message, Rloc, decode};
use xtr_agent::agent::PeerSpec;

use super::addresses;
use super::invariant::Invariant;
use super::proxies;
use super::stats::message_type;
use super::world::World;

impl World {
    /// Takes note of what an agent registers of its own.
    pub(super) fn note_registration(&mut self, number: u32, bytes: &[u8]) {
        if message_type(bytes) != "map-register" {
            return;
        }
        let Ok(Message::MapRegister(register)) = decode(bytes) else {
            return;
        };
        let own = addresses::eid_prefixes(number).into_iter();
        let own: Vec<_> = own.chain(self.scenario.serves(number)).collect();
        for record in register.records() {
            let Some(prefix) = record.eid().map(|eid| eid.net()) else {
                continue;
            };
            if !own.contains(&prefix) {
                continue;
            }
            let locators = record.locators();
            let keys = locators.filter_map(|locator| match locator.rloc(addresses::DATA_PORT) {
                Some(Rloc::WireGuard { key, .. }) => Some(key),
                Some(Rloc::Plain(_)) | None => None,
            });
            self.registered.extend(keys.map(|key| (key, prefix)));
        }
    }

    /// Checks a peer that an agent is about to have.
    pub(super) fn check_authority(&mut self, number: u32, spec: &PeerSpec) {
        for prefix in &spec.allowed_ips {
            if !self.is_registered(spec, prefix) {
                self.broken(Invariant::Authority, || {
                    let key = spec.key.short();
                    format!("agent {number} gives {prefix} to key {key}, which its owner never registered")
                });
            }
        }
    }

    fn is_registered(&self, spec: &PeerSpec, prefix: &IpNet) -> bool {
        let owner = addresses::owner(prefix.addr(), self.scenario.agents);
        let own = owner.map(addresses::eid_prefixes);
        let all = own.into_iter().flatten().chain(proxies::served());
        // Only relays register all of the overlay.
        let mut all = all.chain(addresses::overlay());
        all.any(|own| own.contains(prefix) && self.registered.contains(&(spec.key, own)))
    }
}
