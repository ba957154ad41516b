//! First packets between two endpoints that know nobody.

use std::time::Duration;

use super::{Endpoint, Network};
use crate::Ping;
use crate::clock::sleep;
use crate::daemon::LogEvent;
use crate::error::TestbedError;

use super::SERVER_CONTROL_INTERFACE;

/// How long control datagrams of one thing may be under way before the next one is measured.
const QUIET: Duration = Duration::from_millis(100);

/// What was measured of one cold start.
#[derive(Clone, Copy, Debug)]
pub struct ColdStart {
    /// From the first packet to its reply; `None` when it got none.
    pub first_reply: Option<Duration>,
    /// From the caught packet to peer and route; `None` when no route appeared.
    pub configured: Option<Duration>,
    /// Datagrams that the map server received and sent for it inside the control tunnels.
    pub control_datagrams: u64,
}

impl Network {
    /// Restarts the first two endpoints and sends a first packet from one to the other.
    ///
    /// # Errors
    ///
    /// When an agent does not start or stop, or when the start was not a cold one: the first packet
    /// found a tunnel.
    pub fn cold_start(&mut self) -> Result<ColdStart, TestbedError> {
        let log = &self.log;
        for endpoint in self.endpoints.iter_mut().take(2) {
            endpoint.node.stop()?;
            endpoint.node.start(log)?;
            endpoint.wait_until_registered()?;
        }
        sleep(QUIET);
        let [alpha, beta] = self.pair()?;
        let position = self.log.position();
        let before = self.control_datagrams()?;
        let first_reply = Ping::once(beta.eids[0]).run(alpha.namespace())?.shortest();
        sleep(QUIET);
        let control_datagrams = self.control_datagrams()?.saturating_sub(before);
        let events = self.log.since(position);
        let own = |event: &str| first(&events, alpha.name(), event);
        let caught = own("caught").ok_or(TestbedError::Unexpected(
            "the first packet was not caught: a warm start",
        ))?;
        let route = own("route_installed");
        Ok(ColdStart {
            first_reply,
            configured: route.map(|route| Duration::from_nanos(route.saturating_sub(caught))),
            control_datagrams,
        })
    }

    /// The time from the first endpoint to the second and back over the links, without a tunnel.
    ///
    /// # Errors
    ///
    /// When the underlay does not answer.
    pub fn round_trip(&self) -> Result<Duration, TestbedError> {
        let [alpha, beta] = self.pair()?;
        let ping = Ping {
            count: 20,
            interval: Duration::from_millis(2),
            ..Ping::once(beta.node.underlay_address()?)
        };
        let report = ping.run(alpha.namespace())?;
        report
            .shortest()
            .ok_or(TestbedError::Unexpected("the underlay does not answer"))
    }

    /// The first two endpoints.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn pair(&self) -> Result<[&Endpoint; 2], TestbedError> {
        match self.endpoints.as_slice() {
            [alpha, beta, ..] => Ok([alpha, beta]),
            _ => Err(TestbedError::Unexpected("a pair needs two endpoints")),
        }
    }

    /// Datagrams that the server has received and sent inside the control tunnels.
    fn control_datagrams(&self) -> Result<u64, TestbedError> {
        let namespace = &self.server.host.namespace;
        let counters = namespace.counters(SERVER_CONTROL_INTERFACE)?;
        Ok(counters.received_packets + counters.sent_packets)
    }
}

/// When a daemon first said this, in nanoseconds.
fn first(events: &[LogEvent], daemon: &str, event: &str) -> Option<u64> {
    let said = events.iter().find(|line| line.is(daemon, event));
    said.map(|line| line.timestamp)
}
