//! The crate against a real kernel, in network namespaces that vanish with each test.
//!
//! Needs root. Tests of devices run with every data plane the machine has; for the kernel's, copy
//! this binary to a machine (or an emulated one) that has WireGuard.

#[cfg(test)]
mod addresses;
#[cfg(test)]
mod adoption;
#[cfg(test)]
mod bursts;
#[cfg(test)]
mod conntrack;
#[cfg(test)]
mod costs;
#[cfg(test)]
mod echo;
#[cfg(test)]
mod forgery;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod miss;
#[cfg(test)]
mod mtu;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod support;
#[cfg(test)]
mod together;
#[cfg(test)]
mod traffic;
#[cfg(test)]
mod tunnel;
#[cfg(test)]
mod uplinks;
