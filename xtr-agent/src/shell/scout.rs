//! What tells the agent whether proxies lead anywhere: echoes, and where packets go.

use std::net::IpAddr;
use std::task::{Context, Poll};

use tracing::debug;
use wg_device::{Listener, Pinger};

use super::overlay::Report;
use crate::agent::Action;
use crate::config::Instance;

/// Asks and listens through the data interface of one instance.
pub(super) struct Scout {
    pinger: Pinger,
    listener: Listener,
}

impl Scout {
    pub(super) fn new(instance: &Instance) -> Self {
        let (netns, device) = (instance.netns.as_deref(), &instance.interfaces.data);
        Self {
            pinger: Pinger::new(netns, device),
            listener: Listener::new(netns, device),
        }
    }

    /// Waits for the answer to an echo: by whom, and to which.
    pub(super) fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<(IpAddr, u16)> {
        self.pinger.poll_answer(context)
    }

    /// An answer that has come by now.
    pub(super) fn answered(&mut self) -> Option<(IpAddr, u16)> {
        self.pinger.answered()
    }

    /// Carries out an action that is about this; returns what the agent is told of it.
    pub(super) fn perform(&mut self, action: Action) -> Option<Report> {
        match action {
            Action::Echo { to, number } => {
                let error = self.pinger.send(to, number).err()?;
                debug!(%to, %error, "echo not sent");
                Some(Report::EchoNotSent(number))
            }
            Action::Listen => {
                if let Err(error) = self.listener.begin() {
                    debug!(%error, "not listening");
                }
                None
            }
            Action::Hear => Some(Report::Heard(self.listener.end())),
            Action::Send { .. }
            | Action::Apply { .. }
            | Action::Kick(_)
            | Action::AwaitHandshake(_)
            | Action::RenewControlTunnel(_)
            | Action::ReadPeerStats(_)
            | Action::ReadPeerStatsAnew(_)
            | Action::Carry(_)
            | Action::Reinject(_)
            | Action::Deliver(_)
            | Action::Count(_)
            | Action::Event(_) => None,
        }
    }
}
