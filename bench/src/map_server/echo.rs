//! What the machine allows: a server that answers every datagram with as many bytes as a map server would,
//! and does nothing else.

use std::convert::Infallible;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args as ClapArgs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wg_device::{Inbox, Outbox, set_receive_room};

use super::load::{RECEIVE_ROOM, nonce_of};

/// Longest datagram.
const LONGEST: usize = 2_048;

/// Echoes.
#[derive(Clone, Debug, ClapArgs)]
pub(crate) struct Args {
    #[arg(long)]
    listen: SocketAddr,
    /// Length of the answer to an encapsulated Map-Request, in bytes.
    #[arg(long)]
    reply: usize,
    /// Length of the answer to anything else.
    #[arg(long)]
    notify: usize,
}

/// Runs the process until it is killed.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    serve(args).map(|never| match never {})
}

fn serve(args: &Args) -> Result<Infallible> {
    let socket = UdpSocket::bind(args.listen)?;
    socket.set_nonblocking(true)?;
    set_receive_room(&socket, RECEIVE_ROOM)?;
    let (mut inbox, mut outbox) = (Inbox::new(LONGEST), Outbox::default());
    let answers = [args.reply, args.notify].map(|length| vec![0; length.max(12)]);
    let [mut reply, mut notify] = answers;
    loop {
        poll(
            &mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)],
            PollTimeout::NONE,
        )?;
        while inbox.receive(&socket).is_ok() {
            for (source, question) in inbox.iter() {
                let is_encapsulated = question.first().is_some_and(|byte| byte >> 4 == 8);
                let answer = match is_encapsulated {
                    true => &mut reply,
                    false => &mut notify,
                };
                if let Some(nonce) = answer.get_mut(4..12) {
                    nonce.copy_from_slice(&nonce_of(question, is_encapsulated));
                }
                outbox.bytes_mut().extend_from_slice(answer);
                outbox.push(source);
            }
            outbox.send(&socket);
        }
    }
}
