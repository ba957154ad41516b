//! How an agent ends: what stays for the next start, and what goes.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tracing::info;
use wg_device::Backend;

use super::admin::{Admin, Question};
use super::forwarding;
use super::overlay::Overlay;
use super::{CLOSING, Shell};
use crate::agent::Input;

/// How long a stopping agent waits for its withdrawals to be acknowledged.
pub(super) const GOODBYE: Duration = Duration::from_millis(900);

/// How the agent was told to end.
pub(super) struct Ending {
    purge: bool,
    question: Option<Question>,
}

impl Ending {
    /// Tunnels stay, where the kernel has them: for a restart.
    pub(super) const fn leave() -> Self {
        Self {
            purge: false,
            question: None,
        }
    }

    /// Nothing stays.
    pub(super) const fn purge() -> Self {
        Self {
            purge: true,
            question: None,
        }
    }

    /// Somebody waits until it is done.
    pub(super) const fn asked(purge: bool, question: Question) -> Self {
        Self {
            purge,
            question: Some(question),
        }
    }
}

impl Shell {
    /// From now on, however this process ends, tunnels that the kernel has go on.
    pub(super) fn stay(&self) {
        self.shared.control.stay();
        let mut backends = self.overlays.iter().map(Overlay::backend);
        if let Some(uplinks) = &self.shared.uplinks {
            uplinks.stay(backends.any(|backend| backend == Backend::Kernel));
        }
        for overlay in &self.overlays {
            overlay.stay();
        }
    }

    /// Ends as told. An embedded data plane cannot outlive the process: it is always purged, so
    /// that nobody keeps sending to it.
    pub(super) async fn end(
        mut self,
        ending: Ending,
        admin: Admin,
        datagram: &mut [u8],
    ) -> Result<()> {
        self.finish_reload().await?;
        let mut backends = self.overlays.iter().map(Overlay::backend);
        let embedded = backends.any(|backend| backend == Backend::Embedded);
        let ended = if ending.purge || embedded {
            self.purge(datagram).await
        } else {
            self.leave().await;
            Ok(())
        };
        // Before the answer: `stop && run` must find nobody.
        let farewell = admin.shut().await;
        if let Some(question) = ending.question {
            match &ended {
                Ok(()) => question.answer(json!({ "stopped": true })),
                Err(error) => question.refuse(&format!("{error:#}")),
            }
        }
        farewell.end().await;
        ended
    }

    /// Leaves interfaces, routes and registrations as they are, with all there is to know.
    async fn leave(mut self) {
        self.shared.cache.settle().await;
        self.write_cache().await;
        self.shared.cache.settle().await;
        info!(
            event = "left",
            "tunnels go on; `xtr-agent stop --purge` removes them"
        );
    }

    /// Withdraws, waits a moment for the acknowledgements, and tidies up.
    async fn purge(mut self, datagram: &mut [u8]) -> Result<()> {
        self.overlays.iter_mut().for_each(Overlay::begin_closing);
        self.step_all(Input::Shutdown).await?;
        let until = self.shared.clock.now() + GOODBYE;
        let has_left = |shell: &Self| shell.overlays.iter().all(Overlay::has_left);
        while !has_left(&self) && self.shared.clock.now() < until {
            let deadline = self.next_deadline();
            let wake = deadline.map_or(until, |deadline| deadline.min(until));
            let wake = self.shared.clock.instant(wake);
            tokio::select! {
                received = self.shared.control.socket.recv_from(datagram) => {
                    self.received(received, datagram).await?;
                }
                () = sleep_until(wake) => self.tick().await?,
            }
        }
        // The kernel takes its time for each interface.
        let mut closing = JoinSet::new();
        for overlay in self.overlays {
            closing.spawn(overlay.close());
        }
        let mut outcome = Ok(());
        while let Some(closed) = closing.join_next().await {
            outcome = outcome.and(closed?);
        }
        forwarding::undo_strays(&self.config.instances, &self.config.state_dir);
        let closed = timeout(CLOSING, self.shared.control.close()).await;
        if let Some(uplinks) = self.shared.uplinks {
            uplinks.remove();
        }
        self.shared.cache.remove().await;
        let closed = closed.context("the control tunnel did not close in time");
        outcome.and(closed)
    }
}
