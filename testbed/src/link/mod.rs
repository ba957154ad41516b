//! What joins two namespaces, and what does it do to the frames on it?
//!
//! Three kinds: a bare veth pair; a veth pair with netem where the kernel has it; and two TAPs
//! with a [relay](relay) between them where it has not.

mod impair;
pub(crate) mod netem;
mod params;
pub(crate) mod relay;

use std::sync::Arc;

pub use impair::DirectionCounters;
pub use params::{LinkParams, Share};
use relay::{LinkId, Relay};

use crate::error::{Doing, TestbedError, best_effort};
use crate::namespace::Namespace;
use crate::netlink::{Mac, NewInterface};
use crate::sys;
use crate::testbed::Testbed;

/// Where a link ends: an interface that is made for it.
#[derive(Clone)]
pub struct LinkEnd {
    /// The namespace the interface is made in.
    pub namespace: Namespace,
    /// Name of the interface, at most 15 bytes.
    pub interface: String,
}

/// How a link carries frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A bare veth pair.
    Plain,
    /// A veth pair with the kernel's emulator on both ends.
    Netem,
    /// Two TAPs with the testbed's relay between them.
    Relay,
}

/// A cable between two namespaces. It is removed on drop.
pub struct Link {
    ends: [LinkEnd; 2],
    macs: [Mac; 2],
    params: [LinkParams; 2],
    seed: u64,
    cut: bool,
    carrier: Carrier,
}

enum Carrier {
    Veth { netem: bool },
    Taps { relay: Arc<Relay>, id: LinkId },
}

impl Link {
    /// Joins two namespaces by a link that does the same in both directions.
    ///
    /// # Errors
    ///
    /// When an interface cannot be made.
    pub fn new(
        testbed: &Testbed,
        ends: [LinkEnd; 2],
        params: LinkParams,
    ) -> Result<Self, TestbedError> {
        let macs = [testbed.next_mac(), testbed.next_mac()];
        let netem = !params.relayed && ends.iter().all(|end| netem::is_available(&end.namespace));
        let with_taps = !netem && (params.adjustable || !params.is_plain());
        let carrier = if with_taps {
            join_taps(testbed, &ends, params)?
        } else {
            let [near, far] = &ends;
            let [near_mac, far_mac] = macs;
            let far_interface = NewInterface {
                name: &far.interface,
                mac: far_mac,
            };
            near.namespace.netlink().add_veth(
                &NewInterface {
                    name: &near.interface,
                    mac: near_mac,
                },
                &far_interface,
                far.namespace.descriptor(),
            )?;
            Carrier::Veth { netem }
        };
        let seed = testbed.seed();
        let link = Self {
            ends,
            macs,
            params: [params; 2],
            seed,
            cut: false,
            carrier,
        };
        for (end, mac) in link.ends.iter().zip(macs) {
            let netlink = end.namespace.netlink();
            if with_taps {
                netlink.set_mac(&end.interface, mac)?;
            }
            netlink.set_up(&end.interface)?;
        }
        link.apply()?;
        Ok(link)
    }

    /// How the link carries frames now.
    pub fn kind(&self) -> LinkKind {
        match self.carrier {
            Carrier::Taps { .. } => LinkKind::Relay,
            Carrier::Veth { netem: true } if !self.params.iter().all(LinkParams::is_plain) => {
                LinkKind::Netem
            }
            Carrier::Veth { .. } => LinkKind::Plain,
        }
    }

    /// The two ends.
    pub fn ends(&self) -> &[LinkEnd; 2] {
        &self.ends
    }

    /// The hardware addresses of the two ends.
    pub fn macs(&self) -> [[u8; 6]; 2] {
        self.macs
    }

    /// What the link does to frames from the first end, and to those from the second.
    pub fn params(&self) -> [LinkParams; 2] {
        self.params
    }

    /// Changes what the link does; frames on their way arrive as planned (with netem: are lost).
    ///
    /// # Errors
    ///
    /// When the link is a bare veth pair and the kernel has no netem.
    pub fn set(&mut self, params: LinkParams) -> Result<(), TestbedError> {
        self.set_directions([params; 2])
    }

    /// Changes each direction on its own: from the first end, and from the second.
    ///
    /// # Errors
    ///
    /// When the link is a bare veth pair and the kernel has no netem.
    pub fn set_directions(&mut self, params: [LinkParams; 2]) -> Result<(), TestbedError> {
        let bare = matches!(self.carrier, Carrier::Veth { netem: false });
        if bare && !params.iter().all(LinkParams::is_plain) {
            return Err(TestbedError::NotAdjustable);
        }
        self.params = params;
        self.apply()
    }

    /// Loses every frame from now on; the interfaces do not notice.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn cut(&mut self) -> Result<(), TestbedError> {
        self.cut = true;
        self.apply()
    }

    /// Undoes [`cut`](Self::cut).
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn restore(&mut self) -> Result<(), TestbedError> {
        self.cut = false;
        self.apply()
    }

    /// What became of the frames from the first end, and of those from the second; known for
    /// links of the kind [`LinkKind::Relay`] only.
    pub fn counters(&self) -> Option<[DirectionCounters; 2]> {
        match &self.carrier {
            Carrier::Taps { relay, id } => relay.counters(*id),
            Carrier::Veth { .. } => None,
        }
    }

    fn apply(&self) -> Result<(), TestbedError> {
        if let Carrier::Taps { relay, id } = &self.carrier {
            relay.set_params(*id, self.params);
            relay.set_cut(*id, self.cut);
            return Ok(());
        }
        for ((end, params), number) in self.ends.iter().zip(self.params).zip(0..) {
            let netlink = end.namespace.netlink();
            if self.cut {
                netem::block(netlink, &end.interface)?;
            } else if params.is_plain() {
                netem::clear(netlink, &end.interface)?;
            } else {
                let [[.., port], _] = self.macs;
                let seed = self.seed.wrapping_add(u64::from(port)).wrapping_add(number);
                netem::set(netlink, &end.interface, &params, seed)?;
            }
        }
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        match &self.carrier {
            Carrier::Taps { relay, id } => relay.remove(*id),
            // Fails when its namespace went first, and took it along.
            Carrier::Veth { .. } => {
                let [end, _] = &self.ends;
                best_effort(end.namespace.netlink().delete(&end.interface));
            }
        }
    }
}

fn join_taps(
    testbed: &Testbed,
    ends: &[LinkEnd; 2],
    params: LinkParams,
) -> Result<Carrier, TestbedError> {
    let open = |end: &LinkEnd| {
        let name = end.interface.as_str();
        end.namespace
            .run(|| sys::open_tap(name))?
            .doing("create the TAP", name)
    };
    let [near, far] = ends;
    let relay = Arc::clone(testbed.relay()?);
    let id = relay.add([open(near)?, open(far)?], [params; 2], testbed.seed());
    Ok(Carrier::Taps { relay, id })
}
