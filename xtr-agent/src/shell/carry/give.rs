//! A client goes to another proxy: who asks for its connections gets them, and what changes until it has
//! gone.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};
use wg_device::{NetNs, listen_through};

use super::books::{Offers, Told};
use super::limits::{ENTERING, LISTENING, PACE, PATIENCE, PORT, SESSIONS};
use super::table::Table;
use super::wire::{self, Frame};
use crate::shell::clock::Clock;

/// Where a question for an end of a session is answered: how many connections the other proxy holds.
type End = oneshot::Sender<u32>;

/// What this proxy lets others have.
#[derive(Debug)]
pub(super) struct Giving {
    clock: Clock,
    table: Arc<Table>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    offers: Offers,
    sessions: BTreeMap<IpNet, mpsc::Sender<End>>,
    is_listening: bool,
}

impl Giving {
    pub(super) fn new(clock: Clock, table: Arc<Table>) -> Self {
        Self {
            clock,
            table,
            state: Mutex::default(),
        }
    }

    /// Lets `to` have the connections of `client`; says whether somebody must begin to
    /// [listen](Self::listen).
    pub(super) fn offer(&self, client: IpNet, to: IpAddr) -> bool {
        let mut state = self.state();
        state.offers.offer(self.clock.now(), client, to);
        !std::mem::replace(&mut state.is_listening, true)
    }

    /// Takes questions through `device` at `eids`, until there is nothing to ask for any more.
    pub(super) async fn listen(
        self: Arc<Self>,
        netns: Option<NetNs>,
        device: String,
        eids: Vec<IpAddr>,
    ) {
        let mut accepting = JoinSet::new();
        for eid in eids {
            match listen_through(netns.as_ref(), &device, (eid, PORT).into()) {
                Ok(listener) => {
                    accepting.spawn(Arc::clone(&self).accept(listener));
                }
                Err(error) => warn!(%eid, %error, "nobody can ask for connections here"),
            }
        }
        loop {
            sleep(LISTENING).await;
            let mut state = self.state();
            if state.offers.expire(self.clock.now()) {
                state.is_listening = false;
                return;
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let mut sessions = JoinSet::new();
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    debug!(%error, "not accepted");
                    sleep(PACE).await;
                    continue;
                }
            };
            while sessions.try_join_next().is_some() {}
            let by = from.ip();
            if self.state().offers.knows(self.clock.now(), by) && sessions.len() < SESSIONS {
                sessions.spawn(Arc::clone(&self).serve(stream, by));
            }
        }
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream, by: IpAddr) {
        if let Err(error) = self.tell(&mut stream, by).await {
            debug!(%by, %error, "connections not handed over");
        }
    }

    /// Tells who asks of the connections of a client, and of what changes, until the client has gone.
    async fn tell(&self, stream: &mut TcpStream, by: IpAddr) -> io::Result<()> {
        let mut hello = [0; wire::HELLO];
        timeout(PATIENCE, stream.read_exact(&mut hello)).await??;
        let client = wire::read_hello(&hello).map_err(|_| malformed())?;
        let Some(mut ends) = self.begin(client, by) else {
            return Err(io::ErrorKind::PermissionDenied.into());
        };
        let (mut told, mut end) = (Told::default(), None::<End>);
        let mut flows = self.table.lately_of(client).await?;
        loop {
            let mut out = Vec::new();
            for frame in told.news(&flows) {
                wire::write(&frame, &mut out);
            }
            let last = if end.is_some() {
                Frame::End
            } else {
                Frame::Batch
            };
            wire::write(&last, &mut out);
            timeout(PATIENCE, stream.write_all(&out)).await??;
            let mut answer = [0; wire::ANSWER];
            timeout(ENTERING, stream.read_exact(&mut answer)).await??;
            if let Some(end) = end {
                // Who has asked may have given up.
                let _given_up = end.send(wire::read_answer(answer));
                return Ok(());
            }
            tokio::select! {
                asked = ends.recv() => match asked {
                    Some(asked) => end = Some(asked),
                    None => return Ok(()),
                },
                () = sleep(PACE) => {}
            }
            flows = self.table.of(client).await?;
        }
    }

    /// Begins a session of `by` about `client`, if that may be; it takes the place of an earlier one.
    fn begin(&self, client: IpNet, by: IpAddr) -> Option<mpsc::Receiver<End>> {
        let mut state = self.state();
        if !state.offers.allows(self.clock.now(), &client, by) {
            return None;
        }
        if state.sessions.len() >= SESSIONS {
            state.sessions.retain(|_, session| !session.is_closed());
        }
        let (ask, asked) = mpsc::channel(1);
        state.sessions.insert(client, ask);
        Some(asked)
    }

    /// Ends the offer of `client`, which has gone, after whoever asked for it has got the last changes;
    /// returns how many connections go on there.
    pub(super) async fn end(&self, client: IpNet) -> u32 {
        let session = self.state().sessions.remove(&client);
        let mut moved = 0;
        if let Some(session) = session {
            let (end, ended) = oneshot::channel();
            if session.send(end).await.is_ok() {
                let ended = timeout(PATIENCE * 2, ended).await;
                moved = ended.ok().and_then(Result::ok).unwrap_or(0);
            }
        }
        self.state().offers.end(&client);
        moved
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "that is no question")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_that_leave_at_a_time_may_be_asked_for() {
        let many = 300_u32;
        let clock = Clock::start();
        let table = Arc::new(Table::new(None, &[], clock));
        let giving = Arc::new(Giving::new(clock, table));
        let here = IpAddr::from([127, 0, 0, 1]);
        let client = |number: u32| IpNet::from(IpAddr::V4((0x0a00_0000 | number).into()));
        for number in 0..many {
            giving.offer(client(number), here);
        }
        let listener = TcpListener::bind((here, 0)).await.unwrap();
        let to = listener.local_addr().unwrap();
        let accepting = tokio::spawn(Arc::clone(&giving).accept(listener));
        // Nobody says anything before all are there.
        let mut streams = Vec::new();
        for _ in 0..many {
            streams.push(TcpStream::connect(to).await.unwrap());
        }
        for (number, stream) in (0..many).zip(&mut streams) {
            stream
                .write_all(&wire::hello(client(number)))
                .await
                .unwrap();
        }
        while giving.state().sessions.len() < streams.len() {
            sleep(PACE).await;
        }
        accepting.abort();
    }
}
