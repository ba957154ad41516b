//! What a tunnel carries once it is up, against one configured by hand.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testbed::{LinkParams, Namespace, Network, NetworkOptions, monotonic_ns};

use super::report::Throughput;
use super::{Effort, plane_name, say};
use crate::by_hand::ByHand;

const PORT: u16 = 5_201;
/// A write to the stream.
const CHUNK: usize = 128 << 10;
/// What a stream may do before it is measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// Measures both in turns.
pub(super) fn measure(plane: testbed::DataPlane, effort: Effort) -> Result<Throughput> {
    let mut network = Network::start(&NetworkOptions {
        data_plane: plane,
        ..NetworkOptions::default()
    })?;
    let bare = ByHand::start(plane, LinkParams::default())?;
    let mut measured = Throughput::default();
    let time = Duration::from_secs(effort.seconds.into());
    for round in 1..=effort.rounds {
        let [ours, by_hand] = [
            {
                let [alpha, beta] = network.endpoints.as_slice() else {
                    anyhow::bail!("a pair needs two endpoints");
                };
                stream(alpha.namespace(), beta.namespace(), beta.eids[0], time)?
            },
            {
                let [left, right] = &bare.ends;
                stream(
                    &left.host.namespace,
                    &right.host.namespace,
                    right.inner,
                    time,
                )?
            },
        ];
        say(&format!(
            "{}: round {round} of {}: {ours:.0} Mbit/s, by hand {by_hand:.0} Mbit/s",
            plane_name(plane),
            effort.rounds
        ));
        measured.lispwire_mbit_s.push(ours);
        measured.bare_mbit_s.push(by_hand);
    }
    network.stop_all()?;
    Ok(measured)
}

/// Sends one TCP stream for `time` and returns what arrived, in Mbit/s.
fn stream(from: &Namespace, to: &Namespace, address: IpAddr, time: Duration) -> Result<f64> {
    let target = SocketAddr::new(address, PORT);
    let listener = to.run(|| TcpListener::bind(target))?.context("listen")?;
    let mut sender = from
        .run(|| TcpStream::connect(target))?
        .context("connect")?;
    let (mut receiver, _) = listener.accept().context("accept")?;
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let chunk = vec![0x4c; CHUNK];
            // Ends when the receiver hangs up.
            while sender.write_all(&chunk).is_ok() {}
        });
        let mut buffer = vec![0; CHUNK];
        let mut take = |time: Duration| -> Result<f64> {
            let start = monotonic_ns();
            let passed = || Duration::from_nanos(monotonic_ns().saturating_sub(start));
            let mut bytes = 0;
            while passed() < time {
                let length = receiver.read(&mut buffer).context("receive")?;
                ensure!(length > 0, "the stream ended early");
                bytes += length;
            }
            Ok(bytes as f64 * 8e-6 / passed().as_secs_f64())
        };
        let rate = take(WARM_UP).and_then(|_| take(time));
        let hung_up = receiver.shutdown(Shutdown::Both);
        drop(receiver);
        let sent = sending.join();
        ensure!(hung_up.is_ok() && sent.is_ok(), "the stream did not end");
        rate
    })
}
