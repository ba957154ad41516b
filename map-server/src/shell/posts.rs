//! The sockets of the control port, and what one thread does with what arrives there.
//!
//! Most of it are questions in the plain, which change nothing: whoever has received them answers them, many
//! at a time, while the state machine stands still. What may change something is left to the one thread
//! that owns it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::PoisonError;

use arrayvec::ArrayVec;
use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};
use lisp_proto::Timestamp;
use tokio::io::Interest;
use tracing::{Level, debug, enabled};
use wg_device::{BATCH, Inbox, Outbox};

use super::narrate;
use crate::server::{Action, Actions, Answered, Counters, Desk, MapServer, Via};

/// Room for the largest UDP payload, in bytes.
const DATAGRAM: usize = 65_536;

/// The state machine: threads that read it do not wait for each other, each has a lock of its own. Who
/// writes takes all of them, so nobody reads while something is half written.
pub(super) type SharedServer = ShardedLock<MapServer>;

pub(super) fn read(server: &SharedServer) -> ShardedLockReadGuard<'_, MapServer> {
    server.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write(server: &SharedServer) -> ShardedLockWriteGuard<'_, MapServer> {
    server.write().unwrap_or_else(PoisonError::into_inner)
}

/// A socket, with what has arrived there and what is to be sent from there.
#[derive(Debug)]
pub(super) struct Post<S> {
    pub(super) via: Via,
    pub(super) local: SocketAddr,
    socket: S,
    inbox: Inbox,
    outbox: Outbox,
    /// Positions in the inbox of what was not answered at once.
    left: Vec<usize>,
}

/// Answers what changes nothing.
#[derive(Debug)]
pub(super) struct Clerk {
    desk: Desk,
    actions: Actions,
}

impl<S: AsFd> Post<S> {
    pub(super) fn new(via: Via, local: SocketAddr, socket: S) -> Self {
        Self {
            via,
            local,
            socket,
            inbox: Inbox::new(DATAGRAM),
            outbox: Outbox::default(),
            left: Vec::new(),
        }
    }

    pub(super) const fn socket(&self) -> &S {
        &self.socket
    }

    /// Lists what was not answered at once.
    pub(super) fn left(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        let left = self.left.iter();
        left.filter_map(|position| self.inbox.get(*position))
    }

    /// Takes a datagram to be sent with others.
    pub(super) fn post(&mut self, dst: SocketAddr, bytes: &[u8]) {
        self.outbox.bytes_mut().extend_from_slice(bytes);
        self.outbox.push(dst);
        if self.outbox.is_full() {
            self.send();
        }
    }

    /// Sends what is to be sent; what the network refuses is lost, as datagrams may be.
    pub(super) fn send(&mut self) {
        if let Some((lost, error)) = self.outbox.send(&self.socket) {
            debug!(%error, lost, "send");
        }
    }
}

impl Post<UdpSocket> {
    /// Takes in what has arrived, up to a bound; returns whether there was anything.
    pub(super) fn receive(&mut self) -> bool {
        self.left.clear();
        receive(&mut self.inbox, &self.socket).is_ok()
    }
}

impl Post<tokio::net::UdpSocket> {
    /// Takes in what has arrived, up to a bound; returns whether there was anything.
    pub(super) fn receive(&mut self) -> bool {
        self.left.clear();
        let Self { inbox, socket, .. } = self;
        // The runtime takes note of a socket that has run dry.
        let received = socket.try_io(Interest::READABLE, || receive(inbox, socket));
        received.is_ok()
    }
}

fn receive(inbox: &mut Inbox, socket: &impl AsFd) -> io::Result<usize> {
    loop {
        match inbox.receive(socket) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                // Of an earlier datagram to somewhere that is not reachable.
                debug!(%error, "receive");
            }
            result => return result,
        }
    }
}

impl AsFd for Post<UdpSocket> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Clerk {
    pub(super) fn new(server: &SharedServer) -> Self {
        Self {
            desk: read(server).desk(),
            actions: if enabled!(Level::DEBUG) {
                Actions::new()
            } else {
                Actions::quiet()
            },
        }
    }

    /// Answers of what was received at `post` what changes nothing; the rest is left. Returns whether there was any
    /// question.
    pub(super) fn answer<S: AsFd>(
        &mut self,
        now: Timestamp,
        server: &SharedServer,
        post: &mut Post<S>,
        counters: impl FnOnce(&mut dyn FnMut(&mut Counters)),
    ) -> bool {
        let Post {
            via,
            inbox,
            outbox,
            left,
            ..
        } = post;
        if *via == Via::Tunnel {
            left.extend(0..inbox.iter().count());
            return false;
        }
        let Self { desk, actions } = self;
        let server = read(server);
        let mut questions = ArrayVec::<_, BATCH>::new();
        for (position, datagram) in inbox.iter().enumerate() {
            match server.read_question(now, datagram, desk, actions) {
                Ok(question) => questions.push(question),
                Err(Answered::Not) => left.push(position),
                Err(Answered::To(_) | Answered::Silently) => {}
            }
        }
        server.expect_questions(&questions);
        for question in &questions {
            let answered = server.answer(now, question, desk, outbox.bytes_mut(), actions);
            if let Answered::To(dst) = answered {
                outbox.push(dst);
            }
        }
        let was_asked = !questions.is_empty();
        drop(questions);
        drop(server);
        post.send();
        if !self.actions.is_empty() {
            counters(&mut |counters| self.take_note(counters));
        }
        was_asked
    }

    /// Counts what was dropped, and tells the operator what has happened.
    fn take_note(&mut self, counters: &mut Counters) {
        for action in self.actions.drain() {
            match action {
                Action::Count(reason) => {
                    counters.count(reason);
                    debug!(drop = reason.name());
                }
                Action::Event(event) => narrate::narrate_question(&event),
                Action::Send { .. }
                | Action::Persist(_)
                | Action::Watch(_)
                | Action::Unwatch(_)
                | Action::Look => {}
            }
        }
    }
}
