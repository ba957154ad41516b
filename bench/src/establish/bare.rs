//! WireGuard configured by hand: what there is without any control plane.

use std::io::{Read, stdin};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use ipnet::IpNet;
use lisp_proto::PublicKey;
use wg_device::{BackendChoice, Device, DeviceConfig, PeerSpec, PrivateKey};

use super::say;

/// One end of a tunnel configured by hand, up until standard input ends.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the interface
    #[arg(long)]
    name: String,
    /// File with the private key
    #[arg(long)]
    key: PathBuf,
    /// UDP port
    #[arg(long)]
    port: u16,
    /// Address of the interface; its prefix is routed into it
    #[arg(long)]
    address: IpNet,
    /// Key of the other end
    #[arg(long)]
    peer: PublicKey,
    /// Where the other end is
    #[arg(long)]
    endpoint: SocketAddr,
    /// Which data plane: auto, kernel or embedded
    #[arg(long)]
    data_plane: String,
}

/// Makes the interface, says `ready`, and waits for the end of standard input.
///
/// # Errors
///
/// When the interface cannot be made.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = DeviceConfig {
            name: args.name,
            private_key: PrivateKey::load_or_create(&args.key)?,
            listen_port: args.port,
            mtu: MTU,
            mark: 0,
            sources: None,
            addresses: vec![args.address],
            adopt: false,
        };
        let choice = match args.data_plane.as_str() {
            "kernel" => BackendChoice::Kernel,
            "embedded" => BackendChoice::Embedded,
            _ => BackendChoice::Auto,
        };
        let device = Device::create(config, choice).await?;
        device
            .set_peer(&PeerSpec {
                key: args.peer,
                endpoint: Some(args.endpoint),
                allowed_ips: vec![args.address.trunc()],
                keepalive: None,
            })
            .await?;
        say("ready");
        let end = || stdin().read_to_end(&mut Vec::new());
        tokio::task::spawn_blocking(end).await??;
        device.close().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// As the agents have it.
const MTU: u16 = 1_420;
