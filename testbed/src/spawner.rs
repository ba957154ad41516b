//! Starts all child processes from one thread that lives as long as the process.
//!
//! `PR_SET_PDEATHSIG` looks at the *thread* that forked: a daemon started from a short-lived
//! thread would be killed when that thread ends.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use crate::error::best_effort;
use crate::namespace::Namespace;
use crate::sys;

struct Job {
    command: Command,
    namespace: Namespace,
    started: Sender<io::Result<Child>>,
}

/// Starts `command` in `namespace`.
pub(crate) fn spawn(command: Command, namespace: Namespace) -> io::Result<Child> {
    static JOBS: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| Mutex::new(start_thread()));
    let (started, outcome) = mpsc::channel();
    let job = Job {
        command,
        namespace,
        started,
    };
    jobs.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(job)
        .map_err(io::Error::other)?;
    outcome.recv().map_err(io::Error::other)?
}

fn start_thread() -> Sender<Job> {
    let (jobs, received) = mpsc::channel::<Job>();
    thread::spawn(move || {
        for Job {
            mut command,
            namespace,
            started,
        } in received
        {
            let child = sys::spawn(&mut command, Some(namespace.descriptor()));
            // Whoever asked may have given up.
            best_effort(started.send(child));
        }
    });
    jobs
}
