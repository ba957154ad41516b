//! What happens to packets that are forwarded into and out of the tunnels: TCP connections keep to
//! segments that fit, and what leaves by an uplink may get an address there.
//!
//! Connections of this host fit by themselves: the kernel takes the segment size from the MTU of
//! the interface their route leads through. Hosts behind a gateway do not know of the tunnel, and
//! ICMP that tells them often does not arrive.

use std::io::{self, Write};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use ipnet::IpNet;

/// An nftables table of ours for one data interface, changed with the program `nft`.
#[derive(Debug)]
pub struct ForwardRules {
    table: String,
}

/// What is forwarded, and how.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded<'a> {
    /// The data interface.
    pub data: &'a str,
    /// The interface that catches first packets.
    pub miss: &'a str,
    /// What fits both, bytes.
    pub mtu: u16,
    /// Whether what leaves the tunnels for elsewhere gets another source address.
    pub nat: Option<SourceNat<'a>>,
}

/// What gets another source address.
#[derive(Clone, Copy, Debug)]
pub struct SourceNat<'a> {
    /// Which one.
    pub translation: Translation<'a>,
    /// Only what leaves by this interface; `None`: by any that is none of the tunnels.
    pub uplink: Option<&'a str>,
    /// But not what goes to these networks.
    pub except: &'a [IpNet],
}

/// Which source address packets get.
#[derive(Clone, Copy, Debug)]
pub enum Translation<'a> {
    /// One of the interface they leave by.
    Masquerade,
    /// These, at most one of each address family; what is of another family keeps its own.
    To(&'a [IpAddr]),
}

impl ForwardRules {
    /// Names the rules of the data interface `data`; sets nothing.
    #[must_use]
    pub fn of(data: &str) -> Self {
        Self {
            table: format!("lispwire_{data}"),
        }
    }

    /// Lowers the maximum segment size of TCP connections that are forwarded to or from the tunnels to
    /// what their MTU holds, and translates addresses. What is set already is replaced in one step.
    ///
    /// # Errors
    /// There is no program `nft`, or the kernel has no nf_tables.
    pub fn set(&self, forwarded: &Forwarded<'_>) -> io::Result<()> {
        run(&self.ruleset(forwarded))
    }

    /// Takes the rules away; that there are none is no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self) -> io::Result<()> {
        let table = &self.table;
        // Where there is no `nft`, nothing was set.
        match run(&format!("table inet {table}\ndelete table inet {table}\n")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn ruleset(&self, forwarded: &Forwarded<'_>) -> String {
        let table = &self.table;
        let clamps = clamps(forwarded);
        let nat = forwarded.nat.as_ref();
        let nat = nat.map_or_else(String::new, |nat| translates(forwarded, nat));
        format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n\
             chain forward {{\ntype filter hook forward priority mangle; policy accept;\n\
             {clamps}}}\n{nat}}}\n"
        )
    }
}

/// The rules that lower segment sizes.
fn clamps(forwarded: &Forwarded<'_>) -> String {
    let Forwarded {
        data, miss, mtu, ..
    } = forwarded;
    // IP and TCP headers without options.
    let (v4, v6) = (mtu.saturating_sub(40), mtu.saturating_sub(60));
    let mut rules = String::new();
    for side in ["oifname", "iifname"] {
        for (family, size) in [("ipv4", v4), ("ipv6", v6)] {
            rules += &format!(
                "{side} {{ \"{data}\", \"{miss}\" }} meta nfproto {family} \
                 tcp flags & (syn | rst) == syn tcp option maxseg size set {size}\n"
            );
        }
    }
    rules
}

/// The chains that change source addresses, and look after those that others may have as well.
fn translates(forwarded: &Forwarded<'_>, nat: &SourceNat<'_>) -> String {
    let Forwarded { data, miss, .. } = forwarded;
    let mut rules = String::new();
    for net in nat.except {
        let family = family(net.addr());
        rules += &format!("{family} daddr {net} accept\n");
    }
    let leaving = match nat.uplink {
        Some(uplink) => format!("oifname \"{uplink}\""),
        None => format!("oifname != {{ \"{data}\", \"{miss}\" }}"),
    };
    let mut guards = String::new();
    match nat.translation {
        Translation::Masquerade => {
            rules += &format!("iifname \"{data}\" {leaving} masquerade\n");
        }
        Translation::To(addresses) => {
            for address in addresses {
                let family = family(*address);
                let protocol = if address.is_ipv4() { "ipv4" } else { "ipv6" };
                rules += &format!(
                    "meta nfproto {protocol} iifname \"{data}\" {leaving} snat {family} to {address}\n"
                );
            }
            guards = keeps_silent(addresses);
        }
    }
    format!(
        "chain postrouting {{\ntype nat hook postrouting priority srcnat; policy accept;\n\
         {rules}}}\n{guards}"
    )
}

/// The chains that keep this host from ending, by an answer of its own, connections at `addresses` that
/// it does not know yet, or no more: they may be on their way from another host, or to one. Nor is
/// anything remembered of them that would be in the way of their entries.
fn keeps_silent(addresses: &[IpAddr]) -> String {
    let (mut incoming, mut output) = (String::new(), String::new());
    for address in addresses {
        let (family, icmp) = match address {
            IpAddr::V4(_) => ("ip", "icmp"),
            IpAddr::V6(_) => ("ip6", "icmpv6"),
        };
        incoming += &format!(
            "{family} daddr {address} ct state {{ new, invalid }} \
             tcp flags & (syn | ack | rst) != syn drop\n\
             {family} daddr {address} ct state new fib daddr type != local drop\n"
        );
        // Other errors of this kind say what fits, or that there is no way.
        output += &format!(
            "{family} saddr {address} {icmp} type destination-unreachable \
             {icmp} code port-unreachable drop\n"
        );
    }
    // Connection tracking comes before, and the way back of a translation after that.
    format!(
        "chain prerouting {{\ntype filter hook prerouting priority mangle; policy accept;\n\
         {incoming}}}\n\
         chain output {{\ntype filter hook output priority filter; policy accept;\n{output}}}\n"
    )
}

/// The name of the family of an address in rules.
const fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// Has `nft` carry out a script, all of it or nothing.
fn run(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let first = complaint.lines().next().unwrap_or("no reason given");
    Err(io::Error::other(format!("nft: {first}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_that_nobody_listens_is_kept_silent_and_what_is_routed_here_is_covered() {
        let chains = keeps_silent(&[[203, 0, 113, 9].into(), "2001:db8::9".parse().unwrap()]);
        for expected in [
            "ip saddr 203.0.113.9 icmp type destination-unreachable icmp code port-unreachable drop\n",
            "ip6 saddr 2001:db8::9 icmpv6 type destination-unreachable icmpv6 code port-unreachable drop\n",
            "ip daddr 203.0.113.9 ct state new fib daddr type != local drop\n",
            "ip6 daddr 2001:db8::9 ct state new fib daddr type != local drop\n",
            "hook prerouting priority mangle",
        ] {
            assert!(chains.contains(expected), "{expected} in {chains}");
        }
        assert_eq!(chains.matches(" drop\n").count(), 6, "{chains}");
    }
}
