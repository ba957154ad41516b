//! Keeps forwarded TCP connections to segments that fit the tunnel.
//!
//! Connections of this host fit by themselves: the kernel takes the segment size from the MTU of
//! the interface their route leads through. Hosts behind a gateway do not know of the tunnel, and
//! ICMP that tells them often does not arrive.

use std::io::{self, Write};
use std::process::{Command, Stdio};

/// An nftables table of ours for one data interface, changed with the program `nft`.
#[derive(Debug)]
pub struct MssClamp {
    table: String,
}

impl MssClamp {
    /// Names the clamp of the data interface `data`; sets nothing.
    #[must_use]
    pub fn of(data: &str) -> Self {
        Self {
            table: format!("lispwire_{data}"),
        }
    }

    /// Lowers the maximum segment size of TCP connections that are forwarded to or from the data
    /// interface, or the interface `miss` that catches their first packets, to what `mtu` bytes
    /// hold. One that is set already is replaced in one step.
    ///
    /// # Errors
    /// There is no program `nft`, or the kernel has no nf_tables.
    pub fn set(&self, data: &str, miss: &str, mtu: u16) -> io::Result<()> {
        run(&self.ruleset(data, miss, mtu))
    }

    /// Takes the clamp away; that there is none is no error.
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

    fn ruleset(&self, data: &str, miss: &str, mtu: u16) -> String {
        let table = &self.table;
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
        format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n\
             chain forward {{\ntype filter hook forward priority mangle; policy accept;\n\
             {rules}}}\n}}\n"
        )
    }
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
