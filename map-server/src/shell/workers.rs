//! Threads that answer what changes nothing, each at a socket of its own.
//!
//! What may change something they hand on to the thread that owns the state machine, which so gets one
//! input after the other, as if it were alone.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::error;
use wg_device::wait_for_any;

use super::backlog::Datagrams;
use super::clock::Clock;
use super::posts::{Clerk, Post, SharedServer};
use crate::server::{Counters, DropReason, Via};

/// Batches that wait to be handled; what comes then is dropped and counted.
const WAITING: usize = 256;
/// Batches taken from one socket before the others have their turn.
const TURN: usize = 4;

/// All workers.
#[derive(Debug)]
pub(super) struct Workers {
    threads: Vec<JoinHandle<()>>,
    /// Closed to let them end.
    stop: Vec<UnixStream>,
    counters: Vec<Arc<Mutex<Counters>>>,
    pub(super) handed_on: Receiver<Datagrams>,
    sender: Sender<Datagrams>,
}

impl Workers {
    pub(super) fn none() -> Self {
        let (sender, handed_on) = channel(WAITING);
        Self {
            threads: Vec::new(),
            stop: Vec::new(),
            counters: Vec::new(),
            handed_on,
            sender,
        }
    }

    /// Starts one more, at `sockets`.
    ///
    /// # Errors
    /// The system has no thread to spare.
    pub(super) fn start(
        &mut self,
        sockets: Vec<(SocketAddr, UdpSocket)>,
        server: &Arc<SharedServer>,
        clock: Clock,
    ) -> io::Result<()> {
        let (stop, stopped) = UnixStream::pair()?;
        let counters = Arc::<Mutex<Counters>>::default();
        let worker = Worker {
            clerk: Clerk::new(server),
            server: Arc::clone(server),
            clock,
            sender: self.sender.clone(),
            counters: Arc::clone(&counters),
        };
        let name = format!("worker-{}", self.threads.len() + 1);
        let thread = Builder::new().name(name).spawn(move || {
            if let Err(error) = worker.run(sockets, &stopped) {
                error!(%error, "a worker has ended");
            }
        })?;
        self.threads.push(thread);
        self.stop.push(stop);
        self.counters.push(counters);
        Ok(())
    }

    /// Adds what they have dropped to `counters`.
    pub(super) fn add_to(&self, counters: &mut Counters) {
        for theirs in &self.counters {
            counters.add(&theirs.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Lets all of them end, and waits for that.
    pub(super) fn stop(&mut self) {
        self.stop.clear();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("a worker has panicked");
            }
        }
    }
}

struct Worker {
    clerk: Clerk,
    server: Arc<SharedServer>,
    clock: Clock,
    sender: Sender<Datagrams>,
    counters: Arc<Mutex<Counters>>,
}

impl Worker {
    fn run(self, sockets: Vec<(SocketAddr, UdpSocket)>, stopped: &UnixStream) -> io::Result<()> {
        let posts = sockets.into_iter();
        let posts = posts.map(|(local, socket)| Post::new(Via::Plain, local, socket));
        let mut posts: Vec<_> = posts.collect();
        let Self {
            mut clerk,
            server,
            clock,
            sender,
            counters,
        } = self;
        while wait_for_any(&posts, stopped)? {
            let counted = |take: &mut dyn FnMut(&mut Counters)| {
                take(&mut counters.lock().unwrap_or_else(PoisonError::into_inner));
            };
            for post in &mut posts {
                for _ in 0..TURN {
                    if !post.receive() {
                        break;
                    }
                    clerk.answer(clock.now(), &server, post, counted);
                    let mut rest = Datagrams::default();
                    post.left().for_each(|(src, bytes)| rest.push(src, bytes));
                    let lost = rest.len();
                    if lost > 0 && sender.try_send(rest).is_err() {
                        counted(&mut |counters| {
                            (0..lost).for_each(|_| counters.count(DropReason::Overloaded));
                        });
                    }
                }
            }
        }
        Ok(())
    }
}
